"""The real gateway in front of a real Prometheus and a real Jaeger, configured by the files that compose mounts."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import time
from typing import Any

import httpx
import pytest

from observability import catalog
from observability.catalog import Type
from tests.stack.conftest import Stack
from tests.stack.servers import promtool
from tests.stack.traffic import LIMITS, MODELS
from tests.support.poll import poll
from tests.support.processes import held_port, port_of
from tests.support.stack_files import ROOT, Query, Selector, all_queries, parse, rules

ZERO_IS_WELL = ("Telemetry lost", "Waiting", "Limiter failed open", "Journal entries not in", "Ledger rows lost")
"""No telemetry is lost, and nobody waits when the traffic is over; these must be there and 0."""
LATE = "context deadline exceeded"
"""What Prometheus says of a scrape that took longer than the second it has here; a busy machine may be as slow."""
QUERIES = [query for query in all_queries() if not query.where.startswith("rule ")]
ALERT_SELECTORS = sorted({selector for rule in rules() for selector in parse(rule["expr"])[0]}, key=repr)

WITH_EXEMPLARS = [
    f"{metric.name}_{'bucket' if metric.type is Type.HISTOGRAM else 'total'}"
    for metric in catalog.METRICS
    if metric.exemplar
]


def _exemplars(stack: Stack, series: str) -> list[dict[str, Any]]:
    """Every exemplar of a metric, with the labels of its series."""

    def some() -> list[dict[str, Any]]:
        now = time.time()
        found = stack.prometheus.get("query_exemplars", query=series, start=now - 300, end=now)
        return [{"series": row["seriesLabels"], **e["labels"]} for row in found for e in row["exemplars"]]

    return poll(some, what=f"exemplars of {series}")


def test_promtool_accepts_the_configuration(stack: Stack) -> None:
    checked = subprocess.run(
        [promtool(), "check", "config", stack.folder / "prometheus.yml"], capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_promtool_finds_nothing_to_complain_of_in_the_exposition(stack: Stack) -> None:
    page = stack.metrics()
    assert "version=0.0.4" in page.headers["content-type"]
    checked = subprocess.run([promtool(), "check", "metrics"], input=page.text, capture_output=True, text=True)
    assert (checked.returncode, checked.stderr) == (0, "")


def test_the_metrics_page_is_closed_without_the_token(stack: Stack) -> None:
    assert httpx.get(stack.gateway.url + "/metrics").status_code == 403


def test_prometheus_scrapes_the_gateway_with_the_token(stack: Stack) -> None:
    up = stack.prometheus.by("instance", 'up{job="claude-proxy"}', stack.at)
    assert up == {f"127.0.0.1:{gateway.port}": 1 for gateway in (stack.gateway, stack.strict)}
    targets = stack.prometheus.get("targets")["activeTargets"]
    assert {target["lastError"] for target in targets} <= {"", LATE}


def test_prometheus_counts_every_request_under_the_outcome_it_had(stack: Stack) -> None:
    asked = stack.at_gateway("sum by (outcome) (claude_proxy_requests_total{})")
    counted = stack.prometheus.by("outcome", asked, stack.at)
    assert counted == dict(stack.sent)


def test_histogram_and_counter_agree_and_only_the_open_stream_is_in_flight(stack: Stack) -> None:
    ended = stack.at_gateway("sum(claude_proxy_request_duration_seconds_count{})")
    assert stack.prometheus.values(ended, stack.at) == [stack.sent.total()]
    assert stack.prometheus.values("sum(claude_proxy_in_flight_requests)", stack.at) == [1]


@pytest.mark.parametrize("series", WITH_EXEMPLARS)
def test_every_exemplar_opens_a_trace_in_jaeger(stack: Stack, series: str) -> None:
    exemplars = _exemplars(stack, series)
    for trace_id in {exemplar["trace_id"] for exemplar in exemplars}:
        spans = stack.jaeger.spans(trace_id)
        wanted = {e["span_id"] for e in exemplars if e["trace_id"] == trace_id}
        assert wanted <= {span["spanID"] for span in spans}


def test_a_dot_on_the_latency_panel_leads_to_server_chat_and_attempt_spans(stack: Stack) -> None:
    exemplar = next(
        e
        for e in _exemplars(stack, "claude_proxy_requests_total")
        if (e["series"]["outcome"], e["series"]["http_route"]) == ("ok", "/v1/messages")
        and e["series"]["instance"].endswith(f":{stack.gateway.port}")
    )
    spans = {span["operationName"]: span for span in stack.jaeger.spans(exemplar["trace_id"], 3)}
    chat = f"chat {exemplar['series']['gen_ai_request_model']}"
    assert set(spans) == {"POST /v1/messages", chat, "POST"}
    kinds = {name: span["tags"]["span.kind"] for name, span in spans.items()}
    assert kinds == {"POST /v1/messages": "server", chat: "client", "POST": "client"}
    parents = {name: [r["spanID"] for r in span["references"]] for name, span in spans.items()}
    assert parents == {
        "POST /v1/messages": [],
        chat: [spans["POST /v1/messages"]["spanID"]],
        "POST": [spans[chat]["spanID"]],
    }
    assert exemplar["span_id"] == spans["POST /v1/messages"]["spanID"]


def test_jaeger_knows_the_gateway_by_its_service_name(stack: Stack) -> None:
    assert "claude-proxy" in stack.jaeger.services()


@pytest.mark.parametrize("query", [pytest.param(query, id=query.where) for query in QUERIES])
def test_a_query_that_we_ship_has_data(stack: Stack, query: Query) -> None:
    values = stack.prometheus.values(query.plain, stack.at)
    assert [value for value in values if math.isfinite(value)], query.plain
    if not any(title in query.where for title in ZERO_IS_WELL):
        assert any(math.isfinite(value) and value > 0 for value in values), query.plain


def test_every_rule_evaluates_and_a_first_call_without_a_price_is_an_alert(stack: Stack) -> None:
    groups = stack.prometheus.get("rules")["groups"]
    found = {rule["name"]: (rule["health"], rule.get("lastError", "")) for group in groups for rule in group["rules"]}
    assert found == {rule.get("record") or rule["alert"]: ("ok", "") for rule in rules()}
    firing = stack.prometheus.by("alertname", 'ALERTS{alertstate="firing"}', stack.at)
    assert firing == {"UnpricedModels": 1}


def test_refusals_begin_the_wait_for_their_alert(stack: Stack) -> None:
    pending = stack.prometheus.get("query", query='ALERTS{alertstate="pending"}', time=stack.at)["result"]
    assert ("QueueRefusing", "claude-haiku-5-5") in {
        (row["metric"]["alertname"], row["metric"].get("gen_ai_request_model")) for row in pending
    }


@pytest.mark.parametrize("selector", [pytest.param(s, id=str(s)) for s in ALERT_SELECTORS])
def test_the_series_of_every_rule_are_there(stack: Stack, selector: Selector) -> None:
    signs = {"Equal": "=", "NotEqual": "!=", "Re": "=~", "NotRe": "!~"}
    matchers = ", ".join(f'{label}{signs[sign]}"{value}"' for label, sign, value in selector.matchers)
    assert stack.prometheus.values(f"{selector.name}{{{matchers}}}", stack.at)


def test_what_a_client_spent_today_is_what_its_calls_cost(stack: Stack) -> None:
    (budget,) = stack.prometheus.values('claude_proxy_client_budget_usd{client="alice"}', stack.at)
    assert budget == LIMITS["alice"]["budget_usd_per_day"]
    spent = stack.prometheus.values("sum(claude_proxy_client_cost_usd_total)", stack.at)
    assert spent == pytest.approx(stack.prometheus.values("sum(claude_proxy_cost_usd_total)", stack.at))


def test_a_chosen_model_and_route_narrow_the_panels(stack: Stack) -> None:
    expr = 'sum by (gen_ai_request_model) (claude_proxy_requests_total{http_route=~"$route", gen_ai_request_model=~"$model"})'
    chosen = Query("", expr.replace("$route", "/v1/messages").replace("$model", MODELS[1]))
    assert set(stack.prometheus.by("gen_ai_request_model", chosen.plain, stack.at)) == {MODELS[1]}


def test_the_image_s_health_check_tells_a_ready_gateway_from_none(stack: Stack) -> None:
    text = (ROOT / "service/Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    match = re.search(r"^HEALTHCHECK .*CMD (\[.*\])$", text, re.MULTILINE)
    assert match
    _python, *arguments = json.loads(match[1])

    def check(port: int) -> int:
        environ = os.environ | {"CLAUDE_PROXY_BIND": f"0.0.0.0:{port}"}
        return subprocess.run([sys.executable, *arguments], env=environ, capture_output=True).returncode

    assert check(stack.gateway.port) == 0
    with held_port() as held:
        assert check(port_of(held)) != 0
