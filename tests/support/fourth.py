"""A fourth provider, as somebody would add one: a subclass in a module, and a row where providers are listed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from observability.catalog import Outcome
from service.record import Answered, Quota, Usage
from service.upstream.provider import MB, Generated, Hint, Post, Prompt, Provider, Route, Said, decoded, retry_after
from service.upstream.readers import AnyReader
from service.upstream.reading import BodyReader, Count, EventReader


class Request(msgspec.Struct):
    """What is read of a request."""

    model: str
    stream: bool = False
    max_tokens: int | None = None


class _Reply(msgspec.Struct):
    id: str
    text: str = ""
    tokens_in: Count | None = None
    tokens_out: Count | None = None
    end: bool = False
    error: str | None = None

    @property
    def usage(self) -> Usage:
        """As the API counts."""
        return Usage(self.tokens_in, self.tokens_out)


class StreamReader(EventReader[_Reply]):
    """Its stream."""

    _decoder = msgspec.json.Decoder(_Reply)
    last: _Reply | None = None

    def _see(self, event: _Reply) -> None:
        self.last, self.complete = event, event.end
        self._pacer.saw(event.text)

    @property
    def answered(self) -> Answered:
        """What it has said."""
        usage = self.last.usage if self.last is not None else None
        return Answered(streamed=True, usage=usage, first_chunk=self.first_chunk, pace=self._pacer.pace)


class WholeReader(BodyReader[_Reply]):
    """Its answers."""

    _decoder = msgspec.json.Decoder(_Reply)

    def _kind(self, event: _Reply) -> str | None:
        return event.error

    def _told(self, event: _Reply) -> Answered | None:
        return Answered(response_id=event.id, usage=event.usage)

    def _verdict(self, event: _Reply) -> tuple[Outcome, str | None]:
        return Outcome.OK, None


class Fourth(Provider):
    """The API of a provider that there is not."""

    name = "fourth"
    title = "Fourth"
    prefix = "/fourth"
    routes = (Route("/v9/replies", ("POST",), MB, operation="chat", asks=Request),)
    models = frozenset(("fourth-1",))
    request_id_header = "x-fourth-id"
    key_names = ("FOURTH_API_KEY",)
    credential_headers = frozenset((b"x-fourth-key",))
    base_url = "https://fourth.invalid"
    default_model = "fourth-1"

    def stream_reader(
        self, clock: Callable[[], float], on_first_chunk: Callable[[], None], content_type: str, encoding: str
    ) -> StreamReader:
        """SSE."""
        return StreamReader(clock, on_first_chunk, encoding)

    def whole_reader(self, status: int, *, inference: bool, encoding: str) -> WholeReader:
        """JSON."""
        return WholeReader(status, inference=inference, encoding=encoding)

    def quotas(self, headers: Mapping[str, str], seen: float) -> tuple[Quota, ...]:
        """None."""
        return ()

    def hint(self, status: int, headers: Mapping[str, str], body: AnyReader | None) -> Hint:
        """By header."""
        return Hint("unknown" if status == 429 else None, retry_after(headers))

    def limit_class(self, model: str) -> str:
        """Per model."""
        return model

    def credential(self, key: str) -> tuple[bytes, bytes]:
        """A header of its own."""
        return b"x-fourth-key", key.encode("ascii")

    def error_body(self, said: Said) -> dict[str, Any]:
        """Short."""
        return {"id": said.request_id, "error": said.message}

    def error_event(self, said: Said) -> bytes:
        """The same in a stream."""
        return b"data: " + msgspec.json.encode(self.error_body(said)) + b"\n\n"

    def post(self, prompt: Prompt) -> Post:
        """A reply."""
        return Post("/v9/replies", {"model": prompt.model, "say": prompt.text})

    def generated(self, body: bytes) -> Generated:
        """Its text."""
        reply = decoded(body, _Reply, "a reply")
        return Generated(reply.id, None, (reply.text,), "end" if reply.end else None)
