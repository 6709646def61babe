"""An OTLP/HTTP receiver for spans, in a thread of the test process."""

from __future__ import annotations

import gzip
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue

from tests.support.poll import poll

KINDS = {1: "INTERNAL", 2: "SERVER", 3: "CLIENT"}
STATUS = {0: "UNSET", 1: "OK", 2: "ERROR"}


@dataclass
class SpanSeen:
    """One exported span; ids in hex, times in seconds."""

    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    start: float
    end: float
    status: str
    scope: str
    attributes: dict[str, Any]
    events: list[tuple[str, float, dict[str, Any]]]
    resource: dict[str, Any] = field(repr=False)

    @property
    def seconds(self) -> float:
        """How long it lasted."""
        return self.end - self.start


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(item) for item in value.array_value.values]
    return getattr(value, kind) if kind else None


class OtlpSink:
    """Collects spans posted to `/v1/traces`. `status` can be changed to make it refuse, `garbage` to make it answer with
    bytes that are no HTTP, and `free` cleared to make it take requests and not answer."""

    def __init__(self, port: int = 0) -> None:
        self.spans: list[SpanSeen] = []
        self.bodies: list[bytes] = []
        """What was posted, as it came (inflated)."""
        self.last_taken = 0.0
        """When spans came last (Unix time)."""
        self.status = 200
        self.garbage = b""
        self.free = threading.Event()
        self.free.set()
        sink = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                sink.bodies.append(body)
                if not sink.free.is_set():
                    sink.free.wait(30)
                    return
                if sink.garbage:
                    self.wfile.write(sink.garbage)
                    return
                if sink.status == 200:
                    sink._take(ExportTraceServiceRequest.FromString(body))
                self.send_response(sink.status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    def _take(self, request: ExportTraceServiceRequest) -> None:
        for resource_spans in request.resource_spans:
            resource = {a.key: _value(a.value) for a in resource_spans.resource.attributes}
            for scope_spans in resource_spans.scope_spans:
                for s in scope_spans.spans:
                    self.spans.append(
                        SpanSeen(
                            name=s.name,
                            kind=KINDS.get(s.kind, str(s.kind)),
                            trace_id=s.trace_id.hex(),
                            span_id=s.span_id.hex(),
                            parent_id=s.parent_span_id.hex(),
                            start=s.start_time_unix_nano / 1e9,
                            end=s.end_time_unix_nano / 1e9,
                            status=STATUS[s.status.code],
                            scope=scope_spans.scope.name,
                            attributes={a.key: _value(a.value) for a in s.attributes},
                            events=[
                                (e.name, e.time_unix_nano / 1e9, {a.key: _value(a.value) for a in e.attributes})
                                for e in s.events
                            ],
                            resource=resource,
                        )
                    )
        self.last_taken = time.time()

    def wait(self, match: Callable[[SpanSeen], bool], count: int = 1, seconds: float = 30.0) -> list[SpanSeen]:
        """At least `count` spans that match."""
        return poll(
            lambda: found if len(found := [s for s in list(self.spans) if match(s)]) >= count else None,
            what=f"{count} matching spans among {len(self.spans)}",
            seconds=seconds,
        )

    def trace(self, trace_id: str, count: int) -> list[SpanSeen]:
        """All spans of a trace, once there are `count`."""
        return self.wait(lambda s: s.trace_id == trace_id, count)

    def __enter__(self) -> OtlpSink:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.free.set()
        self._server.shutdown()
        self._server.server_close()
