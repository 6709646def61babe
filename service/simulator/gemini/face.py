"""Gemini's key, errors and rate limits. Errors are Google's: code, message, status, details."""

import math

import msgspec
from aiohttp import web

from service.simulator.config import Limits
from service.simulator.errors import ApiError
from service.simulator.face import Face
from service.simulator.faults import Scenario
from service.simulator.generate import new_id
from service.simulator.limits import Bucket, RateLimits

_API = "generativelanguage.googleapis.com"
_TYPE = "type.googleapis.com/google.rpc."
_TIER = Limits(requests=1_000, input_tokens=1_000_000, output_tokens=0)  # plausible; output is not limited
_STATUS = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    409: "ABORTED",
    413: "INVALID_ARGUMENT",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
_FAULTS = {
    "overloaded": (503, "The model is overloaded. Please try again later."),
    "api_error": (500, "An internal error has occurred. Please retry."),
    "timeout": (504, "Deadline expired before operation could complete."),
    "unavailable": (503, "The service is currently unavailable."),
    "invalid_request": (400, "Request contains an invalid argument."),
    "billing": (400, "Please enable billing on your project in Google AI Studio."),
    "permission": (403, "The caller does not have permission"),
    "not_found": (404, "Requested entity was not found."),
    "conflict": (409, "The operation was aborted."),
    "too_large": (400, "Request payload size exceeds the limit: 20971520 bytes."),
    "acceleration": (429, "Resource has been exhausted (e.g. check quota)."),
    "spend": (429, "Your project has exceeded its monthly spending cap."),
}
_KINDS = {"billing": "FAILED_PRECONDITION"}
_QUOTA = {
    "requests": ("generate_requests_per_model", "GenerateRequestsPerMinutePerProjectPerModel"),
    "input_tokens": (
        "generate_content_paid_tier_input_token_count",
        "GenerateContentPaidTierInputTokensPerModelPerMinute",
    ),
    "daily_quota": ("generate_requests_per_model_per_day", "GenerateRequestsPerDayPerProjectPerModel"),
}
_EXCEEDED = (
    "You exceeded your current quota, please check your plan and billing details. For more information on this error, "
    "head to: https://ai.google.dev/gemini-api/docs/rate-limits."
)


class GeminiFace(Face):
    """The Gemini API."""

    provider = "gemini"

    def credential(self, request: web.Request) -> str:
        """x-goog-api-key, or `key` in the query."""
        key = request.headers.get("x-goog-api-key") or request.query.get("key", "")
        if not key:
            raise ApiError(
                403,
                "PERMISSION_DENIED",
                "Method doesn't allow unregistered callers (callers without established identity). Please use API Key "
                "or other form of API consumer identity to call this API.",
            )
        return key

    def wrong_key(self) -> ApiError:
        """400, with the reason in its details."""
        reason = {"reason": "API_KEY_INVALID", "domain": "googleapis.com", "metadata": {"service": _API}}
        return ApiError(
            400,
            "INVALID_ARGUMENT",
            "API key not valid. Please pass a valid API key.",
            details=({"@type": f"{_TYPE}ErrorInfo", **reason},),
        )

    def check(self, request: web.Request) -> None:
        """No header is needed."""

    def request_id(self) -> str:
        """Of the truth alone: the API shows none."""
        return new_id("gemini_", 22)

    def headers(self, request_id: str, seconds: float) -> dict[str, str]:
        """What Google's front end says."""
        return {"server-timing": f"gfet4t7; dur={seconds * 1000:.0f}", "vary": "Origin, X-Origin, Referer"}

    def body(self, error: ApiError, request: web.Request, request_id: str) -> bytes:
        """One object; in a list where a stream that is a JSON array was asked for."""
        data = msgspec.json.encode(payload(error))
        in_list = ":streamGenerateContent" in request.path and request.query.get("alt") != "sse"
        return b"[%s]" % data if in_list else data

    def refusal(self, fault: str, scenario: Scenario) -> ApiError | None:
        """By the troubleshooting page."""
        if fault == "authentication":
            return self.wrong_key()
        if fault not in _FAULTS:
            return None
        status, message = _FAULTS[fault]
        details = () if scenario.retry_after is None else (_retry(scenario.retry_after),)
        return ApiError(status, _KINDS.get(fault, _STATUS[status]), message, details=details)

    def pool(self, model: str, limits: Limits | None, now: float) -> RateLimits:
        """Requests and input tokens per minute and model."""
        return GeminiLimits(model, limits or _TIER, now)

    def too_long(self, tokens: int, context: int) -> ApiError:
        """400."""
        what = f"The input token count ({tokens}) exceeds the maximum number of tokens allowed ({context})."
        return ApiError(400, "INVALID_ARGUMENT", what)


class GeminiLimits:
    """The two limits of one key and model."""

    def __init__(self, model: str, limits: Limits, now: float) -> None:
        self._model = model
        self._requests = Bucket(limits.requests, now)
        self._input = Bucket(limits.input_tokens, now)

    def admit(self, input_tokens: int, now: float) -> None:
        """Count a request and its input, or raise the 429 that names the quota in the way."""
        for name, bucket, amount in (("requests", self._requests, 1), ("input_tokens", self._input, input_tokens)):
            seconds = bucket.wait(amount, now)
            if seconds > 0:
                raise self._refusal(name, bucket.limit, seconds)
        self._requests.take(1, now)
        self._input.take(input_tokens, now)

    def produced(self, output_tokens: int, now: float) -> None:
        """Output is not limited."""

    def pretend(self, name: str, retry_after: float, now: float) -> ApiError:
        """The 429 for a quota, although something is left of it; there is none for output."""
        name = name if name in _QUOTA else "input_tokens"
        limit = {"requests": self._requests.limit, "input_tokens": self._input.limit}.get(name, 10_000)
        return self._refusal(name, limit, retry_after)

    def headers(self, now: float) -> dict[str, str]:
        """None: Gemini tells its limits in errors only."""
        return {}

    def _refusal(self, name: str, limit: int, seconds: float) -> ApiError:
        metric, quota = _QUOTA[name]
        violation = {
            "quotaMetric": f"{_API}/{metric}",
            "quotaId": quota,
            "quotaDimensions": {"location": "global", "model": self._model},
            "quotaValue": str(limit),
        }
        link = {
            "description": "Learn more about Gemini API quotas",
            "url": "https://ai.google.dev/gemini-api/docs/rate-limits",
        }
        details: tuple[dict[str, object], ...] = (
            {"@type": f"{_TYPE}QuotaFailure", "violations": [violation]},
            {"@type": f"{_TYPE}Help", "links": [link]},
            _retry(seconds),
        )
        message = (
            f"{_EXCEEDED}\n* Quota exceeded for metric: {_API}/{metric}, limit: {limit}, model: {self._model}\n"
            f"Please retry in {seconds:g}s."
        )
        return ApiError(429, "RESOURCE_EXHAUSTED", message, details=details)


def payload(error: ApiError) -> dict[str, object]:
    """The error as JSON. Errors of the common machinery get the status that goes with their code."""
    status = error.kind if error.kind.isupper() else _STATUS[error.status]
    shown: dict[str, object] = {"code": error.status, "message": error.message, "status": status}
    return {"error": {**shown, "details": list(error.details)} if error.details else shown}


def _retry(seconds: float) -> dict[str, object]:
    """Whole seconds, or three decimals, as a Duration is written."""
    thousandths = math.ceil(round(seconds * 1000, 3))
    delay = f"{thousandths / 1000:.3f}s" if thousandths % 1000 else f"{thousandths // 1000}s"
    return {"@type": f"{_TYPE}RetryInfo", "retryDelay": delay}


GEMINI = GeminiFace()
