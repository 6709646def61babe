"""One call that was let through: what was taken for it, and what turns out to be true of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from hashlib import blake2b

import msgspec

from service.pacer.access import Access
from service.pacer.pools import Pools
from service.policy.pacing import INPUT, OUTPUT, Amounts, Limit, Pool

_NOTHING: Amounts = (0.0, 0.0, 0.0)


@lru_cache(maxsize=256)
def _digest(*names: str) -> bytes:
    return blake2b("\0".join(names).encode(), digest_size=16).digest()


class PoolKey(msgspec.Struct, frozen=True, gc=False):
    """Whose limits: a provider's, for one credential (its hash, never itself) and one class of models."""

    provider: str
    credential: str
    model_class: str

    @property
    def digest(self) -> bytes:
        """How the pool is found in shared memory."""
        return _digest(self.provider, self.credential, self.model_class)


class Ask(msgspec.Struct, frozen=True, gc=False):
    """What a call wants. Input is estimated from `text_bytes` and `media` blocks unless `input_tokens` is told.

    `max_output` tokens, None: no bound. `client` shares fairly with others. `max_wait` in seconds.
    """

    client: str
    max_wait: float
    text_bytes: int = 0
    media: int = 0
    input_tokens: int | None = None
    max_output: int | None = None

    def input_of(self, pool: Pool) -> float:
        """Input tokens that it will be billed, as far as `pool` knows."""
        return self.input_tokens if self.input_tokens is not None else pool.input_of(self.text_bytes, self.media)


class Refused(Exception):
    """No room within the wait allowed.

    `reason`: `too_long` (predicted), `queue_full`, or `timeout` (it did wait). `retry_after`: seconds until there would be.
    """

    def __init__(self, reason: str, dimension: str, retry_after: float) -> None:
        super().__init__(f"no room for this request: {reason}, by {dimension}")
        self.reason, self.dimension, self.retry_after = reason, dimension, retry_after


class Grant:
    """Leave to make one call. `close` it always; the rest as it becomes known.

    `waited`: seconds; `predicted`: seconds foreseen when it began to wait; `dimension`: what it waited for, None if it
    did not; `estimate`: input tokens that its body is expected to be billed.
    """

    def __init__(self, access: Access, pools: Pools, digest: bytes, ask: Ask, clock: Callable[[], float]) -> None:
        self._access, self._pools, self._digest, self._ask, self._clock = access, pools, digest, ask, clock
        self.waited, self.predicted = 0.0, 0.0
        self.dimension: str | None = None
        self.estimate = 0
        self.amounts = _NOTHING
        """What is taken for it."""
        self._input = self._raised = 0.0
        self._sent = 0.0
        self._before: Sequence[float] = _NOTHING
        self._answered = self._rejected = self._told = False
        self._open = False
        self._output: float | None = None

    def begin(self, amounts: Amounts, pool: Pool, now: float) -> None:
        """It is let through, `amounts` were taken."""
        self.amounts, self._input, self._sent, self._before = amounts, amounts[INPUT], now, tuple(pool.answered)
        self._open = True

    def begin_unasked(self) -> None:
        """It was let through although the shared state could not be had: to be counted as soon as that can be."""

        def take() -> None:
            now = self._clock()
            found = self._pools.open(self._digest, now)
            if found is not None:
                index, pool = found
                amounts = pool.expected(self._ask.input_of(pool), self._ask.max_output)
                self._pools.go(index, pool, self._access.slot, amounts, now)
                self.begin(amounts, pool, now)

        self._access.later(take)

    def answered(self, limits: Sequence[Limit] | None, *, soon: bool = False) -> None:
        """The answer's headers are in. `limits` they tell, none told: the provider tells none. None: learn nothing, as from
        an error, which may lack them for its own reasons. `soon`: its end is near, and may tell of both."""
        if not self._answered:
            self._answered = True
            self._change(partial(self._do_answered, limits, self._clock()), soon=soon)

    def _do_answered(self, limits: Sequence[Limit] | None, now: float, index: int, pool: Pool) -> None:
        self._raised = pool.answer(self.amounts, limits, self._sent, self._before, now)
        self._pools.count(index, self._access.slot, amounts=(-self.amounts[0], -self.amounts[1], 0.0))

    def rejected(self, retry_after: float | None, dimension: str | None) -> None:
        """The provider said 429 for a rate (not for money): `retry_after` seconds, and the dimension if it named one."""
        self.answered(None)
        if not self._rejected:
            self._rejected = True
            self._change(partial(self._do_rejected, retry_after, dimension, self._clock()))

    def _do_rejected(
        self, retry_after: float | None, dimension: str | None, now: float, index: int, pool: Pool
    ) -> None:
        taken = (self.amounts[0], self._input, self.amounts[2])
        pool.reject(taken, retry_after, dimension, self._sent, now)
        self._pools.count(index, self._access.slot, amounts=(0.0, 0.0, -self.amounts[OUTPUT]))
        self.amounts, self._input = (self.amounts[0], 0.0, 0.0), 0.0

    def used(self, input_tokens: int | None = None, output_tokens: int | None = None) -> None:
        """What is billed so far: input without cache reads (settled at once), output (settled at `close`)."""
        if (real := self._told_of(input_tokens, output_tokens)) is not None:
            self._change(partial(self._do_used, real))

    def _told_of(self, input_tokens: int | None, output_tokens: int | None) -> float | None:
        """The input, if it is to be settled; output is kept until the end."""
        if output_tokens is not None and _sane(output_tokens):
            self._output = float(output_tokens)
        known = input_tokens is not None and _sane(input_tokens) and not self._rejected
        return float(input_tokens) if known and input_tokens is not None else None

    def _do_used(self, real: float, index: int, pool: Pool) -> None:
        learnt_from = 0 if self._told else self._ask.text_bytes
        pool.correct_input(self._input, real, learnt_from, self._ask.media, self._raised)
        self._input, self._told, self._raised = real, True, 0.0

    def close(self, *, sent: bool = True, input_tokens: int | None = None, output_tokens: int | None = None) -> None:
        """The call has ended, with what is billed as `used` takes it. `sent` False: the provider never got it, so it has
        counted nothing. Idempotent."""
        if not sent and not self._answered:
            self._answered = True
            self._change(self._do_unsent)
            return
        self.answered(None)
        self._change(partial(self._do_close, self._told_of(input_tokens, output_tokens)))

    def _do_unsent(self, index: int, pool: Pool) -> None:
        self._open = False
        self._pools.never_went(index, pool, self._access.slot, self.amounts)

    def _do_close(self, real: float | None, index: int, pool: Pool) -> None:
        self._open = False
        if real is not None:
            self._do_used(real, index, pool)
        pool.end(self.amounts[OUTPUT], None if self._rejected else self._output)
        self._pools.count(index, self._access.slot, calls=-1, amounts=(0.0, 0.0, -self.amounts[OUTPUT]))

    def _change(self, what: Callable[[int, Pool], None], *, soon: bool = False) -> None:
        """Do `what` to the pool, unless it was never taken from, is closed or has been forgotten."""
        now = self._clock()

        def change() -> None:
            found = self._pools.find(self._digest, now) if self._open else None
            if found is not None:
                what(*found)
                self._pools.save(*found)

        (self._access.soon if soon else self._access.change)(change)


def _sane(tokens: float) -> bool:
    return math.isfinite(tokens) and 0 <= tokens < 1e12
