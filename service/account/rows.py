"""What the journal and the ledger hold of one provider call: a start, known before the call, and a row, known after it.

Money is integer nano-dollars (1e-9 USD), times are Unix seconds, unknown is None and never 0. Entries are written as
arrays: new fields go to the end with a default, so that workers of two versions can read each other's.
"""

from __future__ import annotations

import hashlib
import random
import time

import msgspec

from observability.catalog import Outcome
from service.record import Certainty, Cost, Record, Usage

BATCH_RESULT = "batch_result"
"""`kind` of a row for one result of a message batch; of the other rows it is a `record.Kind`."""
LONGEST_TEXT = 256
"""Characters kept of a text that a client or provider made up, such as a model's name."""


class Started(msgspec.Struct, frozen=True, array_like=True, tag="s", gc=False):
    """A call that is about to be made."""

    call_id: str
    request_id: str
    trace_id: str
    started: float
    kind: str
    route: str
    provider: str | None = None
    model: str | None = None
    operation: str | None = None
    client: str | None = None
    streaming: bool = False


class Row(msgspec.Struct, frozen=True, array_like=True, tag="e", gc=False):
    """A call that has ended, as the ledger's table `calls` has it: its fields are the table's columns.

    `input_tokens` includes cache reads and writes. `certainty` is None where there was nothing to pay for; the five
    amounts are None then, and when it is `unpriced`. `ended` is None when our process died during the call.
    """

    call_id: str
    request_id: str
    trace_id: str
    started: float
    ended: float | None
    kind: str
    route: str
    outcome: str
    provider: str | None = None
    model: str | None = None
    answered_model: str | None = None
    operation: str | None = None
    client: str | None = None
    streaming: bool = False
    status: int | None = None
    error_type: str | None = None
    attempts: int = 0
    upstream_request_id: str | None = None
    response_id: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_tokens: int | None = None
    cache_write_tokens: int | None = None
    cache_write_1h_tokens: int | None = None
    reasoning_tokens: int | None = None
    tier: str | None = None
    certainty: str | None = None
    cost_input: int | None = None
    cost_cache_read: int | None = None
    cost_cache_write: int | None = None
    cost_output: int | None = None
    cost_tools: int | None = None
    total_s: float | None = None
    ttft_s: float | None = None
    cached: bool = False
    saved: int | None = None
    """Of a batch's result: nano-dollars that the same call would have cost more, made alone."""

    @property
    def cost(self) -> int | None:
        """The whole amount in nano-dollars; None when none is known."""
        parts = (self.cost_input, self.cost_cache_read, self.cost_cache_write, self.cost_output, self.cost_tools)
        known = [part for part in parts if part is not None]
        return sum(known) if known else None


class BatchSeen(msgspec.Struct, frozen=True, array_like=True, tag="b", gc=False):
    """Something was said of a message batch, or done with it; the ledger's table `batches` adds it to what it knows.

    `gone_at`: since when nobody waits for its results (deleted, canceled, archived). `listed`: it stood in a list, which
    says nothing of whose it is: known ones are brought up to date and others are not taken up.
    """

    provider: str
    batch_id: str
    created_at: float | None = None
    expires_at: float | None = None
    ended_at: float | None = None
    fetched_at: float | None = None
    gone_at: float | None = None
    listed: bool = False


Entry = Started | Row | BatchSeen


def new_call_id() -> str:
    """32 hex digits: milliseconds first, so that rows are added at the table's end, then 80 random bits."""
    return f"{time.time_ns() // 1_000_000:012x}{random.getrandbits(80):020x}"


def batch_call_id(provider: str, batch_id: str, custom_id: str) -> str:
    """The same 32 hex digits however often, and on whichever worker, a batch's result is fetched."""
    named = "\0".join((provider, batch_id, custom_id)).encode("utf-8", "replace")
    return hashlib.sha256(named).hexdigest()[:32]


def row_of(
    record: Record, call_id: str, started: float, ended: float, cost: Cost | None, *, cached: bool = False
) -> Row:
    """The ledger's row of a closed record; `cost` is None where there was nothing to pay for."""
    answered = record.answered
    usage = answered.usage or Usage()
    priced = cost if cost is not None and cost.certainty is not Certainty.UNPRICED else None
    return Row(
        call_id=call_id,
        request_id=record.request_id,
        trace_id=record.trace.trace_id,
        started=started,
        ended=ended,
        kind=record.kind.value,
        route=record.route,
        outcome=record.outcome.value,
        provider=record.provider,
        model=record.model,
        answered_model=answered.model,
        operation=record.operation,
        client=record.client,
        streaming=record.streaming,
        status=record.status,
        error_type=record.error_type,
        attempts=len(record.attempts),
        upstream_request_id=answered.upstream_request_id,
        response_id=answered.response_id,
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        cache_read_tokens=usage.cache_read_tokens,
        cache_write_tokens=usage.cache_write_tokens,
        cache_write_1h_tokens=usage.cache_write_1h_tokens,
        reasoning_tokens=usage.reasoning_tokens,
        tier=answered.variant.tier,
        certainty=cost.certainty.value if cost is not None else None,
        cost_input=priced.input if priced else None,
        cost_cache_read=priced.cache_read if priced else None,
        cost_cache_write=priced.cache_write if priced else None,
        cost_output=priced.output if priced else None,
        cost_tools=priced.tools if priced else None,
        total_s=record.timings.total,
        ttft_s=answered.first_chunk,
        cached=cached,
    )


def interrupted(start: Started) -> Row:
    """The row of a call during which our process died: an inference may well have been billed, nobody knows how much."""
    return Row(
        **msgspec.structs.asdict(start),
        ended=None,
        outcome=Outcome.INTERRUPTED.value,
        certainty=Certainty.UNPRICED.value if start.operation is not None else None,
    )


def clipped(entry: Entry) -> Entry:
    """The same with every text short enough and encodable: an absurd name must not cost the row."""
    texts = {
        name: value[:LONGEST_TEXT].encode("utf-8", "replace").decode()
        for name, value in msgspec.structs.asdict(entry).items()
        if isinstance(value, str)
    }
    return msgspec.structs.replace(entry, **texts)
