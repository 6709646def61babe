"""A worker's own journal: every call's start and end, appended before anybody hears of it, and read back by the ledger.

An append is one `os.write` to the page cache: it survives the death of every process at any moment, not a power cut (no
fsync). The event loop does nothing else; files are begun, ended and mended by the ledger's thread, in `tend`.
"""

from __future__ import annotations

import errno
import os
import secrets
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from service.account import segments
from service.account.rows import BatchSeen, Row, Started
from service.account.segments import Segment

SEGMENT_BYTES = 8 * 1024 * 1024
"""A file's size from which the next is begun: some 20,000 calls, which a successor reads in a second or two."""
BACKLOG_BYTES = 256 * 1024 * 1024
"""What all journals of a directory may hold together: some 700,000 calls that the database has not taken."""
KEPT_BYTES = 16 * 1024 * 1024
"""What a worker keeps in memory while the disk takes nothing: some 40,000 calls."""
BACKLOG_FULL, WRITE_FAILED = "backlog_full", "write_failed"
"""Why a row was lost (`reason`)."""

Dropped = Callable[[str, int], None]
"""Called with a reason and how many rows were lost for it; from the loop and from the ledger's thread."""


class Batch(NamedTuple):
    """Rows, and news of message batches, to be moved to the database; `skipped` bytes were damaged."""

    rows: list[Row]
    seen: list[BatchSeen]
    skipped: int
    segment: Segment
    end: int


class Journal:
    """Appends calls; never raises into a request and never blocks but for one write to the page cache.

    Make it in the worker, after the fork. Any thread may call `began`, `ended` and `batch_seen`; the rest is for the
    ledger's thread.
    """

    def __init__(
        self, directory: Path, on_drop: Dropped, *, bound: int = BACKLOG_BYTES, segment_bytes: int = SEGMENT_BYTES
    ) -> None:
        self.directory = directory
        self.owner = f"{os.getpid()}-{secrets.token_hex(6)}"
        self.writable = False
        """Whether the last word of the disk was yes. While it is no, calls are kept in memory until it takes them."""
        self.trouble: OSError | None = None
        """What the disk said last when it said no."""
        self._on_drop, self._bound, self._segment_bytes = on_drop, bound, segment_bytes
        self._lock = threading.Lock()
        self._segments: list[Segment] = []
        self._current: Segment | None = None
        self._number = 0
        self._open: dict[str, bytes] = {}
        self._kept: deque[tuple[bytes, bool]] = deque()
        self._kept_bytes = 0
        self._full = False
        self._taken = self._moved = 0
        self.tend()

    def began(self, start: Started) -> None:
        """Before the provider hears of the call."""
        data = segments.framed(start)
        with self._lock:
            self._open[start.call_id] = data
            self._append(data, is_row=False)

    def ended(self, row: Row) -> None:
        """Before the call's last byte is handed on; also for a request that never became a call, without a start."""
        data = segments.framed(row)
        with self._lock:
            self._open.pop(row.call_id, None)
            lost = self._append(data, is_row=True)
        if lost:
            self._on_drop(lost, 1)

    def batch_seen(self, seen: BatchSeen) -> None:
        """Before the client hears of it."""
        data = segments.framed(seen)
        with self._lock:
            self._append(data, is_row=False)

    def backlog(self) -> int:
        """Rows that the database has not taken yet."""
        return self._taken - self._moved

    def _append(self, data: bytes, *, is_row: bool) -> str | None:
        """Why it is lost, or None."""
        if self._full:
            return BACKLOG_FULL
        if not self._write(data):
            self.writable = False
            if self._kept_bytes + len(data) > KEPT_BYTES:
                return WRITE_FAILED
            self._kept.append((data, is_row))
            self._kept_bytes += len(data)
        self._taken += is_row
        return None

    def _write(self, data: bytes) -> bool:
        segment = self._current
        if segment is None:
            return False
        try:
            written = os.write(segment.fd, data)
        except OSError as error:
            self.trouble = error
            return False
        if written == len(data):
            segment.size += written
            return True
        self.trouble = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # the disk became full within the entry
        try:
            os.ftruncate(segment.fd, segment.size)
        except OSError:
            self._current = None
        return False

    def tend(self) -> None:
        """Once a second: begin the next file when it is time, write down what was kept, and see if there is room."""
        current = self._current
        gone = current is not None and not current.is_in_place()
        if current is None or gone or current.size >= self._segment_bytes:
            gone = not self._renew(current if gone else None) and gone
        self._write_kept()
        self._full = segments.weight(self.directory) > self._bound
        with self._lock:
            self.writable = self._current is not None and not gone and not self._kept

    def _renew(self, gone: Segment | None) -> bool:
        """Begin a file. Calls under way are written into it again, so that no older one is needed for them."""
        self._number += 1
        try:
            new = segments.create(self.directory, self.owner, self._number)
        except OSError as error:
            self.trouble = error
            return False
        with self._lock:
            # Nobody would find what stands in a file that is no longer there, so that is written again too.
            unread = os.pread(gone.fd, gone.size - gone.read, gone.read) if gone is not None else b""
            before, self._current = self._current, new
            if not self._write(unread + b"".join(self._open.values())):
                self._current = before
                new.remove()
                return False
            self._segments.append(new)
            if gone is not None:
                self._segments.remove(gone)
                gone.close()
        self._remove_read()
        return True

    def _write_kept(self) -> None:
        while True:
            with self._lock:
                if not self._kept or not self._write(self._kept[0][0]):
                    return
                data, _ = self._kept.popleft()
                self._kept_bytes -= len(data)

    def next_batch(self) -> Batch | None:
        """What the database is to take next. Raises OSError."""
        for segment in self._segments:
            if segment.read < segment.size:
                found = segments.read(segment)
                rows = [entry for entry in found.entries if isinstance(entry, Row)]
                seen = [entry for entry in found.entries if isinstance(entry, BatchSeen)]
                return Batch(rows, seen, found.skipped, segment, found.end)
        return None

    def moved(self, batch: Batch) -> None:
        """The database has taken it."""
        batch.segment.read = batch.end
        self._moved += len(batch.rows)
        self._remove_read()

    def _remove_read(self) -> None:
        done = [segment for segment in self._segments if segment is not self._current and segment.read == segment.size]
        for segment in done:
            self._segments.remove(segment)
            segment.remove()

    def close(self) -> None:
        """Leave; what the database has not taken stays for a successor."""
        with self._lock:
            self._current, self.writable = None, False
            lost = sum(is_row for _, is_row in self._kept)
            self._kept.clear()
            for segment in self._segments:
                if segment.read == segment.size and not self._open:
                    segment.remove()
                else:
                    segment.close()
            self._segments.clear()
        if lost:
            self._on_drop(WRITE_FAILED, lost)
