"""Events out of bytes: however the bytes are cut, the same events and the same bytes come out."""

from __future__ import annotations

import random
from typing import ClassVar

import pytest

from service.upstream.sse import Event, Parser, Splitter

EVENTS = [
    Event(b"message_start", b'{"type":"message_start"}'),
    Event(b"", b'{"type":"ping"}'),
    Event(b"message", b'{"type":"a"}\n{"more":"lines"}'),
    Event(b"message_stop", '{"type":"message_stop","\u2014":1}'.encode()),
]


def _wire(newline: bytes) -> bytes:
    """`EVENTS` with a comment, an unknown field and an event without data among them."""
    lines = [
        b"event: message_start", b'data: {"type":"message_start"}', b"",
        b": a comment", b"", b'data:{"type":"ping"}', b"",
        b"event: message", b"id: 7", b'data: {"type":"a"}', b'data: {"more":"lines"}', b"",
        b"event: nothing", b"",
        b"event: message_stop", "data: {\"type\":\"message_stop\",\"\u2014\":1}".encode(), b"", b"",
    ]  # fmt: skip
    return newline.join(lines)


NEWLINES = pytest.mark.parametrize("newline", [b"\n", b"\r\n", b"\r"], ids=["LF", "CRLF", "CR"])


@NEWLINES
def test_cut_in_two_at_any_byte_the_same_events_come_out(newline: bytes) -> None:
    wire = _wire(newline)
    for cut in range(len(wire) + 1):
        parser = Parser()
        assert parser.feed(wire[:cut]) + parser.feed(wire[cut:]) == EVENTS, cut


@NEWLINES
def test_byte_by_byte_the_same_events_come_out(newline: bytes) -> None:
    parser = Parser()
    assert [event for byte in _wire(newline) for event in parser.feed(bytes([byte]))] == EVENTS
    assert not parser.overflowed


@NEWLINES
def test_cut_in_two_at_any_byte_nothing_is_changed_or_lost_and_only_whole_events_go_on(newline: bytes) -> None:
    wire = _wire(newline)
    for cut in range(len(wire) + 1):
        splitter = Splitter()
        first = splitter.feed(wire[:cut])
        assert first == b"" or first.endswith(newline * 2), cut
        assert not splitter.mid_event
        assert first + splitter.feed(wire[cut:]) + splitter.rest() == wire


@NEWLINES
def test_byte_by_byte_each_event_goes_on_with_its_last_byte(newline: bytes) -> None:
    wire = _wire(newline)
    splitter = Splitter()
    pieces = [piece for byte in wire if (piece := splitter.feed(bytes([byte])))]
    assert b"".join(pieces) == wire
    assert splitter.rest() == b""
    assert len(pieces) == 6
    assert all(piece.endswith(newline * 2) for piece in pieces)


def test_random_cuts_of_random_bytes_lose_nothing_and_agree_on_where_events_end() -> None:
    chance = random.Random(7)
    for _ in range(500):
        wire = bytes(chance.choices(b"ab:\n\r", weights=(4, 4, 1, 3, 3), k=chance.randrange(60)))
        splitter, whole = Splitter(bound=chance.choice((4, 16, 1000))), Splitter()
        cuts = sorted(chance.choices(range(len(wire) + 1), k=4))
        edges = list(zip([0, *cuts], [*cuts, len(wire)], strict=True))
        out = b"".join(splitter.feed(wire[a:b]) for a, b in edges)
        kept = whole.feed(wire)
        assert out + splitter.rest() == wire
        assert len(out) >= len(kept.rstrip(b"\r\n"))  # only an empty line may wait
        assert splitter.mid_event == (out != b"" and not out.endswith((b"\n\n", b"\r\n\r\n", b"\r\r")))


@pytest.mark.parametrize("wire", [b"\n\n", b"a\n\n", b"\r\r", b"a\r\r", b"\r\n\r\n"])
def test_even_the_shortest_event_goes_on_at_once(wire: bytes) -> None:
    splitter = Splitter()
    assert splitter.feed(wire + b"next") == wire
    assert splitter.rest() == b"next"


def test_what_is_held_is_given_back_once_when_the_stream_ends() -> None:
    splitter = Splitter()
    assert splitter.feed(b"data: 1\n\ndata: 2\n") == b"data: 1\n\n"
    assert (splitter.rest(), splitter.rest()) == (b"data: 2\n", b"")


def test_an_event_over_the_bound_is_let_through_unfinished_and_its_end_is_found() -> None:
    splitter = Splitter(bound=10)
    assert (splitter.feed(b"data: 4567"), splitter.mid_event) == (b"", False)
    assert (splitter.feed(b"8"), splitter.mid_event) == (b"data: 45678", True)
    assert (splitter.feed(b"9"), splitter.mid_event) == (b"9", True)
    assert (splitter.feed(b"\n"), splitter.mid_event) == (b"", True)
    assert (splitter.feed(b"\n"), splitter.mid_event) == (b"\n\n", False)
    assert (splitter.feed(b"data: 2"), splitter.mid_event) == (b"", False)


def test_an_event_over_the_parsers_bound_is_skipped_and_the_next_one_is_read() -> None:
    parser = Parser(bound=20)
    wire = b"event: big\ndata: " + b"x" * 50 + b"\ndata: {}\r\n\r\ndata: 2\n\n"
    assert [event for byte in wire for event in parser.feed(bytes([byte]))] == [Event(b"", b"2")]
    assert parser.overflowed


class _Chunk(bytes):
    """Tells what it is appended to."""

    before: ClassVar[list[int]] = []

    def __radd__(self, other: bytes) -> bytes:
        self.before.append(len(other))
        return other + bytes(self)


def test_what_is_held_of_an_event_is_not_looked_at_again_with_every_chunk() -> None:
    parser = Parser()
    wire = b"data: " + b"x" * 100_000 + b"\r\n\r\n"
    chunks = [_Chunk(wire[at : at + 1_001]) for at in range(0, len(wire), 1_001)]
    assert [event for chunk in chunks for event in parser.feed(chunk)] == [Event(b"", wire[6:-4])]
    assert len(_Chunk.before) > 90
    assert max(_Chunk.before) <= 3


@pytest.mark.parametrize(
    ("block", "event"),
    [
        (b"data: 1\n\n", Event(b"", b"1")),
        (b"data:1\n\n", Event(b"", b"1")),
        (b"data:  1\n\n", Event(b"", b" 1")),
        (b"data:\n\n", Event(b"", b"")),
        (b"event:a\ndata: 1\ndata: 2\n\n", Event(b"a", b"1\n2")),
        (b"event: a \ndata: 1\n\n", Event(b"a", b"1")),
        (b": data: 1\n\n", None),
        (b"datax: 1\n\n", None),
        (b"event: a\n\n", None),
        (b"\n\n", None),
    ],
)
def test_lines_are_read_as_the_sse_standard_says(block: bytes, event: Event | None) -> None:
    assert Parser().feed(block) == ([] if event is None else [event])
