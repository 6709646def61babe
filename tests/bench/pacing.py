"""What pacing buys: load offered to a gateway whose upstream keeps the API's token buckets, with pacing and without.

Four loads at a time, each on a class of models of its own. Buckets are drained to a few seconds' worth first; what was
left in them counts as allowed. Every run has a new gateway and a new key, so the gateway begins without a picture.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice

from service.policy.pacing import Pool
from service.policy.size import measured
from tests.bench.limited import MODELS, Limited, total
from tests.bench.machine import Cores
from tests.bench.offers import Client, Kind, Offer, Told, bodies, offer, times
from tests.bench.processes import Gateway
from tests.bench.report import table
from tests.bench.stats import median, percentile
from tests.bench.subjects import say

FACTORS = (0.5, 1.0, 2.0, 5.0)
KEEP_SECONDS = 3.0
"""How much of a limit, in seconds of its refill, is left in the buckets at the beginning."""
BURST = 20
QUEUE_SECONDS = 5
"""`CLAUDE_PROXY_QUEUE_TIMEOUT` here: with the default of 30 a run would end before its queues are full."""
CLIENTS = ("bench-client-one", "bench-client-two")
SHARE_OF_FIRST = 0.7
"""Of what is offered: at 2x the second still offers more than half of the limit."""
_HUGE = 100_000_000
_CODE = 'if not found:\n\traise KeyError(f"no \\"{name}\\"")\n'
_ESCAPED = "限流與排隊。"


@dataclass(frozen=True, slots=True)
class Dimension:
    """One limit: its name in the provider's headers, how much a minute, the requests offered against it."""

    name: str
    limit: int
    kinds: Sequence[Kind]

    @property
    def limits(self) -> tuple[int, int, int]:
        """For the simulator: the others are out of the way."""
        names = ("requests", "input-tokens", "output-tokens")
        requests, incoming, outgoing = (self.limit if name == self.name else _HUGE for name in names)
        return requests, incoming, outgoing

    def cost(self, kind: Kind) -> float:
        """Of one request."""
        return {"requests": 1, "input-tokens": kind.tokens, "output-tokens": kind.max_tokens}[self.name]

    @property
    def rate(self) -> float:
        """Requests a second that take all of it, on average."""
        return self.limit / 60 / sum(kind.share * self.cost(kind) for kind in self.kinds)

    @property
    def billed(self) -> str:
        """The same in the simulator's truth."""
        return self.name.replace("-", "_")


REQUESTS = Dimension("requests", 360, (Kind(1, 50, 32),))
INPUT = Dimension(
    "input-tokens", 300_000,
    (Kind(0.6, 400, 32), Kind(0.2, 1_500, 32, _CODE), Kind(0.15, 800, 32, _ESCAPED), Kind(0.05, 2_500, 32)),
)  # fmt: skip
OUTPUT = Dimension("output-tokens", 45_000, (Kind(0.7, 50, 50), Kind(0.25, 50, 200), Kind(0.05, 50, 800)))
"""About six requests a second each: a slow machine shall be measured by its limits, not by its cores."""


@dataclass(frozen=True, slots=True)
class Subject:
    """Gateways and the clients before them. Paced: clients do not retry; else they do, and the gateway does not."""

    name: str
    paced: bool
    workers: int = 1
    retries: int = 0


PACED, PACED_TWO = Subject("paced", True), Subject("paced, 2 workers", True, 2)
BACKOFF, LONG_BACKOFF = Subject("backoff, 2 retries", False, 1, 2), Subject("backoff, 6 retries", False, 1, 6)


@dataclass(frozen=True, slots=True)
class Run:
    """One run of all four loads. `burst`: requests that come at the same moment."""

    dimension: Dimension
    burst: int
    subject: Subject


def runs(*, quick: bool) -> list[Run]:
    """What is measured."""
    if quick:
        chosen = [(REQUESTS, subject) for subject in (PACED, PACED_TWO, BACKOFF)] + [(INPUT, PACED_TWO)]
        return [Run(dimension, BURST, subject) for dimension, subject in chosen]
    return [
        *(Run(REQUESTS, burst, s) for burst in (1, BURST) for s in (PACED, PACED_TWO, BACKOFF, LONG_BACKOFF)),
        *(Run(INPUT, burst, s) for burst in (1, BURST) for s in (PACED, PACED_TWO)),
        Run(INPUT, BURST, BACKOFF),
        Run(OUTPUT, BURST, PACED_TWO),
    ]


@dataclass(slots=True)
class Cell:
    """One load of one run. Shares of what the limit allows (or of the offer, if that is less), of attempts, of offers."""

    run: Run
    factor: float
    offered: float
    allowed: float
    served: float
    attempts: int
    rejected: int
    refused: float
    failed: float
    waits: list[float]
    fairness: float | None

    @property
    def throughput(self) -> float:
        """Share of what could have been served."""
        return self.served / min(self.offered, self.allowed)

    @property
    def rejections(self) -> float:
        """Upstream 429s as a share of attempts."""
        return self.rejected / max(1, self.attempts)


def measure(cores: Cores, *, quick: bool) -> list[str]:
    """All runs; gives the report's parts."""
    seconds = 10.0 if quick else 20.0
    cells: list[Cell] = []
    errors: list[float] = []
    for number, run in enumerate(chosen := runs(quick=quick), 1):
        shape = "steady" if run.burst == 1 else f"bursts of {run.burst}"
        say(f"pacing: run {number} of {len(chosen)}: {run.dimension.name}, {shape}, {run.subject.name}")
        measured_cells, tolds = _one(run, number, cores, seconds)
        cells += measured_cells
        if run.dimension is INPUT and run.subject.paced:
            for told in tolds:
                errors += estimation_errors(told)
    return [_table(cells, seconds), _goals(cells, errors)]


def _one(run: Run, number: int, cores: Cores, seconds: float) -> tuple[list[Cell], list[list[Told]]]:
    key = f"sk-ant-bench-{number}"
    environ = {
        "ANTHROPIC_API_KEY": key,
        "CLAUDE_PROXY_CLIENT_KEYS": " ".join(f"c{i}:{sha256(c.encode()).hexdigest()}" for i, c in enumerate(CLIENTS)),
        "CLAUDE_PROXY_WORKERS": str(run.subject.workers),
        "CLAUDE_PROXY_PACING": "on" if run.subject.paced else "off",
        "CLAUDE_PROXY_QUEUE_TIMEOUT": str(QUEUE_SECONDS),
        "CLAUDE_PROXY_LEDGER": "off",
        "CLAUDE_PROXY_LOG_LEVEL": "error",
    }
    if not run.subject.paced:
        environ["CLAUDE_PROXY_MAX_RETRIES"] = "0"
    tokens = "100000" if run.dimension is OUTPUT else "30"
    with (
        Limited(cores, run.dimension.limits, "--output-tokens", tokens) as upstream,
        Gateway(cores, upstream.url, environ) as gateway,
    ):
        return asyncio.run(_loads(run, upstream, key, Client(gateway.port, run.subject.retries), seconds))


async def _loads(
    run: Run, upstream: Limited, key: str, client: Client, seconds: float
) -> tuple[list[Cell], list[list[Told]]]:
    dimension = run.dimension
    rate = dimension.limit / 60
    await upstream.drain(key, dimension.name, KEEP_SECONDS * rate)
    levels = await upstream.levels(key, dimension.name)
    asked_at, began = time.monotonic(), time.monotonic() + 0.1
    wall = time.time() + began - time.monotonic()
    offers = [list(_offers(run, model, factor, seconds)) for model, factor in zip(MODELS, FACTORS, strict=True)]
    loads = [asyncio.ensure_future(offer(client, list(some), began)) for some in offers]
    await asyncio.sleep(began + seconds - time.monotonic())
    calls = await asyncio.to_thread(upstream.calls, key, wall, wall + seconds)
    tolds = await asyncio.gather(*loads)
    cells = []
    for model, factor, told in zip(MODELS, FACTORS, tolds, strict=True):
        allowed = levels[model] + rate * (began + seconds - asked_at)
        cells.append(_cell(run, factor, allowed, told, [c for c in calls if c["model"] == model], seconds))
    return cells, tolds


def _offers(run: Run, model: str, factor: float, seconds: float) -> Iterator[Offer]:
    """Each client has its share of the times: whole bursts belong to one."""
    rate = run.dimension.rate * factor
    later = FACTORS.index(factor) / len(FACTORS) * run.burst / rate  # not all loads' bursts at the same moment
    moments = [later + at for at in times(rate, seconds - later, run.burst)]
    made = islice(bodies(model, run.dimension.kinds, f"{run.burst} {factor}"), len(moments))
    for index, (at, (kind, body)) in enumerate(zip(moments, made, strict=True)):
        turn = index // run.burst
        first = int((turn + 1) * SHARE_OF_FIRST) > int(turn * SHARE_OF_FIRST)
        yield Offer(at, CLIENTS[0 if first else 1], body, run.dimension.cost(kind))


def _cell(
    run: Run, factor: float, allowed: float, tolds: list[Told], calls: list[dict[str, object]], seconds: float
) -> Cell:
    good = [told for told in tolds if told.status == 200]
    by_client = [sum(t.offer.cost for t in good if t.offer.client == c and t.ended <= seconds) for c in CLIENTS]
    both = factor * min(SHARE_OF_FIRST, 1 - SHARE_OF_FIRST) > 0.5
    return Cell(
        run,
        factor,
        offered=sum(told.offer.cost for told in tolds),
        allowed=allowed,
        served=total([call for call in calls if call["status"] == 200], run.dimension.billed),
        attempts=len(calls),
        rejected=sum(call["status"] == 429 for call in calls),
        refused=sum(told.ours for told in tolds) / len(tolds),
        failed=sum(told.status != 200 and not told.ours for told in tolds) / len(tolds),
        waits=[told.seconds for told in good],
        fairness=jain(by_client) if both else None,
    )


def jain(shares: Sequence[float]) -> float:
    """Jain's index: 1 when all have the same, 1/n when one has everything."""
    squares = sum(share * share for share in shares)
    return sum(shares) ** 2 / (len(shares) * squares) if squares else 0.0


def estimation_errors(tolds: Sequence[Told]) -> list[float]:
    """|estimate - billed| / billed of every answered request, estimated as the gateway does it: from the bytes of the body,
    by the ratio learnt from the answers before (one after the other here)."""
    pool, found = Pool([0.0] * Pool.WIDTH), []
    for told in sorted(tolds, key=lambda one: one.ended):
        if told.input_tokens:
            text, media = measured(told.offer.body)
            estimate = pool.input_of(text, media)
            found.append(abs(estimate - told.input_tokens) / told.input_tokens)
            pool.correct_input(estimate, told.input_tokens, text, media)
    return found


def _table(cells: Sequence[Cell], seconds: float) -> str:
    rows = []
    for cell in cells:
        waits = cell.waits or [0.0]
        rows.append(
            (
                f"{cell.run.dimension.name}, {'steady' if cell.run.burst == 1 else 'bursts'}",
                cell.run.subject.name,
                f"{cell.factor:g}x",
                f"{cell.throughput * 100:.1f} %",
                f"{cell.rejections * 100:.2f} % ({cell.rejected} of {cell.attempts})",
                f"{cell.refused * 100:.0f} %",
                f"{cell.failed * 100:.0f} %",
                f"{median(waits):.2f}",
                f"{percentile(waits, 99):.2f}",
                f"{cell.fairness:.3f}" if cell.fairness is not None else "",
            )
        )
    head = ("limit, shape", "subject", "offered", "served of what could be", "upstream 429s of attempts",
            "refused by us", "failed", "p50 s", "p99 s", "fairness")  # fmt: skip
    title = (
        f"Pacing: {seconds:g} s of {REQUESTS.limit} requests, {INPUT.limit:,} input or {OUTPUT.limit:,} output tokens a "
        f"minute, bursts of {BURST}, waits of at most {QUEUE_SECONDS} s, offered {SHARE_OF_FIRST:.0%} by one client and "
        "the rest by another; served: of what was in the buckets at the beginning and came in (or of the offer, if less)"
    )
    return table(title, head, rows)


def _goals(cells: Sequence[Cell], errors: Sequence[float]) -> str:
    rows = []
    for name, found in (
        ("paced", [cell for cell in cells if cell.run.subject.paced]),
        ("backoff", [cell for cell in cells if not cell.run.subject.paced]),
    ):
        if not found:
            continue
        full = [cell for cell in found if cell.factor >= 1]
        fair = [cell.fairness for cell in found if cell.fairness is not None]
        attempts = sum(cell.attempts for cell in found)
        share = sum(cell.rejected for cell in found) / max(1, attempts)
        goals = (">= 97 %", "<= 0.5 %", "<= 0.5 %", "") if name == "paced" else ("", "", "", "")
        rows += [
            (f"{name}: lowest throughput at 1x and more", f"{min(c.throughput for c in full) * 100:.1f} %", goals[0]),
            (f"{name}: upstream 429s, all", f"{share * 100:.2f} %", goals[1]),
            (f"{name}: upstream 429s, worst load", f"{max(c.rejections for c in found) * 100:.2f} %", goals[2]),
            (f"{name}: lowest fairness (Jain), both over half", f"{min(fair):.3f}", goals[3]),
        ]
    if errors:
        mean = sum(errors) / len(errors)
        what = "input estimated by bytes and the ratio learnt: error mean / p95"
        rows.append((what, f"{mean * 100:.1f} % / {percentile(errors, 95) * 100:.1f} %", ""))
    return table("Pacing against its goals", ("", "measured", "must"), rows)
