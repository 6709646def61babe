"""What was said in a call, in the GenAI conventions' shape: messages of parts, whatever the provider's. No I/O.

Read for content capture only (`service.capturing`), and only of calls whose trace is kept.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any

import msgspec

from service.upstream.reading import NOT_OURS

LIMIT = 32 * 1024
"""Bytes of all that is told of a request's messages, of its instructions, or of an answer."""
KEY = 512
"""Characters that a key may be long: as many are left out before a cut, so that no half of one stays there."""
CUT = "…[cut]"
"""Stands at the end of a text that was longer."""

Part = dict[str, Any]
Message = dict[str, Any]
"""`role`, of an answer `finish_reason`, and `parts`: any iterable of them."""
Clean = Callable[[str], str]
"""Takes keys out of a text."""
UNREADABLE = (*NOT_OURS, AttributeError, LookupError, OverflowError, TypeError)
"""What reading a body raises that is not the API's: not JSON, not the shape, or not what stands in it as a rule."""


def text(said: object) -> Part:
    """Words."""
    return {"type": "text", "content": said if isinstance(said, str) else ""}


def reasoning(said: object) -> Part:
    """A model's thoughts."""
    return text(said) | {"type": "reasoning"}


def tool_call(call_id: object, name: object, arguments: object) -> Part:
    """What a model wants done; arguments in a string are told as the JSON that they are."""
    return _known({"type": "tool_call", "id": call_id, "name": name or "", "arguments": parsed(arguments)})


def tool_result(call_id: object, response: object, name: object = None) -> Part:
    """What came of it."""
    return _known({"type": "tool_call_response", "id": call_id, "name": name}) | {"response": response}


def other(kind: object) -> Part:
    """An image, a file, whatever else: only that it was there."""
    return {"type": kind if isinstance(kind, str) and kind else "unknown"}


def answer(parts: Iterable[Part], reason: object) -> Message:
    """A message of the model's; one without a reason to end has not ended as it should."""
    return {"role": "assistant", "finish_reason": reason if isinstance(reason, str) else "error", "parts": parts}


def flat(parts: Iterable[Part]) -> str | list[Part]:
    """What a tool gave: its words alone if there is nothing else, so that they can be cut like any text."""
    found = list(parts)
    words = [part["content"] for part in found if part["type"] == "text"]
    return "\n".join(words) if len(words) == len(found) else found


def objects(found: object) -> Iterator[dict[str, Any]]:
    """The objects of what should be a list of them."""
    return (each for each in found if isinstance(each, dict)) if isinstance(found, list) else iter(())


def parsed(arguments: object) -> object:
    """JSON in a string; anything else as it is."""
    try:
        return msgspec.json.decode(arguments) if isinstance(arguments, str) and arguments else arguments
    except NOT_OURS:
        return arguments


def _known(part: Part) -> Part:
    return {key: value for key, value in part.items() if value is not None}


class Content(ABC):
    """How one provider's API says what is said. Raises `UNREADABLE` for what cannot be read, also while iterated."""

    @abstractmethod
    def asked(self, body: bytes) -> tuple[Iterable[Part], Iterable[Message]]:
        """A request's instructions, and its messages, the newest first."""

    @abstractmethod
    def said(self, body: bytes) -> Iterable[Message]:
        """The messages of an answer in one piece."""

    @abstractmethod
    def stream(self) -> Pieces:
        """For a streamed answer."""


class Pieces(ABC):
    """Puts a streamed answer's messages together as it passes. Holds `room` characters at most."""

    def __init__(self, room: int = LIMIT + KEY) -> None:
        self._choices: dict[int, dict[Hashable, tuple[Part, list[str]]]] = {}
        self._reasons: dict[int, str] = {}
        self._left = room

    @abstractmethod
    def _take(self, data: bytes) -> None:
        """What one event adds."""

    def see(self, data: bytes) -> None:
        """One event has come; never raises."""
        try:
            self._take(data)
        except UNREADABLE:
            pass

    def _add(self, choice: int, key: Hashable, part: Part, more: object = "") -> None:
        """More text of the part known by `key`; the first time, `part` is what it is."""
        if self._left <= 0:
            return
        parts = self._choices.setdefault(choice, {})
        if key not in parts:
            parts[key] = part, []
            self._left -= 16
        if isinstance(more, str) and more:
            parts[key][1].append(more[: max(0, self._left)])
            self._left -= len(more)

    def _finish(self, choice: int, reason: object) -> None:
        if isinstance(reason, str):
            self._choices.setdefault(choice, {})
            self._reasons[choice] = reason

    @property
    def is_cut(self) -> bool:
        """Whether more was said than is held."""
        return self._left < 0

    def messages(self, clean: Clean) -> Iterator[Message]:
        """What has been said so far."""
        for choice, parts in sorted(self._choices.items()):
            said = [(part, "".join(texts)) for part, texts in parts.values()]
            if self.is_cut and said:
                part, more = said[-1]
                said[-1] = part, clean(more)[:-KEY] + CUT
            yield answer([_joined(part, more) for part, more in said], self._reasons.get(choice))


_GROWS = {"text": "content", "reasoning": "content", "tool_call": "arguments"}


def _joined(part: Part, more: str) -> Part:
    field = _GROWS.get(part["type"])
    if field is None or not more:
        return part
    return part | {field: part[field] + more if field == "content" else parsed(more)}
