"""What the gateway asks of a provider's API: one subclass per provider, in a module of its own.

Everything that differs between providers on the wire is behind this: where the usage is, what an error means, which
headers tell the limits, how an error of ours must look. Nothing here does I/O.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeVar

import msgspec

from service.errors import InvalidAnswer
from service.record import Answered, Quota
from service.upstream.content import Content
from service.upstream.readers import StreamReader as StreamReader
from service.upstream.readers import WholeReader as WholeReader
from service.upstream.waits import retry_after as retry_after


@dataclass(frozen=True, slots=True)
class Hint:
    """What an error answer says about trying again.

    `limit` is one of `catalog.LIMITS_429` on a 429 (or what would have been one, had the stream not begun), else None; `retry_after` is in seconds, as the provider asked;
    `should_retry` is its own word (`x-should-retry`), None without one.
    """

    limit: str | None = None
    retry_after: float | None = None
    should_retry: bool | None = None


@dataclass(frozen=True, slots=True)
class Said:
    """An error of ours on its way to the client: `type` is Anthropic's wire type, `details` what we add (trace id, field)."""

    status: int
    type: str
    message: str
    details: Mapping[str, Any]
    request_id: str | None
    retry_after: float | None = None
    """Seconds after which to come back."""


MB = 1024 * 1024


class Asked(Protocol):
    """The fields of a request's body that are decoded here: a `msgspec.Struct`, so that they are checked too."""

    @property
    def model(self) -> str | None: ...
    @property
    def stream(self) -> bool: ...
    @property
    def max_tokens(self) -> int | None: ...


@dataclass(frozen=True, slots=True)
class Route:
    """One path of an API, in Flask's syntax and without the provider's prefix; `<model>` in it names the model.

    `limit` bounds the body in bytes (the API's own limit); `operation` is set for inference; `asks` is what is decoded of
    the body, None where it is not looked at. `streams`: the path itself asks for a stream. `streamed`: the body is passed
    through as it comes, never held, so it can be sent only once. `large`: so is the answer. `links`: the answer says where
    results are, and that must be here. `buys`: a POST orders inference that is paid for later.
    """

    rule: str
    methods: tuple[str, ...]
    limit: int = 0
    operation: str | None = None
    asks: type[Asked] | None = None
    streams: bool = False
    streamed: bool = False
    large: bool = False
    links: bool = False
    buys: bool = False


@dataclass(frozen=True, slots=True)
class Prompt:
    """What `/generate` asks of any provider."""

    text: str
    model: str
    max_tokens: int
    system: str | None = None


@dataclass(frozen=True, slots=True)
class Post:
    """A POST that asks it in the provider's own words: path, body, and the headers that the API wants beside the key."""

    target: str
    body: Any
    headers: tuple[tuple[bytes, bytes], ...] = ()


@dataclass(frozen=True, slots=True)
class Generated:
    """The answer to a `Prompt`; `stop_reason` is the provider's own word, `id` None where it gave none."""

    id: str | None
    model: str | None
    texts: tuple[str, ...]
    stop_reason: str | None


class _ErrorSaid(msgspec.Struct):
    message: str = ""


class _ErrorBody(msgspec.Struct):
    error: _ErrorSaid


T = TypeVar("T")


def decoded(body: bytes, kind: type[T], what: str) -> T:
    """An answer in its shape. Raises `InvalidAnswer`, saying `what` it is not."""
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise InvalidAnswer(f"the provider's answer is not {what}") from None


class Provider(ABC):
    """One provider's API: a subclass in a module of its own, and a row in `providers.PROVIDERS`."""

    name: ClassVar[str]
    """`gen_ai.provider.name`."""
    title: ClassVar[str]
    """As people call it."""
    prefix: ClassVar[str]
    """Path prefix of its native routes, e.g. `/anthropic`; also part of its settings' names."""
    bare: ClassVar[bool] = False
    """Whether its routes are served without the prefix too."""
    routes: ClassVar[tuple[Route, ...]]
    """What of the API is served."""
    models: ClassVar[frozenset[str]]
    """Models that get a metric label of their own."""
    request_id_header: ClassVar[str]
    """Answer header with the provider's id of the request."""
    key_names: ClassVar[tuple[str, ...]]
    """Variables that hold our key, the first one the main one."""
    credential_headers: ClassVar[frozenset[bytes]]
    """Request headers with which a client opens it: where clients bring their own, no other provider's goes there."""
    base_url: ClassVar[str]
    """Where the API is, without the version."""
    default_model: ClassVar[str]
    """Of `/generate` when the request names none."""
    default_model_setting: ClassVar[str] = ""
    """The variable for it, where it has a name of its own."""
    operation: ClassVar[str] = "chat"
    """`gen_ai.operation.name` of its inference."""
    content: ClassVar[Content | None] = None
    """Reads what is said, for content capture; None: that cannot be had."""

    @abstractmethod
    def stream_reader(
        self, clock: Callable[[], float], on_first_chunk: Callable[[], None], content_type: str, encoding: str
    ) -> StreamReader:
        """For a streamed answer. `clock` gives seconds since the call began; `on_first_chunk` is told of the first content."""

    @abstractmethod
    def whole_reader(self, status: int, *, inference: bool, encoding: str) -> WholeReader:
        """For an answer in one piece."""

    @abstractmethod
    def quotas(self, headers: Mapping[str, str], seen: float) -> tuple[Quota, ...]:
        """Every limit that the answer's headers, come at Unix time `seen`, describe completely."""

    @abstractmethod
    def hint(self, status: int, headers: Mapping[str, str], body: WholeReader | StreamReader | None) -> Hint:
        """What an error answer says about trying again, or a stream that opens with an error of that `status`."""

    def told(self, answered: Answered, headers: Mapping[str, str]) -> Answered:
        """What an answer says of itself, with what only its headers say."""
        return answered

    @abstractmethod
    def limit_class(self, model: str) -> str:
        """The models that share one rate limit with `model` have the same class."""

    def lane(self, asked: Asked | None) -> str:
        """What sets a request apart from those that share its model's limits, because it has limits of its own; else
        empty. Its quotas' dimensions begin with the lane's name."""
        return ""

    @abstractmethod
    def credential(self, key: str) -> tuple[bytes, bytes]:
        """The header that carries our key."""

    @abstractmethod
    def error_body(self, said: Said) -> dict[str, Any]:
        """An error of ours as the provider would write it."""

    @abstractmethod
    def error_event(self, said: Said) -> bytes:
        """The same as an event of its stream."""

    def limit_headers(self, left: Mapping[str, tuple[float, float, float]], now: float) -> list[tuple[str, str]]:
        """What is left of a client's own limits (limit, remaining, seconds until it is all there), at Unix time `now`."""
        return []

    def with_model(self, target: str, body: bytes | object, model: str) -> tuple[str, bytes] | None:
        """Target and body of the same request to another model, every other byte of a value kept; None where the body
        cannot be read (it is compressed, or no JSON object)."""
        try:
            fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw]) if isinstance(body, bytes) else {}
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        if "model" not in fields:
            return None
        return target, msgspec.json.encode(fields | {"model": msgspec.Raw(msgspec.json.encode(model))})

    @abstractmethod
    def post(self, prompt: Prompt) -> Post:
        """The request that asks `prompt`, not streamed."""

    @abstractmethod
    def generated(self, body: bytes) -> Generated:
        """The answer to it. Raises `InvalidAnswer` for a body that is none."""

    def error_message(self, body: bytes) -> str:
        """What an error answer says; empty when it says nothing."""
        try:
            said = msgspec.json.decode(body, type=_ErrorBody | list[_ErrorBody])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return ""
        said = said[0] if isinstance(said, list) and said else said
        return said.error.message if isinstance(said, _ErrorBody) else ""

    def is_stream(self, content_type: str, *, asked: bool = False) -> bool:
        """Whether an answer of this content type is a stream that `stream_reader` reads; `asked`: the request wanted one."""
        return content_type.startswith("text/event-stream")
