"""What a call counts against its client's tokens, however it ended."""

from __future__ import annotations

import pytest

from service.account.call import Call
from service.account.estimate import NOTHING
from service.account.exchange import Exchange
from service.account.prices import UNPRICED
from service.allowances import Allowance, Allowances
from service.pacer.clients import ClientLimits
from service.pacer.shared import shared_state
from service.policy.limits import Limits
from service.record import Answered, Certainty, Cost, Usage

LIMITS = Limits(tokens=1_000.0)


@pytest.mark.parametrize(
    ("said", "cost", "tokens"),
    [
        (Answered(usage=Usage(input_tokens=100, output_tokens=20)), Cost(Certainty.EXACT, input=1), 120),
        (Answered(usage=Usage(input_tokens=100, output_tokens=20)), UNPRICED, 120),
        (Answered(usage=Usage(input_tokens=100), content_bytes=81), Cost(Certainty.ESTIMATED), 121),
        (Answered(content_bytes=8), Cost(Certainty.ESTIMATED), 52),
        (Answered(), Cost(Certainty.ESTIMATED), 50),
        (Answered(), UNPRICED, 50),
        (Answered(), NOTHING, 0),
        (Answered(), None, 0),
    ],
    ids=[
        "all said",
        "all said, no price",
        "left in the middle of a stream",
        "nothing said of usage",
        "left before anything came",
        "the same, no price",
        "refused, or not sent",
        "no inference",
    ],
)
def test_tokens_that_the_provider_did_not_say_are_counted_as_its_bytes_make_likely(
    said: Answered, cost: Cost | None, tokens: int
) -> None:
    now = [0.0]
    counted = ClientLimits(shared_state(1), 0, fail_open=lambda: None, clock=lambda: now[0], wall=lambda: now[0])
    call = Call(lambda: now[0], "anthropic", "chat", "claude-opus-5-5", True, {})
    call.answered, call.input_estimate, call.cost = lambda: said, 50, cost
    allowances = Allowances(counted, {"alice": Allowance(LIMITS)})
    allowances.admit(_exchange(), call)
    for settle in call.on_end:
        settle(call)
    assert LIMITS.tokens is not None
    assert counted.remaining("alice", LIMITS)["tokens"].remaining == LIMITS.tokens - tokens


def _exchange() -> Exchange:
    exchange = Exchange.__new__(Exchange)  # of all that it is, only who asks is looked at
    exchange.client = "alice"
    return exchange
