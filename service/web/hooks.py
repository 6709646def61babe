"""What happens around every view: the span, the exchange, the gate, and errors in the provider's shape."""

from __future__ import annotations

from flask import Response, g, request
from prometheus_flask_exporter import PrometheusMetrics
from structlog.typing import FilteringBoundLogger
from werkzeug.exceptions import HTTPException

from observability import catalog
from observability.catalog import Outcome
from observability.start import Telemetry
from observability.tracing import Tracing
from service.account.closing import Closing
from service.account.exchange import Exchange
from service.errors import BadRequest, GatewayError, InternalError, MethodNotAllowed, NotFound, is_refusal
from service.lifetime import Ending
from service.web import ops, reply, server_span
from service.web.auth import Gate
from service.web.channel import Channel
from service.web.flask_loop import LoopFlask, StreamedResponse


def instrument(app: LoopFlask, telemetry: Telemetry) -> None:
    """A SERVER span around every request but the operators', and prometheus-flask-exporter's stock metrics."""
    server_span.install(app, telemetry.tracing.provider)
    PrometheusMetrics(app, path=None, group_by="url_rule", registry=telemetry.metrics.registry)


def open_and_close(app: LoopFlask, closing: Closing, tracing: Tracing, gate: Gate) -> None:
    """Open an exchange as a request comes in and pass it through the gate; close it as the request ends, however it ends."""

    def open_exchange() -> None:
        rule = request.url_rule.rule if request.url_rule is not None else catalog.OTHER
        if rule in ops.RULES:
            return
        channel = Channel.of(request.environ)
        g.exchange = exchange = Exchange(closing, tracing, channel.lifetime, rule)
        if any(not name for name, _ in channel.headers):
            # gunicorn's C parser makes a nameless header of a folded line; it must not go up as one.
            raise BadRequest("a header is folded over several lines: send each on one line", field="headers")
        g.caller = caller = gate.admit(channel.headers)
        exchange.client = caller.name

    def add_ids(response: Response) -> Response:
        exchange: Exchange | None = g.get("exchange")
        if exchange is None:
            return response
        response.headers.setdefault("x-request-id", exchange.request_id)  # OpenAI's own has that name: it passes
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


def answer_errors(app: LoopFlask, log: FilteringBoundLogger) -> None:
    """Every error, Flask's own and bugs included, becomes one of our tree in the provider's shape."""

    def gateway_error(error: GatewayError) -> Response:
        exchange: Exchange | None = g.get("exchange")
        if exchange is not None and not exchange.ended:
            g.outcome, g.error_type = error.outcome, error.error_type
            if is_refusal(error):
                exchange.rejected = error.type
        return reply.own_error(error)

    def http_exception(error: HTTPException) -> Response:
        return gateway_error(_mapped(error))

    def bug(error: Exception) -> Response:
        log.error(catalog.LogEvent.LOG, message="internal error", exc_info=error)
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
        return MethodNotAllowed(allowed)
    return BadRequest(error.name)
