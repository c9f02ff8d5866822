"""gcryptsetup: give a bare repository the id by which clients keep encrypted content in it (spec: shell §7.7)."""

from __future__ import annotations

import os

from annexshell.errors import Refused, RepositoryError, TemporaryFailure, is_passing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from annexshell.annex.gitrepo import GitRepository

_ID = b"core.gcrypt-id"
# git-remote-gcrypt rewrites its only branch at each push.
_DENY = b"receive.denyNonFastForwards"
_LONGEST = 1000  # bytes; those that git-remote-gcrypt makes have 24


def run(repo: GitRepository, parameters: Sequence[bytes]) -> int:
    """Store the id in the repository's git config. Raises Refused, RepositoryError."""
    if not parameters:
        return 0
    _check_no_uuid(repo)
    if len(parameters) > 1:
        raise Refused("gcryptsetup takes one id")
    gcrypt_id = parameters[0]
    _check_id(gcrypt_id)
    _check_repository(repo, gcrypt_id)
    if _missing(repo, gcrypt_id):
        _store(repo, gcrypt_id)
    return 0


def _check_id(gcrypt_id: bytes) -> None:
    if not gcrypt_id:
        raise Refused("the gcrypt id is empty")
    if len(gcrypt_id) > _LONGEST:
        raise Refused(f"the gcrypt id has {len(gcrypt_id)} bytes, more than {_LONGEST}")
    # configlist prints it on a line, and a line end in it could pass for a line of ours.
    if any(byte < 0x20 or byte == 0x7F for byte in gcrypt_id):
        raise Refused("the gcrypt id contains a control character")


def _check_no_uuid(repo: GitRepository) -> None:
    if repo.uuid:
        raise Refused(
            "gcryptsetup refusing to run; this repository already has a git-annex uuid!"
            " Encrypted content needs a repository of its own."
        )


def _check_repository(repo: GitRepository, gcrypt_id: bytes) -> None:
    old = repo.config.get(_ID)
    if old not in (None, gcrypt_id):
        ids = f"{_text(old)} already, not {_text(gcrypt_id)}"
        raise Refused(f"gcryptsetup uuid mismatch: this repository has the gcrypt id {ids}")
    if not repo.is_git_repository:
        raise RepositoryError("There is no git repository in this directory, so it cannot be set up for gcrypt.")
    if not repo.bare:
        raise Refused("cannot use gcrypt in a non-bare repository")


def _missing(repo: GitRepository, gcrypt_id: bytes) -> Mapping[bytes, bytes]:
    """The settings that the repository lacks; none when the same client asks again."""
    missing = {}
    if repo.config.get(_ID) != gcrypt_id:
        missing[_ID] = gcrypt_id
    if repo.config.get_bool(_DENY.lower(), True):
        missing[_DENY] = b"false"
    return missing


def _store(repo: GitRepository, gcrypt_id: bytes) -> None:
    from annexshell.annex.gitconfig import ConfigLock

    try:
        with ConfigLock(repo) as lock:
            # Again, as another client may have set up or initialised it until we had the lock.
            repo.reload_config()
            _check_no_uuid(repo)
            _check_repository(repo, gcrypt_id)
            if missing := _missing(repo, gcrypt_id):
                lock.add(missing)
    except OSError as reason:
        kind = TemporaryFailure if is_passing(reason) else RepositoryError
        config = os.fsdecode(repo.commondir + b"/config")
        raise kind(f"gcryptsetup cannot change the git config {config}: {reason.strerror}") from reason


def _text(gcrypt_id: bytes) -> str:
    return gcrypt_id.decode("utf-8", "backslashreplace")
