"""The door for WSGI servers: `gunicorn -k gthread 'service.wsgi:application()'`, `flask --app service.wsgi run`."""

from __future__ import annotations

import atexit

from service.app import FLUSH_SECONDS, create_gateway
from service.settings import load
from service.web import local
from service.web.flask_loop import LoopFlask


def application() -> LoopFlask:
    """The same application on one background loop per process. A client's leaving is seen only at the next chunk.

    The server listens where it likes: without client keys only this machine is served, wherever that is.
    """
    settings = load()
    gateway = create_gateway(settings)
    local.guard(gateway.app, settings)
    atexit.register(gateway.telemetry.stop, FLUSH_SECONDS)
    return gateway.app


create_app = application
