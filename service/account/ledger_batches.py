"""The ledger's table of message batches: what passed of each, and which wait to be fetched."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from sqlalchemy import Connection, and_, case, delete, func, insert, select, update

from service.account.ledger_schema import BATCHES
from service.account.rows import BatchSeen

RESULTS_SECONDS = 29 * 86_400.0
"""How long after its creation a batch's results can be fetched (Message Batches page)."""
_FACTS = [column.name for column in BATCHES.columns if not column.primary_key]


class Waiting(NamedTuple):
    """A provider's batches whose results nobody has fetched: when the oldest was made, and when the next runs out, an
    unfinished one for good, an ended one's results. Unix times."""

    provider: str
    oldest: float
    next_expiry: float


def see(connection: Connection, seen: Iterable[BatchSeen]) -> None:
    """Add to what is known. What was said first stays, so that it does not matter in what order it comes, or how often."""
    for one in seen:
        facts = {name: value for name in _FACTS if (value := getattr(one, name)) is not None}
        if not facts:
            continue
        same = and_(BATCHES.c.provider == one.provider, BATCHES.c.batch_id == one.batch_id)
        more = {name: func.coalesce(BATCHES.c[name], value) for name, value in facts.items()}
        known = connection.execute(update(BATCHES).where(same).values(more)).rowcount
        if not known and not one.listed:
            connection.execute(insert(BATCHES).values(provider=one.provider, batch_id=one.batch_id, **facts))


def waiting(connection: Connection, now: float) -> list[Waiting]:
    """Of each provider that has any: batches neither fetched nor gone, for as long as there are results to be fetched.

    What is not known to have ended by its time has ended then: unfinished calls expire, the others have their results.
    """
    batch = BATCHES.c
    under_way = and_(batch.ended_at.is_(None), batch.expires_at > now)
    expiry = case((under_way, batch.expires_at), else_=batch.created_at + RESULTS_SECONDS)
    query = select(batch.provider, func.min(batch.created_at), func.min(expiry)).group_by(batch.provider)
    unfetched = (batch.fetched_at.is_(None), batch.gone_at.is_(None), batch.created_at > now - RESULTS_SECONDS)
    return [Waiting(*row) for row in connection.execute(query.where(*unfetched))]


def prune(connection: Connection, before: float) -> None:
    """Forget batches of before a Unix time."""
    when = func.coalesce(BATCHES.c.created_at, BATCHES.c.fetched_at, BATCHES.c.gone_at, BATCHES.c.ended_at, 0.0)
    connection.execute(delete(BATCHES).where(when < before))
