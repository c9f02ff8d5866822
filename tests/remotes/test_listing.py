"""The list of a repository's remotes, and its order."""

from __future__ import annotations

import subprocess

import pytest

from annexshell import process
from annexshell.annex.logs import cluster
from annexshell.annex.logs import proxy as proxylog
from annexshell.remotes.remote import AnnexHttp, LocalPath, Remote, Special, Ssh, Unreachable
from annexshell.uuid import UUID
from tests import vectors
from tests.remotes.repositories import OWN, TARGET, costs, init, names, of

RECORDED = vectors.load("proxy-remotes")
OTHER = "20000000-aaaa-4000-8000-000000000000"
R = "40000000-aaaa-4000-8000-000000000000"
CLUSTER = "ac19707e-9e10-8c44-8ffe-38919373a7db"


def proxy_log(**proxied: str) -> str:
    return "".join(f"1s {uuid} {entries}\n" for uuid, entries in proxied.items())


def kinds(remotes: list[Remote]) -> dict[str, bytes]:
    return {str(r): r.location.kind for r in remotes if isinstance(r.location, Special)}


def may_be_proxied_to(remote: Remote, clusters: dict[bytes, bytes]) -> bool:
    words = (remote.setting(b"annex-cluster-node") or b"").split()
    return remote.flag(b"annex-proxy") or any(cluster.is_cluster(clusters.get(word, b"")) for word in words)


@pytest.mark.parametrize("selection", RECORDED["selection"], ids=lambda s: s["label"])
def test_recorded_selections(proxy, selection):
    settings = list(selection["global"].items())
    for name, configured in selection["remotes"]:
        settings += of(name, url=f"ssh://host-{name}/x", annex_uuid=TARGET, **configured)
    remotes = proxy.remotes(settings, proxy=RECORDED["proxy_log_for_selection"])
    logged = proxylog.parse(RECORDED["proxy_log_for_selection"].encode())[UUID(OWN.encode())]
    prefix = "annex.cluster."
    clusters = {k.removeprefix(prefix).encode(): v.encode() for k, v in settings if k.startswith(prefix)}
    chosen = (r for r in remotes if (r.uuid, r.name) in logged and may_be_proxied_to(r, clusters))
    assert next(map(str, chosen), None) == selection["chosen"]


def test_git_remotes(proxy, tmp_path):
    init(tmp_path / "near", uuid=TARGET)
    remotes = proxy.remotes(
        [
            *of("far", url="ssh://host:22/x"),
            *of("near", url="../near"),
            *of("http", url="http://h/x"),
            *of("server", url="http://h/x", annexurl="annex+http://h/"),
            *of("a.dotted.name", url="host:x"),
            *of("inside", url="annex::"),
            *of("p2p", url="p2p-annex::foo+bar"),
            *of("lfs", url="https://h/x", annex_git_lfs="true"),
            *of("crypt", url="gcrypt::../x"),
            *of("crypt-far", url="gcrypt::host:x"),
            ("remote.url", "x"),
            ("remote.pushdefault", "far"),
            ("remote.without.annex-cost", "1"),
        ]
    )
    assert costs(remotes) == {
        "near": 100,
        "crypt": 110,
        "p2p": 1000,
        **dict.fromkeys(("far", "http", "server", "a.dotted.name", "lfs", "crypt-far"), 200),
    }
    assert kinds(remotes) == {"p2p": b"p2p", "lfs": b"git-lfs", "crypt": b"gcrypt", "crypt-far": b"gcrypt"}
    by_name = {str(remote): remote.location for remote in remotes}
    assert isinstance(by_name["near"], LocalPath)
    assert isinstance(by_name["far"], Ssh)
    assert isinstance(by_name["http"], Unreachable)
    assert isinstance(by_name["server"], AnnexHttp)


# By the real program's defaults, with something in it that makes it find the remote.
SPECIAL = {
    "S3": ("annex_s3", "true", 200),
    "bup": ("annex_buprepo", "/tmp/x", 110),
    "directory": ("annex_directory", "/tmp/a:b", 100),
    "rsync": ("annex_rsyncurl", "/tmp/x", 200),
    "web": ("annex_web", "true", 200),
    "webdav": ("annex_webdav", "true", 200),
    "adb": ("annex_adb", "true", 175),
    "tahoe": ("annex_tahoe", "/tmp/x", 200),
    "glacier": ("annex_glacier", "true", 1000),
    "ddar": ("annex_ddarrepo", "ddar", 110),
    "httpalso": ("annex_httpalso", "true", 200),
    "borg": ("annex_borgrepo", "/tmp/x", 110),
    "rclone": ("annex_rclone", "true", 200),
    "hook": ("annex_hooktype", "x", 200),
    "external": ("annex_externaltype", "x", 200),
    "compute": ("annex_compute", "true", 1000),
    "mask": ("annex_mask", "true", 225),
}


def test_special_remotes(proxy):
    settings = [
        setting
        for name, (variable, value, _) in SPECIAL.items()
        for setting in of(name, annex_uuid=TARGET, **{variable: value})
    ]
    remotes = proxy.remotes(settings)
    assert costs(remotes) == {name: cost for name, (*_, cost) in SPECIAL.items()}
    assert kinds(remotes) == {name: name.encode() for name in SPECIAL}
    assert all(remote.uuid == TARGET.encode() for remote in remotes)

    # With equal costs, the order of the kinds reversed.
    assert names(proxy.remotes([*settings, ("annex.cost", "1")])) == list(reversed(SPECIAL))


def test_special_remotes_elsewhere(proxy):
    remotes = proxy.remotes(
        [
            *of("bup", annex_buprepo="host:x"),
            *of("borg", annex_borgrepo="ssh://host/x"),
            *of("ddar", annex_ddarrepo="host:x"),
        ]
    )
    assert costs(remotes) == dict.fromkeys(("bup", "borg", "ddar"), 200)


def test_what_is_recorded_of_special_remotes(proxy):
    settings = [
        *of("a", annex_uuid=TARGET, annex_directory="/tmp/x"),
        *of("b", annex_uuid=TARGET, annex_config_uuid=OTHER, annex_directory="/tmp/y"),
        *of("c", annex_uuid=R, annex_directory="/tmp/z"),
        *of("git", annex_uuid=OWN, url="ssh://host/x"),
    ]
    recorded = (
        f"{TARGET} cost=5 encryption=shared cipher=x type=directory timestamp=1s\n"
        f"{OTHER} cost=6 encryption=none sameas-uuid={TARGET} type=directory timestamp=1s\n"
        f"{OWN} cost=7 encryption=shared cipher=x type=git timestamp=1s\n"
    )
    assert costs(proxy.remotes(settings, remote=recorded)) == {"a": 55, "b": 56, "c": 100, "git": 7}
    settings += of("a", annex_cost="1")
    assert costs(proxy.remotes(settings, remote=recorded)) == {"a": 51, "b": 56, "c": 100, "git": 7}
    recorded = recorded.replace("type=directory", "type=rsync").replace("type=git", "type=rsync")
    assert costs(proxy.remotes(settings, remote=recorded)) == {"a": 1, "b": 100, "c": 100, "git": 7}
    assert costs(proxy.remotes(settings, remote="nonsense\n")) == {"a": 1, "b": 100, "c": 100, "git": 200}


def test_order_within_and_between_kinds(proxy):
    settings = [
        *of("b", url="ssh://host/x"),
        *of("a", url="gcrypt::ssh://host/x"),
        *of("a-b", url="ssh://host/x"),
        *of("c", url="https://h/x", annex_git_lfs="true"),
        *of("0", annex_directory="/tmp/x", annex_cost="200"),
        *of("cheap", url="ssh://host/x", annex_cost="199.5"),
    ]
    # By the settings' full names: "remote.a-b.url" comes before "remote.a.url".
    assert names(proxy.remotes(settings)) == ["cheap", "0", "c", "b", "a", "a-b"]


class TestUuids:
    @pytest.fixture
    def uuid(self, proxy):
        return lambda **settings: proxy.remotes(of("r", **settings))[0].uuid.decode()

    def test_of_a_path(self, uuid, tmp_path):
        init(tmp_path / "near", uuid=TARGET)
        assert uuid(url="../near", annex_uuid=OTHER) == TARGET
        assert uuid(url="../near") == TARGET
        assert uuid(url="../near", annex_uuid=OTHER, annex_checkuuid="false") == OTHER
        assert uuid(url="../near", annex_checkuuid="false") == ""

    def test_of_a_path_by_a_setting_for_all(self, proxy, tmp_path):
        init(tmp_path / "near", uuid=TARGET)
        settings = [*of("r", url="../near", annex_uuid=OTHER), ("annex.checkuuid", "false")]
        assert proxy.remotes(settings)[0].uuid == OTHER.encode()

    def test_of_a_bare_repository(self, uuid, tmp_path):
        init(tmp_path / "bare.git", "--bare", uuid=TARGET)
        assert uuid(url="../bare", annex_uuid=OTHER) == TARGET

    @pytest.mark.parametrize("what", ["missing", "directory", "uninitialized", "file", "broken", "nowhere"])
    def test_of_a_path_without_one(self, uuid, tmp_path, what):
        (tmp_path / "directory").mkdir()
        (tmp_path / "file").touch()
        init(tmp_path / "uninitialized")
        init(tmp_path / "broken", uuid=TARGET)
        (tmp_path / "broken" / ".git" / "config").write_text("[annex\n")
        (tmp_path / "nowhere").mkdir()
        (tmp_path / "nowhere" / ".git").write_text("gitdir: ../gone\n")
        assert uuid(url=f"../{what}/", annex_uuid=OTHER) == OTHER
        assert uuid(url=f"../{what}/") == ""

    def test_of_others(self, uuid, proxy):
        assert uuid(url="ssh://host/x", annex_uuid=OTHER) == OTHER
        assert uuid(url="ssh://host/x") == ""
        # annex.uuid, our own, is no default for a remote's.
        assert uuid(annex_directory="/tmp/x") == ""

    def test_it_is_read_when_it_is_asked_for_and_once(self, proxy, tmp_path):
        (remote,) = proxy.remotes(of("r", url="../near/", annex_uuid=OTHER))
        init(tmp_path / "near", uuid=TARGET)
        assert remote.uuid == TARGET.encode()
        subprocess.run(["rm", "-r", tmp_path / "near"], check=True)
        assert remote.uuid == TARGET.encode()

    def test_nothing_is_written_back(self, proxy, tmp_path):
        init(tmp_path / "near", uuid=TARGET)
        (remote,) = proxy.remotes(of("r", url="../near", annex_uuid=OTHER))
        before = (proxy.path / ".git" / "config").read_bytes()
        assert remote.uuid == TARGET.encode()
        assert (proxy.path / ".git" / "config").read_bytes() == before


def test_no_process_runs_for_the_list(proxy, tmp_path, monkeypatch):
    init(tmp_path / "near", uuid=TARGET)
    log = tmp_path / "log"
    settings = [
        *of("near", url="../near"),
        *of("far", url="ssh://host/x", annex_uuid=R),
        *of("e", annex_externaltype="x"),
    ]
    proxy.remotes(settings)
    started: list[bytes] = []
    spawn = process.spawn

    def noted(argv, **options):
        started.append(b" ".join(argv))
        return spawn(argv, **options)

    monkeypatch.setattr(process, "spawn", noted)
    log_of = {"proxy": proxy_log(**{R: " ".join(f"{TARGET}:n{number}" for number in range(20))})}
    proxy.remotes(settings, **log_of)
    git = len(started)
    assert all(command.startswith(b"git ") for command in started) and git <= 3
    command = f"echo x >>{log}; echo 5"
    proxy.remotes([*settings, *of("far", annex_cost_command=command)], **log_of)
    assert log.read_text() == "x\n"


HERE = of("R", url="ssh://host/x", annex_uuid=R)
BEHIND = proxy_log(**{R: f"{TARGET}:n"})
CLUSTERED = {"proxy": proxy_log(**{R: f"{TARGET}:n {CLUSTER}:cl"}), "cluster": f"1s {CLUSTER} {TARGET}\n"}


class TestInstantiated:
    """Remotes behind remotes."""

    def test_what_they_are(self, proxy):
        settings = [
            *HERE,
            *of("R", annex_proxy="true", annex_shell="shell", annexurl="ssh://k/z", annex_cluster_node="cl"),
        ]
        remotes = proxy.remotes(settings, proxy=BEHIND)
        assert names(remotes) == ["R", "R-n"]
        outer, inner = remotes
        assert inner.uuid == TARGET.encode()
        assert inner.proxy is outer and inner.proxied_by == R.encode()
        assert inner.location is outer.location
        assert isinstance(inner.location, Ssh) and inner.location.host == b"k"
        assert inner.flag(b"annex-proxy")
        assert inner.setting(b"annex-shell") == b"shell"
        assert inner.setting(b"annex-cluster-node") is None

    def test_their_costs(self, proxy):
        def inner(*settings, **logs):
            return costs(proxy.remotes([*HERE, *settings], **(logs or {"proxy": BEHIND})))["R-n"]

        cheap, told, cheap_all = of("R", annex_cost="7"), of("R", annex_cost_command="echo 9"), ("annex.cost", "8")
        assert inner() == 200
        assert inner(*cheap) == 7
        assert inner(*told) == 9
        assert inner(cheap_all) == 8
        assert inner(proxy=BEHIND, remote=f"{TARGET} cost=66 timestamp=1s\n{R} cost=67 timestamp=1s\n") == 66
        # Behind a cluster that is proxied for, too.
        assert inner(**CLUSTERED) == 200.1
        assert inner(*cheap, **CLUSTERED) == 200.1
        assert inner(cheap_all, **CLUSTERED) == 200.1
        assert inner(**CLUSTERED, remote=f"{TARGET} cost=66 timestamp=1s\n") == 200.1
        assert inner(*told, **CLUSTERED) == 9
        assert inner(proxy=BEHIND, cluster=CLUSTERED["cluster"]) == 200

    def test_a_cluster_is_one_of_them(self, proxy):
        remotes = proxy.remotes(HERE, **CLUSTERED)
        assert names(remotes) == ["R", "R-cl", "R-n"]
        assert remotes[1].uuid == CLUSTER.encode() and remotes[1].cost == 200

    @pytest.mark.parametrize("setting", ["remote.R-n.annex-cost", "remote.R-n.foo", "remote.R-n.x.foo"])
    def test_not_if_there_is_a_setting_for_one(self, proxy, setting):
        remotes = proxy.remotes([*HERE, (setting, "x")], proxy=proxy_log(**{R: f"{TARGET}:n {OTHER}:m"}))
        assert names(remotes) == ["R", "R-m"]

    @pytest.mark.parametrize("setting", ["remote.R-nn.foo", "remote.r-n.foo", "branch.R-n.remote"])
    def test_other_settings_do_not_matter(self, proxy, setting):
        assert "R-n" in names(proxy.remotes([*HERE, (setting, "x")], proxy=BEHIND))

    def test_a_remote_by_that_name_is_not_behind_the_proxy(self, proxy):
        remotes = proxy.remotes([*HERE, *of("R-n", url="ssh://h/x", annex_uuid=TARGET)], proxy=BEHIND)
        assert {str(remote): remote.proxy for remote in remotes} == {"R": None, "R-n": None}

    def test_the_configured_uuid_counts(self, proxy):
        log = {"proxy": BEHIND}
        assert "R-n" in names(proxy.remotes(of("R", url="h:x", annex_uuid=OTHER, annex_config_uuid=R), **log))
        assert "R-n" not in names(proxy.remotes(of("R", url="h:x", annex_uuid=R, annex_config_uuid=OTHER), **log))
        assert "R-n" not in names(proxy.remotes(of("R", url="h:x"), **log))

    @pytest.mark.parametrize(
        ("url", "expected"),
        [
            ("annex+http://h/x", True),
            ("http://h/x", True),
            ("git://h/x", True),
            ("../near", False),
            ("gcrypt::ssh://h/x", False),
            ("tor-annex::x.onion:1", False),
        ],
    )
    def test_behind_which_urls(self, proxy, url, expected):
        remotes = proxy.remotes(of("R", url=url, annex_uuid=R), proxy=BEHIND)
        assert ("R-n" in names(remotes)) == expected

    def test_not_behind_special_remotes(self, proxy):
        log = {"proxy": BEHIND}
        assert names(proxy.remotes(of("R", annex_directory="/tmp/x", annex_uuid=R), **log)) == ["R"]
        assert names(proxy.remotes(of("R", url="https://h/", annex_git_lfs="true", annex_uuid=R), **log)) == ["R"]

    def test_their_order(self, proxy):
        settings = [*HERE, *of("S", url="ssh://s/x", annex_uuid=R), *of("A", url="ssh://a/x", annex_uuid=OTHER)]
        remotes = proxy.remotes(settings, proxy=proxy_log(**{R: f"{TARGET}:m {TARGET}:n", OTHER: f"{TARGET}:n"}))
        assert names(remotes) == ["S", "R", "A", "S-n", "S-m", "R-n", "R-m", "A-n"]

    def test_nothing_behind_those_behind(self, proxy):
        log = proxy_log(**{R: f"{TARGET}:n", TARGET: f"{OTHER}:m"})
        assert names(proxy.remotes(HERE, proxy=log)) == ["R", "R-n"]


def test_an_empty_repository(proxy):
    assert proxy.remotes([]) == []
