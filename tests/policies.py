"""Policies to test with."""

from __future__ import annotations

from pathlib import Path

from tests.shell import OTHER_UUID, UUID, Result, Shell

ALICE_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIL30po/EPTc6Z9XA4qNZgFE4QbJjBBGizY+JJsGDC1BZ"
BOB_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIO2jZxTOY+vAUTfYGpXth236sGZ0d7W+3JR7RCPK8OQr"
CAROL_KEY = (
    "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBHJ13Yc1InGjw/aZnV2Vs0Sw+BXuVTl1b6ERmi"
    "xRhWwzMIw91wR3k1CqKLh4e+v4XMQNdWNbfWdPdhSw9MXE6+U="
)
USERS = f"""\
accounts = ["annex"]

[users.alice]
keys = ["{ALICE_KEY} laptop"]

[users.bob]
keys = ["{BOB_KEY}"]

[users.carol]
keys = ["{CAROL_KEY}"]

[groups]
staff = ["alice", "bob"]
"""


def rule(users: str, directories: str, access: str, git: str | None = None) -> str:
    """A rule for blank-separated USERS and DIRECTORIES."""
    lines = ["[[rules]]", f"users = {users.split()}", f"directories = {directories.split()}", f'access = "{access}"']
    return "\n".join([*lines, *([f'git = "{git}"'] if git else []), ""]).replace("'", '"')


def write(path: Path, *rules: str, users: str = USERS) -> Path:
    """A policy of USERS and RULES that nobody else may write to."""
    path.write_text("\n".join([users, *rules]))
    path.chmod(0o644)
    return path


class Server:
    """A policy, and the clients of it."""

    def __init__(self, shell: Shell) -> None:
        self.shell = shell
        self.policy = shell.home.parent / "policy.toml"
        self.srv = shell.home.parent.resolve() / "srv"
        self.srv.mkdir()

    def write(self, *rules: str, **more: str) -> None:
        write(self.policy, *rules, **more)

    def __call__(self, user: str, command: str, **environment: str) -> Result:
        """What becomes of COMMAND, the way that sshd would hand it over."""
        words = ["--policy", str(self.policy), "--user", user]
        return self.shell(*words, SSH_ORIGINAL_COMMAND=command, program="annexshell", **environment)

    def annex(self, user: str, name: str, directory: Path | str, more: str = "", **environment: str) -> Result:
        return self(user, f"git-annex-shell '{name}' '{directory}' {more}".rstrip(), **environment)


# What clients send, with a place for the directory, and what they need for it.
COMMANDS = {
    "git-annex-shell 'configlist' '{}'": "read",
    f"git-annex-shell 'p2pstdio' '{{}}' '{OTHER_UUID}' --uuid {UUID}": "read",
    "git-annex-shell 'recvkey' '{}' 'WORM-s3--foo' --help": "add",
    "git-annex-shell 'dropkey' '{}' '--force' 'WORM-s3--foo' --help": "remove",
    "git-annex-shell 'gcryptsetup' '{}' ':id:' --help": "remove",
    "git-upload-pack '{}'": "fetch",
    "git upload-pack '{}'": "fetch",
    "git-upload-archive '{}'": "fetch",
    "git-receive-pack '{}'": "push",
}
