"""What reads a provider's answer as it passes, or when it is in: the same for every API."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from observability.catalog import Outcome
from service.record import Answered


class StreamReader(Protocol):
    """Reads a streamed answer as it passes; changes nothing and never raises."""

    readable: bool
    """Whether plain events can be put into the stream: it is not compressed."""
    listener: Callable[[bytes], None] | None
    """Is shown what each event carries; must not raise."""
    marked: bool
    """Whether the API marks this stream's end; else `over` is what looks like one, and more may come."""

    def feed(self, chunk: bytes) -> None:
        """See the next bytes."""
        ...

    @property
    def opened_with(self) -> str | None:
        """What the first event was: None (none yet), `content` (anything but an error, a ping too) or `error`."""
        ...

    @property
    def over(self) -> bool:
        """Whether the provider has said its last word: its end marker, or an error."""
        ...

    def end(self) -> None:
        """The bytes have ended, and not because something broke."""
        ...

    def ended(self) -> tuple[Outcome, str | None]:
        """Outcome and error type of a stream whose bytes ended here."""
        ...

    @property
    def answered(self) -> Answered:
        """What the stream has said so far; what it never said is None."""
        ...


class WholeReader(Protocol):
    """Reads a JSON answer that comes in one piece; never raises."""

    def feed(self, chunk: bytes) -> None:
        """See the next bytes."""
        ...

    @property
    def body(self) -> bytes:
        """The bytes, inflated."""
        ...

    def ended(self) -> tuple[Outcome, str | None]:
        """Outcome and error type, by status and body."""
        ...

    @property
    def answered(self) -> Answered:
        """What the answer said; nothing for a body that is no answer to an inference."""
        ...


AnyReader = WholeReader | StreamReader
