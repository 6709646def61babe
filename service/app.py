"""The composition root: everything is made here and handed to what needs it.

bridge or WSGI server -> instrumentation (SERVER span) -> exchange opened -> gate -> view -> pipeline -> closing
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from flask import Response, g, request
from opentelemetry.instrumentation.flask import FlaskInstrumentor
from opentelemetry.metrics import NoOpMeterProvider
from prometheus_flask_exporter import PrometheusMetrics
from werkzeug.exceptions import HTTPException

import service
from observability import catalog
from observability.catalog import Outcome
from observability.start import Telemetry, start
from service.account.closing import Closing
from service.account.exchange import Exchange
from service.errors import BadRequest, GatewayError, InternalError, MethodNotAllowed, NotFound
from service.lifetime import Ending
from service.pipeline import Pipeline
from service.settings import Settings
from service.upstream import anthropic
from service.upstream.client import Client
from service.upstream.transport import Transport
from service.web import generate, native, ops, reply
from service.web.auth import Gate
from service.web.channel import Channel
from service.web.flask_loop import LoopFlask, StreamedResponse

ROUTES = native.RULES | set(generate.RULES)
FLUSH_SECONDS = 1.5
"""For the last spans and log lines, inside the grace that the worker keeps for it."""


@dataclass(frozen=True, slots=True)
class Gateway:
    """The made application and what must be stopped with it."""

    app: LoopFlask
    telemetry: Telemetry
    client: Client

    async def stop(self) -> None:
        """Close the provider's connections and flush telemetry, within `FLUSH_SECONDS` or a little more."""
        await self.client.aclose()
        await asyncio.to_thread(self.telemetry.stop, FLUSH_SECONDS)


def create_gateway(settings: Settings, telemetry: Telemetry | None = None) -> Gateway:
    """Make the application. Call it after the fork: it starts threads."""
    telemetry = telemetry or start_telemetry(settings)
    client = Client(
        settings.anthropic_base_url,
        lambda: Transport(proxy=settings.proxy, ca_file=settings.ca_file),
        telemetry.tracing.provider,
        connect_timeout=settings.connect_timeout,
        idle_timeout=settings.idle_timeout,
    )
    pipeline = Pipeline(client, injects=settings.credentials == "inject", total_timeout=settings.total_timeout)
    gate = Gate(settings)
    app = LoopFlask("claude_proxy", static_folder=None)
    app.url_map.strict_slashes = False
    _instrument(app, telemetry)
    _open_and_close(app, telemetry, gate)
    _answer_errors(app, telemetry)
    ops.register(app, gate, telemetry.metrics.registry)
    native.register(app, pipeline, settings.first_byte_timeout)
    generate.register(
        app,
        pipeline,
        default_model=settings.default_model,
        timeout=settings.first_byte_timeout,
        limits=generate.Limits(settings.batch_concurrency, settings.batch_max_prompts),
    )
    return Gateway(app, telemetry, client)


def start_telemetry(settings: Settings) -> Telemetry:
    """Telemetry as the settings want it, with the closed label sets of this application."""
    return start(
        service_name=settings.service_name,
        version=service.__version__,
        otlp_endpoint=settings.otlp_endpoint,
        log_level=settings.log_level,
        routes=ROUTES,
        models=anthropic.MODELS,
    )


def _instrument(app: LoopFlask, telemetry: Telemetry) -> None:
    FlaskInstrumentor.instrument_app(  # type: ignore[no-untyped-call]
        app,
        tracer_provider=telemetry.tracing.provider,
        meter_provider=NoOpMeterProvider(),
        excluded_urls=",".join(f"{rule}$" for rule in ops.RULES),
        enable_commenter=False,
    )
    PrometheusMetrics(app, path=None, group_by="url_rule", registry=telemetry.metrics.registry)


def _open_and_close(app: LoopFlask, telemetry: Telemetry, gate: Gate) -> None:
    closing = Closing(telemetry)

    def open_exchange() -> None:
        rule = request.url_rule.rule if request.url_rule is not None else catalog.OTHER
        if rule in ops.RULES:
            return
        channel = Channel.of(request.environ)
        g.exchange = exchange = Exchange(closing, telemetry.tracing, channel.lifetime, rule)
        g.caller = caller = gate.admit(channel.headers)
        exchange.client = caller.name

    def add_ids(response: Response) -> Response:
        exchange: Exchange | None = g.get("exchange")
        if exchange is None:
            return response
        response.headers["x-request-id"] = exchange.request_id
        response.headers["x-trace-id"] = exchange.trace_id
        exchange.status = response.status_code
        if not isinstance(response, StreamedResponse):
            # Whole in memory: the last byte is as good as handed on.
            exchange.end(g.get("outcome", Outcome.OK), g.get("error_type"))
        return response

    def close_exchange(error: BaseException | None) -> None:
        exchange: Exchange | None = g.get("exchange")
        if exchange is not None and not exchange.ended:
            gone = exchange.lifetime.ending
            outcome = Outcome.CLIENT_ABORT if gone is Ending.CLIENT_GONE else Outcome.INTERNAL_ERROR
            outcome = Outcome.DRAINING if gone is Ending.DRAIN else outcome
            exchange.end(outcome, outcome.value)

    app.before_request(open_exchange)
    app.after_request(add_ids)
    app.teardown_request(close_exchange)


def _answer_errors(app: LoopFlask, telemetry: Telemetry) -> None:
    def gateway_error(error: GatewayError) -> Response:
        exchange: Exchange | None = g.get("exchange")
        if exchange is not None and not exchange.ended:
            g.outcome, g.error_type = error.outcome, error.error_type
            exchange.rejected = error.type
        return reply.own_error(error)

    def http_exception(error: HTTPException) -> Response:
        return gateway_error(_mapped(error))

    def bug(error: Exception) -> Response:
        telemetry.log.error(catalog.LogEvent.LOG, message="internal error", exc_info=error)
        return gateway_error(InternalError("internal error of the gateway; its log and trace say more"))

    app.register_error_handler(GatewayError, gateway_error)
    app.register_error_handler(HTTPException, http_exception)
    app.register_error_handler(Exception, bug)


def _mapped(error: HTTPException) -> GatewayError:
    """Flask's own routing errors in our tree."""
    if error.code == 404:
        return NotFound("no such route here; see the README's table of routes", field="path")
    if error.code == 405:
        allowed = ", ".join(sorted(getattr(error, "valid_methods", None) or ()))
        return MethodNotAllowed(f"this route takes {allowed}", field="method")
    return BadRequest(error.name)
