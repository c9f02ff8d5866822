"""Make a server one that knows only an old version of the protocol: ``oldpeer.py VERSION PROGRAM...``.

Version 0 is that of a program which does not know the word VERSION.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading

VERSION = b"VERSION "


def main(highest: int, argv: list[str]) -> None:
    server = subprocess.Popen(argv, stdin=subprocess.PIPE)
    assert server.stdin is not None
    threading.Thread(target=relay, args=(highest, server.stdin.fileno()), daemon=True).start()
    os._exit(server.wait() & 0xFF)  # whatever the client might still have to say


def relay(highest: int, sink: int) -> None:
    try:
        line = b""
        while not line.endswith(b"\n") and (byte := os.read(0, 1)):
            line += byte
        if line.startswith(VERSION) and highest == 0:
            os.write(1, b"ERROR unknown command\n")
        elif line.startswith(VERSION):
            os.write(sink, b"%s%d\n" % (VERSION, min(highest, int(line.removeprefix(VERSION)))))
        else:
            os.write(sink, line)
        while data := os.read(0, 1 << 16):
            while data:
                data = data[os.write(sink, data) :]
    except BrokenPipeError:
        pass  # the server has ended
    finally:
        os.close(sink)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
