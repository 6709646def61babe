"""The closed sets of the catalogue: every label value that may ever be written, and the buckets, each with its reason."""

from __future__ import annotations

from observability.outcomes import Outcome

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
        # OpenAI's codes and types
        "server_error",
        "rate_limit_exceeded",
        "insufficient_quota",
        "context_length_exceeded",
        "invalid_api_key",
        "model_not_found",
        # Gemini's statuses (google.rpc.Code)
        "INVALID_ARGUMENT",
        "FAILED_PRECONDITION",
        "UNAUTHENTICATED",
        "PERMISSION_DENIED",
        "NOT_FOUND",
        "RESOURCE_EXHAUSTED",
        "CANCELLED",
        "INTERNAL",
        "UNAVAILABLE",
        "DEADLINE_EXCEEDED",
    }
)
"""Values of `error_type`: the provider's own type where it gave one, else our outcome or the reason; the rest `_OTHER`."""

QUOTA_DIMENSIONS = ("requests", "input_tokens", "output_tokens", "tokens", "fast_input_tokens", "fast_output_tokens")
"""The provider's limits whose headroom its headers tell (`dimension` label); `tokens`: OpenAI counts both together;
`fast_…`: of Claude's fast mode."""

QUOTA_SECONDS = 60.0
"""How long a limit's headroom is shown after its last sighting, or until the limit is full again if that is later."""

LIMITS_429 = ("requests", "input_tokens", "output_tokens", "tokens", "spend", "acceleration", "unknown")
"""Which limit a 429 named (`limit` label)."""

ATTEMPT_REASONS = ("ok", "http_error", "not_sent", "no_answer", "timeout", "died_mid_body", "stalled", "aborted")
"""How one try ended (`reason` label): by an HTTP answer or by which failure of the connection."""

RETRY_REASONS = ("rate_limited", "overloaded", "http_error", "not_sent", "no_answer", "timeout")
"""Why another try was made (`reason` label): the provider's limit, its overload, another error status, or no answer at all."""

CACHE_RESULTS = ("hit", "miss", "bypass")
"""What our answer cache did (`result` label); `bypass`: the request, or its answer, is not for a cache."""

TOKEN_TYPES = ("input", "cache_read", "cache_write", "output", "tools")
"""What was paid for (`token_type` label of the cost): nothing is in two of them; `tools` is by the piece."""

CERTAINTIES = ("exact", "estimated")
"""How sure a cost is (`certainty` label); what has no price is counted apart."""

SIGNALS = ("spans", "logs", "ledger")
"""What leaves the process by itself (`signal` label)."""

LOSSES = (
    ("spans", "queue_full"),
    ("spans", "export_failed"),
    ("spans", "encode_failed"),
    ("logs", "queue_full"),
    ("logs", "write_failed"),
    ("ledger", "backlog_full"),
    ("ledger", "write_failed"),
    ("ledger", "unreadable"),
)
"""What can be lost and why: these series stand at 0 from the start, or Prometheus' rate() would miss the first loss."""

DROP_REASONS = frozenset(reason for _, reason in LOSSES)
"""Why telemetry was lost (`reason` label of the dropped counter)."""

PROVIDERS = ("anthropic", "gcp.gemini", "openai")
OPERATIONS = ("chat", "generate_content")
STATUSES = tuple(
    str(code)
    for code in (200, 201, 202, 204, 304, 400, 401, 402, 403, 404, 408, 409, 413, 422, 429, 500, 502, 503, 504, 529)
)
"""Statuses that get a label of their own; any other is `other`, no answer is the empty string."""
