"""The door for WSGI servers: `gunicorn -k gthread 'service.wsgi:application()'`, `flask --app service.wsgi run`."""

from __future__ import annotations

import atexit
from functools import partial

from service.app import FLUSH_SECONDS, Gateway, create_gateway
from service.settings import load
from service.web import local
from service.web.flask_loop import LoopFlask, background


def application() -> LoopFlask:
    """The same application on one background loop per process. A client's leaving is seen only at the next chunk.

    The server listens where it likes: without client keys only this machine is served, wherever that is.
    """
    settings = load()
    gateway = create_gateway(settings)
    local.guard(gateway.app, settings)
    gateway.keeping.start(gateway.allowances.spent_on(None))
    if gateway.allowances.have_budgets:
        gateway.allowances.restore(gateway.keeping.spends())
    atexit.register(partial(_leave, gateway), FLUSH_SECONDS)
    return gateway.app


def _leave(gateway: Gateway, seconds: float) -> None:
    """Close the provider's connections and flush telemetry within `seconds`."""
    if gateway.client.is_open:  # else no loop has been started, and none can be now
        background().run(gateway.client.aclose())
    gateway.keeping.stop(seconds)
    gateway.telemetry.stop(seconds)


create_app = application
