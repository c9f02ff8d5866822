"""What a test may not leave behind in its process."""

from __future__ import annotations

import gc
import os
from pathlib import Path


def descriptors() -> set[str]:
    """The descriptors that are open."""
    return set(os.listdir("/proc/self/fd"))


def descriptors_before() -> set[str]:
    """The same, to compare with later: what earlier tests left to Python to close does not go meanwhile."""
    gc.collect()
    return descriptors()


def left_open() -> set[str]:
    """The open descriptors and the children, among these the ones that nobody waited for.

    Those of earlier tests may go at any time, when their objects do; a test must only not have added any.
    """
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return {f"descriptor {fd}" for fd in os.listdir("/proc/self/fd")} | {f"child {pid}" for pid in children}
