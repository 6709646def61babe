"""A client connection byte by byte: sends what it is told and reads answers as they come."""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from tests.support.upstream import reset


@dataclass(frozen=True)
class Head:
    """An answer's status and headers (names in lower case, in order)."""

    status: int
    headers: list[tuple[str, str]]

    def get(self, name: str) -> str | None:
        """The first value of a header."""
        return next((v for k, v in self.headers if k == name), None)


class Wire:
    """One TCP connection to `port` on loopback."""

    def __init__(self, port: int, timeout: float = 30.0) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=timeout)
        self._file = self.socket.makefile("rb")
        self._chunked = False
        self._left = 0

    def send(self, data: bytes) -> None:
        """Send all of it."""
        self.socket.sendall(data)

    def request(self, method: str, target: str, body: bytes = b"", *headers: str) -> None:
        """A request with a Content-Length and these further header lines."""
        lines = [f"{method} {target} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}", *headers]
        self.send("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body)

    def ask(self, body: dict[str, Any], *headers: str, target: str = "/v1/messages") -> None:
        """POST a JSON body."""
        self.request("POST", target, json.dumps(body).encode(), "Content-Type: application/json", *headers)

    def head(self) -> Head:
        """The next answer's head. Raises `ConnectionError` when the connection ends instead."""
        while True:
            line = self._file.readline()
            if not line:
                raise ConnectionError("closed before an answer")
            headers = []
            while (field := self._file.readline()) not in (b"\r\n", b""):
                name, _, value = field.decode("latin-1").partition(":")
                headers.append((name.lower(), value.strip()))
            status = int(line.split()[1])
            if status >= 200:
                break
        head = Head(status, headers)
        self._chunked = head.get("transfer-encoding") == "chunked"
        self._left = int(head.get("content-length") or 0)
        return head

    def piece(self) -> bytes:
        """The next chunk of the body, or all of one with a length; empty at its end."""
        if not self._chunked:
            left, self._left = self._left, 0
            return self._file.read(left)
        line = self._file.readline()
        if not line:
            raise ConnectionError("closed in the middle of a body")
        size = int(line, 16)
        data = self._file.read(size)
        if len(data) < size or self._file.readline() != b"\r\n":
            raise ConnectionError("closed in the middle of a chunk")
        return data

    def body(self) -> bytes:
        """The rest of the body."""
        parts = []
        while part := self.piece():
            parts.append(part)
        return b"".join(parts)

    def answer(self) -> tuple[Head, bytes]:
        """A whole answer."""
        head = self.head()
        return head, self.body()

    def ended(self) -> bool:
        """Whether the peer closes (or resets) with nothing more to read."""
        try:
            return self._file.read(1) == b""
        except ConnectionError:
            return True

    def reset(self) -> None:
        """Leave with a TCP RST."""
        self._file.close()
        reset(self.socket)

    def close(self) -> None:
        """Leave with a FIN."""
        self._file.close()
        self.socket.close()

    def __enter__(self) -> Wire:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
