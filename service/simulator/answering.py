"""What the Gemini and OpenAI faces have in common: a request becomes an answer, counted, limited and billed."""

from dataclasses import dataclass

import msgspec

from service.simulator import generate, request
from service.simulator.breaking import before_headers
from service.simulator.call import Call
from service.simulator.face import retry_after
from service.simulator.generate import Answer, Part
from service.simulator.limits import RateLimits
from service.simulator.prompt_cache import InputUsage
from service.simulator.request import Block, Message, OutputFormat, Request, Tool, ToolChoice
from service.simulator.sending import duration
from service.simulator.truth import Billed

_LIMIT_FAULT = "rate_limit_"
_DAILY = 52_758  # seconds until a daily quota is back; seen in a report of Gemini's


@dataclass(frozen=True)
class ForeignModel:
    """A model that is not Claude."""

    id: str
    context: int  # tokens
    max_output: int
    bills_cache_writes: bool = False


@dataclass(frozen=True)
class Plan:
    """An answer that is about to be given."""

    answer: Answer
    usage: InputUsage
    limits: RateLimits

    @property
    def input_tokens(self) -> int:
        """All input, cached or not."""
        return self.usage.plain + self.usage.written + self.usage.read


def asked(
    model: ForeignModel,
    turns: list[Message],
    *,
    max_tokens: int | None,
    tools: list[Tool],
    thinks: bool = False,
    stop: list[str] | None = None,
    choice: ToolChoice | None = None,
    schema: msgspec.Raw | None = None,
) -> Request:
    """A request to another API in the words of ours, which is what answers are made from."""
    return Request(
        model=model.id,
        messages=turns,
        max_tokens=model.max_output if max_tokens is None else min(max_tokens, model.max_output),
        tools=tools,
        thinking=request.Thinking("enabled") if thinks else None,
        stop_sequences=stop,
        tool_choice=choice,
        output_format=None if schema is None else OutputFormat("json_schema", schema),
    )


def turn(role: str, blocks: list[Block]) -> Message:
    """One turn; every role that is neither the model's nor the system's is the user's."""
    known = {"model": "assistant", "assistant": "assistant", "system": "system", "developer": "system"}
    return Message(known.get(role, "user"), blocks)  # type: ignore[arg-type]  # a value of the literal


def refuse_by_limit(call: Call, limits: RateLimits) -> None:
    """Raise the 429 that the scenario asks for."""
    fault = call.scenario.fault
    if fault.startswith(_LIMIT_FAULT) or fault == "daily_quota":
        seconds = retry_after(call.scenario, 5 if fault != "daily_quota" else _DAILY)
        raise limits.pretend(fault.removeprefix(_LIMIT_FAULT), seconds, call.sim.clock.time())


async def prepare(call: Call, model: ForeignModel, wanted: Request) -> Plan:
    """Take the time that a first byte takes, pass the limits, start the bill and make the answer; raises the refusal
    that the scenario, the limits or the model's context make."""
    call.line.kind = "stream" if call.streaming else "message"
    call.line.model = model.id
    limits = _limits(call, model)
    refuse_by_limit(call, limits)
    await before_headers(call, call.sim.config.ttfb_ms)
    now, total = call.sim.clock.time(), request.count(wanted)
    if total > model.context:
        raise call.face.too_long(total, model.context)
    limits.admit(total, now)
    owner = f"{call.face.provider} {call.line.key_hash} {model.id}"
    usage = call.sim.implicit_cache.use(owner, wanted, now, writes=model.bills_cache_writes)
    call.line.billed = Billed(1, usage.plain, usage.written, usage.read)
    config, seed = call.sim.config, call.scenario.seed
    rng = generate.seeded(config.seed if seed is None else seed, call.body)
    answer = generate.compose(wanted, call.scenario, rng, config.seed, config.output_tokens)
    call.headers = limits.headers(now)
    return Plan(answer, usage, limits)


async def finish(call: Call, plan: Plan) -> None:
    """Take the time that an answer in one piece takes, and complete the bill."""
    await call.wait(duration(call, visible(plan.answer)))
    now = call.sim.clock.time()
    plan.limits.produced(plan.answer.output_tokens, now)
    call.headers = plan.limits.headers(now)
    call.line.billed.output_tokens = plan.answer.output_tokens
    call.line.billed.reasoning_output_tokens = plan.answer.thinking_tokens


def _limits(call: Call, model: ForeignModel) -> RateLimits:
    place = (call.face.provider, call.line.key_hash, model.id)
    found = call.sim.pools.get(place)
    if found is None:
        found = call.face.pool(model.id, call.sim.config.limits, call.sim.clock.time())
        call.sim.pools[place] = found
    return found


def visible(answer: Answer) -> Answer:
    """The answer without its thoughts."""
    parts = [part for part in answer.parts if part.kind != "thinking"]
    return Answer(parts, answer.stop_reason, answer.stop_sequence)


def text_of(parts: list[Part]) -> str:
    """The words of an answer."""
    return "".join(part.text for part in parts if part.kind == "text")
