"""Frozen values that say what happened: usage, attempt, record. No behaviour, no I/O.

One `Record` per request or provider call; metrics, spans and the log line are all written from it. Structs, not
dataclasses: every request makes a dozen of them, and a frozen dataclass takes five times as long to make.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from observability.catalog import Outcome


class Kind(StrEnum):
    """What a record stands for."""

    REQUEST = "request"
    """One HTTP request and, if it got that far, its one provider call."""
    FAN_OUT = "fan_out"
    """One HTTP request that made several calls; has no tokens of its own."""
    CALL = "call"
    """One provider call of a fan-out."""


class Usage(msgspec.Struct, frozen=True, gc=False):
    """Tokens of one call as the provider said them; None where it did not say.

    `input_tokens` is the GenAI conventions' total: Anthropic's `input_tokens` + cache reads + cache writes.
    """

    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_tokens: int | None = None
    cache_write_tokens: int | None = None
    reasoning_tokens: int | None = None
    cache_write_1h_tokens: int | None = None
    """The part of the cache writes that is kept for an hour, and costs more; the rest is kept for five minutes."""
    web_searches: int | None = None
    """Server-side searches, paid by the piece."""
    media: tuple[tuple[str, int], ...] = ()
    """Tokens that may have a price of their own, parts of the counts above: what (`input_audio`, `cache_read_audio`,
    `output_image`, …) and how many. A cached one is not an `input_…` too."""
    inner: tuple[Inner, ...] = ()
    """Inferences of their own within the call; the counts above include them."""
    summed: bool = False
    """Whether several prompts are added up in it, as a loop of server-side tools makes them: how long the longest was, by
    which a price may go, is then not known."""
    unbilled: bool = False
    """Whether the provider says that it does not bill such an answer: a refusal before any output."""
    unsure: bool = False
    """Whether something was, or may have been, billed that the counts do not tell, or otherwise than they tell."""


class Inner(msgspec.Struct, frozen=True, gc=False):
    """An inference that the provider made within a call and bills by itself: a compaction, an advisor's, one that was
    declined half-way before a fallback answered. `model` None: the call's own."""

    usage: Usage
    model: str | None = None


class Variant(msgspec.Struct, frozen=True, gc=False):
    """What moves a price beyond the model, as the provider's own words; None where nothing was said.

    `tier` is OpenAI's or Anthropic's service tier (`batch`, `priority`, `flex`), `speed` Anthropic's (`fast`), `geo` its
    `inference_geo` (`us`).
    """

    tier: str | None = None
    speed: str | None = None
    geo: str | None = None


class Certainty(StrEnum):
    """How sure a cost is."""

    EXACT = "exact"
    """The provider said all its tokens and the price is known."""
    ESTIMATED = "estimated"
    """The provider did not say all its tokens (the client left, the stream broke) and the rest was worked out; or what it
    bills for them is not wholly known (README, "What it cost")."""
    UNPRICED = "unpriced"
    """No price is known for the model: no amount, and never 0."""


class Cost(msgspec.Struct, frozen=True, gc=False):
    """What one call cost, in nano-dollars (1e-9 USD), by what was paid for; all 0 and meaningless when `unpriced`."""

    certainty: Certainty
    input: int = 0
    """Input tokens that no cache had a part in."""
    cache_read: int = 0
    cache_write: int = 0
    output: int = 0
    tools: int = 0
    """Server-side tools, by the piece."""

    @property
    def total(self) -> int:
        """The whole amount."""
        return self.input + self.cache_read + self.cache_write + self.output + self.tools


class Attempt(msgspec.Struct, frozen=True, gc=False):
    """One try at the provider.

    `reason` is one of `catalog.ATTEMPT_REASONS`; `status` is None when no answer came; `limit` is set on a
    429, or a rate-limit error inside a 200, and names the limit that said no; `retry_after` is in seconds, as the provider asked.
    """

    reason: str
    status: int | None = None
    limit: str | None = None
    retry_after: float | None = None
    model: str | None = None
    """Which model was asked, when it was a stand-in for the one wanted."""


class Quota(msgspec.Struct, frozen=True, gc=False):
    """What an answer's headers said of one limit: how much it allows, what is left, when it is full again (Unix time)."""

    dimension: str
    limit: float
    remaining: float
    reset: float
    seen: float
    """When the headers came (Unix time): a long stream's are old news when it ends."""


class Pace(msgspec.Struct, frozen=True, gc=False):
    """How smoothly a stream's content came: `counts` of the gaps between its chunks per bucket of
    `catalog.LLM_SECONDS` (the last is beyond the edges), their sum and the longest, in seconds."""

    counts: tuple[int, ...]
    total: float
    longest: float


class Answered(msgspec.Struct, frozen=True, gc=False):
    """What the provider's answer said of itself; None where it did not say. Times are seconds since the call began.

    `streamed` says that it was a stream of events, and had begun.
    """

    streamed: bool = False

    response_id: str | None = None
    model: str | None = None
    finish_reason: str | None = None
    usage: Usage | None = None
    variant: Variant = Variant()
    content_bytes: int = 0
    """UTF-8 bytes of the content that came: what output tokens are estimated from where the provider did not say them."""
    upstream_request_id: str | None = None
    first_chunk: float | None = None
    pace: Pace | None = None
    unmarked: bool = False
    """Whether it is a stream whose API marks no end: after a finish reason more may have come."""
    unread: bool = False
    """Whether something in it was too large to be read: more may have been said of its usage."""


class Timings(msgspec.Struct, frozen=True, gc=False):
    """Seconds, monotonic. `total` runs from first byte in to last byte out; `call` from sending to the last byte in.

    `upstream` is the union of the intervals spent waiting for the provider, `client_wait` of those spent waiting for
    the client (its body, or room in its socket), `queue` for capacity, `backoff` between attempts; `waited` of all of them:
    an upload waits for both sides at once.
    """

    total: float
    call: float | None = None
    upstream: float = 0.0
    client_wait: float = 0.0
    waited: float = 0.0
    queue: float = 0.0
    backoff: float = 0.0

    @property
    def overhead(self) -> float:
        """Our own seconds: never negative, clocks read in between cost something too."""
        return max(0.0, self.total - self.waited)


class Trace(msgspec.Struct, frozen=True, gc=False):
    """The ids under which a request is found: 32 and 16 lower-case hex digits; `kept` says if the trace is exported."""

    trace_id: str
    span_id: str
    kept: bool


class Record(msgspec.Struct, frozen=True, gc=False):
    """Everything that is said of one request or call after it has ended."""

    kind: Kind
    request_id: str
    route: str
    outcome: Outcome
    timings: Timings
    trace: Trace
    provider: str | None = None
    operation: str | None = None
    model: str | None = None
    streaming: bool = False
    status: int | None = None
    error_type: str | None = None
    rejected: str | None = None
    """The wire type of an error answer that was ours, not the provider's."""
    attempts: tuple[Attempt, ...] = ()
    answered: Answered = Answered()
    quotas: tuple[Quota, ...] = ()
    client: str | None = None
    call_id: str = ""
    """32 hex digits, unique for each record."""
    started: float = 0.0
    """Unix time at which it began."""
    wanted_model: str | None = None
    """The model that was asked for, when a stand-in spoke in its place."""
    cache: str | None = None
    """What the answer cache did, one of `catalog.CACHE_RESULTS`; None where there is none."""
    refused_by: str | None = None
    """The limit for whose sake we said no ourselves."""
    cost: Cost | None = None
    """None where nothing is sold: no call, no inference."""
