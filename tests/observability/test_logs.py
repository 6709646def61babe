"""Log lines: one JSON object each, ours and everybody's alike, never in the way, losses counted."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from structlog.typing import FilteringBoundLogger

from observability import logs
from tests.support.poll import poll


class Lines:
    """A log that is kept in memory."""

    def __init__(self) -> None:
        self.raw: list[bytes] = []

    def parsed(self) -> list[dict[str, Any]]:
        assert all(line.endswith(b"\n") and line.count(b"\n") == 1 for line in self.raw)
        return [json.loads(line) for line in self.raw]


@pytest.fixture
def lines() -> Lines:
    return Lines()


@pytest.fixture
def log(lines: Lines) -> FilteringBoundLogger:
    return logs.install(lines.raw.append, "info")


def test_a_line_of_ours_is_one_json_object_with_level_and_utc_time(log: FilteringBoundLogger, lines: Lines) -> None:
    log.warning("request", route="/generate", seconds=0.25, text="two\nlines \u2603", nothing=None)
    (line,) = lines.parsed()
    written = datetime.fromisoformat(line.pop("timestamp"))
    assert written.utcoffset() == timedelta(0)
    assert line == {
        "event": "request",
        "level": "warning",
        "route": "/generate",
        "seconds": 0.25,
        "text": "two\nlines \u2603",
        "nothing": None,
    }


def test_a_librarys_line_has_the_same_shape(log: FilteringBoundLogger, lines: Lines) -> None:
    logging.getLogger("some.library").warning("%d of %s", 3, "four")
    (line,) = lines.parsed()
    assert datetime.fromisoformat(line.pop("timestamp")).utcoffset() == timedelta(0)
    assert line == {"event": "log", "level": "warning", "logger": "some.library", "message": "3 of four"}


def test_an_exception_is_told_with_its_traceback_by_both(log: FilteringBoundLogger, lines: Lines) -> None:
    try:
        raise ValueError("broken")
    except ValueError as error:
        log.error("log", message="ours", exc_info=error)
        logging.getLogger("library").exception("theirs")
    for line in lines.parsed():
        assert line["exception"].startswith("Traceback (most recent call last):")
        assert line["exception"].endswith("ValueError: broken")


def test_inside_a_span_both_name_its_trace(log: FilteringBoundLogger, lines: Lines) -> None:
    with TracerProvider(shutdown_on_exit=False).get_tracer("test").start_as_current_span("x") as span:
        log.info("log")
        logging.getLogger("library").info("hello")
        log.info("log", trace_id="given")
    ids = (format(span.get_span_context().trace_id, "032x"), format(span.get_span_context().span_id, "016x"))
    found = [(line["trace_id"], line.get("span_id")) for line in lines.parsed()]
    assert found == [ids, ids, ("given", None)]


@pytest.mark.parametrize(("level", "written"), [("debug", 2), ("info", 2), ("warning", 1), ("error", 0)])
def test_lines_under_the_level_are_not_written(level: str, written: int, lines: Lines) -> None:
    log = logs.install(lines.raw.append, level)
    log.info("log")
    log.warning("log")
    logging.getLogger("library").info("x")
    logging.getLogger("library").warning("x")
    assert len(lines.raw) == 2 * written


def test_a_library_that_logs_nonsense_raises_nothing_and_is_still_heard(lines: Lines) -> None:
    logs.install(lines.raw.append, "info")  # here, not in a fixture: pytest's own handler would raise
    logging.getLogger("library").warning("%d apples", "many")
    logging.getLogger("library").warning("lone surrogate \ud800")
    logging.getLogger("library").warning("all good")
    assert [line["message"] for line in lines.parsed()] == ["%d apples", "lone surrogate \ud800", "all good"]


def test_a_value_json_does_not_know_is_written_as_text(log: FilteringBoundLogger, lines: Lines) -> None:
    log.info("log", value=ValueError("x"), kind=object, huge=2**70)
    (line,) = lines.parsed()
    assert (line["value"], line["kind"], line["huge"]) == ("x", "<class 'object'>", 2**70)


def test_a_value_whose_text_fails_raises_into_nobody_and_the_line_says_so(
    log: FilteringBoundLogger, lines: Lines
) -> None:
    class Mute:
        def __str__(self) -> str:
            raise LookupError("no text")

    log.warning("log", value=Mute())
    (line,) = lines.parsed()
    assert line == {"event": "log", "level": "warning", "unwritable": "LookupError"}


class Pipe:
    """A pipe with a writer on it, and what the writer said of its fate."""

    def __init__(self, bound: int = 10_000) -> None:
        self.reading, self.writing = os.pipe()
        self.drops: list[tuple[str, int]] = []
        self.successes = 0
        self.writer = logs.LineWriter(self.writing, lambda why, n: self.drops.append((why, n)), self._succeeded, bound)

    def _succeeded(self) -> None:
        self.successes += 1

    def close(self) -> None:
        self.writer.close(5)
        for end in (self.reading, self.writing):
            try:
                os.close(end)
            except OSError:
                continue


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    made.close()


def test_closing_writes_every_line_that_waits_in_order(pipe: Pipe) -> None:
    expected = [b"line %d\n" % number for number in range(2000)]
    for line in expected:
        pipe.writer.write(line)
    pipe.writer.close(5)
    assert os.read(pipe.reading, 1 << 20) == b"".join(expected)
    assert pipe.drops == []
    assert pipe.successes > 0


def test_a_full_pipe_blocks_nobody_and_what_is_over_the_bound_is_dropped_and_counted() -> None:
    pipe = Pipe(bound=10)
    big = b"x" * 65_535 + b"\n"
    pipe.writer.write(big * 4)  # more than a pipe holds: the writer's thread is stuck from here on
    poll(lambda: not pipe.writer._lines, what="the thread to have taken the first line")
    done = threading.Event()

    def write_many() -> None:
        for number in range(25):
            pipe.writer.write(b"%d\n" % number)
        done.set()

    threading.Thread(target=write_many).start()
    assert done.wait(30)
    assert pipe.drops == [("queue_full", 1)] * 15
    got = b""
    while not got.endswith(b"9\n"):
        got += os.read(pipe.reading, 1 << 20)
    assert got == big * 4 + b"".join(b"%d\n" % number for number in range(10))
    pipe.close()


def test_closing_waits_for_a_stuck_reader_no_longer_than_it_was_told() -> None:
    pipe = Pipe()
    pipe.writer.write(b"x" * 1_000_000)
    pipe.writer.close(0.05)
    got = 0
    while got < 1_000_000:
        got += len(os.read(pipe.reading, 1 << 20))
    poll(lambda: pipe.successes, what="the stuck line to count as written")
    pipe.close()


def test_a_reader_that_is_gone_is_counted_line_by_line(pipe: Pipe) -> None:
    os.close(pipe.reading)
    pipe.writer.write(b"one\n")
    pipe.writer.close(5)
    assert (pipe.drops, pipe.successes) == ([("write_failed", 1)], 0)


def test_writing_at_once_survives_a_closed_stdout(monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(*_: object) -> int:
        raise OSError

    monkeypatch.setattr(logs.os, "write", closed)  # type: ignore[attr-defined]
    logs.write_now(b"line\n")
