"""The SERVER span is Flask's instrumentation's: both run over the same requests, by both doors, and are compared.

What is different on purpose stands in `_put_right`: everything else must be equal.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from flask import g, request
from opentelemetry.instrumentation.flask import _ENVIRON_STARTTIME_KEY, FlaskInstrumentor
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.trace import Span, SpanKind

from observability.catalog import Attr, Http
from observability.scrub import Scrubber
from service import settings
from service.app import ROUTES, Gateway, create_gateway
from service.asgi import Bridge
from service.web import ops, server_span
from service.web.channel import Channel
from service.web.flask_loop import LoopFlask, background
from tests.support import claude
from tests.support.inside import telemetry
from tests.support.processes import nobody
from tests.support.upstream import Script, Upstream, answer, json_answer, reset

CLEAN = Scrubber(ROUTES).clean
SAMPLED = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}


def install_instrumentation(app: LoopFlask, provider: TracerProvider) -> None:
    """What the product did before its span was made by hand."""

    def start_with_the_first_byte() -> None:
        request.environ[_ENVIRON_STARTTIME_KEY] = Channel.of(request.environ).lifetime.started_ns

    def name_without_path(span: Span, _environ: Any) -> None:
        if request.url_rule is None:
            span.update_name("HTTP" if request.method == "_OTHER" else request.method)

    def keep_error_type(span: Span, status: str, _headers: Any) -> None:
        exchange = g.get("exchange")
        if exchange is not None and exchange.error_type is not None and status.startswith("5"):
            span.set_attribute(Attr.ERROR_TYPE, exchange.error_type)

    app.before_request(start_with_the_first_byte)
    FlaskInstrumentor.instrument_app(  # type: ignore[no-untyped-call]
        app,
        tracer_provider=provider,
        meter_provider=NoOpMeterProvider(),
        excluded_urls=",".join(rf"^[^/]*//[^/]+{rule}(\?|$)" for rule in ops.RULES),
        enable_commenter=False,
        request_hook=name_without_path,
        response_hook=keep_error_type,
    )


_answers = json_answer(claude.MESSAGE)


@dataclass(frozen=True)
class Asked:
    """One request and what the provider does with it (None: nobody is there). `leave`: the client goes after the headers."""

    method: str = "POST"
    target: str = "/v1/messages"
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = json.dumps(claude.ASKED).encode()
    script: Script | None = _answers
    host: str = "localhost:8000"
    leave: bool = False
    status: int = 200
    first_byte: str = "30"
    idle: str = "30"

    @property
    def sent(self) -> list[tuple[str, str]]:
        """Every header."""
        own = {"content-type": "application/json", "user-agent": "Anthropic/Python 2.12.0"} | self.headers
        length = {"content-length": str(len(self.body))} if self.body else {}
        return list((({"host": self.host} if self.host else {}) | own | length).items())


class Ended(SpanProcessor):
    """Every span that ended, sampled or not."""

    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []

    def on_end(self, span: ReadableSpan) -> None:
        self.spans.append(span)


Door = Callable[[Gateway, Asked], None]


def by_wsgi(gateway: Gateway, asked: Asked) -> None:
    """Flask's test client: a WSGI server's environ, the background loop."""
    client = gateway.app.test_client()
    client.open(asked.target, method=asked.method, headers=asked.sent, data=asked.body).close()
    background().run(gateway.client.aclose())


def by_asgi(gateway: Gateway, asked: Asked) -> None:
    """The bridge, on a loop of its own."""

    async def serve() -> None:
        inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        inbox.put_nowait({"type": "http.request", "body": asked.body, "more_body": False})

        async def send(message: Any) -> None:
            if asked.leave and message.get("body"):
                inbox.put_nowait({"type": "http.disconnect"})
                await asyncio.sleep(10)  # until the bridge's cancellation comes

        path, _, query = asked.target.partition("?")
        scope = {
            "type": "http", "http_version": "1.1", "method": asked.method, "scheme": "http", "path": path,
            "raw_path": path.encode(), "query_string": query.encode(), "client": ("192.0.2.7", 5000),
            "server": ("127.0.0.1", 8000), "headers": [(k.encode(), v.encode()) for k, v in asked.sent],
        }  # fmt: skip
        await Bridge(gateway)(scope, inbox.get, send)
        await gateway.client.aclose()

    asyncio.run(serve())


@contextmanager
def _provider(script: Script | None) -> Iterator[str]:
    if script is None:
        with nobody() as url:
            yield url
        return
    with Upstream(script) as upstream:
        yield upstream.url


def _told(asked: Asked, door: Door, url: str) -> list[ReadableSpan]:
    """The SERVER spans of one request, as they leave."""
    with telemetry() as told:
        environ = {
            "ANTHROPIC_API_KEY": "sk-ant-provider", "CLAUDE_PROXY_ANTHROPIC_BASE_URL": url,
            "CLAUDE_PROXY_FIRST_BYTE_TIMEOUT": asked.first_byte, "CLAUDE_PROXY_IDLE_TIMEOUT": asked.idle,
        }  # fmt: skip
        ended = Ended()
        told.telemetry.tracing.provider.add_span_processor(ended)
        door(create_gateway(settings.load(environ), told.telemetry), asked)
        spans = [CLEAN(span) for span in ended.spans]
        servers = [span for span in spans if span.kind is SpanKind.SERVER]
        own = {span.context.span_id for span in servers}
        assert all(s.parent is not None and s.parent.span_id in own for s in spans if s.name.startswith("chat "))
        return servers


def _equal(span: ReadableSpan) -> tuple[Any, ...]:
    """What is to be equal of a span, but for its random ids."""
    attributes = dict(span.attributes or {})
    attributes.pop(Attr.REQUEST_ID, None)
    events = [(event.name, dict(event.attributes or {})) for event in span.events]
    ids = (span.context.trace_id, span.context.trace_state) if span.parent is not None else None
    return span.name, span.kind, span.parent, span.status.status_code, attributes, events, ids, span.context.trace_flags


def _put_right(attributes: dict[str, Any]) -> None:
    """The instrumentation takes `Host` whole for `server.address`, and where we listen for `server.port`; the conventions
    want what the client named, apart."""
    host = attributes.get(Attr.SERVER_ADDRESS)
    if host is not None and host.removesuffix(":8000") != host:
        attributes[Attr.SERVER_ADDRESS] = host.removesuffix(":8000").strip("[]")
        attributes[Attr.SERVER_PORT] = 8000


def _stream(connection: Any, _seen: Any) -> None:
    connection.sendall(claude.SSE_HEAD + claude.chunk(claude.STREAM) + claude.LAST_CHUNK)


def _endless(connection: Any, _seen: Any) -> None:
    connection.sendall(claude.SSE_HEAD + claude.chunk(claude.start() + claude.BLOCK + claude.delta("Hel")))


def _bare(connection: Any, _seen: Any) -> None:
    connection.sendall(answer("200 OK", b"", "content-type: application/json"))


def _says(status: str, *headers: str) -> Script:
    return lambda connection, seen: connection.sendall(answer(status, claude.error("api_error"), *headers))


ASKED_STREAM = json.dumps(claude.ASKED | {"stream": True}).encode()
CASES = {
    "ok": Asked(),
    "stream": Asked(body=ASKED_STREAM, script=_stream),
    "a stream whose provider falls silent": Asked(body=ASKED_STREAM, script=_endless, idle="0.3"),
    "query": Asked(target="/v1/messages?beta=true&key=sk-ant-abcdefgh"),
    "get": Asked("GET", "/v1/models/claude-opus-5-5", body=b""),
    "head": Asked("HEAD", "/v1/models", body=b"", script=_bare),
    "options": Asked("OPTIONS", body=b""),
    "generate": Asked(target="/generate", body=b'{"prompt": "hi", "max_tokens": 5}'),
    "unknown route": Asked("GET", "/sk-ant-abcdefgh/nowhere", body=b"", status=404),
    "wrong method": Asked("DELETE", body=b"", status=405),
    "unknown method": Asked("BREW", body=b"", status=405),
    "not json": Asked(body=b"{", status=400),
    "operators": Asked("GET", "/healthz", body=b""),
    "upstream 400": Asked(script=_says("400 Bad Request", "content-type: application/json"), status=400),
    "upstream 429": Asked(
        script=_says("429 Too Many Requests", "content-type: application/json", "retry-after: 1"), status=429
    ),
    "upstream 500": Asked(script=_says("500 Internal Server Error", "content-type: application/json"), status=500),
    "refused": Asked(script=None, status=502),
    "reset": Asked(script=lambda connection, seen: reset(connection), status=502),
    "timeout": Asked(script=lambda connection, seen: None, status=504, first_byte="0.3"),
    "sampled trace": Asked(headers=SAMPLED | {"tracestate": "vendor=x"}),
    "trace that is not sampled": Asked(headers={"traceparent": SAMPLED["traceparent"][:-1] + "0"}),
    "traceparent that is none": Asked(headers={"traceparent": "00-zz"}),
    "no user agent": Asked(headers={"user-agent": ""}),
    "host without a port": Asked(host="localhost"),
    "host by address": Asked(host="[::1]:8000"),
}


@pytest.mark.parametrize("door", [by_wsgi, by_asgi])
@pytest.mark.parametrize("name", CASES)
def test_the_span_by_hand_is_the_instrumentations(name: str, door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = CASES[name]
    with _provider(asked.script) as url:
        ours = [_equal(span) for span in _told(asked, door, url)]
        monkeypatch.setattr(server_span, "install", install_instrumentation)
        theirs = [_equal(span) for span in _told(asked, door, url)]
    for *_, attributes, _events, _ids, _flags in theirs:
        _put_right(attributes)
    assert ours == theirs
    assert [told[4][Http.STATUS] for told in ours] == ([] if asked.target.startswith("/healthz") else [asked.status])


def test_the_span_of_a_client_that_leaves_its_stream_is_the_instrumentations(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked(body=ASKED_STREAM, script=_endless, leave=True)
    with _provider(asked.script) as url:
        (ours,) = [_equal(span) for span in _told(asked, by_asgi, url)]
        monkeypatch.setattr(server_span, "install", install_instrumentation)
        (theirs,) = [_equal(span) for span in _told(asked, by_asgi, url)]
    _put_right(theirs[4])
    assert ours == theirs
    assert ours[4][Attr.OUTCOME] == "client_abort"


@pytest.mark.parametrize(
    ("host", "port", "named"),
    [
        ("a.example:8080", "8000", ("a.example", 8080)),
        ("a.example", "8000", ("a.example", 8000)),
        ("[2001:db8::1]:443", "8000", ("2001:db8::1", 443)),
        ("[2001:db8::1]", "8000", ("2001:db8::1", 8000)),
        ("a.example:http", "8000", ("a.example:http", 8000)),
        ("", "8000", ("", 8000)),
        ("", "", ("", None)),
    ],
)
def test_address_and_port_are_what_the_client_named(host: str, port: str, named: tuple[str, int | None]) -> None:
    assert server_span._server(host, port) == named


def test_the_span_begins_with_the_requests_first_byte() -> None:
    began: list[int] = []
    with telemetry() as told:
        app = LoopFlask("x")
        server_span.install(app, told.telemetry.tracing.provider)
        app.before_request(lambda: began.append(Channel.of(request.environ).lifetime.started_ns))
        environ = app.test_request_context("/nowhere").request.environ
        first_byte = Channel.of(environ).lifetime.started_ns  # in comes the first byte; Flask gets its turn later
        cast(Any, app(environ, lambda *_started: print)).close()
        (span,) = told._exporter.get_finished_spans()
    assert (span.start_time, began) == (first_byte, [first_byte])


def test_a_bug_in_a_hook_is_an_error_with_its_type_and_without_its_words() -> None:
    with telemetry() as told:
        app = LoopFlask("x")
        server_span.install(app, told.telemetry.tracing.provider)

        def fail(_response: Any) -> Any:
            raise ValueError("sk-ant-secret-words")

        app.after_request(fail)
        app.test_client().get("/nowhere").close()
        (span,) = told._exporter.get_finished_spans()
    assert span.status.status_code.name == "ERROR"
    assert [dict(event.attributes or {}) for event in span.events] == [
        {Http.EXCEPTION_TYPE: "ValueError", Http.EXCEPTION_ESCAPED: "False"}
    ]
    assert (span.attributes or {})[Http.STATUS] == 500
