"""Who may come in, and which credential goes up. Keys are compared by hash in constant time and never leave this file."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from service.errors import Forbidden, Unauthenticated
from service.settings import ClientKey, Settings, is_loopback
from service.web.channel import RawHeaders

CREDENTIAL_HEADERS = frozenset((b"x-api-key", b"authorization", b"x-goog-api-key", b"proxy-authorization"))
"""Request headers that carry a credential; none of them goes up when ours is injected."""


_FORWARDED = CREDENTIAL_HEADERS - {b"proxy-authorization"}
"""Of those, what `pass` mode sends up; the other one belongs to the connection."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who is calling (`name`: configured clients only) and the credential headers that go up for it."""

    name: str | None
    credential: tuple[tuple[bytes, bytes], ...] = field(repr=False)


class Gate:
    """Checks incoming credentials by the settings."""

    def __init__(self, settings: Settings) -> None:
        self._clients = settings.client_keys
        self._passes = settings.credentials == "pass"
        self._key = settings.anthropic_api_key
        self._metrics_token = settings.metrics_token
        self._metrics_open = settings.loopback and not settings.metrics_token

    def admit(self, headers: RawHeaders) -> Caller:
        """The caller. Raises `Unauthenticated`."""
        name = None
        if self._clients:
            name = _named(self._clients, _credential(headers))
        else:
            _refuse_web_pages(headers)
        if self._passes:
            return Caller(name, tuple((k, v) for k, v in headers if k in _FORWARDED))
        return Caller(name, ((b"x-api-key", self._key.encode("ascii")),))

    def admit_to_metrics(self, headers: RawHeaders) -> bool:
        """Whether `/metrics` may be shown."""
        if self._metrics_open:
            return True
        given = _credential(headers) or ""
        return bool(self._metrics_token) and hmac.compare_digest(given.encode("latin-1"), self._metrics_token.encode())


def _credential(headers: RawHeaders) -> str | None:
    """The credential that came: `x-api-key` wins over `Authorization: Bearer` (SDKs from 2.0 on send keys as Bearer)."""
    found = dict(headers)
    key = found.get(b"x-api-key") or found.get(b"x-goog-api-key")
    if key is None:
        scheme, _, token = found.get(b"authorization", b"").partition(b" ")
        key = token.strip() if scheme.lower() == b"bearer" else None
    return key.decode("latin-1") if key else None


def _refuse_web_pages(headers: RawHeaders) -> None:
    """Without client keys anybody on this machine may come in, but not a page that its browser shows: neither by a name
    of its own that leads here (DNS rebinding) nor across origins."""
    for name, value in headers:
        if name in (b"host", b"origin") and not is_loopback(_host_in(value.decode("latin-1"))):
            field = name.decode().title()
            raise Forbidden(f"{field} is not this machine's: configure client keys to let others in", field=field)


def _host_in(value: str) -> str:
    try:
        return urlsplit(value if "://" in value else f"//{value}").hostname or ""
    except ValueError:
        return ""


def _named(clients: tuple[ClientKey, ...], credential: str | None) -> str:
    if credential is None:
        raise Unauthenticated("no credential: send a client key as x-api-key or as Authorization: Bearer")
    digest = hash_key(credential)
    name = None
    for client in clients:  # all of them, always: the time taken must not tell which one matched
        if hmac.compare_digest(client.sha256, digest):
            name = client.name
    if name is None:
        raise Unauthenticated("this client key is not known here")
    return name


def hash_key(key: str) -> str:
    """SHA-256 of a client key, as it stands in CLAUDE_PROXY_CLIENT_KEYS."""
    return hashlib.sha256(key.encode("latin-1", "replace")).hexdigest()
