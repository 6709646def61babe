"""`claude-proxy reconcile` as a command: its key, its options, its errors."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from service import cli
from service.account.ledger import Ledger
from tests.support.book import row
from tests.support.poll import poll
from tests.support.processes import clean_environ
from tests.support.upstream import Upstream, json_answer

EMPTY = b'{"data": [], "has_more": false, "next_page": null}'
KEY = "sk-ant-admin01-secret"


@pytest.fixture
def book(tmp_path: Path) -> str:
    """A ledger with a call of long ago."""
    Ledger(tmp_path).add([row()])
    return str(tmp_path)


@pytest.fixture
def api() -> Iterator[Upstream]:
    """An API whose reports are empty."""
    with Upstream(json_answer(EMPTY)) as running:
        yield running


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in set(os.environ) - clean_environ({}).keys():
        monkeypatch.delenv(name)


def _status(*arguments: str) -> int:
    return cli.main(["reconcile", "--env-file", os.devnull, *arguments])


def test_without_a_key_it_says_which_one_is_needed(book: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert _status("--path", book) == 2
    said = capsys.readouterr()
    assert said.err.startswith("claude-proxy: ANTHROPIC_ADMIN_KEY is empty: set it, or ANTHROPIC_ADMIN_KEY_FILE")
    assert said.out == ""


def test_the_key_comes_from_the_environment_its_file_or_the_named_file(
    book: str, api: Upstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "one").write_text("sk-ant-admin01-one\n")
    (tmp_path / "two").write_text("sk-ant-admin01-two\n")
    monkeypatch.setenv("ANTHROPIC_ADMIN_KEY", KEY)
    _status("--path", book, "--base-url", api.url)
    _status("--path", book, "--base-url", api.url, "--admin-key-file", str(tmp_path / "two"))
    monkeypatch.delenv("ANTHROPIC_ADMIN_KEY")
    monkeypatch.setenv("ANTHROPIC_ADMIN_KEY_FILE", str(tmp_path / "one"))
    monkeypatch.setenv("CLAUDE_PROXY_ANTHROPIC_BASE_URL", api.url)
    _status("--path", book)
    assert [seen.header("x-api-key") for seen in api.seen[::2]] == [KEY, "sk-ant-admin01-two", "sk-ant-admin01-one"]
    assert "sk-ant" not in "".join(capsys.readouterr())


def test_a_real_key_does_not_go_to_a_simulator(
    book: str, api: Upstream, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ANTHROPIC_ADMIN_KEY", KEY)
    assert _status("--path", book, "--simulator", api.url) == 2
    assert "/_simulator/counts: not the answer that is documented" in capsys.readouterr().err
    assert {seen.header("x-api-key") for seen in api.seen} == {"sk-ant-admin01-simulated"}


def test_a_key_file_that_is_not_there_is_named(book: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert _status("--path", book, "--admin-key-file", "nowhere") == 2
    assert "ANTHROPIC_ADMIN_KEY_FILE='nowhere' cannot be read" in capsys.readouterr().err


def test_nothing_on_either_side_agrees(
    book: str, api: Upstream, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ANTHROPIC_ADMIN_KEY", KEY)
    assert _status("--path", book, "--base-url", api.url, "--since", "2020-01-01", "--until", "2020-01-02") == 0
    assert capsys.readouterr().out == "Neither side has any call on these days.\n"
    assert "starting_at=2020-01-01T00%3A00%3A00Z&ending_at=2020-01-03T00%3A00%3A00Z" in api.seen[0].line


def test_an_api_that_refuses_is_one_line_and_status_2(
    book: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ANTHROPIC_ADMIN_KEY", KEY)
    with Upstream(json_answer(b"{}", "403 Forbidden")) as api:
        assert _status("--path", book, "--base-url", api.url) == 2
    assert capsys.readouterr().err == (
        "claude-proxy: /v1/organizations/usage_report/messages: the key may not read reports (403): it takes an Admin API "
        "key of somebody with the admin role\n"
    )


def test_no_ledger_is_said_before_anybody_is_asked(
    api: Upstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ANTHROPIC_ADMIN_KEY", KEY)
    assert _status("--path", str(tmp_path / "none"), "--base-url", api.url) == 2
    assert "no gateway has written one there yet" in capsys.readouterr().err
    assert api.seen == []


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--tolerance", "cow"], "'cow' is not a share like 0.5% or 0.005"),
        (["--tolerance", "100%"], "not a share"),
        (["--tolerance", "nan"], "not a share"),
        (["--since", "yesterday"], "neither a day like"),
    ],
)
def test_a_wrong_option_is_named(arguments: list[str], word: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["reconcile", *arguments])
    assert stopped.value.code == 2
    assert word in capsys.readouterr().err


def test_days_in_the_wrong_order_are_an_error(book: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert _status("--path", book, "--since", "2026-11-22", "--until", "2026-11-01") == 2
    assert "is after the last day" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--base-url", "--simulator"])
def test_an_address_that_is_none_is_an_error(book: str, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert _status("--path", book, option, "cow") == 2
    assert f"{option} cow is not valid" in capsys.readouterr().err


def test_help_names_the_exit_statuses(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["reconcile", "--help"])
    assert stopped.value.code == 0
    assert "Exit status: 0 everything agrees" in capsys.readouterr().out


def test_ctrl_c_while_it_waits_is_no_traceback(book: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        command = [sys.executable, "-m", "service.cli", "reconcile", "--path", book, "--base-url", url]
        environ = clean_environ({"ANTHROPIC_ADMIN_KEY": KEY})
        with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, env=environ) as process:
            connection, _ = silent.accept()
            with connection:
                poll(lambda: connection.recv(1), what="the request")
                process.send_signal(signal.SIGINT)
                out, err = process.communicate(timeout=30)
        assert (process.returncode, out, err) == (130, b"", b"")
