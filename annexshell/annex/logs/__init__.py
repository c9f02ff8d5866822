"""One module for each format of log file in the git-annex branch."""
