"""Leave for each attempt: waits until the provider's limits have room, and tells the pacer what came of it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from opentelemetry.trace import Span

from service.account.call import Call
from service.account.estimate import tokens_of
from service.account.exchange import Exchange
from service.account.pauses import Pauses
from service.errors import QueueRejected
from service.pacer.grant import Ask, Grant, PoolKey, Refused
from service.pacer.pacing import Pacer
from service.policy.pacing import TOKENS_PER_MEDIUM, Limit
from service.policy.size import measured
from service.record import Answered, Quota, Usage
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
        limits = f"{self._provider.limit_class(call.model or '')} {call.lane}".rstrip()
        key = PoolKey(self._provider.name, _credential(prepared), limits)
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
        call.input_estimate = grant.estimate
        return Leave(grant, call.lane)


def guessed(call: Call, prepared: Prepared) -> int | None:
    """Input tokens by the body's size, of an inference that no pacer measures."""
    if call.operation is None or not isinstance(prepared.body, bytes):
        return None
    text, media = measured(prepared.body)
    return tokens_of(text) + round(media * TOKENS_PER_MEDIUM)


class Leave:
    """One attempt that may be made. `close` it always."""

    def __init__(self, grant: Grant, lane: str = "") -> None:
        self._grant, self._prefix = grant, f"{lane}_" if lane else ""

    def answered(self, quotas: Sequence[Quota], status: int, hint: Hint, *, soon: bool = False) -> None:
        """The answer's headers are in, and of an error its body. `soon`: its body comes in one piece."""
        if status == 429 and hint.limit != "spend":
            self._grant.rejected(hint.retry_after, _DIMENSIONS.get(hint.limit or ""))
        elif status < 400:
            ours = [q for q in quotas if q.dimension.startswith(self._prefix)]
            named = [(_DIMENSIONS.get(q.dimension.removeprefix(self._prefix)), q) for q in ours]
            self._grant.answered(
                [Limit(name, q.limit, q.remaining) for name, q in named if name is not None], soon=soon
            )
        else:
            self._grant.answered(None)

    def limited(self, hint: Hint) -> None:
        """A rate-limit error came inside an answer that had begun as a good one; a `hint` without a limit is none."""
        if hint.limit is not None:
            self.answered((), 429, hint)

    def used(self, said: Answered) -> None:
        """What the answer has said of tokens so far."""
        if said.usage is not None:
            self._grant.used(*_billed(said))

    def settle(self, call: Call) -> None:
        """The call has ended with this attempt."""
        said, last = call.answered(), call.attempts[-1] if call.attempts else None
        if last is not None and last.limit is not None:
            self.used(said)
            self.limited(Hint(last.limit, last.retry_after))
        sent = last is None or last.reason != "not_sent"
        tokens_in, tokens_out = _billed(said)
        self._grant.close(sent=sent, input_tokens=tokens_in, output_tokens=tokens_out)

    def close(self, *, sent: bool = True) -> None:
        """The attempt is over; `sent` false: the provider never got it."""
        self._grant.close(sent=sent)


def _billed(said: Answered) -> tuple[int | None, int | None]:
    """Input and output tokens that count against the model's limits, as far as they have been told: other models'
    inferences within the call (an advisor's) count to theirs."""
    if said.usage is None:
        return None, None
    fresh, output = _limited(said.usage)
    for inner in said.usage.inner:
        if inner.model not in (None, said.model):
            other = _limited(inner.usage)
            fresh = None if fresh is None else fresh - (other[0] or 0)
            output = None if output is None else output - (other[1] or 0)
    return fresh, output


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


def _limited(usage: Usage) -> tuple[int | None, int | None]:
    """Input and output tokens that limits count: cache reads are free of them."""
    fresh = None if usage.input_tokens is None else usage.input_tokens - (usage.cache_read_tokens or 0)
    return fresh, usage.output_tokens


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
