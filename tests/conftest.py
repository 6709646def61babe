"""For every test: no setting from outside, no connection but to this machine, and the process's logging as it was."""

from __future__ import annotations

import ipaddress
import logging
import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from opentelemetry import context
from opentelemetry.context import Context

from tests.support.processes import clean_environ

_connect = socket.socket.connect


def _loopback_only(self: socket.socket, address: Any) -> None:
    if self.family in (socket.AF_INET, socket.AF_INET6) and not ipaddress.ip_address(address[0]).is_loopback:
        raise AssertionError(f"a test connects to {address[0]}")
    _connect(self, address)


@pytest.fixture(autouse=True)
def _nothing_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = clean_environ({})
    for name in set(os.environ) - set(kept) - {"OTEL_SEMCONV_STABILITY_OPT_IN"}:  # that one the settings set themselves
        monkeypatch.delenv(name)
    monkeypatch.setattr(socket.socket, "connect", _loopback_only)


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = before
    structlog.contextvars.clear_contextvars()


@pytest.fixture(autouse=True)
def no_span_of_another_test() -> Iterator[None]:
    """Flask's test client leaves its last request's context behind; the next test begins without it."""
    token = context.attach(Context())
    yield
    context.detach(token)
