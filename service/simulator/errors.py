"""Errors: `ApiError` carries what the client is to see, `body` writes it as Claude's Errors page shows it."""

import msgspec

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    503: "api_error",
    504: "timeout_error",
    529: "overloaded_error",
}


class ApiError(Exception):
    """An answer that is an error: HTTP status, error type, message, machine-readable code and extra headers.

    `param` is what OpenAI calls the field at fault, `details` what Google adds to an error.
    """

    def __init__(
        self,
        status: int,
        kind: str,
        message: str,
        *,
        code: str = "",
        headers: dict[str, str] | None = None,
        param: str | None = None,
        details: tuple[dict[str, object], ...] = (),
    ) -> None:
        super().__init__(message)
        self.status, self.kind, self.message, self.code, self.headers = status, kind, message, code, headers or {}
        self.param, self.details = param, details


def invalid(message: str, code: str = "") -> ApiError:
    """A 400 whose message starts with the name of the field at fault."""
    return ApiError(400, "invalid_request_error", message, code=code)


def not_found(message: str) -> ApiError:
    """A 404 for an object, a model or a path."""
    return ApiError(404, "not_found_error", message)


def payload(kind: str, message: str, request_id: str | None = None, code: str = "") -> dict[str, object]:
    """The error object of the Errors page; in a stream it has no request id."""
    error: dict[str, object] = {"type": kind, "message": message}
    if code:
        error["details"] = {"error_code": code}
    whole: dict[str, object] = {"type": "error", "error": error}
    return whole if request_id is None else {**whole, "request_id": request_id}


def body(error: ApiError, request_id: str) -> bytes:
    """The JSON of `error` as a response body."""
    return msgspec.json.encode(payload(error.kind, error.message, request_id, error.code))
