"""`python -m tests.bench.variant server,attempt serve …`: the gateway's own command line with parts of its telemetry left out.

Nothing of the product knows of this: parts are replaced before it is imported. A part that is no longer where it was makes
the variant fail at start, and the report says so.
"""

from __future__ import annotations

import sys
from typing import Any
from unittest.mock import patch

from opentelemetry.trace import INVALID_SPAN


def _nothing(*_arguments: Any, **_options: Any) -> None:
    """In place of what is left out."""


def _no_span(*_arguments: Any, **_options: Any) -> Any:
    """In place of a span's beginning."""
    return INVALID_SPAN


PARTS: dict[str, list[tuple[str, Any]]] = {
    "server": [("service.web.server_span.install", _nothing)],
    "attempt": [("service.upstream.client.Client._begin", _no_span)],
    "exporter": [("prometheus_flask_exporter.PrometheusMetrics", _nothing)],
    "own": [
        ("service.account.closing.Closing.began", _nothing),
        ("service.account.closing.Closing.close", _nothing),
        ("observability.tracing.Tracing.start_inference", _nothing),
    ],
}
"""The SERVER span and the attempt spans, prometheus-flask-exporter, and the closing act: chat span, metrics, log line."""


def main() -> int:
    """Leave parts out, then run the command."""
    for part in sys.argv[1].split(","):
        for target, substitute in PARTS[part]:
            patch(target, substitute).start()
    from service.cli import main as run

    return run(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
