"""What Claude's answers say of themselves: usage, ids, how a stream ended. Reads bytes, changes none.

Sources: the SDK's types (anthropic 2.12.0), the API's pages on streaming and errors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from observability.catalog import Outcome
from service.record import Answered, Variant
from service.upstream.anthropic_usage import Said, Tally
from service.upstream.outcomes import outcome_of_error
from service.upstream.reading import BodyReader, EventReader


class _Details(msgspec.Struct):
    error_code: str | None = None


class Error(msgspec.Struct):
    """What went wrong, in the API's words."""

    type: str = "api_error"
    message: str = ""
    details: _Details | None = None

    @property
    def code(self) -> str:
        """`details.error_code`; empty when there is none."""
        return (self.details and self.details.error_code) or ""


class Message(msgspec.Struct):
    """An answer to an inference: what is read of it."""

    id: str | None = None
    model: str | None = None
    stop_reason: str | None = None
    usage: Said | None = None
    container: Any = None


class _Delta(msgspec.Struct):
    stop_reason: str | None = None
    container: Any = None
    text: str | None = None
    thinking: str | None = None
    partial_json: str | None = None


class _Event(msgspec.Struct):
    """Any stream event or whole answer: only what is read of it; the rest is checked to be JSON and skipped."""

    type: str = ""
    message: Message | None = None
    delta: _Delta | None = None
    usage: Said | None = None
    error: Error | None = None
    id: str | None = None
    model: str | None = None
    stop_reason: str | None = None
    container: Any = None


_decoder = msgspec.json.Decoder(_Event)


class StreamReader(EventReader[_Event]):
    """Reads an SSE answer; complete with `message_stop`."""

    _decoder = _decoder

    def __init__(self, clock: Callable[[], float], on_first_chunk: Callable[[], None], encoding: str = "") -> None:
        super().__init__(clock, on_first_chunk, encoding)
        self._tally = Tally()
        self._variant = Variant()
        self._message = Message()
        self._container = False
        self._stop_reason: str | None = None
        self.error_code = ""
        """The provider's `error.details.error_code`; empty when it gave none."""

    def _see(self, event: _Event) -> None:
        match event.type:
            case "content_block_delta":
                delta = event.delta
                self._pacer.saw((delta and (delta.text or delta.thinking or delta.partial_json)) or "")
            case "message_start" if event.message is not None:
                self._message = event.message
                self._tally.start(event.message.usage)
                self._container = event.message.container is not None
                if event.message.usage is not None:
                    self._variant = event.message.usage.variant
            case "message_delta":
                self._tally.see(event.usage)
                if event.delta is not None:
                    self._stop_reason = event.delta.stop_reason or self._stop_reason
                    self._container = self._container or event.delta.container is not None
                self._refused = self._stop_reason == "refusal"
            case "message_stop":
                self.complete = True
            case "error":
                error = event.error or Error()
                self._error = outcome_of_error(error.type), error.type
                self.error_code = error.code

    @property
    def answered(self) -> Answered:
        """What the stream has said so far; tokens it never said are None."""
        return Answered(
            streamed=True,
            unread=self.unread,
            response_id=self._message.id,
            model=self._tally.served_by or self._message.model,
            finish_reason=self._stop_reason,
            usage=self._tally.total(refused=self._refused, container=self._container),
            variant=self._variant,
            content_bytes=self._pacer.content_bytes,
            first_chunk=self._pacer.first_chunk,
            pace=self._pacer.pace,
        )


class WholeReader(BodyReader[_Event]):
    """Reads a JSON answer that comes in one piece: a message, an error, a count, a list."""

    _decoder = _decoder

    def _kind(self, event: _Event) -> str | None:
        return event.error.type if event.error is not None else None

    def _verdict(self, event: _Event) -> tuple[Outcome, str | None]:
        return (Outcome.REFUSED if event.stop_reason == "refusal" else Outcome.OK), None

    @property
    def error_code(self) -> str:
        """The provider's `error.details.error_code`; empty when it gave none."""
        event = self._event()
        return event.error.code if event is not None and event.error is not None else ""

    def _told(self, event: _Event) -> Answered | None:
        return told(event) if event.type == "message" else None


def told(message: Message | _Event) -> Answered:
    """What a whole message says of itself."""
    tally = Tally()
    tally.see(message.usage)
    return Answered(
        response_id=message.id,
        model=tally.served_by or message.model,
        finish_reason=message.stop_reason,
        usage=tally.total(refused=message.stop_reason == "refusal", container=message.container is not None),
        variant=message.usage.variant if message.usage is not None else Variant(),
    )
