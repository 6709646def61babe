"""One prompt to any provider, in its own words, and its answer in ours: what the routes of our own are made of."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from flask import request
from msgspec import Meta

from observability.catalog import Attr
from service.account.call import Call
from service.account.exchange import Exchange
from service.answer import Answer
from service.errors import AnswerTimeout, BadRequest, GatewayError, UnsupportedMedia
from service.pipeline import Pipeline
from service.record import Certainty, Cost, Usage
from service.upstream.client import Prepared
from service.upstream.provider import MB, Generated, Prompt, Provider
from service.web import reply
from service.web.channel import Channel
from service.web.native import admitted, decode, first_byte_timeout

LIMIT = 32 * MB
"""Bytes of a body on a route of ours."""

Text = Annotated[str, Meta(min_length=1)]


class Options(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Whom to ask, and how."""

    provider: str | None = None
    model: Annotated[str, Meta(min_length=1, max_length=128, pattern=r"^[\x21-\x7e]+$")] | None = None
    max_tokens: Annotated[int, Meta(ge=1, le=1_000_000)] = 1024
    system: Text | None = None


_TYPES = {
    400: "invalid_request_error", 401: "authentication_error", 402: "billing_error", 403: "permission_error",
    404: "not_found_error", 413: "request_too_large", 429: "rate_limit_error", 503: "overloaded_error",
    504: "timeout_error", 529: "overloaded_error",
}  # fmt: skip
"""Claude's error types, which routes of our own use whoever was asked; any other status is its api_error."""


class ProviderSaidNo(GatewayError):
    """The provider answered with an error: its status and message, in our own routes' shape."""

    source = "provider"

    def __init__(self, provider: Provider, answer: Answer, body: bytes) -> None:
        super().__init__(provider.error_message(body) or f"{provider.title} answered {answer.status}")
        usual = "api_error" if answer.status >= 500 else "invalid_request_error"
        self.status = answer.status  # type: ignore[misc]  # an instance's own, where the class has its kind's
        self.type = _TYPES.get(answer.status, usual)  # type: ignore[misc]
        kept = ("retry-after", "retry-after-ms", "x-should-retry")
        found = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in answer.headers}
        self.headers = {name: found[name] for name in kept if name in found}  # type: ignore[misc]


@dataclass(frozen=True, slots=True)
class Answered:
    """What one call gave: `shown` is its answer as our routes show it."""

    shown: dict[str, Any]
    text: str
    usage: Usage


class _Bound:
    """Ends a call that takes longer than `seconds` (None: it may) as a timeout, wherever it is. Raises `AnswerTimeout`."""

    def __init__(self, call: Call, seconds: float | None) -> None:
        self._call, self._seconds = call, seconds
        self._timer: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> None:
        if self._seconds is not None:
            task = asyncio.current_task()
            assert task is not None
            self._timer = asyncio.get_running_loop().call_later(self._seconds, self._expire, task)

    def _expire(self, task: asyncio.Task[Any]) -> None:
        self._call.out_of_time = True
        task.cancel()

    async def __aexit__(self, kind: type[BaseException] | None, *_error: object) -> None:
        if self._timer is None:
            return
        self._timer.cancel()
        task = asyncio.current_task()
        if self._call.out_of_time and task is not None and not task.uncancel() and kind is asyncio.CancelledError:
            raise AnswerTimeout(f"the task took longer than its timeout of {self._seconds:g} s") from None


class Asker:
    """Asks. `models` are the providers' default models, `timeout` seconds until an answer begins; `at_a_time` says how many
    calls a client may have under way (None: any number)."""

    def __init__(
        self,
        providers: Sequence[Provider],
        pipelines: Mapping[str, Pipeline],
        models: Mapping[str, str],
        timeout: float,
        at_a_time: Callable[[str | None], int | None],
    ) -> None:
        self._at_a_time = at_a_time
        self._by_name = {short_name(provider): provider for provider in providers}
        self._pipelines = pipelines
        self._models = models
        self._timeout = timeout

    def gate(self, most: int) -> asyncio.Semaphore:
        """What keeps the calls of one fan-out to `most` at a time, or to what its client may have if that is less."""
        return asyncio.Semaphore(min(most, self._at_a_time(admitted().name) or most))

    def chosen(self, options: Options, path: str = "") -> tuple[Provider, str]:
        """Provider and model. Raises `BadRequest` for a provider that is not there, `NotFound` for one without a key."""
        name = options.provider or next(iter(self._by_name))
        provider = self._by_name.get(name)
        if provider is None:
            field = f"{path}.provider" if path else "provider"
            raise BadRequest(f"{field}: not one of the values allowed ({', '.join(self._by_name)})", field=field)
        admitted().credential(provider)
        return provider, options.model or self._models[provider.name]

    async def ask(
        self,
        exchange: Exchange,
        channel: Channel,
        options: Options,
        text: str,
        *,
        task: str | None = None,
        timeout: float | None = None,
        opened: list[Call] | None = None,
    ) -> Answered:
        """One call. `task` is its name among others, `timeout` its own bound in seconds; it is added to `opened`. Raises
        `GatewayError`."""
        provider, model = self.chosen(options)
        attributes: dict[str, str | int | None] = {Attr.REQUEST_MAX_TOKENS: options.max_tokens, Attr.TASK: task}
        call = exchange.open_call(provider.name, provider.operation, model, streaming=False, attributes=attributes)
        if opened is not None:
            opened.append(call)
        post = provider.post(Prompt(text, model, options.max_tokens, options.system))
        patience = min(first_byte_timeout(channel.headers, self._timeout), timeout or self._timeout)
        wishes = [each for each in channel.headers if each[0] == b"cache-control"]  # as native routes pass them on
        headers = [(b"content-type", b"application/json"), *wishes, *post.headers, *admitted().credential(provider)]
        prepared = Prepared("POST", post.target, headers, msgspec.json.encode(post.body), patience)
        async with _Bound(call, timeout):
            answer = await self._pipelines[provider.name].run(exchange, call, prepared, check=provider.generated)
            body = await reply.drained(answer.body)
        if answer.status >= 400:
            raise ProviderSaidNo(provider, answer, body)
        generated, usage = provider.generated(body), call.says().usage or Usage()
        return Answered(_shown(generated, usage, call, exchange, provider), "".join(generated.texts), usage)


def short_name(provider: Provider) -> str:
    """As our own routes call a provider: its prefix."""
    return provider.prefix.strip("/")


async def json_body(channel: Channel, kind: type[Any]) -> Any:
    """The request's body in its shape. Raises `BadRequest` that names the field."""
    if request.mimetype != "application/json":
        raise UnsupportedMedia("Content-Type: expected application/json", field="Content-Type")
    return decode(await channel.read(LIMIT), kind)


def tokens(usage: Usage) -> dict[str, int | None]:
    """Usage as our routes show it."""
    return {
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "cache_read_tokens": usage.cache_read_tokens,
        "cache_write_tokens": usage.cache_write_tokens,
    }


def money(costs: Sequence[Cost | None]) -> dict[str, Any]:
    """What calls cost together, in US dollars, as far as it is known; the certainty is that of the least certain."""
    known = [cost for cost in costs if cost is not None]
    priced = [cost for cost in known if cost.certainty is not Certainty.UNPRICED]
    certainty = max((cost.certainty for cost in known), key=list(Certainty).index, default=Certainty.UNPRICED)
    return {"usd": sum(cost.total for cost in priced) / 1e9 if priced else None, "certainty": certainty.value}


def _shown(generated: Generated, usage: Usage, call: Call, exchange: Exchange, provider: Provider) -> dict[str, Any]:
    again = {} if call.cache is None else {"cache": call.cache}
    return {
        "id": generated.id,
        "provider": short_name(provider),
        "model": generated.model or call.model,
        "content": [{"type": "text", "text": text} for text in generated.texts],
        "stop_reason": generated.stop_reason,
        "usage": tokens(usage),
        "cost": money([call.cost]),
        "trace_id": exchange.trace_id,
        **again,
    }
