"""POST /v1/responses."""

from collections.abc import Iterator

import msgspec
from aiohttp import web

from service.simulator import generate
from service.simulator.answering import ForeignModel, Plan, finish, prepare, visible
from service.simulator.call import Call
from service.simulator.faults import Scenario
from service.simulator.generate import Part
from service.simulator.openai import body, models
from service.simulator.openai.chat import call_id
from service.simulator.openai.face import FAILURES, shown
from service.simulator.sending import Chunk, chunk_count, pieces, send

_INCOMPLETE = {"max_tokens": "max_output_tokens", "refusal": "content_filter"}
_DONE = {"status": "completed"}


async def create(call: Call) -> web.StreamResponse:
    """One response, in one piece or streamed."""
    asked = body.decode(call.body, body.Respond)
    model = models.find(asked.model)
    call.streaming = bool(asked.stream)
    plan = await prepare(call, model, asked.translate(model))
    call.line.message_id = f"resp_{generate.new_id('', 48)}"
    opening = _opening(call, asked, model)
    if call.streaming:
        return await send(call, _Events(opening, plan, call.scenario), plan.limits)
    await finish(call, plan)
    return call.answer(_finished(opening, plan, [_item(part) for part in plan.answer.parts]))


def _opening(call: Call, asked: body.Respond, model: ForeignModel) -> dict[str, object]:
    """The response before it has any output."""
    reasoning = asked.reasoning or body.Reasoning()
    return {
        "id": call.line.message_id,
        "object": "response",
        "created_at": int(call.sim.clock.time()),
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": asked.instructions,
        "max_output_tokens": asked.max_output_tokens,
        "model": model.id,
        "output": [],
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "reasoning": {"effort": reasoning.effort, "summary": reasoning.summary},
        "service_tier": "default",
        "store": True,
        "temperature": 1.0,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "truncation": "disabled",
        "usage": None,
        "user": None,
        "metadata": {},
    }


def _finished(opening: dict[str, object], plan: Plan, output: list[dict[str, object]]) -> dict[str, object]:
    """The response with its output and usage; incomplete when something kept it from ending by itself."""
    why = _INCOMPLETE.get(plan.answer.stop_reason)
    return opening | {
        "status": "incomplete" if why else "completed",
        "incomplete_details": {"reason": why} if why else None,
        "output": output,
        "usage": _usage(plan),
    }


def _usage(plan: Plan) -> dict[str, object]:
    return {
        "input_tokens": plan.input_tokens,
        "input_tokens_details": {"cached_tokens": plan.usage.read, "cache_write_tokens": plan.usage.written},
        "output_tokens": plan.answer.output_tokens,
        "output_tokens_details": {"reasoning_tokens": plan.answer.thinking_tokens},
        "total_tokens": plan.input_tokens + plan.answer.output_tokens,
    }


def _item(part: Part) -> dict[str, object]:
    """A finished item of the output; thoughts are not told."""
    item_id = generate.new_id("", 48)
    if part.kind == "thinking":
        return {"id": f"rs_{item_id}", "type": "reasoning", "summary": []}
    if part.kind == "tool_use":
        named = {"call_id": call_id(part), "name": part.name, "arguments": part.text}
        return {"id": f"fc_{item_id}", "type": "function_call", **_DONE, **named}
    return {"id": f"msg_{item_id}", "type": "message", "role": "assistant", **_DONE, "content": [_text(part.text)]}


def _text(text: str) -> dict[str, object]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


class _Events:
    """The stream of one response: typed, numbered events."""

    content_type = "text/event-stream; charset=utf-8"
    broken = b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","item_id":"msg_\n\n'
    ping, comment = b"", b": a comment, to be ignored\n\n"
    news = b'event: response.simulator_news\ndata: {"type":"response.simulator_news","sequence_number":0}\n\n'

    def __init__(self, opening: dict[str, object], plan: Plan, scenario: Scenario) -> None:
        self._opening, self._plan, self._scenario = opening, plan, scenario
        self._number = 0
        self.total = chunk_count(visible(plan.answer), scenario)

    def chunks(self) -> Iterator[Chunk]:
        """The whole stream: framing events travel with what comes next to them, every delta alone."""
        framing = self._event("response.created", response=self._opening)
        framing += self._event("response.in_progress", response=self._opening)
        yield Chunk(framing)
        output: list[dict[str, object]] = []
        for index, part in enumerate(self._plan.answer.parts):
            item = _item(part)
            yield from self._shown(index, part, item)
            output.append(item)
        whole = _finished(self._opening, self._plan, output)
        yield Chunk(self._event(f"response.{whole['status']}", response=whole))

    def failure(self, kind: str, *, started: bool) -> bytes:
        """An `error` event; in a stream that has started, followed by the response as it failed."""
        error = shown(FAILURES[kind])
        data = self._event("error", error=error)
        if not started:
            return data
        short = {"code": error["code"], "message": error["message"]}
        return data + self._event("response.failed", response=self._opening | {"status": "failed", "error": short})

    def _shown(self, index: int, part: Part, item: dict[str, object]) -> Iterator[Chunk]:
        """The events of one item of the output. Reasoning is billed with its item."""
        if part.kind == "thinking":
            data = self._item_event("added", index, item) + self._item_event("done", index, item)
            yield Chunk(data, part.tokens, reasoning=part.tokens)
            return
        called = part.kind == "tool_use"
        name = "response.function_call_arguments" if called else "response.output_text"
        empty: dict[str, object] = {"arguments": ""} if called else {"content": []}
        place: dict[str, object] = {"item_id": item["id"], "output_index": index}
        opening = self._item_event("added", index, item | {"status": "in_progress"} | empty)
        if not called:
            place["content_index"] = 0
            opening += self._event("response.content_part.added", **place, part=_text(""))
        yield Chunk(opening)
        extra: dict[str, object] = {} if called else {"logprobs": []}
        for text, tokens in pieces(part, self._scenario):
            yield Chunk(self._event(f"{name}.delta", **place, delta=text, **extra), tokens, content=True)
        said = {"arguments": part.text, "name": part.name} if called else {"text": part.text, "logprobs": []}
        ending = self._event(f"{name}.done", **place, **said)
        if not called:
            ending += self._event("response.content_part.done", **place, part=_text(part.text))
        yield Chunk(ending + self._item_event("done", index, item))

    def _item_event(self, what: str, index: int, item: dict[str, object]) -> bytes:
        return self._event(f"response.output_item.{what}", output_index=index, item=item)

    def _event(self, kind: str, **fields: object) -> bytes:
        data = msgspec.json.encode({"type": kind, "sequence_number": self._number, **fields})
        self._number += 1
        return b"event: %s\ndata: %s\n\n" % (kind.encode(), data)
