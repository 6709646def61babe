"""What is left of a provider's limits for one key and class of models, and who may go now.

The provider keeps token buckets (requests, input tokens, output tokens) that refill evenly. A `Pool` is our picture of
them: what is let through is taken from it at once, what the provider's headers say corrects it. Output is not reserved
by the API: it is enough that some is left, what was really produced is settled afterwards. All amounts are
(requests, input tokens, output tokens); all times are seconds of one clock, passed in.
Source of the provider's rules: the Rate limits page.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

DIMENSIONS = ("requests", "input_tokens", "output_tokens")
REQUESTS, INPUT, OUTPUT = range(3)

Amounts = tuple[float, float, float]

STEPS = (1.0, 1000.0, 1000.0)
"""What the provider rounds `remaining` to."""
CAREFUL_CALLS = 4
"""Unanswered calls at first, before anything is known. Doubles every second, so a slow first answer blocks nobody long."""
CAREFUL_SECONDS = 10.0
"""After so long the doubling has passed 4,000 calls: no bound any more."""
ON_THE_WAY = 1.0
"""Seconds that a call may take from here to the provider's count; see `Pool.advance`."""
LONGEST_PAUSE = 3600.0
"""A longer `retry-after` is not believed: it is asked again after this."""
DEFAULT_PAUSE = 1.0
"""After a 429 that names no time."""
FIRST_OUTPUT = 500.0
"""Output tokens foreseen for the first call of a pool."""
BYTES_PER_TOKEN = 4.0
TOKENS_PER_MEDIUM = 1600.0
"""An image at the API's own size bound."""
_INDEX = {name: i for i, name in enumerate(DIMENSIONS)}
MOST_SHORT, UNSURE = 0.5, 0.25
"""Estimates of input are not held to be lower than by this share; and by this one before any has proved itself."""
MOST_EXCESS = 0.1
"""Of an output limit: more than this is not kept back for answers that are longer than expected."""
_LEARN = 0.1
_FORGET = 0.01
_HUGE = 1e12
_LITTLE = 1e-6

NEW, CAREFUL, KNOWN, UNLIMITED = 0.0, 1.0, 2.0, 3.0


class Limit(NamedTuple):
    """What an answer's headers say of one dimension: per minute, and what was left."""

    dimension: str
    limit: float | None
    remaining: float | None


class Pool:
    """One pool's picture. `values` holds it whole, as `WIDTH` numbers; all zero is a pool that nobody has used."""

    __slots__ = (
        "answered", "closed_until", "earlier", "epoch", "excess", "fresh", "level", "limit", "newest", "open", "output",
        "short", "since", "state", "text", "tokens", "unanswered", "updated", "virtual",
    )  # fmt: skip
    WIDTH = 31

    def __init__(self, values: Sequence[float]) -> None:
        (
            self.state, self.since, self.closed_until, self.updated, self.newest, self.epoch,
            self.virtual, self.open, self.output, self.text, self.tokens,
        ) = values[:11]  # fmt: skip
        self.limit = list(values[11:14])
        """Per minute; 0: not known."""
        self.level = list(values[14:17])
        self.unanswered = list(values[17:20])
        """Taken by calls whose effect on the provider's count we have not seen: output counts until a call's end."""
        self.answered = list(values[20:23])
        """The sum of what has left `unanswered`, ever."""
        self.fresh = list(values[23:26])
        self.earlier = list(values[26:29])
        """Taken in this epoch of `ON_THE_WAY` seconds, and in the one before."""
        self.short, self.excess = values[29:31]
        """By how much estimates were too low of late, at most: input as a share, output in tokens. See `_needs`."""

    def values(self) -> tuple[float, ...]:
        """What to keep; `Pool(pool.values())` is the same pool."""
        return (
            self.state, self.since, self.closed_until, self.updated, self.newest, self.epoch,
            self.virtual, self.open, self.output, self.text, self.tokens,
            *self.limit, *self.level, *self.unanswered, *self.answered, *self.fresh, *self.earlier,
            self.short, self.excess,
        )  # fmt: skip

    @property
    def idle(self) -> bool:
        """No call of it is open."""
        return self.open < 0.5

    def advance(self, now: float) -> None:
        """Refill up to `now`; a clock that went backwards refills nothing.

        A bucket that is full takes no refill. The provider's stays full until a call has arrived there, so a call that
        may still be on its way keeps its amount from being refilled here: else a slow first burst would make us
        believe in more than there is.
        """
        passed = now - self.updated
        if passed <= 0:
            if self.updated > max(now, self.closed_until) + ON_THE_WAY:
                self.updated = now  # no clock does this, and a pool must not freeze over it
            return
        self.updated = now
        if (age := now - self.epoch) >= ON_THE_WAY or age < 0:
            self.earlier = self.fresh if 0 <= age < 2 * ON_THE_WAY else [0.0, 0.0, 0.0]
            self.fresh = [0.0, 0.0, 0.0]
            self.epoch = now
        for i, limit in enumerate(self.limit):
            level = self.level[i]
            if limit and level < limit:
                coming, recent = self.unanswered[i], self.fresh[i] + self.earlier[i]
                top = limit - (coming if coming < recent else recent)
                refilled = level + limit * passed / 60
                if level < top:
                    self.level[i] = refilled if refilled < top else top

    def expected(self, input_tokens: float, max_output: float | None) -> Amounts:
        """What a call will take."""
        output = self.output or FIRST_OUTPUT
        return 1.0, max(0.0, input_tokens), output if max_output is None else max(0.0, min(output, max_output))

    def input_of(self, text_bytes: float, media: int) -> float:
        """Input tokens that a body will be billed, by what bodies of this pool were billed before (cache reads are free)."""
        first = 4_000.0  # bytes that the first guess weighs
        ratio = (self.tokens + first / BYTES_PER_TOKEN) / (self.text + first)
        return text_bytes * ratio + media * TOKENS_PER_MEDIUM

    def fits(self, amounts: Amounts, now: float) -> bool:
        """A call of these amounts may go now. More than a limit is had when its bucket is full."""
        if now < self.closed_until:
            return False
        if self.state != KNOWN:
            return self.unanswered[REQUESTS] + 1 <= self._careful(now)
        limit, level, needs = self.limit, self.level, self._needs(amounts)
        return (
            (not limit[0] or level[0] + _LITTLE >= needs[0])
            and (not limit[1] or level[1] + _LITTLE >= needs[1])
            and (not limit[2] or level[2] > needs[2])
        )

    def _needs(self, amounts: Amounts) -> Amounts:
        """What must be there for a call to go. Of tokens more than is taken: estimates may be too low, of those on
        their way too. What is left over stays for the next call, so this costs a wait, once, and no throughput."""
        limit, unsure = self.limit, max(self.short, UNSURE / (1 + self.text / 4_000) ** 2)
        return (
            min(amounts[0], limit[0]),
            min(amounts[1] * (1 + unsure) + self.short * self.unanswered[1], limit[1]),
            min(self.excess * math.sqrt(max(1.0, self.open)), limit[2] * MOST_EXCESS),
        )

    def _careful(self, now: float) -> float:
        if self.state == NEW:
            return CAREFUL_CALLS
        passed = now - self.since
        return CAREFUL_CALLS * 2.0 ** int(max(0.0, passed)) if passed < CAREFUL_SECONDS else math.inf

    def wait(self, before: Amounts, amounts: Amounts, now: float) -> tuple[float, str]:
        """Seconds until a call may go for which those of `before` go first, and the dimension that says so."""
        shut = max(0.0, self.closed_until - now)
        if self.state != KNOWN:
            calls = self.unanswered[REQUESTS] + before[REQUESTS] + 1
            if calls <= self._careful(max(now, self.closed_until)):
                return shut, DIMENSIONS[REQUESTS]
            doublings = math.ceil(math.log2(calls / CAREFUL_CALLS))
            opens = min(self.since + min(doublings, CAREFUL_SECONDS), now + CAREFUL_SECONDS + shut)
            return max(shut, opens - now), DIMENSIONS[REQUESTS]
        longest, named, needs = 0.0, DIMENSIONS[REQUESTS], self._needs(amounts)
        for i, limit in enumerate(self.limit):
            if limit:
                need = needs[i] + _LITTLE if i == OUTPUT else needs[i]
                seconds = (need + before[i] - self.level[i]) * 60 / limit
                if seconds > longest:
                    longest, named = seconds, DIMENSIONS[i]
        return shut + longest, named

    def seconds(self, amounts: Amounts) -> float:
        """How much of the pool's time these amounts are, by the dimension that they take most of: what fairness counts."""
        nominal = 60.0 / 1000
        return max((60 * amounts[i] / limit for i, limit in enumerate(self.limit) if limit), default=nominal)

    def take(self, amounts: Amounts, now: float) -> None:
        """A call goes."""
        if self.state == NEW:
            self.state, self.since, self.updated, self.epoch = CAREFUL, now, now, now
        self.open += 1
        for i, amount in enumerate(amounts):
            self.unanswered[i] += amount
            self.fresh[i] += amount
            if self.limit[i]:
                self.level[i] -= amount

    def put_back(self, amounts: Amounts) -> None:
        """What was taken for a call that never went."""
        self.open = max(0.0, self.open - 1)
        for i, amount in enumerate(amounts):
            self._settle(i, amount)
            self.fresh[i] = max(0.0, self.fresh[i] - amount)
            self._pay(i, -amount)

    def _pay(self, i: int, amount: float) -> None:
        if self.limit[i]:
            self.level[i] = min(self.level[i] - amount, self.limit[i])

    def _settle(self, i: int, amount: float) -> None:
        self.unanswered[i] = max(0.0, self.unanswered[i] - amount)

    def answer(
        self, amounts: Amounts, limits: Sequence[Limit] | None, sent: float, before: Sequence[float], now: float
    ) -> float:
        """A call sent at `sent`, when `answered` was `before`, is answered: the provider has counted it and its input.

        `limits` as its headers tell them: none told means that there are none. None: an answer to learn nothing from.
        Gives by how much that raised the input level: for `correct_input`.
        """
        self._settle(REQUESTS, amounts[REQUESTS])
        self._settle(INPUT, amounts[INPUT])
        level = self.level[INPUT]
        if limits is not None:
            self._learn(limits, sent, before, now)
        self.answered[REQUESTS] += amounts[REQUESTS]
        self.answered[INPUT] += amounts[INPUT]
        return max(0.0, self.level[INPUT] - level)

    def correct_input(self, taken: float, real: float, text_bytes: float, media: int, raised: float = 0.0) -> None:
        """A call's billed input is known; `taken` was taken for it. What its headers `raised` is not given back twice."""
        self._pay(INPUT, real - taken if real > taken else min(0.0, real - taken + raised))
        self.answered[INPUT] += max(0.0, real - taken)
        if text_bytes > 0:
            low = real / taken - 1 if taken > 0 else 0.0
            self.short = min(MOST_SHORT, max(low, self.short * (1 - _FORGET)))
            self.text = self.text * (1 - _LEARN) + text_bytes
            self.tokens = self.tokens * (1 - _LEARN) + max(0.0, real - media * TOKENS_PER_MEDIUM)

    def end(self, taken: float, output: float | None) -> None:
        """A call has ended; `taken` output tokens had been taken for it, None: nobody knows what it produced."""
        self.open = max(0.0, self.open - 1)
        self._settle(OUTPUT, taken)
        self.answered[OUTPUT] += taken if output is None else output
        if output is not None:
            self._pay(OUTPUT, output - taken)
            self.excess = max(output - taken, self.excess * (1 - _FORGET))
            self.output += (output - self.output) * (_LEARN if self.output else 1.0)

    def _learn(self, limits: Sequence[Limit], sent: float, before: Sequence[float], now: float) -> None:
        """Bring our level to what the headers leave possible.

        The provider's level was `remaining` at some moment since `sent`. What it has counted after that moment is at
        most what is unanswered now and what was answered since; what it refilled is at most the time since. Nothing is
        learnt of a call sent earlier than one that has already told, and nothing from numbers that cannot be.
        """
        if self.state < KNOWN and not limits:
            self.state, self.since = UNLIMITED, now - CAREFUL_SECONDS
        if sent < self.newest:
            return
        for name, limit, remaining in limits:
            i = _INDEX.get(name)
            if i is None or limit is None or remaining is None or not _sane(limit, remaining):
                continue
            low = remaining - STEPS[i] / 2 - self.unanswered[i] - max(0.0, self.answered[i] - before[i])
            high = remaining + STEPS[i] / 2 + limit * max(0.0, now - sent) / 60
            level = max(self.level[i], low) if self.limit[i] else low
            self.limit[i], self.level[i] = limit, min(level, high, limit)
            self.state, self.newest = KNOWN, sent

    def reject(
        self, amounts: Amounts, retry_after: float | None, dimension: str | None, sent: float, now: float
    ) -> None:
        """The provider said 429: closed until it said, then open gradually, from nothing, as it refills.

        The call's tokens were not used. `dimension` None, or one we do not keep: all of them are empty.
        """
        asked = retry_after is not None and math.isfinite(retry_after) and retry_after >= 0
        pause = min(retry_after, LONGEST_PAUSE) if asked and retry_after is not None else DEFAULT_PAUSE
        self._settle(OUTPUT, amounts[OUTPUT])
        self._pay(INPUT, -amounts[INPUT])
        self._pay(OUTPUT, -amounts[OUTPUT])
        for i, name in enumerate(DIMENSIONS):
            if name == dimension or dimension not in DIMENSIONS:
                self.level[i] = min(self.level[i], 0.0)
        self.closed_until = max(self.closed_until, now + pause)
        self.updated = max(self.updated, self.closed_until)  # nothing is refilled while it is closed
        self.newest = max(self.newest, sent)
        if self.state != KNOWN:
            self.state, self.since = UNLIMITED, self.closed_until


def _sane(limit: float, remaining: float) -> bool:
    """Numbers that a bucket can have; comparisons with NaN are false."""
    return 0 < limit < _HUGE and 0 <= remaining <= limit + STEPS[INPUT]
