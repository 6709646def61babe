"""The span queue: which traces are kept whole, what is promised room, what is lost and counted, and how it stops."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence

import pytest
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, TraceFlags, set_span_in_context

from observability import export
from observability.export import SpanQueue
from observability.spans import TracerProvider
from tests.support.poll import poll


class Exporter(SpanExporter):
    """Keeps the names of what it gets; `gate` holds it up, `result` is what it says or raises."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.batches: list[int] = []
        self.gate = threading.Event()
        self.gate.set()
        self.result: SpanExportResult | Exception = SpanExportResult.SUCCESS

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.batches.append(len(spans))
        self.gate.wait(20)
        if isinstance(self.result, Exception):
            raise self.result
        if self.result is SpanExportResult.SUCCESS:
            self.names += [span.name for span in spans]
        return self.result


class Bench:
    """A queue under a provider, and what it said of itself."""

    def __init__(self, bound: int = 1000, exporter: Exporter | None = None, clean: export.Clean = lambda s: s) -> None:
        self.exporter, self.taken = exporter or Exporter(), True
        self.drops: list[tuple[str, int]] = []
        self.successes = 0
        self.queue = SpanQueue(
            exporter,
            Resource.get_empty(),
            bound=bound,
            delay=60,
            on_success=self._succeeded,
            on_drop=self._dropped,
            clean=clean,
        )
        self.provider = TracerProvider(Resource.get_empty(), lambda trace_id: self.taken, self.queue.take)

    def _succeeded(self) -> None:
        self.successes += 1

    def _dropped(self, reason: str, count: int) -> None:
        self.drops.append((reason, count))

    def span(self, name: str, parent: Span | None = None) -> Span:
        context = set_span_in_context(parent) if parent is not None else set_span_in_context(trace.INVALID_SPAN)
        return self.provider.get_tracer("test").start_span(name, context)

    def tree(self, name: str, children: int, *, keep: bool = True, upgrade: bool = False) -> bool:
        """A root with ended children, spoken for before its end; whether it was kept."""
        root = self.span(name)
        for index in range(children):
            self.span(f"{name}.{index}", root).end()
        kept = self.queue.keep(root, upgrade=upgrade) if keep else False
        root.end()
        return kept

    @property
    def waiting(self) -> list[str]:
        return [span.name for span in self.queue._queue]


@pytest.fixture
def made() -> Iterator[Callable[..., Bench]]:
    """Benches, whose exporters are let go at the end."""
    benches: list[Bench] = []

    def make(
        bound: int = 1000, *, result: SpanExportResult | Exception | None = None, **options: export.Clean
    ) -> Bench:
        exporter = Exporter()
        exporter.result = result or SpanExportResult.SUCCESS
        exporter.gate.clear()
        benches.append(Bench(bound, exporter, **options))
        return benches[-1]

    yield make
    for bench in benches:
        bench.exporter.gate.set()
        bench.queue.shutdown(5)


Make = Callable[..., Bench]


def test_nothing_is_queued_before_its_request_has_ended_and_then_all_of_it_is(made: Make) -> None:
    bench = made()
    root = bench.span("root")
    child = bench.span("child", root)
    bench.span("grandchild", child).end()
    child.end()
    assert bench.waiting == []
    root.end()
    assert bench.waiting == ["grandchild", "child", "root"]
    assert bench.queue._reserved == 0


@pytest.mark.parametrize(
    ("taken", "upgrade", "kept"), [(True, False, True), (False, False, False), (False, True, True)]
)
def test_a_trace_is_kept_when_it_was_sampled_or_is_upgraded(made: Make, taken: bool, upgrade: bool, kept: bool) -> None:
    bench = made()
    bench.taken = taken
    assert bench.tree("root", 2, upgrade=upgrade) is kept
    assert len(bench.waiting) == (3 if kept else 0)
    assert bench.drops == []  # what the head did not take is no loss


def test_once_promised_always_kept_and_its_later_spans_know_it(made: Make) -> None:
    bench = made()
    bench.taken = False
    root = bench.span("root")
    first = bench.span("first", root)
    assert not first.get_span_context().trace_flags.sampled
    assert bench.queue.keep(first, upgrade=True)
    second = bench.span("second", root)
    assert second.get_span_context().trace_flags.sampled
    assert bench.queue.keep(root, upgrade=False)
    first.end(), second.end(), root.end()
    assert bench.waiting == ["first", "second", "root"]


def test_a_promise_reserves_room_that_another_trace_cannot_take(made: Make) -> None:
    bench = made(20)
    root = bench.span("root")
    bench.span("child", root).end()
    assert bench.queue.keep(root, upgrade=False)
    assert bench.queue._reserved == 9
    assert bench.tree("second", 2)  # 3 waiting, 9 reserved, 8 left
    assert not bench.tree("third", 1)
    assert bench.drops == [("queue_full", 2)]
    root.end()
    assert (len(bench.waiting), bench.queue._reserved) == (5, 0)
    assert bench.tree("fourth", 1)


def test_a_trace_wider_than_its_promise_takes_what_room_there_is_and_always_has_its_root(made: Make) -> None:
    bench = made(40)
    root = bench.span("root")
    assert bench.queue.keep(root, upgrade=False)
    for index in range(100):
        bench.span(str(index), root).end()
        assert bench.queue._reserved <= 40
    root.end()
    assert len(bench.waiting) == 40
    assert bench.waiting[-1] == "root"
    assert bench.drops == [("queue_full", 1)] * 61


def test_a_trace_that_found_no_room_is_dropped_whole_and_counted_span_by_span(made: Make) -> None:
    bench = made(10)
    assert bench.tree("first", 1)
    assert not bench.tree("second", 3)
    assert bench.waiting == ["first.0", "first"]
    assert bench.drops == [("queue_full", 4)]


def test_a_request_that_nobody_spoke_for_goes_by_its_flag(made: Make) -> None:
    bench = made()
    bench.tree("sampled", 0, keep=False)
    bench.taken = False
    bench.tree("not", 0, keep=False)
    assert bench.waiting == ["sampled"]


@pytest.mark.parametrize("kept", [True, False])
def test_a_span_that_ends_after_its_request_shares_its_fate_within_the_bound(made: Make, kept: bool) -> None:
    bench = made(10)
    bench.taken = False
    root = bench.span("root")
    late, later = bench.span("late", root), bench.span("later", root)
    bench.queue.keep(root, upgrade=kept)
    root.end()
    late.end()
    assert bench.waiting == (["root", "late"] if kept else [])
    bench.queue._bound = 2
    later.end()
    assert (len(bench.waiting), bench.drops) == ((2, [("queue_full", 1)]) if kept else (0, []))


def test_a_span_under_a_remote_or_unknown_parent_is_a_request_of_its_own(made: Make) -> None:
    bench = made()
    for remote in (True, False):
        parent = NonRecordingSpan(SpanContext(1, 2, remote, TraceFlags(1)))
        bench.span("foreign", parent).end()
    root = bench.span("root")
    root.end()
    bench.span("after its end", root).end()
    assert bench.waiting == ["foreign", "foreign", "root", "after its end"]


def test_a_span_that_was_never_started_here_is_not_kept(made: Make) -> None:
    bench = made()
    assert not bench.queue.keep(NonRecordingSpan(SpanContext(1, 2, False, TraceFlags(1))), upgrade=True)
    assert not bench.queue.keep(trace.INVALID_SPAN, upgrade=True)


def test_without_an_exporter_the_decisions_are_the_same_and_nothing_is_held() -> None:
    bench = Bench(20)
    assert bench.tree("root", 3)
    bench.taken = False
    assert not bench.tree("root", 3)
    assert (bench.waiting, bench.queue._reserved) == ([], 0)
    bench.queue.shutdown(1)
    assert bench.drops == []


@pytest.mark.parametrize(
    ("result", "reason"),
    [(SpanExportResult.FAILURE, "export_failed"), (ValueError("cannot encode"), "encode_failed")],
)
def test_a_batch_that_fails_is_counted_by_reason_and_the_next_one_goes(
    made: Make, result: SpanExportResult | Exception, reason: str
) -> None:
    bench = made(result=result)
    bench.exporter.gate.set()
    bench.tree("root", 2)
    bench.queue.force_flush()
    poll(lambda: bench.drops, what="the loss to be counted")
    assert (bench.drops, bench.successes) == ([(reason, 3)], 0)
    bench.exporter.result = SpanExportResult.SUCCESS
    bench.tree("again", 0)
    bench.queue.force_flush()
    poll(lambda: bench.successes, what="the next batch to go")
    assert bench.exporter.names == ["again"]


def test_a_span_that_cannot_be_cleaned_is_a_counted_loss_and_does_not_leave(made: Make) -> None:
    def fails(span: ReadableSpan) -> ReadableSpan:
        raise RuntimeError(span.name)

    bench = made(clean=fails)
    bench.tree("root", 1)
    bench.queue.shutdown(5)
    assert (bench.drops, bench.exporter.batches) == ([("encode_failed", 2)], [])


def test_stopping_exports_everything_in_batches(made: Make) -> None:
    bench = made()
    bench.exporter.gate.set()
    bench.tree("root", 299)
    bench.queue.shutdown(5)
    assert len(bench.exporter.names) == 300
    assert max(bench.exporter.batches) <= export.BATCH
    assert bench.drops == []


def test_stopping_waits_no_longer_than_told_and_counts_what_waits_and_what_was_in_hand(made: Make) -> None:
    bench = made()
    bench.tree("root", 299)
    poll(lambda: bench.exporter.batches, what="the exporter to hang")
    began = time.monotonic()
    bench.queue.shutdown(0.1)
    assert time.monotonic() - began < 5
    assert bench.drops == [("export_failed", 300)]
