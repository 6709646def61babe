"""Gemini's API (the Developer API): its models, what its errors ask for, how an error of ours must look.

Sources: the SDK's types (google-genai 3.4.0), google.rpc's error details.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote, unquote

import msgspec
from msgspec.structs import replace

from service.record import Answered, Quota
from service.upstream.gemini_answers import StreamReader, WholeReader
from service.upstream.gemini_content import GeminiContent
from service.upstream.provider import MB, Generated, Hint, Post, Prompt, Provider, Route, Said, decoded, retry_after
from service.upstream.readers import AnyReader

MODELS = frozenset(
    {
        "gemini-4-argon", "gemini-3.8-flash", "gemini-3.7-flash", "gemini-3.6-flash", "gemini-3.5-flash",
        "gemini-3.1-pro-preview", "gemini-3-flash-preview", "gemini-2.5-pro", "gemini-2.5-flash",
        "gemini-2.5-flash-lite", "gemini-flash-latest", "gemini-pro-latest",
    }
)  # fmt: skip
"""Those with a price in genai-prices 0.2.3: the API has no closed list."""

LIMIT = 100 * MB
"""Of a request with inline data."""
VERSIONS = ("v1", "v1beta")
"""The SDK's default since 3.0, and the one before it, where preview features are."""
_STATUS = {
    400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "NOT_FOUND",
    405: "UNIMPLEMENTED", 408: "DEADLINE_EXCEEDED", 413: "INVALID_ARGUMENT", 415: "INVALID_ARGUMENT",
    429: "RESOURCE_EXHAUSTED", 499: "CANCELLED", 503: "UNAVAILABLE", 504: "DEADLINE_EXCEEDED",
}  # fmt: skip
"""google.rpc.Code of the statuses that our own errors have; any other is INTERNAL."""
_RPC = "type.googleapis.com/google.rpc."
_MODEL_IN_PATH = re.compile(r"(?<=/models/)[^/:?]+(?=:)")


class Request(msgspec.Struct, rename="camel"):
    """The only field of a request's body that is decoded here, and leniently: the API takes numbers as text too."""

    generation_config: Any = None

    @property
    def model(self) -> str | None:
        """It is in the path."""
        return None

    @property
    def stream(self) -> bool:
        """It is in the path."""
        return False

    @property
    def max_tokens(self) -> int | None:
        """`maxOutputTokens`."""
        config = self.generation_config
        found = config.get("maxOutputTokens") if isinstance(config, dict) else None
        return found if isinstance(found, int) and not isinstance(found, bool) else None


class _Part(msgspec.Struct):
    text: str | None = None
    thought: bool = False


class _Content(msgspec.Struct):
    parts: list[_Part] = []


class _Candidate(msgspec.Struct, rename="camel"):
    content: _Content | None = None
    finish_reason: str | None = None


class _Feedback(msgspec.Struct, rename="camel"):
    block_reason: str | None = None


class _Answer(msgspec.Struct, rename="camel"):
    candidates: list[_Candidate] = []
    prompt_feedback: _Feedback | None = None
    response_id: str | None = None
    model_version: str | None = None


def _routes(version: str) -> tuple[Route, ...]:
    model = f"/{version}/models/<model>"
    return (
        Route(f"{model}:generateContent", ("POST",), LIMIT, operation=Gemini.operation, asks=Request),
        Route(
            f"{model}:streamGenerateContent", ("POST",), LIMIT, operation=Gemini.operation, asks=Request, streams=True
        ),
        Route(f"{model}:countTokens", ("POST",), LIMIT),
        Route(f"/{version}/models", ("GET",)),
        Route(f"/{version}/models/<model_id>", ("GET",)),
    )


class Gemini(Provider):
    """Gemini, with an API key."""

    name = "gcp.gemini"
    title = "Gemini"
    prefix = "/gemini"
    models = MODELS
    request_id_header = "x-goog-request-id"  # not documented, and mostly not there
    key_names = ("GEMINI_API_KEY", "GOOGLE_API_KEY")
    credential_headers = frozenset((b"x-goog-api-key", b"authorization"))
    base_url = "https://generativelanguage.googleapis.com"
    default_model = "gemini-3.8-flash"
    content = GeminiContent()
    operation = "generate_content"

    def stream_reader(
        self, clock: Callable[[], float], on_first_chunk: Callable[[], None], content_type: str, encoding: str
    ) -> StreamReader:
        """For SSE, or for the JSON array that comes without `alt=sse`."""
        return StreamReader(clock, on_first_chunk, encoding, array=not super().is_stream(content_type))

    def whole_reader(self, status: int, *, inference: bool, encoding: str) -> WholeReader:
        """For a JSON answer."""
        return WholeReader(status, inference=inference, encoding=encoding)

    def is_stream(self, content_type: str, *, asked: bool = False) -> bool:
        """SSE; and where a stream was asked for, a JSON array too."""
        return super().is_stream(content_type) or (asked and content_type.startswith("application/json"))

    def quotas(self, headers: Mapping[str, str], seen: float) -> tuple[Quota, ...]:
        """None: the API tells no headroom."""
        return ()

    def hint(self, status: int, headers: Mapping[str, str], body: AnyReader | None) -> Hint:
        """By `QuotaFailure` and `RetryInfo`; a quota of the day comes back tomorrow."""
        asked = retry_after(headers)
        if not isinstance(body, WholeReader | StreamReader):
            return Hint("unknown" if status == 429 else None, asked)
        delay = body.retry_delay
        limit = _limit(body.quota_ids) if status == 429 else None
        daily = any("PerDay" in quota for quota in body.quota_ids)
        return Hint(limit, delay if delay is not None else asked, False if daily else None)

    def told(self, answered: Answered, headers: Mapping[str, str]) -> Answered:
        """Which tier it was served by, which need not be the one asked for."""
        tier = answered.variant.tier or headers.get("x-gemini-service-tier")
        return answered if tier is None else replace(answered, variant=replace(answered.variant, tier=tier))

    def limit_class(self, model: str) -> str:
        """Quotas are per model."""
        return model

    def credential(self, key: str) -> tuple[bytes, bytes]:
        """`x-goog-api-key`."""
        return b"x-goog-api-key", key.encode("ascii")

    def error_body(self, said: Said) -> dict[str, Any]:
        """`{"error": {"code", "message", "status", "details"}}`; what we add is an `ErrorInfo`, when to return a `RetryInfo`."""
        metadata = {"request_id": said.request_id, **said.details}
        info = {
            "@type": f"{_RPC}ErrorInfo",
            "reason": said.type.upper(),
            "domain": "claude-proxy",
            "metadata": {name: str(value) for name, value in metadata.items() if value is not None},
        }
        details: list[dict[str, Any]] = [info]
        if said.retry_after is not None:
            details.append({"@type": f"{_RPC}RetryInfo", "retryDelay": f"{said.retry_after:g}s"})
        status = _STATUS.get(said.status, "INTERNAL")
        return {"error": {"code": said.status, "message": said.message, "status": status, "details": details}}

    def error_event(self, said: Said) -> bytes:
        """The same as an SSE event without a name, as all of them."""
        return b"data: " + msgspec.json.encode(self.error_body(said)) + b"\r\n\r\n"

    def with_model(self, target: str, body: bytes | object, model: str) -> tuple[str, bytes] | None:
        """The model is in the path."""
        if not isinstance(body, bytes) or not _MODEL_IN_PATH.search(target):
            return None
        return _MODEL_IN_PATH.sub(lambda _: quote(model, safe=""), target, count=1), body

    def post(self, prompt: Prompt) -> Post:
        """A `generateContent` of one turn."""
        body: dict[str, Any] = {
            "contents": [{"role": "user", "parts": [{"text": prompt.text}]}],
            "generationConfig": {"maxOutputTokens": prompt.max_tokens},
        }
        if prompt.system is not None:
            body["systemInstruction"] = {"parts": [{"text": prompt.system}]}
        model = quote(unquote(prompt.model).removeprefix("models/"), safe="")
        return Post(f"/{VERSIONS[0]}/models/{model}:generateContent", body)

    def generated(self, body: bytes) -> Generated:
        """The text parts that are no thoughts; the stop reason of a blocked prompt is why it was blocked."""
        answer = decoded(body, _Answer, "a generateContent answer")
        first = answer.candidates[0] if answer.candidates else _Candidate()
        parts = first.content.parts if first.content is not None else []
        texts = tuple(part.text for part in parts if part.text is not None and not part.thought)
        blocked = answer.prompt_feedback.block_reason if answer.prompt_feedback is not None else None
        return Generated(answer.response_id, answer.model_version, texts, first.finish_reason or blocked)


Gemini.routes = tuple(route for version in VERSIONS for route in _routes(version))


def _limit(quota_ids: tuple[str, ...]) -> str:
    """Which limit, of `catalog.LIMITS_429`: GenerateContentInputTokensPerModelPerMinute, GenerateRequestsPerDay…."""
    for quota in quota_ids:
        if "InputToken" in quota:
            return "input_tokens"
        if "Request" in quota:
            return "requests"
    return "unknown"
