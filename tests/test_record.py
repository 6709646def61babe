"""Frozen values: they cannot change, and the arithmetic on them is exact."""

from __future__ import annotations

import msgspec
import pytest

from service import record
from service.record import Timings

VALUES = [v for v in vars(record).values() if isinstance(v, type) and issubclass(v, msgspec.Struct)]


def test_values_cannot_change_and_their_defaults_cannot_be_shared_by_mistake() -> None:
    assert len(VALUES) >= 10
    assert all(kind.__struct_config__.frozen for kind in VALUES)
    shared = [value for kind in VALUES for value in kind.__struct_defaults__ if isinstance(value, list | dict | set)]
    assert shared == []


@pytest.mark.parametrize(
    ("timings", "overhead"),
    [
        (Timings(total=1.0), 1.0),
        (Timings(total=1.0, call=0.9, upstream=0.75, waited=0.75), 0.25),
        (Timings(total=1.0, call=0.9, upstream=0.75, client_wait=0.75, waited=0.75), 0.25),
        (Timings(total=1.0, upstream=1.5, waited=1.5), 0.0),
    ],
)
def test_overhead_is_total_minus_the_waits_and_never_negative(timings: Timings, overhead: float) -> None:
    assert timings.overhead == overhead
