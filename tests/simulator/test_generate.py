"""What the simulated model says."""

import random
from typing import Any

import msgspec
import pytest

from service.simulator.faults import parse
from service.simulator.generate import Answer, compose, example, seeded
from service.simulator.request import Prompt, Request, count, decode
from tests.simulator.conftest import body


def answer(scenario: str = "", seed: int = 1, **fields: Any) -> Answer:
    data = msgspec.json.encode(body(**fields))
    return compose(decode(data, Request), parse(scenario), seeded(seed, data), seed, median=120)


def test_the_same_seed_and_request_give_the_same_answer() -> None:
    assert answer() == answer()
    assert answer() != answer(seed=2)
    assert answer() != answer(messages=[{"role": "user", "content": "hello again"}])


def test_text_has_four_bytes_for_every_token_that_is_billed() -> None:
    part = answer("output_tokens=70000", max_tokens=100_000).parts[0]
    assert (part.tokens, len(part.text)) == (70_000, 280_000)


def test_max_tokens_ends_an_answer() -> None:
    cut = answer("output_tokens=50", max_tokens=20)
    assert (cut.output_tokens, cut.stop_reason) == (20, "max_tokens")
    whole = answer("output_tokens=50", max_tokens=50)
    assert (whole.output_tokens, whole.stop_reason) == (50, "end_turn")


def test_no_output_at_all_is_allowed() -> None:
    assert answer(max_tokens=0).output_tokens == 0


def test_thinking_comes_first_and_counts_as_output() -> None:
    thought = answer("thinking_tokens=30;output_tokens=50")
    assert [(part.kind, part.tokens) for part in thought.parts] == [("thinking", 30), ("text", 20)]
    assert (thought.thinking_tokens, thought.output_tokens) == (30, 50)


def test_a_stop_sequence_ends_the_text_before_it() -> None:
    stopped = answer("output_tokens=200", stop_sequences=["zzz", " "])
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", " ")
    assert all(" " not in part.text for part in stopped.parts)


TOOL = {
    "name": "weather",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "note": {"type": "string"}},
        "required": ["city"],
    },
}


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "weather"}])
def test_a_forced_tool_is_called_with_its_required_fields(choice: dict[str, str]) -> None:
    called = answer(tools=[TOOL], tool_choice=choice)
    assert called.stop_reason == "tool_use"
    assert list(msgspec.json.decode(called.parts[0].text)) == ["city"]


def test_a_tool_that_is_not_forced_is_called_when_the_scenario_says_so() -> None:
    assert answer(tools=[TOOL]).parts[0].kind == "text"
    assert answer("tool=auto", tools=[TOOL]).parts[0].name == "weather"


def test_an_output_format_is_kept_to() -> None:
    shape = {
        "type": "json_schema",
        "schema": {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]},
    }
    shaped = answer(output_config={"format": shape})
    assert isinstance(msgspec.json.decode(shaped.parts[0].text)["n"], int)


@pytest.mark.parametrize(
    ("schema", "kind"),
    [
        ({"type": "boolean"}, bool),
        ({"enum": ["a", "b"]}, str),
        ({"const": 3}, int),
        ({"type": ["integer", "null"], "minimum": 9}, int),
        ({"anyOf": [{"type": "null"}, {"type": "string"}]}, type(None)),
        ({"$ref": "#/$defs/x", "$defs": {"x": {"type": "array", "minItems": 2}}}, list),
    ],
)
def test_examples_follow_their_schema(schema: dict[str, Any], kind: type) -> None:
    assert type(example(schema, schema, random.Random(1))) is kind


def test_input_tokens_are_a_quarter_of_the_bytes_of_all_text() -> None:
    request = body(system="1234", messages=[{"role": "user", "content": [{"type": "text", "text": "äöü"}]}])
    assert count(decode(msgspec.json.encode(request), Prompt)) == 3
