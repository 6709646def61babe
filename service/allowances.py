"""Limits of named clients: who may ask which model, and how much; told before the provider hears of it."""

from __future__ import annotations

from asyncio import AbstractEventLoop
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase

from service.account.call import Call
from service.account.estimate import tokens_of
from service.account.exchange import Exchange
from service.errors import BatchForbidden, ClientLimited, ModelForbidden
from service.pacer.clients import ClientLimits
from service.policy.limits import Limits, Reached
from service.record import Certainty, Usage

_WHAT = {
    "requests": "requests per minute",
    "tokens": "tokens per minute",
    "concurrency": "requests at a time",
    "budget": "spending per day",
}


@dataclass(frozen=True, slots=True)
class Allowance:
    """What one client may do; `models` are patterns, none: all."""

    limits: Limits
    models: tuple[str, ...] = ()

    def takes(self, model: str) -> bool:
        """Whether the model may be asked."""
        return not self.models or any(fnmatchcase(model, pattern) for pattern in self.models)


class Allowances:
    """Lets calls of named clients in, one by one. A client without an allowance may do what it likes."""

    def __init__(self, limits: ClientLimits, allowances: Mapping[str, Allowance]) -> None:
        self._limits, self._allowances = limits, allowances

    @property
    def have_budgets(self) -> bool:
        """Whether anybody's spending is limited."""
        return any(allowed.limits.budget is not None for allowed in self._allowances.values())

    def restore(self, spends: Mapping[str, int]) -> None:
        """What clients have spent today, in nano-dollars, as the ledger has it: budgets outlive a restart."""
        for client, nano_dollars in spends.items():
            if (allowed := self._allowances.get(client)) is not None:
                self._limits.restore(client, allowed.limits, nano_dollars)

    def spent_on(self, loop: AbstractEventLoop | None) -> Callable[[str, int], None]:
        """To be told, by another thread, what a client's message batches have cost (nano-dollars): that is known only when
        their results are read. `loop` is where the limits live; None: nowhere, they are not counted against a budget."""

        def count(client: str, nano_dollars: int) -> None:
            if (allowed := self._allowances.get(client)) is not None:
                self._limits.spend(client, allowed.limits, nano_dollars)

        def tell(client: str, nano_dollars: int) -> None:
            if loop is not None:
                with suppress(RuntimeError):  # the loop is closed: the ledger tells the next process
                    loop.call_soon_threadsafe(count, client, nano_dollars)

        return tell

    def restored_on(self, loop: AbstractEventLoop) -> Callable[[Mapping[str, int]], None] | None:
        """To be told, by another thread, what clients have spent today by the ledger; None if nobody's is limited."""

        def tell(spends: Mapping[str, int]) -> None:
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(self.restore, spends)

        return tell if self.have_budgets else None

    def at_a_time(self, client: str | None) -> int | None:
        """How many calls of a client may be under way; None: any number."""
        allowed = self._allowances.get(client or "")
        return None if allowed is None else allowed.limits.concurrency

    def may_ask(self, client: str | None, model: str) -> bool:
        """Whether a model may stand in for one that the client asked for."""
        allowed = self._allowances.get(client or "")
        return allowed is None or allowed.takes(model)

    def admit(self, exchange: Exchange, call: Call) -> None:
        """Count a call. Raises `ModelForbidden` or `ClientLimited`. What it uses is counted as it ends."""
        client = exchange.client
        allowed = self._allowances.get(client or "")
        if client is None or allowed is None or (call.operation is None and not call.buys):
            return
        model = call.wanted or ""
        if call.buys and allowed.models:
            raise BatchForbidden(client)
        if not call.buys and not allowed.takes(model):
            raise ModelForbidden(client, model)
        admitted = self._limits.admit(client, allowed.limits)
        if isinstance(admitted, Reached):
            exchange.left = self._limits.remaining(client, allowed.limits)
            raise ClientLimited(
                f"client {client!r} has used up its limit of {_WHAT[admitted.limit]}",
                limit=admitted.limit,
                retry_after=admitted.retry_after,
            )
        exchange.left = admitted.left

        def settle(ended: Call) -> None:
            admitted.spent(_tokens(ended), ended.cost.total if ended.cost is not None else 0)
            admitted.close()

        call.on_end.append(settle)


def _tokens(call: Call) -> int:
    """What a call used of a client's tokens: as the provider said, else as its bytes make likely. A call that was sent and
    that nobody waited for has used its input too: its cost is an estimate, as that of whatever the provider did not say."""
    said = call.answered()
    usage = said.usage or Usage()
    worked = call.cost is not None and call.cost.certainty is not Certainty.EXACT
    unsaid = worked or (usage.output_tokens is None and said.content_bytes)
    tokens_in = call.input_estimate if usage.input_tokens is None and unsaid else usage.input_tokens
    tokens_out = tokens_of(said.content_bytes) if usage.output_tokens is None else usage.output_tokens
    return (tokens_in or 0) + tokens_out
