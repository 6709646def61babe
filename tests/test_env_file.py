"""The env file: how it is read, and that every load reads it anew."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from service import parse, settings
from service.errors import SettingsError


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("", {}),
        ("# nothing\n\n", {}),
        ("A=1\nexport B='two words' # why\nC=\n", {"A": "1", "B": "two words", "C": ""}),
        ("A=1\nB=${A}2${OUT}${NO:-x}\n", {"A": "1", "B": "12outx"}),
        ('A="two\nlines"\nB=1', {"A": "two\nlines", "B": "1"}),
    ],
)
def test_an_env_file_is_read_as_shells_and_compose_do(text: str, values: dict[str, str]) -> None:
    assert parse.env_file(text, {"OUT": "out"}) == values


@pytest.mark.parametrize(
    ("text", "line"),
    [("word", 1), ("A=1\nB: 2", 2), ("\n\n'a=b'=1", 3), ('A=1\n\nB="open\nC=1', 3), ("A=1\nB=\0", 2), ("=x", 1)],
)
def test_a_line_that_is_no_variable_is_refused_by_its_number(text: str, line: int) -> None:
    with pytest.raises(ValueError, match=f"^NAME=VALUE in line {line}$"):
        parse.env_file(text, {})


def test_a_load_reads_the_env_file_anew_and_the_environment_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "env"
    monkeypatch.setattr(os, "environ", {"CLAUDE_PROXY_WORKERS": "2"})
    file.write_text("ANTHROPIC_API_KEY=first\nCLAUDE_PROXY_WORKERS=9\nOTEL_EXPORTER_OTLP_HEADERS=a=b\n")
    source = settings.Environment(file, required=True)
    loaded = source.load()
    assert (loaded.upstreams["anthropic"].key, loaded.workers) == ("first", 2)
    assert os.environ["OTEL_EXPORTER_OTLP_HEADERS"] == "a=b"
    file.write_text("ANTHROPIC_API_KEY=second\n")
    assert source.load().upstreams["anthropic"].key == "second"
    assert os.environ == {"CLAUDE_PROXY_WORKERS": "2", "ANTHROPIC_API_KEY": "second"}
    for bad in ("CLAUDE_PROXY_WORKER=1", "ANTHROPIC_API_KEY=x\nCLAUDE_PROXY_BIND=127.0.0.1:1", "word"):
        file.write_text(bad)
        with pytest.raises(SettingsError):
            source.load()
        assert os.environ == {"CLAUDE_PROXY_WORKERS": "2", "ANTHROPIC_API_KEY": "second"}
    source.override(ANTHROPIC_API_KEY="simulated")
    file.write_text("ANTHROPIC_API_KEY=third\n")
    assert source.load().upstreams["anthropic"].key == os.environ["ANTHROPIC_API_KEY"] == "simulated"
