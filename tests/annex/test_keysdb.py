"""The keys database: shared with the real git-annex, and kept in line with git's index."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from annexshell.annex import indexdiff, keysdb
from annexshell.annex.gitrepo import GitRepository
from annexshell.annex.inodecache import InodeCache
from annexshell.annex.keysdb import KeysDatabase
from annexshell.annex.permissions import Permissions
from annexshell.errors import RepositoryError
from annexshell.key import Key
from tests.annex.unlocked import add_absent, add_as_it_is, make_repo

KEY = Key(b"SHA256E-s3--abc")
CACHES = [InodeCache(1, 3, 1_500_000_000), InodeCache(2, 3, -1)]


@pytest.fixture
def repo(tmp_path, git_annex_path):
    return make_repo(tmp_path, git_annex_path)


def opened(repo) -> KeysDatabase:
    ours = GitRepository(os.fsencode(repo.path))
    assert ours.config is not None
    return KeysDatabase(ours, Permissions(ours))


def reconcile(database: KeysDatabase) -> list[tuple[Key, bytes]]:
    """The unlocked files that were new in the index."""
    found: list[tuple[Key, bytes]] = []
    database.reconcile(lambda key, path: found.append((key, path)))
    return found


def last_index(repo) -> str:
    return repo.git("show-ref", "--hash", "refs/annex/last-index", check=False).out.strip()


def write_tree(repo) -> str:
    return repo.git("write-tree").out.strip()


def rows(repo, table: str) -> list[tuple]:
    with sqlite3.connect(repo.git_dir / "annex/keysdb/db") as connection:
        return sorted(row[1:] for row in connection.execute(f"SELECT * FROM {table}"))


def schema(repo) -> tuple:
    with sqlite3.connect(repo.git_dir / "annex/keysdb/db") as connection:
        names = ("journal_mode", "encoding", "page_size", "user_version")
        return (
            sorted(sql for (sql,) in connection.execute("SELECT sql FROM sqlite_master") if sql),
            [connection.execute(f"PRAGMA {name}").fetchone() for name in names],
        )


class TestCaches:
    def test_a_missing_database_is_an_empty_one_and_is_not_made(self, repo):
        database = opened(repo)
        assert database.inode_caches(KEY) == []
        assert database.associated_files(KEY) == []
        database.remove_inode_caches(KEY)
        assert not (repo.path / ".git/annex/keysdb").exists()
        assert not (repo.path / ".git/annex/keysdb.lck").exists()

    def test_added_and_removed(self, repo):
        database = opened(repo)
        database.add_inode_caches(KEY, CACHES)
        database.add_inode_caches(KEY, CACHES[:1])
        other = Key(b"SHA256E-s3--abd")
        database.add_inode_caches(other, CACHES[:1])
        assert sorted(map(str, database.inode_caches(KEY))) == ["1 3 1 5", "2 3 -0 000000001"]
        database.close()
        assert rows(repo, "content") == [
            (KEY.serialized, "1 3 1 5", "3", 1),
            (KEY.serialized, "2 3 -0 000000001", "3", -1),
            (other.serialized, "1 3 1 5", "3", 1),
        ]
        database.remove_inode_caches(KEY)
        assert database.inode_caches(KEY) == []
        assert database.inode_caches(other) == CACHES[:1]

    def test_any_bytes_are_keys(self, repo):
        database = opened(repo)
        keys = [Key(b"X--" + name) for name in (b"\xff\xfe", b"'\"", b"\n", b"", "ü".encode())]
        for number, key in enumerate(keys):
            database.add_inode_caches(key, [InodeCache(number, 0, 0)])
        for number, key in enumerate(keys):
            assert database.inode_caches(key) == [InodeCache(number, 0, 0)]

    def test_what_is_unparsable_is_skipped(self, repo):
        database = opened(repo)
        database.add_inode_caches(KEY, CACHES)
        with sqlite3.connect(repo.path / ".git/annex/keysdb/db") as connection:
            connection.execute("INSERT INTO content VALUES (99,?,'garbage','3',1)", (KEY.serialized,))
            connection.execute("INSERT INTO associated VALUES (99,?,'text, not bytes')", (KEY.serialized,))
        assert len(database.inode_caches(KEY)) == 2
        assert database.associated_files(KEY) == []

    def test_bare(self, tmp_path, git_annex_path):
        repo = make_repo(tmp_path, git_annex_path)
        bare = type(repo)(tmp_path / "bare.git", repo.env)
        repo.git("clone", "--quiet", "--bare", repo.path, bare.path)
        database = opened(bare)
        database.add_inode_caches(KEY, CACHES)
        database.remove_inode_caches(KEY)
        assert database.inode_caches(KEY) == []
        assert reconcile(database) == []
        assert not (bare.path / "annex").exists()


class TestFile:
    def test_is_made_like_git_annex_makes_it(self, repo, tmp_path, git_annex_path):
        theirs = make_repo(tmp_path, git_annex_path, "theirs")
        theirs.add("f", b"123", unlocked=True)
        opened(repo).add_inode_caches(KEY, CACHES)
        assert schema(repo) == schema(theirs)
        assert schema(repo)[1] == [("wal",), ("UTF-8",), (4096,), (0,)]
        assert not (repo.path / ".git/annex/keysdb.tmp").exists()

    @pytest.mark.parametrize(("shared", "modes"), [("group", (0o775, 0o664)), ("0640", (0o2750, 0o640))])
    def test_modes(self, repo, shared, modes):
        repo.git("config", "core.sharedRepository", shared)
        database = opened(repo)
        database.add_inode_caches(KEY, CACHES)
        annex = repo.path / ".git/annex"
        assert [stat.S_IMODE((annex / name).stat().st_mode) for name in ("keysdb", "keysdb/db")] == list(modes)
        assert stat.S_IMODE((annex / "keysdb.lck").stat().st_mode) == modes[1]
        assert stat.S_IMODE((annex / "keysdb/db-wal").stat().st_mode) == modes[1]

    def test_odd_characters_in_the_path(self, tmp_path, git_annex_path):
        repo = make_repo(tmp_path, git_annex_path, "a?mode=memory#%41 b")
        database = opened(repo)
        database.add_inode_caches(KEY, CACHES)
        assert (repo.path / ".git/annex/keysdb/db").exists()
        database.close()
        assert len(opened(repo).inode_caches(KEY)) == 2

    def test_dbdir(self, repo, tmp_path):
        repo.config(dbdir=str(tmp_path / "elsewhere"))
        database = opened(repo)
        assert reconcile(database) == []
        database.add_inode_caches(KEY, CACHES)
        assert (tmp_path / "elsewhere" / repo.uuid / "keysdb/db").exists()
        assert (tmp_path / "elsewhere" / repo.uuid / "keysdb.lck").exists()
        assert not (repo.path / ".git/annex/keysdb").exists()
        database.close()
        # git-annex finds it where we put it.
        repo.add("f", b"123", unlocked=True)
        assert not (repo.path / ".git/annex/keysdb").exists()

    def test_left_overs_of_an_interrupted_creation(self, repo):
        for name in ("keysdb", "keysdb.tmp"):
            (repo.path / ".git/annex" / name).mkdir()
            (repo.path / ".git/annex" / name / "db-wal").write_bytes(b"garbage")
        database = opened(repo)
        database.add_inode_caches(KEY, CACHES)
        assert len(database.inode_caches(KEY)) == 2

    def test_replaced_by_another_process(self, repo):
        database = opened(repo)
        database.add_inode_caches(KEY, CACHES)
        (repo.path / ".git/annex/keysdb").rename(repo.path / ".git/annex/old")
        assert database.inode_caches(KEY) == []
        opened(repo).add_inode_caches(KEY, CACHES[:1])
        assert database.inode_caches(KEY) == CACHES[:1]

    def test_not_a_database(self, repo):
        database = opened(repo)
        database.add_inode_caches(KEY, CACHES)
        database.close()
        (repo.path / ".git/annex/keysdb/db").write_bytes(b"garbage" * 1000)
        for action in (
            lambda: database.inode_caches(KEY),
            lambda: database.associated_files(KEY),
            lambda: database.add_inode_caches(KEY, CACHES),
            lambda: database.remove_inode_caches(KEY),
            lambda: reconcile(database),
        ):
            with pytest.raises(RepositoryError, match="file is not a database"):
                action()

    def test_a_full_disk(self, repo):
        database = opened(repo)
        database.add_inode_caches(KEY, CACHES)
        database.close()
        program = (
            "import resource, signal, sys\n"
            "from tests.annex import test_keysdb as t\n"
            "from tests.interop.harness import Repo\n"
            "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
            "database = t.opened(Repo(t.Path(sys.argv[1]), {}))\n"
            "try: database.add_inode_caches(t.KEY, [t.InodeCache(9, 9, 9)])\n"
            "except t.RepositoryError as reason: print('refused:', reason)\n"
        )
        done = python(program, repo.path)
        assert done.stdout.startswith("refused: cannot use "), done
        assert len(database.inode_caches(KEY)) == 2


def python(program: str, *arguments: object, **how) -> subprocess.CompletedProcess[str]:
    root = Path(keysdb.__file__).parents[2]
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)], cwd=root, capture_output=True, text=True, **how
    )


class TestOtherUser:
    """Somebody who may read the repository, but not write to it."""

    PROGRAM = (
        "import os, sys\n"
        "from tests.annex import test_keysdb as t\n"
        "from tests.interop.harness import Repo\n"
        "if os.getuid() == 0: os.setuid(65534)\n"
        "database = t.opened(Repo(t.Path(sys.argv[1]), {}))\n"
        "print(database.inode_caches(t.KEY), database.inode_caches(t.KEY))\n"
        "try: database.add_inode_caches(t.KEY, [t.InodeCache(9, 9, 9)])\n"
        "except t.RepositoryError as reason: print('refused:', reason)\n"
    )

    @pytest.fixture
    def shared_repo(self, git_annex_path):
        # Not below tmp_path, which nobody else may enter.
        with tempfile.TemporaryDirectory() as directory:
            Path(directory).chmod(0o755)
            repo = make_repo(Path(directory), git_annex_path)
            database = opened(repo)
            database.add_inode_caches(KEY, CACHES)
            database.close()
            yield repo
            (repo.path / ".git/annex/keysdb").chmod(0o755)

    @pytest.mark.parametrize("mode", [0o000, 0o555])
    def test_reads_an_empty_database_and_cannot_write(self, shared_repo, mode):
        directory = shared_repo.path / ".git/annex/keysdb"
        directory.chmod(mode)
        (shared_repo.path / ".git/annex/keysdb.lck").chmod(0o444)
        done = python(self.PROGRAM, shared_repo.path)
        assert done.stderr == ""
        read, refused = done.stdout.splitlines()
        assert read == "[] []"
        assert refused.startswith("refused: cannot ")


class TestReconciling:
    def test_a_new_database_gets_everything_that_is_in_the_index(self, repo):
        unlocked = add_absent(repo, "dir/unlocked", b"1", mode=0o755)
        locked = Key(repo.add("locked", b"2").encode())
        (repo.path / "plain").write_text("mentions /annex/objects/ only\n" * 3)
        add_as_it_is(repo, "plain")
        repo.commit()
        (repo.path / ".git/annex/keysdb").rename(repo.path / ".git/annex/old")
        database = opened(repo)
        # The ref that is still there must not keep the new database from being filled.
        assert last_index(repo)
        assert reconcile(database) == [(unlocked, b"dir/unlocked")]
        assert database.associated_files(unlocked) == [b"dir/unlocked"]
        assert database.associated_files(locked) == [b"locked"]
        assert len(rows(repo, "associated")) == 2
        assert last_index(repo) == write_tree(repo)

    def test_git_annex_goes_on_from_what_we_wrote_and_we_from_what_it_wrote(self, repo):
        first = add_absent(repo, "first", b"1")
        database = opened(repo)
        reconcile(database)
        second = Key(repo.add("second", b"2", unlocked=True).encode())
        repo.annex("info", "--fast", "second")
        assert {(first.serialized, b"first"), (second.serialized, b"second")} == set(rows(repo, "associated"))
        assert database.associated_files(second) == [b"second"]
        # It does not do again what we did: the ref is ours.
        third = add_absent(repo, "third", b"3")
        reconcile(database)
        before = last_index(repo)
        repo.annex("whereis", "--quiet", check=False)
        assert last_index(repo) == before == write_tree(repo)
        assert database.associated_files(third) == [b"third"]

    def test_changes_of_the_index(self, repo):
        one = add_absent(repo, "one", b"1")
        two = add_absent(repo, "two", b"2")
        add_absent(repo, "gone", b"2")
        database = opened(repo)
        reconcile(database)
        assert sorted(database.associated_files(two)) == [b"gone", b"two"]
        repo.git("rm", "--quiet", "--cached", "gone")
        repo.git("-c", "filter.annex.process=", "-c", "filter.annex.clean=cat", "mv", "two", "moved")
        (repo.path / "one").write_bytes((repo.path / "moved").read_bytes())
        add_as_it_is(repo, "one")
        assert reconcile(database) == [(two, b"moved"), (two, b"one")]
        assert database.associated_files(one) == []
        assert sorted(database.associated_files(two)) == [b"moved", b"one"]
        # Unlocked becomes locked: the same key, so the row has to stay.
        repo.git("update-index", "--cacheinfo", f"120000,{repo.git('rev-parse', ':one').out.strip()},one")
        assert reconcile(database) == []
        assert sorted(database.associated_files(two)) == [b"moved", b"one"]

    def test_nothing_is_run_while_the_index_stays_the_same(self, repo, monkeypatch):
        add_absent(repo, "f", b"1")
        database = opened(repo)
        reconcile(database)
        monkeypatch.setattr(indexdiff, "IndexDiff", None)
        assert reconcile(database) == []

    def test_no_commit_and_no_index(self, repo):
        database = opened(repo)
        assert not (repo.path / ".git/index").exists()
        assert reconcile(database) == []
        key = Key(b"SHA256E-s1--x")
        (repo.path / "f").write_bytes(b"/annex/objects/" + key.filename + b"\n")
        add_as_it_is(repo, "f")
        assert reconcile(database) == [(key, b"f")]

    def test_a_locked_index_is_neither_in_our_way_nor_do_we_lock_it(self, repo):
        key = add_absent(repo, "f", b"1")
        database = opened(repo)
        (repo.path / ".git/index.lock").touch()
        assert reconcile(database) == [(key, b"f")]
        assert database.associated_files(key) == [b"f"]
        (repo.path / ".git/index.lock").unlink()
        assert last_index(repo) == write_tree(repo)
        assert [name for name in os.listdir(repo.path / ".git") if "annexshell" in name] == []

    def test_a_file_system_without_hard_links(self, repo, monkeypatch):
        def refuse(*arguments):
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr(os, "link", refuse)
        key = add_absent(repo, "f", b"1")
        database = opened(repo)
        assert reconcile(database) == [(key, b"f")]
        monkeypatch.setattr(indexdiff, "IndexDiff", None)
        assert reconcile(database) == []
        assert [name for name in os.listdir(repo.path / ".git") if "annexshell" in name] == []

    def test_files_that_attributes_declare_binary(self, repo):
        (repo.path / ".gitattributes").write_text("* binary\n")
        repo.git("add", ".gitattributes")
        key = add_absent(repo, "f", b"1")
        assert reconcile(opened(repo)) == [(key, b"f")]

    def test_submodules_and_large_files_are_passed_over(self, repo, tmp_path):
        module = type(repo)(tmp_path / "module", repo.env)
        module.path.mkdir()
        module.git("init", "--quiet")
        (module.path / "x").write_text("/annex/objects/WORM--x\n")
        module.git("add", "x")
        module.commit()
        repo.git("-c", "protocol.file.allow=always", "submodule", "--quiet", "add", module.path, "module")
        (repo.path / "large").write_text("/annex/objects/WORM--x\n" + "/annex/\n" * 5000)
        add_as_it_is(repo, "large")
        repo.commit()
        database = opened(repo)
        assert reconcile(database) == []
        assert database.associated_files(Key(b"WORM--x")) == []

    def test_a_submodule(self, repo, tmp_path, git_annex_path):
        key = add_absent(repo, "f", b"1")
        above = make_repo(tmp_path, git_annex_path, "above")
        above.git("-c", "protocol.file.allow=always", "submodule", "--quiet", "add", repo.path, "inner")
        inner = type(repo)(above.path / "inner", repo.env)
        database = opened(inner)
        assert reconcile(database) == [(key, b"f")]

    def test_more_than_one_batch(self, repo, monkeypatch):
        monkeypatch.setattr(indexdiff, "_BATCH", 3)
        keys = [Key(b"WORM--%d" % number) for number in range(10)]
        for number, key in enumerate(keys):
            (repo.path / str(number)).write_bytes(b"/annex/objects/%s\n" % key.filename)
        add_as_it_is(repo, ".")
        database = opened(repo)
        assert len(reconcile(database)) == 10
        assert [database.associated_files(key) for key in keys] == [[b"%d" % number] for number in range(10)]

    def test_the_ref_is_set_only_when_the_rows_are_there(self, repo, monkeypatch):
        key = add_absent(repo, "f", b"1")
        database = opened(repo)
        before = last_index(repo)

        def interrupt(key, path):
            assert database.associated_files(key) == [path]
            assert last_index(repo) == ""
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            database.reconcile(interrupt)
        assert last_index(repo) == before == ""
        assert reconcile(opened(repo)) == [(key, b"f")]
        assert last_index(repo) == write_tree(repo)

    def test_git_failing(self, repo, monkeypatch):
        add_absent(repo, "f", b"1")
        database = opened(repo)
        database.add_inode_caches(KEY, CACHES)
        monkeypatch.setattr(indexdiff, "_DIFF_OPTIONS", (b"--no-such-option",))
        with pytest.raises(RepositoryError):
            reconcile(database)
        assert last_index(repo) == ""
        monkeypatch.setenv("PATH", "/nonexistent")
        with pytest.raises(RepositoryError):
            reconcile(database)


class TestBusy:
    def test_waits_for_somebody_elses_transaction(self, repo):
        database = opened(repo)
        database.add_inode_caches(KEY, CACHES)
        other = sqlite3.connect(repo.path / ".git/annex/keysdb/db", isolation_level=None, check_same_thread=False)
        other.execute("BEGIN IMMEDIATE")
        threading.Timer(1.5, lambda: other.execute("COMMIT")).start()
        start = time.monotonic()
        assert len(database.inode_caches(KEY)) == 2  # readers do not wait
        assert time.monotonic() - start < 1.4
        database.remove_inode_caches(KEY)
        assert time.monotonic() - start > 1.4
        assert database.inode_caches(KEY) == []
        other.close()

    def test_gives_up_in_the_end(self, repo, monkeypatch):
        monkeypatch.setattr(keysdb, "BUSY_SECONDS", 0.2)
        database = opened(repo)
        database.add_inode_caches(KEY, CACHES)
        other = sqlite3.connect(repo.path / ".git/annex/keysdb/db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(RepositoryError, match="database is locked"):
            database.remove_inode_caches(KEY)
        other.close()
        database.remove_inode_caches(KEY)

    def test_the_lock_of_a_process_that_opens_it(self, repo):
        add_absent(repo, "f", b"1")
        database = opened(repo)
        with database._lock():
            thread = threading.Thread(target=reconcile, args=(database,))
            thread.start()
            thread.join(0.3)
            assert thread.is_alive()
            assert not (repo.path / ".git/annex/keysdb").exists()
        thread.join(30)
        assert (repo.path / ".git/annex/keysdb/db").exists()

    def test_several_threads_and_the_real_program(self, repo):
        database = opened(repo)
        keys = [Key(b"WORM-s1--%d" % number) for number in range(60)]

        def work(some: list[Key]) -> None:
            for key in some:
                database.add_inode_caches(key, [InodeCache(1, 1, 1)])
                reconcile(database)
                assert database.inode_caches(key)

        threads = [threading.Thread(target=work, args=(keys[start::3],)) for start in range(3)]
        for thread in threads:
            thread.start()
        theirs = {repo.add(f"f{number}", b"%d" % number, unlocked=True).encode() for number in range(3)}
        for thread in threads:
            thread.join(60)
        repo.annex("info", "--fast", "f0")
        assert {row[0] for row in rows(repo, "content")} == {key.serialized for key in keys} | theirs
        assert {row[0] for row in rows(repo, "associated")} == theirs
