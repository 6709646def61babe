"""A Messages request: decoded into what matters here, checked as the API checks it, its tokens counted.

The stated rule for tokens: one for every four bytes of UTF-8 text, rounded up; an image is 1,500.
"""

import re
from collections.abc import Iterator
from typing import Literal, TypeVar

import msgspec

from service.simulator.errors import invalid
from service.simulator.models import Model

NEW_VERSION = "2026-10-21"
VERSIONS = ("2023-01-01", "2023-06-01", NEW_VERSION)
_IMAGE_BYTES = 6_000


class CacheControl(msgspec.Struct):
    """A mark: keep the prompt up to here."""

    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] = "5m"


class Block(msgspec.Struct, omit_defaults=True):
    """A content block of any kind; what is neither text nor listed here is not looked at."""

    type: str
    text: str = ""
    thinking: str = ""
    content: msgspec.Raw = msgspec.Raw(b"")
    input: msgspec.Raw = msgspec.Raw(b"")
    source: msgspec.Raw = msgspec.Raw(b"")
    citations: msgspec.Raw = msgspec.Raw(b"")
    cache_control: CacheControl | None = None


class Message(msgspec.Struct):
    """One turn."""

    role: Literal["user", "assistant", "system"]
    content: str | list[Block]


class Tool(msgspec.Struct, omit_defaults=True):
    """A tool; one without a schema runs on the server and is never called here."""

    name: str = ""
    type: str | None = None
    description: str = ""
    input_schema: msgspec.Raw = msgspec.Raw(b"")
    cache_control: CacheControl | None = None


class ToolChoice(msgspec.Struct):
    """Whether a tool must be called, and which."""

    type: Literal["auto", "any", "tool", "none"]
    name: str = ""


class Thinking(msgspec.Struct):
    """Whether the model thinks first."""

    type: Literal["adaptive", "enabled", "disabled", "between_tools"]
    budget_tokens: int | None = None


class OutputFormat(msgspec.Struct):
    """The shape that the answer must have."""

    type: str
    schema: msgspec.Raw = msgspec.Raw(b"")


class OutputConfig(msgspec.Struct):
    """Settings of the output; only the format matters here."""

    format: OutputFormat | None = None


class Prompt(msgspec.Struct, kw_only=True):
    """What count_tokens and messages have in common."""

    model: str
    messages: list[Message]
    system: str | list[Block] = ""
    tools: list[Tool] = []
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    cache_control: CacheControl | None = None


class Request(Prompt, kw_only=True):
    """The body of POST /v1/messages."""

    max_tokens: int
    stream: bool | None = False
    stop_sequences: list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None
    inference_geo: str | None = None
    speed: str | None = None


class BatchItem(msgspec.Struct):
    """One request of a message batch."""

    custom_id: str
    params: msgspec.Raw


class BatchRequest(msgspec.Struct):
    """The body of POST /v1/messages/batches."""

    requests: list[BatchItem]


T = TypeVar("T", Prompt, Request, BatchRequest)
_DECODERS: dict[type, msgspec.json.Decoder[object]] = {
    kind: msgspec.json.Decoder(kind) for kind in (Prompt, Request, BatchRequest)
}
_MISSING = re.compile(r"missing required field `(\w+)`")
_PLACE = re.compile(r" - at `\$\.?(.*)`$")


def decode(data: bytes | msgspec.Raw, kind: type[T]) -> T:
    """`data` as `kind`; raises a 400 that names the field, as `messages.0.role`, where it is wrong."""
    try:
        return _DECODERS[kind].decode(data)  # type: ignore[return-value]
    except msgspec.ValidationError as error:
        raise invalid(_explain(str(error))) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise invalid(f"The request body is not valid JSON: {error}") from None


def place(message: str) -> tuple[str, str]:
    """Where and what is wrong in a message of the decoder: `messages[0].role` and the rest; a field that is missing
    is where it should be, and what is wrong is then ""."""
    found = _PLACE.search(message)
    path = found[1] if found else ""
    if missing := _MISSING.search(message):
        return f"{path}.{missing[1]}".removeprefix("."), ""
    return path, _PLACE.sub("", message)


def _explain(message: str) -> str:
    where, what = place(message)
    path = re.sub(r"\[(\w+)\]", r".\1", where)
    what = what.replace("Expected", "Input should be") or "Field required"
    return f"{path}: {what}" if path else what


def check(request: Prompt, model: Model, version: str) -> None:
    """Raise the 400 that the API gives for a request that is well formed but not allowed."""
    if not request.messages:
        raise invalid("messages: at least one message is required")
    if len(request.messages) > 100_000:
        raise invalid("messages: List should have at most 100000 items")
    if request.messages[-1].role == "assistant" and not model.allows["prefill"]:
        raise invalid(
            "messages: This model does not support assistant message prefill. "
            "The conversation must end with a user message."
        )
    forced = request.tool_choice is not None and request.tool_choice.type in ("any", "tool")
    if forced and not model.allows["forced_tools"]:
        raise invalid(f"tool_choice: forcing a tool is not supported on {model.id}")
    if forced and not request.tools:
        raise invalid("tool_choice: may only be specified while providing tools")
    if request.thinking is not None:
        _check_thinking(request, request.thinking, model, forced)
    if isinstance(request, Request):
        _check_output(request, model, version)
    if version == NEW_VERSION:
        _check_new_version(request)


def _check_thinking(request: Prompt, thinking: Thinking, model: Model, forced: bool) -> None:
    if not model.allows[thinking.type]:
        raise invalid(f'thinking.type: "{thinking.type}" is not supported on {model.id}')
    if forced and thinking.type != "disabled":
        raise invalid("thinking: may not be enabled when tool_choice forces tool use")
    if thinking.type != "enabled":
        return
    if thinking.budget_tokens is None:
        raise invalid("thinking.enabled.budget_tokens: Field required")
    if thinking.budget_tokens < 1024:
        raise invalid("thinking.enabled.budget_tokens: Input should be greater than or equal to 1024")
    if isinstance(request, Request) and request.max_tokens <= thinking.budget_tokens:
        raise invalid("max_tokens: must be greater than thinking.budget_tokens")


def _check_output(request: Request, model: Model, version: str) -> None:
    if request.max_tokens < 0:
        raise invalid("max_tokens: Input should be greater than or equal to 0")
    if request.max_tokens > model.max_tokens:
        raise invalid(
            f"max_tokens: {request.max_tokens} > {model.max_tokens}, which is the maximum allowed number of output "
            f"tokens for {model.id}"
        )
    for name in ("temperature", "top_p", "top_k"):
        if getattr(request, name) is not None and (version == NEW_VERSION or not model.allows["sampling"]):
            raise invalid(f"{name}: not supported on {model.id} with anthropic-version {version}")


def _check_new_version(request: Prompt) -> None:
    for index, message in enumerate(request.messages):
        for place, block in enumerate(message.content if isinstance(message.content, list) else ()):
            field = f"messages.{index}.content.{place}"
            if message.role == "assistant" and block.type == "document":
                raise invalid(f"{field}: document blocks are not allowed in assistant messages")
            if message.role == "user" and block.type == "text" and bytes(block.citations) not in (b"", b"[]", b"null"):
                raise invalid(f"{field}.citations: must be empty in user messages")


def parts(request: Prompt) -> Iterator[tuple[str, str | Block | Tool]]:
    """Everything that is counted, with where it stands, in the order in which it is cached."""
    for tool in request.tools:
        yield "tools", tool
    for block in (request.system,) if isinstance(request.system, str) else request.system:
        yield "system", block
    for message in request.messages:
        for item in (message.content,) if isinstance(message.content, str) else message.content:
            yield message.role, item


def size(part: str | Block | Tool) -> int:
    """The bytes that a part counts for."""
    if isinstance(part, str):
        return _length(part)
    if isinstance(part, Tool):
        return _length(part.name) + _length(part.description) + len(bytes(part.input_schema))
    source = _IMAGE_BYTES if part.type == "image" else len(bytes(part.source))
    return _length(part.text) + _length(part.thinking) + len(bytes(part.content)) + len(bytes(part.input)) + source


def _length(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


def tokens(size_in_bytes: int) -> int:
    """The tokens that many bytes of text are."""
    return -(-size_in_bytes // 4)


def count(request: Prompt) -> int:
    """The input tokens of a request, cached or not."""
    return tokens(sum(size(part) for _, part in parts(request)))
