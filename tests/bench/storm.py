"""A storm of 529s: how many more attempts a gateway makes of it, and how soon all is well again when it is over.

Gateways with and without a retry budget, and one that leaves it to clients, meet the same storm at the same time.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import sha256

import aiohttp

from service.policy.budget import FLOOR
from tests.bench.limited import MODELS, Limited
from tests.bench.machine import Cores
from tests.bench.offers import Client, Kind, Offer, Told, body, offer, times
from tests.bench.processes import Gateway
from tests.bench.report import table
from tests.bench.subjects import say

RATE = 20.0
"""Requests a second, through each gateway."""
BEFORE = 10.0
"""Seconds of good weather first."""
AFTER = 15.0
SHARE = 0.2
"""The retry budget by default: what the goal is about."""
_CLIENT = "bench-client-one"
_HUGE = 100_000_000


@dataclass(frozen=True, slots=True)
class Subject:
    """A gateway's settings, and how often its clients try again."""

    name: str
    environ: tuple[tuple[str, str], ...] = ()
    retries: int = 0


SUBJECTS = (
    Subject("retry budget 0.2 (default)"),
    Subject("the same, and SDK clients before it", retries=2),
    Subject("no budget (1)", (("CLAUDE_PROXY_RETRY_BUDGET", "1"),)),
    Subject("gateway does not retry, SDK clients do", (("CLAUDE_PROXY_MAX_RETRIES", "0"),), retries=2),
)


@dataclass(slots=True)
class Weathered:
    """Figures of one gateway. Counts are of the storm alone."""

    subject: Subject
    offered: int
    attempts: int
    served: float
    recovered: float | None
    """Seconds from its end until every request is answered well; None: not within the run."""


def measure(cores: Cores, *, quick: bool) -> list[str]:
    """One storm; gives the report's parts."""
    seconds = 15.0 if quick else 60.0
    say(f"storm: {seconds:g} s of 529s, {RATE:g} requests a second through each of {len(SUBJECTS)} gateways")
    with ExitStack() as stack:
        upstream = stack.enter_context(Limited(cores, (_HUGE, _HUGE, _HUGE), "--output-tokens", "30"))
        gateways = []
        for number, subject in enumerate(SUBJECTS):
            environ = {
                "ANTHROPIC_API_KEY": f"sk-ant-storm-{number}",
                "CLAUDE_PROXY_CLIENT_KEYS": f"c:{sha256(_CLIENT.encode()).hexdigest()}",
                "CLAUDE_PROXY_LEDGER": "off",
                "CLAUDE_PROXY_LOG_LEVEL": "error",
            }
            gateway = Gateway(cores, upstream.url, environ | dict(subject.environ))
            gateways.append(stack.enter_context(gateway))
        return [_table(asyncio.run(_weather(upstream, [g.port for g in gateways], seconds)), seconds)]


async def _weather(upstream: Limited, ports: Sequence[int], seconds: float) -> list[Weathered]:
    asked = body(MODELS[0], Kind(1, 50, 32))
    offers = [Offer(at, _CLIENT, asked) for at in times(RATE, BEFORE + seconds + AFTER, 1)]
    began, wall = time.monotonic() + 0.1, time.time() + 0.1
    loads = [
        asyncio.ensure_future(offer(Client(port, subject.retries), offers, began))
        for port, subject in zip(ports, SUBJECTS, strict=True)
    ]
    await asyncio.sleep(began + BEFORE - 0.5 - time.monotonic())
    async with aiohttp.ClientSession() as session:
        rules = [{"scenario": "fault=overloaded", "between": [0.5, 0.5 + seconds]}]
        async with session.post(f"{upstream.url}/_simulator/schedule", data=json.dumps(rules)) as response:
            response.raise_for_status()
    start = time.time() - wall + 0.5
    await asyncio.sleep(seconds + 0.5)
    stormy = await asyncio.gather(
        *(
            asyncio.to_thread(upstream.calls, f"sk-ant-storm-{number}", wall + start, wall + start + seconds)
            for number in range(len(SUBJECTS))
        )
    )
    tolds = await asyncio.gather(*loads)
    return [
        _weathered(subject, told, len(calls), start, start + seconds)
        for subject, told, calls in zip(SUBJECTS, tolds, stormy, strict=True)
    ]


def _weathered(subject: Subject, tolds: Sequence[Told], attempts: int, start: float, end: float) -> Weathered:
    during = [told for told in tolds if start <= told.offer.at < end]
    bad = [told.offer.at for told in tolds if told.offer.at >= end - 2 and told.status != 200]
    last = max(bad, default=end)
    return Weathered(
        subject,
        offered=len(during),
        attempts=attempts,
        served=sum(told.status == 200 for told in during) / len(during),
        recovered=max(0.0, last - end) if last < tolds[-1].offer.at else None,
    )


def _table(found: Sequence[Weathered], seconds: float) -> str:
    rows = [
        (
            one.subject.name,
            f"{one.offered}",
            f"{one.attempts}",
            f"{one.attempts / one.offered:.2f}",
            f"{max(FLOOR, SHARE * one.offered) / one.offered + 1:.2f}" if not index else "",
            f"{one.served * 100:.1f} %",
            f"{one.recovered:.1f}" if one.recovered is not None else f"more than {AFTER:g}",
        )
        for index, one in enumerate(found)
    ]
    head = ("subject", "offered", "attempts upstream", "per request", "must (<=)", "served later", "all well after s")
    title = f"A storm of 529s: {seconds:g} s, {RATE:g} requests a second, after {BEFORE:g} s without"
    return table(title, head, rows)
