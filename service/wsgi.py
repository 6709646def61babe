"""The door for WSGI servers: `gunicorn -k gthread 'service.wsgi:application()'`, `flask --app service.wsgi run`."""

from __future__ import annotations

from service.app import create_gateway
from service.settings import load
from service.web.flask_loop import LoopFlask


def application() -> LoopFlask:
    """The same application on one background loop per process. A client's leaving is seen only at the next chunk."""
    return create_gateway(load()).app


create_app = application
