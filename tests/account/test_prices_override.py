"""The owner's price file: it wins, it may add models, and what is wrong with it is said by entry and field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from service.account.prices import Prices
from service.account.prices_override import BadPrices, load
from service.record import Certainty, Cost, Usage, Variant

AT = 1_795_348_800.0
"""2026-11-22."""


def prices(folder: Path, text: Any) -> Prices:
    path = folder / "prices.json"
    path.write_text(text if isinstance(text, str) else json.dumps(text))
    return Prices(load(path))


def test_the_owners_price_wins_over_the_list_in_every_band(tmp_path: Path) -> None:
    own = prices(tmp_path, {"anthropic/claude-haiku-5-5": {"input": 0.0625, "output": 1}})
    cost = own.cost("anthropic", "claude-haiku-5-5", Usage(200_000, 10), Variant(), AT)
    assert cost == Cost(Certainty.EXACT, input=12_500_000, output=10_000)


def test_it_may_add_a_model_with_all_its_rates(tmp_path: Path) -> None:
    entry = {
        "input": 3, "output": 9, "cache_read": 0.3, "cache_write": 4, "cache_write_1h": 6, "batch_factor": 0.25,
        "web_search": 20,
    }  # fmt: skip
    own = prices(tmp_path, {"openai/house-model": entry})
    usage = Usage(1000, 100, 400, 300, cache_write_1h_tokens=100, web_searches=2)
    assert own.cost("openai", "house-model", usage, Variant(), AT) == Cost(
        Certainty.EXACT, input=900_000, cache_read=120_000, cache_write=1_400_000, output=900_000, tools=40_000_000
    )
    assert own.cost("openai", "house-model", usage, Variant("batch"), AT) == Cost(
        Certainty.EXACT, input=225_000, cache_read=30_000, cache_write=350_000, output=225_000, tools=40_000_000
    )


def test_a_cache_rate_that_is_left_out_is_that_of_input(tmp_path: Path) -> None:
    own = prices(tmp_path, {"gcp.gemini/mine": {"input": 1, "output": 1, "cache_write": 2}})
    cost = own.cost("gcp.gemini", "mine", Usage(30, 0, 10, 20, cache_write_1h_tokens=10), Variant(), AT)
    assert (cost.cache_read, cost.cache_write) == (10_000, 40_000)


def test_an_entry_holds_for_the_dated_names_of_its_model(tmp_path: Path) -> None:
    own = prices(tmp_path, {"anthropic/claude-haiku-4-5": {"input": 7, "output": 0}})
    for name in ("claude-haiku-4-5", "claude-haiku-4-5-20251001", "claude-haiku-4-5[1m]"):
        assert own.cost("anthropic", name, Usage(1, 0), Variant(), AT).total == 7000


def test_a_batch_factor_that_is_left_out_is_the_providers_rule(tmp_path: Path) -> None:
    own = prices(tmp_path, {"anthropic/mine": {"input": 2, "output": 2}})
    assert own.cost("anthropic", "mine", Usage(1, 1), Variant("batch"), AT).total == 2000


def test_a_price_of_nothing_is_a_price(tmp_path: Path) -> None:
    own = prices(tmp_path, {"openai/free": {"input": 0, "output": 0}})
    assert own.cost("openai", "free", Usage(5, 5), Variant(), AT) == Cost(Certainty.EXACT)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ({"anthropic/m": {"output": 1}}, ('"anthropic/m"', "`input`")),
        ({"anthropic/m": {"input": 1}}, ('"anthropic/m"', "`output`")),
        ({"anthropic/m": {"input": -1, "output": 1}}, ('"anthropic/m"', ".input")),
        ({"anthropic/m": {"input": "1", "output": 1}}, ('"anthropic/m"', ".input")),
        ({"anthropic/m": {"input": 1, "output": 1, "cached": 1}}, ('"anthropic/m"', "`cached`")),
        ({"anthropic/m": {"input": 1, "output": 1, "batch_factor": 2}}, ('"anthropic/m"', ".batch_factor")),
        ({"anthropic/m": 5}, ('"anthropic/m"', "object")),
        ({"claude-opus-5-5": {"input": 1, "output": 1}}, ('"claude-opus-5-5"', "provider/model", "anthropic")),
        ({"aws/m": {"input": 1, "output": 1}}, ('"aws/m"', "provider/model")),
        ({"anthropic/": {"input": 1, "output": 1}}, ('"anthropic/"', "provider/model")),
        ("[]", ("prices.json", "object")),
        ("{", ("prices.json",)),
        ('{"anthropic/m": {"input": NaN, "output": 1}}', ("prices.json",)),
    ],
)
def test_what_is_wrong_with_the_file_is_named(tmp_path: Path, text: Any, told: tuple[str, ...]) -> None:
    with pytest.raises(BadPrices) as error:
        prices(tmp_path, text)
    assert all(part in str(error.value) for part in told), str(error.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadPrices, match=r"none\.json: No such file"):
        load(tmp_path / "none.json")
