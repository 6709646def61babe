"""How large a prompt is, as far as its bytes tell: text apart from pictures and documents sent inside it as base64."""

from __future__ import annotations

_SIGNS = (b'"base64"', b";base64,", b'"inlineData"', b'"inline_data"')
"""One of these is in every body that has media in it, whatever the provider."""
_BEGINS = (b'"data":"', b'"data": "', b";base64,")
_SHORT = 512
"""Bytes up to which a value is text: nobody sends a picture that small."""


def measured(body: bytes) -> tuple[int, int]:
    """Bytes of text, and how many media blocks there are beside it. Base64 of a picture says nothing of its tokens."""
    if not any(sign in body for sign in _SIGNS):
        return len(body), 0
    text, media = len(body), 0
    for begin in _BEGINS:
        at = body.find(begin)
        while at >= 0:
            start = at + len(begin)
            end = body.find(b'"', start)
            end = len(body) if end < 0 else end
            if end - start > _SHORT:
                text -= end - start
                media += 1
            at = body.find(begin, end)
    return max(text, 0), media
