"""What a run of everything emitted, on all three signals, is what the catalogue declares: no more, no less."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from observability import catalog, metrics
from observability.catalog import Attr, Http, LogEvent, Metric
from service import __version__
from service.app import ROUTES
from service.settings import simulated
from service.upstream.providers import PROVIDERS, models_of
from service.web import ops
from tests.support.mix import CLIENT_KEYS, LIMITS, POLICY, send_everything, send_into_the_void, send_policy
from tests.support.otlp import OtlpSink, SpanSeen
from tests.support.poll import poll
from tests.support.processes import Gateway, Simulator
from tests.support.scrape import OPEN_METRICS, all_up

DECLARED = {metric.name: metric for metric in (*catalog.METRICS, catalog.WORKER_UP)}
CLOSED = {label: set(values) for label, values in metrics._CLOSED.items()} | {
    catalog.ROUTE: {*ROUTES, catalog.OTHER},
    **{label: {*models_of(PROVIDERS), catalog.OTHER} for label in (catalog.MODEL, "from", "to")},
    "client": {entry.partition(":")[0] for entry in CLIENT_KEYS.split()},
    "worker": {"0", "1"},
    "version": {__version__},
}
METHODS = ("GET", "POST", "DELETE", "HEAD", "OPTIONS")


@dataclass(frozen=True)
class Run:
    """Everything that came out of one run."""

    families: dict[str, Family]
    spans: list[SpanSeen]
    lines: list[str]

    def samples(self, metric: Metric) -> Iterator[dict[str, str]]:
        """The labels of each of a family's samples."""
        yield from (sample.labels for sample in self.families[metric.name].samples)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    limits = tmp_path_factory.mktemp("limits") / "limits.json"
    limits.write_text(LIMITS)
    shared = {
        "CLAUDE_PROXY_WORKERS": "2",
        "CLAUDE_PROXY_IDLE_TIMEOUT": "0.5",
        "CLAUDE_PROXY_CLIENT_KEYS": CLIENT_KEYS,
        "OTEL_BSP_SCHEDULE_DELAY": "50",
    }
    ledger = {
        "CLAUDE_PROXY_LEDGER": str(tmp_path_factory.mktemp("ledger")),
        "CLAUDE_PROXY_CLIENT_LIMITS_FILE": str(limits),
        "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": "SPAN_ONLY",
    }
    strictly = shared | POLICY | ledger
    with (
        OtlpSink() as sink,
        Simulator("--fast", "--batch-seconds", "0.1") as simulator,
        Gateway(simulator.url, OTEL_EXPORTER_OTLP_ENDPOINT=sink.url, **(simulated(simulator.url) | shared)) as gateway,
        Gateway(simulator.url, OTEL_EXPORTER_OTLP_ENDPOINT=sink.url, **(simulated(simulator.url) | strictly)) as strict,
    ):
        all_up(gateway, 2)
        all_up(strict, 2)
        by_policy = send_policy(strict)
        sent = send_everything(gateway)
        simulator.stop()
        send_into_the_void(gateway)
        sent += 1
        lines = _lines(gateway, sent) + _lines(strict, by_policy)
        sink.wait(lambda span: span.kind == "SERVER", sent + by_policy)
        for each, signal in ((gateway, "spans"), (strict, "spans"), (strict, "ledger")):
            poll(lambda each=each, signal=signal: f'timestamp_seconds{{signal="{signal}"' in _text(each), what=signal)  # type: ignore[misc]
        of_batches = (catalog.BATCH_SAVED.name, catalog.BATCH_OLDEST.name, catalog.BATCH_NEXT_EXPIRY.name)
        poll(lambda: all(name in _text(strict) for name in of_batches), what="the batches to be on the books")
        families: dict[str, Family] = {}
        for each in (gateway, strict):
            for family in text_string_to_metric_families(_text(each)):  # type: ignore[no-untyped-call]
                if family.name in families:
                    families[family.name].samples.extend(family.samples)
                else:
                    families[family.name] = family
        assert (gateway.stop(), strict.stop()) == (0, 0)
        return Run(families, sink.spans, lines)


def _lines(gateway: Gateway, sent: int) -> list[str]:
    gateway.settled()
    assert len(gateway.wait_requests(sent)) == sent
    return gateway.lines


def _text(gateway: Gateway) -> str:
    return gateway.metrics(OPEN_METRICS)


def test_every_family_is_declared_and_every_declared_family_was_emitted(run: Run) -> None:
    stock = {name for name in run.families if name.startswith(catalog.STOCK_PREFIXES)}
    assert run.families.keys() - stock == DECLARED.keys()


def test_every_family_has_its_type_and_its_sentence(run: Run) -> None:
    told = {name: (family.type, family.documentation) for name, family in run.families.items() if name in DECLARED}
    assert told == {name: (metric.type.value, metric.help) for name, metric in DECLARED.items()}


def test_every_family_has_exactly_its_labels(run: Run) -> None:
    seen = {name: {key for labels in run.samples(metric) for key in labels} for name, metric in DECLARED.items()}
    of_all = {"worker"}
    assert seen == {
        name: {*metric.labels} | (set() if metric.per_host else of_all) | ({"le"} if metric.buckets else set())
        for name, metric in DECLARED.items()
    }


def test_every_histogram_has_its_buckets(run: Run) -> None:
    for metric in DECLARED.values():
        edges = {float(labels["le"]) for labels in run.samples(metric) if "le" in labels}
        assert edges == {*metric.buckets, *([float("inf")] if metric.buckets else [])}, metric.name


def test_no_label_has_a_value_outside_its_set(run: Run) -> None:
    folded = {catalog.OTHER, "_OTHER"}
    outside = {
        (metric.name, key, value)
        for metric in DECLARED.values()
        for labels in run.samples(metric)
        for key, value in labels.items()
        if key in CLOSED and value not in CLOSED[key] | folded
    }
    assert outside == set()
    unchecked = {key for m in DECLARED.values() for labels in run.samples(m) for key in labels} - CLOSED.keys()
    assert unchecked == {"le", "metric", "python"}
    assert {labels["metric"] for labels in run.samples(catalog.SERIES)} <= run.families.keys()
    exceptional = {labels[catalog.MODEL] for labels in run.samples(catalog.REQUESTS) if catalog.MODEL in labels}
    assert catalog.OTHER in exceptional, "the mix has a model that nobody knows"


def test_the_stock_families_labels_are_closed_too(run: Run) -> None:
    values: dict[str, set[str]] = {}
    for name, family in run.families.items():
        if name.startswith("flask_http"):
            for sample in family.samples:
                for key, value in sample.labels.items():
                    values.setdefault(key, set()).add(value)
    assert values.keys() == {"method", "status", "url_rule", "worker", "le"}
    assert values["method"] <= {*METHODS, "_OTHER"}
    assert values["url_rule"] <= {*ROUTES, *ops.RULES, "None"}
    assert all(re.fullmatch("[2-5][0-9][0-9]", status) for status in values["status"])


def test_exemplars_stand_on_every_family_that_says_so_and_on_no_other(run: Run) -> None:
    carriers = {name for name, family in run.families.items() if any(s.exemplar for s in family.samples)}
    assert carriers == {metric.name for metric in DECLARED.values() if metric.exemplar}


def test_every_exemplar_leads_to_a_span_that_was_exported(run: Run) -> None:
    exported = {(span.trace_id, span.span_id) for span in run.spans}
    pointed = {
        (sample.exemplar.labels["trace_id"], sample.exemplar.labels["span_id"])
        for family in run.families.values()
        for sample in family.samples
        if sample.exemplar
    }
    assert pointed <= exported


def test_every_line_is_json_with_a_declared_event(run: Run) -> None:
    lines: list[dict[str, Any]] = [json.loads(line) for line in run.lines]
    events = {line["event"] for line in lines}
    assert events <= {event.value for event in LogEvent}
    assert events >= {LogEvent.REQUEST.value, LogEvent.CALL.value, LogEvent.LOG.value}
    assert all({"level", "timestamp"} <= line.keys() for line in lines)
    assert [line for line in lines if line["event"] == "log" and line["level"] not in ("info", "debug")] == []


def test_every_span_attribute_is_declared_and_every_declared_one_of_ours_was_emitted(run: Run) -> None:
    ours, http = _declared(Attr), _declared(Http)
    seen = {key for span in run.spans for key in span.attributes}
    assert seen - ours - http == set()
    assert ours <= seen


def test_every_event_of_a_span_is_declared(run: Run) -> None:
    events = {(name, key) for span in run.spans for name, _, given in span.events for key in (given or {"": ""})}
    assert events == {
        (catalog.FIRST_CHUNK_EVENT, ""),
        (catalog.EXCEPTION_EVENT, Http.EXCEPTION_TYPE),
        (catalog.EXCEPTION_EVENT, Http.EXCEPTION_ESCAPED),
    }


def _declared(names: type) -> set[str]:
    return {value for name, value in vars(names).items() if name.isupper()}


def test_span_names_are_those_of_the_design(run: Run) -> None:
    allowed: dict[str, Callable[[str], bool]] = {
        "SERVER": {*(f"{m} {rule}" for m in METHODS for rule in ROUTES), *METHODS, "HTTP"}.__contains__,
        "INTERNAL": {catalog.QUEUE_SPAN, catalog.BACKOFF_SPAN}.__contains__,
        "CLIENT": lambda name: name in METHODS or re.fullmatch(r"(chat|generate_content) \S+", name) is not None,
    }
    wrong = [s for s in run.spans if s.kind not in allowed or not allowed[s.kind](s.name)]
    assert wrong == []
    assert {span.scope for span in run.spans} == {"claude-proxy"}
    assert {"POST /v1/messages", "POST /generate", "POST /batch_generate", "POST /anthropic/v1/messages"} <= {
        span.name for span in run.spans
    }


def test_the_mix_had_every_outcome_that_a_request_can_have_while_the_gateway_stays_up(run: Run) -> None:
    seen = {labels["outcome"] for labels in run.samples(catalog.REQUESTS)}
    assert seen == {o.value for o in catalog.Outcome} - {
        "queue_rejected",
        "draining",
        "internal_error",
        "interrupted",
    }
    assert {labels["limit"] for labels in run.samples(catalog.UPSTREAM_429)} == {*catalog.LIMITS_429} - {"unknown"}
    assert {labels["outcome"] for labels in run.samples(catalog.STREAM_OUTCOMES)} == {
        "completed", "cut_off", "stalled", "client_abort", "upstream_error",
    }  # fmt: skip
