"""The command: `python -m tests.bench --help`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.bench import helper, ledger, machine, pacing, shared, storm
from tests.bench.measures import Bench, Plan, Results
from tests.bench.report import failures, report
from tests.bench.subjects import EVERYTHING, VARIANTS, Stage

MEASURES: dict[str, Callable[[Bench], None]] = {
    "throughput": Bench.throughput,
    "sequential": Bench.sequential,
    "streams": Bench.streams,
    "many": Bench.many,
    "batch": Bench.batch,
    "export": Bench.export,
    "scrape": Bench.scrape,
    "start": Bench.start,
}
APART: dict[str, Callable[[machine.Cores, bool], list[str]]] = {
    "pacing": lambda cores, quick: pacing.measure(cores, quick=quick),
    "storm": lambda cores, quick: storm.measure(cores, quick=quick),
    "shared": lambda _cores, quick: shared.measure(quick=quick),
    "ledger": lambda _cores, quick: ledger.measure(quick=quick),
}
"""Measures with processes of their own; they give parts of the report. Not in a quick run unless asked for."""


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description="Measure the gateway beside a bare asyncio pass-through and the upstream itself, in one interleaved "
        "run. Loopback only. Progress goes to stderr, one Markdown report to stdout.",
    )
    parser.add_argument("--quick", action="store_true", help="under a minute: fewer rounds, fewer subjects")
    parser.add_argument(
        "--only", action="append", choices=sorted(MEASURES | APART), metavar="NAME",
        help="only this measure; may be repeated: " + ", ".join(MEASURES | APART),
    )  # fmt: skip
    parser.add_argument(
        "--seconds", type=_seconds, metavar="N", help="seconds per subject and round (default: 2, quick: 0.7)"
    )
    parser.add_argument("--streams", type=_count, default=1000, metavar="N", help="streams of `many` (default: 1000)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every round's figures to FILE")
    return parser.parse_args(argv)


def _seconds(text: str) -> float:
    value = float(text)
    if not 0.1 <= value <= 60:
        raise argparse.ArgumentTypeError("between 0.1 and 60")
    return value


def _count(text: str) -> int:
    value = int(text)
    if not 1 <= value <= 20_000:
        raise argparse.ArgumentTypeError("between 1 and 20000")
    return value


def _plan(arguments: argparse.Namespace) -> Plan:
    now = time.monotonic()
    if arguments.quick:
        return Plan(True, arguments.seconds or 0.7, 2, 1, 1, arguments.streams, now + 30)
    return Plan(False, arguments.seconds or 2, 5, 3, 2, arguments.streams, now + 270)


def _stop(_number: int, _frame: object) -> None:
    raise SystemExit("stopped")


def _staged(arguments: argparse.Namespace, layout: machine.Layout, wanted: list[str]) -> tuple[Results, list[str]]:
    """The measures that share one stage: results and notes."""
    variants = tuple(v for v in VARIANTS if v.quick or not arguments.quick) if "throughput" in wanted else (EVERYTHING,)
    with Stage(layout) as stage:
        stage.start_subjects(variants, full_headers=not arguments.quick)
        bench = Bench(stage, _plan(arguments))
        for name in MEASURES:
            if name in wanted:
                MEASURES[name](bench)
        return bench.results, stage.notes


def main() -> None:
    """Run the benchmark."""
    arguments = parse()
    if not sys.platform.startswith("linux"):
        raise SystemExit("the benchmark reads /proc and pins to cores: Linux only")
    signal.signal(signal.SIGTERM, _stop)
    helper.raise_descriptor_limit()
    layout = machine.layout()
    if layout.load:
        os.sched_setaffinity(0, layout.load)
    wanted = arguments.only or [*MEASURES, *APART]
    if arguments.quick and not arguments.only:
        wanted = [name for name in MEASURES if name != "export"]
    facts, busy, began = machine.facts(), machine.Busy(), time.monotonic()
    results, notes = Results(), list[str]()
    if any(name in MEASURES for name in wanted):
        results, notes = _staged(arguments, layout, wanted)
        facts.append(layout.text)
    parts = []
    if apart := [name for name in APART if name in wanted]:
        everywhere = layout.service | layout.load
        if everywhere:
            os.sched_setaffinity(0, everywhere)
        facts.append(f"nothing pinned in: {', '.join(apart)}")
        for name in apart:
            parts += APART[name](everywhere, arguments.quick)
    facts.append(f"other processes took {busy.others_share() * 100:.0f} % of the machine's CPU time meanwhile")
    facts += [f"took {time.monotonic() - began:.0f} s"]
    print("\n\n".join((report(results, facts, notes), *parts)))
    if arguments.json is not None:
        figures = {"facts": facts, "notes": notes, **dataclasses.asdict(results)}
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")
    if failures(results):
        raise SystemExit("some answers failed: see the end of the report")


if __name__ == "__main__":
    main()
