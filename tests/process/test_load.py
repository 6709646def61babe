"""A thousand streams at once through one worker: every byte, nobody refused, and what it costs in memory."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import sys

import aiohttp
import pytest

from tests.support import claude
from tests.support.poll import poll
from tests.support.processes import Gateway, Simulator

STREAMS = 1_000
AT_ONCE_S = 8.0
"""How long each stream lasts at least, so that all of them are open together."""

_IDS = re.compile(rb"msg_[0-9A-Za-z]+")


def body_of(number: int) -> bytes:
    """A request of its own for each stream: the simulator answers the same request with the same bytes, but for the id."""
    asked = claude.ASKED | {"stream": True, "messages": [{"role": "user", "content": f"Story number {number}"}]}
    return json.dumps(asked).encode()


async def one(session: aiohttp.ClientSession, url: str, number: int, scenario: str) -> tuple[int, str]:
    """Status, and a digest of the stream's every byte but its id."""
    headers = {"content-type": "application/json", "anthropic-version": "2023-06-01", "x-api-key": "sk-ant-load"}
    headers["x-simulator-scenario"] = scenario
    async with session.post(url + "/v1/messages", data=body_of(number), headers=headers) as answer:
        whole = await answer.read()
        return answer.status, hashlib.sha256(_IDS.sub(b"msg", whole)).hexdigest()


async def all_of(url: str, scenario: str, at_a_time: int) -> list[tuple[int, str]]:
    """Every stream, `at_a_time` side by side."""
    connector = aiohttp.TCPConnector(limit=at_a_time)
    timeout = aiohttp.ClientTimeout(total=120)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        return await asyncio.gather(*(one(session, url, number, scenario) for number in range(STREAMS)))


def resident(pid: int) -> int:
    """Bytes of memory of a process."""
    with open(f"/proc/{pid}/statm") as statm:
        return int(statm.read().split()[1]) * 4096


def test_a_thousand_streams_at_once_arrive_byte_for_byte_and_nobody_is_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with Simulator("--fast", "--unlimited") as simulator, Gateway(simulator.url) as gateway:
        (pid,) = gateway.worker_pids()
        before, most, in_flight = resident(pid), 0, 0.0

        async def through() -> list[tuple[int, str]]:
            nonlocal most, in_flight
            streams = asyncio.ensure_future(
                all_of(gateway.url, f"chunks=20;output_tokens=100;gap_ms=30;first_ms={AT_ONCE_S * 1000:g}", STREAMS)
            )
            while not streams.done():
                now = await asyncio.to_thread(
                    gateway.sample, "claude_proxy_in_flight_requests", http_route="/v1/messages"
                )
                in_flight = max(in_flight, now)
                most = max(most, resident(pid))
                await asyncio.wait([streams], timeout=0.3)
            return await streams

        got = asyncio.run(through())
        direct = asyncio.run(all_of(simulator.url, "chunks=20;output_tokens=100", 50))
        assert [status for status, _ in got] == [200] * STREAMS
        assert got == direct
        assert len({digest for _, digest in got}) > STREAMS / 2  # or the comparison would prove little
        assert in_flight == STREAMS
        poll(
            lambda: gateway.sample("claude_proxy_in_flight_requests", http_route="/v1/messages") == 0,
            what="nothing in flight",
        )
        lines = gateway.wait_requests(STREAMS)
        assert {(line["outcome"], line["status"]) for line in lines} == {("ok", 200)}
        with capsys.disabled():
            each = (most - before) / STREAMS / 1024
            sys.stdout.write(f"\n{STREAMS} streams: {before >> 20} MB -> {most >> 20} MB, {each:.0f} KB a stream\n")
        assert gateway.stop() == 0
