"""`python -m tests.bench.variant flask,httpx serve …`: the gateway's own command line with parts of its telemetry left out.

Nothing of the product knows of this: parts are replaced before it is imported. A part that is no longer where it was makes
the variant fail at start, and the report says so.
"""

from __future__ import annotations

import sys
from typing import Any
from unittest.mock import patch


def _nothing(*_arguments: Any, **_options: Any) -> None:
    """In place of what is left out."""


def _bare(transport: Any, **_options: Any) -> Any:
    """In place of a wrapper: what was to be wrapped."""
    return transport


PARTS: dict[str, list[tuple[str, Any]]] = {
    "flask": [("opentelemetry.instrumentation.flask.FlaskInstrumentor.instrument_app", staticmethod(_nothing))],
    "httpx": [("opentelemetry.instrumentation.httpx.AsyncOpenTelemetryTransport", _bare)],
    "exporter": [("prometheus_flask_exporter.PrometheusMetrics", _nothing)],
    "own": [
        ("service.account.closing.Closing.began", _nothing),
        ("service.account.closing.Closing.close", _nothing),
        ("observability.tracing.Tracing.start_inference", _nothing),
    ],
}
"""Flask's and httpx's instrumentation, prometheus-flask-exporter, and our own span, metrics and log line."""


def main() -> int:
    """Leave parts out, then run the command."""
    for part in sys.argv[1].split(","):
        for target, substitute in PARTS[part]:
            patch(target, substitute).start()
    from service.cli import main as run

    return run(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
