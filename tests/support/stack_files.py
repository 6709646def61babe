"""The stack's files as data: the compose file, the Prometheus and Grafana configuration, every PromQL expression."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import promql_parser as promql
import yaml

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "observability/prometheus/prometheus.yml"
RULES = ROOT / "observability/prometheus/rules.yml"
RUNBOOK = ROOT / "observability/prometheus/runbook.md"
JAEGER = ROOT / "observability/jaeger/config.yaml"
DATASOURCES = ROOT / "grafana/provisioning/datasources/datasources.yaml"
PROVIDERS = ROOT / "grafana/provisioning/dashboards/dashboards.yaml"
DASHBOARDS = ROOT / "grafana/dashboards"

VARIABLES = {"$__rate_interval": "1m", "$__range": "1h", "$route": ".*", "$model": ".*"}
"""What stands for Grafana's variables when a query is run without Grafana."""


@dataclass(frozen=True)
class Query:
    """One expression of a dashboard or data source, as written; `where` names it, `exemplar` says that dots are shown."""

    where: str
    expr: str
    exemplar: bool = False

    @property
    def plain(self) -> str:
        """The expression with Grafana's variables replaced."""
        return substitute(self.expr)


def substitute(expr: str, **variables: str) -> str:
    """`expr` with Grafana's variables replaced; keyword arguments are further or other values, without the `$`."""
    for name, value in (VARIABLES | {f"${k}": v for k, v in variables.items()}).items():
        expr = expr.replace(name, value)
    return expr


@functools.cache
def load(path: Path) -> Any:
    """A YAML or JSON file."""
    text = path.read_text(encoding="utf-8")
    return json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)


def compose() -> dict[str, Any]:
    """The compose file."""
    loaded = load(ROOT / "docker-compose.yml")
    assert isinstance(loaded, dict)
    return loaded


def service(name: str) -> dict[str, Any]:
    """One service of it."""
    found = compose()["services"][name]
    assert isinstance(found, dict)
    return found


class Missing(Exception):
    """Compose would stop here: a `${NAME:?message}` whose variable is empty; the message is the argument."""


def interpolate(text: str, variables: Mapping[str, str]) -> str:
    """`text` with `${NAME}`, `:-`, `:+` and `:?` resolved, the outermost first, as Compose does. Raises `Missing`."""

    def resolve(name: str, kind: str, rest: str) -> str:
        value = variables.get(name, "")
        if kind == ":+":
            return interpolate(rest, variables) if value else ""
        if value or not kind:
            return value
        if kind == ":?":
            raise Missing(rest)
        return interpolate(rest, variables)

    out, at = "", 0
    while (start := text.find("${", at)) >= 0:
        depth, end = 1, start + 2
        while depth:
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            end += 1
        name, kind, rest = re.fullmatch(r"([A-Z_]+)(:[-+?])?(.*)", text[start + 2 : end - 1], re.DOTALL).groups("")  # type: ignore[union-attr]
        out += text[at:start] + resolve(name, kind, rest)
        at = end
    return out + text[at:]


def environment(name: str, variables: Mapping[str, str]) -> dict[str, str]:
    """What a service's process gets in its environment. Raises `Missing`."""
    return {key: interpolate(value, variables) for key, value in service(name)["environment"].items()}


def dashboards() -> list[tuple[str, dict[str, Any]]]:
    """File name and content of every dashboard."""
    return [(path.name, load(path)) for path in sorted(DASHBOARDS.glob("*.json"))]


def panels(dashboard: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every panel with queries, those in collapsed rows included."""
    for panel in dashboard["panels"]:
        if panel["type"] != "row":
            yield panel
        yield from panel.get("panels", ())


def dashboard_queries() -> list[Query]:
    """Every panel's, annotation's and variable's expression of every dashboard."""
    found = []
    for file, dashboard in dashboards():
        for panel in panels(dashboard):
            found += [
                Query(f"{file}: {panel['title']}: {target['legendFormat']}", target["expr"], "exemplar" in target)
                for target in panel["targets"]
            ]
        for note in dashboard["annotations"]["list"]:
            found.append(Query(f"{file}: annotation {note['name']}", note["expr"]))
        for variable in dashboard["templating"]["list"]:
            metric, label = label_values(variable)
            found.append(Query(f"{file}: variable {variable['name']}", f"group by ({label}) ({metric})"))
    return found


def label_values(variable: dict[str, Any]) -> tuple[str, str]:
    """Metric and label of a `label_values(metric, label)` variable."""
    text = variable["query"]["query"]
    assert text.startswith("label_values(")
    metric, _, label = text.removeprefix("label_values(").removesuffix(")").partition(", ")
    return metric, label


def datasource_queries() -> list[Query]:
    """The expressions that a trace links to."""
    return [
        Query(f"data source {source['name']}: {query['name']}", query["query"].replace("$$__tags", ""))
        for source in load(DATASOURCES)["datasources"]
        for query in source["jsonData"].get("tracesToMetrics", {}).get("queries", ())
    ]


def rules() -> list[dict[str, Any]]:
    """Every recording and alert rule."""
    return [rule for group in load(RULES)["groups"] for rule in group["rules"]]


def rule_queries() -> list[Query]:
    """The rules' expressions."""
    return [Query(f"rule {rule.get('record') or rule['alert']}", rule["expr"]) for rule in rules()]


def all_queries() -> list[Query]:
    """Every PromQL expression that the project ships."""
    return dashboard_queries() + datasource_queries() + rule_queries()


@dataclass(frozen=True)
class Selector:
    """One series selector: the metric's name and its matchers as (label, operator, value)."""

    name: str
    matchers: tuple[tuple[str, str, str], ...]


def parse(expr: str) -> tuple[list[Selector], set[str]]:
    """The selectors of an expression, and the labels that it groups or joins by. Raises `ValueError` on bad syntax."""
    selectors: list[Selector] = []
    labels: set[str] = set()

    def visit(node: promql.Expr) -> bool:
        if isinstance(node, promql.VectorSelector):
            matchers = tuple((m.name, str(m.op).rpartition(".")[2], m.value) for m in node.matchers.matchers)
            selectors.append(Selector(node.name or "", matchers))
        elif isinstance(node, promql.AggregateExpr) and node.modifier is not None:
            labels.update(node.modifier.labels)
        elif isinstance(node, promql.BinaryExpr) and node.modifier is not None and node.modifier.matching is not None:
            labels.update(node.modifier.matching.labels)
        return True

    promql.walk(promql.parse(expr), visit)
    return selectors, labels
