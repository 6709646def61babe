"""Objects out of one JSON array as its bytes come, for streams that are not server-sent events. No I/O."""

from __future__ import annotations

import re

_OUTSIDE = re.compile(rb'["{}]')
_IN_STRING = re.compile(rb'["\\]')


class ArrayCutter:
    """Cuts `[{…}, {…}]` into its objects' bytes. Holds at most `bound` bytes of an unfinished one.

    `overflowed` says that an object was larger; nothing after it is read.
    """

    def __init__(self, bound: int = 8 * 1024 * 1024) -> None:
        self._bound = bound
        self._held = b""
        self._at = 0
        """Up to where `_held` has been looked at."""
        self._depth = 0
        self._in_string = False
        self.overflowed = False

    def feed(self, chunk: bytes) -> list[bytes]:
        """Every object that `chunk` completes; what is between them is left out."""
        if self.overflowed:
            return []
        data, begin, found = self._held + chunk, 0, []
        while (mark := (_IN_STRING if self._in_string else _OUTSIDE).search(data, self._at)) is not None:
            at, sign = mark.start(), mark[0]
            self._at = at + 1
            if sign == b"\\":
                self._at = at + 2  # what is escaped; it may be in the next chunk
            elif sign == b'"':
                self._in_string = not self._in_string
            elif sign == b"{":
                begin = at if self._depth == 0 else begin
                self._depth += 1
            else:
                self._depth = max(0, self._depth - 1)
                if self._depth == 0:
                    found.append(data[begin : at + 1])
                    begin = at + 1
        self._at = max(self._at, len(data))
        self._held = data[begin:] if self._depth else b""
        self._at -= begin if self._depth else len(data)
        if len(self._held) > self._bound:
            self.overflowed, self._held = True, b""
        return found
