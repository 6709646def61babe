"""The ledger's thread: moves journals into the database, a dead worker's too, and comes again for as long as that fails."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy.exc import DataError, IntegrityError

from service.account import ledger_batches, segments
from service.account.journal import WRITE_FAILED, Dropped, Journal
from service.account.ledger import KEEP_DAYS, LEAST_DAYS, Ledger
from service.account.ledger_batches import Waiting
from service.account.rows import BatchSeen, Row, Started, interrupted
from service.account.segments import Segment

SECONDS = 1.0
"""Between two rounds."""
LONGEST_PAUSE = 15.0
"""Between two tries while the database takes nothing; the first comes after a round's time, then twice as late each."""
ORPHANS_SECONDS = 5.0
BATCHES_SECONDS = 5.0
"""Between two looks at which message batches wait to be fetched."""
PRUNE_SECONDS = 3600.0
_DAY = 86_400.0


def _nothing(*_: Any) -> None:
    """What is done when nobody wants to know."""


@dataclass(frozen=True, slots=True)
class Hooks:
    """Who wants to know what; all but `on_drop` are called in the ledger's thread."""

    on_drop: Dropped = _nothing
    """Rows were lost: why, how many."""
    on_success: Callable[[], None] = _nothing
    """The database has everything up to now."""
    on_round: Callable[[], None] = _nothing
    """A round is over, well or not."""
    on_new: Callable[[list[Row]], None] = _nothing
    """These rows are new in the database, after their transaction. A row that was there before is not among them."""
    on_caught_up: Callable[[], None] = _nothing
    """What dead workers left is in the database: for the first time after the start, or once more. Comes again when it raises."""
    on_waiting: Callable[[list[Waiting]], None] = _nothing
    """The message batches that wait to be fetched, every `BATCHES_SECONDS`."""
    on_trouble: Callable[[str, BaseException | None], None] = _nothing
    """Something to tell an operator: the database takes nothing (once, not every try), takes rows again, or a journal
    was damaged."""
    interrupted: Callable[[Started], Row] = interrupted
    """The row of a call during which its worker died."""


class LedgerWriter:
    """Moves one worker's journal, and those of the dead, into the ledger. Start it in the worker, after the fork."""

    def __init__(
        self, journal: Journal, ledger: Ledger, hooks: Hooks, *, seconds: float = SECONDS, keep_days: int = KEEP_DAYS
    ) -> None:
        self.journal, self.ledger, self._hooks = journal, ledger, hooks
        self._seconds = seconds
        self._keep_days = max(keep_days, LEAST_DAYS)
        self._stop = threading.Event()
        self._caught_up = False
        self.first_round = threading.Event()
        """Set when the first round is over, well or not."""
        self._failed = 0
        self._unwritable = False
        self._next_orphans = self._next_batches = self._next_prune = 0.0
        # A daemon: a database that hangs must not keep the process; the journal stays for a successor.
        self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)

    def start(self) -> None:
        """Begin; the first round takes over what dead workers left."""
        self._thread.start()

    def stop(self, seconds: float) -> None:
        """Move what there is and end, within `seconds`. Call it when no more calls end."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(seconds)
        if not self._thread.is_alive():
            self.journal.close()
            self.ledger.close()

    def _run(self) -> None:
        self.round()
        self.first_round.set()
        while not self._stop.wait(self._pause()):
            self.round()
        self.round()

    def _pause(self) -> float:
        return min(self._seconds * 2.0**self._failed, LONGEST_PAUSE)

    def round(self) -> None:
        """Everything that is to be done now; what fails is told and done again in a later round."""
        try:
            self.journal.tend()
            self._tell_unwritable()
            self._move_own()
            now = time.monotonic()
            if now >= self._next_orphans and not self._stop.is_set():
                self._take_over()
                self._next_orphans = now + ORPHANS_SECONDS
            if now >= self._next_batches:
                self._look_at_batches()
                self._next_batches = now + BATCHES_SECONDS
            if now >= self._next_prune and not self._stop.is_set():
                self._prune()
                self._next_prune = now + PRUNE_SECONDS
            if not self._caught_up:
                self._hooks.on_caught_up()
                self._caught_up = True
        except Exception as error:  # noqa: BLE001 whatever the database or the disk says, the service goes on
            self._failed = min(self._failed + 1, 10)
            if self._failed == 1:
                self._hooks.on_trouble("the ledger takes no rows; they stay in the journal", error)
            self._hooks.on_round()
            return
        if self._failed:
            self._failed = 0
            self._hooks.on_trouble("the ledger takes rows again", None)
        if self.journal.writable:
            self._hooks.on_success()
        self._hooks.on_round()

    def _tell_unwritable(self) -> None:
        """Told once too; calls are then in memory, where a SIGKILL finds them."""
        unwritable = not self.journal.writable
        if unwritable and not self._unwritable:
            self._hooks.on_trouble("the journal takes no calls; they are kept in memory", self.journal.trouble)
        elif self._unwritable and not unwritable:
            self._hooks.on_trouble("the journal takes calls again", None)
        self._unwritable = unwritable

    def _move_own(self) -> None:
        while (batch := self.journal.next_batch()) is not None:
            self._see(batch.seen)
            self._add(batch.rows)
            self.journal.moved(batch)
            self._tell_damage(batch.skipped, batch.segment)

    def _take_over(self) -> None:
        """Move what dead workers left; a call that they began and did not end becomes a row that says so."""
        for left in segments.orphans(self.journal.directory, self.journal.owner):
            taken = False
            try:
                taken = self._take(left)
                self._caught_up = False
            finally:
                for segment in left:
                    segment.remove() if taken else segment.close()

    def _take(self, left: list[Segment]) -> bool:
        """Whether all of it is in the database: False when told to stop in between."""
        under_way: dict[str, Started] = {}
        for segment in left:
            while segment.read < segment.size:
                if self._stop.is_set():
                    return False
                found = segments.read(segment)
                rows = [entry for entry in found.entries if isinstance(entry, Row)]
                under_way |= {entry.call_id: entry for entry in found.entries if isinstance(entry, Started)}
                self._see([entry for entry in found.entries if isinstance(entry, BatchSeen)])
                self._add(rows)
                for row in rows:
                    under_way.pop(row.call_id, None)
                segment.read = found.end
                self._tell_damage(found.skipped, segment)
        # Those that did end, before their start was written, are in the database by now and stay as they are.
        self._add([self._hooks.interrupted(start) for start in under_way.values()])
        return True

    def _see(self, seen: list[BatchSeen]) -> None:
        if not seen:
            return
        try:
            with self.ledger.transaction() as connection:
                ledger_batches.see(connection, seen)
            self._next_batches = 0.0
        except Exception as error:
            if not _is_the_rows_fault(error):
                raise
            self._hooks.on_trouble("the ledger's database cannot hold what was said of message batches", error)

    def _add(self, rows: list[Row]) -> None:
        try:
            new = self.ledger.add(rows)
        except Exception as error:
            if not _is_the_rows_fault(error):
                raise
            new = self._add_one_by_one(rows)
        if new:
            self._hooks.on_new(new)

    def _add_one_by_one(self, rows: list[Row]) -> list[Row]:
        """One row that no database takes must not hold up the others."""
        new = []
        for row in rows:
            try:
                new += self.ledger.add([row])
            except Exception as error:
                if not _is_the_rows_fault(error):
                    raise
                self._hooks.on_drop(WRITE_FAILED, 1)
                self._hooks.on_trouble(f"the ledger's database cannot hold the row of call {row.call_id}", error)
        return new

    def _look_at_batches(self) -> None:
        with self.ledger.transaction() as connection:
            waiting = ledger_batches.waiting(connection, time.time())
        self._hooks.on_waiting(waiting)

    def _prune(self) -> None:
        before = time.time() - self._keep_days * _DAY
        while not self._stop.is_set() and self.ledger.prune(before):
            pass
        with self.ledger.transaction() as connection:
            ledger_batches.prune(connection, before)

    def _tell_damage(self, skipped: int, segment: Segment) -> None:
        if skipped:
            self._hooks.on_trouble(f"{skipped} bytes of {segment.path.name} were damaged and are lost", None)


def _is_the_rows_fault(error: Exception) -> bool:
    """And not the database's, which would take the row at another time."""
    return isinstance(error, DataError | IntegrityError | OverflowError | UnicodeError | TypeError)
