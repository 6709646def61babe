"""The answer cache in the flow: gives an answer again, and keeps one that has come to a good end. Fails open."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from msgspec.structs import replace

from observability.catalog import Outcome
from service.account.call import Call
from service.account.exchange import Exchange
from service.account.pauses import Pauses
from service.answer import Answer, Body
from service.policy import cache
from service.store.answers import Answers, Kept
from service.upstream.client import Prepared

HEADER = b"x-claude-proxy-cache"
"""On every answer that the cache was asked for: `hit`, `miss` or `bypass`."""
_PIECE = 65_536
_AT_ONCE = 262_144
"""Bytes of a request that are hashed on the event loop: less than a millisecond."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What the cache said; `key` is where the answer is to be kept, None if it is not."""

    result: str
    key: bytes | None
    kept: Kept | None = None


class Caching:
    """One worker's cache in front of one provider."""

    def __init__(self, answers: Answers, pauses: Pauses, provider: str) -> None:
        self._answers, self._pauses, self._provider = answers, pauses, provider

    async def ask(self, exchange: Exchange, call: Call, prepared: Prepared) -> Asked | None:
        """Look a request up; None if requests of its kind are not for the cache."""
        if call.operation is None or not isinstance(prepared.body, bytes):
            return None
        if cache.forbids(prepared.headers):
            asked = Asked("bypass", None)
        else:
            key = await self._key(exchange.client, prepared, prepared.body)
            kept = self._answers.find(key)
            asked = Asked("miss" if kept is None else "hit", key, kept)
        call.cache = asked.result
        self._pauses.cache_asked(exchange.route, asked.result)
        return asked

    async def _key(self, client: str | None, prepared: Prepared, body: bytes) -> bytes:
        asked = (client, self._provider, prepared.method, prepared.target, prepared.headers, body)
        # Hashing 32 MB takes 80 ms, and lets others run meanwhile.
        return cache.key(*asked) if len(body) <= _AT_ONCE else await asyncio.to_thread(cache.key, *asked)

    def again(self, exchange: Exchange, call: Call, kept: Kept) -> Answer:
        """The kept answer; a stream's events come as a stream again. The call ends before its last piece."""

        async def pieces() -> AsyncGenerator[bytes]:
            body, start = kept.body, 0
            while len(body) - start > _PIECE:
                yield body[start : start + _PIECE]
                start += _PIECE
            exchange.end_call(call, Outcome.OK, None)
            yield body[start:]

        async def unread() -> None:
            exchange.end_call(call, Outcome.CLIENT_ABORT, Outcome.CLIENT_ABORT.value)

        exchange.status = 200 if exchange.call is call else None
        age = str(int(self._answers.age(kept))).encode()
        headers = [*kept.headers, (b"age", age), (HEADER, b"hit")]
        return Answer(200, headers, Body(pieces(), unread))

    def keep(self, answer: Answer, call: Call, asked: Asked) -> Answer:
        """The same answer; it is kept once its last byte is out and the call has ended well."""
        marked = replace(answer, headers=[*answer.headers, (HEADER, asked.result.encode())])
        if asked.key is None or answer.status != 200 or call.stand_in is not None:
            return marked  # a stand-in's answer is none to the model asked for: that is asked again
        return replace(
            marked, body=answer.body.through(lambda chunks: self._collected(chunks, answer, call, asked.key))
        )

    async def _collected(
        self, chunks: AsyncGenerator[bytes], answer: Answer, call: Call, key: bytes | None
    ) -> AsyncGenerator[bytes]:
        parts: list[bytes] = []
        size = 0
        try:
            async for chunk in chunks:
                size += len(chunk)
                if size <= self._answers.largest:
                    parts.append(chunk)
                yield chunk
        finally:
            await chunks.aclose()
        if key is not None and size <= self._answers.largest and call.outcome is Outcome.OK:
            headers = [(n, v) for n, v in answer.headers if n.lower() in (b"content-type", b"content-encoding")]
            self._answers.keep(key, tuple(headers), b"".join(parts))
