"""Writing a streamed answer at its pace, whichever API it is of, and the ways it can go wrong."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from aiohttp import web

from service.simulator.breaking import GARBAGE
from service.simulator.call import Call
from service.simulator.faults import Scenario
from service.simulator.generate import Answer, Part
from service.simulator.limits import RateLimits
from service.simulator.truth import Billed

_TOKENS_PER_CHUNK = 4


@dataclass(slots=True)
class Chunk:
    """Bytes that are written at once. Content holds one delta; the rest only frames it. Of the tokens that are billed
    with it, some may be reasoning."""

    data: bytes
    tokens: int = 0
    content: bool = False
    reasoning: int = 0


class Script(Protocol):
    """What one API writes in a stream, and how it says that the stream failed."""

    content_type: str
    total: int  # content chunks
    broken: bytes  # instead of a chunk: it is not what the API promises
    ping: bytes
    comment: bytes
    news: bytes  # events that no client knows

    def chunks(self) -> Iterator[Chunk]:
        """The whole stream."""

    def failure(self, kind: str, *, started: bool) -> bytes:
        """The error `overloaded_error` or `api_error` in the stream, as its first event or later on."""


def pieces(part: Part, scenario: Scenario) -> Iterator[tuple[str, int]]:
    """The deltas of a block: each with its text and its tokens."""
    count, done, spent = _piece_count(part, scenario), 0, 0
    for number in range(1, count + 1):
        upto, tokens = len(part.text) * number // count, part.tokens * number // count
        yield part.text[done:upto], tokens - spent
        done, spent = upto, tokens


def _piece_count(part: Part, scenario: Scenario) -> int:
    usual = -(-part.tokens // _TOKENS_PER_CHUNK)
    return max(1, min(usual if scenario.chunks is None else scenario.chunks, len(part.text) or 1))


def chunk_count(answer: Answer, scenario: Scenario) -> int:
    """How many content deltas the answer takes."""
    return sum(_piece_count(part, scenario) for part in answer.parts)


def duration(call: Call, answer: Answer) -> float:
    """Seconds that it takes to make the answer, streamed or not, after its first byte."""
    usual = call.sim.config.gap_ms
    if not usual and not call.scenario.gap_ms:
        return 0.0
    return sum(call.delay(call.scenario.gap_ms, usual) for _ in range(chunk_count(answer, call.scenario)))


async def send(call: Call, script: Script, limits: RateLimits) -> web.StreamResponse:
    """Stream the answer at its pace, with the scenario's faults; bill what was written. Returns after the last byte."""
    sender = _Sender(call, limits, script)
    await sender.open()
    if not await sender.fails_at_once():
        for chunk in script.chunks():
            if not await sender.write(chunk):
                break
    await sender.response.write_eof()
    return sender.response


class _Sender:
    """The writing end of one stream: pace, billing and faults."""

    def __init__(self, call: Call, limits: RateLimits, script: Script) -> None:
        self._call, self._limits, self._scenario, self._clock = call, limits, call.scenario, call.sim.clock
        self._script, total = script, script.total
        after = call.scenario.after
        self._total = total
        self._strike = total // 2 if after is None else min(after, total)
        self._sent = 0
        self._written = False
        self._due = 0.0
        self.response = web.StreamResponse(headers=call.response_headers())
        self.response.headers["content-type"] = script.content_type
        self.response.headers["cache-control"] = "no-cache"

    async def open(self) -> None:
        """Send the headers."""
        self._call.line.status = 200
        await self.response.prepare(self._call.request)
        self._due = self._call.line.first_byte = self._clock.time()

    async def fails_at_once(self) -> bool:
        """Whether the stream holds nothing but a failure, which is then written; nothing is billed for it."""
        if self._scenario.fault not in ("error_first", "garbage"):
            return False
        self._call.line.billed = Billed()
        await self._put(GARBAGE if self._scenario.fault == "garbage" else self._error())
        self._call.close("errored")
        return True

    async def write(self, chunk: Chunk) -> bool:
        """Write a chunk when it is due; False when a fault has ended the stream."""
        if chunk.content:
            await self._pause()
        data = chunk.data
        if self._sent == self._strike and (chunk.content or self._sent == self._total):
            self._strike = -1
            if self._scenario.fault == "error_after":
                await self._put(self._error())
                self._call.close("errored")
                return False
            data = await self._break(data)
        if chunk.content:
            data = self._extras() + data
            self._sent += 1
        await self._put(data)
        if chunk.tokens:
            self._call.line.billed.output_tokens += chunk.tokens
            self._call.line.billed.reasoning_output_tokens += chunk.reasoning
            self._limits.produced(chunk.tokens, self._clock.time())
        return True

    async def _pause(self) -> None:
        usual = self._call.sim.config.gap_ms
        wait = self._call.delay(self._scenario.gap_ms, usual) if self._sent else self._scenario.first_ms / 1000
        self._due += wait
        await self._call.wait(self._due - self._clock.time())

    async def _break(self, data: bytes) -> bytes:
        """Do what the fault asks for in the middle of a stream; what comes back is written instead of `data`."""
        fault = self._scenario.fault
        if fault == "malformed":
            return self._script.broken
        if fault == "cut":
            await self._put(data[: len(data) // 2])
        if fault in ("cut", "cut_boundary", "reset_mid"):
            await self._call.drop(reset=fault == "reset_mid")
        if fault == "stall":
            if self._scenario.stall_ms is None:
                await self._call.hang()
            await self._call.wait(self._scenario.stall_ms / 1000)
            self._due = self._clock.time()
        return data

    def _error(self) -> bytes:
        return self._script.failure(self._scenario.error, started=self._written)

    def _extras(self) -> bytes:
        scenario, data = self._scenario, b""
        if scenario.ping_every and self._sent and self._sent % scenario.ping_every == 0:
            data += self._script.ping
        if scenario.comments:
            data += self._script.comment
        if scenario.unknown_events and self._sent == 1:
            data += self._script.news
        return data

    async def _put(self, data: bytes) -> None:
        if self._scenario.crlf:
            data = data.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
        self._written = True
        step = self._scenario.split or len(data)
        for start in range(0, len(data), step):
            await self.response.write(data[start : start + step])
            if self._scenario.split:
                await self._clock.sleep(0)
