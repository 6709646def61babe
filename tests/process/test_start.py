"""Start-up that must not happen: exit status 2, and one line that names the setting and what to do."""

from __future__ import annotations

import pytest

from tests.support.processes import Gateway

REFUSED = {
    "unknown": ({"CLAUDE_PROXY_WORKER": "2"}, ["CLAUDE_PROXY_WORKER is not a setting", "CLAUDE_PROXY_WORKERS?"]),
    "malformed": ({"CLAUDE_PROXY_IDLE_TIMEOUT": "soon"}, ["CLAUDE_PROXY_IDLE_TIMEOUT='soon'", "a number"]),
    "out_of_range": ({"CLAUDE_PROXY_WORKERS": "0"}, ["CLAUDE_PROXY_WORKERS", "from 1 to 64"]),
    "no_key": ({"ANTHROPIC_API_KEY": ""}, ["ANTHROPIC_API_KEY", "CLAUDE_PROXY_CREDENTIALS=pass"]),
    "key_file_missing": ({"ANTHROPIC_API_KEY": "", "ANTHROPIC_API_KEY_FILE": "/nowhere/key"}, ["ANTHROPIC_API_KEY_FILE"]),
    "open_to_all": ({"CLAUDE_PROXY_BIND": "0.0.0.0:0"}, ["CLAUDE_PROXY_BIND", "CLAUDE_PROXY_CLIENT_KEYS"]),
    "open_to_all_v6": ({"CLAUDE_PROXY_BIND": "[::]:0"}, ["CLAUDE_PROXY_BIND", "CLAUDE_PROXY_CLIENT_KEYS"]),
    "client_key_malformed": ({"CLAUDE_PROXY_CLIENT_KEYS": "team:secret-in-clear"}, ["CLAUDE_PROXY_CLIENT_KEYS", "NAME:SHA256"]),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_bad_setting_stops_the_start_with_status_2_and_one_line_that_names_it(case: str) -> None:
    environ, says = REFUSED[case]
    gateway = Gateway("http://127.0.0.1:9", **environ)
    try:
        assert gateway.wait() == 2
    finally:
        gateway.__exit__(None, None, None)
    (line,) = gateway.lines
    for part in says:
        assert part in line
    assert "secret-in-clear" not in line
