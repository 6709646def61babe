"""Claude's fast mode has limits of its own: what it uses up holds up no ordinary call, and the other way round."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support import claude
from tests.support.asking import asked, headroom, new_model, says
from tests.support.scene import Scene, scene


@pytest.fixture(scope="module")
def stage() -> Iterator[Scene]:
    with scene(says(), CLAUDE_PROXY_PACING="on", CLAUDE_PROXY_MAX_RETRIES="0", CLAUDE_PROXY_QUEUE_TIMEOUT="20") as made:
        yield made


def fast(input_tokens: tuple[int, int], output_tokens: tuple[int, int]) -> list[str]:
    told = headroom(input_tokens=input_tokens, output_tokens=output_tokens)
    return [line.replace("anthropic-ratelimit-", "anthropic-fast-") for line in told]


def line_of(stage: Scene, model: str, **fields: Any) -> dict[str, Any]:
    got = stage.ask(stream=False, body=asked(model=model, **fields))
    return stage.gateway.wait_log(
        lambda one: one["event"] == "request" and one["trace_id"] == got.headers["x-trace-id"], "the request's line"
    )


FAST, ORDINARY = {"speed": "fast"}, {"speed": "standard"}
PLENTY = headroom(requests=(100_000, 99_999), input_tokens=(10**6, 10**6), output_tokens=(10**6, 10**6))


@pytest.mark.parametrize(("limited", "other"), [(FAST, ORDINARY), (ORDINARY, FAST), (FAST, {})])
def test_a_429_of_the_one_does_not_hold_up_the_other(
    stage: Scene, limited: dict[str, Any], other: dict[str, Any]
) -> None:
    model = new_model()
    error = claude.error("rate_limit_error")
    stage.plays(says("retry-after: 2", "content-type: application/json", status="429 Too Many Requests", body=error))
    assert line_of(stage, model, **limited)["outcome"] == "upstream_429"
    stage.plays(says(*PLENTY))
    assert "queue_s" not in line_of(stage, model, **other)
    assert line_of(stage, model, **limited)["queue_s"] > 0.5


def test_each_is_paced_by_its_own_headers(stage: Scene) -> None:
    model = new_model()
    # Of what fast mode may take in a minute nothing is left: 64 output tokens come back in 0.6 s and more.
    both = [*PLENTY, *fast(input_tokens=(10**6, 10**6), output_tokens=(6_000, 0))]
    stage.plays(says(*both))
    assert "queue_s" not in line_of(stage, model, **FAST)
    assert "queue_s" not in line_of(stage, model)
    assert "queue_s" not in line_of(stage, model, **ORDINARY)
    assert line_of(stage, model, **FAST)["queue_s"] > 0.05


def test_headroom_of_fast_mode_is_shown_by_itself(stage: Scene) -> None:
    stage.plays(says(*headroom(input_tokens=(900, 800)), *fast(input_tokens=(70, 60), output_tokens=(50, 40))))
    line_of(stage, claude.MODEL, **FAST)
    shown = {
        dict(labels)["dimension"]: value
        for (name, labels), value in stage.gateway.samples().items()
        if name == "claude_proxy_upstream_quota_remaining" and dict(labels)["gen_ai_request_model"] == claude.MODEL
    }
    assert shown == {"input_tokens": 800, "fast_input_tokens": 60, "fast_output_tokens": 40}
