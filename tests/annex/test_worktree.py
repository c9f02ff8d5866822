"""Unlocked files filled and emptied by us, and looked at by the real git-annex."""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
from pathlib import Path

import pytest

from annexshell.annex.inodecache import InodeCache
from annexshell.annex.pointers import format_pointer
from annexshell.key import Key
from tests.annex.unlocked import Opened, add_absent, add_as_it_is, make_repo, nothing_to_fix

CONTENT = b"the content\n"


@pytest.fixture
def repo(tmp_path, git_annex_path):
    return make_repo(tmp_path, git_annex_path)


def cache_of(path: Path) -> str:
    return str(InodeCache.of(path.lstat()))


class TestPopulate:
    @pytest.mark.parametrize("mode", [0o644, 0o755])
    def test_a_pointer_file_gets_the_content(self, repo, mode):
        key = add_absent(repo, "dir/f", CONTENT, mode=mode)
        file = repo.path / "dir/f"
        ours = Opened(repo)
        obj = ours.store(key, CONTENT)
        assert file.read_bytes() == CONTENT
        assert stat.S_IMODE(file.stat().st_mode) == mode
        assert file.stat().st_mtime_ns == obj.stat().st_mtime_ns
        assert file.stat().st_ino != obj.stat().st_ino
        assert not obj.stat().st_mode & 0o222
        assert ours.rows(key) == ({b"dir/f"}, {cache_of(file), cache_of(obj)})
        assert (repo.path / ".git/annex/restage.log").read_text() == f"{cache_of(file)}:dir/f\n"
        assert list((repo.path / ".git/annex/othertmp").iterdir()) == []
        ours.worktree.close()
        repo.annex("restage")
        assert not (repo.path / ".git/annex/restage.log").exists()
        nothing_to_fix(repo)

    def test_without_a_database_one_is_made_from_the_index(self, repo, tmp_path, git_annex_path):
        key = add_absent(repo, "f", CONTENT)
        clone = make_repo(tmp_path, git_annex_path, "clone")
        no_annex = ("-c", "filter.annex.smudge=", "-c", "filter.annex.process=", "-c", "core.hooksPath=/dev/null")
        clone.git(*no_annex, "pull", "--quiet", repo.path, "main")
        assert not (clone.path / ".git/annex/keysdb/db").exists()
        ours = Opened(clone)
        ours.store(key, CONTENT)
        assert (clone.path / "f").read_bytes() == CONTENT
        ours.worktree.close()
        nothing_to_fix(clone)

    def test_a_file_unlocked_since_the_database_was_made(self, repo):
        key = add_absent(repo, "f", CONTENT)
        ours = Opened(repo)
        ours.worktree.populate(Key(b"WORM--other"), b"/nonexistent")
        # A copy of the pointer file, added behind git-annex's back.
        (repo.path / "copy").write_bytes((repo.path / "f").read_bytes())
        add_as_it_is(repo, "copy")
        ours.store(key, CONTENT)
        for name in ("f", "copy"):
            assert (repo.path / name).read_bytes() == CONTENT
        assert ours.rows(key)[0] == {b"f", b"copy"}

    @pytest.mark.parametrize("name", ["new\nline", b"\xff\xfe", "tab\t'\"", " ", "-x", "ü"])
    def test_weird_names(self, repo, name):
        key = add_absent(repo, name, CONTENT)
        ours = Opened(repo)
        ours.store(key, CONTENT)
        file = Path(os.fsdecode(os.path.join(os.fsencode(repo.path), os.fsencode(name))))
        assert file.read_bytes() == CONTENT
        ours.worktree.close()
        nothing_to_fix(repo)
        ours.drop(key)
        ours.worktree.close()
        assert file.read_bytes() == format_pointer(key)
        assert repo.git("status", "--porcelain").out == ""

    def test_locked_files_only_have_the_object_recorded(self, repo):
        key = Key(repo.add("f", CONTENT).encode())
        repo.commit()
        repo.annex("drop", "--force", "--quiet", "f")
        target = os.readlink(repo.path / "f")
        ours = Opened(repo)
        obj = ours.store(key, CONTENT)
        assert os.readlink(repo.path / "f") == target
        assert ours.rows(key) == ({b"f"}, {cache_of(obj)})
        nothing_to_fix(repo)

    def test_what_is_no_pointer_to_the_key_is_left_alone(self, repo, tmp_path):
        key = add_absent(repo, "f", CONTENT)
        pointer = format_pointer(key)
        outside = tmp_path / "outside"
        outside.mkdir()
        (outside / "f").write_bytes(pointer)
        (repo.path / "sub").symlink_to(outside)
        (repo.path / "other").write_bytes(b"/annex/objects/WORM--x\n")
        (repo.path / "link").symlink_to("f")
        (repo.path / "directory").mkdir()
        os.mkfifo(repo.path / "fifo")
        (repo.path / ".git/pointer").write_bytes(pointer)
        ours = Opened(repo)
        ours.worktree.populate(Key(b"WORM--other"), b"/nonexistent")
        hostile = [
            b"../outside/f",
            os.fsencode(outside / "f"),
            b"sub/f",
            b"x/../f",
            b".git/pointer",
            b"other",
            b"link",
            b"directory",
            b"fifo",
            b"missing",
            b"missing/f",
            b"f/f",
            b"",
            b"/",
            b"nul\0",
            b"x" * 300,
        ]
        rows = [(key.serialized, file) for file in hostile]
        statement = 'INSERT INTO "associated" ("key","file") VALUES (?,?)'
        ours.database._transaction(ours.database._connection, [(statement, rows)])

        def written(path: Path) -> tuple[int, ...]:
            found = path.lstat()  # looking at it is no harm
            return found.st_ino, found.st_mode, found.st_size, found.st_mtime_ns, found.st_ctime_ns

        before = {path: written(path) for path in repo.path.rglob("*") if ".git" not in path.parts}
        ours.store(key, CONTENT)
        assert (repo.path / "f").read_bytes() == CONTENT
        assert (outside / "f").read_bytes() == pointer
        assert (repo.path / ".git/pointer").read_bytes() == pointer
        assert {p for p in before if written(p) != before[p]} <= {repo.path / "f", repo.path / "link"}
        ours.drop(key)
        assert (repo.path / "f").read_bytes() == pointer
        assert (outside / "f").read_bytes() == pointer
        assert set(os.listdir(outside)) == {"f"}

    def test_thin_links_the_first_file_and_copies_for_the_others(self, repo):
        key = add_absent(repo, "a", CONTENT, mode=0o755)
        (repo.path / "b").write_bytes(format_pointer(key))
        repo.git("add", "b")
        repo.commit()
        repo.config(thin="true")
        ours = Opened(repo)
        obj = ours.store(key, CONTENT)
        files = [repo.path / "a", repo.path / "b"]
        assert [file.read_bytes() for file in files] == [CONTENT, CONTENT]
        assert [file.stat().st_ino == obj.stat().st_ino for file in files].count(True) == 1
        assert all(file.stat().st_mode & 0o200 for file in files)
        assert ours.worktree.is_unmodified(key, os.fsencode(obj))
        assert ours.verified == []
        ours.worktree.close()
        nothing_to_fix(repo)
        ours.drop(key)
        assert [file.read_bytes() for file in files] == [format_pointer(key)] * 2

    def test_not_enough_space(self, repo, capfd):
        key = add_absent(repo, "f", CONTENT)
        ours = Opened(repo, has_space=lambda key: False)
        ours.store(key, CONTENT)
        assert (repo.path / "f").read_bytes() == format_pointer(key)
        assert "not enough free space to fill f" in capfd.readouterr().err

    def test_a_full_disk(self, repo, capfd, monkeypatch):
        key = add_absent(repo, "f", CONTENT)

        def full(source, target):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr("annexshell.annex.workfile.copy_content", full)
        ours = Opened(repo)
        ours.store(key, CONTENT)
        assert (repo.path / "f").read_bytes() == format_pointer(key)
        assert list((repo.path / ".git/annex/othertmp").iterdir()) == []
        assert "cannot fill f: No space left on device" in capfd.readouterr().err

    def test_what_is_written_meanwhile_is_kept(self, repo, monkeypatch):
        key = add_absent(repo, "f", CONTENT)
        ours = Opened(repo)

        def slow(key):
            (repo.path / "f").write_bytes(b"work")
            return True

        ours.worktree._has_space = slow
        ours.store(key, CONTENT)
        assert (repo.path / "f").read_bytes() == b"work"

    def test_hooks(self, repo, tmp_path):
        key = add_absent(repo, "f", CONTENT)
        ran = tmp_path / "ran"
        repo.config(
            thawcontent_command=f"echo thaw %path >> {ran}", secure_erase_command=f"cat %file >> {ran}; rm %file"
        )
        ours = Opened(repo)
        ours.store(key, CONTENT)
        assert re.search(r"^thaw .*/annex/othertmp/.*$", ran.read_text(), re.MULTILINE)
        ran.unlink()
        ours.drop(key)
        assert ran.read_bytes() == CONTENT
        assert (repo.path / "f").read_bytes() == format_pointer(key)

    def test_a_work_tree_elsewhere(self, repo, tmp_path):
        key = add_absent(repo, "f", CONTENT)
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        (repo.path / "f").rename(elsewhere / "f")
        repo.git("config", "core.worktree", elsewhere)
        ours = Opened(repo)
        ours.store(key, CONTENT)
        assert (elsewhere / "f").read_bytes() == CONTENT

    def test_a_work_tree_on_another_file_system(self, repo, monkeypatch):
        key = add_absent(repo, "dir/f", CONTENT)
        ours = Opened(repo)
        rename = os.rename

        def refuse(source, target, **how):
            if b"othertmp" in os.fsencode(source) and "dst_dir_fd" in how:
                raise OSError(errno.EXDEV, "Invalid cross-device link")
            rename(source, target, **how)

        monkeypatch.setattr(os, "rename", refuse)
        ours.store(key, CONTENT)
        assert (repo.path / "dir/f").read_bytes() == CONTENT
        assert os.listdir(repo.path / "dir") == ["f"]
        ours.drop(key)
        assert (repo.path / "dir/f").read_bytes() == format_pointer(key)

    def test_a_linked_worktree_has_its_own_files(self, repo, tmp_path):
        key = add_absent(repo, "f", CONTENT)
        linked = tmp_path / "linked"
        repo.git("worktree", "add", "--quiet", linked, "-b", "other")
        there = type(repo)(linked, repo.env)
        there.annex("info", "--fast")
        ours = Opened(there)
        ours.store(key, CONTENT)
        assert (linked / "f").read_bytes() == CONTENT
        assert (repo.path / "f").read_bytes() == format_pointer(key)
        assert not (linked / ".git/annex").is_symlink() or (repo.path / ".git/annex/keysdb/db").exists()

    def test_bare(self, tmp_path, git_annex_path, monkeypatch):
        repo = make_repo(tmp_path, git_annex_path)
        bare = type(repo)(tmp_path / "bare", repo.env)
        bare.path.mkdir()
        bare.git("init", "--quiet", "--bare")
        bare.annex("init", "--quiet")
        ours = Opened(bare)
        key = Key(b"SHA256E-s1--x")
        ours.store(key, b"1")
        status = ours.path(key).stat()
        assert ours.worktree.may_send(key, os.fsencode(ours.path(key)), status)
        ours.drop(key)
        assert not (bare.path / "annex/keysdb").exists()
        assert not (bare.path / "annex/keysdb.lck").exists()


class TestReset:
    @pytest.fixture
    def filled(self, repo):
        key = Key(repo.add("f", CONTENT, unlocked=True).encode())
        repo.commit()
        return Opened(repo), key, repo.path / "f"

    def test_an_unmodified_file_becomes_a_pointer(self, repo, filled):
        ours, key, file = filled
        file.chmod(0o755)
        before = file.stat()
        ours.drop(key)
        after = file.stat()
        assert file.read_bytes() == format_pointer(key)
        assert (after.st_mode, after.st_mtime_ns) == (before.st_mode, before.st_mtime_ns)
        assert (repo.path / ".git/annex/restage.log").read_text().endswith(f"{cache_of(file)}:f\n")
        assert ours.rows(key) == ({b"f"}, set())
        assert ours.verified == []
        file.chmod(0o644)
        ours.worktree.close()
        repo.annex("fsck", check=False)
        assert repo.git("status", "--porcelain").out == ""

    def test_a_touched_file_is_hashed(self, filled):
        ours, key, file = filled
        os.utime(file, ns=(1, 1))
        ours.drop(key)
        assert file.read_bytes() == format_pointer(key)
        assert file.stat().st_mtime_ns == 1
        assert ours.verified == [os.fsencode(file)]

    @pytest.mark.parametrize("content", [b"THE CONTENT\n", b"longer than the content\n", b""])
    def test_a_modified_file_is_kept_and_made_writable(self, filled, content):
        ours, key, file = filled
        file.write_bytes(content)
        file.chmod(0o444)
        ours.drop(key)
        assert file.read_bytes() == content
        assert stat.S_IMODE(file.stat().st_mode) == 0o644
        assert ours.rows(key) == ({b"f"}, set())

    def test_a_modified_file_that_cannot_be_verified_is_kept(self, repo):
        key = Key(repo.add("w", b"abcd", unlocked=True, backend="WORM").encode())
        repo.commit()
        (repo.path / "w").write_bytes(b"WXYZ")
        ours = Opened(repo)
        ours.drop(key)
        assert (repo.path / "w").read_bytes() == b"WXYZ"

    def test_an_unmodified_file_that_cannot_be_verified(self, repo):
        key = Key(repo.add("w", b"abcd", unlocked=True, backend="WORM").encode())
        repo.commit()
        ours = Opened(repo)
        ours.drop(key)
        assert (repo.path / "w").read_bytes() == format_pointer(key)

    def test_a_file_that_was_unannexed_is_the_users(self, repo, filled):
        ours, key, file = filled
        ours.worktree.populate(Key(b"WORM--other"), b"/nonexistent")
        repo.git("-c", "annex.largefiles=nothing", "rm", "--cached", "--quiet", "f")
        ours.drop(key)
        assert file.read_bytes() == CONTENT

    def test_without_git_nothing_is_touched(self, filled, monkeypatch, capfd):
        ours, key, file = filled
        monkeypatch.setenv("PATH", "/nonexistent")
        ours.drop(key)
        assert file.read_bytes() == CONTENT
        assert "unlocked files keep their content" in capfd.readouterr().err

    def test_a_vanished_file(self, filled, capfd):
        ours, key, file = filled
        file.unlink()
        ours.drop(key)
        assert not file.exists()
        assert capfd.readouterr().err == ""

    def test_written_while_it_is_hashed(self, filled):
        ours, key, file = filled

        def verify(key, path):
            file.write_bytes(b"work")
            return True

        ours.worktree._verify = verify
        os.utime(file, ns=(1, 1))
        ours.drop(key)
        assert file.read_bytes() == b"work"


class TestUnmerged:
    def test_arrival_in_the_middle_of_a_merge(self, repo):
        key = add_absent(repo, "f", CONTENT)
        repo.git("checkout", "--quiet", "-b", "one")
        repo.add("x", b"1\n", unlocked=True)
        repo.commit()
        repo.git("checkout", "--quiet", "main")
        repo.add("x", b"2\n", unlocked=True)
        repo.commit()
        assert not repo.git("merge", "one", check=False)
        assert repo.git("ls-files", "--unmerged").out
        last = repo.git("show-ref", "--hash", "refs/annex/last-index", check=False).out
        ours = Opened(repo)
        ours.store(key, CONTENT)
        assert (repo.path / "f").read_bytes() == CONTENT
        assert repo.git("show-ref", "--hash", "refs/annex/last-index", check=False).out == last
        ours.drop(key)
        assert (repo.path / "f").read_bytes() == format_pointer(key)


class TestSending:
    @pytest.fixture
    def stored(self, repo):
        key = Key(repo.add("f", CONTENT, unlocked=True).encode())
        repo.commit()
        ours = Opened(repo)
        obj = ours.path(key)
        obj.chmod(0o644)
        return ours, key, obj

    def may_send(self, stored) -> bool:
        ours, key, obj = stored
        return ours.worktree.may_send(key, os.fsencode(obj), obj.stat())

    def test_as_recorded(self, stored):
        assert self.may_send(stored)
        assert stored[0].verified == []

    def test_touched_is_hashed_once(self, stored):
        ours, key, obj = stored
        os.utime(obj, ns=(1, 1))
        assert self.may_send(stored)
        assert self.may_send(stored)
        assert len(ours.verified) == 1
        assert cache_of(obj) in ours.rows(key)[1]

    @pytest.mark.parametrize("content", [b"THE CONTENT\n", b"longer than the content\n"])
    def test_modified(self, stored, content):
        stored[2].write_bytes(content)
        assert not self.may_send(stored)

    def test_without_a_record_it_is_taken_as_it_is(self, stored):
        ours, key, obj = stored
        ours.database.remove_inode_caches(key)
        obj.write_bytes(b"whatever")
        assert self.may_send(stored)

    def test_replaced_between_opening_and_asking(self, stored):
        ours, key, obj = stored
        before = obj.stat()
        obj.parent.chmod(0o755)
        (obj.parent / "new").write_bytes(CONTENT)
        (obj.parent / "new").rename(obj)
        assert not ours.worktree.may_send(key, os.fsencode(obj), before)

    def test_a_copied_repository(self, stored, repo, tmp_path):
        key = stored[1]
        copy = tmp_path / "copy"
        shutil.copytree(repo.path, copy, symlinks=True)
        there = Opened(type(repo)(copy, repo.env))
        assert there.worktree.may_send(key, os.fsencode(there.path(key)), there.path(key).stat())
        assert there.verified == []

    def test_an_unusable_database_means_hashing(self, stored, capfd):
        ours, _key, obj = stored
        Path(os.fsdecode(ours.database.path)).write_bytes(b"not a database at all" * 100)
        assert self.may_send(stored)
        assert ours.verified == [os.fsencode(obj)]
        obj.write_bytes(b"THE CONTENT\n")
        assert not self.may_send(stored)
        assert "file is not a database" in capfd.readouterr().err


class TestThinPresence:
    @pytest.fixture
    def thin(self, repo):
        repo.config(thin="true")
        key = Key(repo.add("f", CONTENT, unlocked=True).encode())
        repo.commit()
        ours = Opened(repo)
        assert ours.path(key).stat().st_nlink == 2
        return ours, key, repo.path / "f"

    def test_modified_through_the_work_tree_is_absent(self, thin):
        ours, key, file = thin
        obj = os.fsencode(ours.path(key))
        assert ours.worktree.is_unmodified(key, obj)
        assert ours.verified == []
        file.write_bytes(b"THE CONTENT\n")
        os.utime(file, ns=(1, 1))
        assert not ours.worktree.is_unmodified(key, obj)
        assert ours.verified == [obj]

    def test_reset_leaves_a_modified_file(self, thin):
        ours, key, file = thin
        file.write_bytes(b"work")
        ours.drop(key)
        assert file.read_bytes() == b"work"

    def test_missing(self, thin):
        ours, key, _file = thin
        assert not ours.worktree.is_unmodified(key, b"/nonexistent")


class TestAdjustedBranch:
    @pytest.mark.parametrize("how", ["--hide-missing", "--unlock-present", "--unlock"])
    def test_is_noted(self, repo, how):
        key = Key(repo.add("f", CONTENT).encode())
        repo.commit()
        repo.annex("drop", "--force", "--quiet", "f")
        repo.annex("adjust", how)
        noted = repo.path / ".git/annex/adjust.log"
        before = noted.read_text() if noted.exists() else None
        ours = Opened(repo)
        ours.store(key, CONTENT)
        if how == "--unlock":
            assert before == (noted.read_text() if noted.exists() else None)
            return
        assert re.fullmatch(r"\d+(\.\d+)?s 1\n", noted.read_text())
        assert noted.read_text() != before
        ours.worktree.close()
        # git-annex acts on it.
        repo.annex("sync", "--no-content")
        assert (repo.path / "f").read_bytes() == CONTENT
