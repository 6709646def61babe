"""Answers: the provider's passed on, our own JSON, and errors in the provider's own shape."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterable
from dataclasses import replace
from typing import Any

import msgspec
from flask import Response, g

from observability.catalog import Outcome
from service.account.exchange import Exchange
from service.answer import Answer, Body
from service.errors import GatewayError
from service.pipeline import said
from service.upstream.provider import Said
from service.web.flask_loop import Stream, StreamedResponse
from service.web.routes import speaker

HOP_BY_HOP = frozenset(
    (
        b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection", b"te",
        b"trailer", b"transfer-encoding", b"upgrade",
    )
)  # fmt: skip
"""RFC 9110 section 7.6.1: they belong to one connection."""


_AT_ONCE = 65_536
"""Bytes of an answer of ours that are as good as handed on once they are there: they fit into the socket's buffers."""


def of_the_connection(headers: Iterable[tuple[bytes, bytes]]) -> frozenset[bytes]:
    """Names of the headers that belong to one connection: the usual ones, and those that `Connection` lists."""
    listed = [name for k, v in headers if k.lower() == b"connection" for name in v.lower().split(b",")]
    return HOP_BY_HOP.union(map(bytes.strip, listed)) if listed else HOP_BY_HOP


def current_exchange() -> Exchange:
    """The exchange of the request being served."""
    exchange = g.exchange
    assert isinstance(exchange, Exchange)
    return exchange


def passed_on(answer: Answer, exchange: Exchange) -> Response:
    """The provider's answer with its own headers and bytes, plus our ids and timings."""
    response = StreamedResponse(status=answer.status)
    response.headers.clear()
    dropped = of_the_connection(answer.headers)
    for name, value in answer.headers:
        if name.lower() not in dropped:
            response.headers.add(name.decode("latin-1"), value.decode("latin-1"))
    spent = exchange.lifetime.clock() - exchange.lifetime.started
    upstream, own = exchange.lifetime.upstream.seconds, spent - exchange.lifetime.waited.seconds
    response.headers.add("server-timing", f"upstream;dur={upstream * 1e3:.3f}, gateway;dur={own * 1e3:.3f}")
    response.stream_body = answer.body
    return _with_limits(response)


def own_json(value: Any, status: int = 200) -> Response:
    """A JSON answer of ours."""
    content = msgspec.json.encode(value)
    exchange: Exchange | None = g.get("exchange")
    if exchange is None or len(content) <= _AT_ONCE:
        return _with_limits(Response(content, status=status, content_type="application/json"))
    response = StreamedResponse(status=status, content_type="application/json")
    response.headers["content-length"] = str(len(content))
    pieces = _pieces(content, exchange, g.get("outcome", Outcome.OK), g.get("error_type"))
    response.stream_body = Body(pieces, None)
    return _with_limits(response)


async def _pieces(
    content: bytes, exchange: Exchange, outcome: Outcome, error_type: str | None
) -> AsyncGenerator[bytes]:
    """A large answer as its client takes it; the request ends before the last piece goes out."""
    start = 0
    while len(content) - start > _AT_ONCE:
        yield content[start : start + _AT_ONCE]
        start += _AT_ONCE
    exchange.end(outcome, error_type)
    yield content[start:]


def _with_limits(response: Response) -> Response:
    """Where the client has limits of its own, those are the ones that it must know: they replace the provider's."""
    exchange: Exchange | None = g.get("exchange")
    if exchange is not None and exchange.left:
        for name, value in speaker().limit_headers(exchange.left, time.time()):
            response.headers[name] = value
    return response


def own_error(error: GatewayError) -> Response:
    """An error of ours in the provider's shape, so that SDKs parse it; `details` has the trace id and the field."""
    exchange = g.get("exchange")
    response = own_json(speaker().error_body(told(error, exchange)), error.status)
    if exchange is not None:
        response.headers["request-id"] = exchange.request_id  # where SDKs look for it
    for name, value in error.headers.items():
        response.headers[name] = value
    if error.should_retry is not None:
        response.headers["x-should-retry"] = "true" if error.should_retry else "false"
    return response


def told(error: GatewayError, exchange: Exchange | None) -> Said:
    """An error of ours as a provider is to write it; Google's clients look for the time to come back in the body."""
    seconds = error.headers.get("retry-after", "")
    return replace(said(error, exchange), retry_after=float(seconds) if seconds.isdigit() else None)


async def drained(body: Stream) -> bytes:
    """All of a body, for answers that we read ourselves."""
    return b"".join([chunk async for chunk in body])
