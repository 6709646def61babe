"""A worker that keeps books as fast as it can, to be killed: `python -m tests.support.bookkeeper DIRECTORY`.

Says on stdout `b ID` once a call's start is in the journal and `e ID` once its end is; always has some calls under way.
"""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

from service.account.rows import new_call_id
from tests.support.book import Book, row, started


def main(directory: str) -> None:
    """Runs until it is killed. Small files, so that it dies between two of them too."""
    book = Book(Path(directory), segment_bytes=20_000)
    book.writer.start()
    under_way: list[str] = []
    while True:
        call_id = new_call_id()
        book.journal.began(started(call_id))
        os.write(1, f"b {call_id}\n".encode())
        under_way.append(call_id)
        if len(under_way) > 20:
            ending = under_way.pop(random.randrange(len(under_way)))
            book.journal.ended(row(ending))
            os.write(1, f"e {ending}\n".encode())


if __name__ == "__main__":
    main(sys.argv[1])
