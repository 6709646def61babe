"""Bad input: the right status, an error in the provider's shape that names the field, nothing sent up, nothing echoed."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator

import pytest

from service.web.auth import hash_key
from tests.support import claude
from tests.support.scene import Scene, scene
from tests.support.upstream import json_answer
from tests.support.wire import Head, Wire

KEY = "cpk-team-a-secret"
MB = 1024 * 1024
SECRET = "do-not-repeat-me"
"""Stands in bodies and keys; must never come back, in an answer or a log line."""


@pytest.fixture(scope="module")
def stage() -> Iterator[Scene]:
    keys = f"team-a:{hash_key(KEY)}"
    script = json_answer(claude.MESSAGE)
    with scene(script, CLAUDE_PROXY_CLIENT_KEYS=keys, CLAUDE_PROXY_BATCH_MAX_PROMPTS="3") as made:
        yield made


AUTH = f"x-api-key: {KEY}"
JSON = "content-type: application/json"


def assert_refused(
    stage: Scene,
    sent: tuple[Head, bytes],
    status: int,
    kind: str,
    field: str | None,
) -> str:
    """An error of ours with ids that lead to the trace, and nothing repeated; returns its message."""
    head, body = sent
    assert (head.status, head.get("content-type")) == (status, "application/json")
    error = json.loads(body)
    assert (error["type"], error["error"]["type"]) == ("error", kind)
    assert error["error"]["details"].get("field") == field
    assert error["request_id"] == head.get("x-request-id")
    assert error["error"]["details"]["trace_id"] == head.get("x-trace-id")
    assert head.get("x-should-retry") == "false"
    assert SECRET.encode() not in body
    assert not [line for line in stage.gateway.lines if SECRET in line]
    assert stage.upstream.seen == []
    return str(error["error"]["message"])


def post(stage: Scene, target: str, body: bytes, *headers: str) -> tuple[Head, bytes]:
    """One POST on a connection of its own."""
    with Wire(stage.gateway.port) as wire:
        wire.request("POST", target, body, *headers)
        return wire.answer()


def but(**change: object) -> bytes:
    """The usual body with something else in it."""
    return json.dumps(claude.ASKED | change).encode()


NATIVE = {
    "not_json": (b'{"model": "' + SECRET.encode(), "body"),
    "not_utf8": (b'{"model": "\xff\xfe"}', "body"),
    "empty": (b"", "body"),
    "a_list": (b'["do-not-repeat-me"]', "body"),
    "model_missing": (b'{"max_tokens": 1, "messages": [], "x": "do-not-repeat-me"}', "model"),
    "model_wrong_type": (but(model=[SECRET]), "model"),
    "stream_wrong_type": (but(stream=SECRET), "stream"),
    "max_tokens_wrong_type": (but(max_tokens=SECRET), "max_tokens"),
    "nested_too_deep": (b'{"model": "m", "messages": ' + b"[" * 200_000, "body"),
}


@pytest.mark.parametrize("target", ["/v1/messages", "/anthropic/v1/messages", "/v1/messages/count_tokens"])
@pytest.mark.parametrize("case", NATIVE)
def test_a_bad_body_on_a_native_route_is_a_400_that_names_the_field(stage: Scene, case: str, target: str) -> None:
    body, field = NATIVE[case]
    watch = stage.watch()
    assert_refused(stage, post(stage, target, body, JSON, AUTH), 400, "invalid_request_error", field)
    told = watch.told(
        "client_invalid",
        error_type="client_invalid",
        status=400,
        attempt=None,
        rejected="invalid_request_error",
        chat=False,
    )
    assert told.line["route"] == target
    assert told.line["client"] == "team-a"


OWN = {
    "not_json": ("/generate", b'{"prompt": "do-not-repeat-me', "body"),
    "prompt_missing": ("/generate", b"{}", "prompt"),
    "prompt_empty": ("/generate", b'{"prompt": ""}', "prompt"),
    "prompt_wrong_type": ("/generate", b'{"prompt": ["do-not-repeat-me"]}', "prompt"),
    "unknown_field": ("/generate", b'{"prompt": "x", "promt": "do-not-repeat-me"}', "promt"),
    "max_tokens_zero": ("/generate", b'{"prompt": "x", "max_tokens": 0}', "max_tokens"),
    "max_tokens_text": ("/generate", b'{"prompt": "x", "max_tokens": "do-not-repeat-me"}', "max_tokens"),
    "provider_unknown": ("/generate", b'{"prompt": "x", "provider": "do-not-repeat-me"}', "provider"),
    "model_empty": ("/generate", b'{"prompt": "x", "model": ""}', "model"),
    "model_with_line_break": ("/generate", b'{"prompt": "x", "model": "a\\r\\nx: do-not-repeat-me"}', "model"),
    "system_empty": ("/generate", b'{"prompt": "x", "system": ""}', "system"),
    "prompts_missing": ("/batch_generate", b"{}", "prompts"),
    "prompts_empty": ("/batch_generate", b'{"prompts": []}', "prompts"),
    "prompts_too_long": ("/batch_generate", b'{"prompts": ["a", "b", "c", "d"]}', "prompts"),
    "prompts_no_list": ("/batch_generate", b'{"prompts": "do-not-repeat-me"}', "prompts"),
    "a_prompt_empty": ("/batch_generate", b'{"prompts": ["a", ""]}', "prompts[1]"),
    "a_prompt_wrong_type": ("/batch_generate", b'{"prompts": ["a", 7]}', "prompts[1]"),
}


@pytest.mark.parametrize("case", OWN)
def test_a_bad_body_on_a_route_of_ours_is_a_400_that_names_the_field(stage: Scene, case: str) -> None:
    target, body, field = OWN[case]
    message = assert_refused(stage, post(stage, target, body, JSON, AUTH), 400, "invalid_request_error", field)
    assert (field.split("[")[0] if field != "body" else "JSON") in message


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""]
)
def test_another_content_type_on_a_route_of_ours_is_a_415(stage: Scene, kind: str) -> None:
    headers = [AUTH, f"content-type: {kind}"] if kind else [AUTH]
    sent = post(stage, "/generate", b'{"prompt": "do-not-repeat-me"}', *headers)
    assert "application/json" in assert_refused(stage, sent, 415, "invalid_request_error", "Content-Type")


@pytest.mark.parametrize(
    ("method", "target", "allowed"),
    [
        ("GET", "/v1/messages", "POST"),
        ("DELETE", "/generate", "POST"),
        ("POST", "/v1/models", "GET"),
        ("PUT", "/v1/files", "POST"),
        ("POST", "/healthz", "GET"),
        ("POST", "/metrics", "GET"),
    ],
)
def test_a_wrong_method_is_a_405_that_names_the_right_one(stage: Scene, method: str, target: str, allowed: str) -> None:
    watch = stage.watch()
    with Wire(stage.gateway.port) as wire:
        wire.request(method, target, b"", AUTH)
        sent = wire.answer()
    assert allowed in assert_refused(stage, sent, 405, "invalid_request_error", "method")
    assert allowed in (sent[0].get("allow") or "")
    told = watch.told(
        "client_invalid",
        error_type="client_invalid",
        status=405,
        attempt=None,
        rejected="invalid_request_error",
        chat=False,
    )
    assert told.line["trace_id"] == sent[0].get("x-trace-id")
    assert int(told.line["trace_id"], 16)


@pytest.mark.parametrize("target", ["/healthz", "/healthz/", "//healthz", "/readyz/"])
def test_what_operators_ask_makes_neither_span_nor_line(stage: Scene, target: str) -> None:
    before = len(stage.gateway.requests())
    with Wire(stage.gateway.port) as wire:
        wire.request("GET", target)
        assert wire.answer()[0].status == 200
        wire.request("GET", "/v1/nothing", b"", AUTH)  # told after it, and in order
        trace_id = wire.answer()[0].get("x-trace-id")
    stage.sink.wait(lambda span: span.trace_id == trace_id)
    assert not [span for span in stage.sink.spans if "healthz" in span.name or "readyz" in span.name]
    assert len(stage.gateway.wait_requests(before + 1)) == before + 1


@pytest.mark.parametrize(
    "target", ["/v1/nothing", "/", "/v1/messages/x/y/z", "/v1/models/%ff%fe/x", "/%2e%2e/etc/passwd"]
)
def test_an_unknown_path_is_a_404_with_a_bounded_route_label(stage: Scene, target: str) -> None:
    watch = stage.watch()
    assert_refused(stage, post(stage, target, b"{}", AUTH), 404, "not_found_error", "path")
    told = watch.told(
        "client_invalid", error_type="client_invalid", status=404, attempt=None, rejected="not_found_error", chat=False
    )
    assert told.line["route"] == "other"


@pytest.mark.parametrize("headers", [[], ["x-api-key:"], ["authorization: Basic ZG86bm90"], ["authorization: Bearer"]])
def test_no_key_is_a_401_that_says_how_to_send_one(stage: Scene, headers: list[str]) -> None:
    watch = stage.watch()
    sent = post(stage, "/v1/messages", but(), JSON, *headers)
    assert "x-api-key" in assert_refused(stage, sent, 401, "authentication_error", None)
    watch.told(
        "client_auth", error_type="client_auth", status=401, attempt=None, rejected="authentication_error", chat=False
    )


@pytest.mark.parametrize("header", ["x-api-key: ", "authorization: Bearer ", "x-goog-api-key: "])
def test_a_wrong_key_is_a_401_that_does_not_repeat_it(stage: Scene, header: str) -> None:
    assert_refused(stage, post(stage, "/v1/messages", but(), JSON, header + SECRET), 401, "authentication_error", None)
    sent = post(stage, "/v1/messages", but(), JSON, header + "caf\xe9" + SECRET)
    assert_refused(stage, sent, 401, "authentication_error", None)


@pytest.mark.parametrize("target", ["/v1/messages", "/generate", "/v1/messages/batches"])
def test_a_body_too_large_by_its_length_is_a_413_before_it_is_sent(stage: Scene, target: str) -> None:
    with Wire(stage.gateway.port) as wire:
        wire.send(
            f"POST {target} HTTP/1.1\r\nHost: localhost\r\n{AUTH}\r\n{JSON}\r\nContent-Length: {300 * MB}\r\n\r\n".encode()
        )
        sent = wire.answer()
        assert str(256 * MB if "batches" in target else 32 * MB) in assert_refused(
            stage, sent, 413, "request_too_large", None
        )
        assert sent[0].get("connection") == "close"


@pytest.mark.parametrize("framing", ["Content-Length: 100000000", "Transfer-Encoding: chunked"])
def test_a_client_that_is_still_sending_too_much_gets_to_read_its_413(stage: Scene, framing: str) -> None:
    piece = b" " * 65_536
    piece = piece if framing.startswith("Content") else claude.chunk(piece)
    sent_bytes = 0
    with Wire(stage.gateway.port) as wire:
        wire.send(f"POST /v1/messages HTTP/1.1\r\nHost: localhost\r\n{AUTH}\r\n{framing}\r\n\r\n".encode())
        for _ in range(40 * MB // 65_536):
            wire.send(piece)
            sent_bytes += 65_536
        assert_refused(stage, wire.answer(), 413, "request_too_large", None)


def test_an_endless_chunked_body_is_not_held_in_memory(stage: Scene) -> None:
    (pid,) = stage.gateway.worker_pids()

    def resident() -> int:
        with open(f"/proc/{pid}/statm") as statm:
            return int(statm.read().split()[1]) * 4096

    before, piece = resident(), claude.chunk(b" " * MB)
    with Wire(stage.gateway.port) as wire:
        wire.send(
            f"POST /v1/messages HTTP/1.1\r\nHost: localhost\r\n{AUTH}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        )
        try:
            for _ in range(300):
                wire.send(piece)
        except OSError:
            pass  # cut off at last: that is fine too
    assert resident() - before < 100 * MB


MANGLED = {
    "bare_cr": b"POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nX-A: b\rX-B: c\r\nContent-Length: 0\r\n\r\n",
    "nul": b"POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nX-A: b\0\r\nContent-Length: 0\r\n\r\n",
    "space_before_colon": b"POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nX-A : b\r\nContent-Length: 0\r\n\r\n",
    "two_lengths": b"POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}\n",
    "length_and_chunked": b"POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "length_no_number": b"POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1e3\r\n\r\n",
    "length_negative": b"POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
    "length_of_5000_digits": b"POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nContent-Length: "
    + b"9" * 5000
    + b"\r\n\r\n",
    "space_in_target": b"POST /v1/mess ages HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n",
    "tls_hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
}


def parses_in_c() -> bool:
    """Whether gunicorn's C parser is there; on a machine without a compiler its Python one refuses some things otherwise."""
    try:
        importlib.import_module("gunicorn_h1c")
    except ImportError:
        return False
    return True


@pytest.mark.parametrize("case", MANGLED)
def test_bytes_that_are_no_clean_http_are_refused_and_the_connection_closed(stage: Scene, case: str) -> None:
    with Wire(stage.gateway.port) as wire:
        wire.send(MANGLED[case].replace(b"Host: localhost", f"Host: localhost\r\n{AUTH}".encode()))
        if case == "length_of_5000_digits" and not parses_in_c():
            assert wire.ended()  # without a word
        else:
            head, body = wire.answer()
            assert 400 <= head.status < 500
            assert SECRET.encode() not in body
            assert KEY.encode() not in body
            assert wire.ended()
    assert stage.upstream.seen == []
    assert not [line for line in stage.gateway.lines if KEY in line]


def test_a_header_folded_over_two_lines_is_a_400_and_does_not_go_up(stage: Scene) -> None:
    head = f"POST /v1/messages HTTP/1.1\r\nHost: localhost\r\n{AUTH}\r\nX-A: b\r\n {SECRET}: c\r\nContent-Length: {len(but())}"
    with Wire(stage.gateway.port) as wire:
        wire.send(head.encode() + b"\r\n\r\n" + but())
        if parses_in_c():
            assert_refused(stage, wire.answer(), 400, "invalid_request_error", "headers")
        else:
            assert wire.answer()[0].status == 400
    assert stage.upstream.seen == []
    assert not [line for line in stage.gateway.lines if SECRET in line]


def test_line_breaks_in_what_we_send_back_cannot_make_a_header(stage: Scene) -> None:
    with Wire(stage.gateway.port) as wire:
        wire.request(
            "GET", "/v1/nothing?x=%0d%0aset-cookie:%20a=b", b"", AUTH, "x-request-id: a%0d%0ab", "traceparent: %0d%0a"
        )
        head, _ = wire.answer()
    assert head.status == 404
    assert head.get("set-cookie") is None
    assert (head.get("x-request-id") or "").startswith("cp_")
