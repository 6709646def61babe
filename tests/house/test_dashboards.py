"""Dashboards and data sources: every expression speaks of what exists, every panel explains itself."""

from __future__ import annotations

import re
from typing import Any

import promql_parser as promql
import pytest

from observability import catalog
from observability.catalog import Fault, Metric, Outcome, Type
from tests.support.stack_files import (
    DATASOURCES,
    PROMETHEUS,
    Query,
    Selector,
    all_queries,
    dashboard_queries,
    dashboards,
    label_values,
    load,
    panels,
    parse,
    rules,
)

TARGET_LABELS = {"job", "instance", "worker"}
"""What the scrape and the exposition add to every series."""
QUERIES = [pytest.param(query, id=query.where) for query in all_queries()]
PANELS = [
    pytest.param(panel, id=f"{file}: {panel['title']}") for file, board in dashboards() for panel in panels(board)
]
SOURCES = {(source["uid"], source["type"]) for source in load(DATASOURCES)["datasources"]}


def _series() -> dict[str, tuple[Metric, set[str]]]:
    """Every sample name of the catalogue, with its labels."""
    found = {}
    for metric in (*catalog.METRICS, catalog.WORKER_UP):
        labels = {*metric.labels, *TARGET_LABELS}
        match metric.type:
            case Type.COUNTER:
                found[f"{metric.name}_total"] = (metric, labels)
            case Type.GAUGE:
                found[metric.name] = (metric, labels)
            case Type.HISTOGRAM:
                found[f"{metric.name}_bucket"] = (metric, labels | {"le"})
                found |= {f"{metric.name}_{part}": (metric, labels) for part in ("sum", "count")}
    return found


SERIES = _series()


RECORDED = {rule["record"]: parse(rule["expr"])[1] for rule in rules() if "record" in rule}
"""Labels of the series that recording rules make."""
PROMETHEUS_OWN = {"up": {"job", "instance"}, "ALERTS": {"alertname", "alertstate"}}


def _labels_of(name: str) -> set[str]:
    if name in PROMETHEUS_OWN:
        return PROMETHEUS_OWN[name]
    if name in RECORDED:
        return RECORDED[name] or set().union(*(RECORDED[s.name] for s in _recorded_in(name)))
    if name.startswith(catalog.STOCK_PREFIXES) and not name.startswith("flask_"):
        return TARGET_LABELS
    assert name in SERIES, f"{name} is not in the catalogue"
    return SERIES[name][1]


def _recorded_in(name: str) -> list[Selector]:
    (expr,) = (rule["expr"] for rule in rules() if rule.get("record") == name)
    return [selector for selector in parse(expr)[0] if selector.name in RECORDED]


def _rated(expr: str) -> tuple[set[str], set[str]]:
    """Names inside a range selector (but for what functions of gauges take), and names outside."""
    inside: set[str] = set()
    outside: set[str] = set()

    def visit(node: promql.Expr) -> bool:
        if isinstance(node, promql.Call) and node.func.name in ("deriv", "min_over_time"):
            return False
        if isinstance(node, promql.MatrixSelector):
            inside.add(node.vector_selector.name or "")
            return True
        if isinstance(node, promql.VectorSelector):
            outside.add(node.name or "")
        return True

    promql.walk(promql.parse(expr), visit)
    return inside, outside - inside


@pytest.mark.parametrize("query", QUERIES)
def test_a_query_names_only_metrics_and_labels_that_exist(query: Query) -> None:
    selectors, grouped = parse(query.plain)
    known: set[str] = set()
    for selector in selectors:
        labels = _labels_of(selector.name)
        known |= labels
        assert {label for label, _op, _value in selector.matchers} <= labels
    assert grouped <= known


@pytest.mark.parametrize("query", QUERIES)
def test_counters_are_read_as_rates_and_gauges_never_are(query: Query) -> None:
    inside, outside = _rated(query.plain)
    cumulative = {name for name in SERIES if SERIES[name][0].type is not Type.GAUGE} | {"process_cpu_seconds_total"}
    assert inside <= cumulative
    # Whether a counter is there at all is asked without a rate: UnpricedModels' first event.
    if "variable" not in query.where and "UnpricedModels" not in query.where:
        assert not outside & cumulative


@pytest.mark.parametrize("panel", PANELS)
def test_a_window_is_the_one_that_grafana_derives_from_the_scrape_interval_or_all_that_is_shown(
    panel: dict[str, Any],
) -> None:
    allowed = {"$__rate_interval"} if panel["type"] == "timeseries" else {"$__rate_interval", "$__range"}
    assert {w for t in panel["targets"] for w in re.findall(r"\[([^\]]+)\]", t["expr"])} <= allowed


def test_the_outcomes_behind_each_fault_are_those_of_the_catalogue() -> None:
    faults = {fault.value: [o.value for o in Outcome if catalog.OUTCOMES[o][0] is fault] for fault in Fault}
    del faults[Fault.NOBODY]
    seen: dict[str, list[list[str]]] = {}
    for query in dashboard_queries():
        for selector in parse(query.plain)[0]:
            for label, operator, value in selector.matchers:
                if label == "outcome":
                    assert operator == "Re"
                    assert set(value.split("|")) <= {outcome.value for outcome in Outcome}
                    seen.setdefault(query.where.rpartition(": ")[2], []).append(value.split("|"))
    seen = {fault: written for fault, written in seen.items() if fault in faults}
    assert set(seen) == set(faults)
    for fault, written in seen.items():
        assert all(outcomes == faults[fault] for outcomes in written), fault


def test_every_metric_with_exemplars_has_a_panel_that_shows_them_and_no_other_claims_to() -> None:
    shown = {SERIES[s.name][0].name for q in dashboard_queries() if q.exemplar for s in parse(q.plain)[0]}
    assert shown == {metric.name for metric in catalog.METRICS if metric.exemplar}


@pytest.mark.parametrize("panel", PANELS)
def test_a_panel_says_what_it_shows_what_it_means_and_in_which_unit(panel: dict[str, Any]) -> None:
    assert panel["title"]
    assert len(panel["description"]) > 15
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["targets"]
    assert {panel["datasource"]["uid"], *(t["datasource"]["uid"] for t in panel["targets"])} == {"prometheus"}


@pytest.mark.parametrize("panel", PANELS)
def test_a_legend_names_only_labels_that_the_query_keeps(panel: dict[str, Any]) -> None:
    for target in panel["targets"]:
        _selectors, grouped = parse(Query("", target["expr"]).plain)
        assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= grouped


@pytest.mark.parametrize(("file", "board"), dashboards())
def test_panels_have_ids_and_titles_of_their_own_and_do_not_overlap(file: str, board: dict[str, Any]) -> None:
    everything = board["panels"]
    assert len({p["id"] for p in everything}) == len(everything)
    titles = [p["title"] for p in panels(board)]
    assert len(set(titles)) == len(titles)
    taken: set[tuple[int, int]] = set()
    for p in everything:
        grid = p["gridPos"]
        cells = {
            (x, y) for x in range(grid["x"], grid["x"] + grid["w"]) for y in range(grid["y"], grid["y"] + grid["h"])
        }
        assert not cells & taken, p["title"]
        assert max(x for x, _y in cells) < 24
        taken |= cells
    assert board["uid"]
    assert file.endswith(".json")


@pytest.mark.parametrize(("file", "board"), dashboards())
def test_a_variable_reads_a_label_of_a_metric_that_has_it_and_all_means_also_absent(
    file: str, board: dict[str, Any]
) -> None:
    for variable in board["templating"]["list"]:
        metric, label = label_values(variable)
        assert label in SERIES[metric][1], file
        # A refused request has no model: "All" must not leave it out, as a list of all known values would.
        assert variable["allValue"] == ".*"
    used = {
        name for q in dashboard_queries() if q.where.startswith(file) for name in re.findall(r"\$(\w+)", q.expr)
    } - {"__rate_interval", "__range"}
    assert used == {variable["name"] for variable in board["templating"]["list"]}


def test_data_sources_and_links_agree_on_their_uids() -> None:
    sources = {source["uid"]: source for source in load(DATASOURCES)["datasources"]}
    assert set(sources) == {"prometheus", "jaeger"}
    exemplars = sources["prometheus"]["jsonData"]["exemplarTraceIdDestinations"]
    assert [(e["name"], e["datasourceUid"]) for e in exemplars] == [("trace_id", "jaeger")]
    links = sources["jaeger"]["jsonData"]["tracesToMetrics"]
    assert links["datasourceUid"] == "prometheus"
    assert [tag["value"] for tag in links["tags"]] == [catalog.ROUTE]
    assert [tag["key"].replace(".", "_") for tag in links["tags"]] == [catalog.ROUTE]


@pytest.mark.parametrize(("file", "board"), dashboards())
def test_a_dashboard_names_only_data_sources_that_are_provisioned(file: str, board: dict[str, Any]) -> None:
    named: list[dict[str, str]] = []

    def collect(value: Any) -> None:
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            if key == "datasource":
                named.append(inner)
            elif isinstance(inner, dict | list):
                collect(inner)

    collect(board)
    assert named, file
    assert {(source["uid"], source["type"]) for source in named} <= SOURCES


def test_grafana_knows_the_scrape_interval() -> None:
    (prometheus,) = (s for s in load(DATASOURCES)["datasources"] if s["uid"] == "prometheus")
    assert prometheus["jsonData"]["timeInterval"] == load(PROMETHEUS)["global"]["scrape_interval"]
