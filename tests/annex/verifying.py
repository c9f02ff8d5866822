"""One question to a verifier of its own."""

from __future__ import annotations

from annexshell.annex.verify import Verifier


def _with_equivalents(equivalents):
    return Verifier(equivalents if callable(equivalents) else lambda key: equivalents)


def verify_file(key, path, equivalents=()):
    with _with_equivalents(equivalents) as verifier:
        return verifier.verify(key, path)


def is_secure(key, equivalents=()):
    with _with_equivalents(equivalents) as verifier:
        return verifier.is_secure(key)
