"""One module for each subcommand, each with a run() that reads like its manual page."""
