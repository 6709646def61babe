"""Who may come in, and which credential goes up. Keys are compared by hash in constant time and never leave this file."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING
from urllib.parse import unquote_plus, urlsplit

from service.errors import Forbidden, NotFound, Unauthenticated
from service.settings import ClientKey, Settings, is_loopback
from service.upstream.provider import Provider
from service.upstream.providers import PROVIDERS
from service.web.channel import Channel, RawHeaders

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

CREDENTIAL_HEADERS = frozenset((b"x-api-key", b"authorization", b"x-goog-api-key", b"proxy-authorization"))
"""Request headers that carry a credential; none of them goes up when ours is injected."""


_QUERY_KEY = "key"
"""Query parameter with which Gemini's API takes a key."""


Headers = tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True, slots=True)
class Caller:
    """Who is calling: `name` (configured clients only), and the credential headers that go up for it.

    `passed` are the client's own, whoever they are for; None where ours go up: those of `injected`, by provider.
    """

    name: str | None
    injected: Mapping[str, Headers] = field(repr=False)
    passed: Headers | None = field(repr=False, default=None)

    def credential(self, provider: Provider) -> Headers:
        """What opens this provider. Raises `NotFound`: without a key its routes are as good as not there."""
        if self.passed is not None:
            return tuple(each for each in self.passed if each[0] in provider.credential_headers)
        found = self.injected.get(provider.name)
        if found is None:
            raise NotFound(
                f"this gateway has no key for {provider.title}: its operator must set {provider.key_names[0]}",
                field="provider",
            )
        return found


class Gate:
    """Checks incoming credentials by the settings."""

    def __init__(self, settings: Settings, providers: Sequence[Provider] = PROVIDERS) -> None:
        self._clients = settings.client_keys
        self._passes = settings.credentials == "pass"
        keys = {provider: settings.upstreams[provider.name].key for provider in providers}
        self._injected = {provider.name: (provider.credential(key),) for provider, key in keys.items() if key}
        self._metrics_token = settings.metrics_token
        self._metrics_open = settings.loopback and not settings.metrics_token

    def admit(self, headers: RawHeaders) -> Caller:
        """The caller. Raises `Unauthenticated`."""
        name = None
        if self._clients:
            name = _named(self._clients, _credential(headers))
        else:
            _refuse_web_pages(headers)
        passed = tuple(each for each in headers if each[0] in CREDENTIAL_HEADERS) if self._passes else None
        return Caller(name, self._injected, passed)

    def admit_to_metrics(self, headers: RawHeaders) -> bool:
        """Whether `/metrics` may be shown."""
        if self._metrics_open:
            return True
        given = _credential(headers) or ""
        return bool(self._metrics_token) and hmac.compare_digest(given.encode("latin-1"), self._metrics_token.encode())


def take_key_from_query(environ: WSGIEnvironment) -> None:
    """Move the key in an address, wherever it leads, to where keys belong: before anything is traced or logged."""
    query = environ.get("QUERY_STRING", "")
    if _QUERY_KEY not in query:
        return
    pairs = [(unquote_plus(name), value, name + mark + value) for name, mark, value in map(_split, query.split("&"))]
    keys = [value for name, value, _ in pairs if name == _QUERY_KEY]
    if not keys:
        return
    channel = Channel.of(environ)
    rest = "&".join(whole for name, _, whole in pairs if name != _QUERY_KEY)
    environ["QUERY_STRING"] = rest
    channel.target = channel.target.partition("?")[0] + (f"?{rest}" if rest else "")
    for name in ("RAW_URI", "REQUEST_URI"):
        if name in environ:
            environ[name] = channel.target
    if not any(name == b"x-goog-api-key" for name, _ in channel.headers):
        key = unquote_plus(keys[0]).encode("latin-1", "replace")
        channel.headers = [*channel.headers, (b"x-goog-api-key", key)]


def _split(pair: str) -> tuple[str, str, str]:
    return pair.partition("=")


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
        if name in (b"host", b"origin") and not _is_here(value):
            field = name.decode().title()
            raise Forbidden(f"{field} is not this machine's: configure client keys to let others in", field=field)


@lru_cache(maxsize=64)
def _is_here(address: bytes) -> bool:
    """Whether a `Host` or `Origin` names this machine."""
    text = address.decode("latin-1")
    try:
        return is_loopback(urlsplit(text if "://" in text else f"//{text}").hostname or "")
    except ValueError:
        return False


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
