"""The only reader of the environment. A malformed or unknown `CLAUDE_PROXY_*` stops start-up with its name and a hint.

`TABLE` is the README's table of settings, by test. Every secret can also come as `NAME_FILE`.
"""

from __future__ import annotations

import difflib
import os
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from service import parse
from service.errors import SettingsError
from service.parse import ClientKey as ClientKey
from service.parse import is_loopback as is_loopback
from service.setting_rows import TABLE as TABLE
from service.setting_rows import Setting as Setting

PREFIX = "CLAUDE_PROXY_"

# The instrumentation packages still default to the names of before HTTP semconv became stable, and read this once.
os.environ.setdefault("OTEL_SEMCONV_STABILITY_OPT_IN", "http")


ALIASES = {"ANTHROPIC_API_KEY": ("CLAUDE_API_KEY",)}


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings, read once. `repr` shows no secret."""

    bind: str
    workers: int
    log_level: str
    anthropic_base_url: str
    credentials: Literal["inject", "pass"]
    default_model: str
    batch_concurrency: int
    batch_max_prompts: int
    connect_timeout: float
    first_byte_timeout: float
    idle_timeout: float
    total_timeout: float
    max_retries: int
    retry_budget: float
    retry_unanswered: bool
    fallbacks: dict[str, tuple[str, ...]]
    cache_ttl: int
    cache_bytes: int
    graceful_timeout: int
    keepalive: int
    service_name: str
    otlp_endpoint: str
    sampler: str
    sampler_ratio: float
    traces_per_second: float
    trace_slow: float
    export_delay_ms: int
    export_queue: int
    capture_content: str
    ca_file: str
    proxy: str | None = field(repr=False)
    anthropic_api_key: str = field(repr=False)
    client_keys: tuple[ClientKey, ...] = field(repr=False)
    metrics_token: str = field(repr=False)

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the gateway."""
        return is_loopback(self.bind.rpartition(":")[0])


def names_a_provider(env: Mapping[str, str]) -> bool:
    """Whether the environment says anything about which provider to use, or with whose key."""
    names = ("ANTHROPIC_API_KEY", "CLAUDE_API_KEY", "CLAUDE_PROXY_CREDENTIALS", "CLAUDE_PROXY_ANTHROPIC_BASE_URL")
    return any(env.get(name) or env.get(f"{name}_FILE") for name in names)


def load(environ: Mapping[str, str] | None = None) -> Settings:
    """Read and check every setting. Raises `SettingsError` that names the variable."""
    env = os.environ if environ is None else environ
    _refuse_unknown(env)
    values: dict[str, Any] = {row.attribute: _value(row, env) for row in TABLE}
    values["proxy"] = _proxy(values["proxy"], values["anthropic_base_url"], env)
    values["credentials"] = _credentials(values)
    settings = Settings(**values)
    if not settings.loopback and not settings.client_keys:
        if not parse.resolves(settings.bind):
            raise SettingsError(
                f"CLAUDE_PROXY_BIND={settings.bind} cannot be resolved to an address: check its spelling."
            )
        raise SettingsError(
            f"CLAUDE_PROXY_BIND={settings.bind} is reachable from other machines, and CLAUDE_PROXY_CLIENT_KEYS is empty: "
            "anyone could spend your provider key. Make client keys with `claude-proxy key NAME`, or bind to 127.0.0.1."
        )
    return settings


def overview(env: Mapping[str, str]) -> tuple[dict[str, str], str]:
    """Every setting as it may be shown to anybody, and what stops a start: empty if nothing does."""
    try:
        loaded = load(env)
    except SettingsError as error:
        return {row.name: _shown(row, env, None) for row in TABLE}, str(error)
    return {row.name: _shown(row, env, loaded) for row in TABLE}, ""


def _shown(row: Setting, env: Mapping[str, str], loaded: Settings | None) -> str:
    try:
        value = getattr(loaded, row.attribute) if loaded else _value(row, env)
    except SettingsError:
        return "not valid"
    if row.secret:
        return "set" if value else "not set"
    return parse.without_userinfo(str("" if value is None else value))


class Environment:
    """Where a gateway's settings come from: the environment of its start, over an env file read anew by every `load`.

    Only a `required` file must exist.
    """

    def __init__(self, file: Path, *, required: bool) -> None:
        self._file, self._required = file, required
        self._start = dict(os.environ)
        self._from_file: dict[str, str] | None = None
        self._published: set[str] = set()
        self._bind: str | None = None

    def override(self, **values: str) -> None:
        """These win over both, now and at every reload."""
        self._start |= values
        os.environ.update(values)

    def merged(self) -> dict[str, str]:
        """What is in force. Raises `SettingsError` that names the file and the line."""
        self._from_file = self._read_file()
        return self._from_file | self._start

    def load(self) -> Settings:
        """At start and at every reload; when refused, the environment stays as it was too."""
        merged = self.merged()
        loaded = load(merged)
        if self._bind not in (None, loaded.bind):
            raise SettingsError(
                f"CLAUDE_PROXY_BIND={loaded.bind} needs a restart: the gateway listens on {self._bind}."
            )
        self._bind = loaded.bind
        # Libraries read the environment by themselves, the OTLP exporter its headers for one.
        for name in self._published - merged.keys():
            os.environ.pop(name, None)
        self._published = merged.keys() - self._start.keys()
        os.environ.update({name: merged[name] for name in self._published})
        return loaded

    @property
    def gives_listeners(self) -> bool:
        """Whether the sockets to listen on are inherited: from systemd, or from the gunicorn that this one replaces."""
        return any(self._start.get(name) for name in ("LISTEN_FDS", "GUNICORN_FD"))

    def _read_file(self) -> dict[str, str]:
        try:
            if self._from_file is not None and self._file.is_fifo():
                return self._from_file  # a pipe can be read only once
            return parse.env_file(self._file.read_text(encoding="utf-8"), self._start)
        except FileNotFoundError:
            if self._required:
                raise SettingsError(f"--env-file {self._file} does not exist.") from None
            return {}
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"{self._file} cannot be read: {error}.") from None
        except ValueError as error:
            raise SettingsError(f"{self._file} is not valid: expected {error}.") from None


def _credentials(values: Mapping[str, Any]) -> str:
    chosen, key, clients = values["credentials"], values["anthropic_api_key"], values["client_keys"]
    if chosen == "pass" and clients:
        raise SettingsError(
            "CLAUDE_PROXY_CREDENTIALS=pass cannot go with CLAUDE_PROXY_CLIENT_KEYS: the incoming credential is then ours "
            "and is never forwarded. Unset one of them."
        )
    if chosen != "pass" and not key:
        raise SettingsError(
            "ANTHROPIC_API_KEY is empty: set it (or ANTHROPIC_API_KEY_FILE), or set CLAUDE_PROXY_CREDENTIALS=pass to forward "
            "each client's own credential, or try `claude-proxy serve --simulate-without-key`."
        )
    return chosen or "inject"


def _value(row: Setting, env: Mapping[str, str]) -> Any:
    name, text = row.name, env.get(row.name, "")
    for alias in ALIASES.get(row.name, ()):
        if not text and env.get(alias):
            name, text = alias, env[alias]
    if row.secret:
        for candidate in (row.name, *ALIASES.get(row.name, ())):
            if path := env.get(f"{candidate}_FILE"):
                if text:
                    raise SettingsError(f"{name} and {candidate}_FILE are both set: keep one.")
                name, text = f"{candidate}_FILE", _read(f"{candidate}_FILE", path)
    if not text and not row.default:
        return row.parse("") if row.parse not in (parse.key, parse.url) else ""
    try:
        return row.parse(text or row.default)
    except ValueError as error:
        # An address may carry a password.
        shown = "" if row.secret or "@" in text else f"={text!r}"
        raise SettingsError(f"{name}{shown} is not valid: expected {_hint(error)}.") from None


def _hint(error: ValueError) -> str:
    text = str(error)
    return "a number" if text.startswith(("could not convert", "invalid literal")) else text


def _read(name: str, path: str) -> str:
    try:
        text = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{name}={path!r} cannot be read: {error}.") from None
    if not text:
        # An empty secret would quietly open what it was meant to close.
        raise SettingsError(f"{name}={path!r} is empty: write the secret into it, or unset {name}.")
    return text


def _refuse_unknown(env: Mapping[str, str]) -> None:
    known = {row.name for row in TABLE} | {f"{row.name}_FILE" for row in TABLE if row.secret}
    for name in env:
        if name.startswith(PREFIX) and name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f" Did you mean {close[0]}?" if close else " `claude-proxy check` lists all settings."
            raise SettingsError(f"{name} is not a setting.{hint}")


def _proxy(https_proxy: str, base_url: str, env: Mapping[str, str]) -> str | None:
    """The forward proxy for the provider, or None: HTTPS_PROXY or HTTP_PROXY by scheme, unless NO_PROXY names the host."""
    parts = urlsplit(base_url)
    upper = {key.lower(): value for key, value in env.items() if key.lower().endswith("_proxy")}
    name = "HTTPS_PROXY" if parts.scheme == "https" else "HTTP_PROXY"
    proxy = (https_proxy if name == "HTTPS_PROXY" else "") or upper.get(name.lower())
    bypass = {"no": upper.get("no_proxy", "")}
    if not proxy or is_loopback(parts.hostname or ""):
        return None
    if urllib.request.proxy_bypass_environment(parts.netloc, bypass):  # type: ignore[attr-defined]
        return None
    try:
        return parse.url(proxy)
    except ValueError as error:
        raise SettingsError(f"{name} is not valid: expected {error}.") from None
