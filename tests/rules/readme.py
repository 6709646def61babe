"""The README's tables, rendered from the code. `python -m tests.rules.readme` rewrites them in place; a test holds them.

A table stands between `<!-- table:NAME -->` and `<!-- /table -->`; NAME is a key of `TABLES`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from observability import catalog
from observability.catalog import Type
from service import settings
from service.app import create_gateway
from service.upstream.anthropic import Anthropic
from service.web.ops import RULES as OPERATORS

_PREFIX = Anthropic.prefix
README = Path(__file__).parents[2] / "README.md"
_REGION = re.compile(r"(<!-- table:([a-z]+) -->\n).*?(<!-- /table -->)", re.DOTALL)


def settings_table() -> str:
    """Variable, default, meaning: `settings.TABLE`."""
    rows = (
        (f"`{row.name}`" + (" or `…_FILE`" if row.secret else ""), f"`{row.default}`" if row.default else "", row.help)
        for row in settings.TABLE
    )
    return _table(("setting", "default", "meaning"), rows)


def routes_table() -> str:
    """Rule and methods: the application's own map. A rule served under the prefix too is one row."""
    methods = _url_map()
    rows = []
    for rule, names in methods.items():
        if rule.startswith(_PREFIX + "/"):
            continue
        twin = f"`{_PREFIX}{rule}`" if methods.get(_PREFIX + rule) == names else ""
        rows.append((f"`{rule}`", ", ".join(names), twin))
    return _table(("route", "methods", "also as"), rows)


def metrics_table() -> str:
    """Exposed name, type, labels, meaning: `catalog.METRICS`, and the one family that nobody adds to."""
    rows = (
        (
            f"`{row.name}{'_total' if row.type is Type.COUNTER else ''}`",
            row.type.value,
            ", ".join(f"`{label}`" for label in row.labels),
            row.help,
        )
        for row in (*catalog.METRICS, catalog.WORKER_UP)
    )
    return _table(("metric", "type", "labels", "meaning"), rows)


def outcomes_table() -> str:
    """Outcome, whose fault, meaning: `catalog.OUTCOMES`."""
    rows = ((f"`{outcome.value}`", fault.value, what) for outcome, (fault, what) in catalog.OUTCOMES.items())
    return _table(("outcome", "whose fault", "meaning"), rows)


TABLES: dict[str, Callable[[], str]] = {
    "settings": settings_table,
    "routes": routes_table,
    "metrics": metrics_table,
    "outcomes": outcomes_table,
}


def names_in(text: str) -> list[str]:
    """The tables that `text` has a place for, in order."""
    return [match[2] for match in _REGION.finditer(text)]


def rewritten(text: str) -> str:
    """`text` with every table as the code has it now. Raises `KeyError` for a table that nobody renders."""
    return _REGION.sub(lambda match: f"{match[1]}\n{TABLES[match[2]]()}\n{match[3]}", text)


def _url_map() -> dict[str, list[str]]:
    """Rules in the order they were added, operators' last; HEAD and OPTIONS go without saying."""
    loaded = settings.load({"ANTHROPIC_API_KEY": "sk-ant-unused"})
    rules = create_gateway(loaded).app.url_map.iter_rules()
    methods: dict[str, list[str]] = {}
    for rule in sorted(rules, key=lambda rule: rule.rule in OPERATORS):
        named = (rule.methods or set()) - {"HEAD", "OPTIONS"}
        methods[rule.rule] = sorted(named | set(methods.get(rule.rule, ())))
    return methods


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


if __name__ == "__main__":
    README.write_text(rewritten(README.read_text(encoding="utf-8")), encoding="utf-8")
