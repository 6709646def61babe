"""Every metric, span, attribute and log event, declared once: name, unit, meaning, closed label values, buckets + why.

Names follow the OpenTelemetry GenAI conventions (semantic-conventions-genai, November 2026) translated to Prometheus:
dots become underscores, seconds and `_total` are suffixes, label keys are attribute keys. What the conventions do not
cover is under `claude_proxy_`. The README's telemetry tables equal this file, by test.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from observability.attributes import BACKOFF_SPAN as BACKOFF_SPAN
from observability.attributes import EXCEPTION_EVENT as EXCEPTION_EVENT
from observability.attributes import FIRST_CHUNK_EVENT as FIRST_CHUNK_EVENT
from observability.attributes import QUEUE_SPAN as QUEUE_SPAN
from observability.attributes import Attr as Attr
from observability.attributes import Http as Http
from observability.attributes import LogEvent as LogEvent
from observability.outcomes import OUTCOMES as OUTCOMES
from observability.outcomes import STREAM_ENDS as STREAM_ENDS
from observability.outcomes import Fault as Fault
from observability.outcomes import Outcome as Outcome
from observability.values import ATTEMPT_REASONS as ATTEMPT_REASONS
from observability.values import CACHE_RESULTS as CACHE_RESULTS
from observability.values import CERTAINTIES as CERTAINTIES
from observability.values import DROP_REASONS as DROP_REASONS
from observability.values import ERROR_TYPES as ERROR_TYPES
from observability.values import LIMITS_429 as LIMITS_429
from observability.values import LLM_SECONDS as LLM_SECONDS
from observability.values import LOSSES as LOSSES
from observability.values import OPERATIONS as OPERATIONS
from observability.values import OTHER as OTHER
from observability.values import OVERHEAD_SECONDS as OVERHEAD_SECONDS
from observability.values import PROVIDERS as PROVIDERS
from observability.values import QUOTA_DIMENSIONS as QUOTA_DIMENSIONS
from observability.values import QUOTA_SECONDS as QUOTA_SECONDS
from observability.values import RETRY_REASONS as RETRY_REASONS
from observability.values import SIGNALS as SIGNALS
from observability.values import STATUSES as STATUSES
from observability.values import TOKEN_TYPES as TOKEN_TYPES


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
    "Our own seconds per request: total minus the union of waiting for the provider, the client, capacity and between attempts.",
    (ROUTE, "streaming"), OVERHEAD_SECONDS, exemplar=True,
)  # fmt: skip
UPSTREAM_ATTEMPTS = Metric(
    "claude_proxy_upstream_attempts", Type.COUNTER, "Every try at the provider, by HTTP status and how it ended.",
    (PROVIDER, MODEL, "status", "reason"),
)  # fmt: skip
UPSTREAM_429 = Metric(
    "claude_proxy_upstream_429", Type.COUNTER,
    "429 answers of the provider, and such errors inside a 200, by the limit that said no.",
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

QUEUE_DEPTH = Metric("claude_proxy_queue_depth", Type.GAUGE, "Requests waiting for capacity now.", (PROVIDER,))
QUEUE_WAIT = Metric(
    "claude_proxy_queue_wait_seconds", Type.HISTOGRAM,
    "Seconds that a request waited for capacity; who need not wait is not in it.", (PROVIDER,), LLM_SECONDS,
)  # fmt: skip
RETRY_WAIT = Metric(
    "claude_proxy_retry_wait_seconds", Type.HISTOGRAM,
    "Seconds of pause before another attempt, by why it was made.", (PROVIDER, "reason"), LLM_SECONDS,
)  # fmt: skip
FALLBACKS = Metric("claude_proxy_fallback", Type.COUNTER, "Calls handed to a stand-in model.", (PROVIDER, "from", "to"))
LIMITER_FAIL_OPEN = Metric(
    "claude_proxy_limiter_fail_open", Type.COUNTER,
    "Decisions made without the host's shared state, because it could not be had in time: the request was let through.",
)  # fmt: skip
COST = Metric(
    "claude_proxy_cost_usd", Type.COUNTER, "What calls cost, in US dollars.",
    (PROVIDER, MODEL, "token_type", "certainty"), exemplar=True,
)  # fmt: skip
UNPRICED = Metric(
    "claude_proxy_unpriced_requests", Type.COUNTER, "Calls of models whose price is not known.", (PROVIDER,)
)
BATCH_SAVED = Metric(
    "claude_proxy_batch_saved_usd", Type.COUNTER,
    "What message batches cost less than the same calls made one by one.", (PROVIDER, MODEL),
)  # fmt: skip
BATCH_FORGONE = Metric(
    "claude_proxy_batch_forgone_usd", Type.COUNTER,
    "What calls that nobody watched arrive (no stream, no tools) would have cost less in a message batch.",
    (PROVIDER, MODEL),
)  # fmt: skip
BATCH_OLDEST = Metric(
    "claude_proxy_batch_oldest_seconds", Type.GAUGE,
    "Age of the oldest message batch whose results have not been fetched here.", (PROVIDER,), per_host=True,
)  # fmt: skip
BATCH_NEXT_EXPIRY = Metric(
    "claude_proxy_batch_next_expiry_timestamp_seconds", Type.GAUGE,
    "When the next unfetched message batch runs out: an unfinished one a day after its creation, results after 29 days.",
    (PROVIDER,), per_host=True,
)  # fmt: skip
CLIENT_REQUESTS = Metric(
    "claude_proxy_client_requests", Type.COUNTER, "Requests ended, by configured client.", ("client",)
)
CLIENT_COST = Metric(
    "claude_proxy_client_cost_usd", Type.COUNTER, "What a configured client's calls cost, in US dollars.", ("client",)
)
CLIENT_BUDGET = Metric(
    "claude_proxy_client_budget_usd", Type.GAUGE, "What a configured client may spend a day.", ("client",)
)
CACHE_REQUESTS = Metric(
    "claude_proxy_cache_requests", Type.COUNTER, "Requests that the answer cache was asked for, by what it did.",
    (ROUTE, "result"),
)  # fmt: skip
LEDGER_BACKLOG = Metric(
    "claude_proxy_ledger_backlog_rows", Type.GAUGE, "Journal entries that the database has not taken yet."
)

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
    QUEUE_DEPTH, QUEUE_WAIT, RETRY_WAIT, FALLBACKS, LIMITER_FAIL_OPEN, CACHE_REQUESTS,
    QUOTA_LIMIT, QUOTA_REMAINING, QUOTA_RESET, STREAM_OUTCOMES, STREAM_LONGEST_GAP, REJECTED,
    COST, UNPRICED, BATCH_SAVED, BATCH_FORGONE, BATCH_OLDEST, BATCH_NEXT_EXPIRY,
    CLIENT_REQUESTS, CLIENT_COST, CLIENT_BUDGET, LEDGER_BACKLOG,
    EVENT_LOOP_LAG, TELEMETRY_DROPPED, TELEMETRY_LAST_SUCCESS, LABEL_OVERFLOW, SERIES, BUILD_INFO,
)  # fmt: skip

STOCK_PREFIXES = ("flask_", "process_", "python_")
"""Families of prometheus-flask-exporter and prometheus-client, exposed as they come (flask_* is time to headers)."""
