"""The state that workers share: what they write as they start."""

from __future__ import annotations

import threading

from service.pacer.shared import shared_state


def test_workers_that_start_together_do_not_overwrite_each_others_slot() -> None:
    state = shared_state(8)
    assert state.region.lock()
    other = threading.Thread(target=state.use_slot, args=(3,))
    other.start()
    other.join(0.05)
    assert other.is_alive()  # it waits for whoever is at it
    state.region.unlock()
    other.join(5)
    state.use_slot(1)
    assert state.slots == 4
    state.region.close()
