"""The SERVER span of a request, from its first byte in to its last byte out, current while it is served.

It is the one that `opentelemetry-instrumentation-flask` would make (a test runs both and compares), without what that costs:
every attribute set twice, the address built anew for each check, metrics that nobody reads. One thing is different on
purpose: `server.address` and `server.port` are what the client named (`Host`), apart, as the HTTP conventions have it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from flask import g, request
from opentelemetry import context, propagate, trace
from opentelemetry.context import Context
from opentelemetry.propagators.textmap import Getter
from opentelemetry.trace import Span, SpanKind, StatusCode, TracerProvider

from observability import tracing
from observability.catalog import Attr, Http
from service.web import ops
from service.web.channel import Channel
from service.web.flask_loop import LoopFlask

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

    from service.account.exchange import Exchange

_KEY = "claude_proxy.server_span"
_COPIED = (
    ("wsgi.url_scheme", Http.URL_SCHEME),
    ("PATH_INFO", Http.URL_PATH),
    ("QUERY_STRING", Http.URL_QUERY),
    ("REMOTE_ADDR", Http.CLIENT_ADDRESS),
    ("HTTP_USER_AGENT", Http.USER_AGENT),
)


def install(app: LoopFlask, provider: TracerProvider) -> None:
    """A span around every request but the operators'. Call it before other hooks are added: its end must be the last."""
    tracer = provider.get_tracer("claude-proxy")
    inner = app.wsgi_app

    def begin() -> None:
        environ, rule = request.environ, request.url_rule
        route = None if rule is None else rule.rule
        if route in ops.RULES:  # by what was found, as the exchange is opened: a path is written in many ways
            return
        parent = _parent(environ)
        started = Channel.of(environ).lifetime.started_ns
        name = _name(environ["REQUEST_METHOD"], route)
        span = tracer.start_span(name, parent, SpanKind.SERVER, _attributes(environ, route), start_time=started)
        environ[_KEY] = span, context.attach(trace.set_span_in_context(span, parent))

    def end(error: BaseException | None) -> None:
        span, token = request.environ.pop(_KEY, (None, None))
        if span is None:
            return
        if isinstance(error, Exception):
            tracing.tell_exception(span, error)
        context.detach(token)
        span.end()

    def traced(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        def start(status: str, headers: list[tuple[str, str]], *exc_info: Any) -> Callable[[bytes], object]:
            if _KEY in environ:
                _tell_status(environ[_KEY][0], int(status[:3]))
            return start_response(status, headers, *exc_info)

        return inner(environ, start)

    app.before_request(begin)
    app.teardown_request(end)
    app.wsgi_app = traced  # type: ignore[method-assign]


def _name(method: str, route: str | None) -> str:
    """Without a route no path: that is whatever the client wrote."""
    method = "HTTP" if method == "_OTHER" else method
    return method if route is None else f"{method} {route}"


def _attributes(environ: WSGIEnvironment, route: str | None) -> dict[str, str | int]:
    """What is known when the request begins; empty is absent."""
    found: dict[str, str | int] = {Http.METHOD: environ["REQUEST_METHOD"]}
    for key, attribute in _COPIED:
        if value := environ.get(key):
            found[attribute] = value
    if route is not None:
        found[Http.ROUTE] = route
    if version := environ.get("SERVER_PROTOCOL", "").removeprefix("HTTP/"):
        found[Http.PROTOCOL_VERSION] = version
    address, port = _server(environ.get("HTTP_HOST", ""), environ.get("SERVER_PORT", ""))
    if address:
        found[Attr.SERVER_ADDRESS] = address
    if port is not None:
        found[Attr.SERVER_PORT] = port
    if remote_port := environ.get("REMOTE_PORT"):
        found[Http.CLIENT_PORT] = int(remote_port)
    return found


@lru_cache(maxsize=64)
def _server(host: str, port: str) -> tuple[str, int | None]:
    """Name and port of a `Host`; `port` is where we listen, for one that names none."""
    name, _, number = host.rpartition(":")
    if not name or not _is_port(number) or (":" in name and not name.endswith("]")):
        name, number = host, port
    return name.strip("[]"), int(number) if _is_port(number) else None


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 6


def _parent(environ: WSGIEnvironment) -> Context:
    """The caller's trace, if it sent one; nothing else of the thread's or task's context."""
    return propagate.extract(environ, Context(), _headers) if "HTTP_TRACEPARENT" in environ else Context()


class _Headers(Getter["WSGIEnvironment"]):
    def get(self, carrier: WSGIEnvironment, key: str) -> list[str] | None:
        value = carrier.get("HTTP_" + key.upper().replace("-", "_"))
        return None if value is None else [value]

    def keys(self, carrier: WSGIEnvironment) -> list[str]:
        return [key[5:].lower().replace("_", "-") for key in carrier if key.startswith("HTTP_")]


_headers = _Headers()


def _tell_status(span: Span, status: int) -> None:
    span.set_attribute(Http.STATUS, status)
    if status >= 500:
        exchange: Exchange | None = g.get("exchange")
        word = exchange.error_type if exchange is not None else None
        span.set_attribute(Attr.ERROR_TYPE, word or str(status))
        span.set_status(StatusCode.ERROR)
