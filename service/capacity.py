"""Leave for each attempt: waits until the provider's limits have room, and tells the pacer what came of it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from opentelemetry.trace import Span

from service.account.estimate import tokens_of
from service.account.exchange import Call, Exchange
from service.account.pauses import Pauses
from service.errors import QueueRejected
from service.pacer.grant import Ask, Grant, PoolKey, Refused
from service.pacer.pacing import Pacer
from service.policy.pacing import TOKENS_PER_MEDIUM, Limit
from service.policy.size import measured
from service.record import Answered, Quota
from service.upstream.client import Prepared
from service.upstream.provider import Hint, Provider

_CREDENTIALS = (b"x-api-key", b"authorization", b"x-goog-api-key")
_DIMENSIONS = {
    "requests": "requests",
    "input_tokens": "input_tokens",
    "output_tokens": "output_tokens",
    "tokens": "input_tokens",
}
"""What the provider's dimensions are for the pacer: one limit for both kinds of tokens is filled by the input first."""
_NAMES = {"requests": "requests", "input_tokens": "input tokens", "output_tokens": "output tokens"}


class Capacity:
    """Paces the calls of one provider. `longest` is the most seconds that a call waits."""

    def __init__(self, pacer: Pacer, provider: Provider, pauses: Pauses, longest: float) -> None:
        self._pacer, self._provider, self._pauses, self._longest = pacer, provider, pauses, longest

    async def leave(self, exchange: Exchange, call: Call, prepared: Prepared, left: float) -> Leave | None:
        """Leave to send once, within `left` seconds; None for what is not paced. Raises `QueueRejected`."""
        if call.operation is None or not isinstance(prepared.body, bytes):
            return None
        text, media = measured(prepared.body)
        key = PoolKey(self._provider.name, _credential(prepared), self._provider.limit_class(call.model or ""))
        call.input_estimate = self._pacer.estimate_input(key, text, media)
        ask = Ask(
            client=exchange.client or "",
            max_wait=max(0.0, min(self._longest, left)),
            text_bytes=text,
            media=media,
            max_output=call.max_output,
        )
        waiting = _Waiting(self._pauses, exchange, call)
        try:
            grant = await self._pacer.acquire(key, ask, waiting)
        except Refused as refused:
            waiting.done(refused.dimension, None)
            raise _said(refused) from None
        except BaseException:
            waiting.done(None, None)
            raise
        waiting.done(grant.dimension, grant.predicted)
        return Leave(grant)


def guessed(call: Call, prepared: Prepared) -> int | None:
    """Input tokens by the body's size, of an inference that no pacer measures."""
    if call.operation is None or not isinstance(prepared.body, bytes):
        return None
    text, media = measured(prepared.body)
    return tokens_of(text) + round(media * TOKENS_PER_MEDIUM)


class Leave:
    """One attempt that may be made. `close` it always."""

    def __init__(self, grant: Grant) -> None:
        self._grant = grant

    def answered(self, quotas: Sequence[Quota], status: int, hint: Hint) -> None:
        """The answer's headers are in, and of an error its body."""
        if status == 429 and hint.limit != "spend":
            self._grant.rejected(hint.retry_after, _DIMENSIONS.get(hint.limit or ""))
        elif status < 400:
            known = [
                Limit(_DIMENSIONS[q.dimension], q.limit, q.remaining) for q in quotas if q.dimension in _DIMENSIONS
            ]
            self._grant.answered(known)
        else:
            self._grant.answered(None)

    def used(self, said: Answered) -> None:
        """What the answer has said of tokens so far: cache reads are free of the limits."""
        usage = said.usage
        if usage is not None:
            fresh = None if usage.input_tokens is None else usage.input_tokens - (usage.cache_read_tokens or 0)
            self._grant.used(fresh, usage.output_tokens)

    def settle(self, call: Call) -> None:
        """The call has ended with this attempt."""
        self.used(call.answered())
        self.close(sent=not call.attempts or call.attempts[-1].reason != "not_sent")

    def close(self, *, sent: bool = True) -> None:
        """The attempt is over; `sent` false: the provider never got it."""
        self._grant.close(sent=sent)


class _Waiting:
    """Puts a wait on the books, should there be one: the pacer enters `waiting` only then."""

    def __init__(self, pauses: Pauses, exchange: Exchange, call: Call) -> None:
        self._pauses, self._exchange, self._call = pauses, exchange, call
        self._span: Span | None = None

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """The block inside waits."""
        with self._pauses.for_capacity(self._exchange, self._call) as self._span:
            yield

    def done(self, dimension: str | None, predicted: float | None) -> None:
        """It is over: what it was for, and how long it was expected to be."""
        if self._span is not None:
            self._pauses.waited_for(self._span, dimension, predicted)


def _said(refused: Refused) -> QueueRejected:
    what = _NAMES.get(refused.dimension, refused.dimension)
    why = {
        "too_long": "the wait would be longer than this request may wait",
        "timeout": "there was no room for it in the time that it may wait",
        "queue_full": "too many requests wait already",
    }[refused.reason]
    return QueueRejected(
        f"the provider's limit of {what} per minute is used up: {why}",
        limit=refused.dimension,
        retry_after=refused.retry_after,
    )


def _credential(prepared: Prepared) -> str:
    """A hash that stands for the credential that goes up; the credential itself is kept nowhere."""
    digest = hashlib.blake2b(digest_size=16)
    for name, value in prepared.headers:
        if name in _CREDENTIALS:
            digest.update(value)
    return digest.hexdigest()
