"""Every metric, span, attribute and log event, declared once: name, unit, meaning, closed label values, buckets + why.

Names follow the OpenTelemetry GenAI conventions (semantic-conventions-genai, November 2026) translated to Prometheus:
dots become underscores, seconds and `_total` are suffixes, label keys are attribute keys. What the conventions do not
cover is under `claude_proxy_`. The README's telemetry tables equal this file, by test.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from observability.outcomes import OUTCOMES as OUTCOMES
from observability.outcomes import STREAM_ENDS as STREAM_ENDS
from observability.outcomes import Fault as Fault
from observability.outcomes import Outcome as Outcome

OTHER = "other"
"""What a client-supplied label value outside its known set is folded into."""

LLM_SECONDS = (
    0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92, 163.84, 327.68, 655.36,
)  # fmt: skip
"""The GenAI conventions' doubling edges, and three more: an agent's call may last the SDKs' ten minutes."""

OVERHEAD_SECONDS = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.024, 2.048)
"""Our own time is a millisecond when well, so the edges start below it and end where somebody must be woken."""


ERROR_TYPES = frozenset(
    {
        *(o.value for o in Outcome if o not in (Outcome.OK, Outcome.REFUSED)),
        "invalid_request_error",
        "authentication_error",
        "billing_error",
        "permission_error",
        "not_found_error",
        "conflict_error",
        "request_too_large",
        "rate_limit_error",
        "api_error",
        "timeout_error",
        "overloaded_error",
        "invalid_response",
        "no_answer",
    }
)
"""Values of `error_type`: the provider's own type where it gave one, else our outcome or the reason; the rest `_OTHER`."""

QUOTA_DIMENSIONS = ("requests", "input_tokens", "output_tokens")
"""The provider's limits whose headroom its headers tell (`dimension` label)."""

QUOTA_SECONDS = 60.0
"""How long a limit's headroom is shown after its last sighting, or until the limit is full again if that is later."""

LIMITS_429 = ("requests", "input_tokens", "output_tokens", "spend", "acceleration", "unknown")
"""Which limit a 429 named (`limit` label)."""

ATTEMPT_REASONS = ("ok", "http_error", "not_sent", "no_answer", "timeout", "died_mid_body", "stalled", "aborted")
"""How one try ended (`reason` label): by an HTTP answer or by which failure of the connection."""

SIGNALS = ("spans", "logs")
"""What leaves the process by itself (`signal` label)."""

LOSSES = (
    ("spans", "queue_full"),
    ("spans", "export_failed"),
    ("spans", "encode_failed"),
    ("logs", "queue_full"),
    ("logs", "write_failed"),
)
"""What can be lost and why: these series stand at 0 from the start, or Prometheus' rate() would miss the first loss."""

DROP_REASONS = frozenset(reason for _, reason in LOSSES)
"""Why telemetry was lost (`reason` label of the dropped counter)."""

PROVIDERS = ("anthropic",)
OPERATIONS = ("chat",)
STATUSES = tuple(
    str(code)
    for code in (200, 201, 202, 204, 304, 400, 401, 402, 403, 404, 408, 409, 413, 422, 429, 500, 502, 503, 504, 529)
)
"""Statuses that get a label of their own; any other is `other`, no answer is the empty string."""


class Type(StrEnum):
    """Prometheus metric types in use."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric family. `name` is as exposed, without `_bucket`/`_total`; `exemplar` says whether samples carry one."""

    name: str
    type: Type
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    exemplar: bool = False
    per_host: bool = False
    """One value for all workers, the newest: no `worker` label; gone when it has expired."""


OPERATION, PROVIDER, MODEL, ROUTE = (
    "gen_ai_operation_name",
    "gen_ai_provider_name",
    "gen_ai_request_model",
    "http_route",
)
_OPM = (OPERATION, PROVIDER, MODEL)


def _tokens(kind: str, what: str) -> Metric:
    name = f"gen_ai_client_inference_usage_{kind}_tokens"
    return Metric(name, Type.COUNTER, f"{what} Absent where the provider did not say.", _OPM)


INFERENCE_DURATION = Metric(
    "gen_ai_client_inference_duration_seconds", Type.HISTOGRAM,
    "Seconds from sending the call until its last byte arrived, failures included.",
    (*_OPM, "error_type"), LLM_SECONDS, exemplar=True,
)  # fmt: skip
FIRST_CHUNK = Metric(
    "gen_ai_client_inference_time_to_first_chunk_seconds", Type.HISTOGRAM,
    "Streams: seconds from sending the call until the first content_block_delta.", _OPM, LLM_SECONDS, exemplar=True,
)  # fmt: skip
CHUNK_TIME = Metric(
    "gen_ai_client_inference_time_per_output_chunk_seconds", Type.HISTOGRAM,
    "Streams: seconds between one content_block_delta and the next.", _OPM, LLM_SECONDS,
)  # fmt: skip
INPUT_TOKENS = _tokens("input", "Input tokens, cached ones included.")
OUTPUT_TOKENS = _tokens("output", "Output tokens, thinking included.")
CACHE_READ_TOKENS = _tokens("cache_read_input", "Input tokens read from the prompt cache (part of input).")
CACHE_WRITE_TOKENS = _tokens("cache_write_input", "Input tokens written to the prompt cache (part of input).")
REASONING_TOKENS = _tokens("reasoning_output", "Thinking tokens (part of output).")
REQUESTS = Metric(
    "claude_proxy_requests", Type.COUNTER, "Requests ended, by outcome: the SLI. Sums to requests started.",
    (ROUTE, PROVIDER, MODEL, "outcome"), exemplar=True,
)  # fmt: skip
REQUEST_DURATION = Metric(
    "claude_proxy_request_duration_seconds", Type.HISTOGRAM,
    "Seconds the client waited: first byte in to last byte out.",
    (ROUTE, "streaming", "outcome"), LLM_SECONDS, exemplar=True,
)  # fmt: skip
IN_FLIGHT = Metric(
    "claude_proxy_in_flight_requests",
    Type.GAUGE,
    "Requests begun and not ended, streams until their last byte.",
    (ROUTE,),
)
OVERHEAD = Metric(
    "claude_proxy_overhead_seconds", Type.HISTOGRAM,
    "Our own seconds per request: total minus the union of waiting for the provider and for the client.",
    (ROUTE, "streaming"), OVERHEAD_SECONDS, exemplar=True,
)  # fmt: skip
UPSTREAM_ATTEMPTS = Metric(
    "claude_proxy_upstream_attempts", Type.COUNTER, "Every try at the provider, by HTTP status and how it ended.",
    (PROVIDER, MODEL, "status", "reason"),
)  # fmt: skip
UPSTREAM_429 = Metric(
    "claude_proxy_upstream_429", Type.COUNTER, "429 answers of the provider, by the limit that said no.",
    (PROVIDER, MODEL, "limit"), exemplar=True,
)  # fmt: skip
_QUOTA = (PROVIDER, MODEL, "dimension")
QUOTA_LIMIT = Metric(
    "claude_proxy_upstream_quota_limit",
    Type.GAUGE,
    "What a limit of the provider allows per minute.",
    _QUOTA,
    per_host=True,
)
QUOTA_REMAINING = Metric(
    "claude_proxy_upstream_quota_remaining", Type.GAUGE,
    "What the provider last said is left of a limit. Absent when not known or long ago.", _QUOTA, per_host=True,
)  # fmt: skip
QUOTA_RESET = Metric(
    "claude_proxy_upstream_quota_reset_timestamp_seconds",
    Type.GAUGE,
    "When the limit is full again.",
    _QUOTA,
    per_host=True,
)
STREAM_OUTCOMES = Metric(
    "claude_proxy_stream_outcomes", Type.COUNTER, "Streams that began (200 and text/event-stream), by how they ended.",
    (PROVIDER, MODEL, "outcome"),
)  # fmt: skip
STREAM_LONGEST_GAP = Metric(
    "claude_proxy_stream_longest_gap_seconds", Type.HISTOGRAM,
    "The longest silence between two content chunks of a stream.", (PROVIDER, MODEL), LLM_SECONDS,
)  # fmt: skip
REJECTED = Metric(
    "claude_proxy_rejected",
    Type.COUNTER,
    "Requests we refused ourselves, by the wire error type we answered.",
    (ROUTE, "reason"),
)
EVENT_LOOP_LAG = Metric(
    "claude_proxy_event_loop_lag_seconds", Type.HISTOGRAM,
    "How late the event loop came to a timer, four times a second: what blocks it delays every request.",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0),
)  # fmt: skip
TELEMETRY_DROPPED = Metric(
    "claude_proxy_telemetry_dropped", Type.COUNTER, "What telemetry lost, by signal.", ("signal", "reason")
)
TELEMETRY_LAST_SUCCESS = Metric(
    "claude_proxy_telemetry_last_success_timestamp_seconds",
    Type.GAUGE,
    "When a signal last left the process.",
    ("signal",),
)
LABEL_OVERFLOW = Metric(
    "claude_proxy_label_overflow", Type.COUNTER,
    "Label values outside their closed set that became `other`, by label: one for each sample written.", ("label",),
)  # fmt: skip
BUILD_INFO = Metric("claude_proxy_build_info", Type.GAUGE, "Always 1; what runs.", ("version", "python"))

SERIES = Metric(
    "claude_proxy_series", Type.GAUGE, "Series of each family in this answer: the cardinality budget.", ("metric",)
)
"""Made while rendering: stock families count too, and the family itself does not."""

WORKER_UP = Metric(
    "claude_proxy_worker_up",
    Type.GAUGE,
    "1 for a worker whose figures are in this answer, 0 for one that did not answer.",
    ("worker",),
)
"""Made by whoever answers the scrape, not by the worker it speaks of. Every other series has the `worker` label as well."""

METRICS: tuple[Metric, ...] = (
    INFERENCE_DURATION, FIRST_CHUNK, CHUNK_TIME,
    INPUT_TOKENS, OUTPUT_TOKENS, CACHE_READ_TOKENS, CACHE_WRITE_TOKENS, REASONING_TOKENS,
    REQUESTS, REQUEST_DURATION, IN_FLIGHT, OVERHEAD, UPSTREAM_ATTEMPTS, UPSTREAM_429,
    QUOTA_LIMIT, QUOTA_REMAINING, QUOTA_RESET, STREAM_OUTCOMES, STREAM_LONGEST_GAP, REJECTED,
    EVENT_LOOP_LAG, TELEMETRY_DROPPED, TELEMETRY_LAST_SUCCESS, LABEL_OVERFLOW, SERIES, BUILD_INFO,
)  # fmt: skip

STOCK_PREFIXES = ("flask_", "process_", "python_")
"""Families of prometheus-flask-exporter and prometheus-client, exposed as they come (flask_* is time to headers)."""


class LogEvent(StrEnum):
    """Values of `event` in our JSON lines."""

    REQUEST = "request"
    CALL = "call"
    LOG = "log"
    LOOP_BLOCKED = "loop_blocked"


class Attr:
    """Span attribute keys that this project sets itself (the instrumentors add the stable HTTP ones)."""

    OPERATION = "gen_ai.operation.name"
    PROVIDER = "gen_ai.provider.name"
    REQUEST_MODEL = "gen_ai.request.model"
    REQUEST_STREAM = "gen_ai.request.stream"
    REQUEST_MAX_TOKENS = "gen_ai.request.max_tokens"
    RESPONSE_ID = "gen_ai.response.id"
    RESPONSE_MODEL = "gen_ai.response.model"
    FINISH_REASONS = "gen_ai.response.finish_reasons"
    TIME_TO_FIRST_CHUNK = "gen_ai.response.time_to_first_chunk"
    INPUT_TOKENS = "gen_ai.usage.input_tokens"
    OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
    CACHE_READ_TOKENS = "gen_ai.usage.cache_read.input_tokens"
    CACHE_WRITE_TOKENS = "gen_ai.usage.cache_write.input_tokens"
    REASONING_TOKENS = "gen_ai.usage.reasoning.output_tokens"
    ERROR_TYPE = "error.type"
    RESEND_COUNT = "http.request.resend_count"
    SERVER_ADDRESS = "server.address"
    SERVER_PORT = "server.port"
    ANTHROPIC_REQUEST_ID = "anthropic.request.id"
    REQUEST_ID = "claude_proxy.request_id"
    OUTCOME = "claude_proxy.outcome"
    CLIENT = "claude_proxy.client"
    SPAN_ENDS_AT = "claude_proxy.span_ends_at"
    RETRY_AFTER = "claude_proxy.retry_after"
    LIMIT = "claude_proxy.limit"
    CLAUDE_CODE_SESSION = "claude_code.session_id"
    CLAUDE_CODE_AGENT = "claude_code.agent_id"


LATER = frozenset({Attr.RESEND_COUNT})
"""Declared, and not emitted yet: retries come with the policy of §7."""

FIRST_CHUNK_EVENT = "first_chunk"
"""Span event on the `chat` span at the first content_block_delta."""
