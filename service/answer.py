"""The provider's answer on its way through: status, headers, and a body that ends its call however it ends."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable

import msgspec


class Body:
    """An answer's bytes, to be iterated once or closed. One that nobody began to read ends its call all the same: closing
    a generator that has not started runs none of its code."""

    def __init__(self, chunks: AsyncGenerator[bytes], unread: Callable[[], Awaitable[None]] | None) -> None:
        self._chunks = chunks
        self._unread = unread

    @classmethod
    def of(cls, content: bytes) -> Body:
        """A body that is in, of a call that has ended."""

        async def once() -> AsyncGenerator[bytes]:
            if content:
                yield content

        return cls(once(), None)

    def __aiter__(self) -> AsyncGenerator[bytes]:
        self._unread = None
        return self._chunks

    def through(self, pipe: Callable[[AsyncGenerator[bytes]], AsyncGenerator[bytes]]) -> Body:
        """This body with its chunks led through `pipe`, which must close what it is given."""
        return Body(pipe(self._chunks), self._unread)

    async def aclose(self) -> None:
        """End the call now if it has not ended."""
        unread, self._unread = self._unread, None
        await self._chunks.aclose()
        if unread is not None:
            await unread()


class Answer(msgspec.Struct, frozen=True):
    """The provider's answer: `headers` raw and in order, `body` to be iterated to its end or closed."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: Body
