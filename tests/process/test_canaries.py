"""Keys and prompts never leave by telemetry: known ones go through every route and every way to fail, and are looked for."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import httpx
import pytest

from observability.catalog import Attr
from service.upstream.anthropic import Anthropic
from service.upstream.content import LIMIT
from service.web.auth import hash_key
from tests.support import canaries, claude
from tests.support.canaries import BARE, CLIENT_KEY, FILE, PATH_KEY, PLAYS, PROMPT, QUERY, SYSTEM, WRONG_KEY, Search
from tests.support.otlp import OtlpSink
from tests.support.poll import poll
from tests.support.processes import Gateway, nobody
from tests.support.upstream import Upstream
from tests.support.wire import Wire

BUGS = """
import os, sys
from service.cli import main
from service.pipeline import Pipeline
from service.upstream.anthropic import StreamReader
run, feed = Pipeline.run, StreamReader.feed
async def buggy_run(self, exchange, call, prepared, **options):
    if b"a-bug-before" in bytes(prepared.body if isinstance(prepared.body, bytes) else b""):
        try:
            raise KeyError(prepared.body)
        except KeyError as error:
            raise ValueError(repr(prepared)) from error
    return await run(self, exchange, call, prepared, **options)
def buggy_feed(self, chunk):
    if b"a-bug-within" in chunk:
        raise ValueError(repr(chunk))
    feed(self, chunk)
Pipeline.run, StreamReader.feed = buggy_run, buggy_feed
sys.exit(main(["serve", "--env-file", os.devnull]))
"""
"""The gateway with two bugs that quote what they were given, one before the answer and one in the middle of it."""


class BuggyGateway(Gateway):
    """The gateway with the bugs above."""

    def arguments(self) -> list[str]:
        """What Python is to run."""
        return ["-c", BUGS]


class Stage:
    """A gateway told to log and export everything, and what its clients got from it in its own words."""

    def __init__(self, gateway: Gateway, upstream: Upstream, sink: OtlpSink, client: httpx.Client) -> None:
        self.gateway, self.upstream, self.sink, self._client = gateway, upstream, sink, client
        self.own: list[bytes] = []
        self.statuses: list[int] = []

    def send(self, method: str, target: str, body: object = b"", *, key: str = CLIENT_KEY, **headers: str) -> None:
        """One request with every header; keeps the error the gateway itself wrote, if it wrote one."""
        content = body if isinstance(body, bytes) else json.dumps(body, ensure_ascii=False).encode()
        sent = canaries.HEADERS | {"x-api-key": key, "content-type": "application/json"} | headers
        parts: list[bytes] = []
        status = 0
        try:
            with self._client.stream(method, target, content=content, headers=sent) as answer:
                status = answer.status_code
                parts.extend(answer.iter_raw())
        except httpx.RemoteProtocolError:
            pass  # cut: that is for the client to see
        self.statuses.append(status)
        self.keep(b"".join(parts))

    def raw(self, data: bytes) -> None:
        """Bytes that are no request; whatever comes back is the gateway's own."""
        with Wire(self.gateway.port) as wire:
            wire.send(data)
            head, body = wire.answer()
        self.statuses.append(head.status)
        self.own.append(repr(head).encode() + body)

    def keep(self, body: bytes) -> None:
        """An error of ours, whole or as the last event; /generate's may pass on the provider's own words."""
        in_band = b"event: error" in body
        ours = body.rpartition(b"event: error")[2] if in_band else body
        passed_on = canaries.ANSWER.encode() in ours and not in_band
        if b'"source":"claude-proxy"' in ours and not passed_on:
            self.own.append(ours)


@contextmanager
def staged(
    level: str, upstream_url: str = "", kind: type[Gateway] = BuggyGateway, capture: str = ""
) -> Iterator[Stage]:
    with OtlpSink() as sink, ExitStack() as stack:
        upstream = stack.enter_context(Upstream(PLAYS["ok"]))
        gateway = stack.enter_context(
            kind(
                upstream_url or upstream.url,
                ANTHROPIC_API_KEY=canaries.PROVIDER_KEY,
                CLAUDE_PROXY_CLIENT_KEYS=f"team:{hash_key(CLIENT_KEY)}",
                CLAUDE_PROXY_METRICS_TOKEN=canaries.METRICS_TOKEN,
                CLAUDE_PROXY_LOG_LEVEL=level,
                CLAUDE_PROXY_IDLE_TIMEOUT="1",
                CLAUDE_PROXY_GRACEFUL_TIMEOUT="4",
                OTEL_EXPORTER_OTLP_ENDPOINT=sink.url,
                OTEL_BSP_SCHEDULE_DELAY="50",
                OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT=capture,
                PYTHONASYNCIODEBUG="1" if level == "debug" else "",
            )
        )
        yield Stage(gateway, upstream, sink, stack.enter_context(gateway.client()))


def every_route(stage: Stage) -> None:
    """Each route, well and badly answered, with a key in its path and in its query."""
    for play in ("ok", "broken"):
        stage.upstream.script = PLAYS[play]
        for route in Anthropic.routes:
            for prefix in ("", "/anthropic"):
                for part in (PATH_KEY, BARE) if "<" in route.rule else ("",):
                    target = prefix + "/".join(part if p.startswith("<") else p for p in route.rule.split("/"))
                    for method in route.methods:
                        stage.send(method, target + QUERY, canaries.ASKED if method == "POST" else b"")
    batch = {"requests": [{"custom_id": "a", "params": canaries.ASKED}]}
    stage.send("POST", "/v1/messages/batches" + QUERY, batch)
    upload = (
        f'--b\r\ncontent-disposition: form-data; name="file"; filename="{FILE}"\r\n\r\n{FILE}\r\n--b--\r\n'.encode()
    )
    stage.send("POST", "/v1/files" + QUERY, upload, **{"content-type": "multipart/form-data; boundary=b"})


def every_play(stage: Stage) -> None:
    """Each way of the upstream, on our own routes too, and streamed."""
    for script in PLAYS.values():
        stage.upstream.script = script
        for streamed in (False, True):
            stage.send("POST", "/v1/messages" + QUERY, canaries.ASKED | {"stream": streamed})
        stage.send("POST", "/generate" + QUERY, {"prompt": PROMPT, "system": SYSTEM})
        stage.send("POST", "/batch_generate", {"prompts": [PROMPT, BARE], "system": SYSTEM})
        stage.send("GET", f"/v1/files/{PATH_KEY}/content{QUERY}")
    stage.upstream.script = PLAYS["ok"]


def every_refusal(stage: Stage) -> None:
    """Each thing the gateway refuses by itself."""
    for target in ("/v1/messages", "/generate", "/batch_generate"):
        stage.send("POST", target + QUERY, b'{"model": "' + PROMPT.encode())
        stage.send("POST", target, f'["{PROMPT}"]'.encode())
        stage.send("POST", target, {"model": [PROMPT], "prompt": [PROMPT], "prompts": PROMPT})
        stage.send("POST", target, canaries.ASKED, key=WRONG_KEY)
        stage.send("POST", target, canaries.ASKED, **{"content-encoding": "gzip"})
        stage.send("POST", target, canaries.ASKED, **{"content-type": f"text/{BARE}"})
        head = f"POST {target}{QUERY} HTTP/1.1\r\nHost: localhost\r\nX-Api-Key: {CLIENT_KEY}\r\nX-Odd: {BARE}\r\n"
        stage.raw(f"{head}Content-Type: application/json\r\nContent-Length: {1 << 30}\r\n\r\n".encode("latin-1"))
        stage.send("PUT", target + QUERY, canaries.ASKED)
    stage.send("POST", "/generate", {"prompt": PROMPT, "max_tokens": SYSTEM})
    stage.send("POST", "/generate", {"prompt": PROMPT, "provider": PROMPT, "model": PROMPT})
    stage.send("POST", "/v1/messages", canaries.ASKED | {"model": PROMPT * 1000})
    stage.send("POST", "/v1/messages", canaries.ASKED | {"model": WRONG_KEY})
    stage.send("POST", "/v1/messages", canaries.ASKED | {"max_tokens": 10**30, "stream": WRONG_KEY})
    stage.send("POST", "/v1/messages", canaries.ASKED | {"max_tokens": 10**30})
    for target in (f"/{PATH_KEY}/v1/messages", f"/v1/{BARE}", f"/v1/messages/{BARE}/x/y", "/"):
        stage.send("POST", target + QUERY, canaries.ASKED)
    for target in ("/metrics", "/healthz", "/readyz"):
        stage.send("GET", target + QUERY)
        stage.send("POST", target + QUERY, canaries.ASKED, key=WRONG_KEY)
    for bad in (f"GET /{BARE}\r\n\r\n", f"G{BARE} / {BARE}\r\n\r\n", f"GET / HTTP/1.1\r\n{BARE}\r\n\r\n"):
        stage.raw(bad.encode())
    stage.raw(f"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: {BARE}\r\n\r\n".encode())
    stage.raw(f"GET / HTTP/1.1\r\nHost: x\r\nX-A: {BARE}\0\r\n\r\n".encode())


def every_bug(stage: Stage) -> None:
    """A bug before the answer and one in the middle of a stream."""
    before = canaries.ASKED | {"messages": [{"role": "user", "content": PROMPT + "a-bug-before"}]}
    for target in ("/v1/messages", "/generate", "/batch_generate"):
        stage.send("POST", target, before if target == "/v1/messages" else {"prompt": "a-bug-before " + PROMPT})
    stage.send("POST", "/batch_generate", {"prompts": ["a-bug-before " + PROMPT]})
    stage.upstream.script = canaries.PLAYS["stream"]
    events = claude.start() + claude.delta(canaries.QUOTED + " a-bug-within ")
    stage.upstream.script = lambda c, seen: claude.send_events(c, [events])
    stage.send("POST", "/v1/messages", canaries.ASKED | {"stream": True})


def drained(stage: Stage) -> None:
    """Requests under way when the process stops: a stream, and one without an answer yet."""
    stage.upstream.script = lambda c, seen: claude.send_events(c, [claude.start() + claude.delta(canaries.QUOTED)])
    with Wire(stage.gateway.port) as stream, Wire(stage.gateway.port) as waiting:
        auth = f"x-api-key: {CLIENT_KEY}"
        stream.ask(canaries.ASKED | {"stream": True}, auth, target="/v1/messages" + QUERY)
        stream.head(), stream.piece()
        stage.upstream.script = lambda c, seen: None
        asked = len(stage.upstream.seen)
        waiting.ask(canaries.ASKED, auth, target="/v1/messages" + QUERY)
        poll(lambda: len(stage.upstream.seen) > asked, what="the request to have gone up")
        stage.gateway.process.send_signal(signal.SIGTERM)
        stage.keep(stream.body())
        stage.keep(waiting.answer()[1])
    assert stage.gateway.wait() == 0


def keys_that_are_spoken(stage: Stage) -> None:
    """Keys in prompts and in answers, whole and in pieces; and a prompt that is cut just where a key stands."""
    stage.upstream.script = PLAYS["ok"]
    stage.send("POST", "/v1/messages", canaries.SPOKEN)
    stage.send("POST", "/generate", {"prompt": canaries.SPOKEN["messages"][0]["content"], "system": PROMPT})
    for at in range(LIMIT - 120, LIMIT + 8, 8):
        long = "x" * at + " " + canaries.METRICS_TOKEN + " y" * LIMIT
        stage.send("POST", "/v1/messages", canaries.ASKED | {"messages": [{"role": "user", "content": long}]})
    for key in canaries.KEYS:
        events = (
            claude.start() + claude.BLOCK + b"".join(claude.delta(key[at : at + 5]) for at in range(0, len(key), 5))
        )
        stage.upstream.script = lambda c, seen, events=events: c.sendall(  # type: ignore[misc]
            claude.SSE_HEAD + claude.chunk(events + claude.last()) + claude.LAST_CHUNK
        )
        stage.send("POST", "/v1/messages", canaries.ASKED | {"stream": True})


CONTENT = (Attr.INPUT_MESSAGES, Attr.OUTPUT_MESSAGES, Attr.SYSTEM_INSTRUCTIONS)


def searched(stage: Stage, metrics: list[str], *, captured: bool = False) -> Search:
    """Everything the gateway said, looked through. `captured`: in the attributes for it prompts may stand, and no key."""
    search = Search()
    search.through("log lines", (line.encode() for line in stage.gateway.lines))
    search.through("span exports", stage.sink.bodies, keys_only=captured)
    for span in stage.sink.spans:
        if captured and span.kind == "CLIENT" and span.name.startswith("chat "):
            said = [str(span.attributes.pop(key)).encode() for key in CONTENT if key in span.attributes]
            search.through("content", said, keys_only=True)
        search.through("spans", [repr(span).encode()])
        texts = [f"{key}={value}" for key, value in (span.attributes | span.resource).items()]
        texts += [f"{e} {key}={value}" for e, _, attributes in span.events for key, value in attributes.items()]
        search.through("attributes", (text.encode() for text in texts))
    search.through("samples", (line.encode() for text in metrics for line in text.splitlines()))
    search.through("own errors", stage.own)
    return search


def scraped(stage: Stage) -> list[str]:
    auth = {"authorization": f"Bearer {canaries.METRICS_TOKEN}"}
    accepts = ("text/plain", "application/openmetrics-text")
    return [httpx.get(stage.gateway.url + "/metrics", headers=auth | {"accept": a}, timeout=30).text for a in accepts]


@pytest.mark.parametrize("level", ["debug", "info", "warning", "error"])
def test_no_key_and_no_prompt_is_in_any_log_line_span_metric_or_error_of_ours(
    level: str, record_property: Callable[[str, object], None]
) -> None:
    with staged(level) as stage:
        for act in (every_route, every_play, every_refusal, every_bug):
            act(stage)
        metrics = scraped(stage)
        drained(stage)
        search = searched(stage, metrics)
    record_property("searched", search.looked)
    assert search.found == []
    assert set(stage.statuses) >= {200, 400, 401, 403, 404, 405, 413, 415, 429, 500, 502, 529}
    assert search.looked["own errors"] > 60
    assert len({span.trace_id for span in stage.sink.spans}) > 5
    assert len(stage.sink.spans) > 300
    if level in ("debug", "info"):
        assert search.looked["log lines"] > len(stage.statuses) * 0.9


def test_with_content_capture_prompts_are_in_the_attributes_for_them_and_nowhere_else_and_keys_nowhere() -> None:
    with staged("debug", capture="SPAN_ONLY") as stage:
        for act in (every_play, every_refusal, every_bug, keys_that_are_spoken):
            act(stage)
        metrics = scraped(stage)
        drained(stage)
        said = "\n".join(str(span.attributes.get(key)) for span in stage.sink.spans for key in CONTENT)
        search = searched(stage, metrics, captured=True)
    assert search.found == []
    assert search.looked["content"] > 100
    assert all(json.dumps(words, ensure_ascii=False)[1:-1] in said for words in (PROMPT, SYSTEM, FILE, canaries.ANSWER))
    assert said.count("REDACTED") > 40


def test_with_no_upstream_at_all_nothing_is_said_of_key_or_prompt_either() -> None:
    with nobody() as url, staged("debug", url) as stage:
        for target in ("/v1/messages" + QUERY, "/anthropic/v1/messages/count_tokens", f"/v1/files/{PATH_KEY}{QUERY}"):
            stage.send(*("GET", target) if "files" in target else ("POST", target, canaries.ASKED))
        stage.send("POST", "/generate", {"prompt": PROMPT})
        stage.send("POST", "/batch_generate", {"prompts": [PROMPT]})
        metrics = scraped(stage)
        assert stage.gateway.stop() == 0
        search = searched(stage, metrics)
    assert stage.statuses == [502, 502, 502, 502, 200]
    assert (search.found, len(stage.own)) == ([], 5)


def test_the_search_finds_what_is_there_in_every_form() -> None:
    for form, secret in canaries.FORMS.items():
        search = Search()
        search.through("lines", [b"x" + form + b"y"])
        assert secret in search.found[0]
    clean = Search()
    clean.through("lines", [b'{"event":"request","route":"/v1/messages"}', os.urandom(65_536)])
    assert clean.found == []
