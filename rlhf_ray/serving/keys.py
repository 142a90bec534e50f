"""API keys: random, shown once, kept as salted hashes, each with the scopes that it opens."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Collection, Iterable
from dataclasses import dataclass

SCOPES = ("chat", "feedback", "admin")
_PREFIX = "rk"


@dataclass(frozen=True, slots=True)
class Key:
    """What is kept of a key. `digest` is SHA-256 of salt and secret: 256 random bits need no slow hash."""

    id: str
    salt: str
    digest: str
    scopes: frozenset[str]
    name: str


def new_key(scopes: Collection[str], name: str) -> tuple[str, Key]:
    """The text to hand out, which cannot be had again, and what to keep of it."""
    key_id, secret, salt = secrets.token_hex(6), secrets.token_hex(32), secrets.token_hex(16)
    return f"{_PREFIX}-{key_id}-{secret}", Key(key_id, salt, _digest(salt, secret), frozenset(scopes), name)


class Keyring:
    """The keys that open a service."""

    def __init__(self, keys: Iterable[Key]) -> None:
        self._keys = {key.id: key for key in keys}
        _, self._nobody = new_key((), "")

    def find(self, text: str) -> Key | None:
        """The key that `text` spells; None if it is none. It takes as long for an unknown id as for a wrong secret."""
        prefix, _, rest = text.partition("-")
        key_id, _, secret = rest.partition("-")
        key = self._keys.get(key_id, self._nobody)
        right = hmac.compare_digest(_digest(key.salt, secret), key.digest)
        return key if right and prefix == _PREFIX and key is not self._nobody else None


def _digest(salt: str, secret: str) -> str:
    return hashlib.sha256(f"{salt}:{secret}".encode("utf-8", "surrogateescape")).hexdigest()
