"""Content capture in the flow: what is said in a call is held while it runs, and told by its span if that is kept.

Off by default. Held are the request's body and, of a stream, the text put together so far; decoding waits until the call
ends, and then reads no more than it tells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import msgspec

from observability.catalog import Attr
from observability.tracing import Attributes
from service.account.call import Call
from service.upstream.client import Prepared
from service.upstream.content import CUT, KEY, LIMIT, UNREADABLE, Clean, Content, Message, Part, Pieces
from service.upstream.provider import StreamReader, WholeReader

MOST = 4 * 1024 * 1024
"""Bytes of a body that is read."""
_VALUES = 50_000
"""JSON values in a body that is read: decoding many small ones would hold the event loop."""


class Capturing:
    """Of one provider's calls."""

    def __init__(self, content: Content, clean: Clean) -> None:
        self._content, self._clean = content, clean

    def sending(self, call: Call, prepared: Prepared) -> None:
        """An attempt is about to be made; what an attempt before was answered is forgotten."""
        if call.operation is not None and isinstance(prepared.body, bytes):
            call.content = _Said(self._content, self._clean, prepared.body)

    def stream(self, call: Call, reader: StreamReader) -> None:
        """The answer is a stream, and this reads it."""
        if isinstance(call.content, _Said):
            pieces = self._content.stream()
            reader.listener, call.content.pieces = pieces.see, pieces

    def whole(self, call: Call, reader: WholeReader) -> None:
        """The answer comes in one piece, and this reads it."""
        if isinstance(call.content, _Said):
            call.content.reader = reader


class _Said:
    """What was said in one call; when called, tells it as attributes of the call's span."""

    def __init__(self, content: Content, clean: Clean, body: bytes) -> None:
        self._content, self._clean = content, clean
        self._body = body if len(body) <= MOST else None
        self.pieces: Pieces | None = None
        self.reader: WholeReader | None = None

    def __call__(self) -> Attributes:
        told: dict[str, str | list[str]] = {}
        cut: list[str] = []

        def tell(name: str, fill: Callable[[Sheet], list[Any]], *, is_cut: bool = False) -> None:
            sheet = Sheet(self._clean)
            if found := fill(sheet):
                told[name] = msgspec.json.encode(found).decode()
            if is_cut or sheet.is_cut:
                cut.append(name)

        with suppress(*UNREADABLE):
            body = self._body
            instructions, asked = self._content.asked(body) if body is not None and is_small(body) else ((), None)
            tell(Attr.SYSTEM_INSTRUCTIONS, lambda sheet: sheet.parts(instructions))
            tell(Attr.INPUT_MESSAGES, lambda sheet: sheet.messages(asked or ())[::-1], is_cut=asked is None)
        with suppress(*UNREADABLE):
            answer, is_cut = self._answer()
            tell(Attr.OUTPUT_MESSAGES, lambda sheet: sheet.messages(answer), is_cut=is_cut)
        return told | ({Attr.CONTENT_CUT: cut} if cut else {})

    def _answer(self) -> tuple[Iterable[Message], bool]:
        """The answer's messages, and whether there were more."""
        if self.pieces is not None:
            return self.pieces.messages(self._clean), self.pieces.is_cut
        body = self.reader.body if self.reader is not None else b"{}"
        return (self._content.said(body), False) if is_small(body) else ((), True)


def is_small(body: bytes) -> bool:
    """Whether a body may be decoded on the event loop: a few milliseconds at most."""
    return len(body) <= MOST and body.count(b",") + body.count(b"{") + body.count(b"[") <= _VALUES


class Sheet:
    """Room for `LIMIT` bytes of JSON. Texts are cut to fit; in the place of anything else that does not stands `CUT`."""

    def __init__(self, clean: Clean) -> None:
        self._clean = clean
        self._left = LIMIT - 2
        self.is_cut = False
        """Whether something did not fit."""

    def messages(self, messages: Iterable[Message]) -> list[Any]:
        """As many as fit, in the order given."""
        kept: list[Any] = []
        for message in messages:
            head = {key: self._cleaned(value) for key, value in message.items() if key != "parts"}
            self._left -= len(msgspec.json.encode(head)) + len(',"parts":[],')
            if self._left <= 0:
                self.is_cut = True
                break
            kept.append(head | {"parts": self.parts(message["parts"])})
        return kept

    def parts(self, parts: Iterable[Part]) -> list[Any]:
        """As many as fit."""
        kept: list[Any] = []
        for part in parts:
            encoded = self._encoded(part)
            if not encoded:
                break
            self._left -= len(encoded) + 1
            kept.append(msgspec.Raw(encoded))
        return kept

    def _encoded(self, part: Part) -> bytes:
        """As much of a part as fits; nothing, if not even its name does."""
        part = {key: self._cleaned(value) if self._may_fit(value) else CUT for key, value in part.items()}
        encoded = msgspec.json.encode(part)
        if len(encoded) < self._left:
            return encoded
        self.is_cut = True
        for field in ("content", "response"):
            room = self._left - len(msgspec.json.encode(part | {field: CUT})) - 1
            if isinstance(words := part.get(field), str) and room > 0:
                words = words.removesuffix(CUT)
                while (size := len(msgspec.json.encode(words)) - 2) > room:
                    words = words[: len(words) * room // size]
                return msgspec.json.encode(part | {field: words + CUT})
        bare = msgspec.json.encode({key: part[key] for key in ("type", "id", "name") if key in part})
        return bare if len(bare) < self._left else b""

    def _may_fit(self, value: object) -> bool:
        """Whether a value is worth a closer look: a tool's arguments are told whole or not at all."""
        fits = not isinstance(value, dict | list) or len(msgspec.json.encode(value)) < self._left
        self.is_cut = self.is_cut or not fits
        return fits

    def _cleaned(self, value: Any) -> Any:
        """A value without keys; its texts no longer than would fit, and none ends with half a key."""
        if isinstance(value, str):
            if len(value) <= self._left:
                return self._clean(value)
            self.is_cut = True
            return self._clean(value[: max(0, self._left) + KEY])[:-KEY] + CUT
        if isinstance(value, dict):
            return {self._cleaned(key): self._cleaned(each) for key, each in value.items()}
        return [self._cleaned(each) for each in value] if isinstance(value, list) else value
