"""Text of settings into values. No environment here; every function raises `ValueError` that says what it expected."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True)
class ClientKey:
    """A named key a client may come in with; only its SHA-256 is kept, as lower-case hex."""

    name: str
    sha256: str = field(repr=False)


def seconds(text: str) -> float:
    """Seconds, more than 0, at most a day."""
    value = float(text)
    if not 0 < value <= 86_400:
        raise ValueError("seconds between 0 and 86400")
    return value


def positive(text: str) -> float:
    """A number above 0."""
    value = float(text)
    if not value > 0:
        raise ValueError("a number above 0")
    return value


def ratio(text: str) -> float:
    """A share from 0 to 1."""
    value = float(text)
    if not 0 <= value <= 1:
        raise ValueError("a number from 0 to 1")
    return value


def count(low: int, high: int) -> Callable[[str], int]:
    """A whole number within bounds."""

    def checked(text: str) -> int:
        value = int(text)
        if not low <= value <= high:
            raise ValueError(f"a whole number from {low} to {high}")
        return value

    return checked


def choice(*allowed: str) -> Callable[[str], str]:
    """One of the words allowed."""

    def checked(text: str) -> str:
        if text not in allowed:
            raise ValueError("one of " + ", ".join(filter(None, allowed)))
        return text

    return checked


def url(text: str) -> str:
    """An http or https address without query, less its last slash."""
    expected = "an http:// or https:// address without query"
    try:
        parts = urlsplit(text)
        _ = parts.port  # read to be checked
    except ValueError:
        raise ValueError(expected) from None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError(expected)
    return text.rstrip("/")


def bind(text: str) -> str:
    """HOST:PORT."""
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65_535:
        raise ValueError("HOST:PORT")
    return text


def text(text: str) -> str:
    """Anything."""
    return text


def key(text: str) -> str:
    """A secret: one line of printable ASCII without spaces."""
    if not text or not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError("one line of printable ASCII without spaces")
    return text


_CLIENT_KEY = re.compile(r"([A-Za-z0-9_.-]{1,64}):([0-9a-fA-F]{64})")


def client_keys(text: str) -> tuple[ClientKey, ...]:
    """`NAME:SHA256` entries. Raises `ValueError` that says which one is wrong, without quoting it."""
    keys: dict[str, ClientKey] = {}
    for number, entry in enumerate(filter(None, re.split(r"[,\s]+", text)), 1):
        match = _CLIENT_KEY.fullmatch(entry)
        if match is None:
            raise ValueError(f"NAME:SHA256 entries; number {number} is not (make one with: claude-proxy key NAME)")
        if match[1] in keys:
            raise ValueError(f"each name once; {match[1]!r} is there twice")
        keys[match[1]] = ClientKey(match[1], match[2].lower())
    return tuple(keys.values())
