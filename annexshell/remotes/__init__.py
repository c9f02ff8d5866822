"""The remotes of a repository, and how each kind of them is reached."""
