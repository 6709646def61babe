"""OpenAI's key, headers, errors and rate limits."""

import math
import uuid

import msgspec
from aiohttp import web

from service.simulator.config import Limits
from service.simulator.errors import ApiError
from service.simulator.face import Face
from service.simulator.faults import Scenario
from service.simulator.limits import Bucket, RateLimits

_ORGANIZATION = "org-simulator"
_TIER = Limits(requests=10_000, input_tokens=2_000_000, output_tokens=0)  # plausible; output counts as tokens too
_INVALID = "invalid_request_error"
_OVERLOADED = "Our servers are currently overloaded. Please try again later."
_BROKEN = "The server had an error while processing your request. Sorry about that!"
FAILURES = {
    "overloaded_error": ApiError(503, "service_unavailable_error", _OVERLOADED, code="server_is_overloaded"),
    "api_error": ApiError(500, "server_error", _BROKEN, code="server_error"),
}
_SLOW_DOWN = "Your request rate has grown too fast. Please slow down and increase it gradually."
_QUOTA = (
    "You exceeded your current quota, please check your plan and billing details. For more information on this error, "
    "read the docs: https://platform.openai.com/docs/guides/error-codes/api-errors."
)
_FAULTS = {  # status, type, code, message
    "overloaded": (503, "service_unavailable_error", "server_is_overloaded", _OVERLOADED),
    "api_error": (500, "server_error", "", _BROKEN),
    "timeout": (504, "server_error", "", "The request timed out."),
    "unavailable": (503, "server_error", "", "The service is temporarily unavailable."),
    "invalid_request": (400, _INVALID, "", "Invalid request."),
    "billing": (429, "insufficient_quota", "billing_not_active", "Your account is not active, please check billing."),
    "permission": (403, _INVALID, "", "You do not have access to this resource."),
    "not_found": (404, _INVALID, "", "Not found."),
    "conflict": (409, _INVALID, "", "The resource was changed by another request."),
    "too_large": (413, _INVALID, "", "Request exceeds the maximum size."),
    "acceleration": (503, "service_unavailable_error", "slow_down", _SLOW_DOWN),
    "spend": (429, "insufficient_quota", "insufficient_quota", _QUOTA),
}
_KINDS = {"authentication_error", "not_found_error", "request_too_large"}  # of the common machinery
_NAMES = {  # of a limit: what it counts, and how it is called in the message
    "requests": ("requests", "requests per min (RPM)"),
    "input_tokens": ("tokens", "tokens per min (TPM)"),
    "output_tokens": ("tokens", "tokens per min (TPM)"),
    "daily_quota": ("requests", "requests per day (RPD)"),
}


class OpenAiFace(Face):
    """The OpenAI API."""

    provider = "openai"

    def credential(self, request: web.Request) -> str:
        """Authorization: Bearer."""
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise ApiError(
                401,
                _INVALID,
                "You didn't provide an API key. You need to provide your API key in an Authorization header using "
                "Bearer auth (i.e. Authorization: Bearer YOUR_KEY).",
            )
        return key.strip()

    def wrong_key(self) -> ApiError:
        """401."""
        return ApiError(401, _INVALID, "Incorrect API key provided.", code="invalid_api_key")

    def check(self, request: web.Request) -> None:
        """No header is needed."""

    def request_id(self) -> str:
        """As in the header x-request-id."""
        return f"req_{uuid.uuid4().hex}"

    def headers(self, request_id: str, seconds: float) -> dict[str, str]:
        """Who asked, the id, the API's version and how long it took."""
        return {
            "x-request-id": request_id,
            "openai-organization": _ORGANIZATION,
            "openai-version": "2020-10-01",
            "openai-processing-ms": f"{seconds * 1000:.0f}",
        }

    def body(self, error: ApiError, request: web.Request, request_id: str) -> bytes:
        """Message, type, param and code."""
        return msgspec.json.encode({"error": shown(error)})

    def refusal(self, fault: str, scenario: Scenario) -> ApiError | None:
        """By the error codes page; no retry-after unless the scenario has one."""
        if fault == "authentication":
            return self.wrong_key()
        if fault not in _FAULTS:
            return None
        status, kind, code, message = _FAULTS[fault]
        headers = {} if scenario.retry_after is None or fault == "spend" else _come_back(scenario.retry_after)
        return ApiError(status, kind, message, code=code, headers=headers)

    def pool(self, model: str, limits: Limits | None, now: float) -> RateLimits:
        """Requests and tokens per minute and model."""
        return OpenAiLimits(model, limits or _TIER, now)

    def too_long(self, tokens: int, context: int) -> ApiError:
        """400 with a code."""
        message = f"This model's maximum context length is {context} tokens. However, your input is {tokens} tokens."
        return ApiError(400, _INVALID, message, code="context_length_exceeded", param="input")


class OpenAiLimits:
    """The two limits of one key and model; tokens are input and output."""

    def __init__(self, model: str, limits: Limits, now: float) -> None:
        self._model = model
        self._requests = Bucket(limits.requests, now)
        self._tokens = Bucket(limits.input_tokens, now)

    def admit(self, input_tokens: int, now: float) -> None:
        """Count a request and its input, or raise the 429 that names the limit in the way."""
        for name, bucket, amount in (("requests", self._requests, 1), ("input_tokens", self._tokens, input_tokens)):
            seconds = bucket.wait(amount, now)
            if seconds > 0:
                used = max(0, math.ceil(bucket.limit - bucket.level(now)))
                raise self._refusal(name, bucket.limit, min(used, bucket.limit), amount, seconds, now)
        self._requests.take(1, now)
        self._tokens.take(input_tokens, now)

    def produced(self, output_tokens: int, now: float) -> None:
        """Count output as it is made."""
        self._tokens.take(output_tokens, now)

    def pretend(self, name: str, retry_after: float, now: float) -> ApiError:
        """The 429 for a limit with nothing remaining, although there is."""
        counted = _NAMES[name][0]
        limit = (self._requests if counted == "requests" else self._tokens).limit
        error = self._refusal(name, limit, limit, 1, retry_after, now)
        error.headers[f"x-ratelimit-remaining-{counted}"] = "0"
        error.headers[f"x-ratelimit-reset-{counted}"] = go_duration(60)
        return error

    def headers(self, now: float) -> dict[str, str]:
        """The `x-ratelimit-*` headers; a reset is the time until the bucket is full again."""
        found = {}
        for name, bucket in (("requests", self._requests), ("tokens", self._tokens)):
            found[f"x-ratelimit-limit-{name}"] = str(bucket.limit)
            found[f"x-ratelimit-remaining-{name}"] = str(max(0, math.floor(bucket.level(now))))
            found[f"x-ratelimit-reset-{name}"] = go_duration(bucket.wait(bucket.limit, now))
        return found

    def _refusal(self, name: str, limit: int, used: int, wanted: int, seconds: float, now: float) -> ApiError:
        kind, called = _NAMES[name]
        message = (
            f"Rate limit reached for {self._model} in organization {_ORGANIZATION} on {called}: Limit {limit}, Used "
            f"{used}, Requested {wanted}. Please try again in {go_duration(seconds)}. Visit "
            "https://platform.openai.com/account/rate-limits to learn more."
        )
        headers = {**self.headers(now), **_come_back(seconds)}
        return ApiError(429, kind, message, code="rate_limit_exceeded", headers=headers)


def _come_back(seconds: float) -> dict[str, str]:
    return {"retry-after": str(math.ceil(seconds)), "retry-after-ms": str(math.ceil(round(seconds * 1000, 3)))}


def shown(error: ApiError) -> dict[str, object]:
    """The error as JSON. Errors of the common machinery get the type that goes with their status."""
    kind = _INVALID if error.kind in _KINDS else error.kind
    return {"message": error.message, "type": kind, "param": error.param, "code": error.code or None}


def go_duration(seconds: float) -> str:
    """A time as Go writes it: 0s, 120ms, 8.64s, 6m0s, 1h0m0s; to the millisecond, rounded up."""
    left = math.ceil(round(seconds * 1000, 3))
    if left < 1000:
        return f"{left}ms" if left else "0s"
    minutes, rest = divmod(left, 60_000)
    hours, minutes = divmod(minutes, 60)
    tail = f"{rest / 1000:g}s"
    return f"{hours}h{minutes}m{tail}" if hours else f"{minutes}m{tail}" if minutes else tail


OPENAI = OpenAiFace()
