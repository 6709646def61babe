"""What one attempt gave: an answer to hand on, or a failure that another attempt may cure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import msgspec

from observability.catalog import Outcome
from service.account.call import Call
from service.account.exchange import Exchange
from service.answer import Answer, Body
from service.errors import AnswerTimeout, InvalidAnswer, NoAnswer, NotSent, UpstreamFailed
from service.policy.retry import Failure
from service.record import Attempt
from service.relay import Chunks, Events, InBand, Relay, fail
from service.upstream.client import Response
from service.upstream.provider import Hint, StreamReader


class Result(Protocol):
    """What one attempt gave. It is either dropped, and another attempt follows, or handed on."""

    @property
    def status_shown(self) -> int:
        """The HTTP status that the client gets."""
        ...

    def failure(self) -> Failure | None:
        """What there is to think about before it is handed on; None for an answer that is good, or final."""
        ...

    async def drop(self, call: Call) -> None:
        """Another attempt follows: close what is open, put the attempt on record."""
        ...

    def hand_on(self, exchange: Exchange, call: Call, in_band: InBand) -> Answer:
        """The answer for the client. Raises `UpstreamFailed` when there is none."""
        ...


class Failed(msgspec.Struct, frozen=True):
    """There is no usable answer; `status` is the provider's, if one came."""

    error: UpstreamFailed
    status: int | None = None

    @property
    def status_shown(self) -> int:
        """Ours."""
        return self.error.status

    def failure(self) -> Failure | None:
        """Not sent, or sent and not (wholly) answered."""
        match self.error:
            case NotSent():
                return Failure("not_sent")
            case AnswerTimeout():
                return Failure("timeout", unanswered=True)
            case NoAnswer():
                return Failure("no_answer", unanswered=True)
            case InvalidAnswer():
                return Failure("http_error", unanswered=True)
        return Failure("no_answer", unanswered=True)

    async def drop(self, call: Call) -> None:
        """Nothing is open."""
        call.attempts.append(Attempt(self.error.attempt_reason, self.status, model=call.stand_in))

    def hand_on(self, exchange: Exchange, call: Call, in_band: InBand) -> Answer:
        """Raises what went wrong, and ends the call."""
        fail(exchange, call, self.error, self.status)
        raise self.error


class Whole(msgspec.Struct, frozen=True):
    """A JSON answer that is in; `hint` says what it asks for if it is an error. `outcome` and `error_type` are the call's."""

    response: Response
    body: bytes
    hint: Hint
    outcome: Outcome
    error_type: str | None

    @property
    def status_shown(self) -> int:
        """The provider's."""
        return self.response.status_code

    def failure(self) -> Failure | None:
        """By status."""
        status = self.response.status_code
        return None if status < 400 else _failure(self.outcome, status, self.hint)

    def _attempt(self, call: Call) -> Attempt:
        status = self.response.status_code
        reason = "ok" if status < 400 else "http_error"
        return Attempt(reason, status, self.hint.limit, self.hint.retry_after, call.stand_in)

    async def drop(self, call: Call) -> None:
        """The body was read to its end."""
        call.attempts.append(self._attempt(call))

    def hand_on(self, exchange: Exchange, call: Call, in_band: InBand) -> Answer:
        """As it came."""
        relay = Relay(exchange, call, self.response, in_band)
        body = relay.whole(self.body, self._attempt(call), self.outcome, self.error_type)
        return Answer(self.response.status_code, self.response.headers.raw, Body(body, relay.unread))


class Streaming(msgspec.Struct, frozen=True):
    """A streamed answer, read as far as its first event; `hint` tells what a rate-limit error in it asks for, once it is in."""

    response: Response
    events: Events
    reader: StreamReader
    hint: Callable[[], Hint]

    @property
    def status_shown(self) -> int:
        """The provider's."""
        return self.response.status_code

    def failure(self) -> Failure | None:
        """Only an error as the very first event is one: anything else has begun the client's answer."""
        if self.reader.opened_with != "error":
            return None
        outcome, _ = self.reader.ended()
        return _failure(outcome, self.response.status_code, self.hint())

    async def drop(self, call: Call) -> None:
        """End the stream."""
        await self.events.aclose()
        status, hint = self.response.status_code, self.hint()
        call.attempts.append(Attempt("http_error", status, hint.limit, hint.retry_after, call.stand_in))

    def hand_on(self, exchange: Exchange, call: Call, in_band: InBand) -> Answer:
        """Event by event."""
        relay = Relay(exchange, call, self.response, in_band)
        body = relay.events(self.events, self.reader, self.hint)
        return Answer(self.response.status_code, self.response.headers.raw, Body(body, relay.unread))


class Large(msgspec.Struct, frozen=True):
    """A large answer, unread."""

    response: Response
    chunks: Chunks

    @property
    def status_shown(self) -> int:
        """The provider's."""
        return self.response.status_code

    def failure(self) -> Failure | None:
        """None: its status is good, and what comes after is the client's."""
        return None

    async def drop(self, call: Call) -> None:
        """Never wanted."""
        await self.chunks.aclose()

    def hand_on(self, exchange: Exchange, call: Call, in_band: InBand) -> Answer:
        """Chunk by chunk."""
        relay = Relay(exchange, call, self.response, in_band)
        return Answer(
            self.response.status_code, self.response.headers.raw, Body(relay.chunks(self.chunks), relay.unread)
        )


def _failure(outcome: Outcome, status: int, hint: Hint) -> Failure:
    overloaded = outcome is Outcome.UPSTREAM_OVERLOADED
    limited = outcome is Outcome.UPSTREAM_429
    reason = "overloaded" if overloaded else "rate_limited" if limited else "http_error"
    if status < 400:  # an error inside a stream: what status would it have had?
        status = 529 if overloaded else 429 if limited else 400 if outcome is Outcome.CLIENT_INVALID else 500
    return Failure(
        reason,
        status,
        overloaded=overloaded,
        limit=hint.limit,
        retry_after=hint.retry_after,
        should_retry=hint.should_retry,
    )
