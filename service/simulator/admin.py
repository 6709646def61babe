"""Claude's Admin API as far as money goes: the usage and the cost report, computed from the truth.

Shapes and parameters: the pages Get Messages Usage Report and Get Cost Report. Unlike there, nothing comes late.
"""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import NamedTuple

from aiohttp import web

from service.simulator import models
from service.simulator.call import Call
from service.simulator.errors import invalid
from service.simulator.limits import rfc3339
from service.simulator.prices import cents
from service.simulator.truth import Billed, Place

_WIDTHS = {"1d": (86_400, 7, 31), "1h": (3_600, 24, 168), "1m": (60, 60, 1_440)}  # seconds; buckets a page, at most
_DIMENSIONS: dict[str, Callable[[Place], str | None]] = {
    "api_key_id": lambda place: f"apikey_{place.key_hash}",
    "workspace_id": lambda place: None,  # the default workspace has no id
    "account_id": lambda place: None,
    "service_account_id": lambda place: None,
    "model": lambda place: place.model,
    "service_tier": lambda place: place.tier,
    "context_window": lambda place: "0-200k" if place.band < 2 else "200k-1M",
    "inference_geo": lambda place: place.geo if models.find(place.model).generation >= (4, 6) else "not_available",
    "speed": lambda place: place.speed,
}
_ALWAYS = (
    "api_key_id",
    "workspace_id",
    "account_id",
    "service_account_id",
    "model",
    "service_tier",
    "context_window",
    "inference_geo",
)
_FILTERS = {
    "api_key_ids": "api_key_id",
    "models": "model",
    "service_tiers": "service_tier",
    "context_window": "context_window",
    "inference_geos": "inference_geo",
}
_TOKENS = {
    "uncached_input_tokens": "Input Tokens",
    "output_tokens": "Output Tokens",
    "cache_read_input_tokens": "Input Tokens, Cache Hit",
    "cache_creation.ephemeral_5m_input_tokens": "Input Tokens, Cache Write",
    "cache_creation.ephemeral_1h_input_tokens": "Input Tokens, Cache Write (1h)",
}
_OF_COST = ("context_window", "inference_geo", "model", "service_tier")


class Page(NamedTuple):
    """Which buckets a request gets: their starts, their width, and where the next page begins, if there is one."""

    starts: range
    width: int
    following: int | None

    def of(self, results: Callable[[int, int], list[dict[str, object]]]) -> dict[str, object]:
        """The answer; `results` makes a bucket's from its first and last minute."""
        data = [
            {
                "starting_at": rfc3339(start),
                "ending_at": rfc3339(start + self.width),
                "results": results(start // 60, (start + self.width) // 60),
            }
            for start in self.starts
        ]
        more = self.following is not None
        token = f"page_{rfc3339(self.following)}" if self.following is not None else None
        return {"data": data, "has_more": more, "next_page": token}


async def usage(call: Call) -> web.StreamResponse:
    """GET /v1/organizations/usage_report/messages."""
    query = call.request.query
    wanted = _many(call, "group_by")
    for name in wanted:
        if name not in _DIMENSIONS:
            raise invalid(f"group_by: {name} is not one of {', '.join(_DIMENSIONS)}")
    page = _page(call, query.get("bucket_width", "1d"), tuple(_WIDTHS))
    chosen = [(place, billed) for place, billed in call.sim.truth.usage.items() if _passes(call, place)]
    shown = (*_ALWAYS, "speed") if "speed" in wanted else _ALWAYS

    def results(first: int, end: int) -> list[dict[str, object]]:
        groups: dict[tuple[str | None, ...], Billed] = {}
        for place, billed in chosen:
            if first <= place.minute < end:
                key = tuple(_DIMENSIONS[name](place) if name in wanted else None for name in shown)
                groups.setdefault(key, Billed()).add(billed)
        return [dict(zip(shown, key, strict=True)) | _counted(billed) for key, billed in groups.items()]

    return call.answer(page.of(results))


async def cost(call: Call) -> web.StreamResponse:
    """GET /v1/organizations/cost_report."""
    wanted = _many(call, "group_by")
    for name in wanted:
        if name not in ("workspace_id", "description"):
            raise invalid(f"group_by: {name} is not one of workspace_id, description")
    page = _page(call, call.request.query.get("bucket_width", "1d"), ("1d",))
    truth, described = call.sim.truth.usage, "description" in wanted

    def results(first: int, end: int) -> list[dict[str, object]]:
        sums: dict[tuple[str | None, ...], Decimal] = {}
        for place, billed in truth.items():
            if first <= place.minute < end:
                for key, amount in _costs(place, billed, described):
                    sums[key] = sums.get(key, Decimal(0)) + amount
        return [_priced(key, amount) for key, amount in sums.items()]

    return call.answer(page.of(results))


def _counted(billed: Billed) -> dict[str, object]:
    written_1h = billed.cache_creation_1h_input_tokens
    return {
        "uncached_input_tokens": billed.input_tokens,
        "cache_creation": {
            "ephemeral_1h_input_tokens": written_1h,
            "ephemeral_5m_input_tokens": billed.cache_creation_input_tokens - written_1h,
        },
        "cache_read_input_tokens": billed.cache_read_input_tokens,
        "output_tokens": billed.output_tokens,
        "server_tool_use": {"web_search_requests": 0},
    }


def _costs(place: Place, billed: Billed, described: bool) -> Iterator[tuple[tuple[str | None, ...], Decimal]]:
    """What one place adds to which rows of the cost report: to one, or to one for every type of token."""
    for kind, amount in cents(place, billed).items():
        if not described:
            yield (None,) * (2 + len(_OF_COST)), amount
        elif amount:
            text = f"{models.find(place.model).name} Usage - {_TOKENS[kind]}"
            yield (text, kind, *(_DIMENSIONS[name](place) for name in _OF_COST)), amount


def _priced(key: tuple[str | None, ...], amount: Decimal) -> dict[str, object]:
    text, kind, *rest = key
    return {
        "amount": f"{amount.normalize():f}",  # cents
        "currency": "USD",
        "cost_type": None if kind is None else "tokens",
        "description": text,
        "token_type": kind,
        "workspace_id": None,
        **dict(zip(_OF_COST, rest, strict=True)),
    }


def _many(call: Call, name: str) -> list[str]:
    """A parameter that may come more than once, with or without brackets."""
    query = call.request.query
    return query.getall(f"{name}[]", []) + query.getall(name, [])


def _passes(call: Call, place: Place) -> bool:
    filters = ((_many(call, name), _DIMENSIONS[dimension](place)) for name, dimension in _FILTERS.items())
    return all(not allowed or value in allowed for allowed, value in filters)


def _page(call: Call, asked: str, allowed: tuple[str, ...]) -> Page:
    query = call.request.query
    if asked not in allowed:
        raise invalid(f"bucket_width: Input should be one of {', '.join(allowed)}")
    width, usual, most = _WIDTHS[asked]
    limit = query.get("limit", str(usual))
    if not limit.isdecimal() or not 1 <= int(limit) <= most:
        raise invalid(f"limit: Input should be between 1 and {most}")
    token = query.get("page")
    start = (
        _second("page", token.removeprefix("page_")) if token else _second("starting_at", query.get("starting_at", ""))
    )
    now = int(call.sim.clock.time())
    # A bucket that has begun counts as long as no end is named; a named end must not lie within the bucket.
    end = _second("ending_at", query["ending_at"]) if "ending_at" in query else now + width
    starts = range(start // width * width, min(end - width, now) + 1, width)
    following = starts[int(limit)] if len(starts) > int(limit) else None
    return Page(starts[: int(limit)], width, following)


def _second(name: str, text: str) -> int:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise invalid(f"{name}: Input should be an RFC 3339 timestamp" if text else f"{name}: Field required") from None
    return int(moment.replace(tzinfo=moment.tzinfo or UTC).timestamp())
