"""What reading an answer has in common whatever the API: a stream's events and pace, a whole body's bytes and verdict."""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Callable, Iterable
from typing import Annotated, Any, ClassVar, Generic, TypeVar

import msgspec

from observability.catalog import LLM_SECONDS, Outcome
from service.record import Answered, Pace
from service.upstream import sse
from service.upstream.inflate import inflater
from service.upstream.outcomes import OVERLOADED, outcome_of_status

E = TypeVar("E")

Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
"""A number of tokens that a float can hold exactly; anything else makes the answer invalid, not our arithmetic."""
NOT_OURS = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What decoding raises: not JSON, not the shape, not UTF-8, nested too deep."""
INVALID = (Outcome.UPSTREAM_ERROR, "invalid_response")
"""An answer that makes no sense."""


class Pacer:
    """When a stream's content came. `clock` gives seconds since the call began; `on_first_chunk` is told of the first."""

    def __init__(self, clock: Callable[[], float], on_first_chunk: Callable[[], None]) -> None:
        self._clock = clock
        self._on_first_chunk = on_first_chunk
        self.first_chunk: float | None = None
        self.content_bytes = 0
        self._last_chunk = 0.0
        self._gaps = [0] * (len(LLM_SECONDS) + 1)
        self._gap_sum = self._gap_longest = 0.0

    def saw(self, content: str) -> None:
        """A chunk of content has come."""
        now = self._clock()
        self.content_bytes += len(content) if content.isascii() else len(content.encode("utf-8", "replace"))
        if self.first_chunk is None:
            self.first_chunk = now
            self._on_first_chunk()
        else:
            gap = now - self._last_chunk
            self._gaps[bisect_left(LLM_SECONDS, gap)] += 1
            self._gap_sum += gap
            self._gap_longest = max(self._gap_longest, gap)
        self._last_chunk = now

    @property
    def pace(self) -> Pace | None:
        """The gaps between the chunks; None with fewer than two."""
        return Pace(tuple(self._gaps), self._gap_sum, self._gap_longest) if any(self._gaps) else None


class EventReader(ABC, Generic[E]):
    """Reads a streamed answer of JSON events. A subclass says how one is decoded and what it means."""

    _decoder: ClassVar[msgspec.json.Decoder[Any]]
    marked = True
    """Whether the API marks a stream's end."""

    def __init__(self, clock: Callable[[], float], on_first_chunk: Callable[[], None], encoding: str = "") -> None:
        self.readable = not encoding
        """Whether plain events can be put into the stream."""
        self._pacer = Pacer(clock, on_first_chunk)
        self._parser = sse.Parser()
        self._inflate = inflater(encoding)
        self.opened_with: str | None = None
        """What the first event was: `content`, whatever it said, or `error`."""
        self.complete = False
        """Whether the API's own end has come."""
        self._error: tuple[Outcome, str | None] | None = None
        self._malformed = False
        self._refused = False
        self.listener: Callable[[bytes], None] | None = None
        """Is shown each event too; must not raise."""

    @abstractmethod
    def _see(self, event: E) -> None:
        """One event has come."""

    def feed(self, chunk: bytes) -> None:
        """See the next bytes; never raises."""
        if self._inflate is not None:
            chunk = self._inflate(chunk)
        for data in self._cut(chunk):
            try:
                self._see(self._decoder.decode(data))
            except NOT_OURS:
                self._malformed = True
            if self.listener is not None:
                self.listener(data)
            if self.opened_with is None:
                self.opened_with = "content" if self._error is None else "error"

    def _cut(self, chunk: bytes) -> Iterable[bytes]:
        """What the events that `chunk` completes carry."""
        return [event.data for event in self._parser.feed(chunk)]

    @property
    def unread(self) -> bool:
        """Whether an event was too large to be read."""
        return self._parser.overflowed

    def end(self) -> None:
        """The bytes have ended by themselves. An event that was too large to be read may have been the last word."""
        if self.unread and not self._parser.mid_skip:
            self.complete = True

    @property
    def first_chunk(self) -> float | None:
        """Seconds until the first content."""
        return self._pacer.first_chunk

    @property
    def over(self) -> bool:
        """Whether the provider has said its last word: its own end, or an error."""
        return self.complete or self._error is not None

    def ended(self) -> tuple[Outcome, str | None]:
        """Outcome and error type of a stream whose bytes ended here."""
        if self._error is not None:
            return self._error
        if not self.complete:
            return Outcome.CUT_OFF, "cut_off"
        if self._malformed:
            return INVALID
        return (Outcome.REFUSED if self._refused else Outcome.OK), None


class BodyReader(ABC, Generic[E]):
    """Reads a JSON answer that comes in one piece. A subclass says how it is decoded and what it means."""

    _decoder: ClassVar[msgspec.json.Decoder[Any]]
    overloaded: ClassVar[frozenset[int]] = OVERLOADED
    """Statuses with which this API says that it is overloaded."""

    def __init__(self, status: int, *, inference: bool, encoding: str = "") -> None:
        self._status = status
        self._inference = inference
        self._inflate = inflater(encoding)
        self._parts: list[bytes] = []
        self._seen: E | None = None

    @abstractmethod
    def _kind(self, event: E) -> str | None:
        """The error type that an error answer names."""

    @abstractmethod
    def _told(self, event: E) -> Answered | None:
        """What an answer to an inference says; None for a body that is none."""

    def _verdict(self, event: E) -> tuple[Outcome, str | None]:
        """Outcome and error type of an answer to an inference."""
        return Outcome.OK, None

    def feed(self, chunk: bytes) -> None:
        """See the next bytes; never raises."""
        self._parts.append(self._inflate(chunk) if self._inflate is not None else chunk)

    @property
    def body(self) -> bytes:
        """All of it so far, inflated."""
        return b"".join(self._parts)

    def _event(self) -> E | None:
        if self._seen is None:
            try:
                self._seen = self._decoder.decode(self.body)
            except NOT_OURS:
                return None
        return self._seen

    def ended(self) -> tuple[Outcome, str | None]:
        """Outcome and error type by status and body."""
        event = self._event()
        if self._status >= 400:
            kind = self._kind(event) if event is not None else None
            return self._outcome(kind), kind or str(self._status)
        if not self._inference:
            return Outcome.OK, None
        return INVALID if event is None or self._told(event) is None else self._verdict(event)

    def _outcome(self, kind: str | None) -> Outcome:
        return outcome_of_status(self._status, kind, self.overloaded)

    @property
    def answered(self) -> Answered:
        """What the answer said; nothing for a body that is no answer to an inference."""
        event = self._event() if self._inference and self._status < 400 else None
        return (self._told(event) if event is not None else None) or Answered()
