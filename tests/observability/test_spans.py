"""Our light spans and the SDK's: the same calls on both, and what leaves must be equal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk import trace as sdk
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from observability.scrub import Scrubber
from observability.spans import TracerProvider

LINKED = SpanContext(5, 6, True, TraceFlags(1))


class Kept(SpanProcessor):
    """Every span that ended, by name, as it leaves."""

    def __init__(self) -> None:
        self.spans: dict[str, ReadableSpan] = {}

    def on_end(self, span: ReadableSpan) -> None:
        self.spans[span.name] = Scrubber([]).clean(span)


def _attributes(tracer: trace.Tracer) -> None:
    span = tracer.start_span("span", Context(), SpanKind.CLIENT, {"a": 1, "b": "x"}, start_time=1)
    span.set_attribute("b", "y")
    span.set_attributes({"c": 2.5, "d": True, "e": ["p", "q"]})
    span.add_event("event", {"k": "v"}, 5)
    span.add_event("bare", timestamp=6)
    span.end(9)
    span.set_attribute("late", 1)
    span.set_attributes({"late": 1})
    span.add_event("late")
    span.update_name("late")
    span.set_status(StatusCode.ERROR)
    span.end(99)


def _statuses(*statuses: StatusCode) -> Callable[[trace.Tracer], None]:
    def run(tracer: trace.Tracer) -> None:
        span = tracer.start_span("span", Context(), start_time=1)
        for number, status in enumerate(statuses):
            span.set_status(Status(status) if number % 2 else status)
        span.end(9)

    return run


def _nested(tracer: trace.Tracer) -> None:
    with (
        tracer.start_as_current_span("root", Context(), kind=SpanKind.SERVER, links=[Link(LINKED, {"l": 1})]),
        tracer.start_as_current_span("child") as child,
        tracer.start_as_current_span("grandchild", attributes={"x": 1}),
    ):
        child.update_name("renamed")
    tracer.start_span("after", Context()).end()


def _raised(tracer: trace.Tracer) -> None:
    with pytest.raises(ValueError, match="secret"), tracer.start_as_current_span("span", Context()):
        raise ValueError("secret words")


def _left_open(tracer: trace.Tracer) -> None:
    with (
        pytest.raises(LookupError),
        tracer.start_as_current_span(
            "span", Context(), record_exception=False, set_status_on_exception=False, end_on_exit=False
        ) as span,
    ):
        raise LookupError
    assert span.is_recording()
    span.end()
    assert not span.is_recording()


CASES: dict[str, Callable[[trace.Tracer], None]] = {
    "attributes": _attributes,
    "an error": _statuses(StatusCode.ERROR),
    "unset does not take an error back": _statuses(StatusCode.ERROR, StatusCode.UNSET),
    "ok does": _statuses(StatusCode.ERROR, StatusCode.OK),
    "ok is final": _statuses(StatusCode.OK, StatusCode.ERROR),
    "nested": _nested,
    "an exception": _raised,
    "an exception that is not for the span": _left_open,
}


def _given(nanoseconds: int | None) -> int | None:
    """A time that a case gave; None for the clock's."""
    return nanoseconds if nanoseconds is not None and nanoseconds < 100 else None


def _told(provider: Any, run: Callable[[trace.Tracer], None]) -> dict[str, tuple[Any, ...]]:
    kept = Kept()
    provider.add_span_processor(kept)
    run(provider.get_tracer("scope", "1.0", "https://schema.example"))
    names = {span.context.span_id: name for name, span in kept.spans.items()}
    return {
        name: (
            span.kind,
            span.parent and names[span.parent.span_id],
            span.context.trace_id == next(iter(kept.spans.values())).context.trace_id,
            (span.context.trace_flags, span.context.is_remote, span.context.is_valid),
            dict(span.attributes or {}),
            [(event.name, dict(event.attributes or {}), _given(event.timestamp)) for event in span.events],
            [(link.context, dict(link.attributes or {})) for link in span.links],
            span.status.status_code,
            (_given(span.start_time), _given(span.end_time)),
            span.instrumentation_scope,
            span.resource.attributes,
        )
        for name, span in kept.spans.items()
    }


@pytest.mark.parametrize("case", CASES)
def test_what_leaves_is_what_the_sdk_would_have_made(case: str) -> None:
    resource = Resource({"service.name": "x"})
    ours = _told(TracerProvider(resource, lambda trace_id: True, lambda span: None), CASES[case])
    theirs = _told(sdk.TracerProvider(resource=resource, shutdown_on_exit=False), CASES[case])
    assert ours == theirs


def test_ids_are_new_for_every_span_and_never_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    tracer = TracerProvider(Resource.get_empty(), lambda trace_id: True, lambda span: None).get_tracer("x")
    contexts = [tracer.start_span("x", Context()).get_span_context() for _ in range(1000)]
    assert len({context.trace_id for context in contexts}) == len({context.span_id for context in contexts}) == 1000
    monkeypatch.setattr("observability.spans.getrandbits", lambda bits: 0)
    assert tracer.start_span("x", Context()).get_span_context().is_valid
