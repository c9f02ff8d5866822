"""Reading the vectors: what the real programs said and did, as data."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

DIRECTORY = Path(__file__).parent / "vectors"


def load(name: str) -> Any:
    """The parsed content of tests/vectors/NAME.json."""
    return json.loads((DIRECTORY / f"{name}.json").read_text(encoding="utf-8", errors="surrogatepass"))


def to_bytes(value: Any) -> bytes:
    """A vector's byte string: text with surrogate escapes, or {"b64": ...}."""
    if isinstance(value, dict):
        return base64.b64decode(value["b64"])
    return str(value).encode("utf-8", "surrogateescape")
