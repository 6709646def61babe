"""Rules and runbook: every alert can be acted on, every recorded series is used, every alert is tried by promtool."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.support.stack_files import PROMETHEUS, ROOT, RULES, RUNBOOK, all_queries, dashboards, load, panels, rules

ALERTS = [pytest.param(rule, id=rule["alert"]) for rule in rules() if "alert" in rule]
NAMES = [rule["alert"] for rule in rules() if "alert" in rule]
ENTRIES = dict(
    re.findall(r"^## (\w+)\n\n(.*?)(?=\n## |\Z)", RUNBOOK.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
)
TITLES = {panel["title"] for _file, board in dashboards() for panel in panels(board)}


def _cases() -> list[dict[str, Any]]:
    files = [load(path) for path in sorted((ROOT / "tests/stack").glob("*_test.yml"))]
    assert all(((ROOT / "tests/stack") / file["rule_files"][0]).resolve() == RULES for file in files)
    return [case for file in files for test in file["tests"] for case in test.get("alert_rule_test", ())]


def test_prometheus_reads_the_rules() -> None:
    assert load(PROMETHEUS)["rule_files"] == [RULES.name]


@pytest.mark.parametrize("rule", ALERTS)
def test_an_alert_says_what_is_wrong_how_urgent_it_is_and_where_to_read_on(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("page", "ticket")
    assert len(rule["annotations"]["summary"]) > 20
    assert rule["annotations"]["runbook"] == f"{RUNBOOK.name}#{rule['alert'].lower()}"


def test_the_runbook_has_an_entry_for_each_alert_and_for_no_other() -> None:
    assert list(ENTRIES) == NAMES
    assert all(len(text.split()) > 25 for text in ENTRIES.values())


def test_panels_that_the_runbook_names_exist() -> None:
    text = RUNBOOK.read_text(encoding="utf-8")
    named = {
        name
        for group in re.findall(r'\*(?:overview|money|limits)\*: ((?:"[^"]+"(?:, |; )?)+)', text)
        for name in re.findall(r'"([^"]+)"', group)
    }
    assert len(named) > 8
    assert named <= TITLES


def test_links_inside_the_runbook_lead_to_an_entry() -> None:
    links = set(re.findall(r"\]\(#(\w+)\)", RUNBOOK.read_text(encoding="utf-8")))
    assert links <= {name.lower() for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_promtool_has_a_case_in_which_the_alert_fires_and_one_in_which_it_must_not(name: str) -> None:
    fires = [bool(case.get("exp_alerts")) for case in _cases() if case["alertname"] == name]
    assert {True, False} == set(fires)


def test_a_recorded_series_is_used() -> None:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    used = {name for name in recorded if any(name in q.expr for q in all_queries() if not q.where.endswith(name))}
    assert used == recorded
