"""One provider call from decision to closed record, readable top to bottom.

send -> answer's headers -> SSE: as far as its first event | JSON: read whole | large: headers only
     -> failed, and the client has no byte yet: pause (or a stand-in model) and send again
     -> relay to the client -> what the bytes said -> exchange.end_call -> last byte handed on
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import msgspec
from msgspec.structs import replace

from observability.catalog import Outcome
from service.account.call import Call
from service.account.exchange import Exchange
from service.account.pauses import Pauses
from service.allowances import Allowances
from service.answer import Answer
from service.caching import Asked, Caching
from service.capacity import Capacity, Leave, guessed
from service.capturing import Capturing
from service.errors import GatewayError, QueueRejected, UpstreamFailed
from service.policy.retry import Failure, Pause, Stop
from service.record import Answered
from service.relay import Chunks, Events, abandon, end_with, fail, read_whole
from service.results import Failed, Large, Result, Streaming, Whole
from service.tries import Budget, Plan, StandIn, Tries
from service.upstream.client import Client, Prepared, Response
from service.upstream.provider import Hint, Provider, Said, StreamReader

_LIMITED = 429
"""The status that an answer would have had whose 200 turns out to be a rate-limit error."""
_LEAST = 0.1
"""Seconds that an attempt gets for its first byte at least."""

Check = Callable[[bytes], object]


class _Job(msgspec.Struct, frozen=True):
    """One call to be made, as `Pipeline.run` was asked for it."""

    exchange: Exchange
    call: Call
    model: str | None
    """Who is to be asked: the model wanted, or a stand-in."""
    prepared: Prepared
    large: bool
    check: Check | None


class Pipeline:
    """Calls one provider. `injects` says that the credential sent is ours, so a refusal of it is not the client's fault."""

    def __init__(
        self,
        provider: Provider,
        client: Client,
        pauses: Pauses,
        plan: Plan,
        budget: Budget,
        vain: Budget,
        *,
        injects: bool,
        total_timeout: float,
        caching: Caching | None = None,
        capacity: Capacity | None = None,
        allowances: Allowances | None = None,
        capturing: Capturing | None = None,
    ) -> None:
        self.provider = provider
        self._client, self._pauses, self._plan, self._budget, self._vain = client, pauses, plan, budget, vain
        self._injects, self._caching, self._capacity, self._allowances = injects, caching, capacity, allowances
        self._total_timeout, self._capturing = total_timeout, capturing

    async def run(
        self, exchange: Exchange, call: Call, prepared: Prepared, *, large: bool = False, check: Check | None = None
    ) -> Answer:
        """Send, again where that helps, and return the answer as its headers are in (a stream's: its first event; for
        JSON its whole body). Raises `GatewayError`.

        `large` answers are passed through chunk by chunk, unread. `check` sees a JSON answer that is no error, and raises
        `InvalidAnswer` when the caller cannot use it. The call is ended by the answer's body, or here when an error is
        raised.
        """
        asked = await self._before(exchange, call, prepared)
        if self._caching is not None and asked is not None and asked.kept is not None:
            return self._caching.again(exchange, call, asked.kept)
        answer = await self._fresh(_Job(exchange, call, call.model, prepared, large, check))
        return self._caching.keep(answer, call, asked) if self._caching is not None and asked is not None else answer

    async def _before(self, exchange: Exchange, call: Call, prepared: Prepared) -> Asked | None:
        """The client's limits, then the cache; what is counted for a call that goes no further is given back."""
        try:
            if self._allowances is not None:
                self._allowances.admit(exchange, call)
            return await self._caching.ask(exchange, call, prepared) if self._caching is not None else None
        except GatewayError as error:
            end_with(exchange, call, error)
            raise
        except BaseException as error:
            abandon(exchange, call, error, None, begun=False, sent=False)
            raise

    async def _fresh(self, job: _Job) -> Answer:
        exchange, call = job.exchange, job.call
        try:
            result, stop = await self._until_final(job)
        except GatewayError as error:
            end_with(exchange, call, error)
            raise
        except BaseException as error:
            abandon(exchange, call, error, None, begun=False, sent=False)
            raise
        exchange.status = result.status_shown if exchange.call is call else None
        pointless = stop is not None and stop.is_ours
        if pointless and isinstance(result, Failed):
            result.error.should_retry = False  # type: ignore[misc]  # an instance's own, where the class has its kind's
        answer = result.hand_on(exchange, call, lambda error: self.provider.error_event(said(error, exchange)))
        return _with_our_word(answer, call, pointless=pointless)

    async def _until_final(self, job: _Job) -> tuple[Result, Stop | None]:
        """Attempts until one is to be handed on; with it, why no other followed if it failed."""
        exchange, call = job.exchange, job.call
        clock = exchange.lifetime.clock
        deadline = clock() + min(self._total_timeout, job.prepared.first_byte_timeout)
        tries = Tries(
            self._plan,
            self._budget,
            self._vain,
            model=call.model,
            safe=job.prepared.is_safe,
            repeatable=isinstance(job.prepared.body, bytes),
            deadline=deadline,
            may_ask=lambda name: self._allowances is None or self._allowances.may_ask(exchange.client, name),
        )
        last: tuple[Result, str | None] | None = None
        while True:
            call.model = job.model
            try:
                leave = await self._leave(job, deadline - clock())
            except QueueRejected:
                following = self._following(job, tries.without_room())
                if following is not None:
                    job = following
                    continue
                if last is None:
                    raise
                call.attempts.pop()  # it is handed on after all, and goes on record with that
                result, call.model = last
                return result, Stop.DEADLINE
            exchange.begin_call(call)
            result = await self._attempt(_within(job, deadline - clock()), leave)
            failure = result.failure()
            if failure is None:
                return result, None
            step = tries.after(failure, clock())
            following = self._following(job, step)
            if following is None:
                return result, step if isinstance(step, Stop) else Stop.FINAL
            await result.drop(call)
            last = (result, call.model) if isinstance(result, Whole | Failed) else None
            if leave is not None:
                call.on_end.remove(leave.settle)
                leave.close(sent=failure.reason != "not_sent")
            exchange.upgrade()
            if isinstance(step, Pause):
                await self._pause(job, failure, step)
            job = following

    async def _leave(self, job: _Job, left: float) -> Leave | None:
        """Wait for room under the provider's limits. What is taken is settled as the call ends."""
        if self._capacity is None:
            job.call.input_estimate = guessed(job.call, job.prepared)
            return None
        leave = await self._capacity.leave(job.exchange, job.call, job.prepared, left)
        if leave is not None:
            job.call.on_end.append(leave.settle)
        return leave

    def _following(self, job: _Job, step: Pause | StandIn | Stop) -> _Job | None:
        """The job as it is to be sent next; None when there is no other try."""
        if isinstance(step, Stop):
            return None
        if isinstance(step, Pause):
            return job
        stood_in = self.provider.with_model(job.prepared.target, job.prepared.body, step.model)
        if stood_in is None:
            return None
        self._pauses.handed_over(job.call, step.model)
        return replace(job, model=step.model, prepared=replace(job.prepared, target=stood_in[0], body=stood_in[1]))

    async def _pause(self, job: _Job, failure: Failure, pause: Pause) -> None:
        with self._pauses.before_retry(job.exchange, job.call, failure.reason, pause.seconds, pause.asked_by):
            await asyncio.sleep(pause.seconds)

    async def _attempt(self, job: _Job, leave: Leave | None) -> Result:
        """Send once and read as far as must be read before the client gets its first byte."""
        exchange, call, status = job.exchange, job.call, None
        call.sent, call.answered, call.upstream_request_id = True, Answered, None  # an attempt before told its own
        if self._capturing is not None:
            self._capturing.sending(call, job.prepared)
        try:
            with exchange.lifetime.upstream.waiting():
                response = await self._client.send(job.prepared, call.span, resend_count=len(call.attempts))
            status = response.status_code
            call.upstream_request_id = response.headers.get(self.provider.request_id_header)
            call.quotas = self.provider.quotas(response.headers, time.time())
            if leave is not None and status < 400:
                leave.answered(call.quotas, status, Hint(), soon=not call.streaming)
            try:
                return await self._opened(job, response, leave)
            except BaseException:
                await response.stream.aclose()  # now, not when it is collected: the provider works on, and bills
                raise
        except UpstreamFailed as error:
            return Failed(error, status)
        except GatewayError as error:
            fail(exchange, call, error, status)  # the client's own body ended it
            raise
        except BaseException as error:
            abandon(exchange, call, error, status, begun=False)
            raise

    async def _opened(self, job: _Job, response: Response, leave: Leave | None) -> Result:
        call, provider = job.call, self.provider
        status, kind = response.status_code, response.headers.get("content-type", "")
        encoding = response.headers.get("content-encoding", "")
        chunks = Chunks(response.stream, job.exchange.lifetime, call, self._total_timeout, self._client.idle_timeout)
        if status < 400 and provider.is_stream(kind, asked=call.streaming):
            stream = provider.stream_reader(call.elapsed, call.first_chunk_event, kind, encoding)
            call.answered = lambda: provider.told(stream.answered, response.headers)
            if self._capturing is not None:
                self._capturing.stream(call, stream)
            events = Events(chunks, stream)
            await events.open()
            streaming = Streaming(response, events, stream, lambda: _hint(provider, response, stream))
            if leave is not None:
                leave.used(stream.answered)
                leave.limited(streaming.hint())
            return streaming
        if status < 400 and job.large:
            return Large(response, chunks)
        whole = provider.whole_reader(status, inference=call.operation is not None, encoding=encoding)
        call.answered = lambda: provider.told(whole.answered, response.headers)
        if self._capturing is not None:
            self._capturing.whole(call, whole)
        body = await read_whole(chunks, whole.feed)
        if job.check is not None and status < 400:
            job.check(body)
        outcome, error_type = whole.ended()
        if self._injects and outcome is Outcome.CLIENT_AUTH:
            outcome = Outcome.UPSTREAM_ERROR
        meant = _LIMITED if outcome is Outcome.UPSTREAM_429 else status
        hint = provider.hint(meant, response.headers, whole) if meant >= 400 else Hint()
        if leave is not None and meant >= 400:
            leave.answered(call.quotas, meant, hint)
        return Whole(response, body, hint, outcome, error_type)


def _hint(provider: Provider, response: Response, stream: StreamReader) -> Hint:
    """What the rate-limit error asks for with which a stream has ended; nothing for any other stream."""
    limited = stream.ended()[0] is Outcome.UPSTREAM_429
    return provider.hint(_LIMITED, response.headers, stream) if limited else Hint()


def _within(job: _Job, left: float) -> _Job:
    """The job with what is left of its time: what went before, waits too, is the client's time already."""
    if not job.call.attempts and not job.call.queued:
        return job
    patience = min(job.prepared.first_byte_timeout, max(left, _LEAST))
    return replace(job, prepared=replace(job.prepared, first_byte_timeout=patience))


def said(error: GatewayError, exchange: Exchange | None) -> Said:
    """An error of ours with what the client needs to find it again."""
    details = {"source": error.source, **error.details}
    if exchange is not None:
        details["trace_id"] = exchange.trace_id
    if error.field is not None:
        details["field"] = error.field
    return Said(error.status, error.type, error.message, details, exchange.request_id if exchange is not None else None)


def _with_our_word(answer: Answer, call: Call, *, pointless: bool) -> Answer:
    """What the client should know beyond the provider's answer: who spoke, and that we have tried already."""
    added = []
    if call.stand_in is not None:
        added.append((b"x-claude-proxy-model", call.stand_in.encode()))
    headers = answer.headers
    if pointless:
        headers = [(name, value) for name, value in headers if name.lower() != b"x-should-retry"]
        added.append((b"x-should-retry", b"false"))
    return replace(answer, headers=[*headers, *added]) if added else answer
