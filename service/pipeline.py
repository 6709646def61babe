"""One provider call from decision to closed record, readable top to bottom.

    send -> answer's headers -> SSE: relay event by event | JSON: read whole, then deliver | large: relay chunk by chunk
         -> what the bytes said -> exchange.end_call -> last byte handed on

The record is closed before the last byte goes out: whoever has the whole answer finds its metrics and log line.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing

from observability.catalog import Outcome
from service.account.exchange import Call, Exchange
from service.answer import Answer, Body
from service.errors import (
    AnswerTimeout,
    DiedMidBody,
    Draining,
    GatewayError,
    InternalError,
    InvalidAnswer,
    UpstreamFailed,
)
from service.lifetime import Ending, Waits, absorb_cancellation
from service.record import Attempt
from service.upstream import anthropic, outcomes, sse
from service.upstream.client import Client, Prepared, Response, Stream

MAX_WHOLE = 64 * 1024 * 1024
"""Bytes of a JSON answer that are held to be read whole; a larger one is no answer the API gives."""
_DELIVERY = 65_536

InBand = Callable[[GatewayError], bytes]
"""Writes an error as an event of the provider's stream."""


class Pipeline:
    """Calls one provider. `injects` says that the credential sent is ours, so a refusal of it is not the client's fault."""

    def __init__(self, client: Client, *, injects: bool, total_timeout: float) -> None:
        self._client = client
        self._injects = injects
        self._total_timeout = total_timeout

    async def run(
        self,
        exchange: Exchange,
        call: Call,
        prepared: Prepared,
        *,
        in_band: InBand,
        large: bool = False,
        check: Callable[[bytes], object] | None = None,
    ) -> Answer:
        """Send and return the answer as its headers are in (or, for JSON, its whole body). Raises `UpstreamFailed`.

        `large` answers are passed through chunk by chunk, unread. `check` sees a JSON answer that is no error, and
        raises `InvalidAnswer` when the caller cannot use it. The call is ended by the answer's body, or here when an
        error is raised.
        """
        response = await self._send(exchange, call, prepared)
        status, kind = response.status_code, response.headers.get("content-type", "")
        call.upstream_request_id = response.headers.get("request-id")
        call.quotas = anthropic.quotas(response.headers, time.time())
        exchange.status = status if exchange.call is call else None
        encoding = response.headers.get("content-encoding", "")
        if status < 400 and kind.startswith("text/event-stream"):
            stream = anthropic.StreamReader(call.elapsed, call.first_chunk_event, encoding)
            call.answered = lambda: stream.answered
            body = self._relay_events(exchange, call, response, stream, in_band)
        elif status < 400 and large:
            body = self._relay(exchange, call, response)
        else:
            whole = anthropic.WholeReader(status, inference=call.operation is not None, encoding=encoding)
            call.answered = lambda: whole.answered
            read = await self._read(exchange, call, response, whole, check if status < 400 else None)
            body = self._deliver(exchange, call, response, whole, read)

        async def unread() -> None:
            await response.stream.aclose()
            self._abandon(exchange, call, None, status)

        return Answer(status, response.headers.raw, Body(body, unread))

    async def _send(self, exchange: Exchange, call: Call, prepared: Prepared) -> Response:
        try:
            with exchange.lifetime.upstream.waiting():
                return await self._client.send(prepared, call.span)
        except GatewayError as error:
            self._fail(exchange, call, error, None)
            raise
        except BaseException as error:
            self._abandon(exchange, call, error, None, begun=False)
            raise

    async def _read(
        self,
        exchange: Exchange,
        call: Call,
        response: Response,
        reader: anthropic.WholeReader,
        check: Callable[[bytes], object] | None,
    ) -> bytes:
        """The whole body of a JSON answer, also shown to `reader` and, whole, to `check`."""
        parts: list[bytes] = []
        size = 0
        try:
            async with aclosing(response.stream):
                async for chunk in self._body(exchange, call, response):
                    reader.feed(chunk)
                    parts.append(chunk)
                    size += len(chunk)
                    if size > MAX_WHOLE:
                        raise InvalidAnswer(f"the provider's answer is over {MAX_WHOLE} bytes")
            body = b"".join(parts)
            if check is not None:
                check(body)
        except UpstreamFailed as error:
            self._fail(exchange, call, error, response.status_code)
            raise
        except BaseException as error:
            self._abandon(exchange, call, error, response.status_code, begun=False)
            raise
        return body

    async def _deliver(
        self, exchange: Exchange, call: Call, response: Response, reader: anthropic.WholeReader, body: bytes
    ) -> AsyncGenerator[bytes]:
        """A body that is in, handed on piece by piece; the call ends before the last piece."""
        call.stop_clock()
        outcome, error_type = reader.ended()
        if self._injects and response.status_code in (401, 403):
            outcome = Outcome.UPSTREAM_ERROR
        limit = None
        if response.status_code == 429:
            limit = outcomes.limit_of_429(response.headers, reader.error_code)
        reason = "ok" if response.status_code < 400 else "http_error"
        call.attempts.append(Attempt(reason, response.status_code, limit, _retry_after(response.headers)))
        start = 0
        try:
            while len(body) - start > _DELIVERY:
                yield body[start : start + _DELIVERY]
                start += _DELIVERY
        except BaseException as error:
            ending = _outcome_of_ending(exchange, error)
            exchange.end_call(call, ending, ending.value)
            raise
        exchange.end_call(call, outcome, error_type)
        if body:
            yield body[start:]

    async def _relay(self, exchange: Exchange, call: Call, response: Response) -> AsyncGenerator[bytes]:
        """A large answer, chunk by chunk. Raises `UpstreamFailed` in the middle: the client must see it cut, not ended."""
        try:
            async with aclosing(response.stream):
                async for chunk in self._body(exchange, call, response):
                    yield chunk
        except UpstreamFailed as error:
            self._fail(exchange, call, error, response.status_code)
            raise
        except BaseException as error:
            self._abandon(exchange, call, error, response.status_code)
            raise
        call.attempts.append(Attempt("ok", response.status_code))
        exchange.end_call(call, Outcome.OK, None)

    async def _relay_events(
        self, exchange: Exchange, call: Call, response: Response, reader: anthropic.StreamReader, in_band: InBand
    ) -> AsyncGenerator[bytes]:
        """An SSE answer, event by event as it arrives; what ends it early is told in-band, at an event's end."""
        splitter = sse.Splitter()
        failure: GatewayError | None = None
        try:
            async with aclosing(response.stream):
                async for chunk in self._body(exchange, call, response):
                    reader.feed(chunk)
                    if reader.over and not exchange.ended:
                        # Before the last word goes out, however long the provider then keeps its connection open.
                        call.attempts.append(Attempt("ok", response.status_code))
                        exchange.end_call(call, *reader.ended())
                    if events := splitter.feed(chunk) if reader.readable else chunk:
                        yield events
        except UpstreamFailed as error:
            failure = error
        except asyncio.CancelledError as error:
            if exchange.lifetime.ending is not Ending.DRAIN:
                self._abandon(exchange, call, error, response.status_code)
                raise
            absorb_cancellation()
            failure = Draining("the gateway is shutting down; the stream was ended early")
        except BaseException as error:
            self._abandon(exchange, call, error, response.status_code)
            raise
        if reader.over:
            if rest := splitter.rest():
                yield rest
            return
        failure = failure or DiedMidBody("the provider's stream ended before message_stop")
        reason = failure.attempt_reason if isinstance(failure, UpstreamFailed) else "aborted"
        call.attempts.append(Attempt(reason, response.status_code))
        exchange.end_call(call, failure.outcome, failure.error_type)
        if splitter.mid_event or not reader.readable:
            raise failure  # there is no place for an event: the client must see its stream cut, not ended
        yield in_band(failure)

    def _body(self, exchange: Exchange, call: Call, response: Response) -> _Body:
        return _Body(response.stream, exchange.lifetime.upstream, call, self._total_timeout, self._client.idle_timeout)

    @staticmethod
    def _fail(exchange: Exchange, call: Call, error: GatewayError, status: int | None) -> None:
        """The provider failed, or (while its body was being sent up) the client did."""
        call.attempts.append(Attempt(error.attempt_reason if isinstance(error, UpstreamFailed) else "aborted", status))
        if exchange.call is call:
            exchange.status = error.status
        exchange.end_call(call, error.outcome, error.error_type)

    @staticmethod
    def _abandon(
        exchange: Exchange,
        call: Call,
        error: BaseException | None,
        status: int | None,
        *,
        begun: bool = True,
    ) -> None:
        """The request was ended from outside, or by a bug.

        `status` is the provider's; `begun` says that the client has it too. Else it gets one of ours, or is gone.
        """
        outcome = _outcome_of_ending(exchange, error)
        if not begun and exchange.call is call:
            exchange.status = _STATUS.get(outcome)
        if not exchange.ended:  # a stream whose last word has gone out has ended already
            call.attempts.append(Attempt("aborted", status))
            exchange.end_call(call, outcome, outcome.value)


class _Body:
    """An answer's chunks, with the time waited for them on the books. Raises `AnswerTimeout` over the total timeout."""

    def __init__(self, stream: Stream, waits: Waits, call: Call, total_timeout: float, idle_timeout: float) -> None:
        self._chunks = aiter(stream)
        self._waits, self._call, self._total_timeout, self._idle = waits, call, total_timeout, idle_timeout

    def __aiter__(self) -> _Body:
        return self

    async def __anext__(self) -> bytes:
        left = self._total_timeout - self._call.elapsed()
        try:
            if left <= 0:
                raise TimeoutError
            with self._waits.waiting():
                # The stream itself raises after the idle timeout: a timer of ours is needed near the end only.
                async with asyncio.timeout(left if left < self._idle else None):
                    return await anext(self._chunks)
        except TimeoutError:
            raise AnswerTimeout(f"the call took longer than the total timeout of {self._total_timeout:g} s") from None


_STATUS = {Outcome.DRAINING: Draining.status, Outcome.INTERNAL_ERROR: InternalError.status}
"""What the client gets of us when its request is ended before it has begun to be answered."""


def _outcome_of_ending(exchange: Exchange, error: BaseException | None) -> Outcome:
    """By why the request was ended; an error that nobody meant is a bug of ours."""
    if exchange.lifetime.ending is Ending.DRAIN:
        return Outcome.DRAINING
    outside = error is None or isinstance(error, asyncio.CancelledError | GeneratorExit)
    return Outcome.CLIENT_ABORT if outside or exchange.lifetime.ending is Ending.CLIENT_GONE else Outcome.INTERNAL_ERROR


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """`retry-after` in seconds; a date or nonsense is None (the API sends seconds)."""
    try:
        return float(headers.get("retry-after", ""))
    except ValueError:
        return None
