"""The shared state as one worker uses it: under its lock, or later, or not at all."""

from __future__ import annotations

from collections.abc import Callable

from service.store.shared import Change, SharedState

_MANY = 16
"""Changes that may wait for the next decision of this worker."""


class Access:
    """Worker `slot`'s way to `state`. `fail_open` is called for each decision made without it."""

    def __init__(self, state: SharedState, slot: int, fail_open: Callable[[], None]) -> None:
        self.state, self.slot, self.fail_open = state, slot, fail_open
        self._later = state.later
        state.use_slot(slot)

    def enter(self) -> bool:
        """True with the lock held and what had to wait for it done; False: decide without."""
        if not self.state.region.lock():
            return False
        try:
            while self._later:
                self._later.popleft()()
        except BaseException:
            self.leave()
            raise
        return True

    def leave(self) -> None:
        """Give the lock back."""
        self.state.region.unlock()

    def later(self, change: Change) -> None:
        """Do `change` when the lock is next held."""
        self._later.append(change)

    def soon(self, change: Change) -> None:
        """Do `change` when the lock is next held, which is mostly a moment later: taking it once for two changes saves
        more than they cost. For what other workers need not know at once."""
        self._later.append(change)
        if len(self._later) >= _MANY and self.enter():
            self.leave()

    def change(self, change: Change) -> None:
        """Do `change` now, or as soon as the lock can be had; always in the order asked for."""
        if self.enter():
            try:
                change()
            finally:
                self.leave()
        else:
            self.later(change)
