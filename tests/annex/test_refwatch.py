"""Noticing that refs change, whoever changes them and however."""

from __future__ import annotations

import errno
import os
import select
import shutil
import subprocess
import threading
from collections.abc import Iterable
from pathlib import Path

import pytest

from annexshell.annex import refwatch
from annexshell.annex.gitrepo import GitRepository
from annexshell.annex.refwatch import RefWatch
from annexshell.errors import RepositoryError, TemporaryFailure
from tests.leftovers import left_open

A, B, C = (letter * 40 for letter in "abc")


@pytest.fixture
def repo(tmp_path: Path, clean_environment: Path) -> Path:
    """A bare repository without refs."""
    return make(tmp_path / "repo.git")


def make(path: Path, *options: str) -> Path:
    subprocess.run(["git", "init", "-q", *(options or ["--bare"]), path], check=True)
    return path


def git(repo: Path, *arguments: str) -> str:
    command = ["git", "-C", str(repo), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def commit(repo: Path, message: str = "x") -> str:
    """An object that a ref can point to."""
    tree = git(repo, "hash-object", "-w", "-t", "tree", "/dev/null")
    return git(repo, "commit-tree", tree, "-m", message)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def watch(path: Path) -> RefWatch:
    return refwatch.watch(GitRepository(os.fsencode(path)))


def happened(watch: RefWatch) -> set[str]:
    """The objects that were told of by now."""
    while select.select([watch.fd], [], [], 0)[0]:
        watch.read()
    changes = watch.take()
    assert not changes.unnamed
    assert not watch.changed
    return {object_id.decode() for object_id in changes.ids}


def test_what_is_there_at_first(repo: Path) -> None:
    write(repo / "refs/heads/main", A + "\n")
    write(repo / "refs/remotes/origin/deep/er/main", B + "\n")
    with watch(repo) as watching:
        assert watching.changed
        assert happened(watching) == {A, B}
        assert happened(watching) == set()


def test_nothing_at_first(repo: Path) -> None:
    before = left_open()
    with watch(repo) as watching:
        assert not watching.changed
    assert left_open() <= before


@pytest.mark.parametrize("file", ["heads/new", "heads/new/sub/dir", "tags/t", "annex/last-index", "here", "ä/\udcff"])
@pytest.mark.parametrize("how", ["written", "renamed", "linked"])
def test_a_ref_appears(repo: Path, file: str, how: str) -> None:
    with watch(repo) as watching:
        path = repo / "refs" / file
        write(repo / "elsewhere", A + "\n")
        path.parent.mkdir(parents=True, exist_ok=True)
        {"written": shutil.copy, "renamed": os.rename, "linked": os.link}[how](repo / "elsewhere", path)
        assert happened(watching) == {A}
        path.write_text(B + "\n")
        assert happened(watching) == {B}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (A, {A}),
        (f"{A}\n", {A}),
        (f"{A.upper()}\n", {A}),
        ("a" * 64 + "\n", {"a" * 64}),
        ("", set()),
        ("ref: refs/heads/main\n", set()),
        ("ref: refs/heads/" + "a" * 400, set()),
        (f"{A}{A}{A}\n", set()),
        (f"{A} {B}\n", set()),
        ("a" * 39 + "\n", set()),
        ("g" * 40 + "\n", set()),
        ("\0" * 40, set()),
    ],
)
def test_content(repo: Path, content: str, told: set[str]) -> None:
    with watch(repo) as watching:
        write(repo / "refs/heads/x", content)
        assert happened(watching) == told


def test_what_is_not_reported(repo: Path) -> None:
    one, two = commit(repo, "1"), commit(repo, "2")
    git(repo, "update-ref", "refs/heads/a", one)
    git(repo, "update-ref", "refs/heads/deep/er/b", two)
    with watch(repo) as watching:
        assert happened(watching) == {one, two}
        git(repo, "update-ref", "refs/heads/a", one)  # as it is
        git(repo, "symbolic-ref", "refs/heads/symbolic", "refs/heads/a")
        write(repo / "refs/heads/x.lock", C)
        os.chmod(repo / "refs/heads/a", 0o600)
        (repo / "refs/heads/a").read_text()
        git(repo, "update-ref", "-d", "refs/heads/a")
        git(repo, "pack-refs", "--all")
        assert not (repo / "refs/heads/deep").exists()
        assert happened(watching) == set()
        git(repo, "update-ref", "refs/heads/deep/er/b", one)
        assert happened(watching) == {one}
        os.symlink("deep/er/b", repo / "refs/heads/symlink")
        os.symlink("itself", repo / "refs/heads/itself")
        os.mkfifo(repo / "refs/heads/pipe")  # at which git would wait
        assert happened(watching) == set()


def test_refs_that_are_packed_before_we_come_to_read_them(repo: Path) -> None:
    old, new = commit(repo, "old"), commit(repo, "new")
    git(repo, "update-ref", "refs/heads/old", old)
    git(repo, "pack-refs", "--all")
    with watch(repo) as watching:
        assert happened(watching) == set()
        git(repo, "update-ref", "refs/heads/new", new)
        git(repo, "update-ref", "refs/heads/deleted", commit(repo, "deleted"))
        git(repo, "update-ref", "-d", "refs/heads/deleted")
        git(repo, "pack-refs", "--all", "--prune")
        assert not (repo / "refs/heads/new").exists()
        assert happened(watching) == {new}
        # With a directory that we never came to watch; and one that was there for a lock file only.
        deep = commit(repo, "deep")
        git(repo, "update-ref", "refs/heads/deep/er/ref", deep)
        git(repo, "pack-refs", "--all", "--prune")
        assert not (repo / "refs/heads/deep").exists()
        assert happened(watching) == {deep}
        (repo / "refs/heads/deep").mkdir()
        (repo / "refs/heads/deep").rmdir()
        assert happened(watching) == set()
        # A deleted ref, and no packed one at all.
        (repo / "packed-refs").unlink()
        write(repo / "refs/heads/x", A)
        (repo / "refs/heads/x").unlink()
        assert happened(watching) == set()


def test_an_object_of_several_refs_is_one_change(repo: Path) -> None:
    with watch(repo) as watching:
        write(repo / "refs/tags/t", A)
        write(repo / "refs/heads/a", A)
        write(repo / "refs/remotes/r/a", A)
        write(repo / "refs/remotes/r/b", B)
        watching.read()
        assert watching.take().ids == {A.encode(): True, B.encode(): False}


def test_directories_that_are_moved(repo: Path) -> None:
    with watch(repo) as watching:
        write(repo / "prepared/deep/er/x", A)
        os.rename(repo / "prepared", repo / "refs/heads/moved")
        assert happened(watching) == {A}
        os.rename(repo / "refs/heads/moved/deep", repo / "refs/heads/other")
        assert happened(watching) == {A}
        write(repo / "refs/heads/other/er/y", B)
        assert happened(watching) == {B}
        os.rename(repo / "refs/heads/other", repo / "away")
        write(repo / "away/er/z", C)
        assert happened(watching) == set()


def test_symlinked_directories(repo: Path, tmp_path: Path) -> None:
    os.rename(repo / "refs", tmp_path / "real")
    os.symlink(tmp_path / "real", repo / "refs")
    write(tmp_path / "elsewhere/x", A)
    os.symlink(tmp_path / "elsewhere", repo / "refs/heads/more")
    os.symlink("..", repo / "refs/heads/round")
    os.symlink(repo.name, tmp_path / "link")
    with watch(tmp_path / "link") as watching:
        assert happened(watching) == {A}
        write(tmp_path / "elsewhere/deep/y", B)
        assert happened(watching) == {B}
        os.rename(tmp_path / "real", tmp_path / "gone")
        with pytest.raises(RepositoryError, match="removed or moved away"):
            happened(watching)


def test_a_linked_worktree_has_the_refs_of_its_repository(tmp_path: Path, clean_environment: Path) -> None:
    main = make(tmp_path / "main", "-b", "main")
    git(main, "commit", "-q", "--allow-empty", "-m", "x")
    git(main, "worktree", "add", "-q", str(tmp_path / "linked"), "-b", "other")
    with watch(tmp_path / "linked") as linked, watch(main) as watching:
        assert happened(linked) == happened(watching) == {git(main, "rev-parse", "HEAD")}
        git(main, "commit", "-q", "--allow-empty", "-m", "y")
        assert happened(linked) == happened(watching) == {git(main, "rev-parse", "HEAD")}
        git(tmp_path / "linked", "commit", "-q", "--allow-empty", "-m", "z")
        assert happened(linked) == happened(watching) == {git(main, "rev-parse", "other")}


@pytest.mark.parametrize("what", ["", "refs", ".git", ".git/refs"])
@pytest.mark.parametrize("how", ["removed", "moved"])
def test_the_repository_goes_away(tmp_path: Path, clean_environment: Path, what: str, how: str) -> None:
    repo = make(tmp_path / "repo", *(["-b", "main"] if ".git" in what else []))
    before = left_open()
    with watch(repo) as watching:
        assert happened(watching) == set()
        if how == "removed":
            shutil.rmtree(repo / what)
        else:
            os.rename(repo / what, tmp_path / "elsewhere")
            write(tmp_path / "elsewhere/refs/heads/x", A)
        with pytest.raises(RepositoryError, match=f"{repo} has been removed or moved away"):
            happened(watching)
    assert left_open() <= before


def test_a_parent_of_the_repository_goes_away(tmp_path: Path, clean_environment: Path) -> None:
    """That makes no event; the next change in the repository does."""
    repo = make(tmp_path / "parent/repo")
    with watch(repo) as watching:
        os.rename(tmp_path / "parent", tmp_path / "renamed")
        write(tmp_path / "renamed/repo/refs/heads/x", A)
        with pytest.raises(RepositoryError, match=f"{repo} has been removed or moved away"):
            happened(watching)


def test_no_refs_at_all(repo: Path) -> None:
    opened = GitRepository(os.fsencode(repo))
    assert opened.config is not None
    shutil.rmtree(repo / "refs")
    before = left_open()
    with pytest.raises(RepositoryError, match="removed or moved away"):
        refwatch.watch(opened)
    assert left_open() <= before


def test_nothing_is_missed_while_directories_come_and_go(repo: Path) -> None:
    """Each of these is told of, by an event or because it is found in a directory."""
    names = [f"{i % 7}/{i % 5}/{i % 3}/{i}" for i in range(300)]
    wanted = {f"{i:040x}" for i in range(300)}

    def create(name: str, text: str) -> None:
        path = repo / "refs" / name
        while True:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                write(path.with_name(path.name + ".lock"), text)
                os.rename(path.with_name(path.name + ".lock"), path)
                return
            except FileNotFoundError:
                continue

    def pack(positions: range) -> None:
        """As git does: directories go when they are empty."""
        packed = "".join(f"{i:040x} refs/{names[i]}\n" for i in range(positions.stop))
        write(repo / "packed-refs.new", "# pack-refs with: peeled fully-peeled sorted \n" + packed)
        os.rename(repo / "packed-refs.new", repo / "packed-refs")
        for i in positions:
            path = repo / "refs" / names[i]
            path.unlink()
            try:
                os.removedirs(path.parent)
            except OSError:
                pass

    def change() -> None:
        for i, name in enumerate(names):
            create(name, f"{i:040x}\n")
            if i % 10 == 9:
                pack(range(i - 9, i + 1))

    write(repo / "refs/keep/this", A)  # so that refs/ itself is never empty
    thread = threading.Thread(target=change)
    told: set[str] = set()
    with watch(repo) as watching:
        thread.start()
        while thread.is_alive():
            told |= happened(watching)
        told |= happened(watching)
    assert told == wanted | {A}


def test_events_that_were_lost(repo: Path) -> None:
    write(repo / "refs/heads/before", A)
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    with watch(repo) as watching:
        assert happened(watching) == {A}
        files = [os.open(repo / "refs/heads" / name, os.O_WRONLY | os.O_CREAT) for name in "pq"]
        for fd in files:
            os.close(fd)
        for i in range(limit + 10):  # not the same twice, which would be one event
            os.close(os.open(repo / "refs/heads" / "pq"[i % 2], os.O_WRONLY))
        write(repo / "refs/new/dir/x", B)
        while select.select([watching.fd], [], [], 0)[0]:
            watching.read()
        changes = watching.take()
        assert set(changes.ids) == {A.encode(), B.encode()}
        assert changes.unnamed
        # And what could not be watched before is.
        write(repo / "refs/new/dir/y", C)
        assert happened(watching) == {C}


@pytest.mark.parametrize(
    ("function", "number", "sysctl"),
    [("__init__", errno.EMFILE, "max_user_instances"), ("add_watch", errno.ENOSPC, "max_user_watches")],
)
def test_limits_of_the_system(
    repo: Path, function: str, number: int, sysctl: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **more: object) -> None:
        raise OSError(number, os.strerror(number))

    before = left_open()
    monkeypatch.setattr(refwatch.INotify, function, fail)
    limit = Path(f"/proc/sys/fs/inotify/{sysctl}").read_text().strip()
    with pytest.raises(TemporaryFailure, match=rf"sysctl fs\.inotify\.{sysctl}, which is {limit}\."):
        watch(repo)
    assert left_open() <= before


def test_a_limit_that_is_reached_later(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with watch(repo) as watching:
        happened(watching)
        write(repo / "refs/heads/new/x", A)
        monkeypatch.setattr(refwatch.INotify, "add_watch", forbid([b"new"], errno.ENOSPC))
        with pytest.raises(TemporaryFailure, match="max_user_watches"):
            happened(watching)


def forbid(names: Iterable[bytes], number: int) -> object:
    """An add_watch() that does not let anybody watch directories with such names."""
    real = refwatch.INotify.add_watch

    def add_watch(inotify: refwatch.INotify, path: bytes, mask: int) -> int:
        if os.path.basename(path) in names:
            raise OSError(number, os.strerror(number), path)
        return int(real(inotify, path, mask))

    return add_watch


def test_directories_that_we_may_not_read(
    repo: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    write(repo / "refs/secret/x", A)
    write(repo / "refs/heads/x", B)
    monkeypatch.setattr(refwatch.INotify, "add_watch", forbid([b"secret", b"repo.git"], errno.EACCES))
    with watch(repo) as watching:
        assert happened(watching) == {B}
        assert capfd.readouterr().err == f"  cannot watch {repo}/refs/secret: Permission denied\n"
        write(repo / "refs/heads/x", C)
        assert happened(watching) == {C}
    monkeypatch.undo()
    monkeypatch.setattr(refwatch.INotify, "add_watch", forbid([b"refs"], errno.EACCES))
    with pytest.raises(RepositoryError, match=f"cannot watch {repo}/refs: Permission denied"):
        watch(repo)


class Stored(GitRepository):
    """A repository of a newer git."""

    storage = "reftable"

    @property
    def config(self):
        values = super().config
        values._values[b"extensions.refstorage"] = [self.storage.encode()]
        return values


@pytest.mark.parametrize("storage", ["reftable", "refTable"])
def test_tables_of_refs(repo: Path, storage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Stored, "storage", storage)
    tables = repo / "reftable"

    def replace() -> None:
        write(tables / "0x000000000002-0x000000000002-12345678.ref", "REFT")
        write(tables / "tables.list.lock", "0x000000000001-0x000000000002-12345678.ref\n")
        os.rename(tables / "tables.list.lock", tables / "tables.list")

    write(tables / "tables.list", "0x000000000001-0x000000000001-12345678.ref\n")
    with refwatch.watch(Stored(os.fsencode(repo))) as watching:
        assert watching.take().unnamed
        assert not watching.changed
        write(tables / "tables.list.lock", "")
        watching.read()
        assert not watching.changed
        replace()
        watching.read()
        changes = watching.take()
        assert changes.unnamed
        assert not changes.ids
        assert not watching.changed
        shutil.rmtree(tables)
        with pytest.raises(RepositoryError, match="removed or moved away"):
            watching.read()


def test_refs_that_are_kept_in_another_way(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Stored, "storage", "files")
    write(repo / "refs/heads/x", A)
    with refwatch.watch(Stored(os.fsencode(repo))) as watching:
        assert happened(watching) == {A}
    for storage in ("cloud", "reftable:///elsewhere"):
        monkeypatch.setattr(Stored, "storage", storage)
        with pytest.raises(RepositoryError, match=f"cannot watch: {storage}"):
            refwatch.watch(Stored(os.fsencode(repo)))
