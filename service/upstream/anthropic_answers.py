"""What Claude's answers say of themselves: usage, ids, how a stream ended. Reads bytes, changes none.

Sources: the SDK's types (anthropic 2.12.0), the API's pages on streaming and errors.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping
from typing import Annotated

import msgspec

from observability.catalog import LLM_SECONDS, Outcome
from service.record import Answered, Pace, Usage, Variant
from service.upstream import sse
from service.upstream.inflate import inflater
from service.upstream.outcomes import outcome_of_error, outcome_of_status

_Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
"""A number of tokens that a float can hold exactly; anything else makes the answer invalid, not our arithmetic."""


class _CacheCreation(msgspec.Struct):
    ephemeral_5m_input_tokens: _Count | None = None
    ephemeral_1h_input_tokens: _Count | None = None


class _ServerTools(msgspec.Struct):
    web_search_requests: _Count | None = None


class _OutputDetails(msgspec.Struct):
    thinking_tokens: _Count | None = None


class _Usage(msgspec.Struct):
    input_tokens: _Count | None = None
    output_tokens: _Count | None = None
    cache_creation_input_tokens: _Count | None = None
    cache_read_input_tokens: _Count | None = None
    cache_creation: _CacheCreation | None = None
    output_tokens_details: _OutputDetails | None = None
    server_tool_use: _ServerTools | None = None
    service_tier: str | None = None
    speed: str | None = None
    inference_geo: str | None = None


class _Details(msgspec.Struct):
    error_code: str | None = None


class _Error(msgspec.Struct):
    type: str = "api_error"
    message: str = ""
    details: _Details | None = None


class _Message(msgspec.Struct):
    id: str | None = None
    model: str | None = None
    stop_reason: str | None = None
    usage: _Usage | None = None


class _Delta(msgspec.Struct):
    stop_reason: str | None = None
    text: str | None = None
    thinking: str | None = None
    partial_json: str | None = None


class _Event(msgspec.Struct):
    """Any stream event or whole answer: only what is read of it; the rest is checked to be JSON and skipped."""

    type: str = ""
    message: _Message | None = None
    delta: _Delta | None = None
    usage: _Usage | None = None
    error: _Error | None = None
    id: str | None = None
    model: str | None = None
    stop_reason: str | None = None


_decode = msgspec.json.Decoder(_Event).decode
_NOT_OURS = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What decoding raises: not JSON, not the shape, not UTF-8, nested too deep."""


class StreamReader:
    """Reads an SSE answer. `clock` gives seconds since the call began; `on_first_chunk` is told of the first content."""

    def __init__(self, clock: Callable[[], float], on_first_chunk: Callable[[], None], encoding: str = "") -> None:
        self._clock = clock
        self._on_first_chunk = on_first_chunk
        self.readable = not encoding
        """Whether plain events can be put into the stream."""
        self._parser = sse.Parser()
        self._inflate = inflater(encoding)
        self._usage: dict[str, int] = {}
        self._variant = Variant()
        self._content_bytes = 0
        self.opened_with: str | None = None
        """What the first event was: `content`, a ping included, or `error`."""
        self._message = _Message()
        self._stop_reason: str | None = None
        self._error: _Error | None = None
        self._malformed = False
        self.complete = False
        """Whether `message_stop` has come."""
        self.first_chunk: float | None = None
        self._last_chunk = 0.0
        self._gaps = [0] * (len(LLM_SECONDS) + 1)
        self._gap_sum = self._gap_longest = 0.0

    def feed(self, chunk: bytes) -> None:
        """See the next bytes; never raises."""
        if self._inflate is not None:
            chunk = self._inflate(chunk)
        for event in self._parser.feed(chunk):
            try:
                self._see(_decode(event.data))
            except _NOT_OURS:
                self._malformed = True

    def _see(self, event: _Event) -> None:
        if self.opened_with is None:
            self.opened_with = "error" if event.type == "error" else "content"
        match event.type:
            case "content_block_delta":
                self._content(event.delta)
            case "message_start" if event.message is not None:
                self._message = event.message
                self._variant = _variant(event.message.usage)
                self._merge(event.message.usage)
            case "message_delta":
                # Usage here is cumulative and may restate input and cache tokens: what is present replaces.
                self._merge(event.usage, final=True)
                self._stop_reason = (event.delta and event.delta.stop_reason) or self._stop_reason
            case "message_stop":
                self.complete = True
            case "error":
                self._error = event.error or _Error()

    def _content(self, delta: _Delta | None) -> None:
        now = self._clock()
        if delta is not None:
            content = delta.text or delta.thinking or delta.partial_json or ""
            self._content_bytes += len(content) if content.isascii() else len(content.encode("utf-8", "replace"))
        if self.first_chunk is None:
            self.first_chunk = now
            self._on_first_chunk()
        else:
            gap = now - self._last_chunk
            self._gaps[bisect_left(LLM_SECONDS, gap)] += 1
            self._gap_sum += gap
            self._gap_longest = max(self._gap_longest, gap)
        self._last_chunk = now

    def _merge(self, usage: _Usage | None, *, final: bool = False) -> None:
        if usage is None:
            return
        said = _said(usage)
        if not final:
            # message_start's output_tokens is a placeholder of 1 or 2; without a message_delta the count is unknown.
            said.pop("output_tokens", None)
        self._usage.update(said)

    @property
    def over(self) -> bool:
        """Whether the provider has said its last word: `message_stop`, or an error."""
        return self.complete or self._error is not None

    def ended(self) -> tuple[Outcome, str | None]:
        """Outcome and error type of a stream whose bytes ended here."""
        if self._error is not None:
            return outcome_of_error(self._error.type), self._error.type
        if not self.complete:
            return Outcome.CUT_OFF, "cut_off"
        if self._malformed:
            return Outcome.UPSTREAM_ERROR, "invalid_response"
        return (Outcome.REFUSED if self._stop_reason == "refusal" else Outcome.OK), None

    @property
    def answered(self) -> Answered:
        """What the stream has said so far; tokens it never said are None."""
        return Answered(
            streamed=True,
            response_id=self._message.id,
            model=self._message.model,
            finish_reason=self._stop_reason,
            usage=_total(self._usage) if self._usage else None,
            variant=self._variant,
            content_bytes=self._content_bytes,
            first_chunk=self.first_chunk,
            pace=Pace(tuple(self._gaps), self._gap_sum, self._gap_longest) if any(self._gaps) else None,
        )


class WholeReader:
    """Reads a JSON answer that comes in one piece: a message, an error, a count, a list."""

    def __init__(self, status: int, *, inference: bool, encoding: str = "") -> None:
        self._status = status
        self._inference = inference
        self._inflate = inflater(encoding)
        self._parts: list[bytes] = []
        self._seen: _Event | None = None

    def feed(self, chunk: bytes) -> None:
        """See the next bytes; never raises."""
        self._parts.append(self._inflate(chunk) if self._inflate is not None else chunk)

    def _event(self) -> _Event | None:
        if self._seen is None:
            try:
                self._seen = _decode(b"".join(self._parts))
            except _NOT_OURS:
                return None
        return self._seen

    def ended(self) -> tuple[Outcome, str | None]:
        """Outcome and error type by status and body."""
        event = self._event()
        if self._status >= 400:
            kind = event.error.type if event is not None and event.error is not None else None
            return outcome_of_status(self._status, kind), kind or str(self._status)
        if self._inference and (event is None or event.type != "message"):
            return Outcome.UPSTREAM_ERROR, "invalid_response"
        return (Outcome.REFUSED if event is not None and event.stop_reason == "refusal" else Outcome.OK), None

    @property
    def error_code(self) -> str:
        """The provider's `error.details.error_code`; empty when it gave none."""
        event = self._event()
        details = event.error.details if event is not None and event.error is not None else None
        return (details and details.error_code) or ""

    @property
    def answered(self) -> Answered:
        """What the answer said; nothing for a body that is not a message."""
        event = self._event() if self._inference and self._status < 400 else None
        if event is None or event.type != "message":
            return Answered()
        said = _said(event.usage) if event.usage is not None else {}
        return Answered(
            response_id=event.id,
            model=event.model,
            finish_reason=event.stop_reason,
            usage=_total(said) if said else None,
            variant=_variant(event.usage),
        )


_COUNTS = ("input_tokens", "output_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")


def _said(usage: _Usage) -> dict[str, int]:
    """The counts that are there, by the API's names."""
    said = {name: getattr(usage, name) for name in _COUNTS}
    if usage.output_tokens_details is not None:
        said["thinking_tokens"] = usage.output_tokens_details.thinking_tokens
    if usage.cache_creation is not None:
        said["ephemeral_1h_input_tokens"] = usage.cache_creation.ephemeral_1h_input_tokens
    if usage.server_tool_use is not None:
        said["web_search_requests"] = usage.server_tool_use.web_search_requests
    return {name: value for name, value in said.items() if value is not None}


def _variant(usage: _Usage | None) -> Variant:
    return Variant() if usage is None else Variant(usage.service_tier, usage.speed, usage.inference_geo)


def _total(said: Mapping[str, int]) -> Usage:
    """The GenAI conventions' usage: their input tokens include what Anthropic counts beside them as cache tokens."""
    read, written = said.get("cache_read_input_tokens"), said.get("cache_creation_input_tokens")
    fresh = said.get("input_tokens")
    return Usage(
        input_tokens=None if fresh is None else fresh + (read or 0) + (written or 0),
        output_tokens=said.get("output_tokens"),
        cache_read_tokens=read,
        cache_write_tokens=written,
        reasoning_tokens=said.get("thinking_tokens"),
        cache_write_1h_tokens=said.get("ephemeral_1h_input_tokens"),
        web_searches=said.get("web_search_requests"),
    )
