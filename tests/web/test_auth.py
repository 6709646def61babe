"""Who may come in, and which credential goes up."""

from __future__ import annotations

import hmac

import pytest
from werkzeug.test import EnvironBuilder

from service import settings
from service.errors import NotFound, Unauthenticated
from service.upstream.providers import PROVIDERS
from service.web import auth
from service.web.auth import Gate, hash_key, take_key_from_query
from service.web.channel import Channel

ALICE, BOB = "cpk-alice", "cpk-bob"
KEYS = f"alice:{hash_key(ALICE)} bob:{hash_key(BOB)}"
CLAUDE, GEMINI, OPENAI = PROVIDERS
OURS = ((b"x-api-key", b"sk-provider"),)
Headers = list[tuple[bytes, bytes]]


def _gate(**environ: str) -> Gate:
    return Gate(settings.load({"ANTHROPIC_API_KEY": "sk-provider"} | environ))


@pytest.mark.parametrize(
    ("headers", "name"),
    [
        ([(b"x-api-key", ALICE.encode())], "alice"),
        ([(b"x-api-key", BOB.encode())], "bob"),
        ([(b"authorization", b"Bearer " + BOB.encode())], "bob"),
        ([(b"authorization", b"bearer  " + BOB.encode() + b" ")], "bob"),
        ([(b"authorization", b"Bearer " + BOB.encode()), (b"x-api-key", ALICE.encode())], "alice"),
        ([(b"authorization", b"Bearer " + BOB.encode()), (b"x-api-key", b"")], "bob"),
    ],
)
def test_a_client_key_is_taken_from_x_api_key_before_bearer(headers: Headers, name: str) -> None:
    caller = _gate(CLAUDE_PROXY_CLIENT_KEYS=KEYS).admit(headers)
    assert (caller.name, caller.credential(CLAUDE)) == (name, OURS)


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ([], "no credential: send a client key as x-api-key or as Authorization: Bearer"),
        ([(b"authorization", b"Basic YWxpY2U6eA==")], "no credential: send a client key as x-api-key or as Authorization: Bearer"),
        ([(b"authorization", b"Bearer ")], "no credential: send a client key as x-api-key or as Authorization: Bearer"),
        ([(b"x-api-key", b"cpk-mallory")], "this client key is not known here"),
        ([(b"x-api-key", ALICE.encode() + b" ")], "this client key is not known here"),
        ([(b"x-api-key", hash_key(ALICE).encode())], "this client key is not known here"),
        ([(b"x-api-key", b"\xff\xfe")], "this client key is not known here"),
        ([(b"x-api-key", b"wrong"), (b"authorization", b"Bearer " + BOB.encode())], "this client key is not known here"),
    ],
)  # fmt: skip
def test_without_a_known_key_nobody_comes_in(headers: Headers, message: str) -> None:
    with pytest.raises(Unauthenticated) as caught:
        _gate(CLAUDE_PROXY_CLIENT_KEYS=KEYS).admit(headers)
    assert caught.value.message == message


def test_every_entry_is_compared_in_constant_time_whichever_matches(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[str] = []

    def compare(known: str, given: str) -> bool:
        compared.append(known)
        return hmac.compare_digest(known, given)

    class Recording:
        compare_digest = staticmethod(compare)

    monkeypatch.setattr(auth, "hmac", Recording)
    gate = _gate(CLAUDE_PROXY_CLIENT_KEYS=KEYS)
    for key in (ALICE, BOB):
        gate.admit([(b"x-api-key", key.encode())])
    with pytest.raises(Unauthenticated):
        gate.admit([(b"x-api-key", b"nobody")])
    assert compared == [hash_key(ALICE), hash_key(BOB)] * 3


def test_without_client_keys_the_provider_key_replaces_whatever_came() -> None:
    for headers in ([], [(b"x-api-key", b"theirs")], [(b"authorization", b"Bearer theirs")]):
        caller = _gate().admit(headers)
        assert (caller.name, caller.credential(CLAUDE)) == (None, OURS)


def test_passing_on_forwards_every_credential_header_as_it_came() -> None:
    headers = [(b"x-api-key", b"theirs"), (b"accept", b"*/*"), (b"authorization", b"Bearer too")]
    caller = _gate(CLAUDE_PROXY_CREDENTIALS="pass").admit(headers)
    assert caller.credential(CLAUDE) == ((b"x-api-key", b"theirs"), (b"authorization", b"Bearer too"))


def test_a_caller_shows_no_credential() -> None:
    assert "sk-provider" not in repr(_gate().admit([]))


@pytest.mark.parametrize(
    ("environ", "headers", "shown"),
    [
        ({}, [], True),
        ({"CLAUDE_PROXY_METRICS_TOKEN": "t0ken"}, [], False),
        ({"CLAUDE_PROXY_METRICS_TOKEN": "t0ken"}, [(b"authorization", b"Bearer t0ken")], True),
        ({"CLAUDE_PROXY_METRICS_TOKEN": "t0ken"}, [(b"authorization", b"Bearer t0keN")], False),
        ({"CLAUDE_PROXY_BIND": "0.0.0.0:8000", "CLAUDE_PROXY_CLIENT_KEYS": KEYS}, [], False),
        ({"CLAUDE_PROXY_BIND": "0.0.0.0:8000", "CLAUDE_PROXY_CLIENT_KEYS": KEYS}, [(b"authorization", b"Bearer ")], False),
        ({"CLAUDE_PROXY_BIND": "0.0.0.0:8000", "CLAUDE_PROXY_CLIENT_KEYS": KEYS}, [(b"x-api-key", ALICE.encode())], False),
    ],
)  # fmt: skip
def test_metrics_are_open_on_loopback_only_and_a_token_closes_them_there_too(
    environ: dict[str, str], headers: Headers, shown: bool
) -> None:
    assert _gate(**environ).admit_to_metrics(headers) is shown


def test_passing_on_keeps_back_the_credential_of_the_connection() -> None:
    headers = [(b"x-api-key", b"k"), (b"proxy-authorization", b"Basic c2VjcmV0")]
    assert _gate(CLAUDE_PROXY_CREDENTIALS="pass").admit(headers).credential(CLAUDE) == ((b"x-api-key", b"k"),)


def test_each_provider_gets_its_own_key_in_its_own_header() -> None:
    caller = _gate(GEMINI_API_KEY="g", OPENAI_API_KEY="o").admit([])
    assert caller.credential(GEMINI) == ((b"x-goog-api-key", b"g"),)
    assert caller.credential(OPENAI) == ((b"authorization", b"Bearer o"),)


def test_a_provider_without_a_key_is_not_there_and_the_error_names_the_variable() -> None:
    with pytest.raises(NotFound, match="GEMINI_API_KEY") as caught:
        _gate().admit([]).credential(GEMINI)
    assert caught.value.field == "provider"


def test_passing_on_gives_no_provider_the_credential_of_another() -> None:
    headers = [(b"x-api-key", b"claudes"), (b"x-goog-api-key", b"googles"), (b"authorization", b"Bearer any")]
    caller = _gate(CLAUDE_PROXY_CREDENTIALS="pass").admit(headers)
    assert caller.credential(GEMINI) == ((b"x-goog-api-key", b"googles"), (b"authorization", b"Bearer any"))
    assert caller.credential(OPENAI) == ((b"authorization", b"Bearer any"),)


@pytest.mark.parametrize(
    ("query", "rest", "key"),
    [
        ("key=s3cret", "", b"s3cret"),
        ("alt=sse&key=s3cret&x=%20", "alt=sse&x=%20", b"s3cret"),
        ("k%65y=s3%63ret&key=other", "", b"s3cret"),
        ("monkey=1&keys=2", "monkey=1&keys=2", None),
        ("", "", None),
    ],
)
def test_a_key_in_the_query_is_taken_out_before_anybody_looks(query: str, rest: str, key: bytes | None) -> None:
    target = "/gemini/v1/models?" + query
    environ = EnvironBuilder(target).get_environ() | {"QUERY_STRING": query, "RAW_URI": target, "REQUEST_URI": target}
    take_key_from_query(environ)
    channel = Channel.of(environ)
    assert channel.target.partition("?")[2] == environ["QUERY_STRING"] == rest
    assert dict(channel.headers).get(b"x-goog-api-key") == key
    assert key is None or not [name for name, value in environ.items() if "s3" in str(value)]
