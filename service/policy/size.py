"""How large a prompt is, as far as its bytes tell: text apart from pictures and documents sent inside it as base64."""

from __future__ import annotations

import re

_BEGINS = (b'"data":"', b'"data": "', b";base64,")
"""What stands before base64, whatever the provider."""
_LONGEST = max(map(len, _BEGINS))
_BASE64 = re.compile(rb"[A-Za-z0-9+/=_\\-]{512}")
"""How a picture begins: nobody sends one that is shorter. A plain text document under `data` has other characters soon."""
_WINDOW = 4096
_MOST = 4 * 1024 * 1024
"""Bytes looked at, base64 not among them: about 20 ms of the event loop. More text than that no model takes."""


def measured(body: bytes) -> tuple[int, int]:
    """Bytes of text, and how many media blocks there are beside it. Base64 of a picture says nothing of its tokens."""
    text, media, at, looked = len(body), 0, 0, 0
    while at < len(body) and looked < _MOST:
        until = at + _WINDOW
        looked += _WINDOW
        # What begins in this window may end in the next.
        found = [begin for begin in _BEGINS if body.find(begin, at, until + _LONGEST - 1) >= 0]
        if not found:
            at = until
            continue
        start = min(body.find(begin, at) + len(begin) for begin in found)
        at = start
        if _BASE64.match(body, start):
            end = body.find(b'"', start)
            at = len(body) if end < 0 else end
            text -= at - start
            media += 1
    return text, media
