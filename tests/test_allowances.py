"""What a call counts against its client's tokens, however it ended."""

from __future__ import annotations

import pytest

from service.account.exchange import Call, Exchange
from service.allowances import Allowance, Allowances
from service.pacer.clients import ClientLimits
from service.pacer.shared import shared_state
from service.policy.limits import Limits
from service.record import Answered, Usage

LIMITS = Limits(tokens=1_000.0)


@pytest.mark.parametrize(
    ("said", "tokens"),
    [
        (Answered(usage=Usage(input_tokens=100, output_tokens=20)), 120),
        (Answered(usage=Usage(input_tokens=100), content_bytes=81), 121),
        (Answered(content_bytes=8), 52),
        (Answered(), 0),
    ],
    ids=["all said", "left in the middle of a stream", "nothing said of usage", "nothing came"],
)
def test_tokens_that_the_provider_did_not_say_are_counted_as_its_bytes_make_likely(said: Answered, tokens: int) -> None:
    now = [0.0]
    counted = ClientLimits(shared_state(1), 0, fail_open=lambda: None, clock=lambda: now[0], wall=lambda: now[0])
    call = Call(lambda: now[0], "anthropic", "chat", "claude-opus-5-5", True, {})
    call.answered, call.input_estimate = lambda: said, 50
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
