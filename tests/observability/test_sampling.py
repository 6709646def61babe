"""The head decision: the caller's flag, a share of trace ids, a rate cap, and promises made meanwhile."""

from __future__ import annotations

import pytest
from opentelemetry.context import Context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import Decision
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, TraceState, set_span_in_context

from observability.export import SpanQueue
from observability.sampling import HeadSampler

TAKEN, LEFT = Decision.RECORD_AND_SAMPLE, Decision.RECORD_ONLY
LOW, HIGH = 1, 2**64 - 1
"""Trace ids at both ends of what a ratio looks at."""


class Clock:
    """Stands still until told."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def _queue() -> SpanQueue:
    return SpanQueue(None, bound=100, delay=1, on_success=lambda: None, on_drop=lambda reason, count: None)


def sampler(ratio: float = 1.0, per_second: float = 1e6, clock: Clock | None = None) -> HeadSampler:
    return HeadSampler(ratio, per_second, _queue(), clock or Clock())


def decide(made: HeadSampler, parent: Context | None = None, trace_id: int = LOW) -> Decision:
    return made.should_sample(parent or Context(), trace_id, "name").decision


def parent(flags: int, *, remote: bool, span_id: int = 2, state: TraceState | None = None) -> Context:
    return set_span_in_context(NonRecordingSpan(SpanContext(1, span_id, remote, TraceFlags(flags), state)), Context())


@pytest.mark.parametrize(("ratio", "low", "high"), [(0.0, LEFT, LEFT), (0.5, TAKEN, LEFT), (1.0, TAKEN, TAKEN)])
def test_without_a_caller_the_trace_id_decides_by_the_ratio(ratio: float, low: Decision, high: Decision) -> None:
    made = sampler(ratio)
    assert [decide(made, trace_id=LOW), decide(made, trace_id=HIGH), decide(made, trace_id=HIGH << 64)] == [
        low,
        high,
        low,
    ]


@pytest.mark.parametrize(("flags", "expected"), [(1, TAKEN), (0, LEFT), (3, TAKEN), (2, LEFT)])
def test_the_callers_flag_wins_over_ratio_and_rate_in_both_directions(flags: int, expected: Decision) -> None:
    for made in (sampler(0.0), sampler(1.0), sampler(1.0, per_second=0.5)):
        assert decide(made, parent(flags, remote=True)) is expected


def test_what_is_left_is_recorded_all_the_same_because_its_end_may_upgrade_it() -> None:
    span = TracerProvider(sampler=sampler(0.0), shutdown_on_exit=False).get_tracer("test").start_span("x", Context())
    assert span.is_recording()
    assert not span.get_span_context().trace_flags.sampled


def test_the_rate_cap_is_a_bucket_one_second_deep_that_fills_with_time() -> None:
    clock = Clock()
    made = sampler(per_second=3, clock=clock)
    assert [decide(made) for _ in range(5)] == [TAKEN] * 3 + [LEFT] * 2
    clock.now += 0.33
    assert decide(made) is LEFT
    clock.now += 0.01
    assert [decide(made) for _ in range(2)] == [TAKEN, LEFT]
    clock.now += 3600
    assert [decide(made) for _ in range(5)] == [TAKEN] * 3 + [LEFT] * 2


def test_what_the_ratio_leaves_takes_nothing_from_the_rate() -> None:
    made = sampler(0.5, per_second=1)
    assert [decide(made, trace_id=HIGH) for _ in range(10)] == [LEFT] * 10
    assert decide(made) is TAKEN


def test_children_here_follow_their_parent_until_its_trace_is_promised() -> None:
    queue = _queue()
    made = HeadSampler(0.0, 100, queue, Clock())
    provider = TracerProvider(sampler=made, shutdown_on_exit=False)
    provider.add_span_processor(queue)
    tracer = provider.get_tracer("test")
    root = tracer.start_span("root", Context())
    under = set_span_in_context(root, Context())
    assert not tracer.start_span("first try", under).get_span_context().trace_flags.sampled
    assert queue.keep(root, upgrade=True)
    assert tracer.start_span("second try", under).get_span_context().trace_flags.sampled
    root.end()
    assert not tracer.start_span("too late", under).get_span_context().trace_flags.sampled


def test_a_remote_parent_with_the_id_of_a_span_here_is_not_taken_for_it() -> None:
    queue = _queue()
    queue.is_upgraded = lambda span_id: True  # type: ignore[method-assign]
    made = HeadSampler(0.0, 100, queue, Clock())
    assert decide(made, parent(0, remote=True)) is LEFT
    assert decide(made, parent(0, remote=False)) is TAKEN


def test_the_callers_tracestate_is_handed_on() -> None:
    state = TraceState([("vendor", "value")])
    result = sampler().should_sample(parent(1, remote=True, state=state), 1, "name", attributes={"a": 1})
    assert (result.trace_state, dict(result.attributes)) == (state, {"a": 1})
    assert not sampler().should_sample(Context(), 1, "name").trace_state
