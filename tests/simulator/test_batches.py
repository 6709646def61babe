"""Message batches."""

from collections.abc import Callable
from typing import Any

import httpx
import msgspec
import pytest

from service.simulator.config import Config, SystemClock
from tests.simulator.conftest import Simulation, body, until

PATH = "/v1/messages/batches"


def create(sim: Simulation, *names: str, **fields: Any) -> dict[str, Any]:
    requests = [{"custom_id": name, "params": body(**fields)} for name in names]
    batch: dict[str, Any] = sim.client.post(PATH, json={"requests": requests}).json()
    return batch


def ended(sim: Simulation, batch_id: str) -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        batch: dict[str, Any] = sim.client.get(f"{PATH}/{batch_id}").json()
        return batch if batch["processing_status"] == "ended" else None

    batch: dict[str, Any] = until(look)
    return batch


@pytest.fixture
def slow(start: Callable[..., Simulation]) -> Simulation:
    """A simulator whose batches take longer than any test."""
    return start(Config(batch_seconds=3600), SystemClock())


def test_a_batch_ends_and_its_results_are_billed(sim: Simulation) -> None:
    batch = create(sim, "a", "b")
    assert batch["id"].startswith("msgbatch_01")
    assert (batch["processing_status"], batch["request_counts"]["processing"]) == ("in_progress", 2)
    done = ended(sim, batch["id"])
    assert done["request_counts"] == {"processing": 0, "succeeded": 2, "errored": 0, "canceled": 0, "expired": 0}
    assert done["results_url"] == f"{sim.url}{PATH}/{batch['id']}/results"
    lines = [
        msgspec.json.decode(line) for line in httpx.get(done["results_url"], headers=sim.client.headers).iter_lines()
    ]
    assert [line["custom_id"] for line in lines] == ["a", "b"]
    usages = [line["result"]["message"]["usage"] for line in lines]
    assert {usage["service_tier"] for usage in usages} == {"batch"}
    bill = next(bill for bill in sim.counts()["billed"] if bill["kind"] == "batch")
    assert bill["output_tokens"] == sum(usage["output_tokens"] for usage in usages)


def test_a_bad_request_in_a_batch_is_an_errored_result(sim: Simulation) -> None:
    batch = ended(sim, create(sim, "a", model="nobody")["id"])
    assert batch["request_counts"]["errored"] == 1
    result = sim.client.get(f"{PATH}/{batch['id']}/results").json()["result"]
    assert result["error"]["error"]["type"] == "not_found_error"


def test_a_batch_in_progress_has_no_results_and_cannot_be_deleted(slow: Simulation) -> None:
    batch = create(slow, "a")
    assert batch["results_url"] is None
    assert slow.client.get(f"{PATH}/{batch['id']}/results").status_code == 400
    assert slow.client.delete(f"{PATH}/{batch['id']}").status_code == 400


def test_cancelling_says_so_at_once(slow: Simulation) -> None:
    batch = slow.client.post(f"{PATH}/{create(slow, 'a')['id']}/cancel").json()
    assert batch["processing_status"] == "canceling"
    assert batch["cancel_initiated_at"]


def test_what_is_cancelled_is_not_billed(start: Callable[..., Simulation]) -> None:
    sim = start(Config(batch_seconds=0.2), SystemClock())
    batch = create(sim, "a", "b")
    sim.client.post(f"{PATH}/{batch['id']}/cancel")
    assert ended(sim, batch["id"])["request_counts"]["canceled"] == 2
    assert sim.counts()["billed"] == []


def test_batches_are_listed_newest_first_and_can_be_deleted(sim: Simulation) -> None:
    ids = [create(sim, "a")["id"] for _ in range(3)]
    page = sim.client.get(f"{PATH}?limit=2").json()
    assert ([batch["id"] for batch in page["data"]], page["has_more"]) == ([ids[2], ids[1]], True)
    ended(sim, ids[2])
    assert sim.client.delete(f"{PATH}/{ids[2]}").json() == {"id": ids[2], "type": "message_batch_deleted"}
    assert sim.client.get(f"{PATH}/{ids[2]}").status_code == 404


def test_another_key_does_not_see_a_batch(sim: Simulation) -> None:
    path = f"{PATH}/{create(sim, 'a')['id']}"
    assert sim.client.get(path, headers={"x-api-key": "another"}).status_code == 404


@pytest.mark.parametrize("names", [(), ("a", "a"), ("",), ("x" * 65,)])
def test_a_batch_needs_requests_with_names_of_their_own(sim: Simulation, names: tuple[str, ...]) -> None:
    assert "requests" in create(sim, *names)["error"]["message"]
