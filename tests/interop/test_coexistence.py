"""The program under test and real git-annex at work in one repository at the same moment."""

from __future__ import annotations

import pytest

from tests.interop.harness import P2P, Repo, running

CONTENT = b"content that two programs want\n"

# Programs that speak less know neither retention times nor that a key is received only once at a time.
RETENTION_VERSION = 3


@pytest.fixture(params=[8, 10], ids=["v8", "v10"])
def shared(request, make_server) -> tuple[Repo, str]:
    """A server repository with a work tree that has one key."""
    repo = make_server(bare=False, version=request.param)
    key = repo.add("file", CONTENT)
    repo.commit()
    return repo, key


def refuses_to_remove(repo: Repo, key: str, session: P2P) -> None:
    """REMOVE is answered FAILURE (or, by the real program, with hanging up), and nothing is removed."""
    assert session.ask(f"REMOVE {key}") in {"FAILURE", ""}
    assert repo.content(key) == CONTENT


def test_our_lock_holds_against_real_programs(shared, server, real_shell):
    repo, key = shared
    with server.p2p(repo) as ours:
        assert ours.ask(f"LOCKCONTENT {key}") == "SUCCESS"
        with real_shell.p2p(repo) as theirs:
            refuses_to_remove(repo, key, theirs)
        refused = repo.annex("drop", "--force", "file", check=False)
        assert refused.status == 1
        assert repo.content(key) == CONTENT
        ours.send("UNLOCKCONTENT")
        assert ours.ask(f"CHECKPRESENT {key}") == "SUCCESS"  # so the lock is gone by now
        repo.annex("drop", "--force", "file")
        assert ours.ask(f"CHECKPRESENT {key}") == "FAILURE"
        assert ours.close() == 0
    assert not repo.leftovers()


def test_real_lock_holds_against_us(shared, server, real_shell):
    repo, key = shared
    with real_shell.p2p(repo) as theirs:
        assert theirs.ask(f"LOCKCONTENT {key}") == "SUCCESS"
        with server.p2p(repo) as ours:
            refuses_to_remove(repo, key, ours)
        theirs.send("UNLOCKCONTENT")
        assert theirs.ask(f"CHECKPRESENT {key}") == "SUCCESS"
        with server.p2p(repo) as ours:
            assert ours.ask(f"REMOVE {key}") == "SUCCESS"
            assert ours.close() == 0
    assert repo.content(key) is None
    assert not repo.leftovers()


def test_locks_of_both_at_once(shared, server, real_shell):
    """Each in turn is the last holder."""
    repo, key = shared
    for first, second in ((server, real_shell), (real_shell, server)):
        with first.p2p(repo) as one, second.p2p(repo) as two:
            assert one.ask(f"LOCKCONTENT {key}") == "SUCCESS"
            assert two.ask(f"LOCKCONTENT {key}") == "SUCCESS"
            one.send("UNLOCKCONTENT")
            assert one.ask(f"CHECKPRESENT {key}") == "SUCCESS"
            refused = repo.annex("drop", "--force", "file", check=False)
            assert refused.status == 1
            two.send("UNLOCKCONTENT")
            assert two.ask(f"CHECKPRESENT {key}") == "SUCCESS"
            assert [one.close(), two.close()] == [0, 0]
    repo.annex("drop", "--force", "file")
    assert not repo.leftovers()


def test_lock_outlives_a_killed_holder(make_server, server, real_shell):
    """The client that got SUCCESS relies on the lock for a while, whatever becomes of the connection."""
    repo = make_server(bare=False, version=10)
    key = repo.add("file", CONTENT)
    for holder, remover in ((server, real_shell), (real_shell, server)):
        with holder.p2p(repo) as one:
            assert one.ask(f"LOCKCONTENT {key}") == "SUCCESS"
            one.process.kill()
            one.process.wait()
        with remover.p2p(repo) as two, real_shell.p2p(repo) as theirs:
            if theirs.version >= RETENTION_VERSION:
                refuses_to_remove(repo, key, two)
                assert not repo.annex("drop", "--force", "file", check=False)
        for retention in (path for path in repo.leftovers() if path.suffix == ".rtm"):
            retention.parent.chmod(0o755)
            retention.write_text("1000s")  # long ago
    with server.p2p(repo) as three:
        assert three.ask(f"REMOVE {key}") == "SUCCESS"
    assert not repo.leftovers()


def test_no_lock_while_real_git_annex_is_dropping(shared, server, tmp_path):
    repo, key = shared
    began, go_on = tmp_path / "began", tmp_path / "go-on"
    # Who asks for a lock freezes the directory afterwards, in git-annex too, which would spoil the removal.
    erase = "chmod u+w $(dirname %file); rm -f %file"
    repo.config(secure_erase_command=f"touch {began}; while ! test -e {go_on}; do sleep 0.05; done; {erase}")
    with running(repo.start_annex("drop", "--force", "file")) as dropping, server.p2p(repo) as ours:
        while not began.exists():
            assert dropping.poll() is None
        assert ours.ask(f"LOCKCONTENT {key}") == "FAILURE"
        assert ours.ask(f"REMOVE {key}") in {"FAILURE", ""}
        go_on.touch()
        assert dropping.wait(60) == 0
    with server.p2p(repo) as ours:
        assert ours.ask(f"LOCKCONTENT {key}") == "FAILURE"
        assert ours.ask(f"REMOVE {key}") == "SUCCESS"
    assert not repo.leftovers()


def test_client_respects_locks_of_both(make_server, make_client, server, real_shell):
    """git annex drop --from over ssh, through each program, while the other has the content locked."""
    repo = make_server()
    client = make_client(repo)
    key = client.add("file", CONTENT)
    client.commit()
    client.annex("copy", "--to=origin", "file")
    for holder, host in ((server, "real"), (real_shell, "rw")):
        client.git("remote", "set-url", "origin", f"ssh://{host}{repo.path}")
        with holder.p2p(repo) as session:
            assert session.ask(f"LOCKCONTENT {key}") == "SUCCESS"
            refused = client.annex("drop", "--from=origin", "file", check=False)
            assert refused.status == 1
            assert repo.uuid in client.locations(key)
            assert repo.content(key) == CONTENT
            session.send("UNLOCKCONTENT")
            assert session.close() == 0
    client.annex("drop", "--from=origin", "file")
    assert repo.content(key) is None


def test_real_transfer_in_progress(make_server, server, real_shell):
    """While real git-annex gets a key, nobody may PUT it; afterwards it is there."""
    repo = make_server()
    source = make_server("source", bare=False)
    content = CONTENT * 100_000
    key = source.add("file", content)
    repo.git("remote", "add", "source", source.path)
    repo.annex("info", "--fast")
    repo.config(bwlimit="1MB")
    with running(repo.start_annex("get", "--key", key, "--from=source")) as getting:
        while not repo.temporary(key).exists():
            assert getting.poll() is None
        with server.p2p(repo) as ours, real_shell.p2p(repo) as theirs:
            if theirs.version >= RETENTION_VERSION:
                assert ours.put(key, content) != "SUCCESS"
        assert getting.wait(120) == 0
    assert repo.content(key) == content
    with server.p2p(repo) as ours:
        assert ours.ask(f"PUT  {key}") == "ALREADY-HAVE"


def test_what_we_record_is_read_by_real_git_annex(shared, server):
    """Changes are visible to others as soon as they are acknowledged, and committed when the session ends."""
    repo, key = shared
    with server.p2p(repo) as ours:
        assert ours.ask(f"REMOVE {key}") == "SUCCESS"
        assert repo.locations(key) == set()
        assert ours.put(key, CONTENT) == "SUCCESS"
        assert repo.locations(key) == {repo.uuid}
        assert ours.close() == 0
    assert repo.locations(key) == {repo.uuid}
    assert not list((repo.git_dir / "annex" / "journal").glob("*"))
    assert repo.annex("fsck").status == 0
