"""What stands between a request and the command: the checks, first failure first (spec: shell §2.6, §6)."""

from __future__ import annotations

import os

from annexshell import forced
from annexshell.annex.gitrepo import GitRepository
from annexshell.errors import Refused, RepositoryError, TemporaryFailure
from annexshell.uuid import UUID

TYPE_CHECKING = False
if TYPE_CHECKING:
    from annexshell.access import Access
    from annexshell.annex.config import Config
    from annexshell.proxy import ProxiedRepository

# UUIDv5 of the URL namespace and http://git-annex.branchable.com/design/gcrypt/
_GCRYPT_NAMESPACE = bytes.fromhex("48d0ffb7e3b75a98baf365e9bee5def2")
# Each of these could make git look at another repository than the one that was checked.
_REPOSITORY_VARIABLES = (
    b"GIT_DIR",
    b"GIT_WORK_TREE",
    b"GIT_INDEX_FILE",
    b"GIT_OBJECT_DIRECTORY",
    b"GIT_ALTERNATE_OBJECT_DIRECTORIES",
    b"GIT_COMMON_DIR",
    b"GIT_NAMESPACE",
)


def drop_git_variables() -> None:
    """Only the directory on the command line says which repository is meant (spec: shell §13.8)."""
    for name in _REPOSITORY_VARIABLES:
        if name in os.environb:
            del os.environb[name]


def check_access(builtin: forced.Builtin, access: Access) -> None:
    """Raises Refused."""
    if (builtin.needs >= forced.ADDS and not access.may_write) or (
        builtin.needs == forced.REMOVES and not access.may_remove
    ):
        raise blocked(access)


def blocked(access: Access) -> Refused:
    """The refusal for what this access mode does not allow."""
    return Refused(access.blocked)


def open_repository(path: bytes, directory: bytes) -> GitRepository:
    """The repository at PATH, its config being read from now on; DIRECTORY is what the client called it.

    Raises RepositoryError.
    """
    if not os.path.isdir(path) or not os.access(path, os.X_OK):
        raise _unreadable(directory)
    try:
        return GitRepository(path)
    except TemporaryFailure:
        raise
    except RepositoryError as reason:
        raise _unreadable(directory, reason) from reason


def read_config(repo: GitRepository, directory: bytes) -> Config:
    """Wait for the config. Raises RepositoryError."""
    try:
        return repo.config
    except TemporaryFailure:
        raise
    except RepositoryError as reason:
        raise _unreadable(directory, reason) from reason


def _unreadable(directory: bytes, reason: RepositoryError | None = None) -> RepositoryError:
    message = (
        f"failed to read git config of git repository in {os.uname().nodename} on {os.fsdecode(directory)};"
        " perhaps this repository is not set up correctly or has moved"
    )
    return RepositoryError(message if reason is None else f"{message} ({reason})")


def check_uuids(repo: GitRepository, request: forced.Request, options: forced.Options) -> ProxiedRepository | None:
    """Every uuid that the client expects has to be the repository's, or one that it stands in front of.

    Gives the last one of these, None if there is none (spec: shell §6.1, proxy §3.3). Raises Refused.
    """
    target: ProxiedRepository | None = None
    try:
        for uuid in options.uuids:
            own = own_uuid(repo)
            if own and uuid == own:
                continue
            before, target = target, _proxied(repo, own, uuid)
            if before is not None:
                before.abandon()
        if target is not None and not request.builtin.proxied:
            raise Refused(f"Cannot proxy {_text(request.name)} command.")
    except BaseException:
        if target is not None:
            target.abandon()
        raise
    return target


def _proxied(repo: GitRepository, own: bytes, uuid: bytes) -> ProxiedRepository:
    reason = ""
    if repo.uuid:
        from annexshell.proxy import CannotProxy, check_can_proxy

        try:
            return check_can_proxy(repo, UUID(uuid))
        except CannotProxy as refusal:
            reason = str(refusal)
    found = f"UUID {_text(own)}" if own else "uninitialized repository"
    raise Refused(reason or f"expected repository UUID {_text(uuid)} but found {found}")


def own_uuid(repo: GitRepository) -> bytes:
    """The uuid by which clients know REPO; empty if it has none."""
    return repo.uuid or gcrypt_uuid(repo.config.get(b"core.gcrypt-id"))


def gcrypt_uuid(gcrypt_id: bytes | None) -> bytes:
    """The uuid of an encrypted repository, made of the id that git-remote-gcrypt gave it; empty without one."""
    if gcrypt_id is None:
        return b""
    from hashlib import sha1

    digest = bytearray(sha1(_GCRYPT_NAMESPACE + gcrypt_id, usedforsecurity=False).digest()[:16])
    digest[6] = digest[6] & 0x0F | 0x50
    digest[8] = digest[8] & 0x3F | 0x80
    text = digest.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}".encode()


def check_parameters(request: forced.Request, options: forced.Options) -> None:
    """Raises Refused."""
    kind, count = request.builtin.parameters, len(options.parameters)
    if kind == forced.NONE and count:
        raise Refused("This command takes no parameters.")
    if kind == forced.CLIENT_UUID and count != 1:
        raise Refused("missing UUID parameter")
    if request.name == b"dropkey" and not options.flags.get(b"force"):
        raise Refused("dropkey can cause data loss; use --force if you're sure you want to do this")


def _text(uuid: bytes) -> str:
    return uuid.decode("utf-8", "backslashreplace")
