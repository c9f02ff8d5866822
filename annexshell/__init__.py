"""annexshell: the server side of git-annex, in Python."""

__version__ = "0.1.0"
