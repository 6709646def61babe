"""What operators and probes ask: is it alive, is it ready, what are its figures."""

from __future__ import annotations

from collections.abc import Callable

from flask import Response, request

from observability.exposition import Exposition
from service.errors import Forbidden
from service.web import reply
from service.web.auth import Gate
from service.web.channel import Channel
from service.web.flask_loop import LoopFlask

METRICS = "/metrics"
RULES = ("/healthz", "/readyz", METRICS)


def register(app: LoopFlask, gate: Gate, exposition: Exposition, writable: Callable[[], bool]) -> None:
    """Add the operator routes. None of them counts as a request in our own metrics. `writable`: calls can be journalled."""

    async def healthz() -> Response:
        # An async view: it answers only if the loop runs.
        return reply.own_json({"status": "ok"})

    async def readyz() -> Response:
        # Never because a provider is down: a load balancer could only make that worse.
        status = "draining" if app.draining else "ready" if writable() else "journal cannot be written"
        return reply.own_json({"status": status}, 200 if status == "ready" else 503)

    async def metrics() -> Response:
        if not gate.admit_to_metrics(Channel.of(request.environ).headers):
            raise Forbidden("/metrics asks for Authorization: Bearer and the token in CLAUDE_PROXY_METRICS_TOKEN")
        text, content_type = await exposition.text(request.headers.get("accept", ""))
        # A kept connection would tie the scraper to one worker, and a blocked one would then own it.
        return Response(text, content_type=content_type, headers={"connection": "close"})

    for rule, view in zip(RULES, (healthz, readyz, metrics), strict=True):
        app.add_url_rule(rule, endpoint=f"ops{rule}", view_func=view, methods=["GET"])
