"""From a request's method, target and headers to what is asked (spec: http §3, §4.1).

The order of the checks is that of git-annex's server: route, uuid and key in the path, method, parameters, headers.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from annexshell.http import values
from annexshell.http.api import ACTIONS, GET, HIGHEST, PREFIX, PUT, Action, ApiRequest, Refusal
from annexshell.uuid import NO_UUID

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any

DATA_LENGTH = "X-git-annex-data-length"
_ROOT = PREFIX.strip("/").encode()
_VERSIONS = {b"v%d" % version: version for version in range(HIGHEST + 1)}
_DATA_PRESENT_SINCE = 4
_BYPASS_SINCE = 2


class _Route(NamedTuple):
    uuid: bytes
    version: int | None
    action: Action
    key: bytes | None  # which one action has in its path


class _Parameter(NamedTuple):
    name: str
    attribute: str  # of the ApiRequest
    read: Callable[[bytes], Any]


class _Taken(NamedTuple):
    name: bytes
    parameter: _Parameter
    is_required: bool


# In the order in which they are read, so that what is wrong with the first of them is told.
_BEFORE_BYPASS = (
    _Parameter("data-present", "data_present", values.read_boolean),
    _Parameter("key", "key", values.read_key),
    _Parameter("lockid", "lockid", values.read_uuid),
    _Parameter("clientuuid", "client", values.read_client),
)
_AFTER_BYPASS = (
    _Parameter("timestamp", "timestamp", lambda value: values.read_number(value, "timestamp")),
    _Parameter("associatedfile", "file", values.read_file),
    _Parameter("offset", "offset", lambda value: values.read_number(value, "offset")),
)


def parse(method: str, target: str | bytes, headers: Mapping[str, str]) -> ApiRequest:
    """What is asked. Raises Refusal. Whether the uuid is served, and who asks, are not looked at.

    TARGET is that of the request line, with nothing decoded.
    """
    try:
        segments, query = values.split_target(target)
    except UnicodeEncodeError:
        raise Refusal(404) from None  # it cannot have come from a socket
    route = _route(segments)
    request = _empty(route)
    _read_captures(request, route)
    if method not in route.action.methods:
        raise Refusal(405, headers={"Allow": ", ".join(route.action.methods)})
    _read_query(request, route, values.Query(query))
    if route.action is PUT:
        request.data_length = _data_length(headers)
    return request


def _route(segments: list[bytes]) -> _Route:
    match segments:
        case [b"", root, uuid, b"key", key] if root == _ROOT:
            return _Route(uuid, None, GET, key)
        case [b"", root, uuid, version, b"key", key] if root == _ROOT and version in _VERSIONS:
            return _Route(uuid, _VERSIONS[version], GET, key)
        case [b"", root, uuid, version, name] if root == _ROOT and version in _VERSIONS:
            action = ACTIONS.get(name.decode("utf-8", "replace"))
            if action not in (None, GET) and action.first_version <= _VERSIONS[version]:
                return _Route(uuid, _VERSIONS[version], action, None)
    # Also for versions that do not exist: only this makes clients try a lower one.
    raise Refusal(404)


def _empty(route: _Route) -> ApiRequest:
    request = ApiRequest()
    request.action = route.action
    request.version = route.version
    request.client = NO_UUID
    request.bypass = ()
    request.offset = 0
    request.key = request.file = request.timestamp = request.lockid = request.data_length = None
    request.data_present = False
    return request


def _read_captures(request: ApiRequest, route: _Route) -> None:
    try:
        request.uuid = values.read_uuid(route.uuid)
        if route.key is not None:
            request.key = values.read_key(route.key)
    except ValueError as reason:
        raise Refusal(400, str(reason)) from reason


def _read_query(request: ApiRequest, route: _Route, query: values.Query) -> None:
    before_bypass, after_bypass = _taken(route.version, route.action)
    for taken in before_bypass:
        _read_parameter(request, taken, query)
    try:
        bypass = tuple(map(values.read_word, query.bypass))
    except ValueError as reason:
        raise Refusal(400, f"Error parsing query parameter(s) bypass failed: {reason}") from reason
    if route.version is None or route.version >= _BYPASS_SINCE:
        request.bypass = bypass
    for taken in after_bypass:
        _read_parameter(request, taken, query)


@cache
def _taken(version: int | None, action: Action) -> tuple[list[_Taken], list[_Taken]]:
    """The parameters that a request must or may have, those before bypass apart; what else it has is ignored."""
    required = () if version is None else action.required
    names = {"clientuuid", *required}
    if version is not None and action in (GET, PUT):
        names |= {"associatedfile", "offset"}
    if version is not None and action is PUT and version >= _DATA_PRESENT_SINCE:
        names.add("data-present")

    def among(parameters: Iterable[_Parameter]) -> list[_Taken]:
        return [
            _Taken(parameter.name.encode(), parameter, parameter.name in required)
            for parameter in parameters
            if parameter.name in names
        ]

    return among(_BEFORE_BYPASS), among(_AFTER_BYPASS)


def _read_parameter(request: ApiRequest, taken: _Taken, query: values.Query) -> None:
    value = query.get(taken.name)
    parameter = taken.parameter
    if value is None:
        if taken.is_required:
            raise Refusal(400, f"Query parameter {parameter.name} is required")
        return
    try:
        setattr(request, parameter.attribute, parameter.read(value))
    except ValueError as reason:
        raise Refusal(400, f"Error parsing query parameter {parameter.name} failed: {reason}") from reason


def _data_length(headers: Mapping[str, str]) -> int:
    wanted = DATA_LENGTH.lower()
    value = next((value for name, value in headers.items() if name.lower() == wanted), None)
    if value is None:
        raise Refusal(400, f"Header {DATA_LENGTH} is required")
    try:
        return values.read_number(value.strip(" \t").encode("utf-8", "replace"), DATA_LENGTH)
    except ValueError as reason:
        raise Refusal(400, f"Error parsing header {DATA_LENGTH} failed: {reason}") from reason
