"""Several workers, one `/metrics`: whoever answers tells of all of them, in both formats, and of nobody else's."""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path

import httpx

from observability import catalog
from tests.process.test_workers import gone
from tests.support import claude
from tests.support.poll import poll
from tests.support.scrape import OPEN_METRICS, REQUESTS, all_up, ask, gateway_of, whole
from tests.support.upstream import Seen, Upstream, answer


def test_any_worker_tells_of_all_workers_and_their_sum_is_the_requests_sent() -> None:
    with gateway_of(3) as gateway:
        ask(gateway, 30)
        for _ in range(6):  # whoever answers
            found = whole(gateway)
            assert found.up == {"0": 1.0, "1": 1.0, "2": 1.0}
            assert sum(found.of(REQUESTS).values()) == 30
            assert found.of(REQUESTS).keys() <= found.up.keys()
            assert sum(found.of("claude_proxy_request_duration_seconds_count").values()) == 30
            for name in ("process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds"):
                assert found.of(name).keys() == found.up.keys()
            started = found.of("process_start_time_seconds")
            assert all(abs(time.time() - when) < 60 for when in started.values())
            assert {name for name, figures in found.by_worker.items() if "" in figures} == set()


def test_openmetrics_is_strict_ends_with_eof_and_alone_has_exemplars() -> None:
    with gateway_of(2) as gateway:
        ask(gateway, 4)
        found = whole(gateway, OPEN_METRICS)
        assert found.headers["content-type"] == "application/openmetrics-text; version=1.0.0; charset=utf-8"
        assert found.text.endswith("\n# EOF\n")
        assert found.text.count("# EOF") == 1
        allowed = {metric.name for metric in catalog.METRICS if metric.exemplar}
        carriers = {name.removesuffix("_bucket").removesuffix("_total") for name in found.exemplars}
        assert {"claude_proxy_requests", "claude_proxy_request_duration_seconds"} <= carriers <= allowed
        names = [line.split()[2] for line in found.text.splitlines() if line.startswith("# TYPE ")]
        assert len(names) == len(set(names))
        classic = whole(gateway)
        assert classic.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert "# EOF" not in classic.text
        assert [line for line in classic.text.splitlines() if " # {" in line] == []


def test_the_answer_of_a_scrape_closes_its_connection() -> None:
    with gateway_of(2) as gateway, httpx.Client(base_url=gateway.url) as client:
        assert client.get("/metrics").headers["connection"] == "close"
        assert client.get("/healthz").headers.get("connection") != "close"


def test_every_family_says_how_many_series_each_worker_has_of_it() -> None:
    with gateway_of(2) as gateway:
        ask(gateway, 4)
        lines = [line for line in whole(gateway).text.splitlines() if not line.startswith("#")]
        told = [line for line in lines if line.startswith(catalog.SERIES.name + "{")]
        others = [line for line in lines if "worker=" in line and line not in told]
        others = [line for line in others if not line.startswith(catalog.WORKER_UP.name)]
        for worker in ("0", "1"):
            mark = f'worker="{worker}"'
            counted = sum(float(line.rpartition(" ")[2]) for line in told if mark in line)
            assert counted == sum(mark in line for line in others)
        assert any('metric="flask_http_request"' in line for line in told)


def test_two_gateways_on_one_host_do_not_see_each_other() -> None:
    with gateway_of(2) as one, gateway_of(2) as other:
        ask(one, 6)
        assert sum(whole(one).of(REQUESTS).values()) == 6
        found = whole(other)
        assert found.of(REQUESTS) == {}
        assert found.up == {"0": 1.0, "1": 1.0}


def test_headroom_is_one_value_for_the_host_and_the_newest_wins() -> None:
    left = iter(range(49, 0, -1))

    def limited(connection: socket.socket, _seen: Seen) -> None:
        reset = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 300))
        headers = [
            "anthropic-ratelimit-requests-limit: 50",
            f"anthropic-ratelimit-requests-remaining: {next(left)}",
            f"anthropic-ratelimit-requests-reset: {reset}",
        ]
        connection.sendall(answer("200 OK", claude.MESSAGE, "content-type: application/json", *headers))

    name = catalog.QUOTA_REMAINING.name
    labels = 'gen_ai_provider_name="anthropic",gen_ai_request_model="claude-opus-5-5",dimension="requests"'
    with gateway_of(2, Upstream(limited)) as gateway:
        for sent in range(1, 7):
            other = gateway.worker_pids()[sent % 2]
            os.kill(other, signal.SIGSTOP)  # it accepts nothing: each has its turn
            try:
                ask(gateway)
            finally:
                os.kill(other, signal.SIGCONT)
            found = whole(gateway)
            shown = [line for line in found.text.splitlines() if line.startswith(name + "{")]
            assert shown == [f"{name}{{{labels}}} {50 - sent}.0"]
        assert found.of(REQUESTS) == {"0": 3, "1": 3}


def test_nothing_is_left_on_disk_neither_while_it_runs_nor_after_a_kill(tmp_path: Path) -> None:
    with gateway_of(2, TMPDIR=str(tmp_path)) as gateway:
        ask(gateway, 4)
        workers = gateway.worker_pids()
        names = [name for pid in workers for name in local_sockets(pid)]
        assert len(names) == 2
        assert all(name.startswith("@claude-proxy-") for name in names), "abstract: no file"
        assert list(tmp_path.iterdir()) == []
        os.kill(workers[0], signal.SIGKILL)
        poll(lambda: len(set(gateway.worker_pids()) - {workers[0]}) == 2, what="another worker")
        all_up(gateway, 2)
        left = gateway.worker_pids()
        gateway.process.kill()
        poll(lambda: all(gone(pid) for pid in left), what="the orphans to stop")
        assert list(tmp_path.iterdir()) == []


def local_sockets(pid: int) -> list[str]:
    """Names of the unix sockets that a process listens on."""
    own = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            own.add(os.readlink(descriptor))
        except FileNotFoundError:
            continue
    rows = (line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:])
    return [row[7] for row in rows if len(row) > 7 and f"socket:[{row[6]}]" in own and int(row[3], 16) & 0x10000]
