"""Faults that strike before the headers or in the middle of a plain (not streamed) answer."""

from aiohttp import web

from service.simulator.call import Call
from service.simulator.errors import ApiError
from service.simulator.faults import PLAIN
from service.simulator.truth import Billed

GARBAGE = b"<html><head><title>Oops</title></head><body>\x00\xff upstream connect error</body></html>"
_ERROR_FAULTS = {"overloaded_error": "overloaded", "api_error": "api_error"}


def refusal(call: Call) -> ApiError | None:
    """The error that the scenario asks for instead of an answer; rate limits of one dimension come from the pool."""
    fault: str = call.scenario.fault
    if fault in ("error_first", "error_after"):
        if call.streaming:
            return None
        fault = _ERROR_FAULTS[call.scenario.error]
    return call.face.refusal(fault, call.scenario) if fault else None


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
