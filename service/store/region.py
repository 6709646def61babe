"""Memory that the processes of a host share by inheriting it, and the lock around it.

It is made before the fork and has no name: who was not forked from its maker cannot reach it, and it goes with the last
process. The lock is a POSIX record lock: each process has its own (unlike `flock`, which a fork shares), and the
kernel takes it back from a process that dies, by SIGKILL too.
"""

from __future__ import annotations

import fcntl
import math
import mmap
import os
import struct
import tempfile
import threading
import time
from collections.abc import Sequence

PATIENCE, HURRY = 0.02, 0.002
"""Seconds a lock is tried for, and for a second after one was not had: the event loop stands still for as long. Held, it is
for tens of microseconds; but on a busy machine its holder may not be let run for some milliseconds."""
_PAUSE = 0.00005
_TRY = fcntl.LOCK_EX | fcntl.LOCK_NB


class Region:
    """`size` zero bytes, and a lock that keeps out other processes and other threads of this one."""

    def __init__(self, size: int) -> None:
        if hasattr(os, "memfd_create"):
            self._fd = os.memfd_create("claude-proxy")
        else:
            with tempfile.TemporaryFile() as file:
                self._fd = os.dup(file.fileno())
        os.ftruncate(self._fd, size)  # pages are made when they are first written to
        self.memory = mmap.mmap(self._fd, size)
        self._thread = threading.Lock()
        self._given_up = -math.inf

    def lock(self, patience: float | None = None) -> bool:
        """True with the lock held, False when it could not be had in `patience` seconds (None: as long as makes sense)."""
        if not self._thread.acquire(False) and not self._thread.acquire(timeout=patience or self._patience()):
            return False
        deadline = None
        while True:
            try:
                fcntl.lockf(self._fd, _TRY)
            except OSError:  # somebody has it, or (ENOLCK) the kernel has no room: the same to us
                now = time.monotonic()
                deadline = deadline or now + (patience or self._patience())
                if now >= deadline:
                    self._given_up = now
                    self._thread.release()
                    return False
                time.sleep(_PAUSE)  # the holder may need this very core
            else:
                return True

    def _patience(self) -> float:
        # Whoever holds it may be stopped altogether: then each try would cost the loop the whole patience.
        return HURRY if time.monotonic() - self._given_up < 1 else PATIENCE

    def unlock(self) -> None:
        """Give the lock back."""
        try:
            fcntl.lockf(self._fd, fcntl.LOCK_UN)
        finally:
            self._thread.release()

    def close(self) -> None:
        """For tests: a process keeps its region for life."""
        self.memory.close()
        os.close(self._fd)


class Records:
    """An array of `count` records of `width` numbers at `offset` of a region."""

    def __init__(self, region: Region, offset: int, count: int, width: int) -> None:
        self.count, self.width = count, width
        self._memory, self._offset = region.memory, offset
        self._struct = struct.Struct(f"={width}d")
        self._size = self._struct.size

    @staticmethod
    def size(count: int, width: int) -> int:
        """Bytes that it takes."""
        return count * width * 8

    def read(self, index: int) -> tuple[float, ...]:
        """One record."""
        return self._struct.unpack_from(self._memory, self._offset + index * self._size)

    def read_many(self, start: int, count: int) -> list[tuple[float, ...]]:
        """`count` records from `start` on."""
        size = self._struct.size
        first = self._offset + start * size
        return list(self._struct.iter_unpack(self._memory[first : first + count * size]))

    def write(self, index: int, values: Sequence[float]) -> None:
        """Replace one record."""
        self._struct.pack_into(self._memory, self._offset + index * self._size, *values)

    def clear(self, start: int, count: int = 1) -> None:
        """Zero `count` records from `start` on."""
        size = self._struct.size
        first = self._offset + start * size
        self._memory[first : first + count * size] = bytes(count * size)
