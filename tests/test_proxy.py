"""Who is stood in front of, as recorded of git-annex-shell, and the repository that is used for it."""

from __future__ import annotations

import os
import select
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from annexshell.annex.gitrepo import GitRepository
from annexshell.annex.logs import cluster
from annexshell.annex.repository import LocalRepository
from annexshell.errors import Refused, RemoteUnavailable, RepositoryError
from annexshell.key import Key
from annexshell.proxy import CannotProxy, ProxiedRepository, check_can_proxy, update, why_not
from annexshell.remotes.listing import list_remotes
from annexshell.remotes.ssh import SshRepository
from annexshell.uuid import UUID
from tests import vectors
from tests.leftovers import left_open
from tests.proxying import (
    CLUSTER,
    DEADLINE,
    NODE,
    OTHER,
    OWN,
    Link,
    Nodes,
    Proxy,
    RealNode,
    Session,
    nodes,
    set_config,
    write_branch,
)
from tests.shell import Shell, git, make_annex, status_of

__all__ = ["nodes"]

CHECK = vectors.load("proxy-check")
KEY = Key(b"SHA256E-s5--2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824")
# What the recorded program goes on to do, and this version does not.
NOT_SERVED = "{} is a cluster, and this version of annexshell does not serve clusters"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = make_annex(tmp_path_factory.mktemp("check") / "u", CHECK["own_uuid"])
    set_config(directory, CHECK["base"]["config"])
    return directory


@pytest.fixture
def place(base: Path, tmp_path: Path) -> Path:
    shutil.copytree(base, tmp_path / "u")
    return tmp_path / "u"


@pytest.mark.parametrize("case", CHECK["decisions"], ids=lambda case: f"{case['label']}-{case['command']}")
def test_decision(case: dict[str, Any], place: Path, shell: Shell) -> None:
    files = CHECK["base"]["branch_files"] | case["branch_files"]
    write_branch(place, {name: text for name, text in files.items() if text is not None})
    set_config(place, case["config"])
    for name in case["unset"]:
        git(place, "config", "--unset", name)
    uuid = case["uuid_option"]
    before = left_open()
    result = shell(
        case["command"],
        str(place),
        *(["client"] if case["command"] == "p2pstdio" else []),
        *([] if uuid is None else ["--uuid", uuid]),
    )
    assert left_open() <= before
    status = status_of(case, "".join(case["stderr"]))
    expected = (status, case["stdout"], [line.removeprefix("git-annex-shell: ") for line in case["stderr"]])
    if case["exit"] == 0 and cluster.is_cluster((uuid or "").encode()):
        expected = (1, "", [NOT_SERVED.format(uuid)])
    if case["command"] == "notifychanges":
        expected = (0, "READY", [])  # the end of stdin is no failure
    said = [result.complaint] if result.stderr else []
    assert (result.status, result.stdout.decode().strip(), said) == expected


@pytest.mark.parametrize("case", CHECK["proxy_log_parsing"]["cases"], ids=lambda case: case["label"])
def test_proxy_log(case: dict[str, Any], place: Path) -> None:
    text = case["proxy_log"]
    write_branch(place, {"uuid.log": ""} if text is None else {"proxy.log": text})
    target = UUID(CHECK["proxy_log_parsing"]["target"].encode())
    repo = GitRepository(os.fsencode(place))
    if case["accepted"]:
        proxied = check_can_proxy(repo, target)
        assert (proxied.uuid, proxied.remote.name) == (target, b"b")
        proxied.close()
    else:
        with pytest.raises(CannotProxy):
            check_can_proxy(repo, target)


@pytest.fixture
def proxy(tmp_path: Path) -> Proxy:
    return Proxy(tmp_path / "proxy")


def test_several_uuids_select_the_last_that_is_not_ours(proxy: Proxy, shell: Shell) -> None:
    own, node = OWN.decode(), NODE.decode()
    for uuids in ([own, node], [node, own], [node, node], [node, own, node]):
        options = [word for uuid in uuids for word in ("--uuid", uuid)]
        before = left_open()
        result = shell("p2pstdio", str(proxy.directory), "client", *options)
        assert (result.status, result.stdout) == (0, b"AUTH-SUCCESS %s\n" % NODE), uuids
        assert left_open() <= before
    for uuids in ([OTHER.decode(), node], [node, OTHER.decode()]):
        options = [word for uuid in uuids for word in ("--uuid", uuid)]
        result = shell("p2pstdio", str(proxy.directory), "client", *options)
        assert (result.status, result.stdout) == (1, b""), uuids
        assert result.complaint.startswith(f"expected repository UUID {OTHER.decode()}")


class TestWhichRemote:
    def chosen(self, proxy: Proxy) -> bytes | None:
        try:
            target = proxy.target()
        except CannotProxy:
            return None
        target.close()
        return target.remote.name

    def test_the_current_name_counts(self, proxy: Proxy) -> None:
        git(proxy.directory, "config", "--rename-section", "remote.b", "remote.c")
        assert self.chosen(proxy) is None

    def test_the_cheapest_then_the_last(self, proxy: Proxy) -> None:
        more = {}
        for name in ("a", "c"):
            more |= {f"remote.{name}.url": "ssh://h/y", f"remote.{name}.annex-uuid": NODE.decode()}
        set_config(proxy.directory, {**more, "annex.proxy": "true"})
        names = " ".join(f"{NODE.decode()}:{name}" for name in "abc")
        proxy.write_branch(proxy_log=f"1s {OWN.decode()} {names}\n")
        assert self.chosen(proxy) == b"c"
        set_config(proxy.directory, {"remote.a.annex-cost": "50"})
        assert self.chosen(proxy) == b"a"

    @pytest.mark.parametrize("value", ["true", "1", "yes", "on", "TRUE"])
    def test_booleans_that_allow(self, value: str, proxy: Proxy) -> None:
        set_config(proxy.directory, {"remote.b.annex-proxy": value})
        assert self.chosen(proxy) == b"b"

    @pytest.mark.parametrize("value", ["false", "0", "no", "", "banana"])
    def test_booleans_that_do_not(self, value: str, proxy: Proxy) -> None:
        set_config(proxy.directory, {"remote.b.annex-proxy": value})
        assert self.chosen(proxy) is None

    def test_nodes_of_a_configured_cluster(self, proxy: Proxy) -> None:
        git(proxy.directory, "config", "--unset", "remote.b.annex-proxy")
        set_config(proxy.directory, {"remote.b.annex-cluster-node": "other mine"})
        assert self.chosen(proxy) is None
        set_config(proxy.directory, {"annex.cluster.mine": "not a cluster's uuid"})
        assert self.chosen(proxy) is None
        set_config(proxy.directory, {"annex.cluster.mine": CLUSTER.decode()})
        assert self.chosen(proxy) == b"b"

    def test_what_is_behind_another_gateway(self, proxy: Proxy) -> None:
        gateway = OTHER.decode()
        git(proxy.directory, "config", "--remove-section", "remote.b")
        set_config(proxy.directory, {"remote.g.url": "ssh://h/y", "remote.g.annex-uuid": gateway})
        proxy.write_branch(
            proxy_log=f"1s {OWN.decode()} {NODE.decode()}:g-n\n1s {gateway} {NODE.decode()}:n\n",
        )
        assert self.chosen(proxy) is None
        set_config(proxy.directory, {"remote.g.annex-cluster-gateway": "no cluster"})
        assert self.chosen(proxy) is None
        set_config(proxy.directory, {"remote.g.annex-cluster-gateway": CLUSTER.decode()})
        assert self.chosen(proxy) == b"g-n"

    def test_ignored_remotes_count(self, proxy: Proxy) -> None:
        set_config(proxy.directory, {"remote.b.annex-ignore": "true"})
        assert self.chosen(proxy) == b"b"

    def test_the_reasons_against_a_remote(self, proxy: Proxy) -> None:
        repo = GitRepository(os.fsencode(proxy.directory))
        target = proxy.target()
        remotes = list_remotes(repo, target.local.branch)
        target.close()
        (remote,) = remotes
        assert why_not(repo, remote, NODE, frozenset([b"b"]), remotes) is None
        assert "updateproxy" in (why_not(repo, remote, NODE, frozenset([b"x"]), remotes) or "")
        assert why_not(repo, remote, OTHER, frozenset([b"b"]), remotes) == f"its uuid is {NODE}"


def test_what_was_pushed_is_merged_first(proxy: Proxy) -> None:
    """The proxy log may just have come from where updateproxy was run."""
    git(proxy.directory, "update-ref", "refs/heads/synced/git-annex", "refs/heads/git-annex")
    write_branch(proxy.directory, {"uuid.log": ""})
    proxy.target().close()


def test_an_update_that_fails_does_not_keep_from_serving(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    target = proxy.target()
    for reason in (RepositoryError("no"), OSError(13, "no")):

        def fail(branch: object, reason: Exception = reason) -> bool:
            raise reason

        monkeypatch.setattr("annexshell.annex.branch.Branch.update", fail)
        update(target.local.branch)
    target.close()


def test_a_refusal_leaves_nothing_behind(proxy: Proxy) -> None:
    before = left_open()
    with pytest.raises(Refused):
        proxy.target(OTHER)
    assert left_open() <= before


def wait_for_end(target: ProxiedRepository) -> None:
    """Return when the node does not read any more, the last that it does."""
    assert isinstance(target._node, SshRepository)
    poll = select.poll()
    poll.register(target._node._child.write_fd, 0)
    assert poll.poll(DEADLINE * 1000)
    assert not target.is_alive()


class TestShared:
    """A server's many targets have one branch, which outlives each of them."""

    @pytest.fixture
    def shared(self, proxy: Proxy) -> Any:
        shared = LocalRepository(GitRepository(os.fsencode(proxy.directory)))
        shared.share()
        yield shared
        shared.close()

    def test_targets(self, shared: LocalRepository, proxy: Proxy, nodes: Nodes, tmp_path: Path) -> None:
        node = RealNode(tmp_path / "node")
        nodes.scripts = [node]
        targets = [check_can_proxy(shared.repo, NODE, shared) for _ in range(3)]
        children = {name for name in left_open() if name.startswith("child")}
        for target in targets:
            assert target.local.branch is shared.branch
            target.agree(4)
            assert target.remove(KEY)
            target.close()
        assert children >= {name for name in left_open() if name.startswith("child")}
        assert (proxy.logged(KEY), proxy.logged(KEY, committed=True)) == ({NODE: b"0"}, {})
        assert shared.branch.commit()
        assert proxy.logged(KEY, committed=True) == {NODE: b"0"}

    def test_a_refusal(self, shared: LocalRepository) -> None:
        shared.branch.read(b"proxy.log")
        before = left_open()
        with pytest.raises(CannotProxy):
            check_can_proxy(shared.repo, OTHER, shared)
        check_can_proxy(shared.repo, NODE, shared).abandon()
        assert left_open() == before


class TestConnections:
    """The remote's connection is opened when it is needed, closed when it is out of step, and opened again."""

    @pytest.fixture
    def target(self, proxy: Proxy, nodes: Nodes) -> Any:
        target = proxy.target()
        yield target
        target.close()

    def test_nobody_is_contacted_before_a_version_is_agreed_on(self, target: ProxiedRepository, nodes: Nodes) -> None:
        assert nodes.links == []

    @pytest.mark.parametrize(("client", "node", "agreed"), [(4, 4, 4), (4, 1, 1), (2, 4, 2), (0, 4, 0), (1, 0, 0)])
    def test_agreeing(self, client: int, node: int, agreed: int, target: ProxiedRepository, nodes: Nodes) -> None:
        nodes.scripts = [lambda link: (link.greet(node), link.wait_for_end())]
        assert target.agree(client) == agreed == target.protocol_version
        target.close()
        assert nodes.links[0].heard == [b"VERSION %d" % client]

    def test_the_remote_is_told_who_is_meant(self, target: ProxiedRepository, nodes: Nodes) -> None:
        nodes.scripts = [lambda link: (link.greet(), link.wait_for_end())]
        target.agree(4)
        assert nodes.links[0].argv == [
            b"ssh",
            b"node",
            b"-T",
            b"git-annex-shell 'p2pstdio' '/x' '%s' --uuid %s" % (OWN, NODE),
        ]

    def test_a_connection_that_ended_between_requests_is_opened_again(
        self, target: ProxiedRepository, nodes: Nodes
    ) -> None:
        def answer(link: Link) -> None:
            link.greet()
            link.line()
            link.say(b"SUCCESS\n")

        nodes.scripts = [answer]
        target.agree(4)
        for _ in range(3):
            assert target.checkpresent(KEY)
            nodes.threads[-1].join()
        assert len(nodes.links) == 3

    def test_a_connection_opened_again_does_not_speak_a_higher_version(
        self, target: ProxiedRepository, nodes: Nodes
    ) -> None:
        """The client's version stays what it was."""
        nodes.scripts = [
            lambda link: (link.greet(1), link.line()),
            lambda link: (link.greet(4), link.wait_for_end()),
        ]
        assert target.agree(4) == 1
        with pytest.raises(RemoteUnavailable):
            target.checkpresent(KEY)
        with target as node:
            assert node.protocol_version == 1

    @pytest.mark.parametrize(
        ("request_of", "line"),
        [
            (lambda target: target.checkpresent(KEY), b"CHECKPRESENT %s"),
            (lambda target: target.remove(KEY), b"REMOVE %s"),
            (lambda target: target.remove(KEY, 9), b"REMOVE-BEFORE 9 %s"),
            (lambda target: target.lockcontent(KEY).__exit__(None, None, None), b"LOCKCONTENT %s"),
            (lambda target: target.put(KEY, None), b"PUT  %s"),
        ],
        ids=["checkpresent", "remove", "remove-before", "lockcontent", "put"],
    )
    def test_what_was_not_asked_is_asked_over_a_new_connection(
        self, request_of: Any, line: bytes, target: ProxiedRepository, nodes: Nodes
    ) -> None:
        """Nobody need hear of a connection that had ended before the request."""

        def answer(link: Link) -> None:
            link.greet()
            asked = link.line()
            link.say(b"ALREADY-HAVE\n" if (asked or b"").startswith(b"PUT") else b"SUCCESS\n")
            link.wait_for_end()

        nodes.scripts = [lambda link: link.greet(), answer]
        target.agree(4)
        wait_for_end(target)
        request_of(target)
        assert target.is_alive()
        assert nodes.links[0].heard == [b"VERSION 4"]
        assert nodes.links[1].heard[:2] == [b"VERSION 4", line % KEY.serialized]

    def test_it_is_asked_again_once(self, target: ProxiedRepository, nodes: Nodes) -> None:
        nodes.scripts = [lambda link: link.greet(), lambda link: (link.greet(), link.line())]
        target.agree(4)
        wait_for_end(target)
        with pytest.raises(RemoteUnavailable):
            target.checkpresent(KEY)
        assert len(nodes.links) == 2

    def test_what_may_have_been_done_is_not_asked_again(self, target: ProxiedRepository, nodes: Nodes) -> None:
        nodes.scripts = [lambda link: (link.greet(), link.line())]
        target.agree(4)
        for request in (lambda: target.checkpresent(KEY), lambda: target.put(KEY, None)):
            with pytest.raises(RemoteUnavailable):
                request()
        assert not target.remove(KEY)
        asked = [link.heard[1:] for link in nodes.links]
        assert asked == [[line % KEY.serialized] for line in (b"CHECKPRESENT %s", b"PUT  %s", b"REMOVE %s")]

    def test_a_connection_on_which_something_was_said_is_not_alive(
        self, target: ProxiedRepository, nodes: Nodes
    ) -> None:
        """It would be taken for the answer to the next request."""
        go_on, said = threading.Event(), threading.Event()

        def chatter(link: Link) -> None:
            link.greet()
            go_on.wait(DEADLINE)
            link.say(b"SUCCESS\n")
            said.set()
            link.wait_for_end()

        nodes.scripts = [chatter]
        assert not target.is_alive()
        target.agree(4)
        assert target.is_alive()
        go_on.set()
        assert said.wait(DEADLINE)
        assert not target.is_alive()

    @pytest.mark.parametrize(
        ("script", "reason"),
        [
            (lambda link: None, "closed the connection before it greeted"),
            (lambda link: link.say(b"Welcome\n"), "does not speak the protocol; its first line was: 'Welcome'"),
            (
                lambda link: link.say(b"AUTH-SUCCESS %s\n" % OTHER),
                f"expected repository UUID {NODE} but found UUID {OTHER}",
            ),
            (lambda link: (link.say(b"AUTH-SUCCESS %s\n" % NODE), link.line()), "lost the connection"),
        ],
    )
    def test_a_remote_that_cannot_be_used(
        self, script: Any, reason: str, target: ProxiedRepository, nodes: Nodes
    ) -> None:
        nodes.scripts = [script]
        before = left_open()
        with pytest.raises(RemoteUnavailable) as failure:
            target.agree(4)
        assert str(failure.value).startswith("Unable to connect to remote b: ") and reason in str(failure.value)
        assert left_open() <= before

    def test_closing_tells_the_remote(self, target: ProxiedRepository, nodes: Nodes) -> None:
        nodes.scripts = [lambda link: (link.greet(), link.wait_for_end())]
        target.agree(4)
        target.close()
        target.close()
        assert nodes.open == 0

    def test_a_remote_that_fails_to_close_is_no_failure_of_the_session(
        self, target: ProxiedRepository, nodes: Nodes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        close = SshRepository.close

        def fail(node: SshRepository) -> None:
            close(node)
            raise RepositoryError("cannot commit")

        nodes.scripts = [lambda link: (link.greet(), link.wait_for_end())]
        monkeypatch.setattr(SshRepository, "close", fail)
        target.agree(4)
        target.close()


class TestPathNode:
    """A remote on this machine is used in this process, and as if it were served by a process of its own."""

    @pytest.fixture
    def node(self, proxy: Proxy, tmp_path: Path) -> RealNode:
        node = RealNode(tmp_path / "node")
        set_config(proxy.directory, {"remote.b.url": str(node.directory)})
        return node

    def test_everything(self, proxy: Proxy, node: RealNode) -> None:
        key = KEY.serialized
        before = left_open()
        with Session.start(proxy.target()) as session:
            session.open(4)
            assert session.ask(b"CHECKPRESENT " + key) == b"FAILURE"
            assert session.ask(b"PUT foo " + key) == b"PUT-FROM 0"
            assert session.ask(b"DATA 5\nhelloVALID") == b"SUCCESS"
            assert session.ask(b"PUT foo " + key) == b"ALREADY-HAVE"
            assert session.ask(b"GET 1 foo " + key) == b"DATA 4"
            assert (session.content(4), session.line()) == (b"ello", b"VALID")
            session.say(b"SUCCESS\n")
            assert session.ask(b"LOCKCONTENT " + key) == b"SUCCESS"
            assert session.ask(b"UNLOCKCONTENT\nREMOVE " + key) == b"SUCCESS"
            assert session.ask(b"GET 0 foo " + key) == b"DATA 0"
            assert session.line() == b"INVALID"
            session.say(b"FAILURE\n")
            assert (session.ask(b"GETTIMESTAMP") or b"").startswith(b"TIMESTAMP ")
            assert session.finish() == b""
            assert session.error is None
        assert left_open() <= before
        assert proxy.logged(KEY, committed=True) == {NODE: b"0"}
        assert node.logged(KEY, committed=True) == {NODE: b"0"}

    def test_what_is_locked_stays(self, proxy: Proxy, node: RealNode) -> None:
        """Also once the client that locked it has vanished."""
        node.store(KEY, b"hello")
        with Session.start(proxy.target()) as session:
            session.open(4)
            assert session.ask(b"LOCKCONTENT " + KEY.serialized) == b"SUCCESS"
            session.close()
            session.join()
        with Session.start(proxy.target()) as session:
            session.open(4)
            assert session.ask(b"REMOVE " + KEY.serialized) == b"FAILURE"
            assert session.ask(b"CHECKPRESENT " + KEY.serialized) == b"SUCCESS"
        assert proxy.logged(KEY) == {}

    def test_what_was_cut_short_is_resumed(self, proxy: Proxy, node: RealNode) -> None:
        for offset in (b"0", b"3"):
            with Session.start(proxy.target()) as session:
                session.open(4)
                assert session.ask(b"PUT foo " + KEY.serialized) == b"PUT-FROM " + offset
                if offset == b"3":
                    assert session.ask(b"DATA 2\nloVALID") == b"SUCCESS"
                else:
                    session.say(b"DATA 5\nhel")
                    session.close()
                    session.join()
        assert node.content(KEY) == b"hello"

    def test_one_that_is_gone(self, proxy: Proxy, node: RealNode) -> None:
        target = proxy.target()
        shutil.rmtree(node.directory)
        with Session.start(target) as session:
            session.say(b"VERSION 4\n")
            assert session.rest() == b""
            session.join()
        assert str(session.error).startswith("Unable to connect to remote b: there is no directory ")
