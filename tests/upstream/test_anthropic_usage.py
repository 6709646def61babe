"""What Claude's usage says beyond its counts: inferences within a call, what is billed otherwise than told, in every kind
of answer. Costs are worked out by hand from the price page: Opus 5.5 4/20 (read 0.20, written 5, for an hour 8), Fable 5.2
8/40 (read 0.20), Opus 4.8 5/25 (read 0.50), Haiku 5.5 0.10/0.50 and five times that above 100,000 tokens."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from service.account.prices import Prices
from service.record import Answered, Certainty, Inner, Usage
from service.upstream.anthropic import StreamReader, WholeReader
from service.upstream.anthropic_batches import ResultsReader
from tests.support.claude import BLOCK, delta, event

NOVEMBER = datetime(2026, 11, 22, 12, tzinfo=UTC).timestamp()
MODEL = "claude-opus-5-5"


def turn(
    kind: str = "message", /, i: int = 0, o: int = 0, read: int = 0, five: int = 0, hour: int = 0, **more: Any
) -> dict[str, Any]:
    """An iteration as the API writes it."""
    return {
        "type": kind, "input_tokens": i, "output_tokens": o, "cache_read_input_tokens": read,
        "cache_creation_input_tokens": five + hour,
        "cache_creation": {"ephemeral_5m_input_tokens": five, "ephemeral_1h_input_tokens": hour},
    } | more  # fmt: skip


def top(*turns: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A usage whose top-level counts are the sum of these turns."""
    names = ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
    split = {
        f"ephemeral_{t}_input_tokens": sum(one["cache_creation"][f"ephemeral_{t}_input_tokens"] for one in turns)
        for t in ("5m", "1h")
    }
    return {name: sum(one[name] for one in turns) for name in names} | {"cache_creation": split} | more


def whole(usage: dict[str, Any], **message: Any) -> Answered:
    """Of a message that comes in one piece."""
    body = {"id": "m", "type": "message", "model": MODEL, "stop_reason": "end_turn", "usage": usage} | message
    reader = WholeReader(200, inference=True)
    reader.feed(json.dumps(body).encode())
    assert reader.ended()[1] is None
    return reader.answered


def streamed(usage: dict[str, Any], **message: Any) -> Answered:
    """Of a stream: the start tells the input side without iterations, the end everything but the split and the variant."""
    start = {k: v for k, v in usage.items() if k not in ("iterations", "server_tool_use", "fallback_credit")}
    end = {k: v for k, v in usage.items() if k not in ("cache_creation", "service_tier", "speed", "inference_geo")}
    last = {k: message.pop(k) for k in ("stop_reason", "container") if k in message} or {"stop_reason": "end_turn"}
    body = {"id": "m", "type": "message", "model": MODEL, "usage": start | {"output_tokens": 1}} | message
    reader = StreamReader(lambda: 0.0, lambda: None)
    pieces = event("message_start", message=body) + BLOCK + delta("x") + event("message_delta", delta=last, usage=end)
    reader.feed(pieces + event("message_stop"))
    assert reader.ended()[1] is None
    return reader.answered


def batched(usage: dict[str, Any], **message: Any) -> Answered:
    """Of a message batch's result."""
    body = {"id": "m", "type": "message", "model": MODEL, "stop_reason": "end_turn", "usage": usage} | message
    line = {"custom_id": "a", "result": {"type": "succeeded", "message": body}}
    found = [one for one in ResultsReader().feed(json.dumps(line).encode() + b"\n") if one is not None]
    return found[0].answered


EVERY_KIND = pytest.mark.parametrize("answer", [whole, streamed, batched])


@pytest.fixture(scope="module")
def prices() -> Prices:
    return Prices()


def cost(prices: Prices, answered: Answered) -> tuple[Certainty, int]:
    assert answered.usage is not None
    assert answered.model is not None
    found = prices.cost("anthropic", answered.model, answered.usage, answered.variant, NOVEMBER)
    return found.certainty, found.total


def nanos(*products: tuple[int, str]) -> int:
    return int(sum((Decimal(tokens) * Decimal(dollars) * 1000 for tokens, dollars in products), Decimal(0)))


@EVERY_KIND
def test_one_turn_is_the_call_itself(prices: Prices, answer: Any) -> None:
    one = turn(i=100, o=20, read=300, five=40, hour=60)
    answered = answer(top(one, iterations=[one]))
    assert answered.usage == Usage(500, 20, 300, 100, cache_write_1h_tokens=60)
    assert cost(prices, answered) == (
        Certainty.EXACT, nanos((100, "4"), (300, "0.20"), (40, "5"), (60, "8"), (20, "20")),
    )  # fmt: skip


@EVERY_KIND
def test_a_compactions_tokens_are_added_to_the_top_level_ones_and_billed(prices: Prices, answer: Any) -> None:
    # The figures of the documentation's example.
    message, compaction = turn(i=23_000, o=1_000), turn("compaction", i=180_000, o=3_500)
    answered = answer(top(message, iterations=[compaction, message]))
    assert answered.usage is not None
    assert (answered.usage.input_tokens, answered.usage.output_tokens) == (203_000, 4_500)
    assert answered.usage.inner == (Inner(Usage(180_000, 3_500, 0, 0, cache_write_1h_tokens=0)),)
    assert cost(prices, answered) == (Certainty.EXACT, nanos((203_000, "4"), (4_500, "20")))


@EVERY_KIND
def test_an_advisors_tokens_are_added_and_billed_at_its_models_price(prices: Prices, answer: Any) -> None:
    first, second = turn(i=1, o=45, read=109_696, five=7_192), turn(i=1, o=446, read=116_888, five=661)
    advice = turn("advisor_message", i=159_419, o=7_805, read=12, model="claude-opus-4-8")
    answered = answer(top(first, second, iterations=[first, advice, second]))
    assert answered.usage is not None
    assert answered.usage.input_tokens == 2 + 226_584 + 7_853 + 159_419 + 12
    assert (answered.usage.output_tokens, answered.usage.cache_read_tokens) == (491 + 7_805, 226_584 + 12)
    assert cost(prices, answered) == (
        Certainty.EXACT,
        nanos((2, "4"), (226_584, "0.20"), (7_853, "5"), (491, "20"), (159_419, "5"), (12, "0.50"), (7_805, "25")),
    )


def test_several_turns_above_a_bands_edge_are_an_estimate_and_one_is_not(prices: Prices) -> None:
    turns = [turn(i=60_000, o=10), turn(i=60_000, o=10)]
    several = whole(top(*turns, iterations=turns), model="claude-haiku-5-5")
    one = whole(top(turn(i=120_000, o=20), iterations=[turn(i=120_000, o=20)]), model="claude-haiku-5-5")
    dear = nanos((120_000, "0.50"), (20, "2.50"))
    assert (cost(prices, several), cost(prices, one)) == ((Certainty.ESTIMATED, dear), (Certainty.EXACT, dear))


def test_server_tools_make_several_turns_even_if_nobody_lists_them(prices: Prices) -> None:
    for tool in ("web_search_requests", "web_fetch_requests"):
        usage = top(turn(i=120_000, o=20), server_tool_use={tool: 1})
        assert cost(prices, whole(usage, model="claude-haiku-5-5"))[0] is Certainty.ESTIMATED
        assert cost(prices, whole(usage))[0] is Certainty.EXACT


@EVERY_KIND
def test_searches_cost_and_fetches_do_not(prices: Prices, answer: Any) -> None:
    usage = top(turn(i=10, o=10), server_tool_use={"web_search_requests": 3, "web_fetch_requests": 5})
    assert cost(prices, answer(usage)) == (Certainty.EXACT, nanos((10, "4"), (10, "20")) + 3 * 10_000_000)


@EVERY_KIND
@pytest.mark.parametrize(
    ("said", "factor", "certainty"),
    [
        ({"speed": "standard", "service_tier": "standard", "inference_geo": "global"}, "1", Certainty.EXACT),
        ({"speed": "fast"}, "2", Certainty.EXACT),
        ({"speed": "fast", "inference_geo": "us"}, "2.2", Certainty.EXACT),
        ({"service_tier": "batch", "inference_geo": "us"}, "0.55", Certainty.EXACT),
        ({"service_tier": "priority"}, "1", Certainty.ESTIMATED),
        ({"inference_geo": "eu"}, "1", Certainty.ESTIMATED),
    ],
)
def test_speed_tier_and_place_move_the_price_of_everything_but_searches(
    prices: Prices, answer: Any, said: dict[str, str], factor: str, certainty: Certainty
) -> None:
    message, compaction = turn(i=100, o=20, read=300, five=40, hour=60), turn("compaction", i=1000, o=200)
    searched = {"web_search_requests": 2}
    answered = answer(top(message, iterations=[message, compaction], server_tool_use=searched, **said))
    plain = nanos((1100, "4"), (300, "0.20"), (40, "5"), (60, "8"), (220, "20"))
    assert cost(prices, answered) == (certainty, int(plain * Decimal(factor)) + 20_000_000)


FALLBACK = [turn(i=2, o=578, read=72_769, five=10_421, model="claude-fable-5-2"),
            turn("fallback_message", i=2, o=13_658, read=79_214, model="claude-opus-4-8")]  # fmt: skip
FALLBACK_COST = nanos(
    (2, "8"), (72_769, "0.20"), (10_421, "10"), (578, "40"), (2, "5"), (79_214, "0.50"), (13_658, "25")
)


@pytest.mark.parametrize("top_level", [top(FALLBACK[1]), top(*FALLBACK)], ids=["of the fallback", "of both"])
@pytest.mark.parametrize("answer", [whole, streamed])
def test_a_fallbacks_attempts_cost_each_its_models_price_whatever_the_top_level_adds_up(
    prices: Prices, answer: Any, top_level: dict[str, Any]
) -> None:
    # A stream's message_start names the model that declined; and the provider reprices cache writes, so: an estimate.
    model = "claude-opus-4-8" if answer is whole else "claude-fable-5-2"
    answered = answer(top_level | {"iterations": FALLBACK}, model=model)
    assert answered.model == "claude-opus-4-8"
    assert answered.usage is not None
    assert (answered.usage.input_tokens, answered.usage.output_tokens) == (83_192 + 79_216, 14_236)
    assert answered.usage.inner[0].model == "claude-fable-5-2"
    assert cost(prices, answered) == (Certainty.ESTIMATED, FALLBACK_COST)


def test_an_attempt_that_was_declined_before_any_output_is_not_billed(prices: Prices) -> None:
    declined = turn(i=412, o=0, model="claude-fable-5-2")
    answered = whole(top(FALLBACK[1], iterations=[declined, FALLBACK[1]]), model="claude-opus-4-8")
    assert answered.usage is not None
    assert (answered.usage.input_tokens, answered.usage.inner) == (79_216, ())
    assert cost(prices, answered) == (Certainty.ESTIMATED, nanos((2, "5"), (79_214, "0.50"), (13_658, "25")))


@pytest.mark.parametrize(
    ("iterations", "own"),
    [
        ([turn(i=10, o=5), turn("tomorrow", i=7, o=7)], True),
        ([turn(i=10, o=5, model="claude-opus-5-5"), turn(model="claude-opus-5")], True),
        ([turn(i=10, o=4)], True),
        ([turn(i=10, o=5), turn("advisor_message", i=3, o=1)], False),
        ("many", True),
        ([turn(i=-1)], True),
        ([{"type": "message", "input_tokens": 10**30}], True),
        ({"type": "message"}, True),
    ],
    ids=["new kind", "two models", "other sum", "no model", "no list", "negative", "absurd", "no list either"],
)
@EVERY_KIND
def test_iterations_that_are_not_understood_make_an_estimate_and_no_invalid_answer(
    prices: Prices, answer: Any, iterations: Any, own: bool
) -> None:
    answered = answer(top(turn(i=10, o=5), iterations=iterations))
    sure, amount = cost(prices, answered)
    assert (sure, amount == nanos((10, "4"), (5, "20"))) == (Certainty.ESTIMATED, own)


@pytest.mark.parametrize("nothing", [None, []])
def test_no_iterations_are_no_doubt(prices: Prices, nothing: Any) -> None:
    assert cost(prices, whole(top(turn(i=10, o=5), iterations=nothing)))[0] is Certainty.EXACT


@EVERY_KIND
@pytest.mark.parametrize(
    ("usage", "message", "sure"),
    [
        ({"server_tool_use": {"code_execution_requests": 1}}, {}, False),
        ({"server_tool_use": {"code_execution_requests": 0, "web_search_requests": 0}}, {}, True),
        ({}, {"container": {"id": "c", "expires_at": "2026-11-22T00:00:00Z"}}, False),
        ({}, {"container": None}, True),
        ({"fallback_credit": {"status": {"type": "redeemed"}}}, {}, False),
        ({"fallback_credit": {"status": {"type": "not_applied", "reason": "expired"}}}, {}, True),
        ({"fallback_credit": "soon"}, {}, False),
        ({"fallback_credit": None}, {}, True),
    ],
)
def test_what_is_billed_by_the_hour_or_repriced_is_an_estimate(
    prices: Prices, answer: Any, usage: dict[str, Any], message: dict[str, Any], sure: bool
) -> None:
    answered = answer(top(turn(i=10, o=5), **usage), **message)
    certainty = Certainty.EXACT if sure else Certainty.ESTIMATED
    assert cost(prices, answered) == (certainty, nanos((10, "4"), (5, "20")))


@EVERY_KIND
def test_a_refusal_before_any_output_is_not_billed_as_far_as_anybody_knows(prices: Prices, answer: Any) -> None:
    refused = answer(top(turn(i=412, o=0)), stop_reason="refusal")
    assert refused.usage is not None
    assert (refused.usage.input_tokens, refused.usage.output_tokens) == (412, 0)
    assert cost(prices, refused) == (Certainty.ESTIMATED, 0)
    later = answer(top(turn(i=412, o=9)), stop_reason="refusal")
    assert cost(prices, later) == (Certainty.EXACT, nanos((412, "4"), (9, "20")))
    nothing = answer(top(turn(i=412, o=0)), stop_reason="max_tokens")
    assert cost(prices, nothing) == (Certainty.EXACT, nanos((412, "4")))


def grown(five: int, hour: int, more: int, **end: Any) -> Answered:
    """A stream whose cache writes have grown by so many when it ends."""
    split = {"ephemeral_5m_input_tokens": five, "ephemeral_1h_input_tokens": hour}
    start = {
        "input_tokens": 10,
        "cache_creation_input_tokens": five + hour,
        "cache_creation": split,
        "output_tokens": 1,
    }
    usage = {"output_tokens": 5, "cache_creation_input_tokens": five + hour + more} | end
    reader = StreamReader(lambda: 0.0, lambda: None)
    reader.feed(event("message_start", message={"id": "m", "model": MODEL, "usage": start}))
    reader.feed(event("message_delta", delta={"stop_reason": "end_turn"}, usage=usage) + event("message_stop"))
    return reader.answered


@pytest.mark.parametrize(
    ("five", "hour", "more", "written", "sure"),
    [
        (100, 0, 0, [(100, "5")], True),
        (0, 100, 0, [(100, "8")], True),
        # Breakpoints of an hour come before those of five minutes: what comes later than these is one of these.
        (100, 50, 30, [(130, "5"), (50, "8")], True),
        (0, 100, 30, [(130, "8")], False),
        (0, 0, 30, [(30, "5")], False),
    ],
)
def test_cache_writes_that_a_stream_adds_are_split_as_far_as_its_start_tells(
    prices: Prices, five: int, hour: int, more: int, written: list[tuple[int, str]], sure: bool
) -> None:
    expected = nanos((10, "4"), (5, "20"), *written)
    assert cost(prices, grown(five, hour, more)) == (Certainty.EXACT if sure else Certainty.ESTIMATED, expected)


def test_iterations_tell_the_split_of_what_a_stream_adds(prices: Prices) -> None:
    turns = [turn(i=6, o=2, hour=100), turn(i=4, o=3, five=10, hour=20)]
    answered = grown(0, 100, 30, iterations=turns)
    assert answered.usage is not None
    assert answered.usage.cache_write_1h_tokens == 120
    assert cost(prices, answered) == (Certainty.EXACT, nanos((10, "4"), (5, "20"), (10, "5"), (120, "8")))
