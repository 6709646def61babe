"""`claude-proxy ledger`: what it prints, and what it says when it cannot."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from service import cli
from service.account.ledger import FILE, Ledger
from tests.support.book import NOON, row
from tests.support.processes import clean_environ

DAY = 86_400.0


@pytest.fixture
def book(tmp_path: Path) -> str:
    """A ledger of a few calls; where it is."""
    unpriced = dict.fromkeys(("cost_input", "cost_cache_read", "cost_cache_write", "cost_output", "cost_tools"))
    Ledger(tmp_path).add(
        [
            row(),
            row(client="team-b", certainty="estimated", output_tokens=None),
            row(started=NOON - DAY, ended=NOON - DAY, cost_input=1),
            row(model="evil\x1b[2J", certainty="unpriced", outcome="upstream_429", **unpriced),
        ]
    )
    return str(tmp_path)


def _says(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(["ledger", *arguments]) == 0
    return capsys.readouterr().out


def test_a_table_of_days_ends_in_its_total(book: str, capsys: pytest.CaptureFixture[str]) -> None:
    lines = _says(capsys, "--path", book).splitlines()
    assert [re.split(r" {2,}", line) for line in lines if "---" not in line] == [
        ["day", "calls", "input", "output", "cache read", "cache write", "reasoning", "exact USD", "estimated USD", "unpriced"],
        ["2026-11-21", "1", "1,000", "200", "-", "-", "-", "0.0050", "-", "0"],
        ["2026-11-22", "3", "3,000", "400", "-", "-", "-", "0.0100", "0.0100", "1"],
        ["total", "4", "4,000", "600", "-", "-", "-", "0.0150", "0.0100", "1"],
    ]  # fmt: skip
    assert len({len(line) for line in lines}) == 1


def test_json_and_csv_say_the_same_to_the_last_nano_dollar(book: str, capsys: pytest.CaptureFixture[str]) -> None:
    document = json.loads(_says(capsys, "--path", book, "--by", "client,day", "--format", "json"))
    table = list(csv.DictReader(io.StringIO(_says(capsys, "--path", book, "--by", "client,day", "--format", "csv"))))
    assert [(line["client"], line["day"], line["exact_usd"]) for line in document["rows"]] == [
        ("team-a", "2026-11-21", 0.005000001),
        ("team-a", "2026-11-22", 0.01),
        ("team-b", "2026-11-22", None),
    ]
    assert [line["exact_usd"] for line in table] == ["0.005000001", "0.010000000", ""]
    assert (document["total"]["calls"], document["total"]["unpriced"]) == (4, 1)


@pytest.mark.parametrize(
    ("arguments", "days"),
    [
        (["--since", "2026-11-22"], ["2026-11-22"]),
        (["--until", "2026-11-21"], ["2026-11-21"]),
        (["--since", "2026-11-21", "--until", "2026-11-22"], ["2026-11-21", "2026-11-22"]),
        (["--since", "2031-01-01"], []),
    ],
)
def test_since_and_until_are_days_and_included(
    book: str, capsys: pytest.CaptureFixture[str], arguments: list[str], days: list[str]
) -> None:
    document = json.loads(_says(capsys, "--path", book, "--format", "json", *arguments))
    assert [line["day"] for line in document["rows"]] == days


def test_calls_are_listed_newest_first_and_bounded(book: str, capsys: pytest.CaptureFixture[str]) -> None:
    document = json.loads(_says(capsys, "--path", book, "--calls", "--limit", "3", "--format", "json"))
    assert [call["started"] for call in document["calls"]] == ["2026-11-22T12:00:00.000Z"] * 3
    assert {call["cost_usd"] for call in document["calls"]} == {0.01, None}
    assert (
        json.loads(_says(capsys, "--path", book, "--calls", "--until", "2026-11-21", "--format", "json"))["calls"][0][
            "cost_usd"
        ]
        == 0.005000001
    )


def test_no_limit_is_too_high(book: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(_says(capsys, "--path", book, "--calls", "--limit", "9" * 30).splitlines()) == 1 + 4


def test_a_name_that_a_client_made_up_cannot_move_the_cursor(book: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "\x1b" not in _says(capsys, "--path", book, "--by", "model")
    assert "\x1b" not in _says(capsys, "--path", book, "--calls")


def test_the_directory_comes_from_the_settings(
    book: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CLAUDE_PROXY_LEDGER", book)
    assert "2026-11-22" in _says(capsys, "--env-file", os.devnull)
    monkeypatch.setenv("CLAUDE_PROXY_LEDGER", "off")
    assert cli.main(["ledger", "--env-file", os.devnull]) == 2
    assert "no ledger is kept" in capsys.readouterr().err


def test_without_a_setting_it_is_in_the_users_state_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Ledger(tmp_path / "claude-proxy").add([row()])
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert "2026-11-22" in _says(capsys, "--env-file", os.devnull)


def test_no_calls_are_said_on_stderr_and_are_no_error(book: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["ledger", "--path", book, "--since", "2031-01-01", "--format", "csv"]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("day,calls,")
    assert said.err == "claude-proxy: no calls in the ledger for these days\n"


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--by", "day,cow"], "'cow' is not one of day, model"),
        (["--since", "yesterday"], "neither a day like"),
        (["--since", "99999999999d"], "neither a day like"),
        (["--limit", "0"], "not a positive number"),
    ],
)
def test_a_wrong_option_is_named(arguments: list[str], word: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["ledger", *arguments])
    assert stopped.value.code == 2
    assert word in capsys.readouterr().err


def test_days_in_the_wrong_order_are_an_error(book: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["ledger", "--path", book, "--since", "2026-11-22", "--until", "2026-11-01"]) == 2
    assert "there is no day in between" in capsys.readouterr().err


def test_no_ledger_yet_and_a_broken_one_are_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["ledger", "--path", str(tmp_path)]) == 2
    assert (
        capsys.readouterr().err
        == f"claude-proxy: no ledger at {tmp_path / FILE}: no gateway has written one there yet.\n"
    )
    (tmp_path / FILE).write_text("not a database, whatever its name says")
    assert cli.main(["ledger", "--path", str(tmp_path)]) == 2
    assert "cannot be read: file is not a database" in capsys.readouterr().err


def test_a_reader_that_leaves_early_is_no_traceback(tmp_path: Path) -> None:
    Ledger(tmp_path).add([row() for _ in range(3000)])
    command = [sys.executable, "-m", "service.cli", "ledger", "--path", str(tmp_path), "--calls", "--limit", "3000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=clean_environ({})) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141
