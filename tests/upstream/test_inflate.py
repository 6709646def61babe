"""Inflating for reading: whole bodies come out, a bomb only as far as the bound, and whatever is no gzip not at all."""

from __future__ import annotations

import gzip
import tracemalloc

from observability.catalog import Outcome
from service.record import Answered
from service.upstream.anthropic import WholeReader
from service.upstream.inflate import MOST, inflater
from tests.support.claude import MESSAGE

PIECE = 4096
BOMB = gzip.compress(b" " * (8 * MOST) + MESSAGE, compresslevel=1)


def _pieces(body: bytes) -> list[bytes]:
    return [body[at : at + PIECE] for at in range(0, len(body), PIECE)]


def _inflated(body: bytes) -> list[int]:
    feed = inflater("gzip")
    assert feed is not None
    return [len(feed(piece)) for piece in _pieces(body)]


def test_a_bomb_is_inflated_up_to_the_bound_of_a_body_and_no_further() -> None:
    sizes = _inflated(BOMB)
    assert sum(sizes) == MOST
    assert sizes[-1] == 0


def test_reading_a_bomb_takes_no_more_memory_than_the_bound_allows_and_tells_nothing() -> None:
    reader = WholeReader(200, inference=True, encoding="gzip")
    tracemalloc.start()
    try:
        for piece in _pieces(BOMB):
            reader.feed(piece)
        assert reader.ended() == (Outcome.UPSTREAM_ERROR, "invalid_response")
        assert tracemalloc.get_traced_memory()[1] < 3 * MOST
    finally:
        tracemalloc.stop()
    assert reader.answered == Answered()


def test_a_body_of_exactly_the_bound_comes_out_whole() -> None:
    assert sum(_inflated(gzip.compress(b" " * MOST))) == MOST


def test_after_what_is_no_gzip_nothing_is_tried() -> None:
    assert _inflated(b"plain" + BOMB) == [0] * len(_pieces(b"plain" + BOMB))


def test_other_encodings_are_not_inflated() -> None:
    assert inflater("") is None
    assert inflater("br") is None
