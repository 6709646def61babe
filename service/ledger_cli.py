"""`claude-proxy ledger`: spend and tokens from the ledger, as a table, CSV or JSON. Reads only; a gateway may be running."""

from __future__ import annotations

import argparse
import csv
import datetime
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from service.errors import SettingsError

BY = ("day", "model", "client", "route", "outcome", "provider", "certainty")
SUMS = (
    "calls", "input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens", "reasoning_tokens",
    "exact_usd", "estimated_usd", "unpriced",
)  # fmt: skip
"""Columns after those of `--by`. Tokens and amounts are empty where they were never known; `unpriced` counts calls."""
CALL = (
    "started", "trace_id", "client", "route", "model", "outcome", "status", "input_tokens", "output_tokens",
    "certainty", "cost_usd", "total_s",
)  # fmt: skip
"""Columns of a call in the table; CSV and JSON have all."""
SHORT = {
    "input_tokens": "input", "output_tokens": "output", "cache_read_tokens": "cache read",
    "cache_write_tokens": "cache write", "reasoning_tokens": "reasoning", "exact_usd": "exact USD",
    "estimated_usd": "estimated USD", "cost_usd": "USD", "total_s": "seconds", "trace_id": "trace",
}  # fmt: skip
"""Headings of the table that are not the column's name."""
Line = dict[str, Any]
EPILOG = """\
examples:
  claude-proxy ledger                                 what each day cost
  claude-proxy ledger --since 7d --by client,model    who spent what on which model in the last seven days
  claude-proxy ledger --since 2026-11-01 --until 2026-11-30 --by client --format csv
  claude-proxy ledger --since 1d --calls              today's newest calls

Input tokens include those read from and written to the prompt cache. exact: the provider said all the tokens;
estimated: a part had to be worked out; unpriced: calls whose price is not known, in no amount. Calls are in here
about a second after they end.
"""
_NANO = 1_000_000_000
_MOST = 2**63 - 1
"""What a database can count."""


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """The command with its options."""
    parser = commands.add_parser(
        "ledger",
        help="say what was spent, and on what",
        description="Spend and tokens by day, model, client, route or outcome.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--since", type=_day, metavar="DATE|7d", help="first day (UTC), or how many days up to today (default: all)")
    add("--until", type=_day, metavar="DATE", help="last day (UTC), included")
    add("--by", type=_columns, default=("day",), metavar="LIST", help=f"what to tell apart, from {','.join(BY)} (day)")
    add("--format", choices=("table", "csv", "json"), default="table", help="how to print it (%(default)s)")
    add("--calls", action="store_true", help="list calls, newest first, instead of sums")
    add("--limit", type=_count, default=100, metavar="N", help="with --calls: how many (%(default)s)")
    add("--path", type=Path, metavar="DIR", help="the ledger's directory (default: that of the gateway's settings)")
    return parser


def run(arguments: argparse.Namespace, environ: Callable[[], Mapping[str, str]]) -> int:
    """Print what is asked; the settings tell where the ledger is when `--path` does not. Raises `SettingsError`."""
    since, until = arguments.since, arguments.until
    if since and until and since > until:
        raise SettingsError(f"--since {since} is after --until {until}: there is no day in between.")
    lines, total = _read(arguments, environ)
    columns: Sequence[str] = (*arguments.by, *SUMS)
    if arguments.calls:
        columns = CALL if arguments.format == "table" else tuple(lines[0]) if lines else CALL
    if not lines:
        sys.stderr.write("claude-proxy: no calls in the ledger for these days\n")
    try:
        _WRITERS[arguments.format](columns, lines, total)
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return 0


def _read(arguments: argparse.Namespace, environ: Callable[[], Mapping[str, str]]) -> tuple[list[Line], Line | None]:
    from service.account.ledger import DatabaseError, Ledger, directory  # 0.4 s that no other command should wait

    where, since, until = arguments.path, arguments.since, arguments.until
    if where is None:
        where = directory(environ().get("CLAUDE_PROXY_LEDGER", ""), environ())
    if where is None:
        raise SettingsError("CLAUDE_PROXY_LEDGER=off: no ledger is kept. --path DIR reads one that was.")
    ledger = Ledger(where, create=False)
    try:
        if arguments.calls:
            return [_call(call) for call in ledger.calls(since, until, arguments.limit)], None
        sums = [_sum(line) for line in ledger.totals(arguments.by, since, until)]
        return sums, next((_sum(line) for line in ledger.totals((), since, until)), None)
    except DatabaseError as error:
        raise SettingsError(f"the ledger at {ledger.path} cannot be read: {error.orig}.") from None
    finally:
        ledger.close()


def _sum(line: Line) -> Line:
    exact, estimated, unpriced = (line.pop(name) for name in ("exact", "estimated", "unpriced"))
    return line | {"exact_usd": _usd(exact), "estimated_usd": _usd(estimated), "unpriced": unpriced}


def _call(call: Line) -> Line:
    parts = {name: call.pop(name) for name in list(call) if name.startswith("cost_")}
    known = [part for part in parts.values() if part is not None]
    times = {name: _time(call[name]) for name in ("started", "ended")}
    return call | times | {"cost_usd": _usd(sum(known)) if known else None}


def _usd(nano: int | None) -> Decimal | None:
    return None if nano is None else Decimal(nano).scaleb(-9)


def _time(moment: float | None) -> str | None:
    if moment is None:
        return None
    return datetime.datetime.fromtimestamp(moment, datetime.UTC).isoformat(timespec="milliseconds")[:-6] + "Z"


def _write_json(columns: Sequence[str], lines: list[Line], total: Line | None) -> None:
    document = {"calls": lines} if "started" in columns else {"rows": lines, "total": total}
    json.dump(document, sys.stdout, indent=1, default=float)
    sys.stdout.write("\n")


def _write_csv(columns: Sequence[str], lines: list[Line], _: Line | None) -> None:
    writer = csv.DictWriter(sys.stdout, columns, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(lines)


def _write_table(columns: Sequence[str], lines: list[Line], total: Line | None) -> None:
    shown = [[SHORT.get(name, name) for name in columns]]
    shown += [[_shown(name, line.get(name)) for name in columns] for line in lines]
    if total is not None:
        words = ["total", *[""] * len(columns)]
        shown.append([_shown(n, total[n]) if n in total else words[at] for at, n in enumerate(columns)])
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    left = [name in BY or name in ("started", "trace_id") for name in columns]
    for number, cells in enumerate(shown):
        if total is not None and number == len(shown) - 1:
            sys.stdout.write("  ".join("-" * width for width in widths) + "\n")
        padded = [c.ljust(w) if to_left else c.rjust(w) for c, w, to_left in zip(cells, widths, left, strict=True)]
        sys.stdout.write("  ".join(padded).rstrip() + "\n")


_WRITERS = {"table": _write_table, "csv": _write_csv, "json": _write_json}


def _shown(name: str, value: Any) -> str:
    """A cell; what is unknown is a dash. Names were made up by clients: nothing in them may move the cursor."""
    if value is None or value == "":
        return "-"
    if isinstance(value, Decimal):
        return f"{value:,.6f}" if name == "cost_usd" else f"{value:,.4f}"
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, int) and name != "status":
        return f"{value:,}"
    return "".join(char if char.isprintable() else "?" for char in str(value))


def _day(text: str) -> str:
    today = datetime.datetime.now(datetime.UTC).date()
    try:
        if text.endswith("d"):
            return (today - datetime.timedelta(days=int(text[:-1]) - 1)).isoformat()
        return datetime.date.fromisoformat(text).isoformat()
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither a day like {today} nor a number of days like 7d"
        ) from None


def _columns(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    unknown = [name for name in names if name not in BY]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is not one of {', '.join(BY)}")
    return tuple(dict.fromkeys(names))


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return min(int(text), _MOST)
