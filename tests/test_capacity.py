"""What an attempt's leave tells the pacer."""

from __future__ import annotations

from typing import Any, cast

import pytest

from service.capacity import Leave
from service.pacer.grant import Grant
from service.record import Answered, Inner, Usage


class Told:
    """In a grant's place: what it was told."""

    def __init__(self) -> None:
        self.used_up: list[tuple[int | None, int | None]] = []

    def used(self, *tokens: Any) -> None:
        self.used_up.append(tokens)


COMPACTION = Inner(Usage(5_000, 300, cache_read_tokens=1_000))
ADVICE = Inner(Usage(7_000, 400, cache_read_tokens=2_000), "claude-fable-5-2")
OWN_ADVICE = Inner(ADVICE.usage, "claude-opus-5-5")


@pytest.mark.parametrize(
    ("inner", "expected"),
    [
        # In all 20,000 in, 6,000 of them read from a cache, and 1,000 out.
        ((), (14_000, 1_000)),
        ((COMPACTION,), (14_000, 1_000)),
        ((COMPACTION, OWN_ADVICE), (14_000, 1_000)),
        ((COMPACTION, ADVICE), (9_000, 600)),
    ],
)
def test_another_models_tokens_within_a_call_do_not_count_to_the_calls_limits(
    inner: tuple[Inner, ...], expected: tuple[int, int]
) -> None:
    told = Told()
    usage = Usage(20_000, 1_000, cache_read_tokens=6_000, inner=inner)
    Leave(cast(Grant, told)).used(Answered(model="claude-opus-5-5", usage=usage))
    assert told.used_up == [expected]


def test_what_is_not_known_is_not_told() -> None:
    told = Told()
    leave = Leave(cast(Grant, told))
    leave.used(Answered())
    leave.used(Answered(usage=Usage(10)))
    assert told.used_up == [(10, None)]
