"""GIT_ANNEX_SHELL_DIRECTORY keeps every command, git's own included, in one repository, however it is spelled."""

from __future__ import annotations

import getpass
import os
from pathlib import Path

import pytest

from annexshell import forced, gitshell
from tests.shell import ABSENT, OTHER_UUID, PRESENT, UUID, Result, Shell, git, make_annex, make_ref, place

COMMANDS = {
    "configlist": ["--", "autoinit=1", "--"],
    "p2pstdio": [OTHER_UUID],
    "notifychanges": [],
    "inannex": [PRESENT],
    "sendkey": [PRESENT],
    "recvkey": [ABSENT],
    "dropkey": ["--force", PRESENT],
    "gcryptsetup": [":id:abcdef"],
}
# Ways to the other repository, or to nowhere, for somebody who may use "allowed" only. $H is the home directory.
TRICKS = [
    "other",
    "other/",
    "other/.git",
    "./other",
    "allowed/../other",
    "allowed/../other/",
    "/~/other",
    "~/other",
    "~//$H/other",
    "~/../home/other",
    "$H/other",
    "$H//other/.",
    "$H/allowed/../other",
    "//$H/other",
    "link",
    "link/",
    "link/.git",
    "deep/../other",
    "deep/..",
    "deep/../../home/other",
    "into/../allowed",
    "into/..",
    "into/../allowed/.git/../../other",
    "allowed/link",
    "allowed/.git",
    "allowed/sub",
    "allowed/../allowed/../other",
    "allowed/other.git",
    "allowe",
    "allowed.git",
    "allowed/.git/modules/../../../other",
    "~$USER/other",
    "~$USER/allowed/../other",
    "/~$USER/other",
    "x/~/other",
    "x/~/$H/other",
    "~nobody/../$H/other",
    "--uuid",
    "-c",
    "",
    ".",
    "..",
    "/",
    "~",
    "*",
    "a*",
    "{allowed,other}",
    "$(echo other)",
    "other\n",
    "allowed\nother",
    "other\\",
    "ALLOWED",
    "a" * 5000,
    "allowed/" + "../" * 2000 + "other",
    "allowed/" + "./" * 3000 + "../other",
    "\u202eallowed",
    os.fsdecode(b"\xff\xfe"),
]
# Ways to the allowed one.
FAIR = [
    "allowed",
    "allowed/",
    "./allowed",
    "~/allowed",
    "/~/allowed",
    "$H/allowed",
    "x/../allowed",
    "into/../allowed",
]


@pytest.fixture
def layout(shell: Shell) -> Path:
    """The repositories allowed and other, and symlinks that confuse who takes ``..`` for text, or does not."""
    home = shell.home
    for name, uuid in (("allowed", UUID), ("other", OTHER_UUID)):
        make_ref(make_annex(home / name, uuid), "refs/heads/git-annex")
    git(home / "other", "config", "remote.x.url", "secret")
    place(home / "other", PRESENT, b"abc")
    (home / "link").symlink_to("other")
    (home / "other" / "sub" / "below").mkdir(parents=True)
    # deep/.. is the other one, and into/../allowed is something in it.
    (home / "deep").symlink_to("other/sub")
    (home / "into").symlink_to("other/sub/below")
    make_annex(home / "other" / "sub" / "allowed", OTHER_UUID)
    (home / "allowed" / "link").symlink_to("../other")
    (home / "allowed" / "sub").mkdir()
    shell.monkeypatch.setenv("GIT_ANNEX_SHELL_DIRECTORY", "allowed")
    return home


def filled(directory: str, home: Path) -> str:
    return directory.replace("$H", str(home)).replace("$USER", getpass.getuser())


class Other:
    """The other repository, as it was before."""

    def __init__(self, home: Path) -> None:
        self._directory = home / "other"
        self._secrets = [OTHER_UUID.encode(), git(self._directory, "rev-parse", "git-annex").encode(), b"secret"]
        self._before = self._now()

    def _now(self) -> dict[Path, tuple[int, int]]:
        return {path: (path.lstat().st_mtime_ns, path.lstat().st_size) for path in self._directory.rglob("*")}

    def check_kept_out(self, result: Result) -> None:
        for secret in self._secrets:
            assert secret not in result.stdout
        assert "secret" not in result.stderr
        assert self._now() == self._before


@pytest.mark.parametrize("name", COMMANDS)
def test_no_way_leads_elsewhere(name: str, layout: Path, shell: Shell) -> None:
    other = Other(layout)
    failure = forced.BUILTINS[name.encode()].failure
    for trick in TRICKS:
        directory = filled(trick, layout)
        quoted = "'" + directory.replace("'", "'\"'\"'") + "'"
        for words in (
            [name, directory, *COMMANDS[name]],
            ["-c", f"git-annex-shell '{name}' {quoted} {' '.join(COMMANDS[name])}"],
        ):
            result = shell(*words)
            served = os.path.normpath(layout / directory) == str(layout / "allowed")
            if not served:
                assert result.status == failure, (trick, result.stderr)
                assert result.stdout == b""
                # One line, whatever is in the directory's name.
                assert len(result.stderr.splitlines()) == 1
                assert result.complaint.startswith(("Only allowed to access", "Invalid option", "bad parameters"))
            other.check_kept_out(result)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_fair_way_is_open(name: str, layout: Path, shell: Shell) -> None:
    other = Other(layout)
    for directory in FAIR:
        result = shell(name, filled(directory, layout), *COMMANDS[name])
        assert not result.complaint.startswith("Only allowed to access"), (directory, result.stderr)
        if name in ("configlist", "p2pstdio"):
            assert UUID.encode() in result.stdout
        elif name in ("inannex", "sendkey"):
            assert result.status == 1  # it is the other one that has this key
        other.check_kept_out(result)


SERVICES = ["git-upload-pack", "git-receive-pack", "git-upload-archive", "git upload-pack"]


@pytest.mark.parametrize("service", SERVICES)
def test_git_is_kept_in_there_too(service: str, layout: Path, shell: Shell) -> None:
    accepted = 0
    for trick in TRICKS + FAIR:
        directory = filled(trick, layout)
        quoted = os.fsdecode(gitshell.quote(os.fsencode(directory)))
        for words in (
            [f"{service} {quoted}"],
            ["-c", f"{service} {quoted}"],
            ["-c", f"{service} {quoted}", "--", "allowed"],
            ["-c", f"{service} {quoted} 'allowed'"],
            ["-c", f"{service} 'allowed' {quoted}"],
            [*service.split(), quoted],
            [*service.split(), directory],
        ):
            result = shell(*words)
            if result.git_shell is None:
                assert result.status == 1
                assert len(result.stderr.splitlines()) == 1
                continue
            accepted += 1
            (command,) = result.git_shell
            parsed = gitshell.parse_service(command)
            assert parsed is not None
            assert parsed[0].decode() == service
            path = parsed[1].decode().replace("~", str(layout), 1) if parsed[1][:1] == b"~" else parsed[1].decode()
            assert os.path.realpath(layout / path) == str(layout / "allowed"), words
    assert accepted >= 2 * len(FAIR)


@pytest.mark.parametrize(
    "restriction", ["allowed", "$H/allowed", "~/allowed", "allowed/", "/~/allowed", "x/../allowed"]
)
def test_however_the_restriction_is_spelled(restriction: str, layout: Path, shell: Shell) -> None:
    other = Other(layout)
    for directory in [*TRICKS, *FAIR]:
        result = shell("configlist", filled(directory, layout), GIT_ANNEX_SHELL_DIRECTORY=filled(restriction, layout))
        other.check_kept_out(result)
        assert result.stdout in (b"", f"annex.uuid={UUID}\ncore.gcrypt-id=\n".encode())


def test_a_name_with_nul_leads_nowhere(layout: Path, shell: Shell) -> None:
    """No system can hand it over; and if one did, it would not be the allowed one."""
    for directory in (b"allowed\0/../other", b"other\0", b"\0"):
        for name, words in COMMANDS.items():
            result = shell(name, directory, *words)
            assert result.status == forced.BUILTINS[name.encode()].failure
            assert result.stdout == b""
        result = shell("-c", b"git-upload-pack '" + directory + b"'")
        assert (result.status, result.git_shell) == (1, None)
