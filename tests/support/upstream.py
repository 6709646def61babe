"""A scripted TCP upstream in a thread: records every byte that comes and answers with exactly the bytes it is told to."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType


@dataclass(frozen=True)
class Seen:
    """One request as it came off the wire."""

    line: str
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        """The first value of a header, by case-insensitive name."""
        return next((v for k, v in self.headers if k.lower() == name.lower()), None)


Script = Callable[[socket.socket, Seen], None]


def answer(status: str, body: bytes, *headers: str) -> bytes:
    """A whole HTTP/1.1 answer."""
    lines = [f"HTTP/1.1 {status}", f"content-length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def json_answer(body: bytes, status: str = "200 OK") -> Script:
    """A script that answers every request with this JSON."""
    return lambda connection, seen: connection.sendall(answer(status, body, "content-type: application/json"))


def reset(connection: socket.socket) -> None:
    """Close with a TCP RST."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def _more(connection: socket.socket) -> bytes:
    """The next bytes of a body that is not in yet."""
    if not (data := connection.recv(65_536)):
        raise OSError("the client left in the middle of its body")
    return data


class Upstream:
    """Runs `script` for each request; `seen` are all requests so far, `closed` counts connections the peer closed."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.seen: list[Seen] = []
        self.connections = 0
        self.closed = threading.Semaphore(0)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._open: set[socket.socket] = set()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._open.add(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        buffer = b""
        try:
            while True:
                while b"\r\n\r\n" not in buffer:
                    if not (data := connection.recv(65_536)):
                        self.closed.release()
                        return
                    buffer += data
                head, buffer = buffer.split(b"\r\n\r\n", 1)
                lines = head.decode("latin-1").split("\r\n")
                headers = [(k, v.strip()) for k, _, v in (line.partition(":") for line in lines[1:])]
                lower = {k.lower(): v for k, v in headers}
                body, buffer = self._body(connection, lower, buffer)
                seen = Seen(lines[0], headers, body)
                self.seen.append(seen)
                self.script(connection, seen)
        except OSError:
            self.closed.release()
        finally:
            connection.close()

    @staticmethod
    def _body(connection: socket.socket, headers: dict[str, str], buffer: bytes) -> tuple[bytes, bytes]:
        if headers.get("transfer-encoding") == "chunked":
            body = b""
            while True:
                while b"\r\n" not in buffer:
                    buffer += _more(connection)
                size_line, buffer = buffer.split(b"\r\n", 1)
                size = int(size_line, 16)
                while len(buffer) < size + 2:
                    buffer += _more(connection)
                body, buffer = body + buffer[:size], buffer[size + 2 :]
                if size == 0:
                    return body, buffer
        length = int(headers.get("content-length", "0"))
        while len(buffer) < length:
            buffer += _more(connection)
        return buffer[:length], buffer[length:]

    def __enter__(self) -> Upstream:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.close()
        for connection in list(self._open):
            connection.close()


class RawUpstream(Upstream):
    """Hands each connection over as it is, before a byte has been read."""

    def __init__(self, handle: Callable[[socket.socket], None]) -> None:
        super().__init__(lambda connection, seen: None)
        self._handle = handle

    def _serve(self, connection: socket.socket) -> None:
        try:
            self._handle(connection)
        except OSError:
            pass
        finally:
            connection.close()
