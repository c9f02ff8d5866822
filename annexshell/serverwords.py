"""What the server itself says on the command line, in front of what the client sent.

In ``annexshell --policy FILE --user NAME --log WHERE -c "$SSH_ORIGINAL_COMMAND"`` everything before ``-c`` is said by
whoever wrote the forced command. Nothing that a client sends may become part of that, so there is one form for it,
whose client's part is a single word. Only used, and imported, when the command line begins with one of the options.
"""

from __future__ import annotations

from annexshell.errors import Refused, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

OPTIONS = (b"--policy", b"--user", b"--log")


class Service:
    """What the server says about this connection; None for what it does not say."""

    __slots__ = ("log", "policy", "user")

    policy: bytes | None  # the file that says who may do what
    user: bytes | None  # who the client is
    log: bytes | None  # where to record what is asked and done: a file or "syslog"

    def __init__(self, policy: bytes | None = None, user: bytes | None = None, log: bytes | None = None) -> None:
        self.policy = policy
        self.user = user
        self.log = log


def take(words: Sequence[bytes], environ: Mapping[bytes, bytes]) -> tuple[Service, list[bytes]]:
    """The server's own words from the front of WORDS, and those of the client. Raises UsageError, Refused."""
    values: dict[bytes, bytes] = {}
    rest = list(words)
    while rest and rest[0].partition(b"=")[0] in OPTIONS:
        name, equals, value = rest.pop(0).partition(b"=")
        if not equals and rest:
            value = rest.pop(0)
        # An option in place of a value is one that was forgotten, or a variable that is empty and not quoted.
        if not value or value.startswith(b"-"):
            raise UsageError(f"The option `{name.decode()}` expects an argument.")
        if name in values:
            raise Refused(f"The option `{name.decode()}` is given twice.")
        values[name] = value
    service = Service(values.get(b"--policy"), values.get(b"--user"), values.get(b"--log"))
    if service.policy is not None and service.user is None:
        raise UsageError("--policy needs --user, which says who the client is")
    if service.user is not None:
        check_user(service.user)
        if service.policy is None and service.log is None:
            raise UsageError("--user is of no use without --policy or --log")
    return service, _from_client(rest, environ.get(b"SSH_ORIGINAL_COMMAND", b""))


def _from_client(rest: list[bytes], original: bytes) -> list[bytes]:
    """The client's words, in one of the forms that cannot contain any of the server's.

    In a forced command that does not quote ``$SSH_ORIGINAL_COMMAND``, the client's first words would continue the
    server's: then what is behind ``-c`` is not all that the client sent, or that begins with an option.
    """
    if original.lstrip().startswith(b"-"):
        raise Refused("A command cannot begin with an option.")
    if not rest:
        return [b"-c", original] if original else []
    if len(rest) != 2 or rest[0] != b"-c" or (original and rest[1] != original):
        raise Refused(
            'The forced command has to end either in -c "$SSH_ORIGINAL_COMMAND", in these quotes, or in the server\'s'
            " own options: nothing else can be told from what a client might have sent."
        )
    return rest


def check_user(name: bytes) -> None:
    """User names are letters, digits and ``._+@-``, the first one a letter or digit. Raises UsageError."""
    try:
        text = name.decode()
    except UnicodeDecodeError:
        text = ""
    if not text[:1].isalnum() or not all(letter.isalnum() or letter in "._+@-" for letter in text):
        raise UsageError("A user's name is made of letters, digits and ._+@- and begins with a letter or digit.")
