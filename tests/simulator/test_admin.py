"""The usage and cost reports of Claude's Admin API, against what was billed."""

from collections.abc import Callable
from decimal import Decimal
from hashlib import sha256
from typing import Any

import httpx
import pytest

from service.simulator import models, prices
from service.simulator.config import Config
from service.simulator.truth import Billed, Place
from tests.simulator.conftest import KEY, Simulation, body, until

ADMIN = {"x-api-key": "sk-ant-admin01-test", "anthropic-version": "2023-06-01"}
TODAY = "2027-01-15T00:00:00Z"  # of the jumping clock
YESTERDAY, TOMORROW = "2027-01-14T00:00:00Z", "2027-01-16T00:00:00Z"
USAGE, COST = "usage_report/messages", "cost_report"


def report(sim: Simulation, path: str, *pairs: str, **query: str) -> httpx.Response:
    """A report; `pairs` are parameters that may come more than once."""
    params = list(({"starting_at": TODAY} | query).items())
    for pair in pairs:
        name, _, value = pair.partition("=")
        params.append((name, value))
    return sim.stranger.get(f"/v1/organizations/{path}", params=tuple(params), headers=ADMIN)


def rows(sim: Simulation, path: str, *pairs: str, **query: str) -> list[dict[str, Any]]:
    """The results of today's bucket."""
    (bucket,) = report(sim, path, *pairs, **query).json()["data"]
    results: list[dict[str, Any]] = bucket["results"]
    return results


def cached(text: str, ttl: str) -> list[dict[str, Any]]:
    block = {"type": "text", "text": text, "cache_control": {"type": "ephemeral", "ttl": ttl}}
    return [{"role": "user", "content": [block]}]


def test_usage_is_what_was_billed_with_the_cache_writes_split(sim: Simulation) -> None:
    sim.ask("output_tokens=7", messages=cached("x" * 400, "1h"))
    sim.ask("output_tokens=5", messages=cached("x" * 400, "1h"), stream=True)
    sim.ask("output_tokens=3", messages=cached("y" * 80, "5m"))
    sim.ask("fault=overloaded")
    (row,) = rows(sim, USAGE)
    assert row == {
        "uncached_input_tokens": 0,
        "cache_creation": {"ephemeral_1h_input_tokens": 100, "ephemeral_5m_input_tokens": 20},
        "cache_read_input_tokens": 100,
        "output_tokens": 15,
        "server_tool_use": {"web_search_requests": 0},
        **dict.fromkeys(("api_key_id", "workspace_id", "account_id", "service_account_id", "model")),
        **dict.fromkeys(("service_tier", "context_window", "inference_geo")),
    }


def test_usage_can_be_told_apart_and_batches_are_a_tier_of_their_own(sim: Simulation) -> None:
    sim.ask("output_tokens=7")
    sim.ask("output_tokens=9", model="claude-haiku-4-5")
    batch = sim.client.post("/v1/messages/batches", json={"requests": [{"custom_id": "a", "params": body()}]}).json()
    until(lambda: sim.client.get(f"/v1/messages/batches/{batch['id']}").json()["ended_at"])
    found = rows(
        sim, USAGE, "group_by[]=model", "group_by[]=service_tier", "group_by[]=api_key_id", "group_by[]=inference_geo"
    )
    tokens = {(row["model"], row["service_tier"], row["inference_geo"]): row["uncached_input_tokens"] for row in found}
    assert tokens == {
        ("claude-sonnet-5-5", "standard", "global"): 3,
        ("claude-haiku-4-5-20251001", "standard", "not_available"): 3,
        ("claude-sonnet-5-5", "batch", "global"): 3,
    }
    assert {row["api_key_id"] for row in found} == {f"apikey_{sha256(KEY.encode()).hexdigest()[:16]}"}
    (only,) = rows(sim, USAGE, "models[]=claude-haiku-4-5-20251001")
    assert (only["model"], only["output_tokens"]) == (None, 9)


def test_other_providers_are_not_in_it(sim: Simulation) -> None:
    chat = {"model": "gpt-5.5", "messages": [{"role": "user", "content": "a"}]}
    sim.stranger.post("/openai/v1/chat/completions", json=chat, headers={"authorization": "Bearer a"})
    assert rows(sim, USAGE) == []


def test_a_report_comes_in_buckets_of_a_day_the_last_of_which_has_begun(sim: Simulation) -> None:
    sim.ask("output_tokens=7")
    found = report(sim, USAGE, starting_at="2027-01-13T17:00:00Z").json()
    assert [(bucket["starting_at"], len(bucket["results"])) for bucket in found["data"]] == [
        ("2027-01-13T00:00:00Z", 0),
        (YESTERDAY, 0),
        (TODAY, 1),
    ]
    assert [bucket["ending_at"] for bucket in found["data"]] == [YESTERDAY, TODAY, TOMORROW]
    assert (found["has_more"], found["next_page"]) == (False, None)
    assert report(sim, USAGE, ending_at=TODAY).json()["data"] == []
    assert len(report(sim, USAGE, ending_at=TOMORROW).json()["data"]) == 1


def test_what_does_not_fit_on_a_page_is_on_the_next(sim: Simulation) -> None:
    whole = report(sim, USAGE, starting_at="2027-01-01T00:00:00Z", limit="31").json()["data"]
    first = report(sim, USAGE, starting_at="2027-01-01T00:00:00Z").json()
    second = report(sim, USAGE, starting_at="2027-01-01T00:00:00Z", page=first["next_page"]).json()
    third = report(sim, USAGE, starting_at="2027-01-01T00:00:00Z", page=second["next_page"]).json()
    assert (len(whole), len(first["data"]), first["has_more"], third["has_more"]) == (15, 7, True, False)
    assert first["data"] + second["data"] + third["data"] == whole


def test_a_bucket_can_be_a_minute(sim: Simulation) -> None:
    sim.ask("output_tokens=7;gap_ms=0;ttfb_ms=0")
    sim.clock.now += 60  # type: ignore[attr-defined]
    sim.ask("output_tokens=5;gap_ms=0;ttfb_ms=0")
    found = report(sim, USAGE, starting_at="2027-01-15T08:00:00Z", bucket_width="1m").json()["data"]
    assert [bucket["results"][0]["output_tokens"] for bucket in found] == [7, 5]


def test_the_cost_is_tokens_times_price_in_cents(sim: Simulation) -> None:
    sim.ask("output_tokens=1000", messages=cached("x" * 4000, "1h"))
    sim.ask("output_tokens=500", messages=[{"role": "user", "content": "x" * 4000}], inference_geo="us")
    (total,) = rows(sim, COST)
    expected = Decimal(1000 * 4 + 1000 * 10) + Decimal("1.1") * (1000 * 2 + 500 * 10)  # dollars per million tokens
    assert (Decimal(total["amount"]), total["currency"]) == (expected / 10_000, "USD")
    assert {total[name] for name in ("model", "token_type", "description", "cost_type", "service_tier")} == {None}
    found = rows(sim, COST, "group_by[]=description")
    assert sum(Decimal(row["amount"]) for row in found) == expected / 10_000
    assert {(row["token_type"], row["inference_geo"]): row["amount"] for row in found} == {
        ("cache_creation.ephemeral_1h_input_tokens", "global"): "0.4",
        ("output_tokens", "global"): "1",
        ("uncached_input_tokens", "us"): "0.22",
        ("output_tokens", "us"): "0.55",
    }
    assert found[0]["description"].startswith("Claude Sonnet 5.5 Usage - ")


@pytest.mark.parametrize(
    ("model", "tier", "speed", "band", "cents"),
    [
        ("claude-opus-5-5", "standard", "standard", 2, "2400"),
        ("claude-opus-5-5", "batch", "standard", 0, "1200"),
        ("claude-opus-5-5", "standard", "fast", 0, "4800"),
        ("claude-haiku-5-5", "standard", "standard", 0, "60"),
        ("claude-haiku-5-5", "standard", "standard", 1, "300"),
    ],
)
def test_tiers_speed_and_long_prompts_have_their_own_price(
    model: str, tier: str, speed: str, band: int, cents: str
) -> None:
    found = prices.cents(Place(0, "key", model, tier, "global", speed, band), Billed(1, 10**6, 0, 0, 10**6))
    assert sum(found.values()) == Decimal(cents)


def test_every_model_has_a_price() -> None:
    for model in models.MODELS:
        assert sum(
            prices.cents(Place(0, "", model.id, "standard", "global", "standard", 0), Billed(1, 9, 9, 9, 9)).values()
        )


@pytest.mark.parametrize(
    ("path", "query", "named"),
    [
        (USAGE, {"starting_at": ""}, "starting_at: Field required"),
        (USAGE, {"starting_at": "today"}, "starting_at: "),
        (USAGE, {"bucket_width": "1w"}, "bucket_width: "),
        (USAGE, {"group_by[]": "colour"}, "group_by: colour"),
        (USAGE, {"limit": "32"}, "limit: "),
        (COST, {"bucket_width": "1h"}, "bucket_width: "),
        (COST, {"group_by[]": "model"}, "group_by: model"),
    ],
)
def test_a_bad_parameter_is_a_400_that_names_it(sim: Simulation, path: str, query: dict[str, str], named: str) -> None:
    url = f"/v1/organizations/{path}"
    response = sim.stranger.get(url, params={"starting_at": TODAY, **query}, headers=ADMIN)
    assert (response.status_code, response.json()["error"]["type"]) == (400, "invalid_request_error")
    assert response.json()["error"]["message"].startswith(named)


def test_each_kind_of_key_is_good_for_its_own_api_alone(start: Callable[..., Simulation]) -> None:
    sim = start(Config())
    assert sim.client.get(f"/v1/organizations/{USAGE}", params={"starting_at": TODAY}).status_code == 401
    assert sim.client.get("/v1/models", headers=ADMIN).status_code == 401
    assert report(sim, USAGE).status_code == 200
