"""One JSON object per line on stdout: ours, gunicorn's and every library's through one formatter. Never blocks the loop."""

from __future__ import annotations

import json
import logging
import os
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, MutableMapping
from datetime import UTC, datetime
from typing import Any, cast

import msgspec
import structlog
from opentelemetry import trace
from structlog.typing import FilteringBoundLogger

from observability import catalog, scrub

MAX_WAITING = 10_000
"""Lines that may wait for stdout (about 10 MB) before further ones are dropped and counted."""

PATIENCE = 0.5
"""Seconds that a process which serves nothing waits for a stalled stdout, per line."""
GATHER = 0.01
"""Seconds that a line may wait for others: waking the thread for each one would cost the loop more than writing it."""

_formatter = logging.Formatter()
_encode = msgspec.json.Encoder(enc_hook=str).encode
Drop = Callable[[str, int], None]
"""Told the reason and the number of lines lost."""


class LineWriter:
    """Writes lines to a descriptor from a thread of its own, so that a stalled reader of stdout stalls no request."""

    def __init__(
        self, descriptor: int, on_drop: Drop, on_success: Callable[[], None], bound: int = MAX_WAITING
    ) -> None:
        self._descriptor = descriptor
        self._on_drop, self._on_success = on_drop, on_success
        self._bound = bound
        self._lines: deque[bytes] = deque()
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True)
        self._thread.start()

    def write(self, line: bytes) -> None:
        """Queue one line; over the bound it is dropped and counted."""
        if len(self._lines) >= self._bound:
            self._on_drop("queue_full", 1)
            return
        self._lines.append(line)
        if not self._wake.is_set():
            self._wake.set()

    def close(self, timeout: float) -> None:
        """Write what waits, for at most `timeout` seconds."""
        self._closing.set()
        self._wake.set()
        self._thread.join(timeout)

    def _run(self) -> None:
        while True:
            self._wake.wait()
            self._closing.wait(GATHER)
            self._wake.clear()
            while self._lines:
                batch = [self._lines.popleft() for _ in range(min(len(self._lines), 256))]
                self._put(b"".join(batch), len(batch))
            if self._closing.is_set() and not self._lines:
                return

    def _put(self, data: bytes, count: int) -> None:
        data = scrub.clean_line(data)
        try:
            while data:
                try:
                    data = data[os.write(self._descriptor, data) :]
                except BlockingIOError:  # whoever shares our stdout made it so; a full one is still not a lost one
                    select.select((), (self._descriptor,), (), 1.0)
        except OSError:
            self._on_drop("write_failed", count)
        else:
            self._on_success()


def write_now(line: bytes) -> None:
    """Write to stdout at once: for processes that serve nothing (the master, the command line).

    A reader that stalls costs the line, not the process: a master that waited for it could not be stopped any more.
    """
    deadline = time.monotonic() + PATIENCE
    try:
        while line and select.select((), (1,), (), max(0.0, deadline - time.monotonic()))[1]:
            line = line[os.write(1, line[: select.PIPE_BUF]) :]  # as much as surely fits
    except (OSError, ValueError):  # stdout is gone, and with it the only place to say so
        return


def install(write: Callable[[bytes], None], level: str, *, quoting: bool = True) -> FilteringBoundLogger:
    """Route the standard library's logging through `write` and return our own logger.

    `quoting` tells exceptions with their words, which may be anything: for processes that see no request.
    """
    number = logging.getLevelNamesMapping()[level.upper()]
    handler = _Handler(write, quoting=quoting)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(number, logging.INFO))
    for noisy in ("gunicorn.error", "gunicorn.access"):
        logger = logging.getLogger(noisy)
        logger.handlers[:] = []
        logger.propagate = True
    ours = structlog.wrap_logger(
        _Line(write),
        processors=[structlog.processors.format_exc_info if quoting else _wordless_exception, _finish],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        cache_logger_on_first_use=True,
    )
    # Bound at once: the lazy proxy would be asked for its logger at every line.
    return cast(FilteringBoundLogger, ours.bind())


class _Line:
    """structlog's end of the pipe: takes rendered bytes."""

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self.msg = write
        self.debug = self.info = self.warning = self.error = self.critical = self.exception = write


class _Handler(logging.Handler):
    """The standard library's records in the same shape, as event `log`."""

    def __init__(self, write: Callable[[bytes], None], *, quoting: bool) -> None:
        super().__init__()
        self._write, self._quoting = write, quoting

    def emit(self, record: logging.LogRecord) -> None:
        fields: dict[str, Any] = {
            "event": catalog.LogEvent.LOG,
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _message(record, self._quoting),
        }
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            fields["exception"] = _formatter.formatException(record.exc_info) if self._quoting else scrub.told(error)
        self._write(_finish(None, fields["level"], fields))


def _finish(_logger: Any, level: str, fields: MutableMapping[str, Any]) -> bytes:
    """The line: with its level, the time (ISO 8601, UTC), and the ids of the span that is current if it names none. One
    processor in place of five, because every request pays for it."""
    fields["level"] = level
    fields["timestamp"] = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    if "trace_id" not in fields:
        context = trace.get_current_span().get_span_context()
        if context.is_valid:
            fields["trace_id"] = trace.format_trace_id(context.trace_id)
            fields["span_id"] = trace.format_span_id(context.span_id)
    return _render(fields)


def _wordless_exception(_logger: Any, _method: str, fields: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    given = fields.pop("exc_info", None)
    error = given if isinstance(given, BaseException) else sys.exc_info()[1] if given else None
    if error is not None:
        fields["exception"] = scrub.told(error)
    return fields


def _message(record: logging.LogRecord, quoting: bool) -> str:
    try:
        if quoting:
            return record.getMessage()
        record.args = scrub.wordless(record.args)
        message = record.getMessage()
        # asyncio goes on with the repr of the task that failed, exception and all.
        return message.partition("\n")[0] if record.name == "asyncio" else message
    except Exception:  # noqa: BLE001 a library's mistake in its own log call must not raise into a request
        return str(record.msg)


def _render(fields: Mapping[str, Any]) -> bytes:
    try:
        return _encode(fields) + b"\n"
    except (UnicodeEncodeError, OverflowError):  # a lone surrogate, an integer beyond 64 bits
        return json.dumps(fields, default=str).encode() + b"\n"
    except Exception as error:  # noqa: BLE001 a value whose own text fails must not raise into a request
        told = {"event": fields.get("event"), "level": fields.get("level"), "unwritable": scrub.named(error)}
        return json.dumps(told, default=repr).encode() + b"\n"
