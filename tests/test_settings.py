"""Settings: what is wrong is named, secrets stay secret, closed by default."""

from __future__ import annotations

import dataclasses
import json
import socket
from pathlib import Path

import pytest

from service import parse, settings
from service.errors import SettingsError
from service.settings import ClientKey
from service.store.shared import CLIENTS

KEY = {"ANTHROPIC_API_KEY": "sk-ant-secret-provider-key"}
SHA = "a" * 64
CAPTURE = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"


def _refused(**environ: str) -> str:
    with pytest.raises(SettingsError) as caught:
        settings.load(KEY | environ)
    return str(caught.value)


def test_every_row_of_the_table_is_a_field_of_the_settings_and_the_other_way_round() -> None:
    fields = {f.name for f in dataclasses.fields(settings.Settings)} - {"upstreams", "own_prices"}
    assert sorted(row.attribute for row in settings.TABLE if not row.provider) == sorted(fields)
    of_a_provider = {f.name for f in dataclasses.fields(settings.Upstream)} - {"proxy"}
    assert {row.attribute for row in settings.TABLE if row.provider} == of_a_provider


def test_defaults_are_those_of_the_table() -> None:
    loaded = settings.load(KEY)
    for row in settings.TABLE:
        if row.default:
            assert settings.of_row(loaded, row) == row.parse(row.default), row.name
    assert (loaded.credentials, loaded.client_keys, loaded.metrics_token) == ("inject", (), "")
    assert {upstream.proxy for upstream in loaded.upstreams.values()} == {None}


def test_an_empty_variable_is_the_same_as_none() -> None:
    assert settings.load(KEY | {row.name: "" for row in settings.TABLE if row.name not in KEY}) == settings.load(KEY)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("CLAUDE_PROXY_BIND", "8000", "HOST:PORT"),
        ("CLAUDE_PROXY_BIND", ":8000", "HOST:PORT"),
        ("CLAUDE_PROXY_BIND", "127.0.0.1:eighty", "HOST:PORT"),
        ("CLAUDE_PROXY_BIND", "127.0.0.1:65536", "HOST:PORT with port 0 to 65535"),
        ("CLAUDE_PROXY_WORKERS", "0", "a whole number from 1 to 64"),
        ("CLAUDE_PROXY_WORKERS", "65", "a whole number from 1 to 64"),
        ("CLAUDE_PROXY_WORKERS", "two", "a number"),
        ("CLAUDE_PROXY_WORKERS", "1.5", "a number"),
        ("CLAUDE_PROXY_LOG_LEVEL", "loud", "one of debug, info, warning, error"),
        ("CLAUDE_PROXY_ANTHROPIC_BASE_URL", "api.anthropic.com", "an http:// or https:// address without query"),
        ("CLAUDE_PROXY_ANTHROPIC_BASE_URL", "ftp://x", "an http:// or https:// address without query"),
        ("CLAUDE_PROXY_ANTHROPIC_BASE_URL", "http://x?a=1", "an http:// or https:// address without query"),
        ("CLAUDE_PROXY_ANTHROPIC_BASE_URL", "http://[::1", "an http:// or https:// address without query"),
        ("CLAUDE_PROXY_ANTHROPIC_BASE_URL", "http://x:99999", "an http:// or https:// address without query"),
        (
            "CLAUDE_PROXY_OPENAI_BASE_URL",
            "https://openai.test/v1/",
            "an http:// or https:// address without the version: requests bring their own",
        ),
        ("SSL_CERT_FILE", "/nowhere/ca.pem", "a readable file of CA certificates in PEM (No such file or directory)"),
        ("CLAUDE_PROXY_CREDENTIALS", "forward", "one of inject, pass"),
        ("CLAUDE_PROXY_BATCH_CONCURRENCY", "0", "a whole number from 1 to 1000"),
        ("CLAUDE_PROXY_BATCH_MAX_PROMPTS", "0", "a whole number from 1 to 100000"),
        ("CLAUDE_PROXY_CONNECT_TIMEOUT", "0", "seconds between 0 and 86400"),
        ("CLAUDE_PROXY_FIRST_BYTE_TIMEOUT", "nan", "seconds between 0 and 86400"),
        ("CLAUDE_PROXY_IDLE_TIMEOUT", "-1", "seconds between 0 and 86400"),
        ("CLAUDE_PROXY_TOTAL_TIMEOUT", "1h", "a number"),
        ("CLAUDE_PROXY_GRACEFUL_TIMEOUT", "3", "a whole number from 4 to 3600"),
        ("CLAUDE_PROXY_KEEPALIVE", "0", "a whole number from 1 to 3600"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "localhost:4318", "an http:// or https:// address without query"),
        ("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "yes", "SPAN_ONLY or NO_CONTENT"),
        ("HTTPS_PROXY", "proxy:3128", "an http:// or https:// address without query"),
    ],
)
def test_a_malformed_value_is_refused_by_its_name_and_what_was_expected(name: str, value: str, expected: str) -> None:
    assert _refused(**{name: value}) == f"{name}={value!r} is not valid: expected {expected}."


@pytest.mark.parametrize("value", ["EVENT_ONLY", "span_and_event"])
def test_a_value_that_wants_events_is_refused_by_the_variable_the_value_that_works_and_why(value: str) -> None:
    assert _refused(**{CAPTURE: value}) == (
        f"{CAPTURE}={value!r} is not valid: expected SPAN_ONLY or NO_CONTENT: "
        "what is said can be told in spans only, there are no events."
    )


@pytest.mark.parametrize(
    ("value", "on"),
    [
        ("", False), ("NO_CONTENT", False), ("no_content", False), ("false", False), ("FALSE", False),
        ("SPAN_ONLY", True), ("span_only", True), (" Span_Only ", True), ("true", True), ("True", True),
    ],
)  # fmt: skip
def test_content_capture_is_off_unless_it_is_asked_for_in_the_newer_words_or_the_older(value: str, on: bool) -> None:
    assert settings.load({**KEY, CAPTURE: value}).capture_content is on


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ANTHROPIC_API_KEY", "sk ant"),
        ("ANTHROPIC_API_KEY", "sk-\u00e4nt"),
        ("CLAUDE_PROXY_METRICS_TOKEN", "two\nlines"),
    ],
)
def test_a_malformed_secret_is_refused_without_being_shown(name: str, value: str) -> None:
    assert _refused(**{name: value}) == f"{name} is not valid: expected one line of printable ASCII without spaces."


def test_a_password_in_a_malformed_address_is_not_shown() -> None:
    assert "hunter2" not in _refused(HTTPS_PROXY="htp://user:hunter2@proxy:3128")
    assert "hunter2" not in _refused(
        HTTP_PROXY="user:hunter2@proxy", CLAUDE_PROXY_ANTHROPIC_BASE_URL="http://claude.test"
    )


def test_the_base_url_takes_no_user_and_no_password() -> None:
    assert _refused(CLAUDE_PROXY_ANTHROPIC_BASE_URL="http://user:hunter2@claude.test") == (
        "CLAUDE_PROXY_ANTHROPIC_BASE_URL is not valid: expected an http:// or https:// address without user or password."
    )


def test_the_sdk_cannot_be_disabled_as_every_trace_id_would_then_be_zero() -> None:
    assert "OTEL_TRACES_SAMPLER=always_off" in _refused(OTEL_SDK_DISABLED="True")
    assert settings.load(KEY | {"OTEL_SDK_DISABLED": "false"}).sampler == "parentbased_always_on"


def test_an_unknown_variable_of_ours_stops_and_a_near_miss_gets_a_hint() -> None:
    assert _refused(CLAUDE_PROXY_WORKER="2") == (
        "CLAUDE_PROXY_WORKER is not a setting. Did you mean CLAUDE_PROXY_WORKERS?"
    )
    assert _refused(CLAUDE_PROXY_ZZZZZZZZZZZZZZZZZZZZ="1") == (
        "CLAUDE_PROXY_ZZZZZZZZZZZZZZZZZZZZ is not a setting. `claude-proxy check` lists all settings."
    )


def test_variables_of_others_are_left_alone() -> None:
    assert settings.load(KEY | {"PATH": "/bin", "OTEL_LOGS_EXPORTER": "x", "CLAUDE_CODE_X": "1"}).workers == 1


def test_a_setting_that_is_no_secret_has_no_file_form() -> None:
    assert _refused(CLAUDE_PROXY_BIND_FILE="x").startswith("CLAUDE_PROXY_BIND_FILE is not a setting.")


@pytest.mark.parametrize("row", [row for row in settings.TABLE if row.secret], ids=lambda row: row.name)
def test_every_secret_can_come_from_a_file(row: settings.Setting, tmp_path: Path) -> None:
    secret = f"alice:{SHA}" if row.attribute == "client_keys" else "s3cret"
    (tmp_path / "secret").write_text(secret + "\n")
    environ = {k: v for k, v in KEY.items() if k != row.name} | {f"{row.name}_FILE": str(tmp_path / "secret")}
    assert settings.of_row(settings.load(({} if row.name in KEY else KEY) | environ), row) == row.parse(secret)


@pytest.mark.parametrize("name", ["ANTHROPIC_API_KEY", "CLAUDE_PROXY_CLIENT_KEYS", "CLAUDE_PROXY_METRICS_TOKEN"])
def test_a_secret_file_that_cannot_be_read_or_is_empty_is_named(name: str, tmp_path: Path) -> None:
    base = {k: v for k, v in KEY.items() if k != name}
    missing, empty, binary = tmp_path / "missing", tmp_path / "empty", tmp_path / "binary"
    empty.write_text(" \n")
    binary.write_bytes(b"\xff\xfe")
    for path, says in (
        (missing, "cannot be read"),
        (tmp_path, "cannot be read"),
        (empty, "is empty"),
        (binary, "cannot"),
    ):
        with pytest.raises(SettingsError, match=f"^{name}_FILE='{path}' {says}"):
            settings.load(base | {f"{name}_FILE": str(path)})


def test_a_malformed_secret_in_a_file_is_named_as_the_file_and_not_shown(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("alice:tooshort")
    assert _refused(CLAUDE_PROXY_CLIENT_KEYS_FILE=str(tmp_path / "keys")) == (
        "CLAUDE_PROXY_CLIENT_KEYS_FILE is not valid: expected NAME:SHA256 entries; number 1 is not "
        "(make one with: claude-proxy key NAME)."
    )


def test_a_secret_and_its_file_together_are_refused(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("k")
    path = str(tmp_path / "key")
    assert (
        _refused(ANTHROPIC_API_KEY_FILE=path) == "ANTHROPIC_API_KEY and ANTHROPIC_API_KEY_FILE are both set: keep one."
    )
    with pytest.raises(SettingsError, match=r"^ANTHROPIC_API_KEY_FILE and CLAUDE_API_KEY_FILE are both set"):
        settings.load({"ANTHROPIC_API_KEY_FILE": path, "CLAUDE_API_KEY_FILE": path})


def test_claude_api_key_is_read_where_anthropic_api_key_is_not_set(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("from-file")
    assert settings.load({"CLAUDE_API_KEY": "other"}).upstreams["anthropic"].key == "other"
    assert settings.load({"CLAUDE_API_KEY_FILE": str(tmp_path / "key")}).upstreams["anthropic"].key == "from-file"
    assert settings.load(KEY | {"CLAUDE_API_KEY": "other"}).upstreams["anthropic"].key == KEY["ANTHROPIC_API_KEY"]
    with pytest.raises(SettingsError, match=r"^CLAUDE_API_KEY is not valid"):
        settings.load({"CLAUDE_API_KEY": "a b"})


def test_without_a_provider_key_clients_must_bring_their_own() -> None:
    with pytest.raises(SettingsError, match=r"^ANTHROPIC_API_KEY is empty: set it .* CLAUDE_PROXY_CREDENTIALS=pass"):
        settings.load({})
    with pytest.raises(SettingsError, match=r"^ANTHROPIC_API_KEY is empty"):
        settings.load({"CLAUDE_PROXY_CREDENTIALS": "inject"})
    assert settings.load({"CLAUDE_PROXY_CREDENTIALS": "pass"}).credentials == "pass"
    assert settings.load(KEY | {"CLAUDE_PROXY_CREDENTIALS": "pass"}).credentials == "pass"


def test_client_keys_and_passing_credentials_on_exclude_each_other() -> None:
    assert _refused(CLAUDE_PROXY_CREDENTIALS="pass", CLAUDE_PROXY_CLIENT_KEYS=f"alice:{SHA}").startswith(
        "CLAUDE_PROXY_CREDENTIALS=pass cannot go with CLAUDE_PROXY_CLIENT_KEYS"
    )


def test_client_keys_are_separated_by_commas_spaces_or_lines_and_hashes_are_lower_case() -> None:
    text = f"alice:{'A' * 64},bob:{'b' * 64} carol.x_y-z:{'0' * 64}\n"
    assert parse.client_keys(text) == (
        ClientKey("alice", "a" * 64),
        ClientKey("bob", "b" * 64),
        ClientKey("carol.x_y-z", "0" * 64),
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("alice", "NAME:SHA256 entries; number 1 is not (make one with: claude-proxy key NAME)"),
        (f"alice:{SHA},bob:{SHA[1:]}", "NAME:SHA256 entries; number 2 is not (make one with: claude-proxy key NAME)"),
        (f"a/b:{SHA}", "NAME:SHA256 entries; number 1 is not (make one with: claude-proxy key NAME)"),
        (f"{'a' * 65}:{SHA}", "NAME:SHA256 entries; number 1 is not (make one with: claude-proxy key NAME)"),
        (f"alice:{SHA} alice:{SHA}", "each name once; 'alice' is there twice"),
    ],
)
def test_a_wrong_client_key_entry_is_named_by_its_number_and_not_quoted(text: str, expected: str) -> None:
    assert _refused(CLAUDE_PROXY_CLIENT_KEYS=text) == f"CLAUDE_PROXY_CLIENT_KEYS is not valid: expected {expected}."


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "[::1]", "localhost"])
def test_loopback_needs_no_client_key(host: str) -> None:
    assert settings.load(KEY | {"CLAUDE_PROXY_BIND": f"{host}:8000"}).loopback


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]", "10.0.0.1", "gateway.internal", "localhost.example"])
def test_any_other_address_without_client_keys_is_refused(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: [])
    bind = f"{host}:8000"
    assert _refused(CLAUDE_PROXY_BIND=bind).startswith(
        f"CLAUDE_PROXY_BIND={bind} is reachable from other machines, and CLAUDE_PROXY_CLIENT_KEYS is empty"
    )
    loaded = settings.load(KEY | {"CLAUDE_PROXY_BIND": bind, "CLAUDE_PROXY_CLIENT_KEYS": f"alice:{SHA}"})
    assert not loaded.loopback


def test_a_mistyped_host_is_said_to_be_unknown() -> None:
    assert _refused(CLAUDE_PROXY_BIND="local host:8000") == (
        "CLAUDE_PROXY_BIND=local host:8000 cannot be resolved to an address: check its spelling."
    )


def test_repr_shows_no_secret(tmp_path: Path) -> None:
    digest = "0123456789abcdef" * 4
    loaded = settings.load(
        KEY
        | {
            "CLAUDE_PROXY_CLIENT_KEYS": f"alice:{digest}",
            "CLAUDE_PROXY_METRICS_TOKEN": "metrics-secret",
            "HTTPS_PROXY": "http://user:hunter2@proxy:3128",
        }
    )
    shown = repr(loaded) + str(loaded) + repr(loaded.client_keys)
    for secret in ("sk-ant-secret", digest, "metrics-secret", "hunter2"):
        assert secret not in shown
    assert loaded.upstreams["anthropic"].proxy == "http://user:hunter2@proxy:3128"


HTTP_BASE = {"CLAUDE_PROXY_ANTHROPIC_BASE_URL": "http://claude.test:81"}


@pytest.mark.parametrize(
    ("environ", "proxy"),
    [
        ({}, None),
        ({"HTTPS_PROXY": "http://p:1/"}, "http://p:1"),
        ({"https_proxy": "http://p:1"}, "http://p:1"),
        ({"HTTP_PROXY": "http://p:1"}, None),
        ({"HTTPS_PROXY": "http://p:1", "http_proxy": "http://q:2"}, "http://p:1"),
        (HTTP_BASE | {"HTTP_PROXY": "http://q:2"}, "http://q:2"),
        (HTTP_BASE | {"http_proxy": "http://q:2"}, "http://q:2"),
        (HTTP_BASE | {"HTTPS_PROXY": "http://p:1"}, None),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "api.anthropic.com"}, None),
        ({"HTTPS_PROXY": "http://p:1", "no_proxy": ".anthropic.com"}, None),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "*"}, None),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "example.org, localhost"}, "http://p:1"),
        (HTTP_BASE | {"HTTP_PROXY": "http://q:2", "NO_PROXY": "claude.test:81"}, None),
        ({"HTTP_PROXY": "http://q:2", "CLAUDE_PROXY_ANTHROPIC_BASE_URL": "http://127.0.0.1:9"}, None),
    ],
)
def test_the_proxy_is_chosen_by_scheme_unless_no_proxy_names_the_host(
    environ: dict[str, str], proxy: str | None
) -> None:
    assert settings.load(KEY | environ).upstreams["anthropic"].proxy == proxy


def test_a_malformed_proxy_variable_of_any_spelling_is_named() -> None:
    assert _refused(https_proxy="proxy:3128") == (
        "HTTPS_PROXY is not valid: expected an http:// or https:// address without query."
    )
    assert _refused(http_proxy="proxy:3128", **HTTP_BASE) == (
        "HTTP_PROXY is not valid: expected an http:// or https:// address without query."
    )


@pytest.mark.parametrize(
    ("environ", "named"),
    [
        ({}, False),
        ({"ANTHROPIC_API_KEY": ""}, False),
        ({"CLAUDE_PROXY_WORKERS": "2"}, False),
        ({"CLAUDE_API_KEY": "k"}, True),
        ({"ANTHROPIC_API_KEY_FILE": "f"}, True),
        ({"CLAUDE_PROXY_CREDENTIALS": "pass"}, True),
        ({"CLAUDE_PROXY_ANTHROPIC_BASE_URL": "http://x"}, True),
        ({"GOOGLE_API_KEY": "k"}, True),
        ({"CLAUDE_PROXY_OPENAI_BASE_URL": "http://x"}, True),
    ],
)
def test_the_simulator_stands_in_only_where_nothing_names_a_provider(environ: dict[str, str], named: bool) -> None:
    assert settings.names_a_provider(environ) is named


def test_any_providers_key_is_enough_to_start_and_googles_has_two_names() -> None:
    loaded = settings.load({"GOOGLE_API_KEY": "g"})
    assert {name: upstream.key for name, upstream in loaded.upstreams.items()} == {
        "anthropic": "", "gcp.gemini": "g", "openai": "",
    }  # fmt: skip
    assert settings.load({"GEMINI_API_KEY": "g", "GOOGLE_API_KEY": "h"}).upstreams["gcp.gemini"].key == "g"
    assert loaded.credentials == "inject"


def test_the_simulator_is_every_provider_under_its_own_path() -> None:
    loaded = settings.load(settings.simulated("http://127.0.0.1:1"))
    assert [(name, upstream.base_url) for name, upstream in loaded.upstreams.items()] == [
        ("anthropic", "http://127.0.0.1:1"),
        ("gcp.gemini", "http://127.0.0.1:1/gemini"),
        ("openai", "http://127.0.0.1:1/openai"),
    ]
    assert all(upstream.key for upstream in loaded.upstreams.values())


def test_a_bad_price_file_stops_the_start_and_not_a_worker(tmp_path: Path) -> None:
    file = tmp_path / "prices.json"
    file.write_text('{"anthropic/claude-x": {"input": "cheap", "output": 1}}')
    assert "CLAUDE_PROXY_PRICES_FILE" in (said := _refused(CLAUDE_PROXY_PRICES_FILE=str(file)))
    assert "claude-x" in said


def test_a_stand_in_of_another_provider_stops_the_start() -> None:
    said = _refused(CLAUDE_PROXY_FALLBACKS="claude-opus-5-5=claude-sonnet-5-5,gpt-5")
    assert "CLAUDE_PROXY_FALLBACKS: gpt-5 is OpenAI's" in said


def test_models_of_which_one_is_not_known_may_stand_in_for_each_other() -> None:
    assert settings.load(KEY | {"CLAUDE_PROXY_FALLBACKS": "claude-opus-5-5=claude-new;our-own=gpt-5"}).fallbacks


def test_no_more_clients_are_limited_than_can_be_counted(tmp_path: Path) -> None:
    """One more, and the client not seen for longest would begin its budget anew."""
    file, names = tmp_path / "limits.json", [f"client-{number}" for number in range(CLIENTS + 1)]
    environ = {
        "CLAUDE_PROXY_CLIENT_KEYS": " ".join(f"{name}:{SHA}" for name in names),
        "CLAUDE_PROXY_CLIENT_LIMITS_FILE": str(file),
    }
    file.write_text(json.dumps({name: {"budget_usd_per_day": 1} for name in names}))
    assert "CLAUDE_PROXY_CLIENT_LIMITS_FILE limits 1025 clients; 1024 can be counted" in _refused(**environ)
    file.write_text(json.dumps({name: {"budget_usd_per_day": 1} for name in names[1:]}))
    assert len(settings.load(KEY | environ).client_limits) == CLIENTS


def test_an_empty_list_of_models_is_refused_and_does_not_mean_all(tmp_path: Path) -> None:
    file = tmp_path / "limits.json"
    file.write_text('{"alice": {"models": []}}')
    said = _refused(CLAUDE_PROXY_CLIENT_KEYS=f"alice:{SHA}", CLAUDE_PROXY_CLIENT_LIMITS_FILE=str(file))
    assert "'alice'" in said
