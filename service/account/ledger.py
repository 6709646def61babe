"""The ledger: every call in a database, once, with sums by day. SQLite by default; knows no journal and no telemetry."""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import Connection, Engine, Select, case, create_engine, delete, event, func, insert, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import ConnectionPoolEntry

from service.account.ledger_schema import CALLS, DAYS, KEYS, MIGRATIONS, SUMS, Migration, prepare, require
from service.account.rows import Row
from service.errors import SettingsError
from service.record import Certainty, Kind

FILE = "ledger.db"
BUSY_SECONDS = 1.0
"""How long one try waits for another process's lock; the writer's thread then comes again later."""
KEEP_DAYS = 400
"""A year and a month to compare with. The sums by day stay."""
LEAST_DAYS = 30
"""A batch's results can be fetched for 29 days, and are known as accounted by their rows."""
_DAY = 86_400.0


DatabaseError = DBAPIError
"""What the database says when it cannot; `orig` has its words."""


class Gone(OSError):
    """The database file that was in use is not there any more. It may come back: a new one is made at the next start only."""


def day_of(row: Row) -> str:
    """The UTC day to which a call counts, as 2026-11-30: that of its end, or of its start if our process died."""
    return day_at(row.started if row.ended is None else row.ended)


def day_at(moment: float) -> str:
    """The UTC day of a Unix time."""
    return datetime.datetime.fromtimestamp(moment, datetime.UTC).date().isoformat()


def directory(setting: str, environ: Mapping[str, str]) -> Path | None:
    """Where journals and ledger are: a directory as set, or by default the user's state directory; None when `off`.

    Raises `SettingsError` when there is no home to put it in.
    """
    if setting == "off":
        return None
    try:
        if setting:
            return Path(setting).expanduser()
        state = Path(environ.get("XDG_STATE_HOME", ""))
        return (state if state.is_absolute() else Path.home() / ".local" / "state") / "claude-proxy"
    except RuntimeError:
        raise SettingsError(
            "CLAUDE_PROXY_LEDGER names no directory, and this user has no home: name one, or off."
        ) from None


_INSERT: Mapping[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
"""The two write `ON CONFLICT` alike, but SQLAlchemy has no common word for it."""


class Ledger:
    """The database in a directory. Any thread may use it, one at a time; errors are SQLAlchemy's, `Gone` or `SettingsError`."""

    def __init__(self, directory: Path, *, create: bool = True, migrations: Sequence[Migration] = MIGRATIONS) -> None:
        """Opens nothing yet. `create`: make the database if there is none, or bring it up to date."""
        self.path = directory / FILE
        self._create, self._migrations = create, migrations
        self._engine = _engine(self.path, writes=create)
        self._add_to_days = _adding(_INSERT[self._engine.dialect.name](DAYS))
        self._opened: tuple[int, int] | None = None

    def open(self) -> None:
        """Make sure that the database is there and up to date."""
        place = self._place()
        if self._opened is not None and place == self._opened:
            return
        self._engine.dispose()  # another file may have taken its place
        if not self._create and place is None:
            raise SettingsError(f"no ledger at {self.path}: no gateway has written one there yet.")
        if self._opened is not None and place is None:
            raise Gone(f"{self.path} has been removed")
        if self._create:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Who spent how much on what is nobody else's business; SQLite gives its other files the same mode.
            os.close(os.open(self.path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
            with self._engine.begin() as connection:
                prepare(connection, self._migrations)
        else:
            with self._engine.begin() as connection:
                require(connection, self._migrations)
        self._opened = self._place()

    def _place(self) -> tuple[int, int] | None:
        try:
            status = self.path.stat()
        except OSError:
            return None
        return status.st_dev, status.st_ino

    def close(self) -> None:
        """Let go of the database's files."""
        self._engine.dispose()

    def add(self, rows: Iterable[Row]) -> list[Row]:
        """Take rows, in one transaction; returns those that were new. A call that is there already is left as it is."""
        wanted = {row.call_id: row for row in rows}
        self.open()
        if not wanted:
            return []
        with self._engine.begin() as connection:
            there = connection.execute(select(CALLS.c.call_id).where(CALLS.c.call_id.in_(wanted))).scalars()
            for call_id in there.all():
                del wanted[call_id]
            new = list(wanted.values())
            if new:
                connection.execute(insert(CALLS), [msgspec.structs.asdict(row) for row in new])
            if sums := _by_day(new):
                connection.execute(self._add_to_days, sums)
        return new

    def totals(self, by: Sequence[str], since: str | None = None, until: str | None = None) -> list[dict[str, Any]]:
        """Calls, tokens and cost summed by some of `KEYS`, over the UTC days from `since` to `until`, both included.

        Costs are `exact`, `estimated` (nano-dollars) and `unpriced` (calls); None where nothing was ever known.
        """
        self.open()
        columns = [DAYS.c[name] for name in by]
        sums = [func.sum(DAYS.c[name]).label(name) for name in SUMS if name != "cost"]
        amounts = [
            func.sum(case((DAYS.c.certainty == sure.value, DAYS.c.cost))).label(sure.value)
            for sure in (Certainty.EXACT, Certainty.ESTIMATED)
        ]
        unpriced = func.sum(case((DAYS.c.certainty == Certainty.UNPRICED.value, DAYS.c.calls), else_=0))
        query = select(*columns, func.sum(DAYS.c.calls).label("calls"), *sums, *amounts, unpriced.label("unpriced"))
        query = query.where(*_within(DAYS.c.day, since, until)).group_by(*columns).order_by(*columns)
        with self._engine.begin() as connection:
            return [dict(row) for row in connection.execute(query).mappings() if row["calls"]]

    def calls(self, since: str | None, until: str | None, limit: int) -> list[dict[str, Any]]:
        """The newest calls that began on these UTC days, at most `limit`, with the columns of `calls`."""
        self.open()
        first = None if since is None else _midnight(since)
        after = None if until is None else _midnight(until) + _DAY
        query = select(CALLS).order_by(CALLS.c.started.desc()).limit(limit)
        query = query.where(*_within(CALLS.c.started, first, None))
        if after is not None:
            query = query.where(CALLS.c.started < after)
        with self._engine.begin() as connection:
            return [dict(row) for row in connection.execute(query).mappings()]

    def read(self, query: Select[Any]) -> list[dict[str, Any]]:
        """The rows of a query on the tables of `ledger_schema`."""
        self.open()
        with self._engine.begin() as connection:
            return [dict(row) for row in connection.execute(query).mappings()]

    def spend(self, client: str, day: str) -> int:
        """Nano-dollars that a client's calls of a UTC day cost, as far as they have a price."""
        return self.spends(day).get(client, 0)

    def spends(self, day: str) -> dict[str, int]:
        """The same for every client that spent something."""
        self.open()
        query = select(DAYS.c.client, func.sum(DAYS.c.cost)).where(DAYS.c.day == day).group_by(DAYS.c.client)
        with self._engine.begin() as connection:
            return {client: int(cost) for client, cost in connection.execute(query) if cost}

    def prune(self, before: float, at_most: int = 1000) -> int:
        """Delete the oldest calls that began before a Unix time; how many. The sums by day stay."""
        self.open()
        oldest = select(CALLS.c.call_id).where(CALLS.c.started < before).order_by(CALLS.c.started).limit(at_most)
        with self._engine.begin() as connection:
            return connection.execute(delete(CALLS).where(CALLS.c.call_id.in_(oldest))).rowcount

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """A transaction, for tables that have a module of their own."""
        self.open()
        with self._engine.begin() as connection:
            yield connection


def _by_day(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """What is to be added to `days`."""
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    for row in rows:
        if row.kind == Kind.FAN_OUT:
            continue
        key = (
            day_of(row), row.client or "", row.provider or "", row.model or "", row.route, row.outcome, row.certainty or "",
        )  # fmt: skip
        sums = found.get(key)
        if sums is None:
            sums = found[key] = dict(zip(KEYS, key, strict=True)) | {"calls": 0} | dict.fromkeys(SUMS)
        sums["calls"] += 1
        for name in SUMS:
            amount = getattr(row, name)
            if amount is not None:
                sums[name] = (sums[name] or 0) + amount
    return list(found.values())


def _adding(insert_days: Any) -> Any:
    """The statement that adds to what a key of `days` has; unknown and known is known."""
    new = insert_days.excluded
    more = {name: func.coalesce(DAYS.c[name] + new[name], DAYS.c[name], new[name]) for name in ("calls", *SUMS)}
    return insert_days.on_conflict_do_update(index_elements=KEYS, set_=more)


def _within(column: Any, since: Any, until: Any) -> list[Any]:
    lower = [] if since is None else [column >= since]
    return lower if until is None else [*lower, column <= until]


def _midnight(day: str) -> float:
    return datetime.datetime.fromisoformat(day).replace(tzinfo=datetime.UTC).timestamp()


def _engine(path: Path, *, writes: bool) -> Engine:
    engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": BUSY_SECONDS}, pool_size=1, max_overflow=0)

    @event.listens_for(engine, "connect")
    def _set_up(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
        connection.isolation_level = None  # sqlite3 would begin transactions of its own, too late
        cursor = connection.cursor()
        # A writer and its readers do not wait for each other; a power cut may cost the last second, never the file.
        for pragma in ("journal_mode=WAL", "synchronous=NORMAL") if writes else ("query_only=ON",):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine
