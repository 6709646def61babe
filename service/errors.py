"""The error tree. Each error knows its HTTP status, the provider's wire type, its outcome and what the client should do.

GatewayError
├── BadRequest               400 invalid_request_error   names the field
│   ├── NotFound             404 not_found_error
│   ├── MethodNotAllowed     405 invalid_request_error
│   ├── RequestTimeout       408 invalid_request_error
│   ├── LengthTooLarge       413 request_too_large
│   └── UnsupportedMedia     415 invalid_request_error
├── Unauthenticated          401 authentication_error
├── Forbidden                403 permission_error
│   └── ModelForbidden       403 permission_error        names the model field
│       └── BatchForbidden   403 permission_error        a batch's models are not known
├── Limited                  429 rate_limit_error        says which limit, and when to come back
│   ├── QueueRejected        the provider's limit is used up for longer than it makes sense to wait
│   └── ClientLimited        the client's own limit is used up
├── ClientGone               499 (nobody reads it)
├── Draining                 503 overloaded_error
├── InternalError            500 api_error
└── UpstreamFailed
    ├── NotSent              502 api_error               no connection: safe to send again
    │   └── ConnectTimeout   504 timeout_error
    ├── NoAnswer             502 api_error               sent, no answer: may have been billed
    ├── AnswerTimeout        504 timeout_error
    ├── DiedMidBody          502 api_error
    ├── Stalled              504 timeout_error
    └── InvalidAnswer        502 api_error

SettingsError stands apart: it stops start-up and never meets a client.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

from observability.catalog import Outcome

LONGEST_RETRY_AFTER = 60.0
"""Seconds; above it a `Retry-After` is not sent, and clients are told not to retry by themselves."""


class SettingsError(Exception):
    """A setting is malformed, unknown or missing; the message names the variable and gives a hint."""


class GatewayError(Exception):
    """Base of everything that becomes an error answer. `message` is safe to show: no key, no prompt."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "api_error"
    outcome: ClassVar[Outcome] = Outcome.INTERNAL_ERROR
    should_retry: ClassVar[bool | None] = None
    """The `x-should-retry` answer header: None leaves it to the client's own rule."""
    source: ClassVar[str] = "claude-proxy"
    """Who says so, in the error's `details`."""
    error_type: ClassVar[str] = "internal_error"
    """The `error.type` of spans and metrics."""
    headers: ClassVar[dict[str, str]] = {}

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.details: dict[str, Any] = {}
        """What the error answer's `details` say beside the trace id and the field."""


class BadRequest(GatewayError):
    """The request is wrong; `field` names where."""

    status = 400
    type = "invalid_request_error"
    outcome = Outcome.CLIENT_INVALID
    error_type = "client_invalid"
    should_retry: ClassVar[bool | None] = False


class NotFound(BadRequest):
    """No such route, or a model that we do not know on a route of ours."""

    status = 404
    type = "not_found_error"


class MethodNotAllowed(BadRequest):
    """The route exists, the method does not; `allowed` are those that do."""

    status = 405

    def __init__(self, allowed: str) -> None:
        super().__init__(f"this route takes {allowed}", field="method")
        self.headers = {"allow": allowed}  # type: ignore[misc]  # an instance's own, where the class has its kind's


class RequestTimeout(BadRequest):
    """Nothing of the request's body came for `idle` seconds, the idle timeout."""

    status = 408
    should_retry = None
    headers: ClassVar[dict[str, str]] = {"connection": "close"}

    def __init__(self, idle: float) -> None:
        super().__init__(
            f"nothing of the request body came for {idle:g} s, the idle timeout (CLAUDE_PROXY_IDLE_TIMEOUT)",
            field="body",
        )


class LengthTooLarge(BadRequest):
    """The body is over the route's limit; it was not read on."""

    status = 413
    type = "request_too_large"
    headers: ClassVar[dict[str, str]] = {"connection": "close"}


class UnsupportedMedia(BadRequest):
    """The content type is not what the route reads."""

    status = 415


class Unauthenticated(GatewayError):
    """No credential came, or it is not one of ours."""

    status = 401
    type = "authentication_error"
    outcome = Outcome.CLIENT_AUTH
    error_type = "client_auth"
    should_retry = False


class Forbidden(GatewayError):
    """The route is closed to this caller."""

    status = 403
    type = "permission_error"
    outcome = Outcome.CLIENT_AUTH
    error_type = "client_auth"
    should_retry = False


class ModelForbidden(Forbidden):
    """This client may not use this model."""

    outcome = Outcome.CLIENT_LIMITED
    error_type = "client_limited"

    def __init__(self, client: str, model: str) -> None:
        super().__init__(f"client {client!r} may not use the model {model!r}", field="model")


class BatchForbidden(ModelForbidden):
    """This client may use some models only, and the models in a message batch, which is passed through unread, are not known."""

    def __init__(self, client: str) -> None:
        Forbidden.__init__(
            self,
            f"client {client!r} may use some models only, and a message batch's are not looked at: send its requests one by one",
            field="requests",
        )


class Limited(GatewayError):
    """We say no before the provider does. `limit` is which limit; `retry_after` seconds until it makes sense to come back."""

    status = 429
    type = "rate_limit_error"

    def __init__(self, message: str, *, limit: str, retry_after: float) -> None:
        super().__init__(message)
        self.limit = limit
        self.retry_after = retry_after
        self.details = {"limit": limit, "retry_after_seconds": round(retry_after, 3)}
        # SDKs obey any Retry-After: longer than a minute would look like a hanging call.
        if retry_after <= LONGEST_RETRY_AFTER:
            self.headers = {"retry-after": str(math.ceil(retry_after))}  # type: ignore[misc]  # an instance's own
        else:
            self.should_retry = False  # type: ignore[misc]


class QueueRejected(Limited):
    """The provider's limit will not have room in the time that the request may wait, or too many wait already."""

    outcome = Outcome.QUEUE_REJECTED
    error_type = "queue_rejected"


class ClientLimited(Limited):
    """A named client's own limit is used up."""

    outcome = Outcome.CLIENT_LIMITED
    error_type = "client_limited"


class ClientGone(GatewayError):
    """The client left while we read its body; 499 is nginx's number for it, and nobody sees it."""

    status = 499
    outcome = Outcome.CLIENT_ABORT
    error_type = "client_abort"


class Draining(GatewayError):
    """This process is shutting down."""

    status = 503
    type = "overloaded_error"
    outcome = Outcome.DRAINING
    error_type = "draining"
    headers: ClassVar[dict[str, str]] = {"retry-after": "1"}


class InternalError(GatewayError):
    """A bug of ours; the message says nothing of the cause, the log line and the trace do."""


class UpstreamFailed(GatewayError):
    """The provider gave no usable answer. `attempt_reason` is one of `catalog.ATTEMPT_REASONS`."""

    status = 502
    outcome = Outcome.UPSTREAM_ERROR
    attempt_reason: ClassVar[str] = "http_error"
    error_type = "upstream_error"


class NotSent(UpstreamFailed):
    """No connection was made, so nothing was sent and nothing can have been billed."""

    outcome = Outcome.UPSTREAM_UNREACHABLE
    attempt_reason = "not_sent"
    error_type = "upstream_unreachable"


class ConnectTimeout(NotSent):
    """No connection within the connect timeout."""

    status = 504
    type = "timeout_error"


class NoAnswer(UpstreamFailed):
    """The request was sent, the connection ended before an answer: it may have been billed."""

    attempt_reason = "no_answer"
    error_type = "no_answer"


class AnswerTimeout(UpstreamFailed):
    """Sent, and no answer within the first-byte timeout, or not all of it within the total timeout."""

    status = 504
    type = "timeout_error"
    outcome = Outcome.UPSTREAM_TIMEOUT
    attempt_reason = "timeout"
    error_type = "upstream_timeout"


class DiedMidBody(UpstreamFailed):
    """The answer began and its connection ended before the body was complete."""

    outcome = Outcome.CUT_OFF
    attempt_reason = "died_mid_body"
    error_type = "cut_off"


class Stalled(UpstreamFailed):
    """The answer began and then nothing came for the idle timeout."""

    status = 504
    type = "timeout_error"
    outcome = Outcome.STALLED
    attempt_reason = "stalled"
    error_type = "stalled"


class InvalidAnswer(UpstreamFailed):
    """The provider's bytes are not HTTP, or not the JSON or SSE that the route answers with."""

    attempt_reason = "http_error"
    error_type = "invalid_response"


def is_refusal(error: GatewayError) -> bool:
    """Whether it is our own no: nobody left, nothing broke here, and the provider did not fail."""
    return not isinstance(error, ClientGone | InternalError | UpstreamFailed)
