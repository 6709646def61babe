"""The clients of the fault run: several at a time, each with one call after the other, over connections kept alive."""

from __future__ import annotations

import asyncio
import random
import threading
import time

import aiohttp

from tests.support.fault_run_calls import CLIENT_KEY, Kind, Seen, draw, read

PATIENCE = 60.0
"""Seconds after which an answer that does not come fails the run."""


class Clients(threading.Thread):
    """`seen` holds every call that has ended for its client. Set `url` before `start`, and whenever the gateway moves."""

    def __init__(self, seed: int, lanes: int) -> None:
        super().__init__(daemon=True)
        self.url = ""
        self.up = threading.Event()
        """Whether there is a gateway to ask; while not, nobody asks."""
        self.seen: list[Seen] = []
        self.trouble: BaseException | None = None
        self._rng = random.Random(seed)
        self._lanes = lanes
        self._enough = threading.Event()

    def run(self) -> None:
        """Until it is enough."""
        try:
            asyncio.run(self._all())
        except BaseException as error:  # noqa: BLE001 told by `stop`
            self.trouble = error

    def stop(self) -> None:
        """And wait for the last answers. Raises what went wrong."""
        self._enough.set()
        self.join(2 * PATIENCE)
        if self.trouble is not None:
            raise self.trouble
        assert not self.is_alive()

    async def _all(self) -> None:
        connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(total=PATIENCE)
        async with (
            aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=False) as session,
            asyncio.TaskGroup() as group,
        ):
            for _ in range(self._lanes):
                group.create_task(self._lane(session, random.Random(self._rng.getrandbits(64))))

    async def _lane(self, session: aiohttp.ClientSession, rng: random.Random) -> None:
        while not self._enough.is_set():
            if not self.up.is_set():
                await asyncio.sleep(0.02)
                continue
            seen = Seen(f"{rng.getrandbits(128):032x}", draw(rng), time.time())
            body = b""
            try:
                body = await self._call(session, seen, rng)
            except (aiohttp.ClientError, ConnectionError):
                seen.end = "lost" if seen.status is None else "cut"
            seen.ended = time.time()
            read(seen, body)
            self.seen.append(seen)

    async def _call(self, session: aiohttp.ClientSession, seen: Seen, rng: random.Random) -> bytes:
        kind = seen.kind
        asked = session.post(self.url + kind.path, data=kind.body(rng), headers=_headers(seen))
        if kind.leaves == "before":
            try:
                async with asyncio.timeout(rng.uniform(0.01, 0.2)):
                    answer = await asked
            except TimeoutError:
                seen.end = "left"
                return b""
        else:
            answer = await asked
        seen.status, seen.request_id = answer.status, answer.headers.get("x-request-id")
        got = b""
        async with answer:
            async for chunk in answer.content.iter_any():
                got += chunk
                if kind.leaves == "midway" and got.count(b"data: ") > 4:
                    seen.end = "left"
                    answer.close()
                    return got
        seen.end = "whole"
        return got


def _headers(seen: Seen) -> dict[str, str]:
    kind: Kind = seen.kind
    headers = {
        "x-api-key": CLIENT_KEY,
        "anthropic-version": "2023-06-01",
        "content-type": "application/json",
        "traceparent": f"00-{seen.trace_id}-{'a' * 16}-01",
    }
    if kind.scenario:
        headers["x-simulator-scenario"] = kind.scenario
    return headers | dict(kind.headers)
