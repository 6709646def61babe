"""Text of settings into values. No environment here; every function raises `ValueError` that says what it expected."""

from __future__ import annotations

import io
import ipaddress
import re
import socket
import ssl
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import msgspec
from dotenv.parser import parse_stream
from dotenv.variables import parse_variables


@dataclass(frozen=True, slots=True)
class ClientKey:
    """A named key a client may come in with; only its SHA-256 is kept, as lower-case hex."""

    name: str
    sha256: str = field(repr=False)


def seconds(text: str) -> float:
    """Seconds, more than 0, at most a day."""
    value = float(text)
    if not 0 < value <= 86_400:
        raise ValueError("seconds between 0 and 86400")
    return value


def positive(text: str) -> float:
    """A number above 0."""
    value = float(text)
    if not value > 0:
        raise ValueError("a number above 0")
    return value


def ratio(text: str) -> float:
    """A share from 0 to 1."""
    value = float(text)
    if not 0 <= value <= 1:
        raise ValueError("a number from 0 to 1")
    return value


def count(low: int, high: int) -> Callable[[str], int]:
    """A whole number within bounds."""

    def checked(text: str) -> int:
        value = int(text)
        if not low <= value <= high:
            raise ValueError(f"a whole number from {low} to {high}")
        return value

    return checked


def choice(*allowed: str) -> Callable[[str], str]:
    """One of the words allowed."""

    def checked(text: str) -> str:
        if text not in allowed:
            raise ValueError("one of " + ", ".join(filter(None, allowed)))
        return text

    return checked


def capture(text: str) -> bool:
    """Whether what is said may be told, as OpenTelemetry's GenAI packages spell it: the newer words or the older."""
    word = text.strip().upper()
    if word in ("EVENT_ONLY", "SPAN_AND_EVENT"):
        raise ValueError("SPAN_ONLY or NO_CONTENT: what is said can be told in spans only, there are no events")
    if word not in ("NO_CONTENT", "SPAN_ONLY", "TRUE", "FALSE"):
        raise ValueError("SPAN_ONLY or NO_CONTENT")
    return word in ("SPAN_ONLY", "TRUE")


class Allowance(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a named client may do; what is left out is not limited. `models` are names, `*` stands for any part."""

    requests_per_minute: Annotated[float, msgspec.Meta(gt=0)] | None = None
    tokens_per_minute: Annotated[float, msgspec.Meta(gt=0)] | None = None
    concurrency: Annotated[int, msgspec.Meta(ge=1)] | None = None
    budget_usd_per_day: Annotated[float, msgspec.Meta(ge=0, le=1e9)] | None = None
    models: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)] = ()


def client_limits(text: str) -> dict[str, Allowance]:
    """A JSON file of allowances by client name, or nothing."""
    path = file(text)
    if path is None:
        return {}
    whose, found = "", {}
    try:
        for name, raw in msgspec.json.decode(path.read_bytes(), type=dict[str, msgspec.Raw]).items():
            whose = f"{name!r}: "
            found[name] = msgspec.json.decode(raw, type=Allowance)
    except OSError as error:
        raise ValueError(f"a file that can be read ({error.strerror})") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{{NAME: {{requests_per_minute, tokens_per_minute, …}}}} as JSON ({whose}{error})") from None
    return found


def switch(text: str) -> bool:
    """`on` or `off`."""
    if text not in ("on", "off"):
        raise ValueError("on or off")
    return text == "on"


_MODEL = re.compile(r"[\x21-\x7e]{1,128}")


def fallbacks(text: str) -> dict[str, tuple[str, ...]]:
    """`MODEL=STAND_IN,STAND_IN` entries separated by semicolons."""
    found: dict[str, tuple[str, ...]] = {}
    for entry in filter(None, map(str.strip, text.split(";"))):
        model, _, rest = entry.partition("=")
        names = tuple(name.strip() for name in rest.split(",") if name.strip())
        model = model.strip()
        if not names or model in (*found, *names) or not all(_MODEL.fullmatch(name) for name in (model, *names)):
            raise ValueError(
                f"MODEL=STAND_IN,STAND_IN entries, each model once and never its own stand-in; not {entry!r}"
            )
        found[model] = names
    return found


def url(text: str) -> str:
    """An http or https address without query, less its last slash."""
    expected = "an http:// or https:// address without query"
    try:
        parts = urlsplit(text)
        _ = parts.port  # read to be checked
    except ValueError:
        raise ValueError(expected) from None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError(expected)
    return text.rstrip("/")


def base_url(text: str) -> str:
    """The same without user and password: it is shown and logged, and the credential is a setting of its own. Without the
    version too, which clients send."""
    if "@" in urlsplit(url(text)).netloc:
        raise ValueError("an http:// or https:// address without user or password")
    if re.search("/v[0-9]+(beta)?$", url(text)):
        raise ValueError("an http:// or https:// address without the version: requests bring their own")
    return url(text)


def without_userinfo(address: str) -> str:
    """An address as it may be shown: user and password masked."""
    return re.sub(r"(?<=://)[^/?#]*@", "***@", address)


def bind(text: str) -> str:
    """HOST:PORT."""
    host, colon, port = text.rpartition(":")
    if not colon or not host or not re.fullmatch("[0-9]+", port):
        raise ValueError("HOST:PORT")
    if int(port) > 65_535:
        raise ValueError("HOST:PORT with port 0 to 65535")
    return text


def is_loopback(host: str) -> bool:
    """Whether `host` (a name or address, brackets allowed) is this machine's loopback."""
    name = host.strip("[]")
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"


def resolves(bind: str) -> bool:
    """Whether the host of HOST:PORT is an address, or a name that has one."""
    try:
        socket.getaddrinfo(bind.rpartition(":")[0].strip("[]"), None)
    except (OSError, UnicodeError):
        return False
    return True


def file(text: str) -> Path | None:
    """A file that can be read, or nothing."""
    if not text:
        return None
    path = Path(text).expanduser()
    if not path.is_file():
        raise ValueError("a file that exists")
    return path


def ca_file(text: str) -> str:
    """A file of CA certificates that can be loaded, or nothing."""
    if text:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(text)
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
            raise ValueError(f"a readable file of CA certificates in PEM ({reason})") from None
    return text


def text(text: str) -> str:
    """Anything."""
    return text


def key(text: str) -> str:
    """A secret: one line of printable ASCII without spaces."""
    if not text or not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError("one line of printable ASCII without spaces")
    return text


_CLIENT_KEY = re.compile(r"([A-Za-z0-9_.-]{1,64}):([0-9a-fA-F]{64})")


def client_keys(text: str) -> tuple[ClientKey, ...]:
    """`NAME:SHA256` entries. Raises `ValueError` that says which one is wrong, without quoting it."""
    keys: dict[str, ClientKey] = {}
    for number, entry in enumerate(filter(None, re.split(r"[,\s]+", text)), 1):
        match = _CLIENT_KEY.fullmatch(entry)
        if match is None:
            raise ValueError(f"NAME:SHA256 entries; number {number} is not (make one with: claude-proxy key NAME)")
        if match[1] in keys:
            raise ValueError(f"each name once; {match[1]!r} is there twice")
        keys[match[1]] = ClientKey(match[1], match[2].lower())
    return tuple(keys.values())


def env_file(text: str, environ: Mapping[str, str]) -> dict[str, str]:
    """The variables of an env file; `${NAME}` in a value is taken from the file above it, then from `environ`."""
    values: dict[str, str] = {}
    for found in parse_stream(io.StringIO(text)):
        key, value = found.key, found.value
        if key is None and not found.error:
            continue  # a comment, or the end
        if not key or value is None or "=" in key or "\0" in key + value:
            original = found.original
            above = original.string[: len(original.string) - len(original.string.lstrip())].count("\n")
            raise ValueError(f"NAME=VALUE in line {original.line + above}")
        known = {**environ, **values}
        values[key] = "".join(atom.resolve(known) for atom in parse_variables(value))
    return values


def proxy(https_proxy: str, base_url: str, env: Mapping[str, str]) -> str | None:
    """The forward proxy to `base_url`, or None: HTTPS_PROXY or HTTP_PROXY by scheme, unless NO_PROXY names the host."""
    parts = urlsplit(base_url)
    upper = {key.lower(): value for key, value in env.items() if key.lower().endswith("_proxy")}
    name = "HTTPS_PROXY" if parts.scheme == "https" else "HTTP_PROXY"
    found = (https_proxy if name == "HTTPS_PROXY" else "") or upper.get(name.lower())
    bypass = {"no": upper.get("no_proxy", "")}
    if not found or is_loopback(parts.hostname or ""):
        return None
    if urllib.request.proxy_bypass_environment(parts.netloc, bypass):  # type: ignore[attr-defined]
        return None
    try:
        return url(found)
    except ValueError as error:
        raise ValueError(f"{name} is not valid: expected {error}") from None
