"""The catalogue agrees with itself, with Prometheus' rules for names, and with what is emitted."""

from __future__ import annotations

import re

import pytest

from observability import catalog, metrics
from observability.catalog import Attr, Metric, Outcome, Type

EVERY = pytest.mark.parametrize("metric", catalog.METRICS, ids=lambda metric: metric.name)
UNIT = re.compile(r".*_(seconds|tokens|bytes|rows|usd|requests|info|up|depth|series|timestamp_seconds)")


def test_names_are_unique() -> None:
    names = [metric.name for metric in catalog.METRICS]
    assert len(names) == len(set(names))


def test_no_row_is_forgotten() -> None:
    rows = {value.name for value in vars(catalog).values() if isinstance(value, Metric)}
    assert rows - {m.name for m in catalog.METRICS} <= {catalog.WORKER_UP.name}


@EVERY
def test_a_name_keeps_prometheus_rules(metric: Metric) -> None:
    assert re.fullmatch(r"(claude_proxy|gen_ai)_[a-z0-9]+(_[a-z0-9]+)*", metric.name)
    assert not metric.name.endswith(("_total", "_bucket", "_count", "_sum", "_created", "_info_total"))
    assert all(re.fullmatch(r"[a-z][a-z0-9_]*", label) for label in metric.labels)
    assert not {"le", "quantile", "worker", "job", "instance"} & set(metric.labels)
    assert len(metric.labels) == len(set(metric.labels))


@EVERY
def test_a_histogram_has_ascending_buckets_in_its_unit_and_nothing_else_has_any(metric: Metric) -> None:
    if metric.type is Type.HISTOGRAM:
        assert list(metric.buckets) == sorted(set(metric.buckets))
        assert metric.buckets
        assert metric.buckets[0] > 0
        assert UNIT.fullmatch(metric.name)
    else:
        assert metric.buckets == ()


@EVERY
def test_a_metric_says_what_it_is_in_a_sentence(metric: Metric) -> None:
    assert len(metric.help) > 10
    assert "\n" not in metric.help
    assert not metric.help[0].islower()
    assert metric.help.endswith(".")


@EVERY
def test_every_label_that_a_client_could_choose_is_closed(metric: Metric) -> None:
    ours_alone = {"version", "python", "metric"}
    closed = metrics._CLOSED.keys() | {catalog.ROUTE, catalog.MODEL, "from", "to", "client"}
    assert set(metric.labels) <= closed | ours_alone


@EVERY
def test_only_counters_and_histograms_carry_exemplars(metric: Metric) -> None:
    assert not (metric.exemplar and metric.type is Type.GAUGE)


def test_every_outcome_has_a_fault_and_a_meaning_in_the_order_of_the_list() -> None:
    assert list(catalog.OUTCOMES) == list(Outcome)
    assert all(meaning for _, meaning in catalog.OUTCOMES.values())


def test_span_attributes_are_dotted_unique_and_known_to_metrics_by_the_same_words() -> None:
    keys = [value for name, value in vars(Attr).items() if name.isupper()]
    assert len(keys) == len(set(keys))
    assert all(re.fullmatch(r"[a-z_]+(\.[a-z_]+)+", key) for key in keys)
    assert tuple(key.replace(".", "_") for key in (Attr.OPERATION, Attr.PROVIDER, Attr.REQUEST_MODEL)) == (
        catalog.OPERATION,
        catalog.PROVIDER,
        catalog.MODEL,
    )
