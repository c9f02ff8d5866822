from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from annexshell.annex.contentlock import ContentLocks
from annexshell.annex.gitrepo import GitRepository
from annexshell.annex.objects import Objects
from annexshell.annex.permissions import Permissions
from annexshell.key import Key
from tests.interop.harness import Repo
from tests.leftovers import left_open
from tests.rsyncing import RawClient
from tests.shell import ABSENT, PRESENT, UUID, Input, Shell, git, make_annex, make_ref, make_repository, place

OTHER = "SHA256E-s3--cb8379ac2098aa165029e3938a51da0bcecfc008fd6795f401178647f96c5b34"  # of b"def"
KEYS = {PRESENT: b"abc", OTHER: b"def"}


@pytest.fixture
def repo(shell: Shell) -> Path:
    repo = make_annex(shell.home / "repo")
    make_ref(repo, "refs/heads/git-annex")
    for key, content in KEYS.items():
        place(repo, key, content)
    return repo


def there(repo: Path) -> list[str]:
    """Which of KEYS have their content."""
    return [key for key in KEYS if list(repo.glob(f".git/annex/objects/*/*/{key}/{key}"))]


def line(key: str, error: str = "", *, success: bool = True, given: str | None = None) -> str:
    """What is printed of a key as JSON."""
    errors = f'"{error}"' if error else ""
    given = key if given is None else given
    return (
        f'{{"command":"dropkey","error-messages":[{errors}],"input":["{given}"],"key":"{key}",'
        f'"success":{json.dumps(success)}}}\n'
    )


class Locked:
    """A shared lock on the content of PRESENT, in a ``with``."""

    def __init__(self, repo: Path) -> None:
        opened = GitRepository(os.fsencode(repo))
        self._lock = ContentLocks(opened, Objects(opened), Permissions(opened)).lock_shared(
            Key(PRESENT.encode()), lambda: True
        )

    def __enter__(self) -> None:
        self._lock.__enter__()

    def __exit__(self, *error) -> None:
        self._lock.__exit__(*error)


def test_content_goes_and_the_log_says_so(repo: Path, shell: Shell) -> None:
    before = git(repo, "rev-parse", "git-annex")
    result = shell("dropkey", "repo", "--quiet", "--force", PRESENT, "--uuid", UUID)
    assert (result.status, result.stdout, result.stderr) == (0, b"", "")
    assert there(repo) == [OTHER]
    (log,) = (repo / ".git/annex/journal").iterdir()
    assert PRESENT in log.name
    assert log.read_text().split()[1:] == ["0", UUID]
    assert git(repo, "rev-parse", "git-annex") == before  # in the journal only


def test_absent_content_is_not_recorded(repo: Path, shell: Shell) -> None:
    result = shell("dropkey", "repo", "--force", ABSENT)
    assert (result.status, result.stdout, result.stderr) == (0, b"", "")
    assert not (repo / ".git/annex/journal").exists()


def test_it_has_to_be_forced(repo: Path, shell: Shell) -> None:
    for words in ([PRESENT], [PRESENT, "--json"], ["--batch"], ["nokey"], [PRESENT, "--", "--force"]):
        result = shell("dropkey", "repo", *words, stdin=PRESENT.encode())
        assert (result.status, result.stdout) == (1, b"")
        assert result.complaint.startswith("dropkey can cause data loss")
    assert there(repo) == list(KEYS)


def test_locked_content_stays_and_the_rest_goes(repo: Path, shell: Shell) -> None:
    with Locked(repo):
        result = shell("dropkey", "repo", "--force", PRESENT, OTHER)
    assert (result.status, result.stdout) == (1, b"")
    assert result.stderr == "annexshell: content is locked\ndropkey: 1 failed\n"
    assert there(repo) == [PRESENT]
    assert shell("dropkey", "repo", "--force", PRESENT).status == 0


def test_a_key_that_is_none_and_the_rest(repo: Path, shell: Shell) -> None:
    result = shell("dropkey", "repo", "--force", "nokey", PRESENT, "", OTHER)
    assert (result.status, result.stdout) == (1, b"")
    complaints = result.stderr.splitlines()
    assert [complaint.partition(":")[2][:8] for complaint in complaints[:2]] == [" bad key", " bad key"]
    assert complaints[2:] == ["dropkey: 2 failed"]
    assert there(repo) == []


# As JSON.


@pytest.mark.parametrize("flags", [["--json"], ["-j"], ["--json-error-messages"], ["--quiet", "--json"], ["-zj"]])
def test_json(flags: list[str], repo: Path, shell: Shell) -> None:
    result = shell("dropkey", "repo", "--force", *flags, PRESENT, ABSENT)
    assert (result.status, result.stderr) == (0, "")
    assert result.stdout.decode() == line(PRESENT) + line(ABSENT)
    assert there(repo) == [OTHER]


@pytest.mark.parametrize("flags", [["--json", "--quiet"], ["-jq"], ["--json-error-messages", "-q"], ["-qjq"]])
def test_the_last_form_of_output_counts(flags: list[str], repo: Path, shell: Shell) -> None:
    result = shell("dropkey", "repo", "--force", *flags, PRESENT)
    assert (result.status, result.stdout, result.stderr) == (0, b"", "")
    assert there(repo) == [OTHER]


def test_json_of_what_fails(repo: Path, shell: Shell) -> None:
    with Locked(repo):
        result = shell("dropkey", "repo", "--force", "--json", PRESENT, OTHER)
        assert result.status == 1
        assert result.stdout.decode() == line(PRESENT, success=False) + line(OTHER)
        assert result.stderr == "annexshell: content is locked\ndropkey: 1 failed\n"
        result = shell("dropkey", "repo", "--force", "--json-error-messages", PRESENT, OTHER)
        assert result.stdout.decode() == line(PRESENT, "annexshell: content is locked", success=False) + line(OTHER)
        assert result.stderr == "dropkey: 1 failed\n"


def test_json_has_no_line_for_what_is_no_key(repo: Path, shell: Shell) -> None:
    result = shell("dropkey", "repo", "--force", "--json", PRESENT, "nokey", OTHER)
    assert (result.status, result.stdout.decode()) == (1, line(PRESENT))
    assert result.complaint.startswith("bad key")
    assert there(repo) == [OTHER]


def test_json_of_odd_keys(repo: Path, shell: Shell) -> None:
    given = b'WORM-s01--a"\\\x01\n\xe2\x80\xa8\xff'
    result = shell("dropkey", "repo", "--force", "--json", given)
    (said,) = result.stdout.split(b"\n")[:-1]
    assert json.loads(said) == {
        "command": "dropkey",
        "error-messages": [],
        "input": ['WORM-s01--a"\\\x01\n\u2028\ufffd'],
        "key": 'WORM-s1--a"\\\x01\n\u2028\ufffd',
        "success": True,
    }


# In a batch.


@pytest.mark.parametrize(
    ("flags", "stdin"),
    [
        (["--batch"], b"%s\n%s\n"),
        (["--batch"], b"%s\n%s"),
        (["--batch", "-z"], b"%s\0%s\0"),
        (["--batch", "-z"], b"%s\0%s"),
    ],
)
def test_batch(flags: list[str], stdin: bytes, repo: Path, shell: Shell) -> None:
    stdin = stdin % tuple(key.encode() for key in KEYS)
    assert shell("dropkey", "repo", "--force", *flags, stdin=stdin).status == 0
    assert there(repo) == []


@pytest.mark.parametrize("wrong", [b"nokey\n", b"\n", b"x" * 200_000, b"\n\n\n"])
def test_a_batch_ends_at_what_is_no_key(wrong: bytes, repo: Path, shell: Shell) -> None:
    stdin = PRESENT.encode() + b"\n" + wrong + OTHER.encode() + b"\n"
    result = shell("dropkey", "repo", "--force", "--batch", "--json", stdin=stdin)
    assert (result.status, result.stdout.decode()) == (1, line(PRESENT))
    assert result.complaint.startswith("Batch input parse failure")
    assert there(repo) == [OTHER]


def test_a_batch_goes_on_after_what_fails(repo: Path, shell: Shell) -> None:
    stdin = b"".join(key.encode() + b"\n" for key in KEYS)
    with Locked(repo):
        result = shell("dropkey", "repo", "--force", "--batch", stdin=stdin)
    assert (result.status, result.stdout) == (1, b"")
    assert there(repo) == [PRESENT]


def test_an_empty_batch(repo: Path, shell: Shell) -> None:
    assert shell("dropkey", "repo", "--force", "--batch", "--json", stdin=b"").stdout == b""


def test_a_batch_and_keys(repo: Path, shell: Shell) -> None:
    result = shell("dropkey", "repo", "--force", "--batch", PRESENT, stdin=OTHER.encode())
    assert result.status == 1
    assert result.complaint == "Cannot combine batch option with file or key options"
    assert there(repo) == list(KEYS)


def test_each_line_of_a_batch_is_answered_at_once(repo: Path) -> None:
    client = RawClient("dropkey", str(repo), "--force", "--batch", "--json")
    assert client.process.stdout is not None
    for key in KEYS:
        client.say(key.encode() + b"\n")
        assert client.process.stdout.readline().decode() == line(key)
    client.end()
    assert client.process.returncode == 0


def test_a_signal_ends_it_between_two_keys(repo: Path) -> None:
    client = RawClient("dropkey", str(repo), "--force", "--batch", "--json")
    assert client.process.stdout is not None
    client.say(PRESENT.encode() + b"\n")
    assert client.process.stdout.readline()
    client.process.terminate()
    client.say(b"")
    assert client.process.wait(20) == -signal.SIGTERM
    client.end()
    assert there(repo) == [OTHER]


def test_only_a_batch_reads_stdin(repo: Path, shell: Shell) -> None:
    with Input(b"protocol"):
        assert shell("dropkey", "repo", "--force", PRESENT).status == 0
        assert os.read(0, 100) == b"protocol"


# What else may be in the way.


@pytest.mark.parametrize(("setting", "value"), [("annex.pidlock", "true"), ("annex.trashbin", "bin")])
def test_what_is_not_supported_removes_nothing(setting: str, value: str, repo: Path, shell: Shell) -> None:
    git(repo, "config", setting, value)
    result = shell("dropkey", "repo", "--force", PRESENT, OTHER)
    assert result.status == 1
    assert setting in result.stderr
    assert result.stderr.endswith("dropkey: 2 failed\n")
    assert there(repo) == list(KEYS)


def test_in_an_encrypted_repository(shell: Shell) -> None:
    repo = make_repository(shell.home / "crypt", bare=True, **{"core_gcrypt-id": ":id:abcdef"})
    key = "GPGHMACSHA1--abc"
    path = place(repo, key, b"x")
    uuid = "39d0c840-d914-55c6-9969-739920770697"
    assert shell("dropkey", "crypt", "--quiet", "--force", key, "--uuid", uuid).status == 0
    assert not path.exists()
    assert not (repo / "annex" / "journal").exists()
    assert git(repo, "for-each-ref") == ""


def test_nothing_stays_open(repo: Path, shell: Shell) -> None:
    before = left_open()
    shell("dropkey", "repo", "--force", PRESENT, "nokey", "--json")
    assert left_open() <= before


@pytest.mark.parametrize("key", ["SHA256E-s3--" + "x" * 300, "A--../../config", "A--.git", "WORM--" + "\u00e9" * 200])
def test_hostile_keys(key: str, repo: Path, shell: Shell) -> None:
    config = (repo / ".git/config").read_bytes()
    result = shell("dropkey", "repo", "--force", key)
    assert (result.status, result.stderr) == (0, "")
    assert there(repo) == list(KEYS)
    assert (repo / ".git/config").read_bytes() == config


def test_unlocked_files_become_pointers(tmp_path: Path, git_annex_path: Path, shell: Shell) -> None:
    from tests.annex.unlocked import make_repo

    repo: Repo = make_repo(tmp_path, git_annex_path, "unlocked")
    key = repo.add("file", b"content of a file\n")
    repo.annex("unlock", "file")
    repo.commit()
    assert (repo.path / "file").read_bytes() == b"content of a file\n"
    assert shell("dropkey", str(repo.path), "--force", key).status == 0
    assert (repo.path / "file").read_text() == f"/annex/objects/{key}\n"
    assert repo.git("status", "--porcelain").out == ""
    assert "fixing" not in repo.annex("fsck", "--fast", check=False).said
