"""Being served below a path, by which clients tell several servers behind one address from one another.

That matters where more than one stands in front of the same repository, so that its uuid does not tell which one is
meant. Clients put the path of the url that they are given in front of those of the API (spec: http §9.2, §13).
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

from aiohttp import web
from yarl import URL

from annexshell.errors import UsageError

if TYPE_CHECKING:
    from annexshell.http.connections import Handler


def parse(text: str) -> str:
    """TEXT without slashes at its end; empty if it is the root. Raises UsageError."""
    path = text.rstrip("/")
    if path and (not path.startswith("/") or "//" in path or not path.isprintable() or set(path) & set("?#%")):
        raise UsageError(f"{text} is not a path like /annex")
    return path


def before(prefix: str, answer: Handler) -> Handler:
    """Have requests whose paths are below PREFIX answered by ANSWER as if they were not, and no others."""
    if not prefix:
        return answer
    wanted = [segment.encode() for segment in prefix.split("/")]

    async def answer_below(request: web.BaseRequest) -> web.StreamResponse:
        *segments, rest = request.raw_path.split("/", len(wanted))
        if [unquote_to_bytes(segment) for segment in segments] != wanted:
            return web.Response(status=404)
        return await answer(request.clone(rel_url=URL(f"/{rest}", encoded=True)))

    return answer_below
