"""Which answers may be given again: exactly the same request of exactly the same client, and only if neither forbids it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

Headers = Sequence[tuple[bytes, bytes]]

_PARTS = (b"accept-encoding", b"content-type")
_PREFIXES = (b"anthropic-", b"openai-", b"x-goog-user-project")
_CREDENTIALS = (b"x-api-key", b"authorization", b"x-goog-api-key")


def forbids(headers: Headers) -> bool:
    """Whether the client's `cache-control` asks for an answer of its own."""
    asked = b",".join(value for name, value in headers if name == b"cache-control").lower()
    return any(word.strip() in (b"no-cache", b"no-store", b"max-age=0") for word in asked.split(b","))


def key(client: str | None, provider: str, method: str, target: str, headers: Headers, body: bytes) -> bytes:
    """32 bytes that two requests share only if one's answer may be the other's: same client and credential, same API
    version and betas, same encoding, same bytes."""
    digest = hashlib.sha256()
    for part in _parts(client, provider, method, target, headers):
        digest.update(len(part).to_bytes(4))
        digest.update(part)
    digest.update(body)
    return digest.digest()


def _parts(client: str | None, provider: str, method: str, target: str, headers: Headers) -> Iterable[bytes]:
    # No client and a client called "" are not the same.
    yield b"" if client is None else b"c" + client.encode()
    yield provider.encode()
    yield method.encode()
    yield target.encode("utf-8", "surrogateescape")
    for name, value in sorted(headers):
        if name in _PARTS or name in _CREDENTIALS or name.startswith(_PREFIXES):
            yield name
            yield value
