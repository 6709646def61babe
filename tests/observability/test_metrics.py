"""Instruments: exact text, every label value from a closed set."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics

from observability import catalog
from observability.metrics import Metrics

MODEL = "claude-opus-5-5"
IDS = {"trace_id": "0" * 32, "span_id": "1" * 16}


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(CollectorRegistry(), routes=frozenset({"/generate"}), models=frozenset({MODEL}))


def _lines(metrics: Metrics) -> list[str]:
    text = generate_latest(metrics.registry).decode()
    return [x for x in text.splitlines() if not x.startswith(("#", catalog.LABEL_OVERFLOW.name))]


def test_a_family_nothing_happened_to_has_no_series(metrics: Metrics) -> None:
    assert _lines(metrics) == []


def test_a_histogram_is_this_exact_text(metrics: Metrics) -> None:
    for value in (0.0005, 0.003, 9.0):
        metrics.observe(catalog.OVERHEAD, value, ("/generate", "false"))
    where = 'http_route="/generate",streaming="false"'
    edges = catalog.OVERHEAD_SECONDS
    counts = [1, 1, 1, *[2] * (len(edges) - 3)]
    assert _lines(metrics) == [
        *(f'claude_proxy_overhead_seconds_bucket{{{where},le="{e}"}} {n}.0'.replace(
            f'{{{where},le="{e}"}}', f'{{{where.split(",")[0]},le="{e}",{where.split(",")[1]}}}'
        ) for e, n in zip(edges, counts, strict=True)),
        'claude_proxy_overhead_seconds_bucket{http_route="/generate",le="+Inf",streaming="false"} 3.0',
        f"claude_proxy_overhead_seconds_count{{{where}}} 3.0",
        f"claude_proxy_overhead_seconds_sum{{{where}}} 9.0035",
    ]  # fmt: skip


def test_counters_add_and_gauges_go_both_ways_and_can_be_set(metrics: Metrics) -> None:
    metrics.add(catalog.REJECTED, ("/generate", "not_found_error"))
    metrics.add(catalog.REJECTED, ("/generate", "not_found_error"), 2)
    metrics.add(catalog.IN_FLIGHT, ("/generate",), 3)
    metrics.add(catalog.IN_FLIGHT, ("/generate",), -1)
    metrics.set(catalog.TELEMETRY_LAST_SUCCESS, 5.5, ("logs",))
    assert sorted(_lines(metrics)) == [
        'claude_proxy_in_flight_requests{http_route="/generate"} 2.0',
        'claude_proxy_rejected_total{http_route="/generate",reason="not_found_error"} 3.0',
        'claude_proxy_telemetry_last_success_timestamp_seconds{signal="logs"} 5.5',
    ]


@pytest.mark.parametrize("hostile", ["claude-99", "x" * 5000, 'a"b\nc', "\u2603"])
def test_values_outside_the_known_sets_fold_into_one_series(metrics: Metrics, hostile: str) -> None:
    for value in (hostile, hostile + "2"):
        metrics.add(catalog.REQUESTS, (value, value, value, value))
        metrics.observe(catalog.INFERENCE_DURATION, 1.0, (value, value, value, value))
    assert [x for x in _lines(metrics) if "_bucket" not in x and "_sum" not in x] == [
        'gen_ai_client_inference_duration_seconds_count{error_type="_OTHER",gen_ai_operation_name="other",'
        'gen_ai_provider_name="other",gen_ai_request_model="other"} 2.0',
        'claude_proxy_requests_total{gen_ai_provider_name="other",gen_ai_request_model="other",'
        'http_route="other",outcome="other"} 2.0',
    ]


def test_a_thousand_models_are_one_series(metrics: Metrics) -> None:
    for number in range(1000):
        metrics.add(catalog.REQUESTS, ("/generate", "anthropic", f"model-{number}", "ok"))
    assert len(_lines(metrics)) == 1


def test_not_known_stays_empty_and_is_not_other(metrics: Metrics) -> None:
    metrics.add(catalog.REQUESTS, ("/generate", "", "", "ok"))
    assert _lines(metrics) == [
        'claude_proxy_requests_total{gen_ai_provider_name="",gen_ai_request_model="",http_route="/generate",outcome="ok"} 1.0'
    ]


def test_an_exemplar_stands_on_the_bucket_its_value_fell_into_and_on_the_counter(metrics: Metrics) -> None:
    metrics.observe(catalog.OVERHEAD, 0.003, ("/generate", "false"), IDS)
    metrics.add(catalog.REQUESTS, ("/generate", "anthropic", MODEL, "ok"), 1, IDS)
    text: str = generate_openmetrics(metrics.registry).decode()  # type: ignore[no-untyped-call]
    marked = [line.partition(" # ") for line in text.splitlines() if " # {" in line]
    assert [(head.partition("{")[0], "le=" not in head or 'le="0.004"' in head) for head, _, _ in marked] == [
        ("claude_proxy_requests_total", True),
        ("claude_proxy_overhead_seconds_bucket", True),
    ]
    for _, _, exemplar in marked:
        assert exemplar.startswith(
            f'{{trace_id="{IDS["trace_id"]}",span_id="{IDS["span_id"]}"}} '
        ) or exemplar.startswith(f'{{span_id="{IDS["span_id"]}",trace_id="{IDS["trace_id"]}"}} ')


def test_merging_buckets_is_the_same_as_observing_one_by_one(metrics: Metrics) -> None:
    one = Metrics(CollectorRegistry(), routes=frozenset(), models=frozenset({MODEL}))
    who = ("chat", "anthropic", MODEL)
    for value in (0.01, 0.02, 2.0, 1000.0):
        one.observe(catalog.CHUNK_TIME, value, who)
    counts = [0] * (len(catalog.LLM_SECONDS) + 1)
    counts[0], counts[1], counts[8], counts[-1] = 1, 1, 1, 1
    metrics.merge(catalog.CHUNK_TIME, counts, 1002.03, who)
    assert _lines(metrics) == _lines(one)


def test_a_wrong_number_of_labels_or_buckets_is_a_mistake(metrics: Metrics) -> None:
    with pytest.raises(ValueError, match="zip"):
        metrics.add(catalog.REQUESTS, ("/generate",))
    with pytest.raises(ValueError, match="zip"):
        metrics.merge(catalog.OVERHEAD, [1], 1.0, ("/generate", "true"))


def test_threads_lose_no_count(metrics: Metrics) -> None:
    def work(_: int) -> None:
        for _ in range(500):
            metrics.add(catalog.IN_FLIGHT, ("/generate",))
            metrics.observe(catalog.OVERHEAD, 0.25, ("/generate", "true"))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert 'claude_proxy_in_flight_requests{http_route="/generate"} 2000.0' in _lines(metrics)
    assert 'claude_proxy_overhead_seconds_sum{http_route="/generate",streaming="true"} 500.0' in _lines(metrics)


def test_every_sample_with_a_folded_value_is_counted_by_label_and_our_own_word_for_such_values_is_not(
    metrics: Metrics,
) -> None:
    for model in ("claude-99", "claude-99", "other", MODEL, ""):
        metrics.add(catalog.REQUESTS, ("/generate", "anthropic", model, "ok"))
    metrics.observe(catalog.INFERENCE_DURATION, 1.0, ("chat", "anthropic", "claude-98", "new_error"))
    text = generate_latest(metrics.registry).decode()
    assert [line for line in text.splitlines() if line.startswith("claude_proxy_label_overflow_total")] == [
        'claude_proxy_label_overflow_total{label="gen_ai_request_model"} 3.0',
        'claude_proxy_label_overflow_total{label="error_type"} 1.0',
    ]


def test_headroom_is_shown_with_when_it_was_seen_until_its_time_is_over() -> None:
    now = [1000.0]
    metrics = Metrics(CollectorRegistry(), routes=frozenset(), models=frozenset({MODEL}), clock=lambda: now[0])
    requests, tokens = ("anthropic", MODEL, "requests"), ("anthropic", MODEL, "input_tokens")
    metrics.see(catalog.QUOTA_REMAINING, 7.0, requests, until=1060.0, seen=1000.0)
    now[0] = 1030.0
    metrics.see(catalog.QUOTA_REMAINING, 5.0, tokens, until=1090.0, seen=1030.0)
    assert list(metrics.newest()) == [
        (catalog.QUOTA_REMAINING, requests, 7.0, 1000.0),
        (catalog.QUOTA_REMAINING, tokens, 5.0, 1030.0),
    ]
    now[0] = 1060.0
    assert list(metrics.newest()) == [(catalog.QUOTA_REMAINING, tokens, 5.0, 1030.0)]
    metrics.see(catalog.QUOTA_REMAINING, 9.0, requests, until=1120.0, seen=1060.0)
    metrics.see(catalog.QUOTA_REMAINING, 90.0, requests, until=1130.0, seen=1050.0)  # an old stream's, told late
    assert [value for _, _, value, _ in metrics.newest()] == [9.0, 5.0]
    now[0] = 1120.0
    assert list(metrics.newest()) == []


def test_counting_while_counting_in_one_thread_stops_nothing(metrics: Metrics) -> None:
    class Finalised:
        def __del__(self) -> None:
            metrics.add(catalog.TELEMETRY_DROPPED, ("logs", "queue_full"))

    def labels() -> Iterator[str]:
        garbage = Finalised()
        del garbage
        yield from ("spans", "queue_full")

    done = threading.Event()

    def count() -> None:
        with metrics._lock:  # as inside any call
            tuple(labels())
        done.set()

    threading.Thread(target=count, daemon=True).start()
    assert done.wait(30)
