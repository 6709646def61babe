"""What goes up and what is read of a body: pure functions."""

from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec
import pytest

from service.errors import BadRequest
from service.upstream.providers import PROVIDERS
from service.web.generate import BatchGenerate, Generate
from service.web.native import decode, first_byte_timeout, forwarded
from service.web.routes import upstream_target

OURS = ((b"x-api-key", b"ours"),)
CLAUDE, GEMINI, OPENAI = PROVIDERS
Headers = list[tuple[bytes, bytes]]


def test_the_clients_headers_go_up_in_order_with_repeats_and_our_credential_last() -> None:
    headers = [(b"anthropic-beta", b"a"), (b"user-agent", b"x"), (b"anthropic-beta", b"b"), (b"x-new", b"\xff")]
    assert forwarded(headers, OURS, plain=False, body=b"") == [*headers, (b"x-api-key", b"ours")]


@pytest.mark.parametrize(
    "name",
    [
        b"host", b"connection", b"keep-alive", b"te", b"trailer", b"transfer-encoding", b"upgrade", b"proxy-connection",
        b"proxy-authorization", b"proxy-authenticate", b"expect", b"content-length", b"traceparent", b"tracestate",
        b"baggage", b"x-api-key", b"authorization", b"x-goog-api-key",
    ],
)  # fmt: skip
def test_what_belongs_to_the_clients_connection_trace_or_credential_stays_here(name: bytes) -> None:
    assert forwarded([(name, b"1")], OURS, plain=False, body=b"") == [(b"x-api-key", b"ours")]


def test_what_connection_names_stays_here() -> None:
    headers = [(b"connection", b"close, X-Hop"), (b"x-hop", b"1"), (b"x-stays", b"2")]
    assert forwarded(headers, OURS, plain=False, body=b"") == [(b"x-stays", b"2"), (b"x-api-key", b"ours")]


@pytest.mark.parametrize(
    ("accepted", "plain", "sent"),
    [
        ([], False, []),
        ([b"gzip, deflate, br, zstd"], False, [b"gzip"]),
        ([b"gzip, deflate"], True, [b"identity"]),
        ([b"br"], False, [b"identity"]),
        ([b"br", b"gzip"], False, [b"gzip"]),
        ([b"gzip;q=0"], False, [b"identity"]),
        ([b"GZIP;q=0.5"], False, [b"gzip"]),
        ([b"identity"], False, [b"identity"]),
    ],
)
def test_accept_encoding_is_narrowed_to_what_can_be_read(accepted: list[bytes], plain: bool, sent: list[bytes]) -> None:
    headers = [(b"accept-encoding", value) for value in accepted]
    up = forwarded(headers, OURS, plain=plain, body=b"")
    assert [value for name, value in up if name == b"accept-encoding"] == sent


def test_a_streamed_body_keeps_its_length() -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"12"

    assert (b"content-length", b"2") in forwarded([(b"content-length", b"2")], OURS, plain=False, body=body())


@pytest.mark.parametrize(
    ("theirs", "seconds"),
    [(None, 600.0), (b"30", 30.0), (b"0.5", 0.5), (b"900", 600.0), (b"0", 600.0), (b"-1", 600.0), (b"nan", 600.0), (b"soon", 600.0), (b"inf", 600.0)],
)  # fmt: skip
def test_we_wait_no_longer_than_the_client_does(theirs: bytes | None, seconds: float) -> None:
    headers = [] if theirs is None else [(b"x-stainless-timeout", theirs)]
    assert first_byte_timeout(headers, 600.0) == seconds


class _Message(msgspec.Struct):
    model: str
    max_tokens: int | None = None


@pytest.mark.parametrize(
    ("body", "kind", "field", "message"),
    [
        (b"{}", _Message, "model", "model: Object missing required field `model`"),
        (b'{"model": 7}', _Message, "model", "model: Expected `str`, got `int`"),
        (b'{"model": "m", "max_tokens": "x"}', _Message, "max_tokens", "max_tokens: Expected `int | null`, got `str`"),
        (b"[]", _Message, "body", "body: Expected `object`, got `array`"),
        (b"{", _Message, "body", "the request body is not valid JSON, or nested too deep"),
        (b"", _Message, "body", "the request body is not valid JSON, or nested too deep"),
        (b'{"model": "\xff"}', _Message, "body", "the request body is not valid JSON, or nested too deep"),
        (b'{"a":' + b"[" * 99_999 + b"]" * 99_999 + b"}", _Message, "body", "the request body is not valid JSON, or nested too deep"),
        (b'{"prompt": ""}', Generate, "prompt", "prompt: Expected `str` of length >= 1"),
        (b'{"prompt": "a", "promt": "b"}', Generate, "promt", "promt: Object contains unknown field `promt`"),
        (b'{"prompt": "a", "max_tokens": 0}', Generate, "max_tokens", "max_tokens: Expected `int` >= 1"),
        (b'{"prompts": []}', BatchGenerate, "prompts", "prompts: Expected `array` of length >= 1"),
        (b'{"prompts": ["a", 1]}', BatchGenerate, "prompts[1]", "prompts[1]: Expected `str`, got `int`"),
    ],
)  # fmt: skip
def test_a_wrong_body_is_refused_by_the_name_of_its_field(body: bytes, kind: type, field: str, message: str) -> None:
    with pytest.raises(BadRequest) as caught:
        decode(body, kind)
    assert (caught.value.field, caught.value.message) == (field, message)


@pytest.mark.parametrize(
    ("written", "goes_up"),
    [
        ("/v1/messages", "/v1/messages"),
        ("/anthropic/v1/messages?beta=true", "/v1/messages?beta=true"),
        ("/v1/models/claude-opus-5-5%5B1m%5D", "/v1/models/claude-opus-5-5%5B1m%5D"),
        ("/v1/files/?limit=%2F..", "/v1/files/?limit=%2F.."),
    ],
)
def test_path_and_query_go_up_as_written_less_our_prefix(written: str, goes_up: str) -> None:
    assert upstream_target(written, CLAUDE) == goes_up


@pytest.mark.parametrize(
    "written",
    [
        "/anthropic%2Fv1%2Fmodels%2F@127.0.0.1:9",
        "/anthropic@127.0.0.1:9/v1/models",
        "/v1/models/%2e%2e",
        "/v1/files/../content",
        "/v1/models/a%2Fb",
        "/v1/models/a%5cb",
        "/v1/models/a%0d%0ab",
        "//v1/models",
        "/v1",
        "/v2/models",
        "http://127.0.0.1:9/v1/models",
        "@127.0.0.1:9/v1/models",
        "",
    ],
)
def test_a_path_that_could_lead_elsewhere_is_refused(written: str) -> None:
    with pytest.raises(BadRequest) as refused:
        upstream_target(written, CLAUDE)
    assert refused.value.field == "path"


def test_every_provider_has_paths_of_its_own_below_its_prefix() -> None:
    gemini = "/v1beta/models/gemini-3.8-flash:streamGenerateContent?alt=sse"
    assert upstream_target("/gemini" + gemini, GEMINI) == gemini
    assert upstream_target("/openai/v1/responses", OPENAI) == "/v1/responses"
    for written, provider in (
        ("/gemini/v2/models/x:generateContent", GEMINI),
        ("/gemini/v1/models/a%2fb:generateContent", GEMINI),
        ("/openai/v1beta/responses", OPENAI),
        ("/%6fpenai/v1/responses", OPENAI),
    ):
        with pytest.raises(BadRequest):
            upstream_target(written, provider)


def test_googles_clients_name_their_timeout_too() -> None:
    assert first_byte_timeout([(b"x-server-timeout", b"30")], 600.0) == 30.0
