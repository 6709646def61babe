"""Claude's answer as server-sent events, in the order of the Streaming page."""

from collections.abc import Iterator

import msgspec

from service.simulator import errors
from service.simulator.faults import Scenario
from service.simulator.generate import Answer, Part, signature
from service.simulator.sending import Chunk, chunk_count, pieces

_PING = b'event: ping\ndata: {"type": "ping"}\n\n'
_BAD_JSON = b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,"delta":{"type":"text_del\n\n'
_UNKNOWN = (
    b'event: simulator_news\ndata: {"type":"simulator_news","weather":"fair"}\n\n'
    b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,"delta":{"type":"mood_delta","mood":"calm"}}\n\n'
)


def event(kind: str, **fields: object) -> bytes:
    """One server-sent event; its name is also its type."""
    return b"event: %s\ndata: %s\n\n" % (kind.encode(), msgspec.json.encode({"type": kind, **fields}))


class Events:
    """The stream of one message."""

    content_type = "text/event-stream; charset=utf-8"
    broken, ping, comment, news = _BAD_JSON, _PING, b": a comment, to be ignored\n\n", _UNKNOWN

    def __init__(self, answer: Answer, message: dict[str, object], scenario: Scenario) -> None:
        self._answer, self._message, self._scenario = answer, message, scenario
        self.total = chunk_count(answer, scenario)

    def chunks(self) -> Iterator[Chunk]:
        """The whole stream: framing events travel with what comes next to them, every delta alone."""
        framing = event("message_start", message=self._message)
        for index, part in enumerate(self._answer.parts):
            framing += event("content_block_start", index=index, content_block=_empty(part))
            yield Chunk(framing + (_PING if index == 0 else b""))
            yield from _deltas(index, part, self._scenario)
            framing = event("content_block_stop", index=index)
        yield Chunk(framing + _ending(self._answer, self._message["usage"], self._scenario.message_deltas))

    def failure(self, kind: str, *, started: bool) -> bytes:
        """An `error` event."""
        body = errors.payload(kind, "Overloaded" if kind == "overloaded_error" else "Internal server error")
        return b"event: error\ndata: %s\n\n" % msgspec.json.encode(body)


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
    for text, tokens in pieces(part, scenario):
        data = event("content_block_delta", index=index, delta={"type": kind, name: text})
        yield Chunk(data, tokens, content=True, reasoning=tokens if part.kind == "thinking" else 0)
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
