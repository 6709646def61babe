"""Message batches in the flow: their results are put on the books as they pass, and what answers say of batches is noted.

Whatever goes wrong in here, the client's bytes pass as they came.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator

from msgspec.structs import replace
from structlog.typing import FilteringBoundLogger

from observability.catalog import LogEvent
from service.account.batches import BatchBooks, Fetch
from service.account.exchange import Exchange
from service.account.rows import BatchSeen
from service.answer import Answer
from service.upstream.anthropic_batches import Result, ResultsReader, shown

TURN_SECONDS = 0.001
"""How long results are read at a stretch before others have the event loop."""


class Batching:
    """One provider's batches; `operation` is what their calls are. A gateway that keeps no ledger has none of these."""

    def __init__(self, books: BatchBooks, log: FilteringBoundLogger, provider: str, operation: str) -> None:
        self._books, self._log, self._provider, self._operation = books, log, provider, operation

    def watched(self, answer: Answer, exchange: Exchange, batch_id: str) -> Answer:
        """The answer with a batch's results; each is in the journal before the client has all of its line."""
        if not 200 <= answer.status < 300:
            return answer
        fetch = Fetch(
            exchange.request_id,
            exchange.trace_id,
            exchange.route,
            self._provider,
            self._operation,
            batch_id,
            exchange.client,
        )
        encoding = next((v for k, v in answer.headers if k.lower() == b"content-encoding"), b"")
        # A part of the results (206) may be all that somebody wants, but it is not all there is.
        reading = _Reading(self._books, self._log, fetch, encoding.decode("latin-1"), whole=answer.status == 200)
        return replace(answer, body=answer.body.through(reading.through))

    def noted(self, body: bytes) -> None:
        """What a JSON answer says of batches is remembered."""
        try:
            batches, listed = shown(body)
            for batch in batches:
                if batch.deleted:
                    self._books.deleted(self._provider, batch.batch_id)
                    continue
                gone = batch.canceled_at or batch.archived_at
                times = (batch.created_at, batch.expires_at, batch.ended_at, None, gone)
                self._books.seen(BatchSeen(self._provider, batch.batch_id, *times, listed=listed))
        except Exception as error:  # noqa: BLE001 telemetry never raises into a request; the failure itself is logged
            self._log.error(LogEvent.LOG, message="noting a batch failed", exc_info=error)


class _Reading:
    """One answer's results on their way through."""

    def __init__(
        self, books: BatchBooks, log: FilteringBoundLogger, fetch: Fetch, encoding: str, *, whole: bool
    ) -> None:
        self._books, self._log, self._fetch, self._whole = books, log, fetch, whole
        self._reader = ResultsReader(encoding)
        self._failed = False
        self._paused = time.perf_counter()

    async def through(self, chunks: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
        try:
            async for chunk in chunks:
                await self._book(self._reader.feed(chunk))
                yield chunk
            await self._book(self._reader.end())
            self._end()
        finally:
            await chunks.aclose()

    async def _book(self, results: Iterator[Result | None]) -> None:
        if self._failed:
            return
        try:
            for result in results:
                if result is not None:
                    self._books.result(self._fetch, *result)
                if time.perf_counter() - self._paused > TURN_SECONDS:
                    await asyncio.sleep(0)
                    self._paused = time.perf_counter()
        except Exception as error:  # noqa: BLE001 as above; told once, then the rest passes unread
            self._failed = True
            self._log.error(LogEvent.LOG, message="reading a batch's results failed", exc_info=error)

    def _end(self) -> None:
        if self._failed:
            return
        batch, unreadable = self._fetch.batch_id, self._reader.unreadable
        self._books.fetched(self._fetch, unreadable, whole=self._whole)
        if unreadable and self._whole:
            said = f"{unreadable} lines among the results of batch {batch} cannot be read: they are not in the ledger"
            self._log.warning(LogEvent.LOG, message=said, request_id=self._fetch.request_id)
