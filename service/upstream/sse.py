"""Server-sent events out of bytes, incrementally: finds where events end and what each one carries. No I/O."""

from __future__ import annotations

import re
from typing import NamedTuple

_ENDS = (b"\n\n", b"\r\n\r\n", b"\r\r")
_END = re.compile(b"|".join(_ENDS))
_LINE = re.compile(rb"\r\n|\n|\r")


class Event(NamedTuple):
    """One event: its `event:` name (empty when it has none) and its `data:` lines joined by newlines."""

    name: bytes
    data: bytes


class Splitter:
    """Cuts a stream at event ends. `feed` returns whole events' bytes; the unfinished rest waits, up to `bound` bytes.

    A rest larger than `bound` is let through unfinished: one huge event must neither be held nor fill memory.
    """

    def __init__(self, bound: int = 65_536) -> None:
        self._bound = bound
        self._rest = b""
        self.mid_event = False
        """Whether what has been let through so far ends inside an event."""

    def feed(self, chunk: bytes) -> bytes:
        """The bytes that may go on now, in order; nothing is changed or lost."""
        data = self._rest + chunk if self._rest else chunk
        if data.endswith(_ENDS):
            self._rest, self.mid_event = b"", False
            return data
        end = max((at + len(mark) for mark in _ENDS if (at := data.rfind(mark)) >= 0), default=0)
        self.mid_event = self.mid_event and not end
        if self.mid_event or len(data) - end > self._bound:
            self.mid_event = True
            end = max(end, len(data.rstrip(b"\r\n")))  # an event's end may have begun
        self._rest = data[end:]
        return data[:end]

    def rest(self) -> bytes:
        """What was held back when the stream ended."""
        rest, self._rest = self._rest, b""
        return rest


class Parser:
    """Whole events out of the same bytes, for reading what they say. Holds at most `bound` bytes of an unfinished event.

    `overflowed` says that an event was larger and has been skipped, unread.
    """

    def __init__(self, bound: int = 8 * 1024 * 1024) -> None:
        self._bound = bound
        self._held = bytearray()
        self._tail = b""
        """The last bytes of the unfinished event, not in `_held`: its end may have begun in them."""
        self._skipping = False
        self.overflowed = False

    @property
    def mid_skip(self) -> bool:
        """Whether the end of an event that is skipped has not come yet."""
        return self._skipping

    def feed(self, chunk: bytes) -> list[Event]:
        """Every event that `chunk` completes; comments and empty events are left out."""
        # An end is in what is new or begins right before it. To look at all that is held with every chunk would take
        # seconds of the event loop for an event of some megabytes.
        data = self._tail + chunk if self._tail else chunk
        parts = data.split(b"\n\n") if b"\r" not in data else _END.split(data)
        rest = parts.pop()
        if parts:
            if self._skipping:
                del parts[0]
            elif self._held:
                parts[0] = bytes(self._held) + parts[0]
                self._held = bytearray()
            self._skipping = False
        self._tail = rest[-3:]
        if not self._skipping:
            self._held += rest[:-3]
        if len(self._held) > self._bound:
            self._skipping = self.overflowed = True
            self._held = bytearray()
        return [event for part in parts if (event := _parse(part)) is not None]


def _parse(block: bytes) -> Event | None:
    name, data = b"", []
    for line in block.split(b"\n") if b"\r" not in block else _LINE.split(block):
        if line.startswith(b"data:"):
            data.append(line[6:] if line[5:6] == b" " else line[5:])
        elif line.startswith(b"event:"):
            name = line[6:].strip()
    return Event(name, b"\n".join(data)) if data else None
