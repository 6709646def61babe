"""One provider call while it runs: what its record will say, gathered as it becomes known."""

from __future__ import annotations

from collections.abc import Callable

from msgspec.structs import replace
from opentelemetry.trace import Span

from observability import catalog
from observability.catalog import Attr, Outcome
from observability.tracing import Attributes
from service.account.rows import new_call_id
from service.record import Answered, Attempt, Cost, Quota


class Call:
    """One provider call under way: opened when it is known what is wanted, begun when it may be sent.

    `operation` is set for inference only; then it has a span of its own from its beginning on.
    """

    lane = ""
    """Which limits it counts to, when not to its model's ordinary ones (`Provider.lane`)."""
    span: Span | None = None
    began: float | None = None
    client_before = 0.0
    """Seconds that the request had waited for its client when the call began."""
    content: Callable[[], Attributes] | None = None
    """Tells what was said in it, as attributes of its span; None: that is not to be told."""
    upstream_request_id: str | None = None
    quotas: tuple[Quota, ...] = ()
    queued = paused = 0.0
    """Seconds that this call waited for capacity, and between its attempts."""
    cache: str | None = None
    refused_by: str | None = None
    """Which limit of ours, or of the provider's as we know it, said no before anything was sent."""
    input_estimate: int | None = None
    """Input tokens as guessed from the request's size."""
    sent = False
    """Whether the provider may have got it."""
    cost: Cost | None = None
    buys = False
    """Whether it is no inference but orders some: a message batch."""
    out_of_time = False
    """Whether the time that its caller gave it is over: it is then ended from outside, and that is a timeout."""
    ended = False
    outcome: Outcome | None = None
    """How it ended."""
    _lasted: float | None = None

    def __init__(
        self,
        clock: Callable[[], float],
        provider: str,
        operation: str | None,
        model: str | None,
        streaming: bool,
        attributes: Attributes,
    ) -> None:
        self._clock = clock
        self.id = new_call_id()
        self.opened = clock()
        self.provider, self.operation, self.model, self.streaming = provider, operation, model, streaming
        self.attributes = attributes
        """Of its span."""
        asked = attributes.get(Attr.REQUEST_MAX_TOKENS)
        self.max_output = asked if isinstance(asked, int) else None
        """Output tokens that the request allows; None: no bound."""
        self.wanted = model
        """The model that was asked for; `model` is the one that is asked now."""
        self.attempts: list[Attempt] = []
        self.answered: Callable[[], Answered] = Answered
        """Tells what the answer has said so far; set once an answer is being read."""
        self.on_end: list[Callable[[Call], None]] = []
        """Are told as the call ends, with its cost known: what was reserved for it can be settled."""

    @property
    def stand_in(self) -> str | None:
        """The model asked now, when it is not the one wanted."""
        return self.model if self.model != self.wanted else None

    def elapsed(self) -> float:
        """Seconds since the call began; 0 before."""
        return 0.0 if self.began is None else self._clock() - self.began

    def first_chunk_event(self) -> None:
        """The first piece of the answer's content has come."""
        if self.span is not None:
            self.span.add_event(catalog.FIRST_CHUNK_EVENT)

    def stop_clock(self) -> None:
        """The last byte has come, or the call was given up."""
        if self._lasted is None and self.began is not None:
            self._lasted = self.elapsed()

    def stop_listening(self) -> None:
        """What the answer has said by now is all that it said: asked for several times, it is put together once."""
        listening, self.answered = self.answered, Answered  # if that fails it is nothing, and all else is told
        said = listening()
        self.answered = lambda: said

    @property
    def lasted(self) -> float | None:
        """Seconds the call took, or has taken; None if it was never begun."""
        if self.began is None:
            return None
        return self.elapsed() if self._lasted is None else self._lasted

    def says(self) -> Answered:
        """What the answer said, with the provider's request id."""
        return replace(self.answered(), upstream_request_id=self.upstream_request_id)
