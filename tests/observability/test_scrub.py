"""What is taken out of spans, log lines and exceptions before they leave."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from observability import logs, scrub
from observability.scrub import GONE, Scrubber

KEY = "sk-ant-api03-abc_DEF-123"
SCRUBBER = Scrubber({"/v1/models/<model_id>", "/v1/messages/batches/<batch_id>/cancel", "/anthropic/v1/messages"})


class Spans:
    """Makes ended spans."""

    def __init__(self) -> None:
        self.provider, self.exporter = TracerProvider(shutdown_on_exit=False), InMemorySpanExporter()
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))

    def ended(self, name: str = "x", error: Exception | None = None, /, **attributes: Any) -> ReadableSpan:
        """One with these attributes (double underscores for dots), ended by `error` if there is one."""
        given = {key.replace("__", "."): value for key, value in attributes.items()}
        with (
            contextlib.suppress(ValueError),
            self.provider.get_tracer("test").start_as_current_span(name, attributes=given),
        ):
            if error is not None:
                raise error
        return self.exporter.get_finished_spans()[-1]


@pytest.fixture
def spans() -> Iterator[Spans]:
    made = Spans()
    yield made
    made.provider.shutdown()


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("url__path", "/v1/models/claude-opus-5-5", "/v1/models/claude-opus-5-5"),
        ("url__path", "/anthropic/v1/messages/batches/msgbatch_01Abc/cancel", None),
        ("url__path", "/my%20secret/v1/messages/a/", f"/{GONE}/v1/messages/{GONE}/"),
        ("url__path", f"/v1/models/claude-{KEY}", f"/v1/models/{GONE}"),
        ("url__query", "key=abc&limit=10&x", f"key={GONE}&limit={GONE}&{GONE}"),
        ("url__query", "What+is+it=1", GONE),
        ("url__full", "https://api.test:8443/v1/models/mine?key=a", f"https://api.test:8443/v1/models/{GONE}?key={GONE}"),
        ("url__full", "http://127.0.0.1:1/v1/messages", None),
        ("user_agent__original", f"agent ({KEY})", f"agent ({GONE})"),
        ("user_agent__original", "Anthropic/Python 2.12.0", None),
        ("anything", "AIzaSyA-1234567_x", GONE),
        ("anything", "cpk-0123456789", GONE),
        ("number", 2**63 - 1, None),
    ],
)  # fmt: skip
def test_an_attribute_shows_no_key_and_an_address_only_what_we_know(
    spans: Spans, key: str, value: str, shown: str | None
) -> None:
    cleaned = SCRUBBER.clean(spans.ended(**{key: value}))
    assert dict(cleaned.attributes or {}) == {key.replace("__", "."): value if shown is None else shown}


def test_a_span_with_nothing_to_hide_is_exported_as_it_is(spans: Spans) -> None:
    span = spans.ended("POST /v1/messages", url__path="/v1/messages", http__status=200)
    assert SCRUBBER.clean(span) is span


def test_a_number_otlp_cannot_carry_is_left_out_and_the_rest_stays(spans: Spans) -> None:
    span = spans.ended(gen_ai=10**30, other=-(2**70), kept=7)
    assert dict(SCRUBBER.clean(span).attributes or {}) == {"kept": 7}


def test_an_exception_keeps_its_type_and_loses_its_words(spans: Spans) -> None:
    cleaned = SCRUBBER.clean(spans.ended(f"chat {KEY}", ValueError("a whole prompt")))
    (event,) = cleaned.events
    assert (event.name, event.attributes) == (
        "exception",
        {"exception.type": "ValueError", "exception.escaped": "False"},
    )
    assert (cleaned.status.status_code, cleaned.status.description) == (StatusCode.ERROR, None)
    assert cleaned.name == f"chat {GONE}"
    original = spans.exporter.get_finished_spans()[-1]
    kept = ("context", "parent", "kind", "start_time", "end_time", "resource", "instrumentation_scope")
    assert [getattr(cleaned, name) for name in kept] == [getattr(original, name) for name in kept]


def _fails() -> Exception:
    try:
        try:
            raise ConnectionRefusedError(111, "a secret")
        except OSError as cause:
            raise ExceptionGroup("a secret", [KeyError("a secret"), ValueError("a secret")]) from cause
    except ExceptionGroup as error:
        return error


def test_an_exception_is_told_by_types_numbers_and_places_through_its_whole_chain() -> None:
    told = scrub.told(_fails())
    assert "a secret" not in told.replace('"a secret"', "")  # the source line is ours
    assert "ExceptionGroup [KeyError, ValueError]" in told
    assert told.endswith("ConnectionRefusedError [ECONNREFUSED]")
    assert told.count("in _fails") == 2


def test_an_exception_that_is_its_own_cause_is_told_once() -> None:
    error, other = ValueError("x"), KeyError("y")
    error.__cause__, other.__cause__ = other, error
    assert scrub.told(error).count("Traceback") == 2


def test_a_process_that_serves_logs_no_words_of_exceptions_and_one_that_does_not_logs_them() -> None:
    for quoting in (False, True):
        lines: list[bytes] = []
        ours = logs.install(lines.append, "info", quoting=quoting)
        try:
            raise ValueError("a prompt" + str(1))
        except ValueError as error:
            ours.error("log", exc_info=error)
            ours.error("log", exc_info=True)
            logging.getLogger("library").exception("failed: %s", error)
            logging.getLogger("asyncio").error(f"failed\nfuture: {error!r}", exc_info=error)
        assert [b"a prompt1" in line for line in lines] == [quoting] * 4
        assert all(b"ValueError" in line and b"test_scrub.py" in line for line in lines)


def test_a_key_in_a_log_line_is_taken_out_and_the_line_stays_json() -> None:
    line = b'{"model":"' + KEY.encode() + b'","other":"risk-free task-oriented"}\n'
    assert scrub.clean_line(line) == b'{"model":"REDACTED","other":"risk-free task-oriented"}\n'
