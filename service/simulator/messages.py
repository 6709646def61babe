"""POST /v1/messages and POST /v1/messages/count_tokens."""

from aiohttp import web

from service.simulator import generate, models, request
from service.simulator.breaking import before_headers
from service.simulator.call import Call
from service.simulator.errors import invalid
from service.simulator.generate import Answer
from service.simulator.limits import Pool
from service.simulator.models import Model
from service.simulator.prompt_cache import InputUsage
from service.simulator.request import Prompt, Request
from service.simulator.sending import duration, send
from service.simulator.stream import Events
from service.simulator.truth import Billed

_LIMIT_FAULTS = {
    "rate_limit_requests": "requests",
    "rate_limit_input_tokens": "input-tokens",
    "rate_limit_output_tokens": "output-tokens",
}


async def create(call: Call) -> web.StreamResponse:
    """One answer, in one piece or streamed."""
    asked = request.decode(call.body, Request)
    call.streaming = bool(asked.stream)
    call.line.kind = "stream" if call.streaming else "message"
    model = checked(call, asked)
    call.line.inference_geo, call.line.speed = asked.inference_geo or "global", asked.speed or "standard"
    now = call.sim.clock.time()
    pool = call.sim.limiter.pool(call.line.key_hash, model, now)
    if limit := _LIMIT_FAULTS.get(call.scenario.fault):
        seconds = call.scenario.retry_after
        raise pool.pretend(limit, 5 if seconds is None else seconds, now)
    await before_headers(call, call.sim.config.ttfb_ms)
    now = call.sim.clock.time()
    usage = _admit(call, asked, model, pool, now)
    answer = _compose(call, asked)
    message = opening(asked, model, usage)
    call.line.message_id = str(message["id"])
    if call.streaming:
        call.headers = pool.headers(now)
        return await send(call, Events(answer, message, call.scenario), pool)
    await call.wait(duration(call, answer))
    now = call.sim.clock.time()
    pool.produced(answer.output_tokens, now)
    call.headers = pool.headers(now)
    call.line.billed.output_tokens = answer.output_tokens
    call.line.billed.reasoning_output_tokens = answer.thinking_tokens
    return call.answer(finished(message, answer))


async def count(call: Call) -> web.StreamResponse:
    """The input tokens of a request that is not made."""
    asked = request.decode(call.body, Prompt)
    call.line.kind = "count_tokens"
    checked(call, asked)
    await before_headers(call, call.sim.config.ttfb_ms)
    return call.answer({"input_tokens": request.count(asked)})


def checked(call: Call, asked: Prompt) -> Model:
    """The model of the request, once the request is known to be good; raises the API's 400 or 404."""
    model = models.find(asked.model)
    call.line.model = model.id
    request.check(asked, model, call.request.headers.get("anthropic-version", ""))
    return model


def _admit(call: Call, asked: Request, model: Model, pool: Pool, now: float) -> InputUsage:
    """Pass the rate limits and start the bill."""
    total = request.count(asked)
    if total > model.context:
        raise invalid(f"prompt is too long: {total} tokens > {model.context} maximum")
    if b'"cache_control"' in call.body:
        usage = call.sim.cache.use(f"{call.line.key_hash} {model.id}", asked, now)
    else:
        usage = InputUsage(plain=total)
    pool.admit(usage.limited, now)
    call.line.billed = Billed(
        1, usage.plain, usage.written, usage.read, cache_creation_1h_input_tokens=usage.written_1h
    )
    return usage


def _compose(call: Call, asked: Request) -> Answer:
    config, wished = call.sim.config, call.scenario.seed
    seed = config.seed if wished is None else wished
    return generate.compose(asked, call.scenario, generate.seeded(seed, call.body), config.seed, config.output_tokens)


def opening(asked: Request, model: Model, usage: InputUsage, tier: str = "standard") -> dict[str, object]:
    """The message before it has any content, its usage before any output."""
    bill: dict[str, object] = {
        "input_tokens": usage.plain,
        "cache_creation_input_tokens": usage.written,
        "cache_read_input_tokens": usage.read,
        "cache_creation": {
            "ephemeral_5m_input_tokens": usage.written_5m,
            "ephemeral_1h_input_tokens": usage.written_1h,
        },
        "output_tokens": 1,
        "service_tier": tier,
        "inference_geo": asked.inference_geo or "global",
    }
    if asked.speed:
        bill["speed"] = asked.speed
    return {
        "id": generate.new_id("msg_01"),
        "type": "message",
        "role": "assistant",
        "model": model.id,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "stop_details": None,
        "usage": bill,
    }


def finished(message: dict[str, object], answer: Answer) -> dict[str, object]:
    """The message with all its content."""
    bill = message["usage"]
    assert isinstance(bill, dict)
    bill["output_tokens"] = answer.output_tokens
    if answer.thinking_tokens:
        bill["output_tokens_details"] = {"thinking_tokens": answer.thinking_tokens}
    message["content"] = [part.content() for part in answer.parts]
    return {**message, **answer.ending}
