"""Policies to test with."""

from __future__ import annotations

from pathlib import Path

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
