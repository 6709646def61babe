"""What the gateway sees to itself where a WSGI server decides about sockets: who reaches it, and how long it waits."""

from __future__ import annotations

from flask import Flask, request

from service.errors import Forbidden
from service.settings import Settings, is_loopback
from service.web.channel import IDLE
from service.web.ops import METRICS

_CLOSED = (
    "this gateway has no client keys, so it serves its own machine only: make some with `claude-proxy key NAME` "
    "and set CLAUDE_PROXY_CLIENT_KEYS"
)
_NO_TOKEN = "without CLAUDE_PROXY_METRICS_TOKEN /metrics is for this machine only"


def guard(app: Flask, settings: Settings) -> None:
    """Refuse other machines what no key of ours protects, whatever address the server listens on; give bodies the idle
    timeout."""

    def look() -> None:
        request.environ[IDLE] = settings.idle_timeout
        if is_loopback((request.remote_addr or "").removeprefix("::ffff:")):
            return
        if not settings.client_keys:
            raise Forbidden(_CLOSED)
        if request.path == METRICS and not settings.metrics_token:
            raise Forbidden(_NO_TOKEN)

    app.before_request(look)
