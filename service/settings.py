"""The only reader of the environment. A malformed or unknown `CLAUDE_PROXY_*` stops start-up with its name and a hint.

`TABLE` is the README's table of settings, by test. Every secret can also come as `NAME_FILE`.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from service import parse, setting_rows
from service.account import prices_override
from service.account.prices_list import Listed
from service.errors import SettingsError
from service.parse import ClientKey as ClientKey
from service.parse import is_loopback as is_loopback
from service.setting_rows import Setting as Setting
from service.setting_values import Settings as Settings
from service.setting_values import Upstream as Upstream
from service.store.shared import CLIENTS
from service.upstream.provider import Provider
from service.upstream.providers import PROVIDERS

PREFIX = "CLAUDE_PROXY_"

# The instrumentation packages still default to the names of before HTTP semconv became stable, and read this once.
os.environ.setdefault("OTEL_SEMCONV_STABILITY_OPT_IN", "http")


def table(providers: Sequence[Provider] = PROVIDERS) -> tuple[Setting, ...]:
    """Every setting of a gateway that speaks to these providers, in the order of the README."""
    return (*(row for provider in providers for row in setting_rows.of_provider(provider)), *setting_rows.TABLE)


TABLE = table()


def names_a_provider(env: Mapping[str, str]) -> bool:
    """Whether the environment says anything about which provider to use, or with whose key."""
    names = {name for provider in PROVIDERS for name in provider.key_names} | {"CLAUDE_PROXY_CREDENTIALS"}
    names |= {row.name for row in TABLE if row.attribute == "base_url"}
    return any(env.get(name) or env.get(f"{name}_FILE") for name in names)


def simulated(address: str) -> dict[str, str]:
    """The environment with which every provider is the simulator at `address`."""
    found = {provider.key_names[0]: "sk-ant-simulated" for provider in PROVIDERS}
    rows = {row.provider: row.name for row in TABLE if row.attribute == "base_url"}
    return found | {rows[each.name]: address + ("" if each.bare else each.prefix) for each in PROVIDERS}


def load(environ: Mapping[str, str] | None = None, providers: Sequence[Provider] = PROVIDERS) -> Settings:
    """Read and check every setting. Raises `SettingsError` that names the variable."""
    env = os.environ if environ is None else environ
    rows = table(providers)
    _refuse_unknown(env, rows)
    if env.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        raise SettingsError(
            "OTEL_SDK_DISABLED=true would leave requests without a trace id, also in log lines, errors and the ledger: for "
            "no spans set OTEL_TRACES_SAMPLER=always_off instead."
        )
    aliases = {provider.key_names[0]: provider.key_names[1:] for provider in providers}
    own = {(row.provider, row.attribute): setting_rows.value(row, env, aliases.get(row.name, ())) for row in rows}
    values: dict[str, Any] = {attribute: value for (provider, attribute), value in own.items() if not provider}
    values["upstreams"] = {each.name: _upstream(each.name, own, values["proxy"], env) for each in providers}
    values["ledger"] = _ledger(values["ledger"], env)
    values["credentials"] = _credentials(values, providers)
    values["own_prices"] = _own_prices(values["prices_file"])
    settings = Settings(**values)
    _check_fallbacks(settings.fallbacks, providers)
    _check_client_limits(settings)
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
        value = of_row(loaded, row) if loaded else setting_rows.value(row, env)
    except SettingsError:
        return "not valid"
    if row.secret:
        return "set" if value else "not set"
    return parse.without_userinfo(str("" if value is None else value))


def of_row(loaded: Settings, row: Setting) -> Any:
    """The value in force of one row of the table."""
    return getattr(loaded.upstreams[row.provider] if row.provider else loaded, row.attribute)


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


def _upstream(name: str, own: Mapping[tuple[str, str], Any], https_proxy: str, env: Mapping[str, str]) -> Upstream:
    base_url = own[name, "base_url"]
    try:
        proxy = parse.proxy(https_proxy, base_url, env)
    except ValueError as error:
        raise SettingsError(f"{error}.") from None
    return Upstream(base_url, own[name, "default_model"], own[name, "key"], proxy)


def _credentials(values: Mapping[str, Any], providers: Sequence[Provider]) -> str:
    chosen, clients, upstreams = values["credentials"], values["client_keys"], values["upstreams"]
    if chosen == "pass" and clients:
        raise SettingsError(
            "CLAUDE_PROXY_CREDENTIALS=pass cannot go with CLAUDE_PROXY_CLIENT_KEYS: the incoming credential is then ours "
            "and is never forwarded. Unset one of them."
        )
    if chosen != "pass" and not any(upstream.key for upstream in upstreams.values()):
        first, *others = (provider.key_names[0] for provider in providers)
        raise SettingsError(
            f"{first} is empty: set it (or {first}_FILE, or {' or '.join(others)}), or set "
            "CLAUDE_PROXY_CREDENTIALS=pass to forward each client's own credential, or try "
            "`claude-proxy serve --simulate-without-key`."
        )
    return chosen or "inject"


def _own_prices(file: Path | None) -> Mapping[tuple[str, str], Listed]:
    """Read here, once: a worker that found it wrong, or gone, would take the whole gateway down."""
    try:
        return {} if file is None else prices_override.load(file)
    except prices_override.BadPrices as error:
        raise SettingsError(f"CLAUDE_PROXY_PRICES_FILE: {error}") from None


def _check_client_limits(settings: Settings) -> None:
    limited = settings.client_limits.keys()
    if strangers := limited - {client.name for client in settings.client_keys}:
        raise SettingsError(
            f"CLAUDE_PROXY_CLIENT_LIMITS_FILE names {min(strangers)!r}, which is no client of CLAUDE_PROXY_CLIENT_KEYS."
        )
    if len(limited) > CLIENTS:
        raise SettingsError(f"CLAUDE_PROXY_CLIENT_LIMITS_FILE limits {len(limited)} clients; {CLIENTS} can be counted.")


def _check_fallbacks(fallbacks: Mapping[str, Sequence[str]], providers: Sequence[Provider]) -> None:
    """A call stays with its provider: where we know both models' they must be the same."""
    whose = {model: provider.title for provider in providers for model in provider.models}
    for model, stand_ins in fallbacks.items():
        for name in stand_ins:
            if model in whose and whose.get(name, whose[model]) != whose[model]:
                raise SettingsError(
                    f"CLAUDE_PROXY_FALLBACKS: {name} is {whose[name]}'s and cannot stand in for {model}, {whose[model]}'s."
                )


def _ledger(setting: str, env: Mapping[str, str]) -> Path | None:
    if setting == "off":
        return None
    try:
        if setting:
            return Path(setting).expanduser()
        state = Path(env.get("XDG_STATE_HOME", ""))
        return (state if state.is_absolute() else Path.home() / ".local" / "state") / "claude-proxy"
    except RuntimeError:
        raise SettingsError(
            "CLAUDE_PROXY_LEDGER names no directory, and this user has no home: name one, or off."
        ) from None


def _refuse_unknown(env: Mapping[str, str], rows: Sequence[Setting]) -> None:
    known = {row.name for row in rows} | {f"{row.name}_FILE" for row in rows if row.secret}
    for name in env:
        if name.startswith(PREFIX) and name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f" Did you mean {close[0]}?" if close else " `claude-proxy check` lists all settings."
            raise SettingsError(f"{name} is not a setting.{hint}")
