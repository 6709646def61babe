"""Claude's Admin API as far as a comparison of accounts needs it: the usage report and the cost report, page by page.

Blocking, for the command line. Shapes and parameters: the pages Get Messages Usage Report and Get Cost Report.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Generic, TypeVar

import certifi
import httpx
import msgspec

USAGE, COST = "/v1/organizations/usage_report/messages", "/v1/organizations/cost_report"
_VERSION = "2023-06-01"
_TIMEOUT = httpx.Timeout(60.0, connect=10.0)
_DAYS_A_PAGE = 31
"""The most that both reports give at once."""
_LONGEST_WAIT = 120.0
"""Seconds: who is told to come back later than that is told so."""
_MOST_PAGES = 1000


class ReportError(Exception):
    """No report, and why, for whoever asked for it; never has a key in it."""


class _CacheCreation(msgspec.Struct):
    ephemeral_1h_input_tokens: int = 0
    ephemeral_5m_input_tokens: int = 0


class UsageRow(msgspec.Struct):
    """Tokens of one day that are alike in model, tier and key; the kinds do not overlap."""

    uncached_input_tokens: int
    output_tokens: int
    cache_read_input_tokens: int = 0
    cache_creation: _CacheCreation = msgspec.field(default_factory=_CacheCreation)
    model: str | None = None
    service_tier: str | None = None
    api_key_id: str | None = None


class CostRow(msgspec.Struct):
    """An amount of one day. `amount` is in cents; `model` is None where something else than tokens was paid for."""

    amount: Decimal
    currency: str = "USD"
    cost_type: str | None = None
    model: str | None = None


class Billed(msgspec.Struct):
    """What the simulator billed for one call; writes for an hour are a part of all writes."""

    requests: int
    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int
    cache_creation_1h_input_tokens: int


class CountedCall(msgspec.Struct):
    """One request that the simulator counted; `started` in Unix seconds."""

    request_id: str
    started: float
    provider: str
    key_hash: str
    billed: Billed
    model: str | None = None
    message_id: str | None = None


class _Requests(msgspec.Struct):
    total: int


class Counted(msgspec.Struct):
    """The simulator's own count; `calls` are the last of `requests.total`."""

    requests: _Requests
    calls: list[CountedCall]


Row = TypeVar("Row", bound=msgspec.Struct)


@dataclass(frozen=True, slots=True)
class Period:
    """UTC days as 2026-11-30: the first, and the one after the last; None for up to now."""

    first: str
    after: str | None


class AdminClient:
    """Reads the reports; close it, or use it in a `with`. Everything raises `ReportError`."""

    def __init__(
        self,
        base_url: str,
        key: str,
        *,
        proxy: str | None = None,
        ca_file: str = "",
        tell: Callable[[str], None] = lambda text: None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`tell` gets a sentence for each page and wait. `proxy` and `ca_file` as for other calls; no other is used."""
        context = ssl.create_default_context(cafile=ca_file or certifi.where())
        headers = {"x-api-key": key, "anthropic-version": _VERSION, "user-agent": "claude-proxy"}
        self._client = httpx.Client(
            base_url=base_url, headers=headers, proxy=proxy, verify=context, trust_env=False, timeout=_TIMEOUT
        )
        self._address, self._tell, self._sleep = base_url, tell, sleep

    def __enter__(self) -> AdminClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def usage(self, period: Period, keys: Sequence[str] = ()) -> Iterator[tuple[str, UsageRow]]:
        """Tokens by day, told apart by model, tier and key; of some keys (their ids) only, if any are named."""
        query = [("group_by[]", name) for name in ("model", "service_tier", "api_key_id")]
        yield from self._rows(USAGE, period, [*query, *(("api_key_ids[]", key) for key in keys)], UsageRow)

    def cost(self, period: Period) -> Iterator[tuple[str, CostRow]]:
        """Amounts by day, told apart by what was paid for. It cannot be had for single keys."""
        yield from self._rows(COST, period, [("group_by[]", "description")], CostRow)

    def simulated(self) -> Counted:
        """What the simulator counted, call by call; nobody else has that page."""
        path = "/_simulator/counts"
        return _decoded(self._get(path, []), Counted, path)

    def _rows(
        self, path: str, period: Period, query: list[tuple[str, str]], kind: type[Row]
    ) -> Iterator[tuple[str, Row]]:
        query = [
            *query,
            ("bucket_width", "1d"),
            ("limit", str(_DAYS_A_PAGE)),
            ("starting_at", f"{period.first}T00:00:00Z"),
        ]
        if period.after is not None:
            query.append(("ending_at", f"{period.after}T00:00:00Z"))
        page, seen = None, set[str]()
        while True:
            answer = self._get(path, [*query, ("page", page)] if page else query)
            found = _decoded(answer, _Page[kind], path)  # type: ignore[valid-type]  # msgspec needs the row's type itself
            for bucket in found.data:
                for row in bucket.results:
                    yield bucket.starting_at[:10], row
            page = found.next_page
            if not found.has_more or not page:
                return
            if page in seen or len(seen) > _MOST_PAGES:
                raise ReportError(f"{path}: the pages go round in a circle")
            seen.add(page)
            self._tell(f"{path}: page {len(seen) + 1}")

    def _get(self, path: str, query: list[tuple[str, str]]) -> bytes:
        answer = self._once(path, query)
        if answer.status_code == 429:
            wait = _seconds(answer.headers.get("retry-after"))
            if wait is None or wait > _LONGEST_WAIT:
                raise ReportError(f"{path}: too many requests (429); come back {_when(wait)}")
            self._tell(f"{path}: too many requests (429); waiting {wait:g} s, once")
            self._sleep(wait)
            answer = self._once(path, query)
        if answer.status_code != 200:
            raise ReportError(f"{path}: {_refusal(answer)}")
        return answer.content

    def _once(self, path: str, query: list[tuple[str, str]]) -> httpx.Response:
        try:
            return self._client.get(path, params=tuple(query))
        except httpx.TimeoutException as error:
            raise ReportError(f"{path}: no answer in time from {self._shown} ({type(error).__name__})") from None
        except httpx.HTTPError as error:
            raise ReportError(f"{path}: {self._shown} cannot be reached: {error or type(error).__name__}") from None

    @property
    def _shown(self) -> str:
        """The address without a password."""
        url = httpx.URL(self._address)
        return f"{url.scheme}://{url.netloc.decode().rpartition('@')[2]}"


class _Bucket(msgspec.Struct, Generic[Row]):
    starting_at: str
    results: list[Row]


class _Page(msgspec.Struct, Generic[Row]):
    data: list[_Bucket[Row]]
    has_more: bool = False
    next_page: str | None = None


class _Said(msgspec.Struct):
    message: str = ""


class _Error(msgspec.Struct):
    error: _Said = msgspec.field(default_factory=_Said)


Shape = TypeVar("Shape")


def _decoded(body: bytes, shape: type[Shape], path: str) -> Shape:
    try:
        return msgspec.json.decode(body, type=shape)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ReportError(f"{path}: not the answer that is documented: {error}") from None


def _refusal(answer: httpx.Response) -> str:
    """What a status means here, and the API's own words."""
    try:
        said = msgspec.json.decode(answer.content, type=_Error).error.message[:300]
    except (msgspec.DecodeError, UnicodeDecodeError):
        said = ""
    meaning = {
        401: "the key was refused (401): an Admin API key is needed (sk-ant-admin…), which is not the key that calls models",
        403: "the key may not read reports (403): it takes an Admin API key of somebody with the admin role",
        404: "not found (404): is the address that of the Claude API?",
        429: "too many requests (429), again after waiting; come back later",
    }.get(answer.status_code, f"HTTP {answer.status_code}")
    return f"{meaning}: {said}" if said.isprintable() and said else meaning


def _seconds(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if value >= 0 else None


def _when(wait: float | None) -> str:
    return "later" if wait is None else f"in {wait:,.0f} s"
