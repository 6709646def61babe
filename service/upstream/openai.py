"""OpenAI's API: its models and limits, what its errors ask for, how an error of ours must look.

Sources: the SDK's types (openai 3.54.0); the rate-limit headers' durations from its guides, not checked afresh.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from service.record import Quota
from service.upstream.openai_answers import SPEND, StreamReader, WholeReader
from service.upstream.openai_content import OpenAIContent
from service.upstream.provider import MB, Generated, Hint, Post, Prompt, Provider, Route, Said, decoded, retry_after
from service.upstream.readers import AnyReader

MODELS = frozenset(
    {
        "gpt-6.2-astra", "gpt-6.2-sol", "gpt-6.1-sol", "gpt-6.1-terra", "gpt-6-astra", "gpt-6-sol", "gpt-6-luna",
        "gpt-5.6-sol", "gpt-5.6-terra", "gpt-5.6-luna", "gpt-5.5", "gpt-5.5-2026-04-23", "gpt-5.4", "gpt-5.4-mini",
        "gpt-5.4-nano", "gpt-5.4-mini-2026-03-17", "gpt-5.4-nano-2026-03-17", "gpt-5.2", "gpt-5.2-2025-12-11",
        "gpt-5.2-pro", "gpt-5.2-pro-2025-12-11", "gpt-5", "gpt-5-mini", "gpt-5-nano", "gpt-5-2025-08-07",
        "gpt-5-mini-2025-08-07", "gpt-5-nano-2025-08-07", "gpt-4.1", "gpt-4.1-mini", "gpt-4o", "gpt-4o-2024-11-20",
        "gpt-4o-2024-08-06", "gpt-4o-mini", "gpt-4o-mini-2024-07-18", "o3", "o3-2025-04-16",
    }
)  # fmt: skip
"""Of the SDK's `ChatModel` literal what is not near its shutdown, and 4o and o3, which are still in wide use."""

LIMIT = 64 * MB
"""Of a request: images may make 50 MB of it."""
_DATE = re.compile(r"-20\d\d-\d\d-\d\d$")
_STATUS = {
    401: ("invalid_request_error", "invalid_api_key"),
    403: ("invalid_request_error", "forbidden"),
    404: ("invalid_request_error", "not_found"),
    429: ("requests", "rate_limit_exceeded"),
    503: ("service_unavailable_error", "server_overloaded"),
}
"""Type and code of our own errors; any other is invalid_request_error, or server_error from 500 on."""


class Request(msgspec.Struct):
    """The only fields of a request's body that are decoded here; a response may take its model from a stored prompt."""

    model: str | None = None
    wants_stream: bool | None = msgspec.field(name="stream", default=None)
    max_output_tokens: int | None = None
    max_completion_tokens: int | None = None
    chat_max_tokens: int | None = msgspec.field(name="max_tokens", default=None)

    @property
    def stream(self) -> bool:
        """Null is no."""
        return bool(self.wants_stream)

    @property
    def max_tokens(self) -> int | None:
        """By whichever name."""
        named = (self.max_output_tokens, self.max_completion_tokens, self.chat_max_tokens)
        return next((number for number in named if number is not None), None)


class _Message(msgspec.Struct):
    content: str | None = None
    refusal: str | None = None


class _Choice(msgspec.Struct):
    message: _Message
    finish_reason: str | None = None


class _Completion(msgspec.Struct):
    choices: list[_Choice]
    id: str | None = None
    model: str | None = None


class OpenAI(Provider):
    """OpenAI: chat completions and responses."""

    name = "openai"
    title = "OpenAI"
    prefix = "/openai"
    routes = (
        Route("/v1/chat/completions", ("POST",), LIMIT, operation="chat", asks=Request),
        Route("/v1/responses", ("POST",), LIMIT, operation="chat", asks=Request),
        Route("/v1/models", ("GET",)),
        Route("/v1/models/<model_id>", ("GET",)),
    )
    models = MODELS
    request_id_header = "x-request-id"
    key_names = ("OPENAI_API_KEY",)
    credential_headers = frozenset((b"authorization",))
    base_url = "https://api.openai.com"
    default_model = "gpt-6.1-sol"
    content = OpenAIContent()

    def stream_reader(
        self, clock: Callable[[], float], on_first_chunk: Callable[[], None], content_type: str, encoding: str
    ) -> StreamReader:
        """For an SSE answer."""
        return StreamReader(clock, on_first_chunk, encoding)

    def whole_reader(self, status: int, *, inference: bool, encoding: str) -> WholeReader:
        """For a JSON answer."""
        return WholeReader(status, inference=inference, encoding=encoding)

    def quotas(self, headers: Mapping[str, str], seen: float) -> tuple[Quota, ...]:
        """From `x-ratelimit-*`: requests, and input and output tokens together. Resets are durations."""
        return tuple(quota for name in ("requests", "tokens") if (quota := _quota(headers, name, seen)) is not None)

    def hint(self, status: int, headers: Mapping[str, str], body: AnyReader | None) -> Hint:
        """By code, type and `retry-after(-ms)`, `x-should-retry`; a spend limit does not go away by waiting."""
        code, kind = body.error if isinstance(body, WholeReader | StreamReader) else ("", "")
        limit = _limit(code, kind, headers) if status == 429 else None
        word = {"true": True, "false": False}.get(headers.get("x-should-retry", "").lower())
        return Hint(limit, retry_after(headers), False if limit == "spend" else word)

    def limit_class(self, model: str) -> str:
        """Limits are per model; a dated snapshot shares its model's."""
        return _DATE.sub("", model)

    def credential(self, key: str) -> tuple[bytes, bytes]:
        """`Authorization: Bearer`."""
        return b"authorization", b"Bearer " + key.encode("ascii")

    def error_body(self, said: Said) -> dict[str, Any]:
        """`{"error": {"message", "type", "param", "code"}}`, and `details` with what we add."""
        usual = ("server_error", "server_error") if said.status >= 500 else ("invalid_request_error", None)
        kind, code = _STATUS.get(said.status, usual)
        details = {"request_id": said.request_id, **said.details}
        error = {"message": said.message, "type": kind, "param": said.details.get("field"), "code": code}
        return {"error": error | {"details": details}}

    def error_event(self, said: Said) -> bytes:
        """One event that both APIs' clients know: chat's look for `error`, the responses' for the type too."""
        body = {"type": "error", "sequence_number": 0, **self.error_body(said)}
        return b"event: error\ndata: " + msgspec.json.encode(body) + b"\n\n"

    def limit_headers(self, left: Mapping[str, tuple[float, float, float]], now: float) -> list[tuple[str, str]]:
        """`x-ratelimit-{limit,remaining,reset}-{requests,tokens}`; a reset is a duration."""
        found = []
        for name in left.keys() & {"requests", "tokens"}:
            limit, remaining, seconds = left[name]
            told = {"limit": str(math.ceil(limit)), "remaining": str(math.floor(remaining)), "reset": written(seconds)}
            found += [(f"x-ratelimit-{what}-{name}", value) for what, value in told.items()]
        return found

    def post(self, prompt: Prompt) -> Post:
        """A chat completion of one turn."""
        system = [{"role": "system", "content": prompt.system}] if prompt.system is not None else []
        body = {
            "model": prompt.model,
            "max_completion_tokens": prompt.max_tokens,
            "messages": [*system, {"role": "user", "content": prompt.text}],
        }
        return Post("/v1/chat/completions", body)

    def generated(self, body: bytes) -> Generated:
        """The first choice; a refusal is its text."""
        said = decoded(body, _Completion, "a chat completion")
        first = said.choices[0] if said.choices else _Choice(_Message())
        texts = tuple(text for text in (first.message.content, first.message.refusal) if text)
        return Generated(said.id, said.model, texts, first.finish_reason)


def _quota(headers: Mapping[str, str], name: str, seen: float) -> Quota | None:
    """One limit, if all of it is there and makes sense."""
    limit, remaining, reset = (
        headers.get(f"x-ratelimit-{what}-{name}", "") for what in ("limit", "remaining", "reset")
    )
    wait = duration(reset)
    numbers = [float(text) for text in (limit, remaining) if text.isascii() and text.isdigit() and len(text) < 16]
    if wait is None or len(numbers) != 2:
        return None
    return Quota(name, numbers[0], numbers[1], seen + wait, seen)


_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_PIECE = re.compile(r"(\d{1,12}(?:\.\d{1,12})?)(h|ms|us|µs|ns|m|s)")


def duration(text: str) -> float | None:
    """Seconds of a Go duration (`1s`, `6m0s`, `120ms`, `1h2m3.5s`); nonsense is None."""
    pieces = _PIECE.findall(text)
    if not pieces or "".join(number + unit for number, unit in pieces) != text:
        return None
    return sum(float(number) * _UNITS[unit] for number, unit in pieces)


def written(seconds: float) -> str:
    """Seconds as a Go duration, rounded up to milliseconds."""
    whole, ms = divmod(math.ceil(seconds * 1000), 1000)
    if not whole:
        return f"{ms}ms" if ms else "0s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    last = f"{rest}.{ms:03}".rstrip("0").rstrip(".") if ms else str(rest)
    return (f"{hours}h" if hours else "") + (f"{minutes}m" if hours or minutes else "") + f"{last}s"


def _limit(code: str, kind: str, headers: Mapping[str, str]) -> str:
    """Which limit, of `catalog.LIMITS_429`: by code, by the error's type, else by what is used up."""
    if code in SPEND or kind in SPEND:
        return "spend"
    for name in ("requests", "tokens"):
        if kind == name or headers.get(f"x-ratelimit-remaining-{name}") == "0":
            return name
    return "unknown"
