"""A worker's whole bookkeeping: prices, journal, and the thread that moves the journal into the ledger."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from observability import catalog
from observability.catalog import LogEvent
from observability.start import Telemetry
from service.account.batches import BatchBooks, Counting
from service.account.books import Books
from service.account.journal import Journal
from service.account.prices import Prices
from service.account.prices_list import Listed
from service.errors import SettingsError

if TYPE_CHECKING:
    from service.account.ledger_writer import LedgerWriter

_SIGNAL = "ledger"
FIRST_ROUND_SECONDS = 2.0
"""How long a start waits for the dead workers' journals; what takes longer is told later."""


class Bookkeeping:
    """Make it in the worker, after the fork. `directory` None: calls are priced and not written down. `own_prices` are the
    owner's."""

    def __init__(
        self, telemetry: Telemetry, directory: Path | None, keep_days: int, own_prices: Mapping[tuple[str, str], Listed]
    ) -> None:
        self._metrics, self._log = telemetry.metrics, telemetry.log
        self._keep_days = keep_days
        self.prices = Prices(own_prices)
        self.journal = None if directory is None else Journal(directory, self._dropped)
        self.books = Books(self.prices, self.journal)
        self.batches = None if self.journal is None else BatchBooks(self.prices, self.journal, self._dropped)
        self._writer: LedgerWriter | None = None

    @property
    def writable(self) -> bool:
        """Whether calls can be written down; true where that is not wanted."""
        return self.journal is None or self.journal.writable

    def start(
        self, on_spent: Callable[[str, int], None], on_spends: Callable[[Mapping[str, int]], None] | None = None
    ) -> None:
        """Begin to move the journal, a dead worker's first. Blocks for the import of SQLAlchemy (0.3 s): not for a loop.

        `on_spent` is told, in the ledger's thread, what a client's message batches cost (nano-dollars), as that is known;
        `on_spends` what clients have spent today, when dead workers' calls have come into it.
        """
        if self.journal is None:
            return
        from service.account.ledger import Ledger, day_at
        from service.account.ledger_writer import Hooks, LedgerWriter

        counting, ledger = Counting(self._metrics, on_spent), Ledger(self.journal.directory)

        def caught_up() -> None:
            if on_spends is not None:
                on_spends(ledger.spends(day_at(time.time())))

        hooks = Hooks(
            on_drop=self._dropped,
            on_success=self._succeeded,
            on_round=self._tell_backlog,
            on_new=counting.on_new,
            on_caught_up=caught_up,
            on_waiting=counting.on_waiting,
            on_trouble=self._tell,
        )
        self._writer = LedgerWriter(self.journal, ledger, hooks, keep_days=self._keep_days)
        self._writer.start()

    def spends(self) -> dict[str, int]:
        """Nano-dollars that each client has spent today, as far as the ledger knows; nothing when it cannot be asked.
        Blocks, for some seconds if the database is locked. Started, it first waits a little for what dead workers left."""
        if self.journal is None:
            return {}
        if self._writer is not None:
            self._writer.first_round.wait(FIRST_ROUND_SECONDS)
        from service.account.ledger import DatabaseError, Ledger, day_at

        ledger = Ledger(self.journal.directory)
        try:
            return ledger.spends(day_at(time.time()))
        except (DatabaseError, OSError, SettingsError) as error:
            self._tell(
                "what clients have spent today cannot be read yet: until it can, their budgets begin at nothing", error
            )
            return {}
        finally:
            ledger.close()

    def stop(self, seconds: float) -> None:
        """Move what there is, within `seconds`; what is left stays in the journal for a successor."""
        if self._writer is not None:
            self._writer.stop(seconds)

    def _dropped(self, reason: str, count: int) -> None:
        self._metrics.add(catalog.TELEMETRY_DROPPED, (_SIGNAL, reason), count)

    def _succeeded(self) -> None:
        self._metrics.set(catalog.TELEMETRY_LAST_SUCCESS, time.time(), (_SIGNAL,))

    def _tell(self, what: str, error: BaseException | None) -> None:
        if error is None:
            self._log.warning(LogEvent.LOG, message=what)
        else:
            # The database's own words: SQLAlchemy's would repeat the rows.
            words = str(getattr(error, "orig", error))[:500]
            self._log.error(LogEvent.LOG, message=what, error=f"{type(error).__name__}: {words}")

    def _tell_backlog(self) -> None:
        if self.journal is not None:
            self._metrics.set(catalog.LEDGER_BACKLOG, self.journal.backlog())
