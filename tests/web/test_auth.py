"""Who may come in, and which credential goes up."""

from __future__ import annotations

import hmac

import pytest

from service import settings
from service.errors import Unauthenticated
from service.web import auth
from service.web.auth import Gate, hash_key

ALICE, BOB = "cpk-alice", "cpk-bob"
KEYS = f"alice:{hash_key(ALICE)} bob:{hash_key(BOB)}"
PROVIDER = ((b"x-api-key", b"sk-provider"),)
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
    assert (caller.name, caller.credential) == (name, PROVIDER)


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
        assert (caller.name, caller.credential) == (None, PROVIDER)


def test_passing_on_forwards_every_credential_header_as_it_came() -> None:
    headers = [(b"x-api-key", b"theirs"), (b"accept", b"*/*"), (b"authorization", b"Bearer too")]
    caller = _gate(CLAUDE_PROXY_CREDENTIALS="pass").admit(headers)
    assert caller.credential == ((b"x-api-key", b"theirs"), (b"authorization", b"Bearer too"))


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
    assert _gate(CLAUDE_PROXY_CREDENTIALS="pass").admit(headers).credential == ((b"x-api-key", b"k"),)
