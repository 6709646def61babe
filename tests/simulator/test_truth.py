"""The truth: counts, recording, schedule."""

from collections.abc import Callable
from hashlib import sha256

from service.simulator.config import Config
from tests.simulator.conftest import HEADERS, KEY, Simulation, body


def test_counts_add_up(sim: Simulation) -> None:
    sim.ask("output_tokens=10")
    sim.ask("output_tokens=20")
    sim.events("output_tokens=5")
    sim.ask(model="nobody")
    counts = sim.counts()
    assert counts["requests"] == {"total": 4, "in_flight": 0, "by_status": {"200": 3, "404": 1}}
    assert counts["streams"]["completed"] == 1
    bills = {bill["kind"]: (bill["requests"], bill["input_tokens"], bill["output_tokens"]) for bill in counts["billed"]}
    assert bills == {"message": (2, 6, 30), "stream": (1, 3, 5)}
    assert sum(call["billed"]["output_tokens"] for call in counts["calls"]) == 35


def test_a_call_can_be_found_by_the_ids_that_the_client_saw(sim: Simulation) -> None:
    response = sim.ask()
    call = sim.last_call()
    assert call["request_id"] == response.headers["request-id"]
    assert call["message_id"] == response.json()["id"]


def test_a_call_can_be_found_by_the_trace_that_asked_for_it(sim: Simulation) -> None:
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    sim.client.post("/v1/messages", json=body(), headers={"traceparent": f"00-{trace_id}-b7ad6b7169203331-01"})
    assert sim.last_call()["trace_id"] == trace_id
    sim.ask()
    assert sim.last_call()["trace_id"] == ""


def test_keys_are_shown_only_as_hashes(sim: Simulation) -> None:
    sim.ask()
    shown = sim.client.get("/_simulator/counts").text + sim.client.get("/_simulator/requests").text
    assert KEY not in shown
    assert sim.counts()["billed"][0]["key_hash"] == sha256(KEY.encode()).hexdigest()[:16]


def test_requests_are_recorded_as_they_came(sim: Simulation) -> None:
    request = sim.client.build_request("POST", "/v1/messages?beta=true&x=%41", json=body(), headers={"X-Odd": "Yes"})
    sim.client.send(request)
    recorded = sim.client.get("/_simulator/requests").json()[-1]
    assert (recorded["method"], recorded["path"], recorded["query"]) == ("POST", "/v1/messages", "beta=true&x=%41")
    assert recorded["body_bytes"] == len(request.content)
    assert recorded["body_sha256"] == sha256(request.content).hexdigest()
    names = [name for name, _ in recorded["headers"]]
    assert names == [name.decode() for name, _ in request.headers.raw]
    assert dict(recorded["headers"])["x-api-key"] == sha256(KEY.encode()).hexdigest()


def test_credentials_are_recorded_as_sent_when_asked_for(start: Callable[..., Simulation]) -> None:
    sim = start(Config(record_headers=True))
    sim.ask()
    assert dict(sim.client.get("/_simulator/requests").json()[-1]["headers"])["x-api-key"] == HEADERS["x-api-key"]


def test_memory_is_bounded_but_counts_are_not(start: Callable[..., Simulation]) -> None:
    sim = start(Config(record_requests=2, record_calls=3))
    for _ in range(5):
        sim.ask()
    counts = sim.counts()
    assert (counts["requests"]["total"], len(counts["calls"])) == (5, 3)
    assert len(sim.client.get("/_simulator/requests").json()) == 2


def test_a_schedule_can_be_set_and_the_header_goes_before_it(sim: Simulation) -> None:
    assert sim.client.post("/_simulator/schedule", json=[{"scenario": "fault=overloaded", "every": 2}]).json() == {
        "rules": 1
    }
    assert [sim.ask().status_code for _ in range(4)] == [200, 529, 200, 529]
    assert [sim.ask("seed=1").status_code for _ in range(2)] == [200, 200]
    assert sim.client.post("/_simulator/schedule", json=[{"scenario": "fault=what"}]).status_code == 400


def test_reset_forgets_everything(sim: Simulation) -> None:
    sim.client.post("/_simulator/schedule", json=[{"scenario": "fault=overloaded"}])
    sim.ask()
    sim.client.post("/_simulator/reset")
    assert sim.counts()["requests"]["total"] == 0
    assert sim.client.get("/_simulator/requests").json() == []
    assert sim.ask("gap_ms=0").headers["anthropic-ratelimit-requests-remaining"] == "999"
