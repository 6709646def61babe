"""Hands a provider's answer on to the client, and ends its call: whole, chunk by chunk, or event by event.

The record is closed before the last byte goes out: whoever has the whole answer finds its metrics and log line.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing

from observability.catalog import Outcome
from service.account.call import Call
from service.account.exchange import Exchange
from service.errors import (
    AnswerTimeout,
    DiedMidBody,
    Draining,
    GatewayError,
    InternalError,
    InvalidAnswer,
    Limited,
    UpstreamFailed,
    is_refusal,
)
from service.lifetime import Ending, Lifetime, absorb_cancellation
from service.record import Attempt
from service.upstream import sse
from service.upstream.client import Response, Stream
from service.upstream.provider import Hint, StreamReader

_DELIVERY = 65_536
"""Bytes handed on at a time of a body that is in."""
_OPENING = 65_536
"""Bytes after which a stream whose first event has not ended counts as begun."""

MAX_WHOLE = 64 * 1024 * 1024
"""Bytes of a JSON answer that are held to be read whole; a larger one is no answer the API gives."""

InBand = Callable[[GatewayError], bytes]
"""Writes an error as an event of the provider's stream."""


class Chunks:
    """An answer's chunks, with the time waited for them on the books.

    Raises `AnswerTimeout` over the total timeout. What the client took to read is not the provider's time.
    """

    def __init__(self, stream: Stream, life: Lifetime, call: Call, total_timeout: float, idle_timeout: float) -> None:
        self._chunks = aiter(stream)
        self._stream = stream
        self._life, self._call, self._total_timeout, self._idle = life, call, total_timeout, idle_timeout

    def __aiter__(self) -> Chunks:
        return self

    async def __anext__(self) -> bytes:
        clients = self._life.client.seconds - self._call.client_before
        left = self._total_timeout + clients - self._call.elapsed()
        try:
            if left <= 0:
                raise TimeoutError
            with self._life.upstream.waiting():
                if left >= self._idle:  # the stream itself raises after the idle timeout
                    return await anext(self._chunks)
                async with asyncio.timeout(left):
                    return await anext(self._chunks)
        except TimeoutError:
            raise AnswerTimeout(f"the call took longer than the total timeout of {self._total_timeout:g} s") from None

    async def aclose(self) -> None:
        """Give the connection back, or close it."""
        await self._stream.aclose()


class Events:
    """A stream's bytes as they pass its reader. `open` reads as far as the first event, so that an error there can still
    become another try; iterating yields what it read, then the rest."""

    def __init__(self, chunks: Chunks, reader: StreamReader) -> None:
        self._chunks = chunks
        self._reader = reader
        self._early: list[bytes] = []
        self._failure: UpstreamFailed | None = None

    async def open(self) -> None:
        """Read until the first event is in, whatever it is; a stream that dies before tells so when it is iterated."""
        size = 0
        while self._reader.opened_with is None and size < _OPENING:
            try:
                chunk = await anext(self._chunks)
            except StopAsyncIteration:
                return
            except UpstreamFailed as error:
                self._failure = error
                return
            self._reader.feed(chunk)
            self._early.append(chunk)
            size += len(chunk)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        early, self._early = self._early, []
        for chunk in early:
            yield chunk
        if self._failure is not None:
            raise self._failure
        async for chunk in self._chunks:
            self._reader.feed(chunk)
            yield chunk

    async def aclose(self) -> None:
        """End the stream."""
        await self._chunks.aclose()


class Relay:
    """Hands one call's answer on; `status` is the provider's."""

    def __init__(self, exchange: Exchange, call: Call, response: Response, in_band: InBand) -> None:
        self._exchange, self._call, self._response, self._in_band = exchange, call, response, in_band
        self._status = response.status_code

    async def whole(
        self, body: bytes, attempt: Attempt, outcome: Outcome, error_type: str | None
    ) -> AsyncGenerator[bytes]:
        """A body that is in, handed on piece by piece; the call ends before the last piece."""
        exchange, call = self._exchange, self._call
        call.stop_clock()
        call.attempts.append(attempt)
        start = 0
        try:
            while len(body) - start > _DELIVERY:
                yield body[start : start + _DELIVERY]
                start += _DELIVERY
        except BaseException as error:
            ending = outcome_of_ending(exchange, error)
            exchange.end_call(call, ending, ending.value)
            raise
        exchange.end_call(call, outcome, error_type)
        if body:
            yield body[start:]

    async def chunks(self, chunks: Chunks) -> AsyncGenerator[bytes]:
        """A large answer, unread. Raises `UpstreamFailed` in the middle: the client must see it cut, not ended."""
        exchange, call = self._exchange, self._call
        try:
            async with aclosing(chunks):
                async for chunk in chunks:
                    yield chunk
        except UpstreamFailed as error:
            fail(exchange, call, error, self._status)
            raise
        except BaseException as error:
            abandon(exchange, call, error, self._status)
            raise
        call.attempts.append(Attempt("ok", self._status, model=call.stand_in))
        exchange.end_call(call, Outcome.OK, None)

    async def events(self, events: Events, reader: StreamReader, hint: Callable[[], Hint]) -> AsyncGenerator[bytes]:
        """A streamed answer, event by event as it arrives; what ends it early is told in-band, at an event's end. `hint`
        tells what a rate-limit error in it asks for.

        The call ends before the last word goes out, however long the provider then keeps its connection open. Where the API
        does not mark it, more may come after what looks like it: there it ends with the stream, and one that dies is cut off.
        """
        exchange, call = self._exchange, self._call
        splitter = sse.Splitter()
        failure: GatewayError | None = None
        try:
            async with aclosing(events):
                async for chunk in events:
                    if reader.over and reader.marked:
                        self._said_all(reader, hint)
                    if whole := splitter.feed(chunk) if reader.readable else chunk:
                        yield whole
            reader.end()
        except UpstreamFailed as error:
            failure = error
        except asyncio.CancelledError as error:
            if exchange.lifetime.ending is not Ending.DRAIN:
                self._given_up(reader, hint, error)
                raise
            absorb_cancellation()
            failure = Draining("the gateway is shutting down; the stream was ended early")
        except BaseException as error:
            self._given_up(reader, hint, error)
            raise
        if reader.over and (reader.marked or not isinstance(failure, UpstreamFailed)):
            self._said_all(reader, hint)
            if rest := splitter.rest():
                yield rest
            return
        failure = failure or DiedMidBody("the provider's stream ended before its last event")
        reason = failure.attempt_reason if isinstance(failure, UpstreamFailed) else "aborted"
        call.attempts.append(Attempt(reason, self._status, model=call.stand_in))
        exchange.end_call(call, failure.outcome, failure.error_type)
        if splitter.mid_event or not reader.readable:
            raise failure  # there is no place for an event: the client must see its stream cut, not ended
        yield self._in_band(failure)

    def _said_all(self, reader: StreamReader, hint: Callable[[], Hint]) -> None:
        """The provider has said its last word."""
        call = self._call
        if not call.ended:
            asks = hint()
            call.attempts.append(Attempt("ok", self._status, asks.limit, asks.retry_after, call.stand_in))
            self._exchange.end_call(call, *reader.ended())

    def _given_up(self, reader: StreamReader, hint: Callable[[], Hint], error: BaseException) -> None:
        """The client has left: some do as soon as they have what looks like the last word, and then they have it all."""
        if reader.over and isinstance(error, asyncio.CancelledError | GeneratorExit):
            self._said_all(reader, hint)
        abandon(self._exchange, self._call, error, self._status)

    async def unread(self) -> None:
        """The answer was given up before anybody began to read it."""
        await self._response.stream.aclose()
        abandon(self._exchange, self._call, None, self._status)


async def read_whole(chunks: Chunks, feed: Callable[[bytes], None]) -> bytes:
    """The whole body of a JSON answer, also shown to `feed`. Raises `UpstreamFailed`."""
    parts: list[bytes] = []
    size = 0
    async with aclosing(chunks):
        async for chunk in chunks:
            feed(chunk)
            parts.append(chunk)
            size += len(chunk)
            if size > MAX_WHOLE:
                raise InvalidAnswer(f"the provider's answer is over {MAX_WHOLE} bytes")
    return b"".join(parts)


def fail(exchange: Exchange, call: Call, error: GatewayError, status: int | None) -> None:
    """The provider failed, or (while its body was being sent up) the client did."""
    reason = error.attempt_reason if isinstance(error, UpstreamFailed) else "aborted"
    call.attempts.append(Attempt(reason, status, model=call.stand_in))
    end_with(exchange, call, error)


def end_with(exchange: Exchange, call: Call, error: GatewayError) -> None:
    """The call ends with an error answer of ours."""
    if isinstance(error, Limited):
        call.refused_by = error.limit
    if exchange.call is call:
        exchange.status = error.status
        exchange.rejected = error.type if is_refusal(error) else None
    exchange.end_call(call, error.outcome, error.error_type)


def abandon(
    exchange: Exchange,
    call: Call,
    error: BaseException | None,
    status: int | None,
    *,
    begun: bool = True,
    sent: bool = True,
) -> None:
    """The request was ended from outside, or by a bug.

    `status` is the provider's; `begun` says that the client has it too. Else it gets one of ours, or is gone. `sent` says
    that an attempt was under way.
    """
    outcome = Outcome.UPSTREAM_TIMEOUT if call.out_of_time else outcome_of_ending(exchange, error)
    if not begun and exchange.call is call:
        exchange.status = _STATUS.get(outcome)
    if not call.ended:  # a stream whose last word has gone out has ended already
        if sent:
            call.attempts.append(Attempt("aborted", status, model=call.stand_in))
        exchange.end_call(call, outcome, outcome.value)


_STATUS = {Outcome.DRAINING: Draining.status, Outcome.INTERNAL_ERROR: InternalError.status}
"""What the client gets of us when its request is ended before it has begun to be answered."""


def outcome_of_ending(exchange: Exchange, error: BaseException | None) -> Outcome:
    """By why the request was ended; an error that nobody meant is a bug of ours."""
    if exchange.lifetime.ending is Ending.DRAIN:
        return Outcome.DRAINING
    outside = error is None or isinstance(error, asyncio.CancelledError | GeneratorExit)
    return Outcome.CLIENT_ABORT if outside or exchange.lifetime.ending is Ending.CLIENT_GONE else Outcome.INTERNAL_ERROR
