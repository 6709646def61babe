"""An answer as server-sent events, in the order of the Streaming page, and the ways a stream can go wrong."""

from collections.abc import Iterator
from dataclasses import dataclass

import msgspec
from aiohttp import web

from service.simulator import errors
from service.simulator.breaking import GARBAGE
from service.simulator.call import Call
from service.simulator.faults import Scenario
from service.simulator.generate import Answer, Part, signature
from service.simulator.limits import Pool
from service.simulator.truth import Billed

_TOKENS_PER_CHUNK = 4
_PING = b'event: ping\ndata: {"type": "ping"}\n\n'
_BAD_JSON = b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,"delta":{"type":"text_del\n\n'
_UNKNOWN = (
    b'event: simulator_news\ndata: {"type":"simulator_news","weather":"fair"}\n\n'
    b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,"delta":{"type":"mood_delta","mood":"calm"}}\n\n'
)
_COMMENT = b": a comment, to be ignored\n\n"


@dataclass(slots=True)
class Chunk:
    """Bytes that are written at once. Content holds one delta; the rest only frames it."""

    data: bytes
    tokens: int = 0
    content: bool = False


def event(kind: str, **fields: object) -> bytes:
    """One server-sent event; its name is also its type."""
    return b"event: %s\ndata: %s\n\n" % (kind.encode(), msgspec.json.encode({"type": kind, **fields}))


def chunk_count(answer: Answer, scenario: Scenario) -> int:
    """How many content deltas the answer takes."""
    return sum(_pieces(part, scenario) for part in answer.parts)


def duration(call: Call, answer: Answer) -> float:
    """Seconds that it takes to make the answer, streamed or not, after its first byte."""
    usual = call.sim.config.gap_ms
    if not usual and not call.scenario.gap_ms:
        return 0.0
    return sum(call.delay(call.scenario.gap_ms, usual) for _ in range(chunk_count(answer, call.scenario)))


def _pieces(part: Part, scenario: Scenario) -> int:
    usual = -(-part.tokens // _TOKENS_PER_CHUNK)
    return max(1, min(usual if scenario.chunks is None else scenario.chunks, len(part.text) or 1))


def chunks(answer: Answer, message: dict[str, object], scenario: Scenario) -> Iterator[Chunk]:
    """The whole stream: framing events travel with what comes next to them, every delta alone."""
    framing = event("message_start", message=message)
    for index, part in enumerate(answer.parts):
        framing += event("content_block_start", index=index, content_block=_empty(part))
        yield Chunk(framing + (_PING if index == 0 else b""))
        yield from _deltas(index, part, scenario)
        framing = event("content_block_stop", index=index)
    yield Chunk(framing + _ending(answer, message["usage"], scenario.message_deltas))


def _empty(part: Part) -> dict[str, object]:
    if part.kind == "thinking":
        return {"type": "thinking", "thinking": "", "signature": ""}
    if part.kind == "tool_use":
        return {"type": "tool_use", "id": part.id, "name": part.name, "input": {}}
    return {"type": "text", "text": ""}


def _deltas(index: int, part: Part, scenario: Scenario) -> Iterator[Chunk]:
    kind, name = {
        "text": ("text_delta", "text"),
        "thinking": ("thinking_delta", "thinking"),
        "tool_use": ("input_json_delta", "partial_json"),
    }[part.kind]
    if part.kind == "tool_use":
        yield Chunk(event("content_block_delta", index=index, delta={"type": kind, name: ""}))
    pieces, done, spent = _pieces(part, scenario), 0, 0
    for number in range(1, pieces + 1):
        upto, tokens = len(part.text) * number // pieces, part.tokens * number // pieces
        delta = {"type": kind, name: part.text[done:upto]}
        yield Chunk(event("content_block_delta", index=index, delta=delta), tokens - spent, content=True)
        done, spent = upto, tokens
    if part.kind == "thinking":
        proof = {"type": "signature_delta", "signature": signature(part.text)}
        yield Chunk(event("content_block_delta", index=index, delta=proof))


def _ending(answer: Answer, opening: object, times: int) -> bytes:
    """One message_delta, or several with growing output; each has the usage so far."""
    usage: dict[str, object] = {name: value for name, value in _dict(opening).items() if isinstance(value, int)}
    data = b""
    for number in range(1, times):
        usage["output_tokens"] = answer.output_tokens * number // times
        data += event("message_delta", delta={"stop_reason": None, "stop_sequence": None}, usage=usage)
    usage["output_tokens"] = answer.output_tokens
    if answer.thinking_tokens:
        usage["output_tokens_details"] = {"thinking_tokens": answer.thinking_tokens}
    return data + event("message_delta", delta=answer.ending, usage=usage) + event("message_stop")


def _dict(value: object) -> dict[str, object]:
    return value if isinstance(value, dict) else {}


async def send(call: Call, answer: Answer, message: dict[str, object], pool: Pool) -> web.StreamResponse:
    """Stream the answer at its pace, with the scenario's faults; bill what was written. Returns after the last byte."""
    sender = _Sender(call, pool, chunk_count(answer, call.scenario))
    await sender.open()
    if not await sender.fails_at_once():
        for chunk in chunks(answer, message, call.scenario):
            if not await sender.write(chunk):
                break
    await sender.response.write_eof()
    return sender.response


class _Sender:
    """The writing end of one stream: pace, billing and faults."""

    def __init__(self, call: Call, pool: Pool, total: int) -> None:
        self._call, self._pool, self._scenario, self._clock = call, pool, call.scenario, call.sim.clock
        after = call.scenario.after
        self._total = total
        self._strike = total // 2 if after is None else min(after, total)
        self._sent = 0
        self._due = 0.0
        self.response = web.StreamResponse(headers=call.response_headers())
        self.response.headers["content-type"] = "text/event-stream; charset=utf-8"
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
            self._pool.produced(chunk.tokens, self._clock.time())
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
            return _BAD_JSON
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
        kind = self._scenario.error
        body = errors.payload(kind, "Overloaded" if kind == "overloaded_error" else "Internal server error")
        return b"event: error\ndata: %s\n\n" % msgspec.json.encode(body)

    def _extras(self) -> bytes:
        scenario, data = self._scenario, b""
        if scenario.ping_every and self._sent and self._sent % scenario.ping_every == 0:
            data += _PING
        if scenario.comments:
            data += _COMMENT
        if scenario.unknown_events and self._sent == 1:
            data += _UNKNOWN
        return data

    async def _put(self, data: bytes) -> None:
        if self._scenario.crlf:
            data = data.replace(b"\n", b"\r\n")
        step = self._scenario.split or len(data)
        for start in range(0, len(data), step):
            await self.response.write(data[start : start + step])
            if self._scenario.split:
                await self._clock.sleep(0)
