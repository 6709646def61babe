"""The table of settings: every variable, how its text is read, its default and what it means. The README shows it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from service import parse
from service.errors import SettingsError


@dataclass(frozen=True, slots=True)
class Setting:
    """One row of the table: variable, how to read it, its default as written, and what it means."""

    name: str
    attribute: str
    parse: Callable[[str], Any]
    default: str
    help: str
    secret: bool = False
    provider: str = ""
    """Whose it is (`gen_ai.provider.name`), where it is one provider's own."""


class HasKeys(Protocol):
    """What is asked of a provider here."""

    name: ClassVar[str]
    title: ClassVar[str]
    prefix: ClassVar[str]
    key_names: ClassVar[tuple[str, ...]]
    base_url: ClassVar[str]
    default_model: ClassVar[str]
    default_model_setting: ClassVar[str]


def of_provider(provider: HasKeys) -> tuple[Setting, ...]:
    """The settings that every provider has: its key, where it is, its default model."""
    name, title, (key, *others) = provider.name, provider.title, provider.key_names
    also = "".join(f"; `{other}` is read too" for other in others)
    prefix = "CLAUDE_PROXY_" + provider.prefix.strip("/").upper()
    model = provider.default_model_setting or f"{prefix}_DEFAULT_MODEL"
    return (
        Setting(key, "key", parse.key, "", f"Provider key for {title}{also}.", True, name),
        Setting(f"{prefix}_BASE_URL", "base_url", parse.base_url, provider.base_url, f"Where {title} is, without the version.", provider=name),
        Setting(model, "default_model", parse.text, provider.default_model, f"Model of {title} that `/generate` and the like ask when the request names none.", provider=name),
    )  # fmt: skip


def value(row: Setting, env: Mapping[str, str], aliases: Sequence[str] = ()) -> Any:
    """What the environment says for `row`, also under its other names. Raises `SettingsError` that names the variable."""
    name, text = row.name, env.get(row.name, "")
    for alias in aliases:
        if not text and env.get(alias):
            name, text = alias, env[alias]
    if row.secret:
        for candidate in (row.name, *aliases):
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


TABLE: tuple[Setting, ...] = (
    Setting("CLAUDE_PROXY_BIND", "bind", parse.bind, "127.0.0.1:8000", "Address to listen on. Anything but loopback needs client keys."),
    Setting("CLAUDE_PROXY_WORKERS", "workers", parse.count(1, 64), "1", "Worker processes."),
    Setting("CLAUDE_PROXY_LOG_LEVEL", "log_level", parse.choice("debug", "info", "warning", "error"), "info", "Least severe log line written."),
    Setting("CLAUDE_PROXY_CREDENTIALS", "credentials", parse.choice("", "inject", "pass"), "", "`inject`: send the provider key instead of the client's credential; `pass`: forward the client's own. Empty: `inject` if there is a key."),
    Setting("CLAUDE_PROXY_CLIENT_KEYS", "client_keys", parse.client_keys, "", "Who may come in: `NAME:SHA256` entries, separated by spaces, commas or lines. Make one with `claude-proxy key NAME`.", True),
    Setting("CLAUDE_PROXY_METRICS_TOKEN", "metrics_token", parse.key, "", "Bearer token that `/metrics` asks for. Empty: open on loopback, closed elsewhere.", True),
    Setting("CLAUDE_PROXY_BATCH_CONCURRENCY", "batch_concurrency", parse.count(1, 1000), "8", "Calls that one `/batch_generate` has under way at a time."),
    Setting("CLAUDE_PROXY_BATCH_MAX_PROMPTS", "batch_max_prompts", parse.count(1, 100_000), "1000", "Longest list of prompts that `/batch_generate` takes."),
    Setting("CLAUDE_PROXY_CONNECT_TIMEOUT", "connect_timeout", parse.seconds, "5", "Seconds to get a connection to the provider."),
    Setting("CLAUDE_PROXY_FIRST_BYTE_TIMEOUT", "first_byte_timeout", parse.seconds, "600", "Seconds until the provider's answer begins."),
    Setting("CLAUDE_PROXY_IDLE_TIMEOUT", "idle_timeout", parse.seconds, "300", "Seconds of silence inside an answer, or inside a request's body, until it counts as stalled; a client that takes nothing of its answer for so long is cut off."),
    Setting("CLAUDE_PROXY_TOTAL_TIMEOUT", "total_timeout", parse.seconds, "3600", "Seconds a provider call may take in all, less what its client takes to read it; the client's `x-stainless-timeout` shortens the first byte's wait."),
    Setting("CLAUDE_PROXY_MAX_RETRIES", "max_retries", parse.count(0, 10), "2", "Retries of a call before its first byte has gone to the client. 0: clients retry by themselves."),
    Setting("CLAUDE_PROXY_RETRY_BUDGET", "retry_budget", parse.ratio, "0.2", "Retries as a share of the last minute's calls, over all workers, at most (ten are always allowed): so that retries cannot become the storm."),
    Setting("CLAUDE_PROXY_RETRY_UNANSWERED", "retry_unanswered", parse.switch, "off", "`on`: also retry calls that were sent and not answered; the provider may then bill both."),
    Setting("CLAUDE_PROXY_FALLBACKS", "fallbacks", parse.fallbacks, "", "Stand-ins for models that are overloaded or at their rate limit: `MODEL=STAND_IN,STAND_IN` entries separated by semicolons. The answer's `x-claude-proxy-model` says who spoke."),
    Setting("CLAUDE_PROXY_CACHE_TTL", "cache_ttl", parse.count(0, 86_400), "0", "Seconds that an answer may be given again to the same client for exactly the same request; per worker. 0: no cache. A client's `cache-control: no-cache` goes past it."),
    Setting("CLAUDE_PROXY_CACHE_BYTES", "cache_bytes", parse.count(1_000_000, 10_000_000_000), "64000000", "Bytes of answers that a worker keeps at most; one answer at most an eighth."),
    Setting("CLAUDE_PROXY_LEDGER", "ledger", parse.text, "", "Directory of the journals and the ledger (`ledger.db`): every call with its tokens and cost. Empty: `$XDG_STATE_HOME/claude-proxy` or `~/.local/state/claude-proxy`. `off`: none."),
    Setting("CLAUDE_PROXY_LEDGER_KEEP_DAYS", "ledger_keep_days", parse.count(30, 36_500), "400", "Days that single calls stay in the ledger; the sums by day stay for ever."),
    Setting("CLAUDE_PROXY_PRICES_FILE", "prices_file", parse.file, "", "JSON file with your own prices, which win over the public list: `{\"provider/model\": {\"input\": USD per million, \"output\": …}}`."),
    Setting("CLAUDE_PROXY_PACING", "pacing", parse.switch, "on", "`on`: wait for room under the provider's rate limits, as its answers tell them, before sending; exact over all workers."),
    Setting("CLAUDE_PROXY_QUEUE_TIMEOUT", "queue_timeout", parse.seconds, "30", "Seconds that a call waits for room at most; when it would be longer it gets a 429 with `Retry-After` at once."),
    Setting("CLAUDE_PROXY_QUEUE_SIZE", "queue_size", parse.count(1, 1024), "200", "Calls that may wait for the same limit, over all workers."),
    Setting("CLAUDE_PROXY_CLIENT_LIMITS_FILE", "client_limits", parse.client_limits, "", "JSON file, read again at a reload, with what each client of `CLAUDE_PROXY_CLIENT_KEYS` may do: `{\"NAME\": {\"requests_per_minute\", \"tokens_per_minute\", \"concurrency\", \"budget_usd_per_day\", \"models\": [\"claude-haiku-*\"]}}`."),
    Setting("CLAUDE_PROXY_GRACEFUL_TIMEOUT", "graceful_timeout", parse.count(4, 3600), "30", "Seconds that open streams get to finish after SIGTERM; the last three are for ending the rest in-band."),
    Setting(
        "CLAUDE_PROXY_KEEPALIVE", "keepalive", parse.count(1, 3600), "75",
        "Seconds an idle client connection is kept, and that a request's head may take.",
    ),
    Setting("OTEL_SERVICE_NAME", "service_name", parse.text, "claude-proxy", "`service.name` of the spans."),
    Setting("OTEL_EXPORTER_OTLP_ENDPOINT", "otlp_endpoint", parse.url, "", "Base address of an OTLP/HTTP receiver, e.g. `http://127.0.0.1:4318`. Empty: no spans leave. Of the SDK's other variables these work: `OTEL_EXPORTER_OTLP_HEADERS`, `…_TIMEOUT`, `…_COMPRESSION` and `…_CERTIFICATE`, `OTEL_RESOURCE_ATTRIBUTES`, and those in this table."),
    Setting("OTEL_TRACES_SAMPLER", "sampler", parse.choice("parentbased_always_on", "parentbased_traceidratio", "always_on", "traceidratio", "parentbased_always_off", "always_off"), "parentbased_always_on", "Head decision on traces whose caller sent none; the `…ratio` ones take the share in `OTEL_TRACES_SAMPLER_ARG`. What is not taken is still kept when it ends in an error, a 429, a retry or slowly. `always_on` and `traceidratio` follow the caller's decision too, like their `parentbased_` forms. `always_off`: no spans at all."),
    Setting("OTEL_TRACES_SAMPLER_ARG", "sampler_ratio", parse.ratio, "1", "Share of trace ids from 0 to 1, for the `…ratio` samplers."),
    Setting("CLAUDE_PROXY_TRACES_PER_SECOND", "traces_per_second", parse.positive, "100", "Most traces a second that the head decision takes, per worker."),
    Setting("CLAUDE_PROXY_TRACE_SLOW", "trace_slow", parse.seconds, "60", "Seconds from which a request is slow, so that its trace is kept."),
    Setting("OTEL_BSP_SCHEDULE_DELAY", "export_delay_ms", parse.count(10, 60_000), "1000", "Milliseconds between span exports."),
    Setting("OTEL_BSP_MAX_QUEUE_SIZE", "export_queue", parse.count(128, 1_000_000), "8192", "Spans that may wait for export (about 4 KB each, with prompts up to 100 KB); traces beyond are dropped and counted."),
    Setting("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "capture_content", parse.capture, "NO_CONTENT", "`SPAN_ONLY` (or `true`): prompts and answers stand in the spans of provider calls, see *Prompts and answers in traces*. `NO_CONTENT` (or `false`): nowhere. There are no events: values that ask for them are refused."),
    Setting("HTTPS_PROXY", "proxy", parse.url, "", "Forward proxy to the provider; `HTTP_PROXY` and `NO_PROXY` are honoured too."),
    Setting("SSL_CERT_FILE", "ca_file", parse.ca_file, "", "CA bundle for the provider's certificate. Empty: certifi's."),
)  # fmt: skip
"""Every setting but the providers' own, in the order of the README."""
