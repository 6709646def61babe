"""Several named tasks in one request, each on a model of its own, and one answer of them all."""

from __future__ import annotations

import json
import socket
import threading
from typing import Any

import pytest

from service.web.aggregate import combined
from tests.support import claude
from tests.support.upstream import Seen, json_answer
from tests.upstream import test_gemini as gemini
from tests.upstream import test_openai as openai
from tests.web.conftest import Open, Stage

TASKS = {
    "summary": {"provider": "anthropic", "prompt": "Summarise"},
    "sentiment": {"provider": "gemini", "model": "gemini-2.5-flash", "prompt": "Judge"},
}
ONE_SENTENCE = {"provider": "openai", "prompt": "Combine {summary} and {sentiment} but not {this}"}


def _asked(seen: Seen) -> str:
    """The prompt of a request to any of the three."""
    body = json.loads(seen.body)
    return str(body["contents"][0]["parts"][0]["text"] if "contents" in body else body["messages"][-1]["content"])


def echo(connection: socket.socket, seen: Seen) -> None:
    """Each provider says who it is and what it was asked; a prompt with FAIL in it fails."""
    if "FAIL" in _asked(seen):
        json_answer(claude.error("overloaded_error", "busy"), "529 Overloaded")(connection, seen)
        return
    body: Any
    if ":generateContent" in seen.line:
        body = gemini.chunk(f"gemini: {_asked(seen)}", "STOP", gemini.USAGE)
    elif "/v1/messages" in seen.line:
        body = json.loads(claude.MESSAGE) | {"content": [{"type": "text", "text": f"claude: {_asked(seen)}"}]}
    else:
        message = {"role": "assistant", "content": f"openai: {_asked(seen)}"}
        body = openai.COMPLETION | {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
    json_answer(json.dumps(body).encode())(connection, seen)


@pytest.fixture
def stage(open_stage: Open) -> Stage:
    """With a key for every provider, each saying who it is."""
    made = open_stage(GEMINI_API_KEY="g", OPENAI_API_KEY="o")
    made.upstream.script = echo
    return made


def _text(answer: dict[str, Any]) -> str:
    return str(answer["content"][0]["text"])


def test_claude_summarises_while_gemini_judges_and_openai_combines(stage: Stage) -> None:
    response = stage.post("/aggregate", {"tasks": TASKS, "combine": ONE_SENTENCE})
    body = response.get_json()
    assert {name: (task["provider"], _text(task)) for name, task in body["tasks"].items()} == {
        "summary": ("anthropic", "claude: Summarise"),
        "sentiment": ("gemini", "gemini: Judge"),
    }
    assert _text(body["combined"]) == "openai: Combine claude: Summarise and gemini: Judge but not {this}"
    assert (response.status_code, body["trace_id"]) == (200, response.headers["x-trace-id"])


def test_tokens_and_cost_are_those_of_all_calls_together(stage: Stage) -> None:
    body = stage.post("/aggregate", {"tasks": TASKS, "combine": ONE_SENTENCE}).get_json()
    assert (body["usage"]["input_tokens"], body["usage"]["output_tokens"]) == (40 + 45 + 40, 7 + 27 + 30)
    parts = [*body["tasks"].values(), body["combined"]]
    assert body["cost"]["certainty"] == "exact"
    assert body["cost"]["usd"] == pytest.approx(sum(part["cost"]["usd"] for part in parts))
    assert body["cost"]["usd"] > 0


def test_one_trace_has_a_span_for_each_task_with_its_name(stage: Stage) -> None:
    stage.post("/aggregate", {"tasks": TASKS, "combine": ONE_SENTENCE}).close()
    server = stage.told.spans["POST /aggregate"]
    calls = [span for span in stage.told.spans.values() if (span.attributes or {}).get("claude_proxy.task")]
    assert {(span.name, (span.attributes or {})["claude_proxy.task"]) for span in calls} == {
        ("chat claude-opus-5-5", "summary"),
        ("generate_content gemini-2.5-flash", "sentiment"),
        ("chat gpt-6.1-sol", "combine"),
    }
    assert server.context is not None
    assert {span.parent and span.parent.span_id for span in calls} == {server.context.span_id}


def test_there_is_a_record_for_each_call_and_one_for_the_request_which_is_of_no_single_provider(stage: Stage) -> None:
    stage.post("/aggregate", {"tasks": TASKS})
    *calls, whole = stage.told.lines()
    assert {line["provider"] for line in calls} == {"anthropic", "gcp.gemini"}
    assert (whole["event"], whole["route"], whole["outcome"]) == ("request", "/aggregate", "ok")
    assert "provider" not in whole


def test_the_tasks_run_side_by_side(stage: Stage) -> None:
    both = threading.Barrier(2, timeout=30)

    def script(connection: socket.socket, seen: Seen) -> None:
        both.wait()
        echo(connection, seen)

    stage.upstream.script = script
    assert all("content" in task for task in stage.post("/aggregate", {"tasks": TASKS}).get_json()["tasks"].values())


def test_a_task_that_fails_is_seen_and_the_others_stand(stage: Stage) -> None:
    tasks = TASKS | {"odd": {"prompt": "FAIL"}}
    body = stage.post("/aggregate", {"tasks": tasks}).get_json()
    assert (body["tasks"]["odd"]["error"]["type"], body["tasks"]["odd"]["error"]["message"]) == (
        "overloaded_error",
        "busy",
    )
    assert _text(body["tasks"]["summary"]) == "claude: Summarise"
    assert stage.told.lines()[-1]["outcome"] == "ok"


def test_when_every_task_fails_the_request_has_failed(stage: Stage) -> None:
    assert stage.post("/aggregate", {"tasks": {"odd": {"prompt": "FAIL"}}}).status_code == 200
    assert stage.told.lines()[-1]["outcome"] == "upstream_overloaded"


@pytest.mark.parametrize(
    ("prompt", "asked"),
    [("Combine {summary} and {odd}", False), ("Combine all", False), ("Only {summary}", True)],
)
def test_the_final_task_is_not_asked_for_when_what_it_needs_is_not_there(
    stage: Stage, prompt: str, asked: bool
) -> None:
    tasks = TASKS | {"odd": {"prompt": "FAIL"}}
    body = stage.post("/aggregate", {"tasks": tasks, "combine": {"prompt": prompt}}).get_json()
    assert len(stage.upstream.seen) == (4 if asked else 3)
    if asked:
        assert _text(body["combined"]) == "claude: Only claude: Summarise"
    else:
        assert body["combined"]["error"]["details"]["tasks"] == ["odd"]


def test_a_final_prompt_without_places_gets_all_the_texts_in_order() -> None:
    assert combined("Sum up.", {"a": "One {b}", "b": "Two"}) == "Sum up.\n\n## a\n\nOne {b}\n\n## b\n\nTwo"
    assert combined("{a}{b}{c}", {"a": "{b}", "b": "Two"}) == "{b}Two{c}"


def test_a_task_over_its_own_timeout_is_a_timeout_and_the_others_stand(stage: Stage) -> None:
    def script(connection: socket.socket, seen: Seen) -> None:
        if "slow" in _asked(seen):
            connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\ncontent-type: application/json\r\n\r\n{")
        else:
            echo(connection, seen)

    stage.upstream.script = script
    tasks = TASKS | {"late": {"prompt": "slow", "timeout": 1}}
    body = stage.post("/aggregate", {"tasks": tasks}).get_json()
    assert body["tasks"]["late"]["error"]["type"] == "timeout_error"
    assert "1 s" in body["tasks"]["late"]["error"]["message"]
    assert _text(body["tasks"]["sentiment"]) == "gemini: Judge"
    assert stage.upstream.closed.acquire(timeout=30)
    assert sorted(line["outcome"] for line in stage.told.lines()[:-1]) == ["ok", "ok", "upstream_timeout"]


def test_the_timeout_beside_the_tasks_is_for_each_that_has_none(stage: Stage) -> None:
    stage.upstream.script = lambda connection, seen: None
    body = stage.post("/aggregate", {"tasks": TASKS, "timeout": 0.2}).get_json()
    assert {task["error"]["type"] for task in body["tasks"].values()} == {"timeout_error"}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"tasks": {}}, "tasks"),
        ({"tasks": {"a b": {"prompt": "x"}}}, "tasks"),
        ({"tasks": {"x" * 65: {"prompt": "x"}}}, "tasks"),
        ({"tasks": {f"t{n}": {"prompt": "x"} for n in range(33)}}, "tasks"),
        ({"tasks": {"summary": {"prompt": ""}}}, "tasks.summary.prompt"),
        ({"tasks": {"summary": {}}}, "tasks.summary.prompt"),
        ({"tasks": {"summary": 7}}, "tasks.summary"),
        ({"tasks": {"summary": {"prompt": "x", "provider": "SECRET"}}}, "tasks.summary.provider"),
        ({"tasks": {"combine": {"prompt": "x"}}}, "tasks.combine"),
        ({"combine": {"prompt": "x", "provider": "SECRET"}}, "combine.provider"),
        ({"combine": {"prompt": "x", "timeout": 0}}, "combine.timeout"),
        ({"timeout": -1}, "timeout"),
        ({"prompt": "x"}, "prompt"),
    ],
)
def test_a_wrong_request_names_its_field_and_calls_nobody(stage: Stage, change: dict[str, Any], field: str) -> None:
    response = stage.post("/aggregate", {"tasks": TASKS} | change)
    error = response.get_json()["error"]
    assert (response.status_code, error["details"]["field"]) == (400, field)
    assert "SECRET" not in error["message"]
    assert stage.upstream.seen == []


def test_a_provider_without_a_key_is_named_before_anybody_is_asked(open_stage: Open) -> None:
    stage = open_stage()
    response = stage.post("/aggregate", {"tasks": TASKS})
    assert (response.status_code, response.get_json()["error"]["details"]["field"]) == (404, "provider")
    assert stage.upstream.seen == []
