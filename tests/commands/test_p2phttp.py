"""The command line of ``annexshell p2phttp``, and what it says when it cannot begin."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import ssl
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import bcrypt
import click
import pytest
import trustme
from click.testing import CliRunner

from annexshell.annex.gitrepo import GitRepository
from annexshell.cli_http import p2phttp as command
from annexshell.commands import p2phttp
from annexshell.errors import UsageError
from annexshell.http.server import Limits
from annexshell.http.users import new_token
from tests.http.doors import ABSENT, HELLO, Place, received, target, wait_until
from tests.http.program import ROOT, Program, failure
from tests.shell import git, make_repository

GIT_ANNEX_OPTIONS = shlex.split(
    """
    --port --bind --socket --certfile --privatekeyfile --chainfile --authenv --authenv-http --unauth-readonly
    --unauth-appendonly --unauth-nolocking --wideopen --proxyconnections -J --jobs --clusterjobs --cpus
    --lockedfiles --directory --force -F --fast -q --quiet -v --verbose -d --debug --no-debug --debugfilter
    --explain -N --numcopies --mincopies --rebalance --trust --semitrust --untrust -c --config --user-agent
    --trust-glacier --notify-finish --notify-start
    """
)
ALL_OPTIONS = shlex.split(
    """
    --proxyconnections=3 --jobs=cpus --clusterjobs=2 --cpus=2 --lockedfiles=7 --force --fast --quiet --verbose
    --no-debug --debugfilter=x,y --explain -N2 --mincopies=1 --rebalance --trust=a --semitrust=b --untrust=c
    -c annex.jobs=3 --config=a.b=c --user-agent=me --trust-glacier --notify-finish --notify-start
    --unauth-readonly --unauth-nolocking
    """
)
BASIC = {"Authorization": "Basic YWxpY2U6c2VjcmV0"}  # alice, secret


@pytest.fixture
def place(tmp_path: Path) -> Place:
    place = Place(tmp_path / "annex")
    place.store(HELLO, b"hello\n")
    return place


class Certificate:
    """As files, in a directory of their own."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self.root = trustme.CA()
        self._intermediate = self.root.create_child_ca()
        self.certificate, self.key, self.chain = (directory / name for name in ("cert.pem", "key.pem", "chain.pem"))
        self.renew()

    def renew(self) -> None:
        leaf = self._intermediate.issue_cert("localhost")
        own, *others = leaf.cert_chain_pems
        self.certificate.write_bytes(own.bytes())
        self.chain.write_bytes(b"".join(other.bytes() for other in others))
        self.key.write_bytes(leaf.private_key_pem.bytes())

    @property
    def options(self) -> list[str]:
        return [f"--certfile={self.certificate}", f"--privatekeyfile={self.key}"]

    def trust(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        self.root.configure_trust(context)
        return context


@pytest.fixture
def certificate(tmp_path: Path) -> Certificate:
    return Certificate(tmp_path / "tls")


class TestTheCommandLine:
    def test_knows_all_options_of_git_annex(self):
        declared = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
        for name in GIT_ANNEX_OPTIONS:
            assert name in declared, name

    def test_all_of_them_at_once(self, place):
        with Program(place.directory, *ALL_OPTIONS) as program:
            assert program.post("checkpresent", key=HELLO).json == {"present": True}
            assert program.post("lockcontent", key=HELLO).status == 403
            assert program.stop() == ""

    def test_the_manual_has_them(self):
        text = (ROOT / "man" / "annexshell-p2phttp.rst").read_text()
        described = set(re.findall(r"\*\*(--?[A-Za-z-]+)\*\*", text))
        options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
        declared = {name for option in options for name in option.opts}
        assert {name for option in options if not option.hidden for name in option.opts} <= described
        assert described - {"--help"} <= declared

    def test_help_is_in_groups(self):
        with click.Context(command, info_name="annexshell p2phttp", max_content_width=100) as context:
            text = command.get_help(context)
        groups = re.findall(r"^(\w.*):\n  -", text, re.MULTILINE)
        assert groups[:4] == ["What is served", "Where", "To whom", "How much"]
        assert groups[-1] == "Other options"
        assert "--clusterjobs" not in text
        assert "annexshell p2phttp --unauth-readonly" in text
        assert max(map(len, text.splitlines())) <= 100
        assert not re.search(r" +$", text, re.MULTILINE)

    @pytest.mark.parametrize(
        "words",
        [
            ["--port=70000"],
            ["--port=x"],
            ["--nonsense"],
            ["word"],
            ["--jobs=0"],
            ["--jobs=x"],
            ["--jobs=-1"],
            ["--workers=0"],
            ["--workers=x"],
            ["--grace=-1"],
            ["--grace=nan"],
            ["--lockedfiles=x"],
            ["--directory=/nonexistent"],
            ["--certfile=/nonexistent"],
            ["--htpasswd=/nonexistent"],
            ["--config=annex.jobs"],
            ["--config=annex=1"],
        ],
        ids=" ".join,
    )
    def test_what_makes_no_sense_ends_with_1(self, shell, words):
        result = shell("p2phttp", *words, program="annexshell")
        assert result.status == 1
        assert "Usage: annexshell p2phttp" in result.stderr
        assert words[0].partition("=")[0] in result.stderr or words == ["word"]

    def test_an_option_without_its_argument(self, shell):
        result = shell("p2phttp", "--bind", program="annexshell")
        assert (result.status, result.stderr) == (1, "Error: Option '--bind' requires an argument.\n")


# Says what the program would serve with, and where.
_TELL = """
import json, sys
from annexshell.cli_http import p2phttp as command
from annexshell.commands import p2phttp
told, listen = {}, p2phttp.listening.listen

def note_place(bind, port, path, *, workers):
    told.update(bind=bind, port=port, socket=path and path.decode(), workers=workers)
    return listen("127.0.0.1", 0)

def note_limits(listeners, repositories, gate, limits, role, tls, watch, prefix):
    told.update(limits._asdict(), repositories=len(repositories), prefix=prefix)
    told.update(log=watch.log is not None, format=watch.format, trusts=watch.trusts_proxy)

p2phttp.listening.listen = note_place
p2phttp.serve = note_limits
p2phttp._run = lambda _: print(json.dumps(told), flush=True)
command(sys.argv[1:])
"""
_DEFAULTS = {
    "port": 9417,
    "bind": None,
    "socket": None,
    "workers": 1,
    "jobs": min((os.cpu_count() or 1) + 4, 32),
    "transfers": 256,
    "lockedfiles": 100,
    "proxyconnections": 16,
    "grace": 30.0,
    "repositories": 1,
    "prefix": "",
    "log": False,
    "format": "combined",
    "trusts": False,
}


class TestWhatOptionsMean:
    @pytest.mark.parametrize(
        ("options", "meaning"),
        [
            ("", {}),
            ("--port=1234 --bind=some.host", {"port": 1234, "bind": "some.host"}),
            ("--socket=some/path", {"socket": "some/path"}),
            ("--path-prefix=/some/path/", {"prefix": "/some/path"}),
            ("--path-prefix=/", {}),
            ("-J3", {"jobs": 3}),
            ("--jobs=1", {"jobs": 1}),
            ("--jobs cpus", {"jobs": os.cpu_count()}),
            ("-c annex.jobs=7", {"jobs": 7}),
            ("-c annex.jobs=7 -J2", {"jobs": 2}),
            ("--lockedfiles=0", {"lockedfiles": 0}),
            ("--proxyconnections 5", {"proxyconnections": 5}),
            ("--clusterjobs=5 --cpus=5", {}),
            ("--transfers=9", {"transfers": 9}),
            ("--grace=1.5", {"grace": 1.5}),
            ("--directory=. --directory=..", {"repositories": 2}),
            ("--access-log=log", {"log": True}),
            ("--access-log=- --access-log-format=json", {"log": True, "format": "json"}),
            ("--trust-forwarded-for", {"trusts": True}),
        ],
    )
    def test_numbers_and_places(self, tmp_path, place, options, meaning):
        make_repository(tmp_path / "other", annex_uuid="33333333-3333-4333-8333-333333333333", annex_version="10")
        environ = {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"]}
        done = subprocess.run(
            [sys.executable, "-c", _TELL, "--wideopen", "--workers=1", *options.split()],
            cwd=place.directory,
            env=environ,
            capture_output=True,
            text=True,
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert json.loads(done.stdout) == _DEFAULTS | meaning

    @pytest.mark.parametrize(
        ("cpus", "options", "workers", "lockedfiles"),
        [
            (1, "", 1, 100),
            (None, "", 1, 100),
            (2, "", 2, 200),
            (64, "", 4, 400),
            (64, "--workers=cpus", 64, 6400),
            (64, "--workers=3 --lockedfiles=7", 3, 7),
        ],
    )
    def test_processes(self, monkeypatch, cpus, options, workers, lockedfiles):
        told = []

        def note(directories, where, access, limits, *, workers, **_):
            told.append((workers, limits.lockedfiles))

        monkeypatch.setattr(os, "cpu_count", lambda: cpus)
        monkeypatch.setattr(p2phttp, "run", note)
        assert CliRunner().invoke(command, ["--wideopen", *options.split()]).exit_code == 0
        assert told == [(workers, lockedfiles)]

    @pytest.mark.parametrize(
        ("options", "nobody", "alice"),
        [
            ("", [401, 401, 401, 401], [401, 401, 401, 401]),
            ("--unauth-readonly", [200, 403, 403, 200], [200, 403, 403, 200]),
            ("--unauth-readonly --unauth-nolocking", [200, 403, 403, 403], [200, 403, 403, 403]),
            ("--unauth-appendonly", [200, 200, 403, 200], [200, 200, 403, 200]),
            ("--wideopen", [200, 200, 200, 200], [200, 200, 200, 200]),
            ("--authenv", [401, 401, 401, 401], [401, 401, 401, 401]),
            ("--authenv-http", [401, 401, 401, 401], [200, 200, 200, 200]),
            ("--authenv-http --unauth-readonly", [200, 401, 401, 200], [200, 200, 200, 200]),
        ],
    )
    @pytest.mark.parametrize("tls", [False, True])
    def test_who_may_do_what(self, place, certificate, options, nobody, alice, tls):
        """Reading, writing, removing and locking."""
        environ = {"GIT_ANNEX_P2PHTTP_PASSWORD_alice": "secret"}
        files = [*certificate.options, f"--chainfile={certificate.chain}"] if tls else []
        if tls and options == "--authenv":
            alice = [200] * 4
        with Program(place.directory, *options.split(), *files, environ=environ) as program:
            trust = certificate.trust() if tls else None
            for headers, expected in (({}, nobody), (BASIC, alice)):
                asked = [
                    program.post(action, program.socket(trust), key=ABSENT, headers=headers).status
                    for action in ("checkpresent", "putoffset", "remove", "lockcontent")
                ]
                assert asked == expected


class TestCannotBegin:
    def test_no_repository(self, tmp_path):
        wanted = "Error: Use the --directory option to specify which git-annex repositories to serve.\n"
        assert failure(tmp_path, "--wideopen") == wanted
        assert failure(make_repository(tmp_path / "git"), "--wideopen") == wanted

    def test_jobs(self, place):
        git(place.directory, "config", "annex.jobs", "many")
        wanted = "Error: Use -Jn or set annex.jobs to configure the number of worker threads.\n"
        assert failure(place.directory, "--wideopen") == wanted

    def test_a_port_that_is_taken(self, place):
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = other.getsockname()[1]
            wanted = f"Error: cannot listen on 127.0.0.1:{port}: Address already in use\n"
            assert failure(place.directory, "--wideopen", f"--port={port}") == wanted
            assert failure(place.directory, "--wideopen", f"--port={port}", "--workers=2") == wanted

    def test_a_host_that_there_is_not(self, place):
        assert "Error: cannot listen on host.invalid, port 0: " in failure(
            place.directory, "--wideopen", "--bind=host.invalid"
        )

    def test_a_socket_that_is_in_use(self, place):
        with Program(place.directory, "--wideopen") as reference:
            path = f"{reference.scratch.name}/http.sock"
            with Program(place.directory, "--wideopen", f"--socket={path}") as program:
                assert failure(place.directory, "--wideopen", f"--socket={path}") == (
                    f"Error: another server is listening on {path}\n"
                )
                assert program.stop() == ""

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--certfile={0}"], "You must use both --certfile and --privatekeyfile options to enable HTTPS."),
            (["--privatekeyfile={1}"], "You must use both --certfile and --privatekeyfile options to enable HTTPS."),
            (["--chainfile={2}"], "You must use both --certfile and --privatekeyfile options to enable HTTPS."),
            (["--certfile={0}", "--privatekeyfile={0}"], "cannot use {0} with {0}: "),
            (["--certfile={1}", "--privatekeyfile={1}"], "cannot use {1} with {1}: "),
            (
                ["--certfile={0}", "--privatekeyfile={3}"],
                "cannot use {0} with {3}: the key is not that of the certificate",
            ),
            (
                ["--certfile={0}", "--privatekeyfile={4}"],
                "the private key is encrypted; give --privatekeyfile one that is not",
            ),
        ],
    )
    def test_tls(self, tmp_path, place, certificate, options, message):
        other = Certificate(tmp_path / "other").key
        encrypted = tmp_path / "encrypted.pem"
        encrypted.write_bytes(_encrypt(certificate.key.read_bytes()))
        files = [certificate.certificate, certificate.key, certificate.chain, other, encrypted]
        said = failure(place.directory, "--wideopen", *(option.format(*files) for option in options))
        assert said.startswith(f"Error: {message.format(*files)}")
        assert said.count("\n") == 1

    def test_users(self, tmp_path, place):
        (tmp_path / "users").write_text("alice:secret\n")
        (tmp_path / "nobody").write_text("")
        (tmp_path / "permissions").write_text("alice:root\n")
        users = f"--htpasswd={tmp_path / 'users'}"
        tokens = f"--tokens={tmp_path / 'nobody'}"
        permissions = f"--permissions={tmp_path / 'permissions'}"

        def complaint(*options: str, **environ: str) -> str:
            said = failure(place.directory, *options, **environ)
            assert said.count("\n") == 1
            return said

        assert "users, line 1: only bcrypt hashes" in complaint("--authenv-http", users)
        assert "--htpasswd and --tokens: nobody can log in" in complaint(users, tokens)
        assert "--tokens: nobody can log in" in complaint("--authenv", tokens)
        assert "--permissions is about users, and there are none" in complaint("--wideopen", permissions)
        assert "permissions, line 1: the role is none of" in complaint("--authenv-http", permissions)
        variable = "GIT_ANNEX_P2PHTTP_PERMISSIONS_alice"
        assert f"{variable} is 'ReadOnly'" in complaint("--authenv-http", **{variable: "ReadOnly"})


def _encrypt(key: bytes) -> bytes:
    from cryptography.hazmat.primitives import serialization

    loaded = serialization.load_pem_private_key(key, None)
    return loaded.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"x")
    )


class TestWarnings:
    @pytest.mark.parametrize(
        ("options", "warning"),
        [
            ([], "nobody may do anything; see"),
            (["--unauth-nolocking"], "nobody may do anything; see"),
            (["--authenv"], "--authenv is for HTTPS only"),
            (["--authenv-http"], ""),
            (["--unauth-readonly"], ""),
        ],
    )
    def test_about_access(self, place, options, warning):
        """git-annex accepts these, so a service that is switched over must go on to begin."""
        with Program(place.directory, *options) as program:
            said = program.stop()
        assert said.count("\n") == bool(warning)
        assert warning in said


class TestJobs:
    """How many there are is not to be seen from outside."""

    def configured(self, place: Place | None, **config: str) -> int:
        class Some:
            def repos(self) -> list[GitRepository]:
                return [GitRepository(os.fsencode(place.directory))] if place else []

        settings = [(name.replace("_", "."), value) for name, value in config.items()]
        return p2phttp._configured_jobs(Some(), settings, single=place is not None)  # type: ignore[arg-type]

    def test_by_default(self, place):
        assert self.configured(place) == self.configured(None) == min((os.cpu_count() or 1) + 4, 32)

    def test_of_the_repository(self, place):
        for value, jobs in {"1": 1, "7": 7, "cpus": os.cpu_count()}.items():
            git(place.directory, "config", "annex.jobs", value)
            assert self.configured(place) == jobs

    def test_nonsense(self, place):
        for value in ("0", "-1", "x", ""):
            git(place.directory, "config", "annex.jobs", value)
            with pytest.raises(UsageError, match="Use -Jn or set"):
                self.configured(place)

    def test_of_the_command_line(self, place, monkeypatch):
        assert self.configured(None, annex_jobs="3") == 3
        git(place.directory, "config", "annex.jobs", "5")
        for name in ("GIT_CONFIG_COUNT", "GIT_CONFIG_KEY_0", "GIT_CONFIG_VALUE_0"):
            monkeypatch.setenv(name, "")
        p2phttp._override([("annex.jobs", "6")])
        assert self.configured(place) == 6

    def test_are_divided(self):
        limits = Limits(jobs=16, transfers=256, lockedfiles=100, proxyconnections=16)
        assert limits.share(1) == limits
        assert limits.share(4) == Limits(4, 64, 25, 4)
        assert Limits(jobs=1, transfers=1, lockedfiles=0, proxyconnections=0).share(3) == Limits(2, 1, 0, 0)


class TestOverriding:
    def test_settings(self, monkeypatch):
        monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
        monkeypatch.setenv("GIT_CONFIG_KEY_0", "a.a")
        monkeypatch.setenv("GIT_CONFIG_VALUE_0", "0")
        for number in (1, 2):
            monkeypatch.setenv(f"GIT_CONFIG_KEY_{number}", "")
            monkeypatch.setenv(f"GIT_CONFIG_VALUE_{number}", "")
        p2phttp._override([("b.b", "1=1"), ("c.c", "")])
        for name, value in {"a.a": "0", "b.b": "1=1", "c.c": ""}.items():
            assert git(Path("/"), "config", "--get", name) == value


class TestTls:
    def test_a_chain(self, tmp_path, place, certificate):
        with (
            Program(place.directory, "--wideopen", *certificate.options) as program,
            pytest.raises(ssl.SSLCertVerificationError),
        ):
            program.socket(certificate.trust())
        options = [*certificate.options, f"--chainfile={certificate.chain}"]
        (tmp_path / "tmp").mkdir()
        environ = {"TMPDIR": str(tmp_path / "tmp")}
        with Program(place.directory, "--wideopen", *options, environ=environ) as program:
            answer = program.post("checkpresent", program.socket(certificate.trust()), key=HELLO)
            assert answer.json == {"present": True}
            assert list((tmp_path / "tmp").iterdir()) == []

    def test_versions(self, place, certificate):
        with Program(
            place.directory, "--wideopen", *certificate.options, f"--chainfile={certificate.chain}"
        ) as program:
            for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
                trust = certificate.trust()
                trust.minimum_version = trust.maximum_version = version
                trust.set_alpn_protocols(["h2", "http/1.1"])
                with program.socket(trust) as connected:
                    assert connected.version() == version.name.replace("_", ".")
                    assert connected.selected_alpn_protocol() == "http/1.1"
            old = certificate.trust()
            with pytest.warns(DeprecationWarning):
                old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
            old.set_ciphers("ALL:@SECLEVEL=0")
            with pytest.raises((ssl.SSLError, ConnectionError)):
                program.socket(old)
            assert program.stop() == ""

    def test_http_is_refused_quickly(self, place, certificate):
        with Program(place.directory, "--wideopen", *certificate.options) as program:
            began = time.monotonic()
            with program.socket() as plain:
                plain.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
                try:
                    assert b"200" not in received(plain)
                except ConnectionResetError:
                    pass
            assert time.monotonic() - began < 8
            assert program.stop() == ""

    @pytest.mark.parametrize("workers", [1, 2])
    def test_a_new_certificate(self, place, certificate, workers):
        def serial() -> int:
            with program.socket(certificate.trust()) as connected:
                return int(connected.getpeercert()["serialNumber"], 16)  # type: ignore[index, arg-type]

        options = [*certificate.options, f"--chainfile={certificate.chain}", f"--workers={workers}"]
        with Program(place.directory, "--wideopen", *options) as program:
            before = serial()
            certificate.certificate.write_text("nonsense")
            program.tell(signal.SIGHUP)
            time.sleep(0.3)
            assert {serial() for _ in range(8)} == {before}
            certificate.renew()
            program.tell(signal.SIGHUP)
            wait_until(lambda: before not in {serial() for _ in range(8)})
            said = program.stop()
        assert said.count("going on with the certificate of before") == workers


class TestLoggingIn:
    def test_without_tls_nobody_is_asked_to(self, place):
        """SIGHUP does no harm either."""
        with Program(place.directory, "--unauth-readonly") as program:
            program.tell(signal.SIGHUP)
            time.sleep(0.2)
            assert program.post("checkpresent", key=HELLO).json == {"present": True}
            assert program.post("remove", key=HELLO).status == 403
            assert program.stop() == ""

    @pytest.mark.parametrize("workers", [1, 2])
    def test_files(self, tmp_path, place, workers):
        token, line = new_token("bob")
        (tmp_path / "users").write_text(f"alice:{bcrypt.hashpw(b'secret', bcrypt.gensalt(4)).decode()}\n")
        (tmp_path / "tokens").write_text(f"{line}\n")
        (tmp_path / "permissions").write_text("alice:readonly\nbob:full\n")
        options = [f"--{name}={tmp_path / file}" for name, file in _FILES.items()]
        with Program(place.directory, "--authenv-http", f"--workers={workers}", *options) as program:
            bearer = {"Authorization": f"Bearer {token}"}
            for _ in range(2 * workers):
                assert program.post("checkpresent", key=HELLO).status == 401
                assert program.post("checkpresent", key=HELLO, headers=BASIC).json == {"present": True}
                assert program.post("remove", key=HELLO, headers=BASIC).status == 403
            assert program.post("remove", key=HELLO, headers=bearer).json["removed"] is True


_FILES = {"htpasswd": "users", "tokens": "tokens", "permissions": "permissions"}


class TestDirectories:
    def test_all_below(self, tmp_path, place):
        other = "33333333-3333-4333-8333-333333333333"
        with Program(Path("/"), "--wideopen", f"--directory={tmp_path}") as program:
            assert "Serving one repository on 127.0.0.1:" in program.said[0]
            assert program.post("checkpresent", key=HELLO).json == {"present": True}
            assert program.post("checkpresent", uuid=other, key=HELLO).status == 404
            make_repository(tmp_path / "later" / "on", annex_uuid=other, annex_version="10")
            wait_until(lambda: program.post("checkpresent", uuid=other, key=HELLO).status == 200)
            assert program.stop() == ""

    def test_relative_ones(self, tmp_path, place):
        with Program(tmp_path, "--wideopen", "--directory=annex", "--directory=.") as program:
            assert program.post("checkpresent", key=HELLO).json == {"present": True}
            assert program.stop() == ""


class TestTheProcess:
    def test_may_open_many_files(self, place):
        with Program(place.directory, "--wideopen") as program:
            (line,) = [
                line
                for line in Path(f"/proc/{program.process.pid}/limits").read_text().splitlines()
                if line.startswith("Max open files")
            ]
            soft, hard = map(int, line.split()[3:5])
            assert soft == min(hard, 1 << 16)

    def test_git_looks_nowhere_else(self, tmp_path, place):
        """A variable of git's that says which repository is meant."""
        elsewhere = make_repository(tmp_path / "elsewhere")
        with Program(place.directory, "--wideopen", environ={"GIT_DIR": f"{elsewhere}/.git"}) as program:
            with closing(program.connect()) as client:
                assert client.ask("POST", target("remove", 4, key=HELLO)).json["removed"] is True
            assert program.stop() == ""
        assert "git-annex" not in git(elsewhere, "for-each-ref")
        assert "git-annex" in git(place.directory, "for-each-ref")
