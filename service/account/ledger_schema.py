"""The ledger's tables, in types that SQLite and PostgreSQL share, and how an older database becomes a current one.

`calls` has a row per provider call; `days` has their sums, kept in the same transactions, so that a question about a
million calls reads a few hundred rows. Money is nano-dollars in 64 bits (9.2 billion dollars), times are Unix seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Double,
    Integer,
    MetaData,
    String,
    Table,
    insert,
    inspect,
    select,
    text,
    update,
)

from service.errors import SettingsError

Migration = Callable[[Connection], None]

METADATA = MetaData()

CALLS = Table(
    "calls",
    METADATA,
    Column("call_id", String(32), primary_key=True),
    Column("request_id", String, nullable=False),
    Column("trace_id", String, nullable=False),
    Column("started", Double, nullable=False, index=True),
    Column("ended", Double),
    Column("kind", String, nullable=False),
    Column("route", String, nullable=False),
    Column("outcome", String, nullable=False),
    Column("provider", String),
    Column("model", String),
    Column("answered_model", String),
    Column("operation", String),
    Column("client", String),
    Column("streaming", Boolean, nullable=False),
    Column("status", Integer),
    Column("error_type", String),
    Column("attempts", Integer, nullable=False),
    Column("upstream_request_id", String),
    Column("response_id", String),
    Column("input_tokens", BigInteger),
    Column("output_tokens", BigInteger),
    Column("cache_read_tokens", BigInteger),
    Column("cache_write_tokens", BigInteger),
    Column("cache_write_1h_tokens", BigInteger),
    Column("reasoning_tokens", BigInteger),
    Column("tier", String),
    Column("certainty", String),
    Column("cost_input", BigInteger),
    Column("cost_cache_read", BigInteger),
    Column("cost_cache_write", BigInteger),
    Column("cost_output", BigInteger),
    Column("cost_tools", BigInteger),
    Column("total_s", Double),
    Column("ttft_s", Double),
    Column("cached", Boolean, nullable=False),
    Column("saved", BigInteger),
    sqlite_with_rowid=False,
)
"""The fields of `rows.Row`, under the same names."""

KEYS = ("day", "client", "provider", "model", "route", "outcome", "certainty")
"""What `days` tells apart; the empty string where a call had none. A day is UTC's, that of the call's end."""
SUMS = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens", "reasoning_tokens", "cost")
"""What `days` adds up, besides counting calls; NULL where it was never known."""

DAYS = Table(
    "days",
    METADATA,
    *(Column(name, String, primary_key=True) for name in KEYS),
    Column("calls", BigInteger, nullable=False),
    *(Column(name, BigInteger) for name in SUMS),
    sqlite_with_rowid=False,
)
"""A fan-out's own row is not in here: its calls are."""

BATCHES = Table(
    "batches",
    METADATA,
    Column("provider", String, primary_key=True),
    Column("batch_id", String, primary_key=True),
    Column("created_at", Double),
    Column("expires_at", Double),
    Column("ended_at", Double),
    Column("fetched_at", Double),
    Column("gone_at", Double),
    sqlite_with_rowid=False,
)
"""Message batches that passed through, with what is known of each; the columns are fields of `rows.BatchSeen`."""

VERSION = Table("schema_version", METADATA, Column("version", Integer, nullable=False))


def _batches(connection: Connection) -> None:
    """Version 2: what a batch's result saved, and the batches themselves."""
    connection.execute(text("ALTER TABLE calls ADD COLUMN saved BIGINT"))
    BATCHES.create(connection)


MIGRATIONS: tuple[Migration, ...] = (_batches,)
"""Each makes the next version of a database, the first version 2. The tables above are always the newest."""


def prepare(connection: Connection, migrations: Sequence[Migration] = MIGRATIONS) -> None:
    """Make the tables, or bring them up to date, in the connection's transaction. Raises `SettingsError`."""
    newest = 1 + len(migrations)
    if not inspect(connection).has_table(VERSION.name):
        METADATA.create_all(connection)
        connection.execute(insert(VERSION).values(version=newest))
        return
    version = _version(connection, newest)
    for migrate in migrations[version - 1 :]:
        migrate(connection)
    if version < newest:
        connection.execute(update(VERSION).values(version=newest))


def require(connection: Connection, migrations: Sequence[Migration] = MIGRATIONS) -> None:
    """That the tables are there and up to date, for one who only reads. Raises `SettingsError`."""
    newest = 1 + len(migrations)
    if not inspect(connection).has_table(VERSION.name):
        raise SettingsError("the ledger's database is empty: no gateway has written to it yet.")
    if (version := _version(connection, newest)) < newest:
        raise SettingsError(
            f"the ledger's database has version {version}, and this claude-proxy reads version {newest}: the gateway "
            "makes it that when it next starts."
        )


def _version(connection: Connection, newest: int) -> int:
    version = int(connection.execute(select(VERSION.c.version)).scalar_one())
    if version > newest:
        raise SettingsError(
            f"the ledger's database has version {version}, and this claude-proxy knows none after {newest}: it was made "
            "by a newer one. Use that one, or another directory."
        )
    return version
