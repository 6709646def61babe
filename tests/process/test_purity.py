"""A recording upstream proves that what goes up is what the client sent, and that nothing crosses between clients."""

from __future__ import annotations

import json
import queue
import socket
from collections.abc import Iterator

import pytest

from service.web.auth import hash_key
from tests.support import claude
from tests.support.scene import Scene, scene
from tests.support.upstream import RawUpstream, Seen, answer, json_answer
from tests.support.wire import Wire

PROVIDER_KEY = "sk-ant-provider-key"
JSON = "content-type: application/json"


@pytest.fixture(scope="module")
def stage() -> Iterator[Scene]:
    with scene(json_answer(claude.MESSAGE)) as made:
        yield made


def sent_up(stage: Scene, method: str, target: str, body: bytes, *headers: str) -> Seen:
    """What arrived upstream of this request."""
    stage.upstream.seen.clear()
    with Wire(stage.gateway.port) as wire:
        wire.request(method, target, body, *headers)
        wire.answer()
    (seen,) = stage.upstream.seen
    return seen


def test_headers_go_up_as_sent_less_hop_by_hop_credential_and_trace_context_plus_ours(stage: Scene) -> None:
    kept = [
        "anthropic-version: 2026-10-21",
        "anthropic-beta: a-2026-01-01,b-2026-02-02",
        "anthropic-beta: c-2026-03-03",
        "X-Stainless-Retry-Count: 0",
        "x-claude-code-session-id: abc",
        "User-Agent: Anthropic/Python 2.12.0",
        "Accept: application/json",
        "Cookie: mine=1",
        "Content-Type: application/json; charset=utf-8",
        "X-Odd: " + "grün  with  spaces".encode().decode("latin-1"),
        "X-Empty:",
    ]
    dropped = [
        "Connection: keep-alive, X-Only-Here",
        "X-Only-Here: 1",
        "Keep-Alive: timeout=5",
        "TE: trailers",
        "Proxy-Authorization: Basic eA==",
        "Authorization: Bearer client-key",
        "x-api-key: client-key",
        "x-goog-api-key: client-key",
        "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "baggage: tenant=1",
        "Expect: 100-continue",
    ]
    body = json.dumps(claude.ASKED).encode()
    seen = sent_up(stage, "POST", "/v1/messages", body, *dropped, *kept)
    expected = [(name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in kept)]
    ours = {"host", "x-api-key", "content-length", "traceparent"}
    assert [(k.lower(), v) for k, v in seen.headers if k.lower() not in ours] == expected
    assert sorted(k.lower() for k, _ in seen.headers if k.lower() in ours) == sorted(ours)
    assert seen.header("x-api-key") == PROVIDER_KEY
    assert seen.header("content-length") == str(len(body))
    assert seen.header("host") == stage.upstream.url.removeprefix("http://")


def test_a_bare_request_gets_no_accept_no_user_agent_no_content_type_no_cookie(stage: Scene) -> None:
    seen = sent_up(stage, "POST", "/v1/messages", json.dumps(claude.ASKED).encode())
    assert {k.lower() for k, _ in seen.headers} == {"host", "x-api-key", "content-length", "traceparent"}
    seen = sent_up(stage, "GET", "/v1/models", b"")
    assert {k.lower() for k, _ in seen.headers} == {"host", "x-api-key", "traceparent"}


@pytest.mark.parametrize(
    ("accepts", "streaming", "goes_up"),
    [
        ("gzip, deflate, br, zstd", False, "gzip"),
        ("gzip, deflate, br, zstd", True, "identity"),
        ("br", False, "identity"),
        ("gzip;q=0, br", False, "identity"),
        ("GZIP", False, "gzip"),
        ("*", False, "identity"),
    ],
)
def test_accept_encoding_is_the_only_header_that_is_narrowed(
    stage: Scene, accepts: str, streaming: bool, goes_up: str
) -> None:
    body = json.dumps(claude.ASKED | {"stream": streaming}).encode()
    seen = sent_up(stage, "POST", "/v1/messages", body, f"Accept-Encoding: {accepts}")
    assert [v for k, v in seen.headers if k.lower() == "accept-encoding"] == [goes_up]


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_a_body_goes_up_byte_for_byte(stage: Scene, framing: str) -> None:
    body = (
        '{ "model":"claude-opus-5-5",\n\t"unknown":{"z":1,"a":[1.0, 2e5,null]}, "max_tokens" : 64 ,'
        ' "messages":[{"content":"Grüße \\u00e9 你好 🙂","role":"user"}], "model_hint": "x", "dup":1, "dup":2}  \n'
    ).encode()
    if framing == "length":
        seen = sent_up(stage, "POST", "/v1/messages", body, JSON)
    else:
        stage.upstream.seen.clear()
        with Wire(stage.gateway.port) as wire:
            wire.send(b"POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
            for index in range(0, len(body), 10):
                wire.send(claude.chunk(body[index : index + 10]))
            wire.send(claude.LAST_CHUNK)
            assert wire.answer()[0].status == 200
        (seen,) = stage.upstream.seen
    assert seen.body == body


@pytest.mark.parametrize("prefix", ["", "/anthropic"])
@pytest.mark.parametrize(
    "target",
    [
        "/v1/messages/batches?limit=1%30&after_id=%C3%A9&&x=a+b&empty=",
        "/v1/models/claude%2Dopus%2d5-5?beta=true",
        "/v1/models/a%20b%3Fc",
        "/v1/files/file%5F1/content?x=%zz",
        "/v1/models",
    ],
)
def test_path_and_query_go_up_as_the_client_wrote_them(stage: Scene, target: str, prefix: str) -> None:
    assert sent_up(stage, "GET", prefix + target, b"").line == f"GET {target} HTTP/1.1"


def test_a_cookie_of_the_provider_reaches_its_client_and_never_goes_up_again(stage: Scene) -> None:
    cookie = answer("200 OK", claude.MESSAGE, JSON, "set-cookie: tenant=first; Path=/", "set-cookie: b=2")
    stage.plays(lambda connection, seen: connection.sendall(cookie))
    got = stage.ask(stream=False)
    assert got.headers.get_list("set-cookie") == ["tenant=first; Path=/", "b=2"]
    stage.plays(json_answer(claude.MESSAGE))
    stage.upstream.seen.clear()
    for _ in range(3):
        assert "set-cookie" not in stage.ask(stream=False).headers
    assert [seen.header("cookie") for seen in stage.upstream.seen] == [None, None, None]


def test_the_providers_headers_come_back_as_they_are_less_hop_by_hop(stage: Scene) -> None:
    theirs = [
        "request-id: req_1",
        "anthropic-ratelimit-requests-remaining: 41",
        "anthropic-organization-id: org",
        "x-odd: caf\xe9",
        "vary: a",
        "vary: b",
    ]
    whole = answer("200 OK", claude.MESSAGE, JSON, *theirs, "keep-alive: timeout=5", "x-own: gone", "connection: x-own")
    whole = whole.replace("caf\xe9".encode(), "caf\xe9".encode("latin-1"))
    stage.plays(lambda connection, seen: connection.sendall(whole))
    with Wire(stage.gateway.port) as wire:
        wire.ask(claude.ASKED)
        head, body = wire.answer()
    stage.plays(json_answer(claude.MESSAGE))
    assert body == claude.MESSAGE
    ours = {"server-timing", "x-request-id", "x-trace-id", "server", "date"}
    expected = [("content-length", str(len(claude.MESSAGE))), *(tuple(h.split(": ")) for h in (JSON, *theirs))]
    assert [(k, v) for k, v in head.headers if k not in ours] == expected


def test_with_client_keys_the_incoming_key_stays_here_and_the_providers_goes_up_under_any_header() -> None:
    keys = {"a": "cpk-a", "b": "cpk-b"}
    listed = ",".join(f"{name}:{hash_key(key)}" for name, key in keys.items())
    with scene(json_answer(claude.MESSAGE), CLAUDE_PROXY_CLIENT_KEYS=listed) as stage:
        for name, key in keys.items():
            for header in (f"x-api-key: {key}", f"Authorization: Bearer {key}", f"x-goog-api-key: {key}"):
                seen = sent_up(stage, "POST", "/v1/messages", json.dumps(claude.ASKED).encode(), header)
                assert seen.header("x-api-key") == PROVIDER_KEY
                assert not [v for _, v in seen.headers if key in v]
                count = stage.gateway.settled()
                assert stage.gateway.requests()[count - 1]["client"] == name
        assert not [line for line in stage.gateway.lines for secret in (*keys.values(), PROVIDER_KEY) if secret in line]


def test_with_pass_each_client_uses_its_own_credential_as_it_wrote_it() -> None:
    with scene(json_answer(claude.MESSAGE), ANTHROPIC_API_KEY="", CLAUDE_PROXY_CREDENTIALS="pass") as stage:
        for header in ("x-api-key: sk-ant-one", "authorization: Bearer sk-ant-two"):
            seen = sent_up(stage, "POST", "/v1/messages", json.dumps(claude.ASKED).encode(), header)
            credentials = [f"{k.lower()}: {v}" for k, v in seen.headers if "key" in k.lower() or "auth" in k.lower()]
            assert credentials == [header]


class Receiving:
    """An upstream that tells when the first half of an upload has come, and answers when all of it has."""

    def __init__(self) -> None:
        self.heads: queue.Queue[str] = queue.Queue()

    def __call__(self, connection: socket.socket) -> None:
        got = b""
        while b"first" not in got:
            got += connection.recv(65_536)
        self.heads.put(got.split(b"\r\n\r\n")[0].decode().lower())
        while b"last!" not in got:
            got += connection.recv(65_536)
        connection.sendall(
            answer("201 Created", b"{}", JSON, "request-id: req_up", "x-of-theirs: 1", "connection: close")
        )
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1)


@pytest.fixture(scope="module")
def uploads() -> Iterator[tuple[Scene, Receiving]]:
    receiving = Receiving()
    with scene(RawUpstream(receiving)) as made:
        yield made, receiving


@pytest.mark.parametrize("target", ["/v1/files", "/v1/messages/batches"])
@pytest.mark.parametrize("framing", ["Content-Length: 10", "Transfer-Encoding: chunked"])
def test_an_upload_goes_up_as_it_comes_before_the_client_has_sent_the_last_byte(
    uploads: tuple[Scene, Receiving], target: str, framing: str
) -> None:
    stage, receiving = uploads
    chunked = framing.startswith("Transfer")
    watch = stage.watch()
    with Wire(stage.gateway.port) as wire:
        wire.send(f"POST {target} HTTP/1.1\r\nHost: localhost\r\nX-Mine: 1\r\n{framing}\r\n\r\n".encode())
        wire.send(claude.chunk(b"first") if chunked else b"first")
        head_up = receiving.heads.get(timeout=30)
        wire.send(claude.chunk(b"last!") + claude.LAST_CHUNK if chunked else b"last!")
        head, body = wire.answer()
    assert (head.status, body, head.get("request-id"), head.get("x-of-theirs")) == (201, b"{}", "req_up", "1")
    assert "x-mine: 1" in head_up
    assert ("transfer-encoding: chunked" if chunked else "content-length: 10") in head_up
    watch.told("ok", status=201, attempt=("201", "ok"), chat=False)
