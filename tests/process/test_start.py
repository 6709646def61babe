"""Start-up that must not happen: exit status 2, and one line that names the setting and what to do."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.support import claude
from tests.support.poll import poll
from tests.support.processes import Gateway, clean_environ
from tests.support.upstream import Seen, Upstream, answer


def plain(connection: socket.socket, _: Seen) -> None:
    """A complete answer."""
    connection.sendall(answer("200 OK", claude.MESSAGE, "content-type: application/json"))


REFUSED = {
    "unknown": ({"CLAUDE_PROXY_WORKER": "2"}, ["CLAUDE_PROXY_WORKER is not a setting", "CLAUDE_PROXY_WORKERS?"]),
    "malformed": ({"CLAUDE_PROXY_IDLE_TIMEOUT": "soon"}, ["CLAUDE_PROXY_IDLE_TIMEOUT='soon'", "a number"]),
    "out_of_range": ({"CLAUDE_PROXY_WORKERS": "0"}, ["CLAUDE_PROXY_WORKERS", "from 1 to 64"]),
    "no_key": ({"ANTHROPIC_API_KEY": ""}, ["ANTHROPIC_API_KEY", "CLAUDE_PROXY_CREDENTIALS=pass"]),
    "key_file_missing": ({"ANTHROPIC_API_KEY": "", "ANTHROPIC_API_KEY_FILE": "/nowhere/key"}, ["ANTHROPIC_API_KEY_FILE"]),
    "open_to_all": ({"CLAUDE_PROXY_BIND": "0.0.0.0:0"}, ["CLAUDE_PROXY_BIND", "CLAUDE_PROXY_CLIENT_KEYS"]),
    "open_to_all_v6": ({"CLAUDE_PROXY_BIND": "[::]:0"}, ["CLAUDE_PROXY_BIND", "CLAUDE_PROXY_CLIENT_KEYS"]),
    "ca_file_missing": ({"SSL_CERT_FILE": "/nowhere/ca.pem"}, ["SSL_CERT_FILE='/nowhere/ca.pem'", "No such file"]),
    "address_of_another_machine": ({"CLAUDE_PROXY_BIND": "192.0.2.1:8000", "CLAUDE_PROXY_CLIENT_KEYS": "a:" + "0" * 64}, ["CLAUDE_PROXY_BIND=192.0.2.1:8000"]),
    "client_key_malformed": ({"CLAUDE_PROXY_CLIENT_KEYS": "team:secret-in-clear"}, ["CLAUDE_PROXY_CLIENT_KEYS", "NAME:SHA256"]),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_bad_setting_stops_the_start_with_status_2_and_one_line_that_names_it(case: str) -> None:
    environ, says = REFUSED[case]
    gateway = Gateway("http://127.0.0.1:9", **environ)
    try:
        assert gateway.wait(60) == 2
    finally:
        gateway.__exit__(None, None, None)
    (line,) = gateway.lines
    for part in says:
        assert part in line
    assert "secret-in-clear" not in line


@pytest.mark.parametrize("also", [(), ("--simulate-without-key",)])
def test_a_port_that_is_taken_stops_the_start_at_once_with_one_line(also: tuple[str, ...]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        bind = f"127.0.0.1:{taken.getsockname()[1]}"
        command = [sys.executable, "-m", "service.cli", "serve", "--env-file", os.devnull, *also]
        environ = {"CLAUDE_PROXY_BIND": bind} | ({} if also else {"ANTHROPIC_API_KEY": "k"})
        ended = subprocess.run(command, env=clean_environ(environ), capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr == f"claude-proxy: CLAUDE_PROXY_BIND={bind} cannot be listened on: Address already in use.\n"


class WithEnvFile(Gateway):
    """A gateway whose provider key is in an env file."""

    def __init__(self, upstream: str, file: Path) -> None:
        self.file = file
        super().__init__(upstream, ANTHROPIC_API_KEY="", CLAUDE_PROXY_KEEPALIVE="1")

    def arguments(self) -> list[str]:
        """Names the file."""
        return ["-m", "service.cli", "serve", "--env-file", str(self.file)]


def test_a_reload_reads_the_env_file_anew_and_with_a_bad_one_keeps_the_old(tmp_path: Path) -> None:
    file = tmp_path / "env"
    file.write_text("ANTHROPIC_API_KEY=sk-ant-first\n")
    with Upstream(plain) as upstream, WithEnvFile(upstream.url, file) as gateway:

        def key_used() -> str | None:
            upstream.seen.clear()
            with gateway.client() as client:
                assert client.post("/v1/messages", json=claude.ASKED).status_code == 200
            return upstream.seen[0].header("x-api-key")

        (old,) = gateway.worker_pids()
        assert key_used() == "sk-ant-first"
        for bad in ("CLAUDE_PROXY_WORKER=2", "ANTHROPIC_API_KEY sk-ant-none", "CLAUDE_PROXY_IDLE_TIMEOUT=soon"):
            file.write_text(f"ANTHROPIC_API_KEY=sk-ant-bad\n{bad}\n")
            seen = len(gateway.log())
            gateway.process.send_signal(signal.SIGHUP)
            poll(lambda: any("reload refused" in str(x) for x in gateway.log()[seen:]), what="the refusal")  # noqa: B023
        assert gateway.worker_pids() == [old]
        assert key_used() == "sk-ant-first"
        file.write_text("ANTHROPIC_API_KEY=sk-ant-second\n")
        gateway.process.send_signal(signal.SIGHUP)
        poll(lambda: old not in gateway.worker_pids() and gateway.worker_pids(), what="another worker")
        assert key_used() == "sk-ant-second"
        assert gateway.stop() == 0


class Simulating(WithEnvFile):
    """No key anywhere: the gateway starts a simulator."""

    def __init__(self, file: Path) -> None:
        super().__init__("", file)

    def arguments(self) -> list[str]:
        """As `make run` does."""
        return [*super().arguments(), "--simulate-without-key"]


def test_a_reload_keeps_the_simulator_that_stands_in_for_claude(tmp_path: Path) -> None:
    file = tmp_path / "env"
    file.write_text("")
    with Simulating(file) as gateway:
        old = set(gateway.worker_pids())
        file.write_text("CLAUDE_PROXY_DEFAULT_MODEL=claude-haiku-4-5\n")
        gateway.process.send_signal(signal.SIGHUP)
        poll(lambda: len(set(gateway.worker_pids()) - old) == 1, what="another worker")
        poll(lambda: len(old - set(gateway.worker_pids())) == 1, what="the old worker to end")
        with gateway.client() as client:
            answered = client.post("/generate", json={"prompt": "Hello"})
        assert answered.json()["model"].startswith("claude-haiku-4-5")
        assert gateway.stop() == 0


def test_a_reload_with_a_bad_price_file_keeps_the_gateway_up(tmp_path: Path) -> None:
    prices = tmp_path / "prices.json"
    prices.write_text("{}")
    with Upstream(plain) as upstream, Gateway(upstream.url, CLAUDE_PROXY_PRICES_FILE=str(prices)) as gateway:
        prices.write_text('{"no-such-provider/model": {"input": 1, "output": 1}}')
        gateway.process.send_signal(signal.SIGHUP)
        refusal = gateway.wait_log(lambda line: "reload refused" in line.get("message", ""), "the refusal")
        assert "CLAUDE_PROXY_PRICES_FILE" in refusal["message"]
        with gateway.client() as client:
            assert client.post("/v1/messages", json=claude.ASKED).status_code == 200


@pytest.mark.parametrize("now", [None, '{"no-such-provider/model": {"input": 1, "output": 1}}'])
def test_a_worker_that_takes_a_dead_ones_place_has_the_price_file_of_the_last_good_load(
    tmp_path: Path, now: str | None
) -> None:
    prices = tmp_path / "prices.json"
    prices.write_text('{"anthropic/claude-opus-5-5": {"input": 1000, "output": 0}}')
    settings = {"CLAUDE_PROXY_PRICES_FILE": str(prices), "CLAUDE_PROXY_LEDGER": str(tmp_path / "ledger")}
    with Upstream(plain) as upstream, Gateway(upstream.url, **settings) as gateway:
        prices.unlink() if now is None else prices.write_text(now)
        (old,) = gateway.worker_pids()
        os.kill(old, signal.SIGKILL)
        poll(lambda: gateway.worker_pids() not in ([], [old]), what="another worker")
        poll(lambda: httpx.get(gateway.url + "/readyz", timeout=2).status_code == 200, what="it to be ready")
        with gateway.client() as client:
            assert client.post("/v1/messages", json=claude.ASKED).status_code == 200
        (line,) = gateway.wait_requests(1)
        assert line["cost_usd"] == line["input_tokens"] / 1000
