"""``authorized-keys``: a policy's ssh keys as lines for sshd, each of which may run annexshell for its user only."""

from __future__ import annotations

import os
import shlex
from typing import TYPE_CHECKING

from annexshell.errors import AnnexshellError
from annexshell.policy import document
from annexshell.policy.publickeys import Malformed, PublicKey

if TYPE_CHECKING:
    from collections.abc import Sequence


def run(policy: str, *, program: str | None = None, account: str | None = None, key: str | None = None) -> list[str]:
    """The lines for all keys in POLICY, for sshd only that for KEY, and none for an ACCOUNT that is not meant.

    KEY is a type and base64, as sshd has it. Raises AnnexshellError, OSError.
    """
    path = os.path.abspath(policy)
    known = document.load(os.fsencode(path))
    if account is not None and account not in known.accounts:
        return []
    wanted = None
    if key is not None:
        try:
            wanted = PublicKey.parse(key)
        except Malformed:
            return []  # a certificate, or a type of key that no policy can have
    if program is None:
        from annexshell.commands.link_shell import installed_program

        program = str(installed_program())
    return [
        line(own, [os.path.abspath(program), "--policy", path, "--user", user])
        for user, keys in known.keys.items()
        for own in keys
        if wanted is None or own == wanted
    ]


def line(key: PublicKey, command: Sequence[str]) -> str:
    """The line that lets KEY run COMMAND, which finds what the client wants in SSH_ORIGINAL_COMMAND.

    That variable is not in the line, so nothing of what a client sends goes through a shell.
    """
    for word in command:
        if any(ord(letter) < 0x20 or ord(letter) == 0x7F for letter in word):
            raise AnnexshellError(f"{word!r} cannot be in an authorized_keys file: it has control characters in it")
    # Quoted for the shell that sshd uses; sshd itself knows no quoting but that of the quotation mark.
    quoted = shlex.join(command).replace('"', '\\"')
    return f'restrict,command="{quoted}" {key.line}'
