"""The host's shared state with the right widths, and taking back what a killed worker held."""

from __future__ import annotations

from service.pacer.pools import Pools
from service.pacer.retries import WIDTH
from service.policy.fairness import CLIENTS
from service.policy.limits import Counts
from service.policy.pacing import Pool
from service.store.shared import Shape, SharedState

_PATIENCE = 0.1


def shared_state(slots: int = 4096) -> SharedState:
    """Made in the master, before it forks. `slots`: workers that can be alive at a time."""
    return SharedState(Shape(Pool.WIDTH, CLIENTS, Counts.WIDTH, WIDTH, slots=slots))


def forget_slot(state: SharedState, slot: int) -> bool:
    """Take back what the dead worker of `slot` held: unanswered calls, places in queues, concurrency.

    What it had taken from the levels stays taken: the provider has counted those calls. For the master, when it has
    reaped a worker and before it forks one into the slot. False: the lock could not be had, try again.
    """
    if not state.region.lock(_PATIENCE):
        return False
    try:
        if slot < state.slots:
            state.beats.clear(slot)
            pools = Pools(state)
            for index in range(state.shape.pools):
                if state.pool_keys.key(index) is not None:
                    pools.forget(index, slot)
            for index in range(state.shape.clients):
                if state.client_keys.key(index) is not None:
                    state.active.clear(index * state.shape.slots + slot)
    finally:
        state.region.unlock()
    return True
