"""The public price list: genai-prices' data for our three providers, as tables of whole pico-dollars (1e-12 USD).

genai-prices' package takes a third of a second and 31 MB to import (pydantic, an HTTP client, forty providers). Its
`data.py` is nothing but constructor calls, so it is run with plain containers as the constructors: 25 ms, and what is
not ours is dropped. Should a later version of it not work like that, the package is imported after all.
"""

from __future__ import annotations

import builtins
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from decimal import ROUND_HALF_EVEN, Decimal
from importlib.machinery import SourceFileLoader
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

PROVIDERS = {"anthropic": "anthropic", "openai": "openai", "google": "gcp.gemini"}
"""The list's names of providers, and the GenAI conventions'."""

KEYS = {
    "input_mtok": "input", "cache_read_mtok": "cache_read", "cache_write_mtok": "cache_write",
    "cache_write_1h_mtok": "cache_write_1h", "output_mtok": "output", "web_searches_kcount": "web_search",
    "input_audio_mtok": "input_audio", "cache_audio_read_mtok": "cache_read_audio", "output_audio_mtok": "output_audio",
    "input_image_mtok": "input_image", "cache_image_read_mtok": "cache_read_image", "output_image_mtok": "output_image",
    "input_video_mtok": "input_video", "output_video_mtok": "output_video",
}  # fmt: skip
"""The list's names of what we can price, and ours."""

MEDIA = frozenset(ours for ours in KEYS.values() if ours.rpartition("_")[2] in ("audio", "image", "video"))
"""Kinds of tokens that some models have a rate of their own for; what they are a kind of comes before the last `_`."""

Rate = tuple[tuple[int, int], ...]
"""Bands, rising: (holds above so many input tokens, pico-dollars per token or piece); the lowest is above -1."""

Rates = Mapping[str, Rate]
"""By the names in `KEYS`' values."""


@dataclass(frozen=True, slots=True)
class Special:
    """Rates that replace the ordinary ones from Unix time `since` where all of `when` is so, a name and a value each."""

    when: frozenset[tuple[str, str]]
    since: float
    rates: Rates


@dataclass(frozen=True, slots=True)
class Listed:
    """What a model costs: `periods` of (Unix time it began, rates), the last that has begun holds."""

    id: str
    match: Any
    """The list's own clause: which names mean this model."""
    periods: tuple[tuple[float, Rates], ...]
    specials: tuple[Special, ...] = ()


def picos(dollars: Decimal | float | str, per: int) -> int:
    """Pico-dollars for one, when `per` of them cost so many dollars; half a pico-dollar goes to the even one."""
    return int((Decimal(str(dollars)) * 10**12 / per).to_integral_value(ROUND_HALF_EVEN))


def utc(day: date) -> float:
    """Unix time at which a day begins in UTC: when a dated price does."""
    return datetime.combine(day, time(), UTC).timestamp()


def bundled() -> dict[str, tuple[Listed, ...]]:
    """The installed list, by provider. Raises `ImportError` when genai-prices is not installed."""
    try:
        return tables(_run_data())
    except (AttributeError, KeyError, NameError, OSError, TypeError, ValueError):
        from genai_prices.data import providers

        return tables(providers)


def fetched(url: str | None = None) -> dict[str, tuple[Listed, ...]]:
    """The newest list, from genai-prices' home or `url`. Blocks; raises what its HTTP client does, or `ValueError`."""
    from genai_prices import UpdatePrices

    snapshot = (UpdatePrices() if url is None else UpdatePrices(url=url)).fetch()
    if snapshot is None:
        raise ValueError("no prices came")
    return tables(snapshot.providers)


_CONSTRUCTORS = (
    "ArrayMatch", "ClauseAnd", "ClauseContains", "ClauseEndsWith", "ClauseEquals", "ClauseOr", "ClauseRegex",
    "ClauseStartsWith", "ConditionalPrice", "ModelInfo", "ModelPrice", "PriceVariant", "Provider", "StartDateConstraint",
    "Tier", "TieredPrices", "TimeOfDateConstraint", "UsageExtractor", "UsageExtractorMapping",
)  # fmt: skip


def _run_data() -> Iterable[Any]:
    """`genai_prices.data.providers`, made of plain namespaces."""
    spec = find_spec("genai_prices")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("genai-prices is not installed")
    path = f"{spec.submodule_search_locations[0]}/data.py"
    code = SourceFileLoader("genai_prices.data", path).get_code("genai_prices.data")
    if code is None:
        raise OSError("no code")
    stand_in = SimpleNamespace(**dict.fromkeys(_CONSTRUCTORS, SimpleNamespace), __all__=_CONSTRUCTORS)

    def importing(name: str, *args: Any) -> Any:
        return stand_in if name == "types" else builtins.__import__(name, *args)

    names: dict[str, Any] = {"__builtins__": {**vars(builtins), "__import__": importing}, "__name__": "prices"}
    exec(code, names)
    providers: Iterable[Any] = names["providers"]
    return providers


def tables(providers: Iterable[Any]) -> dict[str, tuple[Listed, ...]]:
    """Our three of genai-prices' providers, by the conventions' names."""
    return {PROVIDERS[p.id]: tuple(_listed(model) for model in p.models) for p in providers if p.id in PROVIDERS}


def _listed(model: Any) -> Listed:
    prices = model.prices if isinstance(model.prices, list) else [SimpleNamespace(prices=model.prices)]
    variants = getattr(model, "price_variants", None) or ()
    return Listed(
        id=model.id,
        match=model.match,
        periods=tuple((since, _rates(p.prices)) for p in prices if (since := _since(p)) is not None),
        specials=tuple(
            Special(frozenset(v.when.items()), since, _rates(v.prices))
            for v in variants
            if (since := _since(v)) is not None
        ),
    )


def _since(dated: Any) -> float | None:
    """When it begins; None for a price of certain hours of the day, which none of our providers has."""
    constraint = getattr(dated, "constraint", None)
    if constraint is None:
        return 0.0
    day = getattr(constraint, "start_date", None)
    return None if day is None else utc(day)


def _rates(prices: Any) -> Rates:
    return {ours: _rate(key, vars(prices)[key]) for key, ours in KEYS.items() if vars(prices).get(key) is not None}


def _rate(key: str, price: Any) -> Rate:
    per = 1000 if key.endswith("_kcount") else 10**6
    if not hasattr(price, "tiers"):
        return ((-1, picos(price, per)),)
    tiers = sorted((tier.start, picos(tier.price, per)) for tier in price.tiers)
    return ((-1, picos(price.base, per)), *tiers)


_COMPACT_DATE = re.compile(r"-(20\d\d)(0[1-9]|1[0-2])([0-2]\d|3[01])$")


def find(models: Iterable[Listed], name: str) -> Listed | None:
    """The model that a name in lower case means; `-20261014` at its end may stand for `-2026-10-14`, as in the list."""
    dashed = _COMPACT_DATE.sub(r"-\1-\2-\3", name)
    for spelling in dict.fromkeys((name, dashed)):
        for model in models:
            if _matches(model.match, spelling):
                return model
    return None


def _matches(clause: Any, name: str) -> bool:
    """Whether one of the list's clauses (an object with one field, named after what it does) matches."""
    ((kind, wanted),) = vars(clause).items()
    match kind:
        case "equals":
            return bool(name == wanted.lower())
        case "starts_with":
            return name.startswith(wanted.lower())
        case "ends_with":
            return name.endswith(wanted.lower())
        case "contains":
            return wanted.lower() in name
        case "regex":
            return re.search(wanted, name) is not None
        case "or_":
            return any(_matches(part, name) for part in wanted)
        case "and_":
            return all(_matches(part, name) for part in wanted)
        case _:
            raise ValueError(f"the price list has a clause we do not know: {kind}")


_ENDING = re.compile(r"(?:[-@](?:20\d{6}|20\d\d-\d\d-\d\d|\d\d-20\d\d|0\d\d|latest|preview))*")

_FINE_TUNED = "ft:"
"""How names begin that end as their owner likes."""


def is_named(clause: Any, name: str) -> bool:
    """Whether a name that one of the list's clauses matches is the model's own, with at most a day or a usual ending after
    it: a new model's may begin like an old one's."""
    if clause is None:
        return True
    ((kind, wanted),) = vars(clause).items()
    match kind:
        case "starts_with":
            own = wanted.startswith(_FINE_TUNED) or _ENDING.fullmatch(name, len(wanted.rstrip("-"))) is not None
            return own and _matches(clause, name)
        case "or_":
            return any(is_named(part, name) for part in wanted)
        case "and_":
            return all(is_named(part, name) for part in wanted)
        case _:
            return kind in ("equals", "regex") and _matches(clause, name)
