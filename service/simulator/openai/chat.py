"""POST /v1/chat/completions, and the models."""

from collections.abc import Iterator

import msgspec
from aiohttp import web

from service.simulator import generate
from service.simulator.answering import Plan, finish, prepare, text_of, visible
from service.simulator.call import Call
from service.simulator.faults import Scenario
from service.simulator.generate import Answer, Part
from service.simulator.openai import body, models
from service.simulator.openai.face import FAILURES, shown
from service.simulator.sending import Chunk, chunk_count, pieces, send

_FINISH = {"max_tokens": "length", "tool_use": "tool_calls", "refusal": "content_filter"}
_FINGERPRINT = "fp_simulator"


async def create(call: Call) -> web.StreamResponse:
    """One completion, in one piece or streamed."""
    asked = body.decode(call.body, body.Chat)
    model = models.find(asked.model)
    call.streaming = bool(asked.stream)
    plan = await prepare(call, model, asked.translate(model))
    call.line.message_id = f"chatcmpl-{generate.new_id('', 29)}"
    common = {
        "id": call.line.message_id,
        "object": "chat.completion",
        "created": int(call.sim.clock.time()),
        "model": model.id,
    }
    if call.streaming:
        with_usage = asked.stream_options is not None and asked.stream_options.include_usage
        return await send(call, _Chunks(common, plan, call.scenario, with_usage), plan.limits)
    await finish(call, plan)
    choice = {"index": 0, "message": _message(plan.answer), "logprobs": None, "finish_reason": _finish(plan.answer)}
    ending = {"usage": _usage(plan), "service_tier": "default", "system_fingerprint": _FINGERPRINT}
    return call.answer({**common, "choices": [choice], **ending})


async def list_models(call: Call) -> web.StreamResponse:
    """GET /v1/models."""
    return call.answer({"object": "list", "data": [models.describe(model) for model in models.MODELS]})


async def get_model(call: Call) -> web.StreamResponse:
    """GET /v1/models/{model}."""
    return call.answer(models.describe(models.find(call.request.match_info["id"])))


def _finish(answer: Answer) -> str:
    return _FINISH.get(answer.stop_reason, "stop")


def _message(answer: Answer) -> dict[str, object]:
    calls = [_call(part) for part in answer.parts if part.kind == "tool_use"]
    content = text_of(answer.parts)
    message: dict[str, object] = {"role": "assistant", "content": None if calls and not content else content}
    return {**message, "refusal": None, "annotations": [], **({"tool_calls": calls} if calls else {})}


def _call(part: Part) -> dict[str, object]:
    return {"id": call_id(part), "type": "function", "function": {"name": part.name, "arguments": part.text}}


def call_id(part: Part) -> str:
    """The id of a tool call as OpenAI writes it."""
    return f"call_{part.id.removeprefix('toolu_01')}"


def _usage(plan: Plan) -> dict[str, object]:
    answer = plan.answer
    return {
        "prompt_tokens": plan.input_tokens,
        "completion_tokens": answer.output_tokens,
        "total_tokens": plan.input_tokens + answer.output_tokens,
        "prompt_tokens_details": {
            "cached_tokens": plan.usage.read,
            "cache_write_tokens": plan.usage.written,
            "audio_tokens": 0,
        },
        "completion_tokens_details": {
            "reasoning_tokens": answer.thinking_tokens,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


class _Chunks:
    """The stream of one completion: unnamed events, and [DONE]. Reasoning is billed with the first one."""

    content_type = "text/event-stream; charset=utf-8"
    broken = b'data: {"id":"chatcmpl-broken","object":"chat.completion.chunk","choices":[{"index":0,"del\n\n'
    ping, comment = b"", b": a comment, to be ignored\n\n"
    news = b'data: {"id":"chatcmpl-news","object":"simulator.news","created":0,"model":"","choices":[]}\n\n'

    def __init__(self, common: dict[str, object], plan: Plan, scenario: Scenario, with_usage: bool) -> None:
        self._plan, self._scenario, self._with_usage = plan, scenario, with_usage
        self._common = common | {
            "object": "chat.completion.chunk",
            "service_tier": "default",
            "system_fingerprint": _FINGERPRINT,
        }
        self._shown = visible(plan.answer)
        self.total = chunk_count(self._shown, scenario)

    def chunks(self) -> Iterator[Chunk]:
        """The role, every delta, the reason why it ends, and the usage for who asked for it."""
        thinking = self._plan.answer.thinking_tokens
        yield Chunk(self._delta({"role": "assistant", "content": "", "refusal": None}), thinking, reasoning=thinking)
        for index, part in enumerate(part for part in self._shown.parts if part.kind == "tool_use"):
            function = {"name": part.name, "arguments": ""}
            opening = {"index": index, "id": call_id(part), "type": "function", "function": function}
            yield Chunk(self._delta({"tool_calls": [opening]}))
            for text, tokens in pieces(part, self._scenario):
                more = {"index": index, "function": {"arguments": text}}
                yield Chunk(self._delta({"tool_calls": [more]}), tokens, content=True)
        for part in self._shown.parts:
            if part.kind == "text":
                for text, tokens in pieces(part, self._scenario):
                    yield Chunk(self._delta({"content": text}), tokens, content=True)
        ending = self._delta({}, _finish(self._plan.answer))
        if self._with_usage:
            ending += _event(self._common | {"choices": [], "usage": _usage(self._plan)})
        yield Chunk(ending + b"data: [DONE]\n\n")

    def failure(self, kind: str, *, started: bool) -> bytes:
        """An error object as an event, after which nothing comes."""
        return _event({"error": shown(FAILURES[kind])})

    def _delta(self, delta: dict[str, object], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        usage: dict[str, object] = {"usage": None} if self._with_usage else {}
        return _event(self._common | {"choices": [choice]} | usage)


def _event(data: dict[str, object]) -> bytes:
    return b"data: %s\n\n" % msgspec.json.encode(data)
