"""How a comparison of accounts is shown: what differs as a table for people, everything as CSV and JSON."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from decimal import Decimal
from typing import Any

from service.account.reconcile import KINDS, Line, Tokens, total
from service.account.reconcile_calls import CallDifference
from service.account.reconcile_causes import causes

COUNTS = ("calls", "estimated", "unpriced", "interrupted", "client_abort", "unfinished", "removed")
"""Our calls of a day and model; but for the first, reasons why our figures may be short."""
_MOST_CALLS = 50
_SIDES = ("ours", "theirs", "difference")
_HEAD = ("day", "model", "what", *_SIDES)


def agree(lines: Sequence[Line], differing: Sequence[CallDifference]) -> bool:
    """Whether there is no difference at all."""
    return not differing and all(line.agrees for line in lines)


def write_json(lines: Sequence[Line], differing: Sequence[CallDifference], tolerance: float) -> None:
    """One document on stdout; unknown is null."""
    ours, theirs, cost, paid = total(lines)
    document = {
        "agrees": agree(lines, differing),
        "tolerance": tolerance,
        "rows": [_row(line) | {"causes": [asdict(cause) for cause in causes(line)]} for line in lines],
        "calls": [asdict(each) for each in differing],
        "total": _tokens(ours, theirs) | _costs(cost, paid),
    }
    json.dump(document, sys.stdout, indent=1, default=float)
    sys.stdout.write("\n")


def write_csv(lines: Sequence[Line], differing: Sequence[CallDifference], tolerance: float) -> None:
    """A line for each day and model on stdout; unknown is empty, `causes` has their words, `likely` a sentence."""
    names = [f"{what}_{side}" for what in (*KINDS, "cost_usd") for side in _SIDES]
    columns = ("day", "model", *COUNTS, *names, "agrees", "causes", "likely")
    writer = csv.DictWriter(sys.stdout, columns, lineterminator="\n")
    writer.writeheader()
    for line in lines:
        found = causes(line)
        row = {key: value for key, value in _row(line).items() if not isinstance(value, dict)}
        cells = {f"{what}_{side}": n for what, sides in _figures(line).items() for side, n in sides.items()}
        said = {"causes": " ".join(cause.code for cause in found), "likely": found[0].sentence if found else ""}
        writer.writerow(row | cells | said)
    if differing:
        sys.stderr.write(f"claude-proxy: {len(differing)} calls differ; --format table or json lists them\n")


def write_table(lines: Sequence[Line], differing: Sequence[CallDifference], tolerance: float) -> None:
    """What differs, with its causes; then the sums of everything."""
    ours, theirs, cost, paid = total(lines)
    sums = {what: sides for what, sides in _figures_of(ours, theirs, cost, paid).items() if any(sides.values())}
    blocks = [(line, _rows(line)) for line in lines if not line.agrees]
    last = [
        ("total" if n == 0 else "", "", what, *map(_cell, sides.values()))
        for n, (what, sides) in enumerate(sums.items())
    ]
    every = [_HEAD, *(row for _, rows in blocks for row in rows), *last]
    widths = [max(len(row[column]) for row in every) for column in range(len(_HEAD))]
    if every[1:]:
        _write(_HEAD, widths)
    for line, rows in blocks:
        for row in rows:
            _write(row, widths)
        for cause in causes(line):
            sys.stdout.write(f"    {cause.code}: {cause.sentence}\n")
    if last:
        sys.stdout.write("  ".join("-" * width for width in widths) + "\n")
        for row in last:
            _write(row, widths)
    _write_calls(differing)
    sys.stdout.write(
        f"{len(lines) - len(blocks)} of {len(lines)} days and models agree within {tolerance * 100:.4g} % of the larger side.\n"
        if lines
        else "Neither side has any call on these days.\n"
    )


def _write_calls(differing: Sequence[CallDifference]) -> None:
    if differing:
        sys.stdout.write("\ncalls that differ:\n")
    for each in differing[:_MOST_CALLS]:
        theirs = each.theirs.request_id if each.theirs else "-"
        ours = each.ours.call_id if each.ours else "-"
        sys.stdout.write(_plain(f"  ours {ours}  theirs {theirs}\n    {each.code}: {each.sentence}") + "\n")
    if len(differing) > _MOST_CALLS:
        sys.stdout.write(f"  and {len(differing) - _MOST_CALLS} more; --format json has all\n")


def _rows(line: Line) -> list[tuple[str, ...]]:
    """The table's rows of a line: every figure that is not nothing on both sides, and our calls."""
    rows = [
        (what, *map(_cell, sides.values()))
        for what, sides in _figures(line).items()
        if sides["ours"] or sides["theirs"]
    ]
    counts = [f"{getattr(line.ours, name):,} {name}" for name in COUNTS[1:] if getattr(line.ours, name)]
    rows.append(("calls", f"{line.ours.calls:,}", "", ", ".join(counts)))
    names = [(line.day, _plain(line.model))] + [("", "")] * (len(rows) - 1)
    return [(*name, *row) for name, row in zip(names, rows, strict=True)]


def _write(row: Sequence[str], widths: Sequence[int]) -> None:
    left = 3  # day, model and what; figures stand to the right
    cells = [cell.ljust(w) if n < left else cell.rjust(w) for n, (cell, w) in enumerate(zip(row, widths, strict=True))]
    sys.stdout.write("  ".join(cells).rstrip() + "\n")


def _row(line: Line) -> dict[str, Any]:
    counts = {name: getattr(line.ours, name) for name in COUNTS}
    figures = _tokens(line.ours.tokens, line.theirs.tokens) | _costs(line.ours.cost, line.theirs.cost)
    return {"day": line.day, "model": line.model, **counts, **figures, "agrees": line.agrees}


def _figures(line: Line) -> dict[str, dict[str, Any]]:
    return _figures_of(line.ours.tokens, line.theirs.tokens, line.ours.cost, line.theirs.cost)


def _figures_of(ours: Tokens, theirs: Tokens, cost: int, paid: int | None) -> dict[str, dict[str, Any]]:
    return _tokens(ours, theirs) | _costs(cost, paid)


def _tokens(ours: Tokens, theirs: Tokens) -> dict[str, dict[str, Any]]:
    return {kind: _sides(ours.get(kind, 0), theirs.get(kind, 0)) for kind in KINDS}


def _costs(cost: int, paid: int | None) -> dict[str, dict[str, Any]]:
    return {"cost_usd": _sides(_usd(cost), None if paid is None else _usd(paid))}


def _sides(ours: Any, theirs: Any) -> dict[str, Any]:
    return dict(zip(_SIDES, (ours, theirs, None if theirs is None else ours - theirs), strict=True))


def _usd(nano: int) -> Decimal:
    return Decimal(nano).scaleb(-9)


def _cell(amount: Any) -> str:
    if amount is None:
        return "-"
    return f"{amount:,.6f}" if isinstance(amount, Decimal) else f"{amount:,}"


def _plain(text: str) -> str:
    """Names were made up by clients: nothing in them may move the cursor."""
    return "".join(char if char.isprintable() or char == "\n" else "?" for char in text)
