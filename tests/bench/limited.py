"""The simulator with its real token buckets, as the upstream of a run; each run has a key, so buckets, of its own."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from hashlib import sha256
from typing import Any

import aiohttp

from tests.bench.machine import Cores
from tests.bench.offers import Kind, body
from tests.bench.processes import Child, get
from tests.support.processes import free_port

MODELS = ("claude-opus-5-5", "claude-sonnet-5-5", "claude-haiku-4-5-20251001", "claude-opus-4-8")
"""Of four classes: each has buckets of its own."""
_AT_ONCE = 16
_HUGE = 150_000
"""Input tokens of the largest prompt that drains a bucket."""
_LONG = 50_000
"""Output tokens of the longest answer that does."""


class Limited(Child):
    """The simulator. `limits` per minute: requests, input tokens, output tokens."""

    def __init__(self, cores: Cores, limits: tuple[int, int, int], *options: str) -> None:
        self.port = free_port()
        names = ("--rpm", "--itpm", "--otpm")
        given = [text for name, limit in zip(names, limits, strict=True) for text in (name, str(limit))]
        arguments = ["-m", "service.simulator", "--fast", "--port", str(self.port), "--record", "1", *given, *options]
        super().__init__(arguments, cores, errors=None)
        assert self.process.stdout is not None
        self.process.stdout.readline()
        self.url = f"http://127.0.0.1:{self.port}"

    def calls(self, key: str, since: float, until: float) -> list[dict[str, object]]:
        """What came with `key` in that time (seconds since the epoch)."""
        hashed = sha256(key.encode()).hexdigest()[:16]
        lines = json.loads(get(self.port, "/_simulator/counts")[1])["calls"]
        return [line for line in lines if line["key_hash"] == hashed and since <= line["started"] < until]

    async def drain(self, key: str, dimension: str, leave: float) -> None:
        """Use up what `key` has of a limit for every class but about `leave` of it."""
        headers = {"x-api-key": key, "anthropic-version": "2023-06-01", "content-type": "application/json"}
        async with aiohttp.ClientSession(headers=headers) as session:
            for model in MODELS:
                await self._drain(session, model, dimension, leave)

    async def _drain(self, session: aiohttp.ClientSession, model: str, dimension: str, leave: float) -> None:
        async def ask(tokens: int, output: int) -> float:
            asked = body(model, Kind(1, tokens, output))
            async with session.post(f"{self.url}/v1/messages", data=asked) as response:
                await response.read()
                if response.status != 200:
                    raise RuntimeError(f"draining {dimension}: {response.status}")
                return float(response.headers[f"anthropic-ratelimit-{dimension}-remaining"])

        while (left := await ask(1, 1)) > leave:
            much = left - leave
            if dimension == "requests":
                for first in range(0, int(much), _AT_ONCE):
                    await asyncio.gather(*(ask(1, 1) for _ in range(min(_AT_ONCE, int(much) - first))))
            elif much < 1500:  # what is shown is rounded
                return
            elif dimension == "input-tokens":
                await ask(int(min(much, _HUGE)), 1)
            else:
                await ask(1, int(min(much, _LONG)))

    async def levels(self, key: str, dimension: str) -> dict[str, float]:
        """What remains of a limit now, by model. Asking takes one request of each."""
        headers = {"x-api-key": key, "anthropic-version": "2023-06-01", "content-type": "application/json"}
        found: dict[str, float] = {}
        async with aiohttp.ClientSession(headers=headers) as session:
            for model in MODELS:
                async with session.post(f"{self.url}/v1/messages", data=body(model, Kind(1, 1, 1))) as response:
                    await response.read()
                    found[model] = float(response.headers[f"anthropic-ratelimit-{dimension}-remaining"])
        return found


def total(calls: Sequence[dict[str, object]], name: str) -> float:
    """The sum of `requests`, `input_tokens` or `output_tokens` billed."""
    billed: list[Any] = [call["billed"] for call in calls]
    return float(sum(one[name] for one in billed))
