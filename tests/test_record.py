"""Frozen values: they cannot change, and the arithmetic on them is exact."""

from __future__ import annotations

import dataclasses

import pytest

from service import record
from service.record import Timings

VALUES = [v for v in vars(record).values() if dataclasses.is_dataclass(v) and isinstance(v, type)]


@pytest.mark.parametrize("kind", VALUES, ids=lambda kind: kind.__name__)
def test_values_are_frozen_and_have_slots(kind: type) -> None:
    assert kind.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert not hasattr(kind, "__dict__") or "__slots__" in vars(kind)


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
