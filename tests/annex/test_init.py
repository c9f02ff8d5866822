"""Initialising a repository."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from annexshell.annex import init
from annexshell.annex.gitconfig import ConfigLock
from annexshell.annex.gitrepo import GitRepository
from annexshell.annex.inodecache import InodeCache
from annexshell.annex.logs import compatible, uuidmap
from annexshell.errors import RepositoryError
from tests.annex.branches import HERE, LOG, THERE, Annex, line
from tests.leftovers import descriptors, descriptors_before

UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


@pytest.fixture
def fresh(annex):
    """A bare repository that git-annex has not seen."""
    annex.git("config", "--remove-section", "annex")
    return annex


def initialise(annex: Annex | Path) -> GitRepository:
    repo = GitRepository(os.fsencode(annex if isinstance(annex, Path) else annex.path))
    assert repo.config
    init.initialise(repo)
    return repo


def settings(path: Path) -> dict[str, str]:
    listing = subprocess.run(["git", "-C", path, "config", "-l", "-z"], check=True, capture_output=True, text=True)
    return dict(entry.split("\n", 1) for entry in listing.stdout.split("\0")[:-1])


def make_clone(source: Path, target: Path, *options: str) -> Path:
    subprocess.run(["git", "clone", "-q", *options, source, target], check=True, stderr=subprocess.DEVNULL)
    return target


def test_a_bare_repository(fresh, monkeypatch):
    monkeypatch.setenv("USER", "someone")
    before = descriptors_before()
    repo = initialise(fresh)
    assert UUID.fullmatch(repo.uuid.decode())
    assert repo.version == 10
    config = settings(fresh.path)
    assert (config["annex.uuid"], config["annex.version"]) == (repo.uuid.decode(), "10")
    assert fresh.tree() == {}
    assert list(fresh.journal()) == ["uuid.log"]
    description = uuidmap.values(fresh.journal()["uuid.log"])[repo.uuid].decode()
    assert description == f"someone@{os.uname().nodename}:{fresh.path}"
    sentinal = InodeCache.of_file(os.fsencode(fresh.directory / "sentinal"))
    assert (fresh.directory / "sentinal.cache").read_text() == str(sentinal)
    assert not [hook for hook in os.listdir(fresh.path / "hooks") if not hook.endswith(".sample")]
    assert descriptors() == before


def test_doing_it_again_changes_nothing(fresh):
    initialise(fresh)
    before = (fresh.path / "config").read_bytes(), fresh.journal(), fresh.tip()
    initialise(fresh)
    assert ((fresh.path / "config").read_bytes(), fresh.journal(), fresh.tip()) == before


@pytest.mark.parametrize(("setting", "value"), [("annex.uuid", HERE.decode()), ("annex.version", "8")])
def test_half_of_it_was_there(fresh, setting, value):
    fresh.config(**{setting: value})
    repo = initialise(fresh)
    assert settings(fresh.path)[setting] == value
    assert repo.uuid and repo.version


def test_below_the_home_directory(clean_environment, monkeypatch):
    monkeypatch.setenv("USER", "someone")
    repo = initialise(Annex(clean_environment / "x y"))
    assert init.default_description(repo).endswith(b":~/x y")


def test_a_repository_with_a_work_tree(tmp_path, clean_environment, capfd):
    work = tmp_path / "work"
    subprocess.run(["git", "init", "-q", work], check=True)
    hooks = work / ".git" / "hooks"
    (hooks / "pre-commit").write_text("#!/bin/sh\n# mine\n")
    initialise(work)
    initialise(work)
    config = settings(work)
    assert config["filter.annex.process"] == "git-annex filter-process"
    assert config["filter.annex.smudge"] == "git-annex smudge -- %f"
    assert config["filter.annex.clean"] == "git-annex smudge --clean -- %f"
    assert (work / ".git" / "info" / "attributes").read_text().count("\n* filter=annex\n") == 1
    assert (hooks / "pre-commit").read_text() == "#!/bin/sh\n# mine\n"
    assert "already exists" in capfd.readouterr().err
    for name in ("post-receive", "post-checkout", "post-merge", "pre-push"):
        assert os.access(hooks / name, os.X_OK)
        assert (hooks / name).read_text().startswith("#!/bin/sh\n# automatically configured by git-annex\n")


def test_noannex(tmp_path, clean_environment, capfd):
    work = tmp_path / "work"
    subprocess.run(["git", "init", "-q", work], check=True)
    (work / ".noannex").write_text("because\nwe can\n")
    with pytest.raises(RepositoryError, match="Not initialized"):
        initialise(work)
    error = capfd.readouterr().err
    assert "Initialization prevented by .noannex file (remove the file to override)\n  because\n  we can\n" in error
    assert not (work / ".git" / "annex").exists()


@pytest.mark.parametrize("how", ["hook", "command"])
def test_pre_init_hook(fresh, how, capfd):
    if how == "hook":
        hook = fresh.path / "hooks" / "pre-init-annex"
        hook.write_text("#!/bin/sh\necho no; exit 1\n")
        hook.chmod(0o755)
    else:
        fresh.config(**{"annex.pre-init-command": "echo no; false"})
    with pytest.raises(RepositoryError, match="Not initialized"):
        initialise(fresh)
    output = capfd.readouterr()
    assert output.out == "" and "Initialization prevented by" in output.err
    assert not fresh.directory.exists()


def test_pidlock(fresh):
    fresh.config(**{"annex.pidlock": "true"})
    with pytest.raises(RepositoryError, match="pidlock"):
        initialise(fresh)
    assert "annex.uuid" not in settings(fresh.path)


def test_somebody_elses_repository(fresh, monkeypatch):
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")  # git's own way to test this without being root
    with pytest.raises(RepositoryError, match=r"^Git refuses to operate in this repository,.*--add safe\.directory"):
        initialise(fresh)
    assert not fresh.directory.exists()
    subprocess.run(["git", "config", "--global", "--add", "safe.directory", fresh.path], check=True)
    assert initialise(fresh).uuid


def test_no_git_repository(tmp_path, clean_environment):
    (tmp_path / "plain").mkdir()
    with pytest.raises(RepositoryError, match="Git refuses"):
        initialise(tmp_path / "plain")
    subprocess.run(["git", "init", "-q", tmp_path / "plain"], check=True)
    (tmp_path / "plain" / "sub").mkdir()
    with pytest.raises(RepositoryError, match="Git refuses"):
        initialise(tmp_path / "plain" / "sub")


def test_from_the_branch_of_origin(fresh, tmp_path):
    fresh.push({"uuid.log": THERE + b" there timestamp=1s\n", LOG: line(1, 1, THERE)})
    fresh.push({"config.log": b"1s annex.securehashesonly true\n"})
    clone = make_clone(fresh.path, tmp_path / "clone")
    repo = initialise(clone)
    other = Annex.__new__(Annex)
    other.path, other.directory = clone / ".git", clone / ".git" / "annex"
    assert other.tip() == fresh.tip()
    assert set(uuidmap.values(other.journal()["uuid.log"])) == {THERE, repo.uuid}
    assert settings(clone)["annex.securehashesonly"] == "true"
    assert "annex.hardlink" not in settings(clone)


def test_a_shared_clone_is_not_trusted(fresh, tmp_path):
    fresh.push({"uuid.log": THERE + b" there timestamp=1s\n"})
    clone = make_clone(fresh.path, tmp_path / "clone", "--shared", "--bare")
    repo = initialise(clone)
    assert settings(clone)["annex.hardlink"] == "true"
    assert uuidmap.trust_levels((clone / "annex/journal/trust.log").read_bytes()) == {repo.uuid: uuidmap.UNTRUSTED}


def test_first_values(fresh):
    fresh.config(**{"annex.initwanted": "standard", "annex.initrequired": "present", "annex.initgroups": "zz backup"})
    uuid = initialise(fresh).uuid
    values = {name: uuidmap.values(content) for name, content in fresh.journal().items() if name != "uuid.log"}
    assert values == {
        "preferred-content.log": {uuid: b"standard"},
        "required-content.log": {uuid: b"present"},
        "group.log": {uuid: b"backup zz"},
    }


def test_tuning_of_a_new_repository_is_recorded(fresh):
    fresh.config(**{"annex.tune.objecthash1": "true", "annex.tune.branchhash1": "true"})
    uuid = initialise(fresh).uuid
    recorded = uuidmap.values(fresh.journal()["difference.log"])
    assert recorded == {uuid: b"fromList [OneLevelObjectHash,OneLevelBranchHash]"}


def test_tuning_of_a_clone_is_that_of_the_others(fresh, capfd):
    fresh.push(
        {
            "uuid.log": THERE + b" there timestamp=1s\n",
            "difference.log": THERE + b" fromList [OneLevelObjectHash] timestamp=1s\n",
        }
    )
    fresh.config(**{"annex.tune.objecthashlower": "true"})
    repo = initialise(fresh)
    assert repo.config.get_bool(b"annex.tune.objecthash1")
    assert compatible.tunings(fresh.journal()["difference.log"]) == {b"OneLevelObjectHash"}
    assert "Cannot change tunable parameters" in capfd.readouterr().err


def test_tuning_that_is_not_known(fresh):
    fresh.push({"difference.log": THERE + b" fromList [Sideways] timestamp=1s\n"})
    with pytest.raises(RepositoryError, match="Sideways"):
        initialise(fresh)
    assert "annex.uuid" not in settings(fresh.path)


def test_private(fresh):
    fresh.config(**{"annex.private": "true"})
    initialise(fresh)
    assert fresh.journal() == {}
    assert (fresh.directory / "journal-private" / "uuid.log").exists()


def test_nobody_in_particular(fresh, clean_environment, monkeypatch):
    (clean_environment / ".gitconfig").write_text("[user]\n\tuseConfigOnly = true\n")
    monkeypatch.setenv("USER", "somebody")
    initialise(fresh)
    config = settings(fresh.path)
    assert (config["user.name"], config["user.email"]) == ("somebody", "somebody")
    assert fresh.git("log", "--format=%an|%ae", "git-annex") == "somebody|somebody"


def test_both_or_neither(fresh, monkeypatch):
    """Whatever fails, annex.uuid and annex.version are set together."""

    def fail(self, values):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(ConfigLock, "add", fail)
        with pytest.raises(OSError):
            initialise(fresh)
    assert not {"annex.uuid", "annex.version"} & set(settings(fresh.path))
    assert not (fresh.path / "config.lock").exists()
    assert initialise(fresh).version == 10


def test_git_changes_the_config_at_the_same_time(fresh):
    """git-annex sets the uuid without asking for the journal's lock."""
    (fresh.path / "config.lock").write_text(
        (fresh.path / "config").read_text() + f"[annex]\n\tuuid = {HERE.decode()}\n"
    )
    timer = threading.Timer(0.3, lambda: (fresh.path / "config.lock").rename(fresh.path / "config"))
    timer.start()
    repo = initialise(fresh)
    timer.join()
    assert (repo.uuid, repo.version) == (HERE, 10)


def test_many_at_once_agree(fresh):
    code = """
import os, sys
from annexshell.annex.gitrepo import GitRepository
from annexshell.annex.init import initialise
repo = GitRepository(os.fsencode(sys.argv[1]))
assert not repo.uuid
print("ready", flush=True)
sys.stdin.read()
initialise(repo)
print(repo.uuid.decode(), repo.version)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
    children = [subprocess.Popen([sys.executable, "-c", code, fresh.path], **pipes) for _ in range(5)]
    for child in children:
        assert child.stdout.readline() == "ready\n"
    for child in children:
        child.stdin.close()
        child.stdin = None
    answers = {child.communicate()[0] for child in children}
    assert [child.returncode for child in children] == [0] * 5
    uuid = settings(fresh.path)["annex.uuid"]
    assert answers == {f"{uuid} 10\n"}
    assert list(uuidmap.values(fresh.journal()["uuid.log"])) == [uuid.encode()]
    assert (fresh.path / "config").read_text().count("uuid") == 1


@pytest.mark.interop
@pytest.mark.parametrize("bare", [True, False], ids=["bare", "work tree"])
def test_git_annex_accepts_it(tmp_path, clean_environment, git_annex_path, bare):
    path = tmp_path / "repo"
    subprocess.run(["git", "init", "-q", *(["--bare"] if bare else []), path], check=True)
    repo = initialise(path)
    before = settings(path)
    annexed = {**os.environ, "PATH": f"{git_annex_path}{os.pathsep}{os.environ['PATH']}"}

    def run(*words):
        done = subprocess.run(["git", "annex", *words], cwd=path, env=annexed, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert f"{repo.uuid.decode()} -- " in run("info")
    run("merge")
    assert settings(path) == before, "nothing is left for git-annex to set up"
    if not bare:
        (path / "file").write_text("content")
        run("add", "file")
        subprocess.run(["git", "commit", "-qm", "x"], cwd=path, env=annexed, check=True)
        assert "file" in run("find")
        assert "ok" in run("fsck")
