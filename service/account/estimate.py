"""What a call cost when the provider did not say everything: the client left, the stream broke, usage was not asked for.

The method: input tokens are what the provider said, else what the request's size makes likely. Output tokens are what it
said when the answer ended; before that, the content that came at four bytes a token, rounded up, or what it had said so
far if that is more. Whatever was worked out makes the cost `estimated`.
"""

from __future__ import annotations

from msgspec.structs import replace

from observability.catalog import Outcome
from service.account.prices import UNPRICED, Prices
from service.record import Answered, Certainty, Cost, Usage, Variant

BYTES_PER_TOKEN = 4
"""UTF-8 bytes of English text or JSON that make a token, roughly: providers' own rule of thumb."""

NOTHING = Cost(Certainty.EXACT)
"""Of a call that was not sent, or that the provider refused with an error: neither is billed."""

_SAID_NO = frozenset(
    {
        Outcome.CLIENT_INVALID, Outcome.CLIENT_AUTH, Outcome.UPSTREAM_429, Outcome.UPSTREAM_OVERLOADED,
        Outcome.UPSTREAM_ERROR,
    }
)  # fmt: skip
"""Outcomes of a stream whose error the provider said itself."""


def tokens_of(size: int) -> int:
    """Tokens that so many bytes of text are likely to be, rounded up."""
    return -(-size // BYTES_PER_TOKEN)


def priced(
    prices: Prices,
    *,
    provider: str,
    model: str | None,
    answered: Answered,
    outcome: Outcome,
    inference: bool,
    sent: bool,
    status: int | None,
    complete: bool,
    input_estimate: int | None,
    at: float,
) -> Cost | None:
    """What one provider call cost; None for a call that makes no tokens (`inference` is false).

    `model` is the one asked for; the one that answered goes first. `sent`: the request, or a part of it, left.
    `status`: of the answer, None when none came. `complete`: the answer came to its own end. `input_estimate`: tokens by
    the request's size. `at`: Unix time.
    """
    if not inference:
        return None
    if not sent or (status is not None and status >= 400) or _refused_at_once(answered, outcome, complete):
        return NOTHING
    final = complete or (answered.finish_reason is not None and not answered.unmarked)
    usage, known = _filled(answered, final=final, input_estimate=input_estimate)
    if usage is None:
        return UNPRICED
    cost = _by_name(prices, provider, (answered.model, model), usage, answered.variant, at)
    return cost if known or cost.certainty is Certainty.UNPRICED else replace(cost, certainty=Certainty.ESTIMATED)


def together(cost: Cost | None, also: Cost | None) -> Cost | None:
    """The sum of a call's cost and that of an attempt which got no answer: at best `estimated`."""
    if cost is None or also is None or cost.certainty is Certainty.UNPRICED:
        return cost
    return Cost(
        Certainty.ESTIMATED,
        input=cost.input + also.input,
        cache_read=cost.cache_read + also.cache_read,
        cache_write=cost.cache_write + also.cache_write,
        output=cost.output + also.output,
        tools=cost.tools + also.tools,
    )


def _refused_at_once(answered: Answered, outcome: Outcome, complete: bool) -> bool:
    """Whether an error was all that the stream said."""
    nothing = answered.usage is None and not answered.content_bytes
    return answered.streamed and nothing and not complete and outcome in _SAID_NO


def _filled(answered: Answered, *, final: bool, input_estimate: int | None) -> tuple[Usage | None, bool]:
    """Usage with nothing left open, and whether the provider said it all; None when there is no telling the input."""
    said = answered.usage or Usage()
    seen = tokens_of(answered.content_bytes)
    tokens_in = said.input_tokens if said.input_tokens is not None else input_estimate
    if tokens_in is None:
        return None, False
    tokens_out = said.output_tokens
    if not final or (tokens_out is None and (seen or answered.usage is None)):
        tokens_out = max(tokens_out or 0, seen)
    # An embedding's usage has no output tokens, and says it all; for other models the price's certainty sees to it.
    known = said.input_tokens is not None and final and tokens_out == said.output_tokens and not answered.unread
    return replace(said, input_tokens=tokens_in, output_tokens=tokens_out), known


def _by_name(
    prices: Prices, provider: str, names: tuple[str | None, ...], usage: Usage, variant: Variant, at: float
) -> Cost:
    """By the first name that has a price; `estimated` when it is not the first."""
    first = True
    for name in filter(None, names):
        cost = prices.cost(provider, name, usage, variant, at)
        if cost.certainty is not Certainty.UNPRICED:
            return cost if first else replace(cost, certainty=Certainty.ESTIMATED)
        first = False
    return UNPRICED
