"""Everything that can go wrong, as one small tree.

Messages are for the person at the far end of an ssh connection: what was asked, what is wrong, what to do.
"""

from __future__ import annotations

import errno

# What the system answers when it has run out of something for the moment.
_PASSING = frozenset((errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE))


def is_passing(reason: OSError) -> bool:
    """Whether the same may work when it is tried again later: too many processes, files, or too little memory."""
    return reason.errno in _PASSING


class AnnexshellError(Exception):
    """Any failure that has an explanation; everything else is a bug."""


class UsageError(AnnexshellError):
    """The command line makes no sense."""


class Refused(AnnexshellError):
    """The policy (environment, access mode) forbids what was asked."""


class RepositoryError(AnnexshellError):
    """The repository on disk is not usable for what was asked."""


class TemporaryFailure(RepositoryError):
    """Something that may have passed when the client tries again (exit status 255)."""


class ProtocolError(AnnexshellError):
    """The peer broke the protocol in a way that leaves the connection unusable."""


class PeerError(AnnexshellError):
    """The peer, which is called WHO, answered ERROR; the connection is still usable."""

    def __init__(self, text: str, who: str = "the peer") -> None:
        super().__init__(text)
        self.who = who


class Hangup(AnnexshellError):
    """The peer closed the connection in the middle of something."""


class RemoteUnavailable(AnnexshellError):
    """A remote could not be reached."""


class NotAsked(RemoteUnavailable):
    """The connection was lost before a request had gone out: nothing was done, and it can be asked over another."""


class NotPresent(AnnexshellError):
    """The key's content is not in the repository."""


class NotLocked(AnnexshellError):
    """The key's content could not be locked: absent, being removed, or held by somebody else."""


class ContentLocked(NotLocked):
    """Somebody else holds a lock on the content, or its retention time has not passed."""


class TransferRefused(AnnexshellError):
    """A transfer cannot start: already in progress, no space, or not allowed by annex.securehashesonly."""


class Unnameable(TransferRefused):
    """There can be no files that are named after the key, or the client."""
