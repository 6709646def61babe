"""generateContent, streamGenerateContent, countTokens and the models, and what they answer."""

from collections.abc import Iterator

import msgspec
from aiohttp import web

from service.simulator import generate, request
from service.simulator.answering import ForeignModel, Plan, finish, prepare, visible
from service.simulator.breaking import before_headers
from service.simulator.call import Call
from service.simulator.errors import ApiError
from service.simulator.faults import Scenario
from service.simulator.gemini import body, models
from service.simulator.gemini.face import payload
from service.simulator.generate import Answer, Part
from service.simulator.sending import Chunk, chunk_count, pieces, send

_FINISH = {"max_tokens": "MAX_TOKENS", "refusal": "SAFETY", "pause_turn": "OTHER"}
_FAILURES = {
    "overloaded_error": ApiError(503, "UNAVAILABLE", "The model is overloaded. Please try again later."),
    "api_error": ApiError(500, "INTERNAL", "An internal error has occurred. Please retry."),
}


async def act(call: Call) -> web.StreamResponse:
    """POST /v1/models/{model}:{verb}."""
    name, _, verb = call.request.match_info["target"].rpartition(":")
    model = models.find(name, _version(call))
    if verb == "countTokens":
        return await _count(call, model)
    if verb not in ("generateContent", "streamGenerateContent"):
        raise ApiError(404, "NOT_FOUND", f"There is no method {verb} here.")
    return await _generate(call, model, streamed=verb == "streamGenerateContent")


async def list_models(call: Call) -> web.StreamResponse:
    """GET /v1/models."""
    return call.answer(models.page(dict(call.request.query)))


async def get_model(call: Call) -> web.StreamResponse:
    """GET /v1/models/{model}."""
    return call.answer(models.describe(models.find(call.request.match_info["target"], _version(call))))


def _version(call: Call) -> str:
    return "v1beta" if "/v1beta/" in call.line.path else "v1"


async def _generate(call: Call, model: ForeignModel, *, streamed: bool) -> web.StreamResponse:
    call.streaming = streamed
    asked = body.decode(call.body)
    thoughts = asked.generation_config.thinking_config.include_thoughts
    plan = await prepare(call, model, body.translate(asked, model))
    call.line.message_id = generate.new_id("")
    reply = _Reply(plan, model, call.line.message_id)
    shown = plan.answer if thoughts else visible(plan.answer)
    if streamed:
        array = call.request.query.get("alt") != "sse"
        return await send(call, (_Array if array else _Events)(reply, shown, call.scenario), plan.limits)
    await finish(call, plan)
    parts = [_part(part) for part in shown.parts]
    return call.answer(reply.piece(parts, plan.answer.output_tokens, last=True))


async def _count(call: Call, model: ForeignModel) -> web.StreamResponse:
    call.line.kind, call.line.model = "count_tokens", model.id
    wanted = body.translate(body.decode_count(call.body).request(), model)
    await before_headers(call, call.sim.config.ttfb_ms)
    total = request.count(wanted)
    return call.answer({"totalTokens": total, "promptTokensDetails": _details(total)})


def _details(tokens: int) -> list[dict[str, object]]:
    return [{"modality": "TEXT", "tokenCount": tokens}]


def _part(part: Part) -> dict[str, object]:
    if part.kind == "tool_use":
        return {"functionCall": {"name": part.name, "args": msgspec.json.decode(part.text)}}
    return {"text": part.text, "thought": True} if part.kind == "thinking" else {"text": part.text}


class _Reply:
    """The parts of an answer, each with what is the same in all of them and the usage so far."""

    def __init__(self, plan: Plan, model: ForeignModel, response_id: str) -> None:
        self._plan, self._model, self._id = plan, model, response_id
        self.thinking = plan.answer.thinking_tokens
        self._proof = generate.signature(response_id) if self.thinking else ""

    def piece(self, parts: list[dict[str, object]], output_tokens: int, *, last: bool) -> dict[str, object]:
        """A GenerateContentResponse; the last one says why the answer ends."""
        candidate: dict[str, object] = {"content": {"parts": parts, "role": "model"}}
        if last:
            candidate["finishReason"] = _FINISH.get(self._plan.answer.stop_reason, "STOP")
            if self._proof and parts:
                parts[-1] = {**parts[-1], "thoughtSignature": self._proof}
        return {
            "candidates": [{**candidate, "index": 0}],
            "usageMetadata": self._usage(output_tokens),
            "modelVersion": self._model.id,
            "responseId": self._id,
        }

    def _usage(self, output_tokens: int) -> dict[str, object]:
        """Nothing that is zero is shown. Thoughts come first, and are not candidates."""
        prompt, cached = self._plan.input_tokens, self._plan.usage.read
        thoughts = min(self.thinking, output_tokens)
        usage: dict[str, object] = {"promptTokenCount": prompt}
        if cached:
            usage["cachedContentTokenCount"] = cached
            usage["cacheTokensDetails"] = _details(cached)
        if output_tokens > thoughts:
            usage["candidatesTokenCount"] = output_tokens - thoughts
        if thoughts:
            usage["thoughtsTokenCount"] = thoughts
        return {**usage, "totalTokenCount": prompt + output_tokens, "promptTokensDetails": _details(prompt)}


class _Events:
    """The stream as server-sent events, which end their lines as Google does."""

    content_type = "text/event-stream"
    broken = b'data: {"candidates": [{"content": {"parts": [{"te\r\n\r\n'
    ping, news = b"", b""
    comment = b": a comment, to be ignored\r\n\r\n"

    def __init__(self, reply: _Reply, shown: Answer, scenario: Scenario) -> None:
        self._reply, self._shown, self._scenario = reply, shown, scenario
        words = Answer([part for part in shown.parts if part.kind != "tool_use"], "")
        self.total = chunk_count(words, scenario) + len(shown.parts) - len(words.parts)

    def chunks(self) -> Iterator[Chunk]:
        """One response for every delta, and one without text that ends it; a function call comes in one piece.
        Thoughts that are not shown are billed with what comes first."""
        hidden = self._reply.thinking if all(part.kind != "thinking" for part in self._shown.parts) else 0
        done, first = 0, True
        for part in self._shown.parts:
            whole = part.kind == "tool_use"
            for text, tokens in [(part.text, part.tokens)] if whole else pieces(part, self._scenario):
                shown = _part(Part(part.kind, text, tokens, part.name))
                done += tokens + hidden
                data = self._frame(self._reply.piece([shown], done, last=False), first=first)
                reasoning = tokens if part.kind == "thinking" else hidden
                yield Chunk(data, tokens + hidden, content=True, reasoning=reasoning)
                hidden, first = 0, False
        ending = self._frame(self._reply.piece([{"text": ""}], done + hidden, last=True), first=first)
        yield Chunk(ending + self._end(), hidden, reasoning=hidden)

    def failure(self, kind: str, *, started: bool) -> bytes:
        """An error object in place of a response."""
        return self._frame(payload(_FAILURES[kind]), first=not started) + self._end()

    def _frame(self, response: dict[str, object], *, first: bool) -> bytes:
        return b"data: %s\r\n\r\n" % msgspec.json.encode(response)

    def _end(self) -> bytes:
        return b""


class _Array(_Events):
    """The stream as one JSON array."""

    content_type = "application/json; charset=UTF-8"
    broken = b',\r\n{"candidates": [{"content": {"parts": [{"te'
    comment = b""

    def _frame(self, response: dict[str, object], *, first: bool) -> bytes:
        return (b"[" if first else b",\r\n") + msgspec.json.encode(response)

    def _end(self) -> bytes:
        return b"\n]"
