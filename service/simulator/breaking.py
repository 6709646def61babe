"""Faults that strike before the headers or in the middle of a plain (not streamed) answer."""

from aiohttp import web

from service.simulator.call import Call
from service.simulator.errors import TYPES, ApiError
from service.simulator.faults import PLAIN
from service.simulator.truth import Billed

GARBAGE = b"<html><head><title>Oops</title></head><body>\x00\xff upstream connect error</body></html>"
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
ERROR_STATUS = {"overloaded_error": 529, "api_error": 500}


def refusal(call: Call) -> ApiError | None:
    """The error that the scenario asks for instead of an answer; rate limits of one dimension come from the pool."""
    scenario, fault = call.scenario, call.scenario.fault
    if fault in _STATUS:
        status, message = _STATUS[fault]
    elif fault == "spend":
        return ApiError(429, "rate_limit_error", _SPEND, code="enforced_spend_limit_reached")
    elif fault == "acceleration":
        return ApiError(
            429, "rate_limit_error", _RAMP, code="ramp_limit_exceeded", headers={"retry-after": _after(call)}
        )
    elif fault in ("error_first", "error_after") and not call.streaming:
        status, message = ERROR_STATUS[scenario.error], scenario.error
    else:
        return None
    return ApiError(
        status, TYPES[status], message, headers={} if scenario.retry_after is None else {"retry-after": _after(call)}
    )


def _after(call: Call) -> str:
    return f"{5 if call.scenario.retry_after is None else call.scenario.retry_after:g}"


async def before_headers(call: Call, usual_ms: float) -> None:
    """Wait as long as the first byte takes, then fail if the scenario says so."""
    if call.scenario is PLAIN and not usual_ms:
        return
    if call.scenario.fault == "hang":
        await call.hang()
    await call.wait(call.delay(call.scenario.ttfb_ms, usual_ms))
    if call.scenario.fault == "reset":
        await call.drop(reset=True)
    if (error := refusal(call)) is not None:
        raise error


async def deliver(call: Call, response: web.Response) -> web.StreamResponse:
    """Send a finished answer as the scenario would have it: whole, or broken in the middle of its body."""
    fault, body = call.scenario.fault, response.body
    if not isinstance(body, bytes) or fault not in (
        "malformed",
        "garbage",
        "cut",
        "cut_boundary",
        "reset_mid",
        "stall",
    ):
        return response
    if fault == "malformed":
        response.body = body[: len(body) // 2]
        return response
    if fault == "garbage":
        call.line.billed = Billed()
        response.body = GARBAGE
        return response
    broken = web.StreamResponse(status=response.status, headers=response.headers)
    broken.content_length = len(body)
    await broken.prepare(call.request)
    await broken.write(body[: len(body) // 2])
    if fault != "stall":
        await call.drop(reset=fault == "reset_mid")
    if call.scenario.stall_ms is None:
        await call.hang()
    await call.wait(call.scenario.stall_ms / 1000)
    await broken.write(body[len(body) // 2 :])
    return broken
