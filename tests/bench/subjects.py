"""What is measured: every subject is up for the whole run, so that their rounds can be interleaved."""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass

from tests.bench.load import Command
from tests.bench.machine import Layout
from tests.bench.processes import Gateway, Load, Server

DIRECT, PASS, GATEWAY = "direct", "pass-through", "gateway"
NO_EXPORT, NO_LEDGER, NO_OWN = "export off", "ledger off", "own signals and ledger out"
NOTHING = "all telemetry out"
FULL_HEADERS, FLOOR = "gateway, an SDK's and the API's headers", "the floor: /healthz, all telemetry out"
WARM_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Subject:
    """Something that answers `/v1/messages` on `port`; `pid` is the process measured (none for the upstream itself)."""

    name: str
    port: int
    pid: int | None = None
    full_headers: bool = False
    """Ask as an SDK does, have the upstream answer as the real API does."""
    path: str = "/v1/messages"

    def closed(self, connections: int, seconds: float) -> Command:
        """Non-streaming load."""
        mark = "#api#" if self.full_headers else ""
        return Command("closed", self.port, connections, seconds, path=self.path, mark=mark, sdk=self.full_headers)

    def streams(self, count: int, chunks: int, gap_ms: int, stagger: float) -> Command:
        """Streams, with a bound of the ideal time and 30 s."""
        seconds = count * stagger + chunks * gap_ms / 1e3 + 30
        mark = f"#stream={chunks}x{gap_ms}#"
        return Command("streams", self.port, count, seconds, mark=mark, stagger=stagger, chunks=chunks)


@dataclass(frozen=True, slots=True)
class Variant:
    """A gateway: its settings and the parts left out. `quick`: also in a quick run."""

    name: str
    export: bool = True
    environ: tuple[tuple[str, str], ...] = ()
    without: tuple[str, ...] = ()
    quick: bool = False


_UNRECORDED = (("CLAUDE_PROXY_LEDGER", "off"),)
"""Without the closing act the journal would only ever learn of beginnings, and keep them."""
EVERYTHING = Variant(GATEWAY, quick=True)
VARIANTS = (
    EVERYTHING,
    Variant(NO_EXPORT, export=False, quick=True),
    Variant(
        "no spans, log only errors",
        export=False,
        environ=(("OTEL_TRACES_SAMPLER", "always_off"), ("CLAUDE_PROXY_LOG_LEVEL", "error")),
    ),
    Variant("SERVER span out", without=("server",)),
    Variant("attempt spans out", without=("attempt",)),
    Variant("prometheus-flask-exporter out", without=("exporter",)),
    Variant(NO_LEDGER, environ=_UNRECORDED, quick=True),
    Variant(NO_OWN, environ=_UNRECORDED, without=("own",), quick=True),
    Variant(NOTHING, export=False, environ=_UNRECORDED, without=("server", "attempt", "exporter", "own"), quick=True),
)
"""The first with everything on: OTLP export, metrics, log. "Out" rows change that one thing; export stays on."""


class Stage:
    """Upstream, OTLP sink, load generator, and every subject that was asked for; ends them all when it is left."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.subjects: dict[str, Subject] = {}
        self.ready_seconds: list[float] = []
        """Start to ready of the gateways that were started as a user starts them."""
        self.notes: list[str] = []
        self._stack = ExitStack()

    def __enter__(self) -> Stage:
        with ExitStack() as stack:
            self.load = Load(self.layout.load)
            stack.enter_context(self.load)
            self.upstream = self._server(stack, "upstream")
            self.sink = self._server(stack, "upstream")
            self._stack = stack.pop_all()
        self.subjects[DIRECT] = Subject(DIRECT, self.upstream.port)
        return self

    def __exit__(self, *_ended: object) -> None:
        say("stopping what was started")
        self._stack.close()

    def _server(self, stack: ExitStack, module: str) -> Server:
        server = Server(module, self.layout.load)
        stack.enter_context(server)
        return server

    def start_passthrough(self, stack: ExitStack | None = None) -> Subject:
        """The yardstick, on the service's core; on `stack` if given, else for the whole run."""
        server = Server("passthrough", self.layout.service, str(self.upstream.port))
        (stack or self._stack).enter_context(server)
        return Subject(PASS, server.port, server.pid)

    def start_gateway(self, variant: Variant, stack: ExitStack | None = None) -> Subject:
        """A gateway, on the service's core. Raises `RuntimeError` when it does not start."""
        environ = dict(variant.environ)
        if variant.export:
            environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = self.sink.url
        gateway = Gateway(self.layout.service, self.upstream.url, environ, variant.without)
        (stack or self._stack).enter_context(gateway)
        if not variant.without:
            self.ready_seconds.append(gateway.ready_seconds)
        return Subject(variant.name, gateway.port, gateway.pid)

    def start_subjects(self, variants: tuple[Variant, ...], *, full_headers: bool) -> None:
        """Pass-through and gateways; a variant that does not start is noted and left out."""
        self.subjects[PASS] = self.start_passthrough()
        for variant in variants:
            say(f"starting: {variant.name}")
            try:
                self.subjects[variant.name] = self.start_gateway(variant)
            except RuntimeError as error:
                if variant is EVERYTHING:
                    raise
                self.notes.append(f"`{variant.name}` did not start: {str(error).splitlines()[-1][:200]}")
        if full_headers:
            gateway = self.subjects[GATEWAY]
            self.subjects[FULL_HEADERS] = Subject(FULL_HEADERS, gateway.port, gateway.pid, full_headers=True)
        if bare := self.subjects.get(NOTHING):
            self.subjects[FLOOR] = Subject(FLOOR, bare.port, bare.pid, path="/healthz")
        for subject in self.subjects.values():
            self.load.closed(subject.closed(16, WARM_SECONDS))


_BEGAN = time.monotonic()


def say(text: str) -> None:
    """Progress, on stderr."""
    print(f"[{time.monotonic() - _BEGAN:5.1f} s] {text}", file=sys.stderr, flush=True)
