"""The public list as we read it is the list as its own package reads it, and it changes only when asked."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from service.account import prices_list
from service.account.prices import UNPRICED, Prices
from service.record import Certainty, Cost, Usage, Variant

AT = 1_795_348_800.0
"""2026-11-22."""


def without_match(models: dict[str, tuple[prices_list.Listed, ...]]) -> dict[str, list[tuple[Any, ...]]]:
    return {name: [(m.id, m.periods, m.specials) for m in every] for name, every in models.items()}


def test_read_without_its_package_the_list_says_the_same() -> None:
    from genai_prices.data import providers

    assert without_match(prices_list.bundled()) == without_match(prices_list.tables(providers))


def test_a_name_means_the_same_model_as_to_the_package() -> None:
    from genai_prices.data import providers

    ours = prices_list.bundled()
    dated = ("", "-20261014", "-2026-10-14", "-preview", "-latest", "@20261014", "-001")
    wrong = []
    for provider in providers:
        if (known := prices_list.PROVIDERS.get(provider.id)) is None:
            continue
        for name in (model.id.lower() + end for model in provider.models for end in dated):
            theirs, found = provider.find_model(name), prices_list.find(ours[known], name)
            if (theirs and theirs.id) != (found and found.id):
                wrong.append(name)
    assert wrong == []


@pytest.mark.parametrize("total", [90_000, 150_000, 250_000, 300_000])
def test_the_arithmetic_is_the_packages_own_for_every_model(total: int) -> None:
    import genai_prices
    from genai_prices.data import providers

    prices, compared = Prices(), 0
    counts = {"input_tokens": total, "output_tokens": 1234, "cache_read_tokens": 20_001, "cache_write_tokens": 30_003}
    theirs_of, usage = genai_prices.Usage(**counts), Usage(total, 1234, 20_001, 30_003)
    for provider in (p for p in providers if p.id in prices_list.PROVIDERS):
        for model in provider.models:
            cost = prices.cost(prices_list.PROVIDERS[provider.id], model.id, usage, Variant(), AT)
            if cost == UNPRICED:
                continue  # paid by the second, the character or the picture
            theirs = model.get_prices(datetime.fromtimestamp(AT, UTC)).calc_price(theirs_of)["total_price"] * 10**9
            # Theirs is not rounded, each of our four parts is.
            assert abs(cost.total - theirs) <= 2, model.id
            compared += 1
    assert compared > 150


def test_reading_the_list_does_not_import_its_package() -> None:
    """That would cost every worker 31 MB and a third of a second."""
    code = "import sys; from service.account.prices import Prices; Prices(); print('genai_prices' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path.cwd())
    assert done.stdout == "False\n"


def test_a_list_of_another_make_is_read_through_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = without_match(prices_list.bundled())
    monkeypatch.setattr(prices_list, "_CONSTRUCTORS", ("Provider",))
    assert without_match(prices_list.bundled()) == whole


@pytest.fixture
def newest() -> Iterator[str]:
    """Where a newer list is served; its only model is `claude-opus-7`."""
    model = {
        "id": "claude-opus-7",
        "match": {"or": [{"equals": "claude-opus-7"}, {"starts_with": "claude-7"}]},
        "prices": {"input_mtok": 6, "output_mtok": {"base": 30, "tiers": [{"start": 1000, "price": 60}]}},
    }
    body = json.dumps(
        [{"id": "anthropic", "name": "Anthropic", "api_pattern": "x", "models": [model], "extractors": []}]
    ).encode()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/data.json"
        server.shutdown()
        thread.join()


def test_a_fetched_list_takes_the_place_of_the_old_one(newest: str) -> None:
    prices = Prices()
    assert prices.cost("anthropic", "claude-opus-7", Usage(1, 1), Variant(), AT) == UNPRICED
    prices.refresh(newest)
    assert prices.cost("anthropic", "claude-opus-7", Usage(1, 1), Variant(), AT) == Cost(
        Certainty.EXACT, input=6000, output=30_000
    )
    assert prices.cost("anthropic", "claude-7-x", Usage(1001, 1), Variant(), AT).output == 60_000
    assert prices.cost("anthropic", "claude-opus-5-5", Usage(1, 1), Variant(), AT) == UNPRICED


def test_a_provider_that_a_fetched_list_lacks_keeps_its_prices(newest: str) -> None:
    prices = Prices()
    prices.refresh(newest)
    assert prices.cost("openai", "gpt-6-sol", Usage(1, 0), Variant(), AT).total == 2000


def test_prices_stay_when_no_newer_ones_can_be_fetched() -> None:
    prices = Prices()
    with pytest.raises(Exception, match="refused"):
        prices.refresh("http://127.0.0.1:1/data.json")
    assert prices.cost("anthropic", "claude-opus-5-5", Usage(1, 0), Variant(), AT).total == 4000
