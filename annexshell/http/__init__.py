"""The HTTP API of git-annex (spec: http)."""
