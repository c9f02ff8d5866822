"""Processes that die at certain points of what they do to the git-annex branch."""

from __future__ import annotations

import os
import signal

from annexshell.annex import git


def die_at(point, *paths):
    """Make this process die by SIGKILL: before ``("git", COMMAND)``, or before ``("os", FUNCTION, COUNT)``.

    The latter is the COUNTth call of the function whose first argument has one of PATHS in it.
    """

    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    if point[0] == "git":
        run = git.output

        def output(repo, *arguments, **how):
            if arguments[0] == point[1]:
                die()
            return run(repo, *arguments, **how)

        git.output = output
        return
    function, count = getattr(os, point[1]), 0

    def counted(*arguments):
        nonlocal count
        count += any(path in arguments[0] for path in paths)
        if count == point[2]:
            die()
        return function(*arguments)

    setattr(os, point[1], counted)
