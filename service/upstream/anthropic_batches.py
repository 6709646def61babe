"""Message batches of Claude's API as its answers show them: their results line by line, and when a batch began and ends.

Sources: the SDK's types (anthropic 2.12.0), the API's page on message batches. Reads bytes, changes none.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from datetime import datetime
from typing import Annotated, NamedTuple

import msgspec

from observability.catalog import Outcome
from service.record import Answered
from service.upstream.anthropic_answers import Error, Message, told
from service.upstream.outcomes import outcome_of_error
from service.upstream.reading import NOT_OURS

LONGEST_LINE = 8 * 1024 * 1024
"""Bytes of a result that are held to be read: an answer of 128,000 tokens is a megabyte."""
_PIECE = 65_536
"""Bytes that are inflated at a time."""


class Result(NamedTuple):
    """One result of a batch. `sold`: tokens may have been used for it; a call that failed or never ran costs nothing."""

    custom_id: str
    outcome: Outcome
    error_type: str | None
    sold: bool
    answered: Answered


class _Errored(msgspec.Struct):
    error: Error | None = None


class _Outcome(msgspec.Struct):
    type: str
    message: Message | None = None
    error: _Errored | None = None


class _Line(msgspec.Struct):
    custom_id: str
    result: _Outcome


class _Kind(msgspec.Struct):
    type: str


class _Bare(msgspec.Struct):
    """A line whose result makes no sense."""

    custom_id: str
    result: _Kind


_decode = msgspec.json.Decoder(_Line).decode
_decode_bare = msgspec.json.Decoder(_Bare).decode


class ResultsReader:
    """Reads `GET …/results` (JSON lines) as it passes, in whatever pieces; holds one line at most.

    `unreadable` counts the lines that no result could be made of; what cannot be unpacked counts as one.
    """

    def __init__(self, encoding: str = "") -> None:
        self.unreadable = 0
        self._given_up = False
        self._inflate = zlib.decompressobj(wbits=31) if encoding == "gzip" else None
        self._parts: list[bytes] = []
        self._held = 0
        if encoding not in ("", "identity", "gzip"):
            self._give_up()

    def feed(self, chunk: bytes) -> Iterator[Result | None]:
        """The results that `chunk` completes; to be iterated to the end. None is none, where a pause can be made. Never
        raises."""
        for piece in self._inflated(chunk):
            first, *more = piece.split(b"\n")
            self._hold(first)
            for following in more:
                if self._held:
                    yield self._line()
                self._hold(following)
            yield None

    def end(self) -> Iterator[Result | None]:
        """The answer is over: what a last line without a line's end says."""
        if self._held:
            yield self._line()

    def _give_up(self) -> None:
        self.unreadable += 1
        self._given_up = True

    def _inflated(self, data: bytes) -> Iterator[bytes]:
        if self._given_up:
            return
        if self._inflate is None:
            yield data
            return
        while True:
            try:
                piece = self._inflate.decompress(data, _PIECE)
            except zlib.error:
                self._give_up()
                return
            yield piece
            data = self._inflate.unconsumed_tail
            if self._inflate.eof:
                data = self._inflate.unused_data  # a gzip file may be several, one after the other
                self._inflate = zlib.decompressobj(wbits=31)
            if not data and len(piece) < _PIECE:
                return

    def _hold(self, part: bytes) -> None:
        self._held += len(part)
        if self._held > LONGEST_LINE:
            self._parts.clear()
        elif part:
            self._parts.append(part)

    def _line(self) -> Result | None:
        held, line = self._held, b"".join(self._parts)
        self._held = 0
        self._parts.clear()
        if held <= LONGEST_LINE:
            if not line.strip():
                return None
            try:
                return _result(line)
            except NOT_OURS:
                pass
        self.unreadable += 1
        return None


def _result(line: bytes) -> Result:
    """Raises one of `NOT_OURS` for a line that has no name."""
    try:
        said = _decode(line)
    except msgspec.ValidationError:
        # Its price is unknown then, but it is not forgotten.
        bare = _decode_bare(line)
        said = _Line(bare.custom_id, _Outcome(bare.result.type))
    name, result = said.custom_id, said.result
    match result.type:
        case "errored":
            kind = (
                result.error.error.type if result.error is not None and result.error.error is not None else "api_error"
            )
            return Result(name, outcome_of_error(kind), kind, False, Answered())
        case "canceled":
            return Result(name, Outcome.CLIENT_ABORT, "canceled", False, Answered())
        case "expired":
            return Result(name, Outcome.UPSTREAM_TIMEOUT, "expired", False, Answered())
    if result.message is None:
        return Result(name, Outcome.UPSTREAM_ERROR, "invalid_response", True, Answered())
    refused = result.message.stop_reason == "refusal"
    return Result(name, Outcome.REFUSED if refused else Outcome.OK, None, True, told(result.message))


_Moment = Annotated[datetime, msgspec.Meta(tz=True)]


class Shown(NamedTuple):
    """A batch as an answer shows it; times are Unix seconds, None where it has none."""

    batch_id: str
    created_at: float | None = None
    expires_at: float | None = None
    ended_at: float | None = None
    canceled_at: float | None = None
    archived_at: float | None = None
    deleted: bool = False


class _Batch(msgspec.Struct):
    type: str = ""
    id: str = ""
    created_at: _Moment | None = None
    expires_at: _Moment | None = None
    ended_at: _Moment | None = None
    cancel_initiated_at: _Moment | None = None
    archived_at: _Moment | None = None


class _Page(_Batch):
    data: list[_Batch] | None = None


_decode_page = msgspec.json.Decoder(_Page).decode


def shown(body: bytes) -> tuple[list[Shown], bool]:
    """The batches that a JSON answer of the batch routes shows, and whether it is a list; nothing of any other answer."""
    try:
        page = _decode_page(body)
    except NOT_OURS:
        return [], False
    batches = [page] if page.data is None else page.data
    return [_shown(batch) for batch in batches if batch.id and batch.type in _BATCHES], page.data is not None


_DELETED = "message_batch_deleted"
_BATCHES = ("message_batch", _DELETED)


def _shown(batch: _Batch) -> Shown:
    times = (batch.created_at, batch.expires_at, batch.ended_at, batch.cancel_initiated_at, batch.archived_at)
    created, expires, ended, canceled, archived = (None if time is None else time.timestamp() for time in times)
    return Shown(batch.id, created, expires, ended, canceled, archived, batch.type == _DELETED)
