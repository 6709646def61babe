"""The real Claude Code in print mode, with the gateway as its API and nothing else to reach."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.clients.conftest import CLAUDE_CODE, House
from tests.clients.environments import HERE
from tests.clients.sdk import PROVIDER_KEY
from tests.clients.test_sdks import own_headers
from tests.support.poll import poll

MODEL = "claude-opus-5-5"
_NOWHERE = "http://127.0.0.1:9"
_RUN_SECONDS = 60
SESSION = "0b1c2d3e-0000-4000-8000-00000000cafe"

CREDENTIALS = ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN")


class Claude:
    """Runs `claude -p hello` in a home of its own."""

    def __init__(self, house: House, command: list[str], folder: Path) -> None:
        self.house, self._command, self._folder = house, command, folder

    def __call__(self, *arguments: str, **environ: str) -> dict[str, Any]:
        """The result that it prints as JSON."""
        home = Path(tempfile.mkdtemp(dir=self._folder))
        settings = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "ANTHROPIC_BASE_URL": self.house.gateway.url,
            "DISABLE_AUTOUPDATER": "1",
            "DISABLE_TELEMETRY": "1",
            "DISABLE_ERROR_REPORTING": "1",
            "HTTPS_PROXY": _NOWHERE,  # whatever else it wants to reach, it cannot
            "NO_PROXY": "127.0.0.1",
        }
        done = subprocess.run(
            [*self._command, "-p", "hello", "--output-format", "json", "--model", MODEL, *arguments],
            env=settings | environ,
            cwd=home,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_RUN_SECONDS,
        )
        assert done.stdout, done.stderr
        result: dict[str, Any] = json.loads(done.stdout)
        return result

    def lines(self) -> list[dict[str, Any]]:
        """The gateway's lines of it so far."""
        return [line for line in self.house.gateway.requests() if line.get("client") == CLAUDE_CODE]

    def seen(self, count: int, *arguments: str, **environ: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """A run's result, and the `count` lines (or more) that it left."""
        before = len(self.lines())
        result = self(*arguments, **environ)
        return result, poll(
            lambda: new if len(new := self.lines()[before:]) >= count else None, what=f"{count} lines of Claude Code"
        )

    def schedule(self, *rules: dict[str, object]) -> None:
        """Faults of the provider."""
        httpx.post(self.house.simulator.url + "/_simulator/schedule", json=rules, timeout=10).raise_for_status()


@pytest.fixture
def claude(house: House, node_packages: Callable[[Path, str], Path], tmp_path: Path) -> Claude:
    folder = node_packages(HERE / "claude_code", "claude-code-2.1.330")
    wrapper = folder / "node_modules" / "@anthropic-ai" / "claude-code" / "cli-wrapper.cjs"
    return Claude(house, ["node", str(wrapper)], tmp_path)


def with_key(name: str = CREDENTIALS[0]) -> dict[str, str]:
    """The client key, in the variable that makes Claude Code send it in one header or the other."""
    return {name: House.key(CLAUDE_CODE)}


@pytest.mark.parametrize("variable", CREDENTIALS)
def test_a_turn_is_answered_and_its_tokens_are_in_the_log(claude: Claude, variable: str) -> None:
    result, (line,) = claude.seen(1, **with_key(variable))
    assert (result["is_error"], result["num_turns"]) == (False, 1)
    assert result["result"]
    assert (line["route"], line["outcome"], line["stream"], line["model"]) == ("/v1/messages", "ok", True, MODEL)
    usage = result["usage"]
    kinds = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
    assert line["input_tokens"] == sum(usage[kind] for kind in kinds) > 1000
    assert line["output_tokens"] == usage["output_tokens"] > 0


def test_what_it_sends_arrives_unchanged(claude: Claude) -> None:
    run = ("--session-id", SESSION)
    claude(*run, ANTHROPIC_BASE_URL=claude.house.simulator.url, ANTHROPIC_API_KEY=PROVIDER_KEY)
    claude(*run, **with_key())
    sent = [
        each
        for each in claude.house.simulator.get("/_simulator/requests")
        if ("x-claude-code-session-id", SESSION) in own_headers(each)
    ]
    direct, through = sent
    assert through["query"] == direct["query"] == "beta=true"
    assert "claude-code-" in dict(own_headers(through))["anthropic-beta"]
    assert own_headers(through) == own_headers(direct)


def test_a_tool_is_called_and_its_result_sent_back(claude: Claude) -> None:
    claude.schedule({"scenario": "tool=Bash", "nth": 1})
    try:
        result, lines = claude.seen(2, "--allowedTools", "Bash", **with_key())
    finally:
        claude.schedule()
    assert result["num_turns"] == 2
    assert [line["stop_reason"] for line in lines] == ["tool_use", "end_turn"]


def test_pings_and_events_it_does_not_know_do_not_disturb_it(claude: Claude) -> None:
    scenario = "x-simulator-scenario: ping_every=1;unknown_events;comments;message_deltas=2"
    result = claude(ANTHROPIC_CUSTOM_HEADERS=scenario, **with_key())
    assert (result["is_error"], bool(result["result"])) == (False, True)


def test_it_tries_again_after_an_overloaded_answer(claude: Claude) -> None:
    claude.schedule({"scenario": "fault=overloaded;retry_after=0.05", "nth": 1})
    try:
        result, lines = claude.seen(1, **with_key())
    finally:
        claude.schedule()
    assert not result["is_error"]
    assert lines[-1]["outcome"] == "ok"
    assert sum(line["attempts"] for line in lines) == 2


def test_it_recovers_from_a_stream_that_is_cut_off(claude: Claude) -> None:
    claude.schedule({"scenario": "fault=cut;after=3", "nth": 1})
    try:
        result, lines = claude.seen(2, **with_key())
    finally:
        claude.schedule()
    assert not result["is_error"]
    assert [line["outcome"] for line in lines] == ["cut_off", "ok"]


def test_an_unknown_client_key_is_told_to_the_user(claude: Claude) -> None:
    result = claude(ANTHROPIC_API_KEY="sk-nobody")
    assert (result["is_error"], result["api_error_status"]) == (True, 401)
    assert "this client key is not known here" in result["result"]


def test_it_finds_its_models_at_the_gateway(claude: Claude) -> None:
    environ = with_key(CREDENTIALS[1]) | {"CLAUDE_CODE_ENABLE_GATEWAY_MODEL_DISCOVERY": "1"}
    result, lines = claude.seen(2, **environ)
    assert not result["is_error"]
    (asked,) = (line for line in lines if line["route"] == "/v1/models")
    assert (asked["status"], asked["outcome"]) == (200, "ok")
    recorded = claude.house.simulator.get("/_simulator/requests")
    (arrived,) = (each for each in recorded if each["request_id"] == asked["upstream_request_id"])
    assert arrived["query"] == "limit=1000"
