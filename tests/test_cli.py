"""The command line: help, version, check, keys, and exit statuses."""

from __future__ import annotations

import os
import re
from pathlib import Path

import certifi
import pytest

import service
from service import cli, settings
from service.web.auth import Gate

COMMANDS = ("serve", "simulate", "check", "ledger", "key")


@pytest.fixture(autouse=True)
def _environment_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", os.environ.copy())


def _exits(*arguments: str) -> int | str | None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    return stopped.value.code


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert _exits("--help") == 0
    out = capsys.readouterr().out
    assert [c for c in COMMANDS if re.search(rf"^ +{c} ", out, re.MULTILINE)] == list(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_and_explains_each_of_its_options(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _exits(command, "--help") == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: claude-proxy {command} ")
    options = out.partition("options:")[2].partition("\n\n")[0]
    silent = [line for line in options.splitlines() if re.fullmatch(r"  -\S.*", line) and "  " not in line.strip()]
    following = options.splitlines()
    assert [line for line in silent if not following[following.index(line) + 1].startswith("     ")] == []


def test_version_says_the_packages_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert _exits("--version") == 0
    assert capsys.readouterr().out.startswith(f"claude-proxy {service.__version__} (Python 3.")


@pytest.mark.parametrize("arguments", [("fly",), ("key",), ("serve", "--no-such-option")])
def test_a_wrong_command_line_exits_with_2(arguments: tuple[str, ...]) -> None:
    assert _exits(*arguments) == 2


@pytest.mark.parametrize("command", ["serve", "check"])
def test_bad_settings_exit_with_2_and_one_line_that_names_the_variable(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    os.environ["CLAUDE_PROXY_WORKERS"] = "many"
    assert cli.main([command, "--env-file", os.devnull]) == 2
    assert capsys.readouterr().err == "claude-proxy: CLAUDE_PROXY_WORKERS='many' is not valid: expected a number.\n"


def test_no_command_prints_the_help_and_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert "make a client key" in capsys.readouterr().err


def test_check_without_a_key_shows_what_is_in_force_and_says_what_is_missing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    os.environ["CLAUDE_PROXY_WORKERS"] = "3"
    assert cli.main(["check", "--env-file", os.devnull]) == 2
    told = capsys.readouterr()
    assert re.search(r"^CLAUDE_PROXY_WORKERS +3$", told.out, re.MULTILINE)
    assert [line.split()[0] for line in told.out.splitlines()] == [row.name for row in settings.TABLE]
    assert told.err.startswith("claude-proxy: ANTHROPIC_API_KEY is empty")
    assert "--simulate-without-key" in told.err


def test_check_shows_a_malformed_value_as_such(capsys: pytest.CaptureFixture[str]) -> None:
    os.environ["HTTPS_PROXY"] = "htp://user:hunter2@proxy"
    assert cli.main(["check", "--env-file", os.devnull]) == 2
    told = capsys.readouterr()
    assert re.search(r"^HTTPS_PROXY +not valid$", told.out, re.MULTILINE)
    assert "hunter2" not in told.out + told.err


def test_no_address_is_shown_with_its_password(capsys: pytest.CaptureFixture[str]) -> None:
    os.environ["HTTPS_PROXY"] = "http://user:p@ss@proxy:3128"
    os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = "http://user:p@ss@receiver:4318"
    os.environ["ANTHROPIC_API_KEY"] = "k"
    assert cli.main(["check", "--env-file", os.devnull]) == 0
    out = capsys.readouterr().out
    assert "http://***@proxy:3128" in out
    assert "http://***@receiver:4318" in out
    assert "ss@" not in out


def test_the_ca_file_must_hold_certificates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.environ["ANTHROPIC_API_KEY"] = "k"
    os.environ["SSL_CERT_FILE"] = str(tmp_path / "ca.pem")
    (tmp_path / "ca.pem").write_text("not a certificate")
    assert cli.main(["check", "--env-file", os.devnull]) == 2
    assert "SSL_CERT_FILE" in capsys.readouterr().err
    os.environ["SSL_CERT_FILE"] = certifi.where()
    assert cli.main(["check", "--env-file", os.devnull]) == 0


@pytest.mark.parametrize("command", ["serve", "check"])
def test_an_env_file_that_was_named_must_exist(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "missing"
    assert cli.main([command, "--env-file", str(missing)]) == 2
    assert capsys.readouterr().err == f"claude-proxy: --env-file {missing} does not exist.\n"


def test_the_default_env_file_may_be_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    os.environ["ANTHROPIC_API_KEY"] = "k"
    assert cli.main(["check"]) == 0
    (tmp_path / ".env").write_text("CLAUDE_PROXY_WORKERS=7\n")
    assert cli.main(["check"]) == 0
    assert re.search(r"^CLAUDE_PROXY_WORKERS +7$", capsys.readouterr().out, re.MULTILINE)


def test_a_malformed_line_of_the_env_file_is_named_and_not_quoted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "env"
    file.write_text("# mine\nCLAUDE_PROXY_WORKERS=3\n\n\nANTHROPIC_API_KEY: sk-ant-hidden\n")
    assert cli.main(["check", "--env-file", str(file)]) == 2
    assert capsys.readouterr().err == f"claude-proxy: {file} is not valid: expected NAME=VALUE in line 5.\n"


def test_check_shows_every_setting_and_no_secret(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "env").write_text(
        "ANTHROPIC_API_KEY=sk-ant-hidden\nCLAUDE_PROXY_WORKERS=3\nHTTPS_PROXY=http://user:hunter2@proxy:3128\n"
    )
    assert cli.main(["check", "--env-file", str(tmp_path / "env")]) == 0
    out = capsys.readouterr().out
    shown = {line.split()[0]: line.partition(" ")[2].strip() for line in out.splitlines()}
    assert list(shown) == [row.name for row in settings.TABLE]
    assert {name: shown[name] for name in ("ANTHROPIC_API_KEY", "CLAUDE_PROXY_CLIENT_KEYS", "HTTPS_PROXY")} == {
        "ANTHROPIC_API_KEY": "set",
        "CLAUDE_PROXY_CLIENT_KEYS": "not set",
        "HTTPS_PROXY": "http://***@proxy:3128",
    }
    assert shown["CLAUDE_PROXY_WORKERS"] == "3"
    assert "hidden" not in out
    assert "hunter2" not in out


def test_the_environment_wins_over_the_env_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "env").write_text("ANTHROPIC_API_KEY=k\nCLAUDE_PROXY_WORKERS=3\n")
    os.environ["CLAUDE_PROXY_WORKERS"] = "5"
    assert cli.main(["check", "--env-file", str(tmp_path / "env")]) == 0
    assert re.search(r"^CLAUDE_PROXY_WORKERS +5$", capsys.readouterr().out, re.MULTILINE)


def test_a_made_key_lets_its_client_in_and_nobody_else(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["key", "alice"]) == 0
    out = capsys.readouterr().out
    key, entry = (line.rsplit(" ", 1)[1] for line in out.splitlines())
    assert key not in entry
    loaded = settings.load({"ANTHROPIC_API_KEY": "k", "CLAUDE_PROXY_CLIENT_KEYS": entry})
    assert Gate(loaded).admit([(b"x-api-key", key.encode())]).name == "alice"


def test_two_made_keys_differ(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["key", "alice"])
    first = capsys.readouterr().out
    cli.main(["key", "alice"])
    assert capsys.readouterr().out != first


@pytest.mark.parametrize("name", ["", "a b", "a/b", "a" * 65])
def test_a_name_that_could_not_stand_in_the_setting_is_refused(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["key", name]) == 2
    assert capsys.readouterr().err == (
        "claude-proxy: name: letters, digits, dot, dash and underscore only, at most 64\n"
    )


def test_ctrl_c_exits_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(settings, "overview", interrupted)
    assert cli.main(["check"]) == 130
