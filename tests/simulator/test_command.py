"""The simulator as a process."""

import argparse
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

import httpx
import pytest

from service.simulator import command, faults
from service.simulator.config import UNLIMITED, Limits
from tests.simulator.conftest import HEADERS, body

ROOT = Path(command.__file__).parents[2]


@contextmanager
def running(*options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A simulator process and its address."""
    arguments = [sys.executable, "-m", "service.simulator", "--port", "0", "--fast", *options]
    with subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        try:
            yield process, line.removeprefix("simulator listening on ").strip()
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_at_once_even_with_open_streams(number: int) -> None:
    with running() as (process, url):
        headers = {**HEADERS, "x-simulator-scenario": "fault=stall;after=1"}
        with httpx.stream("POST", f"{url}/v1/messages", json=body(stream=True), headers=headers) as response:
            assert next(response.iter_bytes())
            process.send_signal(number)
            assert process.wait(timeout=30) == 0


def test_a_schedule_can_come_from_a_file(tmp_path: Path) -> None:
    schedule = tmp_path / "schedule.json"
    schedule.write_text('[{"scenario": "fault=api_error", "nth": 2}]')
    with running("--schedule", str(schedule)) as (_, url):
        statuses = [httpx.post(f"{url}/v1/messages", json=body(), headers=HEADERS).status_code for _ in range(3)]
    assert statuses == [200, 500, 200]


def test_a_bad_schedule_or_a_taken_port_is_said_and_ends_with_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    schedule = tmp_path / "schedule.json"
    schedule.write_text('[{"scenario": "fault=what"}]')
    assert command.run(parsed("--schedule", str(schedule))) == 2
    assert "fault" in capsys.readouterr().err
    assert command.run(parsed("--port", "99999")) == 2
    assert "port must be 0-65535" in capsys.readouterr().err


def parsed(*options: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args(options)


def test_options_become_a_config() -> None:
    config = command.config_from(parsed("--fast", "--seed", "5", "--rpm", "60", "--api-key", "a", "--record-headers"))
    assert (config.ttfb_ms, config.gap_ms, config.seed, config.record_headers) == (0, 0, 5, True)
    assert config.limits == Limits(60, 2_000_000, 400_000)
    assert config.api_keys == {"a"}
    kept = command.config_from(parsed("--record", "7", "--record-calls", "8"))
    assert (kept.record_requests, kept.record_calls) == (7, 8)
    assert command.config_from(parsed("--unlimited")).limits is UNLIMITED
    assert command.config_from(parsed()).limits is None


def test_the_help_explains_every_part_of_a_scenario() -> None:
    names = [*faults.Scenario.__struct_fields__, *get_args(faults.Status), *get_args(faults.Broken)]
    assert [name for name in names if name not in command.EPILOG] == []
