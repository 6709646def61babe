"""How a request can end: the closed list of outcomes, whose fault each is, and what it is called for a stream."""

from __future__ import annotations

from enum import StrEnum


class Fault(StrEnum):
    """Whose fault an outcome is; alerts page only for `us` and `provider`."""

    NOBODY = "nobody"
    CLIENT = "client"
    US = "us"
    PROVIDER = "provider"


class Outcome(StrEnum):
    """How a request ended: exactly one of these, however it ends."""

    OK = "ok"
    REFUSED = "refused"
    CLIENT_INVALID = "client_invalid"
    CLIENT_AUTH = "client_auth"
    CLIENT_LIMITED = "client_limited"
    CLIENT_ABORT = "client_abort"
    QUEUE_REJECTED = "queue_rejected"
    DRAINING = "draining"
    UPSTREAM_429 = "upstream_429"
    UPSTREAM_OVERLOADED = "upstream_overloaded"
    UPSTREAM_ERROR = "upstream_error"
    UPSTREAM_TIMEOUT = "upstream_timeout"
    UPSTREAM_UNREACHABLE = "upstream_unreachable"
    CUT_OFF = "cut_off"
    STALLED = "stalled"
    INTERNAL_ERROR = "internal_error"
    INTERRUPTED = "interrupted"


OUTCOMES: dict[Outcome, tuple[Fault, str]] = {
    Outcome.OK: (Fault.NOBODY, "answered completely"),
    Outcome.REFUSED: (Fault.NOBODY, "answered completely, and the model refused (stop_reason refusal)"),
    Outcome.CLIENT_INVALID: (Fault.CLIENT, "the request was wrong: said by us or by the provider"),
    Outcome.CLIENT_AUTH: (Fault.CLIENT, "no credential, or one that was not accepted"),
    Outcome.CLIENT_LIMITED: (Fault.CLIENT, "over a limit of ours for this client"),
    Outcome.CLIENT_ABORT: (Fault.CLIENT, "the client left before the last byte"),
    Outcome.QUEUE_REJECTED: (Fault.US, "no room within the wait allowed"),
    Outcome.DRAINING: (Fault.US, "ended by our shutdown"),
    Outcome.UPSTREAM_429: (Fault.PROVIDER, "the provider said 429, or a rate-limit error inside a 200"),
    Outcome.UPSTREAM_OVERLOADED: (Fault.PROVIDER, "the provider said 529 or overloaded_error, also inside a stream"),
    Outcome.UPSTREAM_ERROR: (
        Fault.PROVIDER,
        "the provider failed: 5xx, an error event, an answer that makes no sense, our key refused",
    ),
    Outcome.UPSTREAM_TIMEOUT: (Fault.PROVIDER, "no answer within the first-byte or the total timeout"),
    Outcome.UPSTREAM_UNREACHABLE: (Fault.PROVIDER, "no connection could be made: nothing was sent"),
    Outcome.CUT_OFF: (Fault.PROVIDER, "the provider's answer ended before it was complete"),
    Outcome.STALLED: (Fault.PROVIDER, "the provider's answer stopped coming for longer than the idle timeout"),
    Outcome.INTERNAL_ERROR: (Fault.US, "a bug of ours"),
    Outcome.INTERRUPTED: (Fault.US, "our process died during the call (known only to the ledger)"),
}
"""Each outcome with whose fault it is and what it means."""

STREAM_ENDS: dict[Outcome, str] = {
    Outcome.OK: "completed",
    Outcome.REFUSED: "completed",
    Outcome.CUT_OFF: "cut_off",
    Outcome.STALLED: "stalled",
    Outcome.CLIENT_ABORT: "client_abort",
    Outcome.DRAINING: "draining",
    Outcome.INTERNAL_ERROR: "internal_error",
}
"""What `claude_proxy_stream_outcomes_total` calls each outcome of a stream that began; any other is `upstream_error`."""
