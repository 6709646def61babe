"""/v1/messages/batches: kept in memory, worked off after a short, configurable time."""

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import msgspec
from aiohttp import web

from service.simulator import generate, messages, models, request
from service.simulator.call import Call, Simulator
from service.simulator.errors import ApiError, invalid, not_found, payload
from service.simulator.limits import rfc3339
from service.simulator.prompt_cache import InputUsage
from service.simulator.request import BatchItem, BatchRequest, Request
from service.simulator.truth import Billed, Line

_DAY = 86_400.0
_MAX_REQUESTS = 100_000  # Message Batches page
_YIELD_EVERY = 50


@dataclass
class Batch:
    """One batch: what was asked, and the result lines once they exist."""

    id: str
    owner: str
    created: float
    items: list[BatchItem]
    version: str
    base_url: str
    counts: Counter[str] = field(default_factory=Counter)
    results: list[bytes] = field(default_factory=list)
    cancelled: float | None = None
    ended: float | None = None

    def shown(self) -> dict[str, object]:
        """The batch as the API shows it; its counts stay at zero until it has ended."""
        status = "ended" if self.ended else "canceling" if self.cancelled else "in_progress"
        counts = {name: self.counts[name] for name in ("succeeded", "errored", "canceled", "expired")}
        if not self.ended:
            counts = dict.fromkeys(counts, 0)
        return {
            "id": self.id,
            "type": "message_batch",
            "processing_status": status,
            "request_counts": {"processing": 0 if self.ended else len(self.items), **counts},
            "created_at": rfc3339(int(self.created)),
            "expires_at": rfc3339(int(self.created + _DAY)),
            "ended_at": self.ended and rfc3339(int(self.ended)),
            "cancel_initiated_at": self.cancelled and rfc3339(int(self.cancelled)),
            "archived_at": None,
            "results_url": f"{self.base_url}/v1/messages/batches/{self.id}/results" if self.ended else None,
        }


class Batches:
    """The batches of all keys and the handlers that serve them."""

    def __init__(self, sim: Simulator) -> None:
        self._sim = sim
        self._batches: dict[str, Batch] = {}
        self._work: set[asyncio.Task[None]] = set()

    async def create(self, call: Call) -> web.StreamResponse:
        """Accept a batch and start on it."""
        call.line.kind = "batch"
        items = request.decode(call.body, BatchRequest).requests
        _check(items)
        host = f"{call.request.scheme}://{call.request.host}"
        version = call.request.headers["anthropic-version"]
        now = self._sim.clock.time()
        batch = Batch(generate.new_id("msgbatch_01"), call.line.key_hash, now, items, version, host)
        self._batches[batch.id] = batch
        task = asyncio.create_task(self._process(batch, call))
        self._work.add(task)
        task.add_done_callback(self._work.discard)
        return call.answer(batch.shown())

    async def list(self, call: Call) -> web.StreamResponse:
        """One page of the key's batches, newest first."""
        mine = [batch.shown() for batch in reversed(self._batches.values()) if batch.owner == call.line.key_hash]
        return call.answer(models.page(mine, dict(call.request.query)))

    async def retrieve(self, call: Call) -> web.StreamResponse:
        """One batch."""
        return call.answer(self._find(call).shown())

    async def cancel(self, call: Call) -> web.StreamResponse:
        """Cancel what has not been worked off; a batch that has ended stays as it is."""
        batch = self._find(call)
        if batch.ended is None and batch.cancelled is None:
            batch.cancelled = self._sim.clock.time()
        return call.answer(batch.shown())

    async def delete(self, call: Call) -> web.StreamResponse:
        """Forget a batch that has ended; 400 before."""
        batch = self._find(call)
        if batch.ended is None:
            raise invalid("A message batch can only be deleted once it has ended; cancel it first")
        del self._batches[batch.id]
        return call.answer({"id": batch.id, "type": "message_batch_deleted"})

    async def results(self, call: Call) -> web.StreamResponse:
        """The results as JSON lines; 400 before the batch has ended."""
        batch = self._find(call)
        if batch.ended is None:
            raise invalid("The results are not there until the batch has ended")
        call.line.status = 200
        response = web.StreamResponse(headers={**call.response_headers(), "content-type": "application/x-jsonl"})
        await response.prepare(call.request)
        call.line.first_byte = self._sim.clock.time()
        for line in batch.results:
            await response.write(line)
        await response.write_eof()
        return response

    async def close(self, _: web.Application) -> None:
        """Stop working, when the application ends."""
        for task in self._work:
            task.cancel()

    def _find(self, call: Call) -> Batch:
        batch = self._batches.get(call.request.match_info["id"])
        if batch is None or batch.owner != call.line.key_hash:
            raise not_found("Message Batch not found")
        return batch

    async def _process(self, batch: Batch, call: Call) -> None:
        await self._sim.clock.sleep(self._sim.config.batch_seconds)
        for number, item in enumerate(batch.items):
            if number % _YIELD_EVERY == 0:
                await asyncio.sleep(0)
            result = {"type": "canceled"} if batch.cancelled else self._result(batch, call, item)
            batch.counts[str(result["type"])] += 1
            batch.results.append(msgspec.json.encode({"custom_id": item.custom_id, "result": result}) + b"\n")
        batch.ended = self._sim.clock.time()

    def _result(self, batch: Batch, call: Call, item: BatchItem) -> dict[str, Any]:
        try:
            asked = request.decode(item.params, Request)
            if asked.stream:
                raise invalid("stream: not supported in batches")
            model = models.find(asked.model)
            request.check(asked, model, batch.version)
        except ApiError as error:
            return {"type": "errored", "error": payload(error.kind, error.message, generate.new_id("req_011C", 20))}
        config = self._sim.config
        rng = generate.seeded(config.seed, bytes(item.params))
        usage = InputUsage(plain=request.count(asked))
        answer = generate.compose(asked, call.scenario, rng, config.seed, config.output_tokens)
        billed = Billed(1, usage.plain, 0, 0, answer.output_tokens, reasoning_output_tokens=answer.thinking_tokens)
        line = Line("", "POST", "", batch.created, key_hash=batch.owner, inference_geo=asked.inference_geo or "global")
        self._sim.truth.bill(line, model.id, "batch", billed, self._sim.clock.time())
        message = messages.finished(messages.opening(asked, model, usage, "batch"), answer)
        return {"type": "succeeded", "message": message}


def _check(items: list[BatchItem]) -> None:
    if not items:
        raise invalid("requests: List should have at least 1 item")
    if len(items) > _MAX_REQUESTS:
        raise invalid(f"requests: List should have at most {_MAX_REQUESTS} items")
    names = Counter(item.custom_id for item in items)
    for index, item in enumerate(items):
        if not 1 <= len(item.custom_id) <= 64:
            raise invalid(f"requests.{index}.custom_id: String should have 1 to 64 characters")
        if names[item.custom_id] > 1:
            raise invalid(f"requests.{index}.custom_id: must be unique within the batch")
