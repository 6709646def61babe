"""What differs between the APIs whatever is asked of them: the key, headers, errors, and which error a fault is."""

from abc import ABC, abstractmethod

from aiohttp import web

from service.simulator import errors
from service.simulator.config import Limits
from service.simulator.errors import TYPES, ApiError, invalid
from service.simulator.faults import Scenario
from service.simulator.generate import new_id
from service.simulator.limits import RateLimits
from service.simulator.request import VERSIONS

ORGANIZATION = "5157b4cc-0000-4000-8000-000000000001"
_ADMIN_KEY, _ADMIN_PATH = "sk-ant-admin", "/v1/organizations/"
_STATUS = {
    "overloaded": (529, "Overloaded"),
    "api_error": (500, "Internal server error"),
    "timeout": (504, "Request timed out"),
    "unavailable": (503, "Service unavailable"),
    "invalid_request": (400, "Invalid request"),
    "authentication": (401, "invalid x-api-key"),
    "billing": (402, "Your credit balance is too low"),
    "permission": (403, "Your API key does not have permission to use the specified resource"),
    "not_found": (404, "Not found"),
    "conflict": (409, "The resource was changed by another request"),
    "too_large": (413, "Request exceeds the maximum size"),
}
_SPEND = "You have reached your organization's monthly spend limit. It cannot be lifted by waiting a little."
_RAMP = "Your usage has grown too fast. Please increase it gradually."


class Face(ABC):
    """One API as its clients see it."""

    provider: str

    @abstractmethod
    def credential(self, request: web.Request) -> str:
        """The key of the request; raises the API's refusal when there is none."""

    @abstractmethod
    def wrong_key(self) -> ApiError:
        """The refusal of a key that is not known."""

    @abstractmethod
    def check(self, request: web.Request) -> None:
        """Raise the API's refusal of headers that it cannot do with."""

    @abstractmethod
    def request_id(self) -> str:
        """A new id for a request."""

    @abstractmethod
    def headers(self, request_id: str, seconds: float) -> dict[str, str]:
        """What every response carries; `seconds` is the time that it took."""

    @abstractmethod
    def body(self, error: ApiError, request: web.Request, request_id: str) -> bytes:
        """The JSON of `error`."""

    @abstractmethod
    def refusal(self, fault: str, scenario: Scenario) -> ApiError | None:
        """The error that `fault` is in this API, if it is one that needs no rate limits to say."""

    def pool(self, model: str, limits: Limits | None, now: float) -> RateLimits:
        """New rate limits for one key and model."""
        raise NotImplementedError

    def too_long(self, tokens: int, context: int) -> ApiError:
        """The refusal of a prompt that is longer than the model's context."""
        return invalid(f"prompt is too long: {tokens} tokens > {context} maximum")


def retry_after(scenario: Scenario, usual: float) -> float:
    """Seconds after which to come back: what the scenario says, else what is usual."""
    return usual if scenario.retry_after is None else scenario.retry_after


class Claude(Face):
    """The Claude API."""

    provider = "anthropic"

    def credential(self, request: web.Request) -> str:
        """x-api-key, or Bearer. A key of the Admin API is good for that API alone, and no other key is."""
        headers = request.headers
        key = headers.get("x-api-key") or headers.get("authorization", "").removeprefix("Bearer ").strip()
        if not key:
            raise ApiError(401, "authentication_error", "x-api-key header is required")
        if key.startswith(_ADMIN_KEY) != request.path.startswith(_ADMIN_PATH):
            raise self.wrong_key()
        return key

    def wrong_key(self) -> ApiError:
        """401."""
        return ApiError(401, "authentication_error", "invalid x-api-key")

    def check(self, request: web.Request) -> None:
        """The version must be there and known."""
        version = request.headers.get("anthropic-version")
        if version is None:
            raise invalid("anthropic-version: header is required")
        if version not in VERSIONS:
            raise invalid(f'anthropic-version: "{version}" is not a valid version')

    def request_id(self) -> str:
        """As in the header request-id."""
        return new_id("req_011C", 20)

    def headers(self, request_id: str, seconds: float) -> dict[str, str]:
        """Who asked, and the id."""
        return {"request-id": request_id, "anthropic-organization-id": ORGANIZATION}

    def body(self, error: ApiError, request: web.Request, request_id: str) -> bytes:
        """As the Errors page shows it."""
        return errors.body(error, request_id)

    def refusal(self, fault: str, scenario: Scenario) -> ApiError | None:
        """By the Errors page."""
        if fault == "spend":
            return ApiError(429, "rate_limit_error", _SPEND, code="enforced_spend_limit_reached")
        if fault == "acceleration":
            headers = {"retry-after": f"{retry_after(scenario, 5):g}"}
            return ApiError(429, "rate_limit_error", _RAMP, code="ramp_limit_exceeded", headers=headers)
        if fault == "daily_quota":
            return invalid("x-simulator-scenario: fault=daily_quota: this API has no limit by the day")
        if fault not in _STATUS:
            return None
        status, message = _STATUS[fault]
        headers = {} if scenario.retry_after is None else {"retry-after": f"{scenario.retry_after:g}"}
        return ApiError(status, TYPES[status], message, headers=headers)


CLAUDE = Claude()
