"""The short way in: one prompt, or a list of prompts answered side by side, without knowing the provider's body."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
from flask import Flask, Response, g, request
from msgspec import Meta

from observability.catalog import Attr, Outcome
from service.account.exchange import Call, Exchange
from service.answer import Answer
from service.errors import BadRequest, GatewayError, InvalidAnswer, UnsupportedMedia
from service.pipeline import Pipeline
from service.record import Kind, Usage
from service.upstream import anthropic
from service.upstream.client import Prepared
from service.web import reply
from service.web.channel import Channel
from service.web.native import MB, admitted, decode, first_byte_timeout

RULES = ("/generate", "/batch_generate")
LIMIT = 32 * MB

_Prompt = Annotated[str, Meta(min_length=1)]


class _Options(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    provider: Literal["anthropic"] = "anthropic"
    model: Annotated[str, Meta(min_length=1, max_length=128, pattern=r"^[\x21-\x7e]+$")] | None = None
    max_tokens: Annotated[int, Meta(ge=1, le=1_000_000)] = 1024
    system: _Prompt | None = None


class Generate(_Options, kw_only=True, forbid_unknown_fields=True):
    """Body of `/generate`."""

    prompt: _Prompt


class BatchGenerate(_Options, kw_only=True, forbid_unknown_fields=True):
    """Body of `/batch_generate`."""

    prompts: Annotated[list[_Prompt], Meta(min_length=1)]


class _Text(msgspec.Struct):
    type: str
    text: str = ""


class _Message(msgspec.Struct):
    id: str
    model: str
    content: list[_Text]
    stop_reason: str | None = None


class _WireError(msgspec.Struct):
    type: str = "api_error"
    message: str = ""


class _ErrorBody(msgspec.Struct):
    error: _WireError


@dataclass(frozen=True, slots=True)
class Limits:
    """How much one `/batch_generate` may ask: calls at a time, prompts in all."""

    concurrency: int
    prompts: int


class ProviderSaidNo(GatewayError):
    """The provider answered with an error; its status, type and message are shown as they came."""

    source = "provider"

    def __init__(self, answer: Answer, error: _WireError) -> None:
        super().__init__(error.message or f"the provider answered {answer.status}")
        self.status = answer.status  # type: ignore[misc]  # an instance's own, where the class has its kind's
        self.type = error.type  # type: ignore[misc]
        kept = ("retry-after", "retry-after-ms", "x-should-retry")
        found = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in answer.headers}
        self.headers = {name: found[name] for name in kept if name in found}  # type: ignore[misc]


def register(app: Flask, pipeline: Pipeline, *, default_model: str, timeout: float, limits: Limits) -> None:
    """Add both routes."""
    views = Views(pipeline, default_model, timeout, limits)
    app.add_url_rule("/generate", view_func=views.generate, methods=["POST"])
    app.add_url_rule("/batch_generate", view_func=views.batch_generate, methods=["POST"])


class Views:
    """The views."""

    def __init__(self, pipeline: Pipeline, default_model: str, timeout: float, limits: Limits) -> None:
        self._pipeline = pipeline
        self._default_model = default_model
        self._timeout = timeout
        self._limits = limits

    async def generate(self) -> Response:
        """One prompt, one answer."""
        exchange, channel = reply.current_exchange(), Channel.of(request.environ)
        asked = decode(await _json(channel), Generate)
        return reply.own_json(await self._one(exchange, channel, asked, asked.prompt))

    async def batch_generate(self) -> Response:
        """A list of prompts, answered side by side: results in order, an `error` in the place of each that failed."""
        exchange, channel = reply.current_exchange(), Channel.of(request.environ)
        asked = decode(await _json(channel), BatchGenerate)
        if len(asked.prompts) > self._limits.prompts:
            raise BadRequest(
                f"prompts: {len(asked.prompts)} are more than the {self._limits.prompts} allowed "
                "(CLAUDE_PROXY_BATCH_MAX_PROMPTS)",
                field="prompts",
            )
        exchange.kind, exchange.provider, exchange.model = (
            Kind.FAN_OUT,
            asked.provider,
            asked.model or self._default_model,
        )
        gate = asyncio.Semaphore(self._limits.concurrency)

        async def one(prompt: str) -> dict[str, Any]:
            async with gate:
                try:
                    return await self._one(exchange, channel, asked, prompt)
                except GatewayError as error:
                    return {key: value for key, value in reply.error_body(error, exchange).items() if key == "error"}

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(prompt)) for prompt in asked.prompts]
        results = [task.result() for task in tasks]
        if not exchange.outcomes.keys() & {Outcome.OK, Outcome.REFUSED}:
            g.outcome = exchange.outcomes.most_common(1)[0][0]
            g.error_type = g.outcome.value
        return reply.own_json({"results": results, "request_id": exchange.request_id, "trace_id": exchange.trace_id})

    async def _one(self, exchange: Exchange, channel: Channel, asked: _Options, prompt: str) -> dict[str, Any]:
        model = asked.model or self._default_model
        call = exchange.open_call(
            asked.provider, "chat", model, streaming=False, attributes={Attr.REQUEST_MAX_TOKENS: asked.max_tokens}
        )
        answer = await self._pipeline.run(
            exchange, call, self._prepare(channel, asked, model, prompt), check=_message
        )
        body = await reply.drained(answer.body)
        if answer.status >= 400:
            raise ProviderSaidNo(answer, _error_of(body))
        return _shown(body, call, exchange, asked.provider)

    def _prepare(self, channel: Channel, asked: _Options, model: str, prompt: str) -> Prepared:
        body: dict[str, Any] = {
            "model": model,
            "max_tokens": asked.max_tokens,
            "messages": [{"role": "user", "content": prompt}],
        }
        if asked.system is not None:
            body["system"] = asked.system
        headers = [
            (b"content-type", b"application/json"),
            (b"anthropic-version", anthropic.VERSION.encode()),
            *admitted().credential,
        ]
        timeout = first_byte_timeout(channel.headers, self._timeout)
        return Prepared("POST", "/v1/messages", headers, msgspec.json.encode(body), timeout)


async def _json(channel: Channel) -> bytes:
    if request.mimetype != "application/json":
        raise UnsupportedMedia("Content-Type: expected application/json", field="Content-Type")
    return await channel.read(LIMIT)


def _shown(body: bytes, call: Call, exchange: Exchange, provider: str) -> dict[str, Any]:
    message = _message(body)
    usage = call.says().usage or Usage()
    return {
        "id": message.id,
        "provider": provider,
        "model": message.model,
        "content": [{"type": "text", "text": block.text} for block in message.content if block.type == "text"],
        "stop_reason": message.stop_reason,
        "usage": {
            "input_tokens": usage.input_tokens,
            "output_tokens": usage.output_tokens,
            "cache_read_tokens": usage.cache_read_tokens,
            "cache_write_tokens": usage.cache_write_tokens,
        },
        "cost": {"usd": None, "certainty": "unpriced"},
        "trace_id": exchange.trace_id,
    }


def _message(body: bytes) -> _Message:
    try:
        return msgspec.json.decode(body, type=_Message)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise InvalidAnswer("the provider's answer is not a message") from None


def _error_of(body: bytes) -> _WireError:
    try:
        return msgspec.json.decode(body, type=_ErrorBody).error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _WireError()
