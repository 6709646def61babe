"""The one thing in the provider's answers that is changed: where a batch's results are.

The SDKs fetch results from `results_url`, an absolute address, with the credential they have: left as it is, it would
take them past the gateway and hand a client key to the provider.
"""

from __future__ import annotations

import re

from msgspec.structs import replace

from service.answer import Answer, Body
from service.web.channel import RawHeaders

_RESULTS_URL = re.compile(rb'("results_url"\s*:\s*")https?://[^"]*?(?=/v1/messages/batches/)')
_HOST = re.compile(rb"[A-Za-z0-9._\-\[\]:]+")


def base_url(headers: RawHeaders, scheme: str, prefix: str) -> bytes | None:
    """Where the client reached us, as it sees us; None when it did not say."""
    found = dict(headers)
    host = found.get(b"host", b"")
    forwarded = found.get(b"x-forwarded-proto", b"").partition(b",")[0].strip().lower()
    if not _HOST.fullmatch(host):
        return None
    return (forwarded if forwarded in (b"http", b"https") else scheme.encode()) + b"://" + host + prefix.encode()


def lead_back(answer: Answer, body: bytes, base: bytes | None) -> Answer:
    """The answer, whose whole body this is, with its results under `base`; every other byte stays. It must not be
    compressed."""
    changed = body if base is None else _RESULTS_URL.sub(lambda match: match[1] + base, body)
    headers = answer.headers
    if changed != body:
        length = str(len(changed)).encode()
        headers = [(name, length if name.lower() == b"content-length" else value) for name, value in headers]
    return replace(answer, headers=headers, body=Body.of(changed))
