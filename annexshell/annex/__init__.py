"""A git-annex repository on disk, shared with every other process that has it open."""
