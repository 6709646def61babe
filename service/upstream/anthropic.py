"""Claude's API: its models and limits, what its errors ask for, how an error of ours must look.

Sources: the SDK's types (anthropic 2.12.0), the API's pages on errors and rate limits.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from service.record import Quota
from service.upstream.anthropic_answers import StreamReader as StreamReader
from service.upstream.anthropic_answers import WholeReader as WholeReader
from service.upstream.anthropic_content import ClaudeContent
from service.upstream.outcomes import limit_of_429
from service.upstream.provider import (
    MB,
    Asked,
    Generated,
    Hint,
    Post,
    Prompt,
    Provider,
    Route,
    Said,
    decoded,
    retry_after,
)
from service.upstream.readers import AnyReader

NAME = "anthropic"
VERSION = "2023-06-01"
"""`anthropic-version` that our own calls (`/generate`) send: the one that takes every model and parameter."""

MODELS = frozenset(
    {
        "claude-fable-5-2", "claude-mythos-5-2", "claude-haiku-5-5", "claude-sonnet-5-5", "claude-fable-5-1",
        "claude-opus-5-5", "claude-mythos-5-1", "claude-sonnet-5", "claude-fable-5", "claude-mythos-5", "claude-opus-5",
        "claude-opus-4-8", "claude-opus-4-7", "claude-mythos-preview", "claude-opus-4-6", "claude-sonnet-4-6",
        "claude-haiku-4-5", "claude-haiku-4-5-20251001", "claude-opus-4-5", "claude-opus-4-5-20251101",
        "claude-sonnet-4-5", "claude-sonnet-4-5-20250929",
    }
)  # fmt: skip
"""The SDK 2.12.0 `Model` literal: the models that get a metric label of their own."""


_FAST = "fast"
_DIMENSIONS = {
    **{f: f"anthropic-ratelimit-{f.replace('_', '-')}-" for f in ("requests", "input_tokens", "output_tokens")},
    **{f"{_FAST}_{f}_tokens": f"anthropic-{_FAST}-{f}-tokens-" for f in ("input", "output")},
}


def quotas(headers: Mapping[str, str], seen: float) -> tuple[Quota, ...]:
    """Every limit that the answer's headers, come at Unix time `seen`, describe completely; what makes no sense is left out."""
    found = []
    for name, prefix in _DIMENSIONS.items():
        if (limit := headers.get(prefix + "limit")) is None:
            continue
        try:
            reset = datetime.fromisoformat(headers[prefix + "reset"]).timestamp()
            found.append(Quota(name, _number(limit), _number(headers[prefix + "remaining"]), reset, seen))
        except (KeyError, ValueError, OverflowError):
            continue
    return tuple(found)


def _number(text: str) -> float:
    """Of a header. Raises `ValueError` for what is none, or absurd."""
    if not (text.isascii() and text.isdigit() and len(text) < 16):
        raise ValueError("not a number")
    return float(text)


_POOLED = re.compile(r"(?:claude-)?(opus|sonnet)-4|(?:claude-)?(fable|mythos)-5")


class Request(msgspec.Struct):
    """The only fields of a request's body that are decoded here."""

    model: str
    stream: bool = False
    max_tokens: int | None = None
    speed: Any = None


class _Text(msgspec.Struct):
    type: str
    text: str = ""


class _Message(msgspec.Struct):
    id: str
    model: str
    content: list[_Text]
    stop_reason: str | None = None


class Anthropic(Provider):
    """Claude, first party."""

    name = NAME
    title = "Claude"
    prefix = "/anthropic"
    bare = True
    routes = (
        Route("/v1/messages", ("POST",), 32 * MB, operation="chat", asks=Request),
        Route("/v1/messages/count_tokens", ("POST",), 32 * MB, asks=Request),
        Route("/v1/messages/batches", ("GET", "POST"), 256 * MB, streamed=True, links=True, buys=True),
        Route("/v1/messages/batches/<batch_id>", ("GET", "DELETE"), links=True),
        Route("/v1/messages/batches/<batch_id>/cancel", ("POST",), MB, links=True),
        Route("/v1/messages/batches/<batch_id>/results", ("GET",), large=True),
        Route("/v1/models", ("GET",)),
        Route("/v1/models/<model_id>", ("GET",)),
        Route("/v1/files", ("GET", "POST"), 500 * MB, streamed=True),
        Route("/v1/files/<file_id>", ("GET", "DELETE")),
        Route("/v1/files/<file_id>/content", ("GET",), large=True),
    )
    models = MODELS
    request_id_header = "request-id"
    key_names = ("ANTHROPIC_API_KEY", "CLAUDE_API_KEY")
    credential_headers = frozenset((b"x-api-key", b"authorization"))
    base_url = "https://api.anthropic.com"
    default_model = "claude-opus-5-5"
    content = ClaudeContent()
    default_model_setting = "CLAUDE_PROXY_DEFAULT_MODEL"

    def stream_reader(
        self, clock: Callable[[], float], on_first_chunk: Callable[[], None], content_type: str, encoding: str
    ) -> StreamReader:
        """For an SSE answer."""
        return StreamReader(clock, on_first_chunk, encoding)

    def whole_reader(self, status: int, *, inference: bool, encoding: str) -> WholeReader:
        """For a JSON answer."""
        return WholeReader(status, inference=inference, encoding=encoding)

    def quotas(self, headers: Mapping[str, str], seen: float) -> tuple[Quota, ...]:
        """From `anthropic-ratelimit-*` and `anthropic-fast-*`."""
        return quotas(headers, seen)

    def hint(self, status: int, headers: Mapping[str, str], body: AnyReader | None) -> Hint:
        """By `error.details.error_code`, `retry-after(-ms)` and `x-should-retry`."""
        code = body.error_code if isinstance(body, WholeReader | StreamReader) else ""
        limit = limit_of_429(headers, code) if status == 429 else None
        word = {"true": True, "false": False}.get(headers.get("x-should-retry", "").lower())
        return Hint(limit, retry_after(headers), word)

    def limit_class(self, model: str) -> str:
        """Opus 4.x share one pool, so do Sonnet 4.x and the Fable and Mythos 5.x; every other model has its own
        (Rate limits page, October 2026)."""
        found = _POOLED.match(model)
        return found[0].removeprefix("claude-") if found else model

    def lane(self, asked: Asked | None) -> str:
        """Fast mode has limits of its own."""
        return _FAST if isinstance(asked, Request) and asked.speed == _FAST else ""

    def credential(self, key: str) -> tuple[bytes, bytes]:
        """`x-api-key`: every version of the API takes it."""
        return b"x-api-key", key.encode("ascii")

    def error_body(self, said: Said) -> dict[str, Any]:
        """`{"type": "error", "error": {…}, "request_id": …}`."""
        error = {"type": said.type, "message": said.message, "details": said.details}
        return {"type": "error", "error": error, "request_id": said.request_id}

    def error_event(self, said: Said) -> bytes:
        """An SSE `error` event."""
        return b"event: error\ndata: " + msgspec.json.encode(self.error_body(said)) + b"\n\n"

    def limit_headers(self, left: Mapping[str, tuple[float, float, float]], now: float) -> list[tuple[str, str]]:
        """`anthropic-ratelimit-{requests,tokens}-{limit,remaining,reset}`; a reset is RFC 3339, in whole seconds."""
        found = []
        for name in left.keys() & {"requests", "tokens"}:
            limit, remaining, seconds = left[name]
            reset = datetime.fromtimestamp(math.ceil(now + seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            told = {"limit": str(math.ceil(limit)), "remaining": str(math.floor(remaining)), "reset": reset}
            found += [(f"anthropic-ratelimit-{name}-{what}", value) for what, value in told.items()]
        return found

    def post(self, prompt: Prompt) -> Post:
        """A message of one turn."""
        body: dict[str, Any] = {
            "model": prompt.model,
            "max_tokens": prompt.max_tokens,
            "messages": [{"role": "user", "content": prompt.text}],
        }
        if prompt.system is not None:
            body["system"] = prompt.system
        return Post("/v1/messages", body, ((b"anthropic-version", VERSION.encode()),))

    def generated(self, body: bytes) -> Generated:
        """The text blocks."""
        message = decoded(body, _Message, "a message")
        texts = tuple(block.text for block in message.content if block.type == "text")
        return Generated(message.id, message.model, texts, message.stop_reason)
