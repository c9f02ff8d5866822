"""The line-based P2P protocol."""
