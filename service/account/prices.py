"""What a call cost: integer nano-dollars from tokens, model, variant and day.

Rates come from the public price list, our table of what it lacks, and the owner's file, which wins. They are resolved
once per (provider, model, variant) into pico-dollars (1e-12 USD) per token and kept until the next dated change.
Rounding: each part of a cost is added up in pico-dollars and rounded once to nano-dollars, half to even.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

import msgspec
from msgspec.structs import replace

from service.account import prices_list
from service.account.prices_gaps import (
    NEVER_AS_TEXT,
    SAME_AS,
    UNLISTED,
    US_ONLY,
    WEB_SEARCH,
    WITHOUT_DOUBT,
    plain,
    takes_geo,
    undated,
    with_earlier,
)
from service.account.prices_list import MEDIA, Listed, Rate, Rates
from service.account.prices_parts import added, without_inner
from service.record import Certainty, Cost, Inner, Usage, Variant

UNPRICED = Cost(Certainty.UNPRICED)
"""Of a model that has no known price."""

BATCH = "batch"
"""The service tier of message batches."""

_ORDINARY = frozenset({"", "standard", "default", "auto", "on_demand", "unspecified"})
_ANYWHERE = frozenset({"", "global", "not_available"})
_MOST_KEPT = 1024
_LONGEST_NAME = 200


@dataclass(frozen=True, slots=True)
class _Band:
    """Pico-dollars per token, for a call whose whole input is above so many tokens."""

    above: int
    input: int
    cache_read: int
    cache_write: int
    cache_write_1h: int
    output: int | None
    """None for a model whose output is not paid by the token (it has none, or it is not text)."""
    media: Mapping[str, int]
    """By the kinds in `MEDIA` that have a rate of their own."""


class _Resolved(msgspec.Struct, frozen=True):
    """Rates of one model and variant from Unix time `since` until `until`; no bands: not priced.

    `listed` is false where a general rule had to stand in for a rate.
    """

    since: float
    until: float
    bands: tuple[_Band, ...] = ()
    web_search: int | None = None
    listed: bool = True


class Prices:
    """Prices of every model that is known. `own` are the owner's, which win: what `prices_override.load` gives."""

    def __init__(self, own: Mapping[tuple[str, str], Listed] | None = None) -> None:
        self._listed = prices_list.bundled()
        self._own = own or {}
        self._resolved: dict[tuple[str, str, Variant], _Resolved] = {}

    def refresh(self, url: str | None = None) -> None:
        """Fetch the newest public list and use it from now on. Never called unasked. Blocks, and imports genai-prices
        whole (31 MB): call it in a thread. Raises what fetching raises; the old prices then stay, as they do for a
        provider that is not in it."""
        self._listed = {**self._listed, **prices_list.fetched(url)}
        self._resolved = {}

    def cost(self, provider: str, model: str, usage: Usage, variant: Variant, at: float) -> Cost:
        """What a call that came at Unix time `at` cost. `provider` by the GenAI conventions' name.

        Tokens that are None are not priced, and then the cost is `estimated`; so it is where a general rule stands in
        for a rate that is not listed, and where the usage itself is not sure of what is billed.
        """
        if not usage.inner:
            return self._one(provider, model, usage, variant, at)
        own = self._one(provider, model, without_inner(usage), variant, at)
        if own.certainty is Certainty.UNPRICED:
            return UNPRICED
        return added([own, *(self._inner(provider, model, inner, variant, at) for inner in usage.inner)])

    def _inner(self, provider: str, model: str, inner: Inner, variant: Variant, at: float) -> Cost:
        """Of an inference within a call: by its own length and model, the call's where its own has no price. Whether
        another model's is billed by the call's tier and speed is not known."""
        cost = self._one(provider, inner.model or model, inner.usage, variant, at)
        if cost.certainty is Certainty.UNPRICED:
            cost = replace(self._one(provider, model, inner.usage, variant, at), certainty=Certainty.ESTIMATED)
        elif inner.model not in (None, model) and _context(variant):
            cost = replace(cost, certainty=Certainty.ESTIMATED)
        return cost

    def _one(self, provider: str, model: str, usage: Usage, variant: Variant, at: float) -> Cost:
        found = self._rates(provider, model, variant, at)
        if not found.bands:
            return UNPRICED
        if usage.unbilled:
            return Cost(Certainty.ESTIMATED)
        read = usage.cache_read_tokens or 0
        hour = usage.cache_write_1h_tokens or 0
        written = max(usage.cache_write_tokens or 0, hour)
        total = max(usage.input_tokens or 0, read + written)
        searches = usage.web_searches or 0
        band = found.bands[0]
        for higher in found.bands[1:]:
            if total > higher.above:
                band = higher
        if band.output is None and usage.output_tokens:
            return UNPRICED
        said = usage.input_tokens is not None and (usage.output_tokens is not None or band.output is None)
        sure = said and found.listed and not usage.unsure and (not searches or found.web_search is not None)
        sure = sure and not (usage.summed and band.above >= 0)
        text, special, known = _by_kind(usage, total - read - written, band)
        return Cost(
            Certainty.EXACT if sure and known else Certainty.ESTIMATED,
            input=_nanos(special["input"] + text["input"] * band.input),
            cache_read=_nanos(special["cache_read"] + text["cache_read"] * band.cache_read),
            cache_write=_nanos((written - hour) * band.cache_write + hour * band.cache_write_1h),
            output=_nanos(special["output"] + text["output"] * (band.output or 0)),
            tools=_nanos(searches * (found.web_search or 0)),
        )

    def since(self, provider: str, model: str, variant: Variant, at: float) -> float:
        """Unix time since which the price that holds at `at` has been what it is; minus infinity if always, or unknown."""
        return self._rates(provider, model, variant, at).since

    def batch_saving(self, provider: str, model: str, usage: Usage, variant: Variant, at: float) -> int | None:
        """How many nano-dollars the usage costs less in a message batch than sent one by one: what a batch's call
        saved, or another call has forgone. None when the model is not priced."""
        single = replace(variant, tier=None) if _word(variant.tier) == BATCH else variant
        batch = replace(variant, tier=BATCH, speed=None)
        dear, cheap = (self.cost(provider, model, usage, v, at) for v in (single, batch))
        return None if Certainty.UNPRICED in (dear.certainty, cheap.certainty) else max(0, dear.total - cheap.total)

    def _rates(self, provider: str, model: str, variant: Variant, at: float) -> _Resolved:
        found = self._resolved.get((provider, model, variant))
        if found is None or not found.since <= at < found.until:
            found = self._resolve(provider, model, variant, at)
        return found

    def _resolve(self, provider: str, model: str, variant: Variant, at: float) -> _Resolved:
        if len(model) > _LONGEST_NAME:
            return _Resolved(at, at)
        kept = self._resolved  # taken before the list is read: a refresh replaces the list first, then what is kept
        listed = self._find(provider, plain(model))
        found = _Resolved(float("-inf"), float("inf"))
        if listed is not None:
            found = _rates_at(provider, plain(model), listed, variant, at)
            if not any(prices_list.is_named(listed.match, name) for name in _spellings(provider, plain(model))):
                found = replace(found, listed=False)
        if len(kept) >= _MOST_KEPT:
            # Names come from clients: whoever asks for thousands makes this work again, and no memory grow.
            kept.clear()
        kept[provider, model, variant] = found
        return found

    def _find(self, provider: str, name: str) -> Listed | None:
        bare = undated(name)
        if own := self._own.get((provider, name)) or self._own.get((provider, bare)):
            return own
        models = self._listed.get(provider, ())
        for spelling in _spellings(provider, name):
            if model := prices_list.find(models, spelling):
                return with_earlier(provider, model)
        return None


def _spellings(provider: str, name: str) -> list[str]:
    """Under which names to look for a model."""
    names, bare = [name], undated(name)
    if provider == "anthropic":
        # A Claude model keeps its price under every date; elsewhere a dated model may be a model of its own.
        names += [bare, SAME_AS.get((provider, bare), bare)]
    return list(dict.fromkeys(names))


def _by_kind(usage: Usage, fresh: int, band: _Band) -> tuple[dict[str, int], dict[str, int], bool]:
    """By what they are a kind of: tokens at the text's rate, pico-dollars of those with a rate of their own, and whether
    every kind that should have one has. `fresh`: input tokens that no cache had a part in."""
    text = {"input": fresh, "cache_read": usage.cache_read_tokens or 0, "output": usage.output_tokens or 0}
    special, known = dict.fromkeys(text, 0), True
    for kind, tokens in usage.media:
        of, rate = kind.rpartition("_")[0], band.media.get(kind)
        if rate is not None:
            tokens = min(tokens, text[of])
            text[of] -= tokens
            special[of] += tokens * rate
        elif tokens and kind in NEVER_AS_TEXT:
            known = False
    return text, special, known


def _nanos(picos: int) -> int:
    whole, rest = divmod(picos, 1000)
    return whole + (rest > 500 or (rest == 500 and whole & 1))


def _word(said: str | None) -> str:
    return (said or "").lower()


def _rates_at(provider: str, name: str, model: Listed, variant: Variant, at: float) -> _Resolved:
    """The model's rates on a day, the variant's factors in, as bands."""
    begun = [rates for since, rates in model.periods if since <= at]
    rates = dict(begun[-1] if begun else model.periods[0][1])
    context = _context(variant)
    met: set[tuple[str, str]] = set()
    special: dict[str, Rate] = {}
    for one in model.specials:
        if one.since <= at and one.when <= context:
            met |= one.when
            special = {**one.rates, **special}  # the first that names a rate wins, as the list has it
    rates.update(special)
    factor, listed = Fraction(1), True
    for _, word in context - met:
        factor *= UNLISTED.get((provider, word), 1)
        listed = listed and (provider, word) in WITHOUT_DOUBT
    if provider == "anthropic" and (where := _word(variant.geo)) not in _ANYWHERE:
        listed = listed and where == "us"
        factor *= US_ONLY if where == "us" and takes_geo(name) else 1
    days = [since for since, _ in model.periods] + [one.since for one in model.specials]
    search = rates.pop("web_search", None)
    return _Resolved(
        since=max((day for day in days if day <= at), default=float("-inf")),
        until=min((day for day in days if day > at), default=float("inf")),
        bands=_bands(rates, factor),
        web_search=search[0][1] if search else WEB_SEARCH.get(provider),
        listed=listed,
    )


def _context(variant: Variant) -> frozenset[tuple[str, str]]:
    """What the list's variants are chosen by."""
    tier, speed = _word(variant.tier), _word(variant.speed)
    context = set()
    if tier == BATCH:
        context.add(("processing", BATCH))
    elif tier not in _ORDINARY:
        context.add(("service_tier", tier))
    if speed not in _ORDINARY:
        context.add(("speed", speed))
    return frozenset(context)


def _bands(rates: Rates, factor: Fraction) -> tuple[_Band, ...]:
    """Rates by band; none for a model that is not paid by the token. A kind of input token without a rate of its own
    costs what it is a kind of."""
    if (fresh := rates.get("input")) is None:
        return ()
    write = rates.get("cache_write", fresh)
    inputs = (fresh, rates.get("cache_read", fresh), write, rates.get("cache_write_1h", write))
    output = rates.get("output")
    media = {kind: rate for kind, rate in rates.items() if kind in MEDIA}
    bands = []
    for edge in sorted({above for rate in (*inputs, *media.values(), output or ()) for above, _ in rate}):
        plain_rate, read, five, hour = (_at(rate, edge, factor) for rate in inputs)
        out = None if output is None else _at(output, edge, factor)
        own = {kind: _at(rate, edge, factor) for kind, rate in media.items()}
        bands.append(_Band(edge, plain_rate, read, five, hour, out, own))
    return tuple(bands)


def _at(rate: Rate, edge: int, factor: Fraction) -> int:
    """Pico-dollars above the edge of a band."""
    return round(factor * max(band for band in rate if band[0] <= edge)[1])
