"""The journal's files: how an entry stands in them, and how a worker tells a dead one's files from a living one's.

An entry is 2 bytes that mark its begin, its length (16 bits), its crc32, then msgpack; all little-endian. A file is locked
(`flock`) by the process that writes it for as long as that lives: who gets the lock knows that the writer is dead. (Not
`lockf`: closing any other descriptor of the file would let go of such a lock, and a living worker would count as dead.)
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import msgspec

from service.account.rows import LONGEST_TEXT, Entry, clipped

SUFFIX = ".journal"
CHUNK = 256 * 1024
"""Bytes read at a time: some 700 calls, one transaction; longer than any entry."""
_MARK = b"\xc5\x9a"
_HEAD = struct.Struct("<2sHI")
_LONGEST_UNCLIPPED = 8 * LONGEST_TEXT
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Entry).decode


class Segment:
    """One open file of a journal. `size` counts the bytes that are whole entries, `read` those already taken over."""

    __slots__ = ("fd", "path", "read", "size")

    def __init__(self, path: Path, fd: int, size: int) -> None:
        self.path, self.fd, self.size, self.read = path, fd, size, 0

    def is_in_place(self) -> bool:
        """Whether a successor would find it: it has not been removed or moved."""
        try:
            there, here = os.stat(self.path), os.fstat(self.fd)
        except OSError:
            return False
        return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)

    def remove(self) -> None:
        """Everything in it is in the database."""
        if self.is_in_place():
            self.path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Leave it to a successor; lets go of the lock."""
        os.close(self.fd)


class Scan(NamedTuple):
    """What stood in a piece of a file: its entries, the bytes they took, and bytes in between that were no entry."""

    entries: list[Entry]
    end: int
    skipped: int


def framed(entry: Entry) -> bytes:
    """The entry as it stands in a file."""
    try:
        body = _encode(entry)
    except ValueError:  # a lone surrogate, for one
        body = _encode(clipped(entry))
    if len(body) > _LONGEST_UNCLIPPED:
        body = _encode(clipped(entry))
    return _HEAD.pack(_MARK, len(body), crc32(body)) + body


def scan(data: bytes, *, final: bool) -> Scan:
    """Read entries; what is damaged is skipped up to the next whole one. `final`: nothing comes after `data`."""
    entries: list[Entry] = []
    at = skipped = 0
    while len(data) - at >= _HEAD.size:
        mark, length, checksum = _HEAD.unpack_from(data, at)
        body = data[at + _HEAD.size : at + _HEAD.size + length]
        if mark == _MARK and len(body) < length and not final:
            return Scan(entries, at, skipped)
        following = at + _HEAD.size + length
        if mark != _MARK or len(body) < length or crc32(body) != checksum:
            found = data.find(_MARK, at + 1)
            following = found if found >= 0 else len(data) - (0 if final else 1)
            skipped += following - at
        else:
            try:
                entries.append(_decode(body))
            except msgspec.MsgspecError:  # of another version
                skipped += following - at
        at = following
    if final:
        return Scan(entries, len(data), skipped + len(data) - at)
    return Scan(entries, at, skipped)


def read(segment: Segment) -> Scan:
    """The next entries that have not been taken over; `end` counts from the file's begin. Raises OSError."""
    length = min(CHUNK, segment.size - segment.read)
    data = os.pread(segment.fd, length, segment.read)
    found = scan(data, final=segment.read + length >= segment.size)
    return found._replace(end=segment.read + found.end)


def create(directory: Path, owner: str, number: int) -> Segment:
    """A new locked file. Raises OSError."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = directory / f"{owner}.{number:06d}{SUFFIX}"
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        # A successor may have come between the two calls, found a file that nobody had locked, and removed it.
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.fstat(fd).st_nlink:
            raise FileNotFoundError(path)
    except OSError:
        os.close(fd)
        raise
    return Segment(path, fd, 0)


def orphans(directory: Path, owner: str) -> Iterator[list[Segment]]:
    """The files of every worker that is dead, locked and in the order they were written; `owner` is who asks.

    A worker's oldest file decides: who gets its lock has them all, as nobody opens the others without it.
    """
    for name in sorted({_owner(path) for path in directory.glob(f"*{SUFFIX}")} - {owner}):
        first = next(iter(_of(directory, name)), None)
        if first is None or (claimed := _claim(first)) is None:
            continue
        # Listed again: before it died it may have begun another.
        rest = [segment for path in _of(directory, name) if path != first and (segment := _claim(path)) is not None]
        yield [claimed, *rest]


def _owner(path: Path) -> str:
    return path.name.partition(".")[0]


def _of(directory: Path, owner: str) -> list[Path]:
    return sorted(directory.glob(f"{owner}.*{SUFFIX}"))


def _claim(path: Path) -> Segment | None:
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        status = os.fstat(fd)
        if status.st_nlink:
            return Segment(path, fd, status.st_size)
    except OSError:
        pass
    os.close(fd)
    return None


def weight(directory: Path) -> int:
    """Bytes of all journals in the directory, whoever wrote them."""
    total = 0
    for path in directory.glob(f"*{SUFFIX}"):
        try:
            total += path.stat().st_size
        except OSError:
            continue  # removed meanwhile
    return total
