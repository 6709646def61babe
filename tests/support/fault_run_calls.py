"""The calls of the fault run: what a client asks, how such a call must end in the ledger, and what the client saw of it."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

CLIENT_KEY = "cp-client-key-of-the-fault-run"
CLAUDES = ("claude-opus-5-5", "claude-sonnet-5-5", "claude-haiku-5-5")
GEMINI, OPENAI, UNPRICED = "gemini-2.5-flash", "gpt-6-luna", "gpt-6.2-astra"
FOREIGN_PRICES = {GEMINI: (300, 2_500), OPENAI: (100, 500)}
"""Nano-dollars for a token of input and of output (list prices of November 2026). The simulator knows Claude's."""

# scenario -> (outcome when plain, outcome when streamed); None: not asked in that form. The same for all three providers.
FAULTS: dict[str, tuple[str | None, str | None]] = {
    "stop=refusal": ("refused", "refused"),
    "fault=rate_limit_requests;retry_after=0": ("upstream_429", "upstream_429"),
    "fault=rate_limit_input_tokens;retry_after=0": ("upstream_429", "upstream_429"),
    "fault=spend": ("upstream_429", "upstream_429"),
    "fault=overloaded;retry_after=0": ("upstream_overloaded", "upstream_overloaded"),
    "fault=api_error": ("upstream_error", "upstream_error"),
    "fault=timeout": ("upstream_timeout", "upstream_timeout"),
    "fault=authentication": ("upstream_error", "upstream_error"),
    "fault=not_found": ("client_invalid", "client_invalid"),
    "fault=invalid_request": ("client_invalid", "client_invalid"),
    "fault=reset": ("upstream_error", "upstream_error"),
    "fault=cut;chunks=8": ("cut_off", "cut_off"),
    "fault=cut_boundary;chunks=8": (None, "cut_off"),
    "fault=reset_mid;chunks=8": ("cut_off", "cut_off"),
    "fault=malformed;chunks=8": ("upstream_error", "upstream_error"),
    "fault=garbage": ("upstream_error", "cut_off"),
    "fault=error_first": (None, "upstream_overloaded"),
    "fault=error_after;chunks=8": (None, "upstream_overloaded"),
    "fault=error_after;error=api_error;chunks=8": (None, "upstream_error"),
}
RARE: dict[str, tuple[str | None, str | None]] = {
    "fault=stall;chunks=8": ("stalled", "stalled"),
    "fault=hang": ("upstream_timeout", "upstream_timeout"),
}
"""They last as long as a timeout."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of call: `outcome` is the ledger's when the answer came to its own end.

    `reads` says how the answer is to be read. `leaves`: the client is gone before the answer, or midway; else empty.
    """

    name: str
    path: str
    body: Callable[[random.Random], bytes]
    outcome: str
    reads: str = "nothing"
    scenario: str = ""
    leaves: str = ""
    headers: tuple[tuple[str, str], ...] = ()

    @property
    def plain(self) -> bool:
        """Whether nothing is wrong with it, so that the simulator's own schedule applies."""
        return self.outcome == "ok" and not self.scenario


@dataclass(frozen=True, slots=True)
class Said:
    """What one provider's answer said, as the client read it."""

    response_id: str
    input_tokens: int | None
    output_tokens: int | None


@dataclass(slots=True)
class Seen:
    """What a client saw of one call. Times are Unix seconds.

    `end`: whole (the HTTP answer came to its end), cut (it began and broke), lost (there was none), left (the client went).
    `failed` counts the prompts of a fan-out that had an error for an answer.
    """

    trace_id: str
    kind: Kind
    began: float
    ended: float = 0.0
    end: str = "lost"
    status: int | None = None
    request_id: str | None = None
    said: list[Said] = field(default_factory=list)
    failed: int = 0


def _prompt(rng: random.Random) -> str:
    return "x" * rng.randint(1, 400)


def _claude(stream: bool) -> Callable[[random.Random], bytes]:
    def body(rng: random.Random) -> bytes:
        asked = {"model": rng.choice(CLAUDES), "max_tokens": rng.randint(20, 60), "stream": stream}
        return json.dumps(asked | {"messages": [{"role": "user", "content": _prompt(rng)}]}).encode()

    return body


def _cached(rng: random.Random) -> bytes:
    kept = {"type": "ephemeral"} | ({"ttl": "1h"} if rng.random() < 0.5 else {})
    system = [{"type": "text", "text": "Be brief. " * rng.randint(400, 404), "cache_control": kept}]
    return json.dumps(json.loads(_claude(False)(rng)) | {"system": system}).encode()


def _chat(stream: bool, usage: bool = True, model: str = OPENAI) -> Callable[[random.Random], bytes]:
    def body(rng: random.Random) -> bytes:
        asked: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": _prompt(rng)}]}
        asked["max_completion_tokens"] = rng.randint(20, 60)
        if stream:
            asked |= {"stream": True, "stream_options": {"include_usage": usage}}
        return json.dumps(asked).encode()

    return body


def _contents(rng: random.Random) -> bytes:
    asked = {"contents": [{"role": "user", "parts": [{"text": _prompt(rng)}]}]}
    return json.dumps(asked | {"generationConfig": {"maxOutputTokens": rng.randint(20, 60)}}).encode()


def _count(rng: random.Random) -> bytes:
    return json.dumps({"model": rng.choice(CLAUDES), "messages": [{"role": "user", "content": _prompt(rng)}]}).encode()


def _generate(rng: random.Random) -> bytes:
    return json.dumps({"prompt": _prompt(rng), "max_tokens": 20, "model": rng.choice(CLAUDES)}).encode()


def _prompts(rng: random.Random) -> bytes:
    return json.dumps({"prompts": [_prompt(rng) for _ in range(rng.randint(2, 5))], "max_tokens": 20}).encode()


def _half(rng: random.Random) -> bytes:
    return _claude(False)(rng)[:-1]


_MESSAGES, _CHAT = "/v1/messages", "/openai/v1/chat/completions"
_GEMINI = f"/gemini/v1beta/models/{GEMINI}:"

# reads -> (path, body); the first word of `reads` is whose words they are.
FORMS: dict[str, tuple[str, Callable[[random.Random], bytes]]] = {
    "claude": (_MESSAGES, _claude(False)),
    "claude stream": (_MESSAGES, _claude(True)),
    "openai": (_CHAT, _chat(False)),
    "openai stream": (_CHAT, _chat(True)),
    "gemini": (_GEMINI + "generateContent", _contents),
    "gemini stream": (_GEMINI + "streamGenerateContent?alt=sse", _contents),
}

GOOD = [
    *(Kind(reads, path, body, "ok", reads) for reads, (path, body) in FORMS.items()),
    *(
        Kind(f"{reads}: slow", *FORMS[reads], "ok", reads, "gap_ms=20;chunks=12")
        for reads in ("claude stream", "openai stream", "gemini stream")
    ),
    Kind("claude cached", "/anthropic/v1/messages", _cached, "ok", "claude"),
    Kind("openai unpriced", _CHAT, _chat(False, model=UNPRICED), "ok", "openai"),
    Kind("openai stream without usage", _CHAT, _chat(True, usage=False), "ok", "openai stream"),
    Kind("count_tokens", "/v1/messages/count_tokens", _count, "ok"),
    Kind("generate", "/generate", _generate, "ok", "generate"),
    Kind("batch_generate", "/batch_generate", _prompts, "ok", "batch_generate"),
]
REFUSED = [
    Kind("bad JSON", _MESSAGES, _half, "client_invalid"),
    Kind("bad field", "/generate", lambda _: b'{"prompt": 7}', "client_invalid"),
    Kind("wrong key", _MESSAGES, _claude(False), "client_auth", headers=(("x-api-key", "wrong"),)),
    Kind("wrong key", _CHAT, _chat(True), "client_auth", headers=(("x-api-key", "wrong"),)),
]


def _faulty(table: dict[str, tuple[str | None, str | None]], **more: Any) -> list[Kind]:
    return [
        Kind(f"{reads}: {scenario}", path, body, outcome, reads, scenario, **more)
        for scenario, outcomes in table.items()
        for reads, (path, body) in FORMS.items()
        if (outcome := outcomes["stream" in reads]) is not None
    ]


FAULTY = _faulty(FAULTS)
SLOW = _faulty(RARE, headers=(("x-stainless-timeout", "1"),))
LEAVING = [
    Kind(f"{reads}: leaves {leaves}", path, body, "ok", reads, scenario, leaves)
    for reads, (path, body) in FORMS.items()
    for scenario, leaves in (("ttfb_ms=300", "before"), ("gap_ms=30;chunks=30", "midway"))
    if leaves == "before" or "stream" in reads
] + [Kind("batch_generate: leaves", "/batch_generate", _prompts, "ok", "batch_generate", leaves="before")]


def draw(rng: random.Random) -> Kind:
    """Some call: mostly good ones."""
    kinds = rng.choices((GOOD, FAULTY, LEAVING, REFUSED, SLOW), (60, 27, 7, 5, 1))[0]
    return rng.choice(kinds)


def read(seen: Seen, body: bytes) -> None:
    """Take what the answer's bytes told the client."""
    try:
        seen.said = list(_READERS[seen.kind.reads](seen, body)) if seen.status == 200 else []
    except (ValueError, LookupError, TypeError, AttributeError):
        seen.said = []  # it is not what the API promises


def _events(body: bytes) -> Iterator[dict[str, Any]]:
    for line in body.splitlines():
        if line.startswith(b"data: {"):
            yield json.loads(line[6:])


def _all_input(usage: dict[str, Any]) -> int:
    return sum(int(usage[name]) for name in ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens"))


def _of_claude(_: Seen, body: bytes) -> Iterator[Said]:
    message = json.loads(body)
    yield Said(message["id"], _all_input(message["usage"]), message["usage"]["output_tokens"])


def _of_claude_stream(_: Seen, body: bytes) -> Iterator[Said]:
    message, tokens = None, None
    for event in _events(body):
        if event["type"] == "message_start":
            message = event["message"]
        elif event["type"] == "message_delta":
            tokens = event["usage"]["output_tokens"]
    if message is not None:
        yield Said(message["id"], _all_input(message["usage"]), tokens)


def _of_openai(_: Seen, body: bytes) -> Iterator[Said]:
    answer = json.loads(body)
    yield Said(answer["id"], answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"])


def _of_openai_stream(_: Seen, body: bytes) -> Iterator[Said]:
    name: str | None = None
    usage: dict[str, Any] = {}
    for event in _events(body):
        name, usage = event.get("id", name), event.get("usage") or usage
    if name is not None:
        yield Said(name, usage.get("prompt_tokens"), usage.get("completion_tokens"))


def _of_gemini(_: Seen, body: bytes) -> Iterator[Said]:
    yield _gemini_said(json.loads(body))


def _of_gemini_stream(_: Seen, body: bytes) -> Iterator[Said]:
    if answers := [event for event in _events(body) if "usageMetadata" in event]:
        yield _gemini_said(answers[-1])


def _gemini_said(answer: dict[str, Any]) -> Said:
    usage = answer["usageMetadata"]
    tokens = usage["candidatesTokenCount"] + usage.get("thoughtsTokenCount", 0)
    return Said(answer["responseId"], usage["promptTokenCount"], tokens)


def _of_ours(answer: dict[str, Any]) -> Said:
    return Said(answer["id"], answer["usage"]["input_tokens"], answer["usage"]["output_tokens"])


def _of_generate(_: Seen, body: bytes) -> Iterator[Said]:
    yield _of_ours(json.loads(body))


def _of_batch_generate(seen: Seen, body: bytes) -> Iterator[Said]:
    for answer in json.loads(body)["results"]:
        if "error" in answer:
            seen.failed += 1
        else:
            yield _of_ours(answer)


_READERS: dict[str, Callable[[Seen, bytes], Iterator[Said]]] = {
    "nothing": lambda _seen, _body: iter(()),
    "claude": _of_claude,
    "claude stream": _of_claude_stream,
    "openai": _of_openai,
    "openai stream": _of_openai_stream,
    "gemini": _of_gemini,
    "gemini stream": _of_gemini_stream,
    "generate": _of_generate,
    "batch_generate": _of_batch_generate,
}
