"""Claude's own routes: bytes through in both directions, with only the credential and the trace context changed."""

from __future__ import annotations

import asyncio
import re
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import unquote

import msgspec
from flask import Flask, Response, g, request

from observability.catalog import OTHER, Attr
from service.account.exchange import Call, Exchange
from service.errors import BadRequest, LengthTooLarge
from service.pipeline import Pipeline
from service.upstream import anthropic
from service.upstream.client import Prepared
from service.web import links, reply
from service.web.auth import CREDENTIAL_HEADERS, Caller
from service.web.channel import Channel, RawHeaders

T = TypeVar("T")
MB = 1024 * 1024
PREFIX = "/anthropic"


@dataclass(frozen=True, slots=True)
class Route:
    """One path of the API. `limit` bounds the body in bytes (the API's own limits); `operation` is set for inference.

    `streamed`: the body is passed through as it comes, never held, so it can be sent only once. `large`: so is the answer.
    `links`: the answer says where results are, and that must be here.
    """

    rule: str
    methods: tuple[str, ...]
    limit: int = 0
    operation: str | None = None
    peeks: bool = False
    streamed: bool = False
    large: bool = False
    links: bool = False


ROUTES = (
    Route("/v1/messages", ("POST",), 32 * MB, operation="chat", peeks=True),
    Route("/v1/messages/count_tokens", ("POST",), 32 * MB, peeks=True),
    Route("/v1/messages/batches", ("GET", "POST"), 256 * MB, streamed=True, links=True),
    Route("/v1/messages/batches/<batch_id>", ("GET", "DELETE"), links=True),
    Route("/v1/messages/batches/<batch_id>/cancel", ("POST",), MB, links=True),
    Route("/v1/messages/batches/<batch_id>/results", ("GET",), large=True),
    Route("/v1/models", ("GET",)),
    Route("/v1/models/<model_id>", ("GET",)),
    Route("/v1/files", ("GET", "POST"), 500 * MB, streamed=True),
    Route("/v1/files/<file_id>", ("GET", "DELETE")),
    Route("/v1/files/<file_id>/content", ("GET",), large=True),
)

RULES = frozenset(prefix + route.rule for route in ROUTES for prefix in ("", PREFIX))
"""Every rule served here: values of the `http_route` label."""

_NOT_FORWARDED = {b"host", b"expect", b"content-length", b"traceparent", b"tracestate", b"baggage"}


_PLAIN = re.compile(r"(?!\.{1,2}$)[^/\\\x00-\x1f\x7f]+")
"""A path segment, decoded: no separator, no step up, no control character."""


class _Peek(msgspec.Struct):
    """The only fields of a body that are decoded here."""

    model: str
    stream: bool = False
    max_tokens: int | None = None


def register(app: Flask, pipeline: Pipeline, first_byte_timeout: float) -> None:
    """Add every native route to `app`, once bare and once under `/anthropic`."""
    native = Native(pipeline, first_byte_timeout)
    for route in ROUTES:
        for prefix in ("", PREFIX):
            app.add_url_rule(
                prefix + route.rule,
                endpoint=f"native{prefix}{route.rule}",
                view_func=native.view(route),
                methods=list(route.methods),
            )


class Native:
    """The views."""

    def __init__(self, pipeline: Pipeline, first_byte_timeout: float) -> None:
        self._pipeline = pipeline
        self._first_byte_timeout = first_byte_timeout

    def view(self, route: Route) -> Callable[..., Awaitable[Response]]:
        """The view of one route."""

        async def view(**_path: str) -> Response:
            return await self._forward(route)

        return view

    async def _forward(self, route: Route) -> Response:
        channel, exchange = Channel.of(request.environ), reply.current_exchange()
        exchange.provider = anthropic.NAME
        body, peek = await self._body(route, channel)
        exchange.model = None if peek is None else _shown(peek.model)
        exchange.streaming = bool(peek and peek.stream)
        call = self._open(exchange, route, peek, channel)
        prepared = Prepared(
            request.method,
            upstream_target(channel.target),
            forwarded(channel.headers, admitted(), plain=exchange.streaming or route.links, body=body),
            body,
            first_byte_timeout(channel.headers, self._first_byte_timeout),
        )
        answer = await self._pipeline.run(exchange, call, prepared, large=route.large)
        if route.links and (base := links.base_url(channel.headers, request.scheme, _prefix(channel.target))):
            answer = await links.lead_back(answer, base)
        return reply.passed_on(answer, exchange)

    async def _body(self, route: Route, channel: Channel) -> tuple[bytes | AsyncIterator[bytes], _Peek | None]:
        if route.streamed and request.method == "POST":
            channel.check_length(route.limit)
            return channel.stream(route.limit), None
        body = await channel.read(route.limit)
        return body, await _peek(body, channel.headers, route.limit) if route.peeks else None

    def _open(self, exchange: Exchange, route: Route, peek: _Peek | None, channel: Channel) -> Call:
        attributes: dict[str, str | int | None] = {**_claude_code(channel.headers)}
        attributes[Attr.REQUEST_MAX_TOKENS] = None if peek is None else peek.max_tokens
        return exchange.open_call(
            anthropic.NAME, route.operation, exchange.model, streaming=exchange.streaming, attributes=attributes
        )


def admitted() -> Caller:
    """The caller that the gate admitted."""
    caller = g.caller
    assert isinstance(caller, Caller)
    return caller


def forwarded(
    headers: RawHeaders, caller: Caller, *, plain: bool, body: bytes | AsyncIterator[bytes]
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
    return [*out, *caller.credential]


def upstream_target(target: str) -> str:
    """Path and query as they go up: as written, less our prefix. Raises `BadRequest` for a path that is not plainly one
    under `/v1/`: routes match what is decoded, and only what is written may decide where our credential goes."""
    path, mark, query = target.removeprefix(_prefix(target)).partition("?")
    first, *segments = path.split("/")[1:] if path.startswith("/") else [""]
    plain = all(_PLAIN.fullmatch(unquote(s)) for s in (segments[:-1] if segments and not segments[-1] else segments))
    if first != "v1" or not segments or not plain or "#" in target:
        raise BadRequest("the path is not one of the API's, plainly written", field="path")
    return path + mark + query


def _prefix(target: str) -> str:
    return PREFIX if target.startswith(PREFIX + "/") else ""


def _takes_gzip(accepted: bytes) -> bool:
    """Whether an `Accept-Encoding` names gzip, and not with a weight of 0."""
    for part in accepted.lower().split(b","):
        coding, _, weight = part.replace(b" ", b"").partition(b";")
        if coding == b"gzip":
            return weight.rstrip(b"0.") != b"q="
    return False


def first_byte_timeout(headers: RawHeaders, ours: float) -> float:
    """Seconds to wait for the answer's headers: ours, never longer than the client's own `x-stainless-timeout`."""
    text = next((v for k, v in headers if k == b"x-stainless-timeout"), b"")
    try:
        theirs = float(text)
    except ValueError:
        return ours
    return min(ours, theirs) if theirs > 0 else ours


async def _peek(body: bytes, headers: RawHeaders, limit: int) -> _Peek | None:
    """Model and stream flag of a JSON body. None when it is compressed in a way we cannot read: the provider will tell."""
    encoding = next((v.strip().lower() for k, v in headers if k == b"content-encoding"), b"identity")
    if encoding == b"gzip":
        # However short it is, it may hold a thousand times as much: not on the loop.
        return await asyncio.to_thread(lambda: decode(_inflated(body, limit), _Peek))
    return decode(body, _Peek) if encoding == b"identity" else None


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


def decode(body: bytes, kind: type[T]) -> T:
    """Typed JSON. Raises `BadRequest` that names the field; never quotes the body."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        what, _, path = str(error).partition(" - at `$")
        named = _NAMED.search(what)
        field = ".".join(filter(None, (path.strip("`."), named and named[1])))[:128] or "body"
        what = "not one of the values allowed" if what.startswith("Invalid enum value") else what[:256]
        raise BadRequest(f"{field}: {what}", field=field) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise BadRequest("the request body is not valid JSON, or nested too deep", field="body") from None


def _claude_code(headers: RawHeaders) -> dict[str, str]:
    """Claude Code's attribution headers, for spans only: they are unbounded, so never labels."""
    wanted = {b"x-claude-code-session-id": Attr.CLAUDE_CODE_SESSION, b"x-claude-code-agent-id": Attr.CLAUDE_CODE_AGENT}
    return {wanted[k]: v.decode("latin-1")[:128] for k, v in headers if k in wanted}
