"""The providers' own routes: bytes through in both directions, with only the credential and the trace context changed."""

from __future__ import annotations

import asyncio
import re
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import TypeVar

import msgspec
from flask import Flask, Response, g, request

from observability.catalog import OTHER, Attr
from service.account.call import Call
from service.account.exchange import Exchange
from service.answer import Answer
from service.batching import Batching
from service.errors import BadRequest, LengthTooLarge
from service.pipeline import Pipeline
from service.upstream.client import Prepared
from service.upstream.provider import Asked, Provider, Route
from service.web import links, reply, routes
from service.web.auth import CREDENTIAL_HEADERS, Caller, Headers
from service.web.channel import Channel, RawHeaders

T = TypeVar("T")

_NOT_FORWARDED = {b"host", b"expect", b"content-length", b"traceparent", b"tracestate", b"baggage"}


def register(
    app: Flask,
    providers: Sequence[Provider],
    pipelines: Mapping[str, Pipeline],
    first_byte_timeout: float,
    batching: Mapping[str, Batching],
) -> None:
    """Add every native route of every provider to `app`; `pipelines` and `batching` are keyed by the provider's name."""
    app.extensions[routes.KEY] = providers
    for rule, provider, route in routes.served(providers):
        native = Native(provider, pipelines[provider.name], first_byte_timeout, batching.get(provider.name))
        app.add_url_rule(rule, endpoint=f"native{rule}", view_func=native.view(route), methods=list(route.methods))


class Native:
    """The views of one provider."""

    def __init__(
        self, provider: Provider, pipeline: Pipeline, first_byte_timeout: float, batching: Batching | None
    ) -> None:
        self._provider = provider
        self._pipeline = pipeline
        self._batching = batching
        self._first_byte_timeout = first_byte_timeout

    def view(self, route: Route) -> Callable[..., Awaitable[Response]]:
        """The view of one route."""

        async def view(**path: str) -> Response:
            return await self._forward(route, **path)

        return view

    async def _forward(self, route: Route, model: str | None = None, batch_id: str | None = None, **_: str) -> Response:
        channel, exchange = Channel.of(request.environ), reply.current_exchange()
        exchange.provider = self._provider.name
        credential = admitted().credential(self._provider)
        body, asked = await self._body(route, channel)
        model = model or (asked.model if asked is not None else None)
        exchange.model = None if model is None else _shown(model)
        exchange.streaming = route.streams or bool(asked and asked.stream)
        call = self._open(exchange, route, asked, channel)
        call.buys = route.buys and request.method == "POST"
        prepared = Prepared(
            request.method,
            routes.upstream_target(channel.target, self._provider),
            forwarded(channel.headers, credential, plain=exchange.streaming or route.links, body=body),
            body,
            first_byte_timeout(channel.headers, self._first_byte_timeout),
        )
        answer = await self._pipeline.run(exchange, call, prepared, large=route.large)
        if route.links:
            answer = await self._of_batches(answer, channel)
        elif route.large and batch_id and self._batching is not None and request.method == "GET":
            answer = self._batching.watched(answer, exchange, batch_id)
        return reply.passed_on(answer, exchange)

    async def _of_batches(self, answer: Answer, channel: Channel) -> Answer:
        body = await reply.drained(answer.body)
        if self._batching is not None and answer.status < 300:
            self._batching.noted(body)
        prefix = routes.prefix_of(channel.target, self._provider)
        return links.lead_back(answer, body, links.base_url(channel.headers, request.scheme, prefix))

    async def _body(self, route: Route, channel: Channel) -> tuple[bytes | AsyncIterator[bytes], Asked | None]:
        if route.streamed and request.method == "POST":
            channel.check_length(route.limit)
            return channel.stream(route.limit), None
        body = await channel.read(route.limit)
        return body, None if route.asks is None else await _peek(body, channel.headers, route.limit, route.asks)

    def _open(self, exchange: Exchange, route: Route, asked: Asked | None, channel: Channel) -> Call:
        attributes: dict[str, str | int | None] = {**_claude_code(channel.headers)}
        attributes[Attr.REQUEST_MAX_TOKENS] = None if asked is None else asked.max_tokens
        call = exchange.open_call(
            self._provider.name, route.operation, exchange.model, streaming=exchange.streaming, attributes=attributes
        )
        call.lane = self._provider.lane(asked)
        return call


def admitted() -> Caller:
    """The caller that the gate admitted."""
    caller = g.caller
    assert isinstance(caller, Caller)
    return caller


def forwarded(
    headers: RawHeaders, credential: Headers, *, plain: bool, body: bytes | AsyncIterator[bytes]
) -> list[tuple[bytes, bytes]]:
    """The headers that go up: the client's, less its connection's, its trace context and its credential, plus ours.

    `Accept-Encoding` is narrowed to what we can read for accounting: gzip, or identity if `plain`: an error event
    cannot be put into a compressed stream, nor an address be changed in it.
    """
    dropped = _NOT_FORWARDED | CREDENTIAL_HEADERS | reply.of_the_connection(headers)
    out = [(k, v) for k, v in headers if k not in dropped and k != b"accept-encoding"]
    accepted = b",".join(v for k, v in headers if k == b"accept-encoding")
    if accepted:
        out.append((b"accept-encoding", b"gzip" if _takes_gzip(accepted) and not plain else b"identity"))
    if not isinstance(body, bytes):
        out += [(k, v) for k, v in headers if k == b"content-length"]
    return [*out, *credential]


def _takes_gzip(accepted: bytes) -> bool:
    """Whether an `Accept-Encoding` names gzip, and not with a weight of 0."""
    for part in accepted.lower().split(b","):
        coding, _, weight = part.replace(b" ", b"").partition(b";")
        if coding == b"gzip":
            return weight.rstrip(b"0.") != b"q="
    return False


def first_byte_timeout(headers: RawHeaders, ours: float) -> float:
    """Seconds to wait for the answer's headers: ours, never longer than the client's own `x-stainless-timeout` (the SDKs of
    Anthropic and OpenAI) or `x-server-timeout` (Google's)."""
    given = [v for k, v in headers if k in (b"x-stainless-timeout", b"x-server-timeout")]
    try:
        theirs = [float(text) for text in given]
    except ValueError:
        return ours
    return min([ours, *(seconds for seconds in theirs if seconds > 0)])


async def _peek(body: bytes, headers: RawHeaders, limit: int, asks: type[Asked]) -> Asked | None:
    """What is read of a JSON body. None when it is compressed in a way we cannot read: the provider will tell."""
    encoding = next((v.strip().lower() for k, v in headers if k == b"content-encoding"), b"identity")
    if encoding == b"gzip":
        # However short it is, it may hold a thousand times as much: not on the loop.
        return await asyncio.to_thread(lambda: decode(_inflated(body, limit), asks))
    return decode(body, asks) if encoding == b"identity" else None


def _inflated(body: bytes, limit: int) -> bytes:
    inflate = zlib.decompressobj(wbits=31)
    try:
        found = inflate.decompress(body, limit + 1)
    except zlib.error:
        raise BadRequest("the body is not the gzip that Content-Encoding says", field="Content-Encoding") from None
    if len(found) > limit:
        raise LengthTooLarge(f"the request body, inflated, is over this route's limit of {limit} bytes")
    return found


_MODEL = re.compile(r"[\x21-\x7e]{1,128}")


def _shown(model: str) -> str:
    """The model as telemetry tells it: what is no name (a prompt in the wrong place, a megabyte) is not repeated."""
    return model if _MODEL.fullmatch(model) else OTHER


_NAMED = re.compile(r"(?:missing required|contains unknown) field `(.+)`")


def decode(body: bytes | msgspec.Raw, kind: type[T], path: str = "") -> T:
    """Typed JSON. Raises `BadRequest` that names the field, below `path`; never quotes the body."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        what, _, inside = str(error).partition(" - at `$")
        named = _NAMED.search(what)
        field = ".".join(filter(None, (path, inside.strip("`."), named and named[1])))[:256] or "body"
        what = "not one of the values allowed" if what.startswith("Invalid enum value") else what[:256]
        raise BadRequest(f"{field}: {what}", field=field) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise BadRequest("the request body is not valid JSON, or nested too deep", field="body") from None


def _claude_code(headers: RawHeaders) -> dict[str, str]:
    """Claude Code's attribution headers, for spans only: they are unbounded, so never labels."""
    wanted = {b"x-claude-code-session-id": Attr.CLAUDE_CODE_SESSION, b"x-claude-code-agent-id": Attr.CLAUDE_CODE_AGENT}
    return {wanted[k]: v.decode("latin-1")[:128] for k, v in headers if k in wanted}
