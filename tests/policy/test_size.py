"""A prompt's size by its bytes: text and media told apart, whatever the body's shape, and no more looked at than need be."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from service.policy.size import measured

PICTURE = base64.b64encode(bytes(range(256)) * 30).decode()
CLAUDE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PICTURE}}
OPENAI = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PICTURE}"}}
GEMINI = {"inlineData": {"mimeType": "image/png", "data": PICTURE}}


@pytest.mark.parametrize("block", [CLAUDE, OPENAI, GEMINI])
@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")])
@pytest.mark.parametrize("before", [0, 4080, 4090, 100_000])
def test_base64_is_counted_by_the_piece_and_not_as_text(block: Any, separators: tuple[str, str], before: int) -> None:
    body = json.dumps(["x " * (before // 2), block, "then", block], separators=separators).encode()
    assert measured(body) == (len(body) - 2 * len(PICTURE), 2)


def test_a_text_document_is_text() -> None:
    source = {"type": "text", "media_type": "text/plain", "data": "Call me Ishmael. " * 100}
    body = json.dumps([{"type": "document", "source": source}, CLAUDE]).encode()
    assert measured(body) == (len(body) - len(PICTURE), 1)


def test_base64_without_an_end_is_media_to_the_end() -> None:
    assert measured(b'"data":"' + PICTURE.encode()) == (8, 1)


def test_no_more_is_looked_at_than_the_event_loop_can_spare() -> None:
    behind = json.dumps(["x " * 2_500_000, CLAUDE]).encode()
    assert measured(behind) == (len(behind), 0)
    beginnings = b'"data":"' * 4_000_000
    assert measured(beginnings + PICTURE.encode()) == (len(beginnings) + len(PICTURE), 0)
    pictures = json.dumps([CLAUDE] * 700).encode()
    assert measured(pictures) == (len(pictures) - 700 * len(PICTURE), 700)
