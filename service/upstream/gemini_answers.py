"""What Gemini's answers say of themselves: usage, ids, how a stream ended. Reads bytes, changes none.

Sources: the SDK's types (google-genai 3.4.0) and how genai-prices reads them. Field names in JSON are camelCase.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable

import msgspec
from msgspec.structs import replace

from observability.catalog import Outcome
from service.record import Answered, Variant
from service.upstream.gemini_usage import Grounding, Said, total
from service.upstream.json_array import ArrayCutter
from service.upstream.outcomes import outcome_of_status
from service.upstream.reading import BodyReader, EventReader

OVERLOADED = frozenset((503,))
"""Gemini's status UNAVAILABLE: "The model is overloaded"."""
_RETRY_INFO = "type.googleapis.com/google.rpc.RetryInfo"
_REFUSALS = frozenset(
    (
        "SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "IMAGE_SAFETY", "IMAGE_PROHIBITED_CONTENT",
        "IMAGE_RECITATION", "MODEL_ARMOR",
    )
)  # fmt: skip
"""Finish reasons with which the model, or a filter before or behind it, would not answer."""


class _Part(msgspec.Struct, rename="camel"):
    text: str | None = None
    function_call: msgspec.Raw = msgspec.Raw()


class _Content(msgspec.Struct):
    parts: list[_Part] | None = None


class _Candidate(msgspec.Struct, rename="camel"):
    index: int = 0
    content: _Content | None = None
    finish_reason: str | None = None
    grounding_metadata: Grounding | None = None


class _PromptFeedback(msgspec.Struct, rename="camel"):
    block_reason: str | None = None


class _Violation(msgspec.Struct, rename="camel"):
    quota_id: str | None = None


class _Detail(msgspec.Struct, rename="camel"):
    type: str = msgspec.field(name="@type", default="")
    reason: str | None = None
    violations: list[_Violation] | None = None
    retry_delay: str | None = None


class _Error(msgspec.Struct):
    code: int = 0
    message: str = ""
    status: str | None = None
    details: list[_Detail] | None = None


class _Answer(msgspec.Struct, rename="camel"):
    """An answer, or one event of a stream: only what is read of it."""

    candidates: list[_Candidate] | None = None
    prompt_feedback: _PromptFeedback | None = None
    usage_metadata: Said | None = None
    model_version: str | None = None
    response_id: str | None = None
    error: _Error | None = None


class _Said:
    """What the events of an answer have said together. Usage in a stream is cumulative: the last one counts."""

    def __init__(self) -> None:
        self.response_id: str | None = None
        self.model: str | None = None
        self.finish_reason: str | None = None
        self.usage: Said | None = None
        self._open: set[int] = set()
        self._finished: set[int] = set()
        self._blocked = False
        self._groundings: dict[int, Grounding] = {}

    def see(self, answer: _Answer) -> None:
        """One more event; what it leaves out stays."""
        self.response_id = answer.response_id or self.response_id
        self.model = answer.model_version or self.model
        self.usage = answer.usage_metadata or self.usage
        for candidate in answer.candidates or ():
            self._open.add(candidate.index)
            if candidate.grounding_metadata is not None and candidate.grounding_metadata.looked_up:
                self._groundings[candidate.index] = candidate.grounding_metadata
            if candidate.finish_reason:
                self._finished.add(candidate.index)
                self.finish_reason = candidate.finish_reason
        if answer.prompt_feedback is not None and answer.prompt_feedback.block_reason:
            self._blocked = True
            self.finish_reason = answer.prompt_feedback.block_reason

    @property
    def complete(self) -> bool:
        """The API has no end marker: every candidate has its finish reason, or the prompt was blocked."""
        return self._blocked or (bool(self._open) and self._open == self._finished)

    @property
    def refused(self) -> bool:
        """Whether the prompt or the answer was blocked."""
        return self._blocked or self.finish_reason in _REFUSALS

    def answered(self) -> Answered:
        """Without what only a stream knows."""
        return Answered(
            response_id=self.response_id,
            model=self.model,
            finish_reason=self.finish_reason,
            usage=None if self.usage is None else total(self.usage, self._groundings.values(), self.model),
            variant=Variant(tier=None if self.usage is None else self.usage.service_tier),
        )


_DURATION = re.compile(r"[0-9]{1,12}(\.[0-9]{1,9})?s")


class _Failing(ABC):
    """What an error says beside its status."""

    @abstractmethod
    def _failed(self) -> _Error | None:
        """The error, if there is one."""

    @property
    def reasons(self) -> frozenset[str]:
        """The `reason` of every detail of an error (google.rpc.ErrorInfo)."""
        return frozenset(detail.reason for detail in self._details() if detail.reason)

    @property
    def quota_ids(self) -> tuple[str, ...]:
        """The quotas that an error says were used up (google.rpc.QuotaFailure)."""
        return tuple(v.quota_id for detail in self._details() for v in detail.violations or () if v.quota_id)

    @property
    def retry_delay(self) -> float | None:
        """What an error asks for, in seconds (google.rpc.RetryInfo); nonsense is None."""
        for detail in self._details():
            text = detail.retry_delay if detail.type == _RETRY_INFO else None
            if text is not None and _DURATION.fullmatch(text):
                return float(text[:-1])
        return None

    def _details(self) -> list[_Detail]:
        error = self._failed()
        return (error.details if error is not None else None) or []


class StreamReader(_Failing, EventReader[_Answer]):
    """Reads a stream: SSE (`alt=sse`), or the elements of one JSON array as they come."""

    _decoder = msgspec.json.Decoder(_Answer)
    marked = False

    def __init__(
        self,
        clock: Callable[[], float],
        on_first_chunk: Callable[[], None],
        encoding: str = "",
        *,
        array: bool = False,
    ) -> None:
        super().__init__(clock, on_first_chunk, encoding)
        self._array = ArrayCutter() if array else None
        if array:
            self.readable = False  # an event of ours would stand behind the array's end, or without its comma
        self._said = _Said()
        self._last_error: _Error | None = None

    def _failed(self) -> _Error | None:
        return self._last_error

    def _cut(self, chunk: bytes) -> Iterable[bytes]:
        return super()._cut(chunk) if self._array is None else self._array.feed(chunk)

    @property
    def unread(self) -> bool:
        """Of the array too."""
        return super().unread or (self._array is not None and self._array.overflowed)

    def _see(self, event: _Answer) -> None:
        if event.error is not None:
            self._error = _outcome(event.error), event.error.status or str(event.error.code or "error")
            self._last_error = event.error
            self.marked = True
            return
        self._said.see(event)
        self.complete, self._refused = self._said.complete, self._said.refused
        parts = [part for candidate in event.candidates or () for part in _parts(candidate)]
        if parts:
            self._pacer.saw("".join(map(_content, parts)))

    @property
    def answered(self) -> Answered:
        """What the stream has said so far."""
        pacer = self._pacer
        return replace(
            self._said.answered(),
            streamed=True,
            unmarked=True,
            unread=self.unread,
            content_bytes=pacer.content_bytes,
            first_chunk=pacer.first_chunk,
            pace=pacer.pace,
        )


def _parts(candidate: _Candidate) -> list[_Part]:
    """Those that say something: text that is not empty, or anything that is not text."""
    parts = candidate.content.parts if candidate.content is not None else None
    return [part for part in parts or () if part.text != ""]


def _content(part: _Part) -> str:
    return part.text or bytes(part.function_call).decode("utf-8", "replace")


class WholeReader(_Failing, BodyReader["_Answer | list[_Answer]"]):
    """Reads a JSON answer that comes in one piece: an answer, a count, a list of models, an error (or a list of one), or
    the array of a stream that was read whole."""

    _decoder = msgspec.json.Decoder(_Answer | list[_Answer])
    overloaded = OVERLOADED

    def _said(self, event: _Answer | list[_Answer]) -> _Said:
        said = _Said()
        for one in event if isinstance(event, list) else (event,):
            said.see(one)
        return said

    def _kind(self, event: _Answer | list[_Answer]) -> str | None:
        error = _error(event)
        return error.status if error is not None else None

    def _told(self, event: _Answer | list[_Answer]) -> Answered | None:
        said = self._said(event)
        return said.answered() if said.complete or said.usage is not None else None

    def _verdict(self, event: _Answer | list[_Answer]) -> tuple[Outcome, str | None]:
        if (error := _error(event)) is not None:
            return _outcome(error), error.status or str(error.code or "error")
        return (Outcome.REFUSED if self._said(event).refused else Outcome.OK), None

    def _outcome(self, kind: str | None) -> Outcome:
        # A key that is not valid is a 400 here.
        return Outcome.CLIENT_AUTH if "API_KEY_INVALID" in self.reasons else super()._outcome(kind)

    def _failed(self) -> _Error | None:
        event = self._event()
        return None if event is None else _error(event)


def _error(event: _Answer | list[_Answer]) -> _Error | None:
    answers = event if isinstance(event, list) else [event]
    return next((answer.error for answer in answers if answer.error is not None), None)


def _outcome(error: _Error) -> Outcome:
    """Of an error inside a 200: it carries the status that it would have had."""
    return outcome_of_status(error.code or 500, error.status, OVERLOADED)
