"""What operators and probes ask: is it alive, is it ready, what are its figures."""

from __future__ import annotations

from flask import Response, request

from observability.exposition import Exposition
from service.errors import Forbidden
from service.web import reply
from service.web.auth import Gate
from service.web.channel import Channel
from service.web.flask_loop import LoopFlask

METRICS = "/metrics"
RULES = ("/healthz", "/readyz", METRICS)


def register(app: LoopFlask, gate: Gate, exposition: Exposition) -> None:
    """Add the operator routes. None of them counts as a request in our own metrics."""

    async def healthz() -> Response:
        # An async view: it answers only if the loop runs.
        return reply.own_json({"status": "ok"})

    async def readyz() -> Response:
        draining = app.draining
        return reply.own_json({"status": "draining" if draining else "ready"}, 503 if draining else 200)

    async def metrics() -> Response:
        if not gate.admit_to_metrics(Channel.of(request.environ).headers):
            raise Forbidden("/metrics asks for Authorization: Bearer and the token in CLAUDE_PROXY_METRICS_TOKEN")
        text, content_type = await exposition.text(request.headers.get("accept", ""))
        # A kept connection would tie the scraper to one worker, and a blocked one would then own it.
        return Response(text, content_type=content_type, headers={"connection": "close"})

    for rule, view in zip(RULES, (healthz, readyz, metrics), strict=True):
        app.add_url_rule(rule, endpoint=f"ops{rule}", view_func=view, methods=["GET"])
