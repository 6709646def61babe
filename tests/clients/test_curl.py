"""curl, and through it what any HTTP client and Claude Code's gateway protocol need of the bytes on the wire."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from tests.clients.conftest import CURL, House
from tests.support.poll import poll

ASK = {"model": "claude-opus-5-5", "max_tokens": 256, "messages": [{"role": "user", "content": "Tell me."}]}
STREAM = json.dumps(ASK | {"stream": True})
KEY = House.key(CURL)
BASE = ("curl", "--silent", "--show-error", "--max-time", "30")
JSON = ("-H", "content-type: application/json", "-H", "anthropic-version: 2023-06-01")
_numbers = count(1)


class Curl:
    """Runs curl against the gateway, each time with a trace id of its own."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.trace = ""

    def command(self, path: str, *arguments: str, credential: str = f"x-api-key: {KEY}") -> list[str]:
        """The command line of one request to `path`."""
        self.trace = f"{next(_numbers):032x}"
        trace = ("-H", f"traceparent: 00-{self.trace}-00f067aa0ba902b7-01")
        key = ("-H", credential) if credential else ()
        return [*BASE, *JSON, *trace, *key, *arguments, self.house.gateway.url + path]

    def __call__(self, path: str, *arguments: str, **options: str) -> bytes:
        """What one request wrote to stdout."""
        return self.run(path, *arguments, **options).stdout

    def run(self, path: str, *arguments: str, **options: str) -> subprocess.CompletedProcess[bytes]:
        """One finished request."""
        done = subprocess.run(self.command(path, *arguments, **options), capture_output=True, timeout=40)
        assert done.returncode == 0, done.stderr
        return done

    def line(self) -> dict[str, Any]:
        """The gateway's log line of the last request."""
        return self.house.gateway.wait_log(
            lambda line: line["event"] == "request" and line["trace_id"] == self.trace, f"a line of trace {self.trace}"
        )

    def arrived(self) -> dict[str, Any]:
        """The last request as the provider got it."""
        upstream_id = self.line()["upstream_request_id"]
        recorded = self.house.simulator.get("/_simulator/requests")
        return next(each for each in recorded if each["request_id"] == upstream_id)


@pytest.fixture
def curl(house: House) -> Curl:
    if not shutil.which("curl"):
        pytest.skip("curl is not installed: apt-get install curl")
    return Curl(house)


def header_of(raw: bytes, name: str) -> str | None:
    """A header in what `--include` or `--head` shows."""
    found = re.search(rb"(?im)^" + name.encode() + rb": *(.*?)\r?$", raw)
    return found[1].decode() if found else None


@pytest.mark.parametrize(
    "credential",
    [f"x-api-key: {KEY}", f"Authorization: Bearer {KEY}", f"authorization: bearer {KEY}"],
    ids=["x-api-key", "bearer", "bearer-in-lower-case"],
)
def test_a_client_key_opens_the_gateway_in_either_header_and_goes_no_further(curl: Curl, credential: str) -> None:
    assert json.loads(curl("/v1/messages", "-d", json.dumps(ASK), credential=credential))["type"] == "message"
    assert curl.line()["client"] == CURL
    names = [name.lower() for name, _ in curl.arrived()["headers"]]
    assert names.count("x-api-key") == 1
    assert "authorization" not in names


def test_without_a_credential_the_answer_is_a_401_that_says_what_to_send(curl: Curl) -> None:
    raw = curl("/v1/messages", "-i", "-d", json.dumps(ASK), credential="")
    assert raw.startswith(b"HTTP/1.1 401 ")
    error = json.loads(raw.partition(b"\r\n\r\n")[2])["error"]
    assert error["type"] == "authentication_error"
    assert "x-api-key" in error["message"]


@pytest.mark.parametrize(
    ("scenario", "early", "late"),
    [
        ("first_ms=3000", b"event: ping", b"content_block_delta"),
        ("first_ms=0;gap_ms=1500;chunks=3;ping_every=1", b"content_block_delta", b"message_stop"),
    ],
    ids=["ping-before-text", "text-before-the-end"],
)
def test_events_of_a_stream_come_at_once(curl: Curl, scenario: str, early: bytes, late: bytes) -> None:
    command = curl.command("/v1/messages", "-N", "-H", f"x-simulator-scenario: {scenario}", "-d", STREAM)
    at: dict[bytes, float] = {}
    with subprocess.Popen(command, stdout=subprocess.PIPE, bufsize=0) as process:
        assert process.stdout is not None
        seen = b""
        while chunk := process.stdout.read(65_536):
            seen += chunk
            for mark in (early, late):
                if mark in seen:
                    at.setdefault(mark, time.monotonic())
    assert at[late] - at[early] > 1.0
    assert seen.endswith(b"\n\n")


def test_a_client_that_is_killed_ends_the_call_upstream(curl: Curl) -> None:
    scenario = "x-simulator-scenario: gap_ms=50;chunks=400;output_tokens=256"
    process = subprocess.Popen(
        curl.command("/v1/messages", "-N", "-H", scenario, "-d", STREAM), stdout=subprocess.PIPE, bufsize=0
    )
    with process:
        assert process.stdout is not None
        while b"content_block_delta" not in process.stdout.read(65_536):
            pass
        process.kill()
    line = curl.line()
    assert line["outcome"] == "client_abort"

    def ending() -> str | None:
        calls = curl.house.simulator.get("/_simulator/counts")["calls"]
        return next((each["ending"] for each in calls if each["request_id"] == line["upstream_request_id"]), None)

    assert poll(ending, what="the provider's record of the call") == "aborted"


@pytest.mark.parametrize("framing", [(), ("-H", "Transfer-Encoding: chunked")], ids=["content-length", "chunked"])
def test_a_large_body_that_expects_100_continue_is_asked_for_and_goes_up_whole(
    curl: Curl, tmp_path: Path, framing: tuple[str, ...]
) -> None:
    body = tmp_path / "body.json"
    body.write_text(json.dumps(ASK | {"messages": [{"role": "user", "content": "x" * (4 << 20)}]}))
    done = curl.run("/v1/messages/count_tokens", "-v", *framing, "-H", "Expect: 100-continue", "-d", f"@{body}")
    assert b"< HTTP/1.1 100 Continue" in done.stderr
    assert json.loads(done.stdout)["input_tokens"] >= 1 << 20
    arrived = curl.arrived()
    assert arrived["body_bytes"] == body.stat().st_size
    assert "expect" not in [name.lower() for name, _ in arrived["headers"]]


def test_a_body_over_the_limit_that_expects_100_continue_is_refused_without_being_sent(
    curl: Curl, tmp_path: Path
) -> None:
    body = tmp_path / "body.json"
    with body.open("wb") as file:
        file.truncate(33 << 20)
    written = "%{stderr}%{response_code} %{size_upload}"
    done = curl.run("/v1/messages", "-w", written, "-H", "Expect: 100-continue", "--data-binary", f"@{body}")
    assert done.stderr.split() == [b"413", b"0"]
    assert json.loads(done.stdout)["error"]["type"] == "request_too_large"


def test_http_1_0_gets_a_whole_answer_without_chunks(curl: Curl) -> None:
    raw = curl("/v1/messages", "-0", "-i", "--raw", "-d", json.dumps(ASK))
    head, _, body = raw.partition(b"\r\n\r\n")
    assert b" 200 " in head.split(b"\r\n")[0]
    assert header_of(head, "transfer-encoding") is None
    assert json.loads(body)["type"] == "message"


def test_http_1_0_gets_a_whole_stream_without_chunks(curl: Curl) -> None:
    raw = curl("/v1/messages", "-0", "-i", "--raw", "-N", "-d", STREAM)
    head, _, body = raw.partition(b"\r\n\r\n")
    assert header_of(head, "transfer-encoding") is None
    assert body.startswith(b"event: message_start\n")
    assert body.endswith(b'data: {"type":"message_stop"}\n\n')


def test_a_connection_is_kept_for_the_next_request(curl: Curl) -> None:
    url = curl.house.gateway.url
    many = ("-w", "%{stderr}%{num_connects} ", "-o", "/dev/null", "-o", "/dev/null", url + "/v1/models")
    done = curl.run("/v1/models", *many)
    assert done.stderr.split() == [b"1", b"0"]


def test_compression_reaches_the_client_as_the_provider_made_it(curl: Curl) -> None:
    options = ("--compressed", "-i", "-H", "x-simulator-scenario: gzip", "-d", json.dumps(ASK))
    head, _, body = curl("/v1/messages", *options).partition(b"\r\n\r\n")
    assert header_of(head, "content-encoding") == "gzip"
    assert json.loads(body)["usage"]["output_tokens"] == curl.line()["output_tokens"]


CLAUDE_CODE_HEADERS = [
    ["anthropic-beta", "claude-code-20250219,interleaved-thinking-2025-05-14 ,  never-heard-of-2027-01-01"],
    ["x-claude-code-session-id", "0b1c2d3e-0000-4000-8000-00000000cafe"],
    ["x-claude-code-agent-id", "agent-7"],
    ["x-claude-code-parent-agent-id", "agent-1"],
    ["x-app", "cli"],
    ["X-Odd-Header", 'a, b;c="d"'],
]


def test_headers_and_query_of_claude_code_arrive_byte_for_byte(curl: Curl) -> None:
    headers = [part for name, value in CLAUDE_CODE_HEADERS for part in ("-H", f"{name}: {value}")]
    curl("/v1/messages?beta=true&x=%2F%20", *headers, "-d", json.dumps(ASK))
    arrived = curl.arrived()
    assert (arrived["path"], arrived["query"]) == ("/v1/messages", "beta=true&x=%2F%20")
    sent = [[name.lower(), value] for name, value in CLAUDE_CODE_HEADERS]
    names = {name for name, _ in sent}
    assert [[name.lower(), value] for name, value in arrived["headers"] if name.lower() in names] == sent


def test_nothing_goes_up_that_the_client_did_not_send_but_the_trace_and_the_key(curl: Curl) -> None:
    curl("/v1/messages", "-H", "User-Agent:", "-H", "Accept:", "-d", json.dumps(ASK))
    names = sorted(name.lower() for name, _ in curl.arrived()["headers"])
    assert names == ["anthropic-version", "content-length", "content-type", "host", "traceparent", "x-api-key"]
    assert dict(curl.arrived()["headers"])["traceparent"].split("-")[1] == curl.trace


def test_baggage_and_cookies_of_one_tenant_do_not_reach_another(curl: Curl) -> None:
    cookie = ("-i", "-H", "x-simulator-scenario: cookie", "-H", "baggage: user=anna", "-d", json.dumps(ASK))
    assert header_of(curl("/v1/messages", *cookie), "set-cookie")
    assert "baggage" not in dict(curl.arrived()["headers"])
    curl("/v1/messages", "-d", json.dumps(ASK))
    assert "cookie" not in dict(curl.arrived()["headers"])


def test_the_models_are_listed_as_claude_code_asks_for_them_without_a_redirect(curl: Curl) -> None:
    raw = curl("/v1/models?limit=1000", "-i")
    assert raw.startswith(b"HTTP/1.1 200 ")
    listed = json.loads(raw.partition(b"\r\n\r\n")[2])
    assert not listed["has_more"]
    assert "claude-opus-5-5" in [model["id"] for model in listed["data"]]


@pytest.mark.parametrize("path", ["/", "/v1/models", "/v1/messages", "/nothing"])
def test_head_is_answered_at_once_and_without_a_body(curl: Curl, path: str) -> None:
    raw = curl(path, "--head")
    assert int(raw.split()[1]) in {200, 404, 405}
    assert raw.endswith(b"\r\n\r\n")
    assert header_of(raw, "x-request-id")


@pytest.mark.parametrize(("path", "status"), [("/", 404), ("/v1", 404), ("/v1/messages", 405)])
def test_a_get_that_leads_nowhere_is_an_error_in_the_provider_s_shape(curl: Curl, path: str, status: int) -> None:
    raw = curl(path, "-i")
    assert int(raw.split()[1]) == status
    body = json.loads(raw.partition(b"\r\n\r\n")[2])
    assert body["type"] == "error"
    assert body["request_id"] == header_of(raw, "x-request-id") == header_of(raw, "request-id")


def ended_batch(curl: Curl, path: str) -> tuple[str, bytes]:
    """Id and answer of a batch that has ended."""
    asked = json.dumps({"requests": [{"custom_id": "one", "params": ASK}]})
    batch_id = json.loads(curl(path, "-d", asked))["id"]
    return batch_id, poll(
        lambda: raw if b'"ended"' in (raw := curl(f"{path}/{batch_id}", "--compressed")) else None,
        what="the end of a batch",
    )


@pytest.mark.parametrize(
    ("prefix", "extra", "scheme"),
    [("", (), "http"), ("/anthropic", (), "http"), ("", ("-H", "X-Forwarded-Proto: https"), "https")],
    ids=["plain", "under-anthropic", "behind-tls"],
)
def test_results_of_a_batch_are_found_at_the_gateway_and_nothing_else_in_the_answer_is_touched(
    curl: Curl, prefix: str, extra: tuple[str, ...], scheme: str
) -> None:
    path = prefix + "/v1/messages/batches"
    batch_id, _ = ended_batch(curl, path)
    answer = curl(f"{path}/{batch_id}", *extra)
    simulator = curl.house.simulator.url
    direct = subprocess.run(
        [*BASE, *JSON, "-H", "x-api-key: sk-ant-provider-key", f"{simulator}/v1/messages/batches/{batch_id}"],
        capture_output=True,
        check=True,
    ).stdout
    ours = f"{scheme}://127.0.0.1:{curl.house.gateway.port}{prefix}"
    assert json.loads(answer)["results_url"] == f"{ours}/v1/messages/batches/{batch_id}/results"
    assert answer == direct.replace(simulator.encode(), ours.encode())
    if scheme == "http":
        line = json.loads(curl(json.loads(answer)["results_url"].removeprefix(curl.house.gateway.url)))
        assert line["custom_id"] == "one"


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_an_answer_is_byte_for_byte_the_provider_s(curl: Curl, stream: bool) -> None:
    # The same seed and request give the same answer, but for the message's id.
    scenario = ("-H", "x-simulator-scenario: unknown_events;comments;crlf;ping_every=2;message_deltas=2")
    body = ("-d", STREAM if stream else json.dumps(ASK))
    direct = [*BASE, *JSON, "-H", "x-api-key: sk-ant-provider-key", *scenario, *body]
    alone = subprocess.run([*direct, curl.house.simulator.url + "/v1/messages"], capture_output=True, check=True).stdout
    through = curl("/v1/messages", *scenario, *body)
    assert re.sub(rb"msg_01\w+", b"msg", through) == re.sub(rb"msg_01\w+", b"msg", alone)
