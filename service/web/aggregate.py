"""Several named tasks in one request, each on a model of its own, run side by side; one more may combine their answers."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from flask import Flask, Response, request
from msgspec import Meta

from service.account.call import Call
from service.account.exchange import Exchange
from service.errors import BadRequest, GatewayError
from service.record import Kind, Usage
from service.web import reply
from service.web.ask import Answered, Asker, Options, Text, json_body, money, tokens
from service.web.channel import Channel
from service.web.generate import Limits, failed, judge
from service.web.native import decode

RULES = ("/aggregate",)
MAX_TASKS = 32
COMBINE = "combine"
"""Name of the final task: no other may have it."""

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


class Task(Options, kw_only=True, forbid_unknown_fields=True):
    """One task: a prompt, whom to ask, and the seconds that it may take."""

    prompt: Text
    timeout: Annotated[float, Meta(gt=0, le=3600)] | None = None


class Aggregate(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Body of `/aggregate`. `timeout` is for each task that has none of its own."""

    tasks: Annotated[dict[str, msgspec.Raw], Meta(min_length=1, max_length=MAX_TASKS)]
    combine: Task | None = None
    timeout: Annotated[float, Meta(gt=0, le=3600)] | None = None


def register(app: Flask, asker: Asker, limits: Limits) -> None:
    """Add the route."""
    app.add_url_rule("/aggregate", view_func=View(asker, limits).aggregate, methods=["POST"])


@dataclass(frozen=True, slots=True)
class _Round:
    """One request's calls: `timeout` is the usual one, `calls` all that were opened."""

    exchange: Exchange
    channel: Channel
    timeout: float | None
    calls: list[Call]


class View:
    """The view."""

    def __init__(self, asker: Asker, limits: Limits) -> None:
        self._asker = asker
        self._limits = limits

    async def aggregate(self) -> Response:
        """Every task's answer, or its `error`; the combination, the tokens and the cost of all."""
        exchange, channel = reply.current_exchange(), Channel.of(request.environ)
        asked: Aggregate = await json_body(channel, Aggregate)
        tasks = _tasks(asked)
        for path, task in (*((f"tasks.{name}", task) for name, task in tasks.items()), (COMBINE, asked.combine)):
            if task is not None:
                self._asker.chosen(task, path)
        exchange.kind = Kind.FAN_OUT
        rounds = _Round(exchange, channel, asked.timeout, [])
        try:
            answers = await self._all(rounds, tasks)
            body: dict[str, Any] = {"tasks": {name: _shown(answer, exchange) for name, answer in answers.items()}}
            if asked.combine is not None:
                body["combined"] = _shown(await self._combined(rounds, asked.combine, answers), exchange)
        finally:
            if len({call.provider for call in rounds.calls}) > 1:
                exchange.provider = None  # also when the client leaves before the end
        judge(exchange)
        usages = [usage for call in rounds.calls if (usage := call.says().usage) is not None]
        body |= {"usage": tokens(_sum(usages)), "cost": money([call.cost for call in rounds.calls])}
        return reply.own_json(body | {"request_id": exchange.request_id, "trace_id": exchange.trace_id})

    async def _all(self, rounds: _Round, tasks: Mapping[str, Task]) -> dict[str, Answered | GatewayError]:
        gate = self._asker.gate(self._limits.concurrency)

        async def one(name: str, task: Task) -> Answered | GatewayError:
            async with gate:
                return await self._one(rounds, task, task.prompt, name)

        async with asyncio.TaskGroup() as group:
            running = {name: group.create_task(one(name, task)) for name, task in tasks.items()}
        return {name: task.result() for name, task in running.items()}

    async def _one(self, rounds: _Round, task: Task, prompt: str, name: str) -> Answered | GatewayError:
        timeout = task.timeout or rounds.timeout
        try:
            return await self._asker.ask(
                rounds.exchange, rounds.channel, task, prompt, task=name, timeout=timeout, opened=rounds.calls
            )
        except GatewayError as error:
            return error

    async def _combined(
        self, rounds: _Round, task: Task, answers: Mapping[str, Answered | GatewayError]
    ) -> Answered | GatewayError:
        """Not asked for when an answer that it is made of did not come: it would be paid for, and mislead."""
        wanted = _named(task.prompt, answers) or list(answers)
        lacking = [name for name in wanted if not isinstance(answers[name], Answered)]
        if lacking:
            return Skipped(lacking)
        texts = {name: answer.text for name, answer in answers.items() if isinstance(answer, Answered)}
        return await self._one(rounds, task, combined(task.prompt, texts), COMBINE)


def _tasks(asked: Aggregate) -> dict[str, Task]:
    """Each task in its shape. Raises `BadRequest` that names the task, unless its name is none."""
    for name in asked.tasks:
        if not _NAME.fullmatch(name):
            raise BadRequest("tasks: names are 1 to 64 letters, digits, _ and -", field="tasks")
        if name == COMBINE:
            raise BadRequest(f"tasks.{COMBINE}: this name is taken by the final task", field=f"tasks.{COMBINE}")
    return {name: decode(raw, Task, f"tasks.{name}") for name, raw in asked.tasks.items()}


def _shown(answer: Answered | GatewayError, exchange: Exchange) -> dict[str, Any]:
    return answer.shown if isinstance(answer, Answered) else failed(answer, exchange)


class Skipped(GatewayError):
    """The final task was left out: tasks that it needs failed."""

    status = 424
    type = "api_error"
    error_type = "client_invalid"

    def __init__(self, lacking: list[str]) -> None:
        super().__init__("not asked for: these tasks have no answer: " + ", ".join(lacking))
        self.details = {"tasks": lacking}


_PLACEHOLDER = re.compile(r"\{([A-Za-z0-9_-]{1,64})\}")


def _named(prompt: str, names: Mapping[str, object]) -> list[str]:
    """The tasks that a prompt has a place for."""
    return [name for name in dict.fromkeys(_PLACEHOLDER.findall(prompt)) if name in names]


def combined(prompt: str, texts: Mapping[str, str]) -> str:
    """The final prompt: each `{name}` of a task becomes its text, in one pass; a prompt without any gets all of them
    appended, under their names. Other braces stay as they are."""
    if _named(prompt, texts):
        return _PLACEHOLDER.sub(lambda match: texts.get(match[1], match[0]), prompt)
    return prompt + "".join(f"\n\n## {name}\n\n{text}" for name, text in texts.items())


def _sum(usages: list[Usage]) -> Usage:
    """Tokens of all that told theirs; a kind that none of them told is not known."""

    def total(counts: list[int | None]) -> int | None:
        known = [count for count in counts if count is not None]
        return sum(known) if known else None

    return Usage(
        input_tokens=total([usage.input_tokens for usage in usages]),
        output_tokens=total([usage.output_tokens for usage in usages]),
        cache_read_tokens=total([usage.cache_read_tokens for usage in usages]),
        cache_write_tokens=total([usage.cache_write_tokens for usage in usages]),
    )
