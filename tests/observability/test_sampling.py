"""The head decision: the caller's flag, a share of trace ids, a rate cap, and promises made meanwhile."""

from __future__ import annotations

import pytest
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, TraceState, set_span_in_context

from observability.export import SpanQueue
from observability.sampling import Head
from observability.spans import Tracer, TracerProvider

LOW, HIGH = 1, 2**64 - 1
"""Trace ids at both ends of what a ratio looks at."""


class Clock:
    """Stands still until told."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def _queue() -> SpanQueue:
    nowhere = Resource.get_empty()
    return SpanQueue(None, nowhere, bound=100, delay=1, on_success=lambda: None, on_drop=lambda reason, count: None)


def _tracer(head: Head | None, queue: SpanQueue | None = None) -> Tracer:
    takes = None if head is None else head.takes
    return TracerProvider(Resource.get_empty(), takes, (queue or _queue()).take).get_tracer("test")


def _context(tracer: Tracer, parent: Context) -> SpanContext:
    return tracer.start_span("x", parent).get_span_context()


def parent(flags: int, *, remote: bool, state: TraceState | None = None) -> Context:
    return set_span_in_context(NonRecordingSpan(SpanContext(1, 2, remote, TraceFlags(flags), state)), Context())


@pytest.mark.parametrize(("ratio", "low", "high"), [(0.0, False, False), (0.5, True, False), (1.0, True, True)])
def test_without_a_caller_the_trace_id_decides_by_the_ratio(ratio: float, low: bool, high: bool) -> None:
    made = Head(ratio, 1e6, Clock())
    assert [made.takes(trace_id) for trace_id in (LOW, HIGH, HIGH << 64)] == [low, high, low]
    flags = _context(_tracer(made), Context()).trace_flags
    assert flags.random_trace_id
    assert ratio == 0.5 or flags.sampled is bool(ratio)


@pytest.mark.parametrize("remote", [True, False])
@pytest.mark.parametrize(("flags", "taken"), [(1, True), (0, False), (3, True), (2, False)])
def test_the_callers_flags_win_over_ratio_and_rate_in_both_directions(flags: int, taken: bool, remote: bool) -> None:
    for made in (Head(0.0, 1e6), Head(1.0, 1e6), Head(1.0, 0.5)):
        own = _context(_tracer(made), parent(flags, remote=remote))
        assert (own.trace_id, own.is_remote, own.trace_flags, own.trace_flags.sampled) == (1, False, flags, taken)


def test_what_is_left_is_recorded_all_the_same_because_its_end_may_upgrade_it() -> None:
    span = _tracer(Head(0.0, 100)).start_span("x", Context())
    assert span.is_recording()
    assert not span.get_span_context().trace_flags.sampled


def test_the_rate_cap_is_a_bucket_one_second_deep_that_fills_with_time() -> None:
    clock = Clock()
    made = Head(1.0, 3, clock)
    assert [made.takes(LOW) for _ in range(5)] == [True] * 3 + [False] * 2
    clock.now += 0.33
    assert not made.takes(LOW)
    clock.now += 0.01
    assert [made.takes(LOW) for _ in range(2)] == [True, False]
    clock.now += 3600
    assert [made.takes(LOW) for _ in range(5)] == [True] * 3 + [False] * 2


def test_what_the_ratio_leaves_takes_nothing_from_the_rate() -> None:
    made = Head(0.5, 1, Clock())
    assert [made.takes(HIGH) for _ in range(10)] == [False] * 10
    assert made.takes(LOW)


def test_children_here_follow_their_parent_until_its_trace_is_promised() -> None:
    queue = _queue()
    tracer = _tracer(Head(0.0, 100), queue)
    root = tracer.start_span("root", Context())
    under = set_span_in_context(root, Context())
    assert not _context(tracer, under).trace_flags.sampled
    assert queue.keep(root, upgrade=True)
    assert _context(tracer, under).trace_flags.sampled
    root.end()
    assert not _context(tracer, under).trace_flags.sampled


def test_a_callers_span_with_the_ids_of_a_promised_one_here_is_not_taken_for_it() -> None:
    queue = _queue()
    tracer = _tracer(Head(0.0, 100), queue)
    root = tracer.start_span("root", Context())
    assert queue.keep(root, upgrade=True)
    own = root.get_span_context()
    forged = NonRecordingSpan(SpanContext(own.trace_id, own.span_id, True, TraceFlags(0)))
    assert not _context(tracer, set_span_in_context(forged, Context())).trace_flags.sampled


def test_the_callers_tracestate_is_handed_on() -> None:
    state = TraceState([("vendor", "value")])
    tracer = _tracer(Head(1.0, 100))
    assert _context(tracer, parent(1, remote=True, state=state)).trace_state == state
    assert not _context(tracer, Context()).trace_state


def test_switched_off_nothing_is_recorded_and_the_callers_trace_goes_on_unsampled() -> None:
    span = _tracer(None).start_span("x", parent(3, remote=True))
    own = span.get_span_context()
    assert (span.is_recording(), own.trace_id, own.is_valid, own.trace_flags) == (False, 1, True, 2)
    assert own.span_id != 2
    assert _context(_tracer(None), Context()).is_valid
    assert isinstance(span, trace.NonRecordingSpan)
