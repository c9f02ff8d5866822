"""What can be said in the P2P protocol, and how a line says it (spec: protocol §2).

Each message is a class whose annotations are its parameters, in the order of the line; a parameter's type decides
how it is written and read (the table ``_CODECS``). Nothing here touches a descriptor: lines come in as bytes without
their LF, and go out with it.
"""

from __future__ import annotations

from annexshell.key import BadKey, Key, number
from annexshell.uuid import UUID

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from typing_extensions import dataclass_transform

    from annexshell.repository import AssociatedFile
else:

    def dataclass_transform(**_options):  # what only the type checker needs
        return lambda cls: cls


MAX_LINE = 32768  # bytes, LF included


class Unparsable(ValueError):
    """A line that is no message: unknown word, wrong parameters, bad key or number (spec: protocol §2.9)."""


@dataclass_transform(frozen_default=True, eq_default=True)
class Message:
    """One line. Two messages are equal when they are of one class with equal parameters."""

    word: Any = None  # the command word; set for each subclass, in the table of words
    fields: Any = ()

    def __init_subclass__(cls, word: bytes) -> None:
        cls.word = word
        cls.fields = tuple((name, _CODECS[kind]) for name, kind in cls.__annotations__.items())
        _BY_WORD[word] = cls

    if not TYPE_CHECKING:

        def __init__(self, *values):
            if len(values) != len(self.fields):
                raise TypeError(f"{type(self).__name__} takes {len(self.fields)} parameters")
            for (name, _), value in zip(self.fields, values, strict=True):
                setattr(self, name, value)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.__dict__ == other.__dict__

    def __hash__(self) -> int:
        return hash((type(self), *self.__dict__.values()))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self.__dict__.values()))})"


def encode(message: Message) -> bytes:
    """The line of MESSAGE, its LF included. Empty tokens keep their separating space."""
    if not message.fields:
        return bytes(message.word) + b"\n"
    tokens = [codec.write(getattr(message, name)) for name, codec in message.fields]
    if message.fields[-1][1] is _UUIDS and not tokens[-1]:
        tokens.pop()  # a list of none is the bare word
    return b" ".join((message.word, *tokens)) + b"\n"


def parse(line: bytes) -> Message:
    """The message that a line, without its LF, is. Raises Unparsable."""
    if line.endswith(b"\r"):
        line = line[:-1]
    word, rest = _cut(line)
    cls = _BY_WORD.get(word)
    if cls is None:
        raise Unparsable("unknown command word")
    fields = cls.fields
    if not fields:
        if rest:
            raise Unparsable("unexpected parameters")
        return _built(cls, [])
    values = []
    for _, codec in fields[:-1]:
        token, rest = _cut(rest)
        values.append(codec.read(token))
    values.append(fields[-1][1].read(rest))
    return _built(cls, values)


def _built(cls: Any, values: list[Any]) -> Message:
    message: Message = cls(*values)
    return message


def _cut(data: bytes) -> tuple[bytes, bytes]:
    """What is before the first white space and what follows that one byte; missing parameters are empty ones.

    White space is ASCII's, byte by byte: clients send other spaces, raw, inside file names (spec: protocol R1).
    """
    if not data or data[:1].isspace():
        return b"", data[1:]
    token = data.split(None, 1)[0]
    return token, data[len(token) + 1 :]


# How parameters are written and read.


class _Codec:
    __slots__ = ("read", "write")

    def __init__(self, read: Callable[[bytes], Any], write: Callable[[Any], bytes]) -> None:
        self.read = read
        self.write = write


def _read_number(token: bytes) -> int:
    if not token.isdigit():  # for bytes these are the ASCII digits and nothing else
        raise Unparsable("not a number")
    return number(token)


def _read_timestamp(token: bytes) -> int:
    return -_read_number(token[1:]) if token.startswith(b"-") else _read_number(token)


def _read_key(rest: bytes) -> Key:
    try:
        return Key(rest)
    except BadKey as reason:
        raise Unparsable(f"not a key: {reason}") from reason


def _read_token(token: bytes) -> bytes:
    if not token.isalnum() and token:  # for bytes: ASCII letters and digits
        raise Unparsable("not an authentication token")
    return token


_CONTROL = dict.fromkeys((*range(0x20), *range(0x7F, 0xA0)), "_")
_BLANKS = bytes.maketrans(b" \t\n\v\f\r\xa0", b"%%%%%%%")


def decode_file(token: bytes) -> AssociatedFile:
    """A work tree file name from its token; None for an empty one. Lossy: `%` and control characters become `_`."""
    if not token:
        return None
    name = b"%".join(part.replace(b"%", b"_") for part in token.split(b"%%"))
    text = name.decode("utf-8", "surrogateescape").translate(_CONTROL)
    name = text.encode("utf-8", "surrogateescape")
    if name.startswith(b"/"):
        raise Unparsable("absolute file name")
    return name


def encode_file(file: AssociatedFile) -> bytes:
    """The token for a work tree file name, as git-annex makes it (spec: protocol §2.8)."""
    return b"" if file is None else file.replace(b"%", b"%%").translate(_BLANKS)


def _read_service(rest: bytes) -> bytes:
    if rest not in (b"git-upload-pack", b"git-receive-pack"):
        raise Unparsable("unknown git service")
    return rest


_UUIDS = _Codec(lambda rest: tuple(UUID(word) for word in rest.split()), b" ".join)

_CODECS = {
    "int": _Codec(_read_number, lambda value: b"%d" % value),
    "Timestamp": _Codec(_read_timestamp, lambda value: b"%d" % value),
    "ExitCode": _Codec(_read_timestamp, lambda value: b"%d" % value),
    "UUID": _Codec(UUID, bytes),
    "UUIDs": _UUIDS,
    "Token": _Codec(_read_token, bytes),
    "Service": _Codec(_read_service, bytes),
    "Text": _Codec(bytes, lambda text: text.replace(b"\n", b" ")),
    "AssociatedFile": _Codec(decode_file, encode_file),
    "Key": _Codec(_read_key, lambda key: key.serialized),
}
_BY_WORD: dict[bytes, Any] = {}

if TYPE_CHECKING:
    Timestamp = int
    ExitCode = int
    UUIDs = tuple[UUID, ...]
    Token = bytes
    Service = bytes
    Text = bytes


# Opening.


class Auth(Message, word=b"AUTH"):
    uuid: UUID
    token: Token


class AuthSuccess(Message, word=b"AUTH-SUCCESS"):
    uuid: UUID


class AuthFailure(Message, word=b"AUTH-FAILURE"):
    pass


class Version(Message, word=b"VERSION"):
    number: int


class Bypass(Message, word=b"BYPASS"):
    uuids: UUIDs


# Requests.


class CheckPresent(Message, word=b"CHECKPRESENT"):
    key: Key


class LockContent(Message, word=b"LOCKCONTENT"):
    key: Key


class UnlockContent(Message, word=b"UNLOCKCONTENT"):
    pass


class Remove(Message, word=b"REMOVE"):
    key: Key


class RemoveBefore(Message, word=b"REMOVE-BEFORE"):
    time: Timestamp
    key: Key


class GetTimestamp(Message, word=b"GETTIMESTAMP"):
    pass


class Get(Message, word=b"GET"):
    offset: int
    file: AssociatedFile
    key: Key


class Put(Message, word=b"PUT"):
    file: AssociatedFile
    key: Key


class Connect(Message, word=b"CONNECT"):
    service: Service


class NotifyChange(Message, word=b"NOTIFYCHANGE"):
    pass


# Replies, and what is said inside an exchange.


class TimestampIs(Message, word=b"TIMESTAMP"):
    time: Timestamp


class PutFrom(Message, word=b"PUT-FROM"):
    offset: int


class AlreadyHave(Message, word=b"ALREADY-HAVE"):
    pass


class AlreadyHavePlus(Message, word=b"ALREADY-HAVE-PLUS"):
    uuids: UUIDs


class Data(Message, word=b"DATA"):
    length: int


class DataPresent(Message, word=b"DATA-PRESENT"):
    pass


class Valid(Message, word=b"VALID"):
    pass


class Invalid(Message, word=b"INVALID"):
    pass


class Success(Message, word=b"SUCCESS"):
    pass


class Failure(Message, word=b"FAILURE"):
    pass


class SuccessPlus(Message, word=b"SUCCESS-PLUS"):
    uuids: UUIDs


class FailurePlus(Message, word=b"FAILURE-PLUS"):
    uuids: UUIDs


class ConnectDone(Message, word=b"CONNECTDONE"):
    status: ExitCode


class Changed(Message, word=b"CHANGED"):
    shas: UUIDs


class Error(Message, word=b"ERROR"):
    text: Text
