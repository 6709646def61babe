"""The figures as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tests.bench.measures import BATCH_DELAY_MS, BATCH_PROMPTS, CHUNKS, CONNECTIONS, GAP_MS, STREAMS, Results, Under
from tests.bench.scrape import SERIES, WORKERS
from tests.bench.stats import median, ratio_median
from tests.bench.subjects import DIRECT, FLOOR, GATEWAY, NO_EXPORT, NO_LEDGER, NO_OWN, NOTHING


def report(results: Results, facts: Sequence[str], notes: Sequence[str]) -> str:
    """All tables that there are figures for."""
    parts = [
        "\n".join(f"- {fact}" for fact in facts),
        _throughput(results),
        _sequential(results),
        _streams(results),
        _many(results),
        _promises(results),
        "\n".join(f"- {note}" for note in (*notes, *failures(results))),
    ]
    return "\n\n".join(part for part in parts if part)


def failures(results: Results) -> list[str]:
    """What must be known before any figure is believed."""
    found = [
        f"NOT VALID: {bad} failed answers of `{name}`"
        for measured in (results.throughput, results.sequential)
        for name, rounds in measured.items()
        if (bad := sum(under.figures.bad for under in rounds))
    ]
    streams = [(name, STREAMS, r.figures.complete) for name, rounds in results.streams.items() for r in rounds]
    streams += [(name, many.streams, many.figures.complete) for name, many in results.many.items()]
    found += [f"NOT VALID: {there} of {asked} streams of `{name}`" for name, asked, there in streams if there < asked]
    if bad := sum(batch.bad for batch in results.batch):
        found.append(f"NOT VALID: {bad} failed answers of the batch comparison")
    return found


def table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table: its first column to the left, the others are figures."""
    lines = [list(head), ["---", *("---:" for _ in head[1:])], *rows]
    return f"**{title}**\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.2f}"


def _rates(rounds: Sequence[Under]) -> list[float]:
    return [under.rate for under in rounds]


def _cpu(results: Results, name: str) -> list[float]:
    """CPU microseconds per request, by round: unlike the rate, hardly changed by who else is on the core."""
    return [under.cpu_us for under in results.throughput[name] if under.cpu_us is not None]


def _throughput(results: Results) -> str:
    if not results.throughput:
        return ""
    reference = _rates(results.throughput[GATEWAY])
    floor = median([under.cpu_us or 0 for under in results.throughput[FLOOR]]) if FLOOR in results.throughput else 0
    rows = []
    for name, rounds in results.throughput.items():
        rates, cpu = _rates(rounds), [under.cpu_us for under in rounds if under.cpu_us is not None]
        rows.append(
            (
                name,
                f"{median(rates):,.0f}",
                f"{min(rates):,.0f} to {max(rates):,.0f}",
                f"{ratio_median(rates, reference):.2f}",
                f"{median(cpu):.0f}" if cpu else "",
                f"{median(cpu) / floor:.1f}" if cpu and floor else "",
                _ms(median([under.figures.p50 for under in rounds])),
            )
        )
    head = ("subject", "requests/s", "lowest to highest", "of gateway", "CPU µs/request", "in floors", "p50 ms")
    return table(f"Non-streaming, {CONNECTIONS} connections", head, rows)


def _sequential(results: Results) -> str:
    rows = []
    for name, rounds in results.sequential.items():
        p50, p99 = [under.figures.p50 for under in rounds], [under.figures.p99 for under in rounds]
        rows.append((name, _ms(median(p50)), _ms(median(p99)), _ms(_added(results, name))))
    if not rows:
        return ""
    return table("One request at a time", ("subject", "p50 ms", "p99 ms", "added p50 ms"), rows)


def _added(results: Results, name: str) -> float:
    """Median over rounds of the difference of medians to the upstream itself."""
    pairs = zip(results.sequential[name], results.sequential[DIRECT], strict=True)
    return median(under.figures.p50 - direct.figures.p50 for under, direct in pairs)


def _streams(results: Results) -> str:
    rows = []
    for name, rounds in results.streams.items():
        figures = [r.figures for r in rounds]
        cpu = [r.cpu_us for r in rounds if r.cpu_us is not None]
        rows.append(
            (
                name,
                f"{min(f.complete for f in figures)} of {STREAMS}",
                f"{median(f.chunks_per_second for f in figures):,.0f}",
                f"{median(f.duration_p50 for f in figures):.2f}",
                f"{median(f.duration_p99 for f in figures):.2f}",
                _ms(median(f.delay_p50 for f in figures)),
                _ms(median(f.delay_p99 for f in figures)),
                f"{median(cpu):.0f}" if cpu else "",
            )
        )
    if not rows:
        return ""
    title = (
        f"{STREAMS} concurrent streams, {CHUNKS} chunks {GAP_MS} ms apart (ideal {(CHUNKS - 1) * GAP_MS / 1e3:.2f} s)"
    )
    head = ("subject", "complete", "chunks/s", "p50 s", "p99 s", "chunk delay p50 ms", "p99 ms", "CPU µs/chunk")
    return table(title, head, rows)


def _many(results: Results) -> str:
    rows = [
        (
            name,
            f"{many.figures.complete} of {many.streams}",
            f"{many.idle_kb / 1024:.0f}",
            f"{many.peak_kb / 1024:.0f}",
            f"{many.kb_per_stream:.1f}",
            f"{many.figures.chunks_per_second:,.0f}",
            _ms(many.figures.delay_p50),
            _ms(many.figures.delay_p99),
        )
        for name, many in results.many.items()
    ]
    if not rows:
        return ""
    head = ("subject", "complete", "idle MB", "peak MB", "KB/stream", "chunks/s", "chunk delay p50 ms", "p99 ms")
    return table("Many concurrent streams", head, rows)


def _promises(results: Results) -> str:
    """What the design asks for, beside what was measured."""
    rows: list[tuple[str, str, str, str]] = []
    rates = {name: _rates(rounds) for name, rounds in results.throughput.items()}
    if GATEWAY in rates:
        rows.append(("requests/s, everything on", f"{median(rates[GATEWAY]):,.0f}", "1,200", "2,000"))
    if results.sequential:
        rows.append(("added p50, one at a time, ms", _ms(_added(results, GATEWAY)), "1.2", "0.6"))
        rows.append(
            ("requests/s of a whole core (1 / CPU per request)", f"{1e6 / median(_cpu(results, GATEWAY)):,.0f}", "", "")
        )
    if GATEWAY in rates and FLOOR in rates:  # the design's machine did 5,700 of the floor's
        share = ratio_median(rates[GATEWAY], rates[FLOOR])
        rows.append(("the same per request/s of the floor", f"{share:.2f}", "0.21", "0.35"))
    for what, off, on, must in (
        ("our own signals' share of the CPU per request (ledger off)", NO_OWN, NO_LEDGER, "15 %"),
        ("export's share", NO_EXPORT, GATEWAY, ""),
        ("the ledger's share", NO_LEDGER, GATEWAY, ""),
        ("the share of all of these, SERVER and attempt spans and stock metrics", NOTHING, GATEWAY, ""),
    ):
        if off in rates and on in rates:
            share = 1 - ratio_median(_cpu(results, off), _cpu(results, on))
            rows.append((what, f"{share * 100:.0f} %", must, ""))
    if results.spans_kept is not None:
        rows.append(("requests whose SERVER span reached the sink", f"{results.spans_kept * 100:.1f} %", "", ""))
    if many := results.many.get(GATEWAY):
        rows.append(("KB per open stream", f"{many.kb_per_stream:.1f}", "80", "45"))
        rows.append(("idle MB of a worker", f"{many.idle_kb / 1024:.0f}", "80", ""))
    if results.ready_seconds:
        rows.append(("start to ready, s", f"{median(results.ready_seconds):.2f}", "1", ""))
    if scraped := results.scrape:
        size = f"{WORKERS} x {SERIES:,} series, {median([s.kilobytes for s in scraped]):,.0f} KB"
        rows.append((f"CPU ms of one scrape of {size}", f"{median([s.cpu_ms for s in scraped]):.0f}", "150", ""))
        rows.append(
            ("longest turn on any loop meanwhile, CPU ms", f"{max(s.longest_ms for s in scraped):.1f}", "5", "")
        )
    if results.batch:
        batch, singles = median(b.batch for b in results.batch), median(b.singles for b in results.batch)
        what = f"{BATCH_PROMPTS} prompts of {BATCH_DELAY_MS} ms: batch / one by one, s"
        rows.append((what, f"{batch:.2f} / {singles:.2f} ({singles / batch:.1f}x)", "", ""))
    return table("Against the design", ("", "measured", "must", "reach"), rows) if rows else ""
