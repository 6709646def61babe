"""The processes of one run: started pinned, their output always read, stopped by process id."""

from __future__ import annotations

import http.client
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.bench import machine
from tests.bench.load import Closed, Command, Streams
from tests.support.processes import clean_environ, free_port

ROOT = Path(__file__).resolve().parents[2]
READY_SECONDS = 30.0


class Child:
    """A Python process of its own session, on `cores`."""

    def __init__(
        self,
        arguments: Sequence[str],
        cores: machine.Cores,
        environ: Mapping[str, str] | None = None,
        *,
        errors: int | None,
    ) -> None:
        with machine.pinned(cores):
            self.process = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=ROOT,
                env=clean_environ(environ or {}),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(10)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()

    @property
    def pid(self) -> int:
        """The process that does the work."""
        return self.process.pid


class Server(Child):
    """One of our own servers; `port` is known once it listens."""

    def __init__(self, module: str, cores: machine.Cores, *arguments: str) -> None:
        super().__init__(["-m", f"tests.bench.{module}", *arguments], cores, errors=None)
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())
        self.url = f"http://127.0.0.1:{self.port}"

    def counts(self) -> dict[str, int]:
        """What an `upstream` process has seen so far."""
        counts: dict[str, int] = json.loads(get(self.port, "/counts")[1])
        return counts


class Load(Child):
    """The load generator."""

    def __init__(self, cores: machine.Cores) -> None:
        super().__init__(["-m", "tests.bench.load"], cores, errors=None)

    def closed(self, command: Command) -> Closed:
        """Run a closed command."""
        return Closed(**self._ask(command, lambda: None))

    def streams(self, command: Command, meanwhile: Callable[[], None] = lambda: None) -> Streams:
        """Run a streams command; `meanwhile` is called ten times a second."""
        return Streams(**self._ask(command, meanwhile))

    def _ask(self, command: Command, meanwhile: Callable[[], None]) -> dict[str, Any]:
        source, answers = self.process.stdin, self.process.stdout
        assert source is not None
        assert answers is not None
        source.write(json.dumps(asdict(command)).encode() + b"\n")
        source.flush()
        deadline = time.monotonic() + command.seconds + 60
        while not select.select([answers], [], [], 0.1)[0]:
            meanwhile()
            if time.monotonic() > deadline:
                raise TimeoutError(f"no figures from the load generator for {command}")
        line = answers.readline()
        if not line:
            raise RuntimeError(f"the load generator ended at {command}")
        figures: dict[str, Any] = json.loads(line)
        return figures


class Gateway(Child):
    """The gateway in front of `upstream`, its log read from a pipe. `without` leaves parts out: see `variant`."""

    def __init__(
        self, cores: machine.Cores, upstream: str, environ: Mapping[str, str], without: Sequence[str] = ()
    ) -> None:
        self.port = free_port()
        settings = {
            "CLAUDE_PROXY_BIND": f"127.0.0.1:{self.port}",
            "CLAUDE_PROXY_ANTHROPIC_BASE_URL": upstream,
            "ANTHROPIC_API_KEY": "sk-ant-provider-key",
        }
        began = time.monotonic()
        program = ["-m", "tests.bench.variant", ",".join(without)] if without else ["-m", "service.cli"]
        super().__init__(
            [*program, "serve", "--env-file", os.devnull], cores, settings | dict(environ), errors=subprocess.STDOUT
        )
        self._last_output: deque[bytes] = deque(maxlen=64)
        threading.Thread(target=self._read, daemon=True).start()
        try:
            self._wait_until_ready()
        except BaseException:  # nobody else can stop it yet, and the signal that stops a run may come here
            self.__exit__(None, None, None)
            raise
        self.ready_seconds = time.monotonic() - began
        self._worker = machine.children(self.process.pid)[0]

    @property
    def pid(self) -> int:
        """The worker, not its master."""
        return self._worker

    def _read(self) -> None:
        assert self.process.stdout is not None
        descriptor = self.process.stdout.fileno()
        while data := os.read(descriptor, 65_536):
            self._last_output.append(data[-4096:])

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                if get(self.port, "/readyz")[0] == 200:
                    return
            except (OSError, http.client.HTTPException):
                pass
            time.sleep(0.005)
        raise RuntimeError(
            "the gateway did not get ready:\n" + b"".join(self._last_output).decode(errors="replace")[-2000:]
        )


def get(port: int, path: str) -> tuple[int, bytes]:
    """One GET request: status and body."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()
