"""What the model says: seeded words, thinking, tool calls. The same seed and request give the same answer."""

import base64
import random
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import Any

import msgspec

from service.simulator.faults import Scenario
from service.simulator.request import Request, Tool, tokens

_WORDS = [
    "the",
    "river",
    "turns",
    "slow",
    "light",
    "over",
    "stone",
    "and",
    "each",
    "small",
    "bird",
    "keeps",
    "its",
    "own",
    "hour",
    "while",
    "morning",
    "finds",
    "a",
    "quiet",
    "road",
    "between",
    "tall",
    "grass",
    "warm",
    "rain",
    "green",
    "hills",
    "open",
    "windows",
    "bread",
    "salt",
    "cedar",
    "lanterns",
    "letters",
    "maps",
    "harbours",
    "bells",
]
_PAGE = 65_536
_SPREAD = 0.6  # sigma of the log-normal lengths: the longest of a hundred answers is about four times the median
_ids, _dice = random.Random(), random.Random()


def new_id(prefix: str, length: int = 22, rng: random.Random = _ids) -> str:
    """An id such as the API's: `msg_01` and 22 characters; never the same twice unless `rng` is seeded."""
    return prefix + base64.b64encode(rng.randbytes(length), b"xX")[:length].decode()


def seeded(seed: int, data: bytes) -> random.Random:
    """A source of chance that depends on the seed and the request alone. It is one object, good until the next call:
    making a new one takes twice as long."""
    digest = blake2b(data, digest_size=8, salt=seed.to_bytes(16, "big", signed=True)).digest()
    _dice.seed(int.from_bytes(digest, "big"))
    return _dice


@dataclass(slots=True)
class Part:
    """One content block of the answer. `text` is the words, the thoughts or the JSON of a tool's input."""

    kind: str  # text, thinking, tool_use
    text: str
    tokens: int
    name: str = ""
    id: str = ""

    def content(self) -> dict[str, object]:
        """The block as a finished message shows it."""
        if self.kind == "thinking":
            return {"type": "thinking", "thinking": self.text, "signature": signature(self.text)}
        if self.kind == "tool_use":
            return {"type": "tool_use", "id": self.id, "name": self.name, "input": msgspec.json.decode(self.text)}
        return {"type": "text", "text": self.text}


@dataclass(slots=True)
class Answer:
    """All content blocks and why they end."""

    parts: list[Part]
    stop_reason: str
    stop_sequence: str | None = None

    @property
    def output_tokens(self) -> int:
        """Tokens of all blocks."""
        return sum([part.tokens for part in self.parts])

    @property
    def ending(self) -> dict[str, object]:
        """stop_reason and what belongs to it, as a message and a message_delta show them."""
        ending: dict[str, object] = {"stop_reason": self.stop_reason, "stop_sequence": self.stop_sequence}
        if self.stop_reason == "refusal":
            ending["stop_details"] = {"type": "refusal", "category": None, "explanation": None}
        return ending

    @property
    def thinking_tokens(self) -> int:
        """Tokens of the thinking alone."""
        return sum([part.tokens for part in self.parts if part.kind == "thinking"])


def signature(text: str) -> str:
    """What proves a thought to be the model's own; here any function of it will do."""
    return base64.b64encode(random.Random(text).randbytes(96)).decode()


@lru_cache(maxsize=8)
def _page(seed: int) -> str:
    rng = random.Random(seed)
    return " ".join(rng.choice(_WORDS) for _ in range(_PAGE // 4))[:_PAGE]


def words(seed: int, rng: random.Random, token_count: int) -> str:
    """Text of exactly that many tokens."""
    page, start = _page(seed), rng.randrange(_PAGE)
    needed = start + 4 * token_count
    text = page if needed <= _PAGE else page * (needed // _PAGE + 1)
    return text[start:needed]


def compose(request: Request, scenario: Scenario, rng: random.Random, seed: int, median: int) -> Answer:
    """The answer to `request`: thinking when asked for, then text or a tool call, within max_tokens."""
    wanted = scenario.output_tokens
    if wanted is None:
        wanted = max(1, round(rng.lognormvariate(0, _SPREAD) * median))
    room = min(wanted, request.max_tokens)
    parts: list[Part] = []
    thinking = min(_thinking_tokens(request, scenario, rng, wanted), room)
    if thinking:
        parts.append(Part("thinking", words(seed, rng, thinking), thinking))
        room -= thinking
    tool = _tool(request, scenario)
    if tool is not None and (called := _call(tool, rng)).tokens <= request.max_tokens - thinking:
        parts.append(called)
        return Answer(parts, scenario.stop or "tool_use")
    answer = Answer(parts, "max_tokens" if request.max_tokens < wanted or not request.max_tokens else "end_turn")
    if shaped := _shaped(request, rng):
        whole, shaped = shaped, shaped[: 4 * (request.max_tokens - thinking)]
        parts.append(Part("text", shaped, tokens(len(shaped))))
        answer.stop_reason = "end_turn" if shaped == whole else "max_tokens"
    elif room:
        parts.append(Part("text", words(seed, rng, room), room))
        _stop_at_sequence(answer, request.stop_sequences or [], scenario.stop == "stop_sequence")
    if scenario.stop:
        answer.stop_reason = scenario.stop
    return answer


def _thinking_tokens(request: Request, scenario: Scenario, rng: random.Random, wanted: int) -> int:
    if scenario.thinking_tokens is not None:
        return scenario.thinking_tokens
    if request.thinking is None or request.thinking.type not in ("enabled", "adaptive"):
        return 0
    return min(max(1, round(wanted * rng.uniform(0.2, 0.6))), request.thinking.budget_tokens or wanted)


def _stop_at_sequence(answer: Answer, sequences: list[str], forced: bool) -> None:
    """End the text before the first of the stop sequences in it; `forced`: as if the first came at its end."""
    part = answer.parts[-1]
    places = [(part.text.find(sequence), sequence) for sequence in sequences if sequence]
    hits = [place for place in places if place[0] >= 0]
    if hits:
        at, answer.stop_sequence = min(hits)
        part.text = part.text[:at]
        part.tokens, answer.stop_reason = tokens(at), "stop_sequence"
        if not at:
            answer.parts.pop()
    elif forced and sequences:
        answer.stop_sequence = sequences[0]


def _tool(request: Request, scenario: Scenario) -> Tool | None:
    tools = [tool for tool in request.tools if bytes(tool.input_schema)]
    choice = request.tool_choice
    name = choice.name if choice and choice.type == "tool" else scenario.tool
    if name is None and not (choice and choice.type == "any") and scenario.stop != "tool_use":
        return None
    named = [tool for tool in tools if tool.name == name]
    return next(iter(named or tools), None)


def _call(tool: Tool, rng: random.Random) -> Part:
    schema = msgspec.json.decode(tool.input_schema)
    text = msgspec.json.encode(example(schema, schema, rng)).decode()
    return Part("tool_use", text, tokens(len(text)), tool.name, new_id("toolu_01", rng=rng))


def _shaped(request: Request, rng: random.Random) -> str:
    """JSON for the output format of the request; "" when it has none."""
    form = (request.output_config and request.output_config.format) or request.output_format
    if form is None or not bytes(form.schema):
        return ""
    schema = msgspec.json.decode(form.schema)
    return msgspec.json.encode(example(schema, schema, rng)).decode()


def example(schema: Any, root: Any, rng: random.Random, depth: int = 0) -> Any:
    """A value that the JSON schema allows, with the required fields of every object."""
    if not isinstance(schema, dict) or depth > 20:
        return {}
    if "$ref" in schema:
        target = root
        for step in schema["$ref"].removeprefix("#/").split("/"):
            target = target.get(step, {})
        return example(target, root, rng, depth + 1)
    for key in ("anyOf", "oneOf", "allOf"):
        if schema.get(key):
            return example(schema[key][0], root, rng, depth + 1)
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return rng.choice(schema["enum"])
    kind = schema.get("type", "object")
    return _typed(str(kind[0] if isinstance(kind, list) else kind).lower(), schema, root, rng, depth)


def _typed(kind: str, schema: dict[str, Any], root: Any, rng: random.Random, depth: int) -> Any:
    if kind == "object":
        fields = schema.get("properties", {})
        return {name: example(fields.get(name, {}), root, rng, depth + 1) for name in schema.get("required", ())}
    if kind == "array":
        return [example(schema.get("items", {}), root, rng, depth + 1) for _ in range(schema.get("minItems", 0))]
    if kind == "string":
        return " ".join(rng.choice(_WORDS) for _ in range(3 + schema.get("minLength", 0) // 3))[
            : schema.get("maxLength")
        ]
    if kind in ("integer", "number"):
        return schema.get("minimum", min(7, schema.get("maximum", 7)))
    return {"boolean": True, "null": None}.get(kind, {})
