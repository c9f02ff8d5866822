"""What a test may not leave behind in its process."""

from __future__ import annotations

import os
from pathlib import Path


def left_open() -> set[str]:
    """The open descriptors and the children, among these the ones that nobody waited for.

    Those of earlier tests may go at any time, when their objects do; a test must only not have added any.
    """
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return {f"descriptor {fd}" for fd in os.listdir("/proc/self/fd")} | {f"child {pid}" for pid in children}
