"""Real servers for the tests: started on free loopback ports with folders of their own, stopped by process id."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.poll import poll
from tests.support.processes import held_port, port_of
from tests.support.stack_files import JAEGER, PROMETHEUS, ROOT, RULES, service


def find(program: str, install: str) -> str:
    """Where a program is; skips the test with how to install it when it is nowhere."""
    here = ROOT / ".tools/bin" / program
    found = str(here) if here.is_file() else shutil.which(program)
    if found is None:
        pytest.skip(f"{program} is not installed: {install}")
    return found


def promtool() -> str:
    """Prometheus' own checker."""
    return find("promtool", "apt-get install prometheus")


@contextmanager
def running(arguments: list[str], folder: Path, environ: Mapping[str, str] | None = None) -> Iterator[Path]:
    """A server process in `folder`; yields its log. Ended by SIGTERM, and killed when it does not end."""
    log = folder / "log"
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder)} | dict(environ or {})
    with (
        log.open("wb") as output,
        subprocess.Popen(arguments, cwd=folder, env=environment, stdout=output, stderr=output) as process,
    ):
        try:
            yield log
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


def _ready(url: str, log: Path) -> None:
    try:
        poll(lambda: httpx.get(url, timeout=10).status_code == 200, what=url, seconds=60)
    except AssertionError as error:
        raise AssertionError(f"{error}; its log:\n{log.read_text(errors='replace')[-2000:]}") from None


class Jaeger:
    """The project's Jaeger configuration in a real Jaeger."""

    def __init__(self) -> None:
        self._held = {name: held_port() for name in ("QUERY", "QUERY_GRPC", "HEALTH", "OTLP")}
        self.ports = {name: port_of(held) for name, held in self._held.items()}
        self.url = f"http://127.0.0.1:{self.ports['QUERY']}"
        self.otlp = f"http://127.0.0.1:{self.ports['OTLP']}"
        self.health = f"http://127.0.0.1:{self.ports['HEALTH']}/status"
        self._http = httpx.Client(base_url=self.url, timeout=10)

    @contextmanager
    def serve(self, folder: Path) -> Iterator[Jaeger]:
        """Run until the block ends."""
        with ExitStack() as held:
            for each in self._held.values():
                held.enter_context(each)
            program = find("jaeger", "run .ci/install-jaeger (needs Go), or put Jaeger v2's binary on PATH")
            environ = {f"JAEGER_{name}_PORT": str(port) for name, port in self.ports.items()}
            with running([program, "--config", str(JAEGER)], folder, environ) as log, self._http:
                _ready(self.health, log)
                _ready(self.url + "/api/services", log)
                yield self

    def services(self) -> list[str]:
        """The services that it has spans of."""
        names: list[str] = self._http.get("/api/services").json()["data"]
        return names

    def spans(self, trace_id: str, count: int = 1) -> list[dict[str, Any]]:
        """A trace's spans, once there are `count`; ids, names and `tags` as a dict."""

        def complete() -> list[dict[str, Any]] | None:
            answer = self._http.get(f"/api/traces/{trace_id}")
            if answer.status_code != 200:
                return None
            spans: list[dict[str, Any]] = answer.json()["data"][0]["spans"]
            return (
                [s | {"tags": {t["key"]: t["value"] for t in s["tags"]}} for s in spans]
                if len(spans) >= count
                else None
            )

        return poll(complete, what=f"{count} spans of trace {trace_id}")


class Prometheus:
    """The project's Prometheus configuration and command line in a real Prometheus, scraping `targets` every second."""

    def __init__(self, targets: Sequence[str], token: str) -> None:
        self._targets, self._token = targets, token
        self._held = held_port()
        port = port_of(self._held)
        self.url = f"http://127.0.0.1:{port}"
        self._listen = f"--web.listen-address=127.0.0.1:{port}"
        self._http = httpx.Client(base_url=self.url, timeout=10)

    def configure(self, folder: Path) -> Path:
        """The configuration with this test's addresses in place of the containers'."""
        (folder / "token").write_text(self._token)
        text = PROMETHEUS.read_text(encoding="utf-8")
        for shipped, here in (
            ("gateway:8000", ", ".join(self._targets)),
            ("/run/secrets/metrics_token", str(folder / "token")),
            ("scrape_interval: 5s", "scrape_interval: 1s"),
            ("scrape_timeout: 4s", "scrape_timeout: 1s"),
            ("evaluation_interval: 15s", "evaluation_interval: 1s"),
        ):
            assert shipped in text
            text = text.replace(shipped, here)
        rules = RULES.read_text(encoding="utf-8")
        # As fast as this Prometheus scrapes: nobody waits five minutes for what clients spent today.
        for shipped, here in (("    interval: 1m", "    interval: 1s"), (")[1d:5m]", ")[1h:1s]")):
            assert shipped in rules
            rules = rules.replace(shipped, here)
        (folder / RULES.name).write_text(rules)
        written = folder / "prometheus.yml"
        written.write_text(text)
        return written

    @contextmanager
    def serve(self, folder: Path) -> Iterator[Prometheus]:
        """Run until the block ends."""
        with self._held:
            program = find("prometheus", "apt-get install prometheus")
            places = {
                "--config.file=/etc/prometheus/prometheus.yml": f"--config.file={self.configure(folder)}",
                "--storage.tsdb.path=/prometheus": f"--storage.tsdb.path={folder / 'data'}",
            }
            flags = [places.pop(flag, flag) for flag in service("prometheus")["command"]]
            assert not places
            with running([program, *flags, self._listen], folder) as log, self._http:
                _ready(self.url + "/-/ready", log)
                yield self

    def get(self, path: str, **parameters: str | float) -> Any:
        """The `data` of one API answer."""
        answer = self._http.get(f"/api/v1/{path}", params=parameters)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]

    def values(self, expr: str, at: float) -> list[float]:
        """Every value of an instant query at a Unix time."""
        return [float(row["value"][1]) for row in self.get("query", query=expr, time=at)["result"]]

    def by(self, label: str, expr: str, at: float) -> dict[str, float]:
        """The same by one label."""
        rows = self.get("query", query=expr, time=at)["result"]
        return {row["metric"].get(label, ""): float(row["value"][1]) for row in rows}
