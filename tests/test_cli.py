"""The command line: help, version, check, keys, and exit statuses."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

import service
from service import cli, settings
from service.web.auth import Gate

COMMANDS = ("serve", "simulate", "check", "key")


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


@pytest.mark.parametrize("arguments", [(), ("fly",), ("key",), ("serve", "--no-such-option")])
def test_a_wrong_command_line_exits_with_2(arguments: tuple[str, ...]) -> None:
    assert _exits(*arguments) == 2


@pytest.mark.parametrize("command", ["serve", "check"])
def test_bad_settings_exit_with_2_and_one_line_that_names_the_variable(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    os.environ["CLAUDE_PROXY_WORKERS"] = "many"
    assert cli.main([command, "--env-file", os.devnull]) == 2
    assert capsys.readouterr().err == "claude-proxy: CLAUDE_PROXY_WORKERS='many' is not valid: expected a number.\n"


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
        "HTTPS_PROXY": "set",
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

    monkeypatch.setattr(cli, "_read_env_file", interrupted)
    assert cli.main(["check"]) == 130
