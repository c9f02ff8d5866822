"""HTTP servers for real git-annex clients: annexshell's, and what people put in front of it and beside it."""

from __future__ import annotations

import functools
import http.client
import http.server
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.interop.harness import SOURCE_ROOT, environment, wait_until
from tests.interop.sshservers import free_port


class Door:
    """``annexshell p2phttp`` as a process, in DIRECTORY."""

    def __init__(
        self,
        home: Path,
        directory: Path,
        *options: str,
        certificate: Path | None = None,
        socket_path: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.home = home
        self.directory = directory
        self.port = free_port()
        self.socket_path = socket_path
        where = [f"--socket={socket_path}"] if socket_path else ["--bind=127.0.0.1", f"--port={self.port}"]
        tls = [f"--certfile={certificate}", f"--privatekeyfile={certificate}"] if certificate else []
        self.scheme = "annex+https" if certificate else "annex+http"
        self._argv = [
            sys.executable,
            "-m",
            "annexshell",
            "p2phttp",
            "-J2",
            *where,
            *tls,
            *(options or ("--wideopen",)),
        ]
        self._env = environment(home, PYTHONPATH=str(SOURCE_ROOT)) | dict(env or {})
        self.start()

    @property
    def url(self) -> str:
        return f"{self.scheme}://localhost:{self.port}/git-annex/"

    def start(self) -> None:
        self.process = subprocess.Popen(
            self._argv, env=self._env, cwd=self.directory, stdin=subprocess.DEVNULL, start_new_session=True
        )
        wait_until(self._is_listening)

    def _is_listening(self) -> bool:
        assert self.process.poll() is None, "the server has ended"
        if self.socket_path:
            with socket.socket(socket.AF_UNIX) as probe:
                return probe.connect_ex(str(self.socket_path)) == 0
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def stop(self) -> None:
        """In good order, so that all is committed."""
        self.process.terminate()
        assert self.process.wait(60) == 0

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


class Front:
    """A proxy that remembers what was asked, and says itself that there is nothing where REFUSES says so."""

    def __init__(self, door: Door, refuses: Callable[[str], bool] = lambda path: False) -> None:
        self.asked: list[tuple[str, str, int]] = []  # method, path and query, status

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(handler) -> None:
                self._pass_on(handler, door, refuses)

            do_POST = do_GET

            def log_message(handler, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"annex+http://localhost:{self._server.server_port}/git-annex/"

    def asked_for(self, action: str) -> list[str]:
        """The queries of all requests for it that came through."""
        return [path.partition("?")[2] for _, path, status in self.asked if f"/{action}" in path and status == 200]

    def _pass_on(
        self, handler: http.server.BaseHTTPRequestHandler, door: Door, refuses: Callable[[str], bool]
    ) -> None:
        headers: list[tuple[str, str]] = []
        if refuses(handler.path):
            # Without reading the body, which may be one that lasts as long as a lock.
            status, data = 404, b""
            handler.close_connection = True
        else:
            body = _body(handler)
            connection = http.client.HTTPConnection("127.0.0.1", door.port, timeout=60)
            passed = {name: value for name, value in handler.headers.items() if name.lower() != "transfer-encoding"}
            connection.request(handler.command, handler.path, body, passed | {"Content-Length": str(len(body))})
            response = connection.getresponse()
            status, headers, data = response.status, response.getheaders(), response.read()
            connection.close()
        self.asked.append((handler.command, handler.path, status))
        handler.send_response(status)
        for name, value in headers:
            if name.lower() not in ("content-length", "connection", "date", "server"):
                handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class Wire:
    """What a client says goes on to the door byte by byte as it comes, after WHEN was called if WORD is in it."""

    def __init__(self, door: Door, word: bytes, when: Callable[[], None]) -> None:
        self._door = door
        self._word = word
        self._when = when
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"annex+http://localhost:{self._listener.getsockname()[1]}/git-annex/"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        try:
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._door.port))
                for source, sink in ((client, server), (server, client)):
                    threading.Thread(target=self._pass_on, args=(source, sink, source is client), daemon=True).start()
        except OSError:
            pass  # that is all

    def _pass_on(self, source: socket.socket, sink: socket.socket, is_asking: bool) -> None:
        try:
            while data := source.recv(1 << 16):
                if is_asking and self._word in data:
                    self._when()
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            for one in (source, sink):
                one.close()

    def stop(self) -> None:
        self._listener.close()


def _body(handler: http.server.BaseHTTPRequestHandler) -> bytes:
    if handler.headers.get("Transfer-Encoding") != "chunked":
        return handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
    pieces = []
    while size := int(handler.rfile.readline() or b"0", 16):  # a client may end without a proper end
        pieces.append(handler.rfile.read(size))
        handler.rfile.readline()
    handler.rfile.readline()
    return b"".join(pieces)


class Static:
    """The files below a directory, as the dumbest server has them."""

    def __init__(self, directory: Path) -> None:
        class Handler(http.server.SimpleHTTPRequestHandler):
            def log_message(handler, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), functools.partial(Handler, directory=str(directory))
        )
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://localhost:{self._server.server_port}/"

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


# What people have in a file of /etc/nginx/sites-enabled, and the rest that Debian has around it.
_AROUND = """
daemon off;
{user}
worker_processes 1;
pid {directory}/pid;
error_log {directory}/error.log;
events {{ }}
http {{
    access_log off;
    {temporary}
{site}
}}
"""
_TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


def documented_site() -> str:
    """The example for nginx in the man page."""
    page = Path(__file__).parents[2].joinpath("man", "annexshell-p2phttp.rst").read_text()
    (example,) = re.findall(r"For nginx::\n\n((?:    .*\n|\n)+)", page)
    return example


class Nginx:
    """In front of a server's unix socket, as documented; but for places, and for TLS if there is no CERTIFICATE."""

    def __init__(self, program: str, directory: Path, door: Door, certificate: Path | None = None) -> None:
        directory.mkdir()
        self.port = free_port()
        self.temporary = [directory / name for name in _TEMPORARY]
        self.scheme = "annex+https" if certificate else "annex+http"
        replacements = {
            "/run/annexshell/p2phttp.sock": str(door.socket_path),
            "listen 443 ssl;": f"listen 127.0.0.1:{self.port}{' ssl' if certificate else ''};",
            "server_name example.com;": "server_name localhost;",
            "ssl_certificate /etc/ssl/example.com.pem;": f"ssl_certificate {certificate};" if certificate else "",
            "ssl_certificate_key /etc/ssl/private/example.com.key;": (
                f"ssl_certificate_key {certificate};" if certificate else ""
            ),
        }
        site = documented_site()
        for documented, here in replacements.items():
            assert site.count(documented) == 1, documented
            site = site.replace(documented, here)
        (directory / "nginx.conf").write_text(
            _AROUND.format(
                directory=directory,
                site=site,
                temporary=" ".join(f"{name}_temp_path {directory}/{name};" for name in _TEMPORARY),
                user="" if os.geteuid() else "user root;",  # nobody else may use the socket
            )
        )
        self.process = subprocess.Popen(
            [program, "-p", str(directory), "-c", "nginx.conf", "-e", "error.log"], start_new_session=True
        )
        wait_until(self._is_listening)

    @property
    def url(self) -> str:
        return f"{self.scheme}://localhost:{self.port}/git-annex/"

    def kept(self) -> list[Path]:
        """Files with parts of requests or answers, for which there should be no need."""
        return [path for directory in self.temporary for path in directory.rglob("*") if path.is_file()]

    def _is_listening(self) -> bool:
        assert self.process.poll() is None
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()


# git-annex asks nobody but the system whom to trust, so it is given a system with another file there.
_TRUSTED = "/etc/ssl/certs/ca-certificates.crt"
_UNSHARED = ["unshare", "--map-root-user", "--mount"]


def can_trust() -> bool:
    mount = ["sh", "-c", f"mount --bind /dev/null {_TRUSTED}"]
    return (
        shutil.which("unshare") is not None
        and subprocess.run([*_UNSHARED, *mount], stderr=subprocess.DEVNULL).returncode == 0
    )


def trusting(directory: Path, certificate: Path, path: str) -> str:
    """A PATH that has a git-annex which trusts CERTIFICATE, and nobody else."""
    directory.mkdir()
    program = directory / "git-annex"
    script = f'mount --bind "{certificate}" {_TRUSTED} && exec "{shutil.which("git-annex", path=path)}" "$@"'
    program.write_text(f'#!/bin/sh\nexec {shlex.join(_UNSHARED)} sh -c {shlex.quote(script)} git-annex "$@"\n')
    program.chmod(0o755)
    return f"{directory}{os.pathsep}{path}"
