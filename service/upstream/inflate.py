"""Inflates compressed answers for reading them, within a bound."""

from __future__ import annotations

import zlib
from collections.abc import Callable

MOST = 32 * 1024 * 1024
"""Bytes that are inflated of one body: what a bomb holds beyond stays packed, and unread."""


def inflater(encoding: str) -> Callable[[bytes], bytes] | None:
    """Inflates one gzip body piece by piece; nothing more comes after `MOST` bytes, or after what is no gzip."""
    if encoding != "gzip":
        return None
    inflate, left = zlib.decompressobj(wbits=31), MOST

    def feed(chunk: bytes) -> bytes:
        nonlocal left
        if not left:
            return b""
        try:
            found = inflate.decompress(chunk, left)
        except zlib.error:
            left, found = 0, b""
        left -= len(found)
        return found

    return feed
