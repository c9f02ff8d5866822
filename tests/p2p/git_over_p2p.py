"""Run as ssh by git: carries git's conversation over a CONNECT to a p2pstdio server, both ways at once."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading

from annexshell.p2p import messages as m
from annexshell.p2p.wire import Connection
from annexshell.relay import to_callable, write_all


def main() -> int:
    service, directory = re.fullmatch(r"(git-\S+) '(.*)'", sys.argv[-1]).groups()
    server = subprocess.Popen(
        [sys.executable, "-m", "annexshell", "p2pstdio", directory, "some-client"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
    )
    connection = Connection(server.stdout.fileno(), server.stdin.fileno())
    assert isinstance(connection.receive(), m.AuthSuccess)
    connection.send(m.Connect(service.encode()))

    def upwards() -> None:
        try:
            while data := os.read(0, 65536):
                connection.send_small_content(data)
        except OSError:
            pass  # the server is done

    threading.Thread(target=upwards, daemon=True).start()
    while True:
        message = connection.receive()
        if isinstance(message, m.Data):
            to_callable(connection.payload(message.length), message.length, lambda view: write_all(1, view))
        elif isinstance(message, m.ConnectDone):
            break
        else:
            print(message, file=sys.stderr)
            return 1
    server.stdin.close()
    # os._exit: the thread may still be reading from git.
    server.wait()
    os._exit(message.status)


if __name__ == "__main__":
    sys.exit(main())
