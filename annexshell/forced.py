"""What sshd hands over, or a person types, as a request: the command line of git-annex-shell (spec: shell §2).

Everything is bytes: a command string has no locale, and directories need not be UTF-8.
"""

from __future__ import annotations

from annexshell.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

# What a command needs of the access mode (spec: shell §4.1).
READS, ADDS, REMOVES = range(3)
# What its words after the directory have to be (spec: shell §2.6).
NONE, CLIENT_UUID, ANY = range(3)


class Builtin:
    """What has to be known of a command before it runs."""

    __slots__ = ("failure", "flags", "in_annex", "needs", "parameters", "proxied")

    def __init__(
        self,
        *,
        needs: int,
        parameters: int,
        in_annex: bool = True,
        proxied: bool = False,
        flags: tuple[bytes, ...] = (),
        failure: int = 1,
    ) -> None:
        self.needs = needs
        self.parameters = parameters
        self.in_annex = in_annex  # refuses to run in a repository that git-annex does not use (spec: shell §6.2)
        self.proxied = proxied  # also for the uuid of a remote that is reached through this repository
        self.flags = flags  # options that only this command takes
        self.failure = failure  # the least exit status that no client takes for an answer


BUILTINS = {
    b"configlist": Builtin(needs=READS, parameters=NONE, in_annex=False),
    b"p2pstdio": Builtin(needs=READS, parameters=CLIENT_UUID, proxied=True),
    b"notifychanges": Builtin(needs=READS, parameters=NONE, proxied=True),
    # 1 is for content that is absent, which clients write down (spec: shell §7.4).
    b"inannex": Builtin(needs=READS, parameters=ANY, failure=100),
    b"sendkey": Builtin(needs=READS, parameters=ANY),
    b"recvkey": Builtin(needs=ADDS, parameters=ANY),
    b"dropkey": Builtin(
        needs=REMOVES, parameters=ANY, flags=(b"--json", b"-j", b"--json-error-messages", b"--batch", b"-z")
    ),
    b"gcryptsetup": Builtin(needs=REMOVES, parameters=ANY, in_annex=False),
}

# Option -> (what it sets, to what); one that takes a value has no value here.
_FLAGS: dict[bytes, tuple[bytes, bool]] = {
    b"--force": (b"force", True),
    b"--fast": (b"fast", True),
    b"-F": (b"fast", True),
    b"--verbose": (b"verbose", True),
    b"-v": (b"verbose", True),
    b"--quiet": (b"quiet", True),
    b"-q": (b"quiet", True),
    b"--debug": (b"debug", True),
    b"-d": (b"debug", True),
    b"--no-debug": (b"debug", False),
    b"--explain": (b"explain", True),
    b"--help": (b"help", True),
    b"-h": (b"help", True),
    b"--json": (b"json", True),
    b"-j": (b"json", True),
    b"--json-error-messages": (b"json-error-messages", True),
    b"--batch": (b"batch", True),
    b"-z": (b"null", True),
}
_WITH_VALUE = (b"--uuid", b"--debugfilter")
_COMMON = frozenset(_FLAGS).difference(*(builtin.flags for builtin in BUILTINS.values()))
_OWN_NAMES = (b"git-annex-shell", b"annexshell")


class PassThrough:
    """A command that is git-shell's business."""

    __slots__ = ("words",)

    def __init__(self, words: Sequence[bytes]) -> None:
        self.words = list(words)


class Request:
    """A builtin command with its directory; the words behind it are looked at by :meth:`options`."""

    __slots__ = ("builtin", "directory", "fields", "name", "rsync_words", "words")

    def __init__(self, name: bytes, directory: bytes, words: Sequence[bytes]) -> None:
        self.name = name
        self.builtin = BUILTINS[name]
        self.directory = directory
        self.words, rest = _cut(words)
        fields, self.rsync_words = _cut(rest)
        self.fields = parse_fields(fields)

    def options(self) -> Options:
        """Raises UsageError."""
        return Options(self.builtin, self.words)

    def client(self, options: Options) -> bytes | None:
        """The uuid that the client says it has."""
        if self.builtin.parameters == CLIENT_UUID:
            return options.parameters[0] if options.parameters else None
        return self.fields.get(b"remoteuuid")


class Options:
    """The options and parameters of a builtin command (spec: shell §2.4). Raises UsageError."""

    __slots__ = ("debug", "flags", "help", "parameters", "uuids")

    def __init__(self, builtin: Builtin, words: Sequence[bytes]) -> None:
        self.uuids: list[bytes] = []  # each --uuid, to be checked one by one
        self.parameters: list[bytes] = []
        self.flags: dict[bytes, bool] = {}
        self.help = False
        known = _COMMON.union(builtin.flags)
        rest = iter(words)
        for word in rest:
            if word[:1] != b"-" or word == b"-":
                self.parameters.append(word)
                continue
            name, equals, value = word.partition(b"=")
            if name in _WITH_VALUE:
                if not equals:
                    following = next(rest, None)
                    if following is None:
                        raise UsageError(f"The option `{_text(name)}` expects an argument.")
                    value = following
                if name == b"--uuid":
                    self.uuids.append(value)
                continue
            letters = [word] if word[:2] == b"--" else [b"-%c" % letter for letter in word[1:]]
            for position, option in enumerate(letters):
                if option not in known:
                    wrong = word if len(letters) == 1 else b"-" + word[1 + position :]
                    raise UsageError(f"Invalid option `{_text(wrong)}'")
                flag, setting = _FLAGS[option]
                self.flags.pop(flag, None)  # so that they are in the order in which each was last given
                self.flags[flag] = setting
            if self.flags.get(b"help"):
                # Whatever comes behind does not count any more, not even as an error.
                self.help = True
                break
        self.debug = self.flags.get(b"debug")


def parse(words: Sequence[bytes]) -> Request | PassThrough:
    """What the words after the program's name ask for. Raises UsageError."""
    while True:
        start = 0
        while start < len(words) and words[start] == b"-c":
            start += 1
        words = words[start:]
        if not words:
            raise UsageError("bad parameters")
        if words[0] in BUILTINS:
            if len(words) == 1:
                raise UsageError(f"bad parameters: {_text(words[0])} needs a directory")
            return Request(words[0], words[1], words[2:])
        if len(words) != 1 or not names_us(words[0]):
            return PassThrough(words)
        # The string is shorter each time, so that this ends.
        words = unquote(words[0])[1:]


def names_us(command: bytes) -> bool:
    """Whether a command string begins with git-annex-shell's name or ours, or a path to either.

    git-annex-shell itself knows the bare name only; clients whose remote.<name>.annex-shell is set to a path rely
    on no forced command being in the way (spec: shell §10.1).
    """
    name, blank, _ = command.partition(b" ")
    if not blank or b"'" in name or b'"' in name:
        return False
    return name in _OWN_NAMES or name.rpartition(b"/")[2] in _OWN_NAMES


def unquote(command: bytes) -> list[bytes]:
    """Split a command string into words the way git-annex does, which is not the shell's (spec: shell §2.2)."""
    words = []
    position, length = 0, len(command)
    while position < length:
        word = b""
        while position < length and command[position] != 0x20:
            quote = command[position : position + 1]
            if quote in (b"'", b'"'):
                end = command.find(quote, position + 1)
                if end < 0:
                    end = length
                word += command[position + 1 : end]
                position = end + 1
            else:
                word += quote
                position += 1
        words.append(word)
        position += 1
    return words


def parse_fields(words: Sequence[bytes]) -> dict[bytes, bytes]:
    """``name=value`` words; unknown names and wrong values are dropped, as they may come from a newer client."""
    fields = {}
    for word in words:
        name, equals, value = word.partition(b"=")
        check = _FIELDS.get(name)
        if equals and check is not None and check(value):
            fields[name] = value
    return fields


def _looks_like_uuid(value: bytes) -> bool:
    try:
        return all(letter.isalnum() or letter == "-" for letter in value.decode())
    except UnicodeDecodeError:
        return False


def _is_one(value: bytes) -> bool:
    return value == b"1"


_FIELDS = {b"autoinit": _is_one, b"remoteuuid": _looks_like_uuid}


def _cut(words: Sequence[bytes]) -> tuple[list[bytes], list[bytes]]:
    """What comes before and after the first ``--``."""
    words = list(words)
    if b"--" not in words:
        return words, []
    position = words.index(b"--")
    return words[:position], words[position + 1 :]


def _text(word: bytes) -> str:
    return word.decode("utf-8", "backslashreplace")
