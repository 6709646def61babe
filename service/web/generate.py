"""The short way in: one prompt, or a list of prompts answered side by side, without knowing the provider's body."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Annotated, Any

from flask import Flask, Response, g, request
from msgspec import Meta

from observability.catalog import Outcome
from service.account.exchange import Exchange
from service.errors import BadRequest, GatewayError
from service.record import Kind
from service.web import reply
from service.web.ask import Asker, Options, Text, json_body
from service.web.channel import Channel
from service.web.routes import speaker

RULES = ("/generate", "/batch_generate")


class Generate(Options, kw_only=True, forbid_unknown_fields=True):
    """Body of `/generate`."""

    prompt: Text


class BatchGenerate(Options, kw_only=True, forbid_unknown_fields=True):
    """Body of `/batch_generate`."""

    prompts: Annotated[list[Text], Meta(min_length=1)]


@dataclass(frozen=True, slots=True)
class Limits:
    """How much one fan-out may ask: calls at a time, prompts in all."""

    concurrency: int
    prompts: int


def register(app: Flask, asker: Asker, limits: Limits) -> None:
    """Add both routes."""
    views = Views(asker, limits)
    app.add_url_rule("/generate", view_func=views.generate, methods=["POST"])
    app.add_url_rule("/batch_generate", view_func=views.batch_generate, methods=["POST"])


class Views:
    """The views."""

    def __init__(self, asker: Asker, limits: Limits) -> None:
        self._asker = asker
        self._limits = limits

    async def generate(self) -> Response:
        """One prompt, one answer."""
        exchange, channel = reply.current_exchange(), Channel.of(request.environ)
        asked = await json_body(channel, Generate)
        return reply.own_json((await self._asker.ask(exchange, channel, asked, asked.prompt)).shown)

    async def batch_generate(self) -> Response:
        """A list of prompts, answered side by side: results in order, an `error` in the place of each that failed."""
        exchange, channel = reply.current_exchange(), Channel.of(request.environ)
        asked = await json_body(channel, BatchGenerate)
        if len(asked.prompts) > self._limits.prompts:
            raise BadRequest(
                f"prompts: {len(asked.prompts)} are more than the {self._limits.prompts} allowed "
                "(CLAUDE_PROXY_BATCH_MAX_PROMPTS)",
                field="prompts",
            )
        provider, exchange.model = self._asker.chosen(asked)
        exchange.kind, exchange.provider = Kind.FAN_OUT, provider.name
        gate = self._asker.gate(self._limits.concurrency)

        async def one(prompt: str) -> dict[str, Any]:
            async with gate:
                try:
                    return (await self._asker.ask(exchange, channel, asked, prompt)).shown
                except GatewayError as error:
                    return failed(error, exchange)

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(prompt)) for prompt in asked.prompts]
        results = [task.result() for task in tasks]
        judge(exchange)
        return reply.own_json({"results": results, "request_id": exchange.request_id, "trace_id": exchange.trace_id})


def failed(error: GatewayError, exchange: Exchange) -> dict[str, Any]:
    """What stands in the place of an answer that did not come."""
    body = speaker().error_body(reply.told(error, exchange))
    return {"error": body["error"]}


def judge(exchange: Exchange) -> None:
    """The outcome of a fan-out: a failure if none of its calls had an answer."""
    if exchange.outcomes and not exchange.outcomes.keys() & {Outcome.OK, Outcome.REFUSED}:
        g.outcome = exchange.outcomes.most_common(1)[0][0]
        g.error_type = g.outcome.value
