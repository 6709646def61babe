"""Prompt caching: a prefix marked with cache_control is written the first time and read while it lives.

Simpler than the API: no minimum length, and any earlier boundary of the prompt can be found again.
Source of the lifetimes and the limit of four marks: the Prompt caching page.
"""

from collections import OrderedDict
from dataclasses import dataclass
from hashlib import blake2b

import msgspec

from service.simulator import request as requests
from service.simulator.errors import invalid
from service.simulator.request import Prompt

_LIFETIME = {"5m": 300.0, "1h": 3600.0}
_MAX_ENTRIES = 10_000
_MAX_MARKS = 4


@dataclass(slots=True)
class InputUsage:
    """Input tokens by how they are billed; the three kinds do not overlap."""

    plain: int = 0
    written_5m: int = 0
    written_1h: int = 0
    read: int = 0

    @property
    def limited(self) -> int:
        """What counts towards the input token limit: all but cache reads (Rate limits page)."""
        return self.plain + self.written_5m + self.written_1h


@dataclass(slots=True)
class _Boundary:
    digest: bytes
    size: int
    ttl: str  # of the mark that stands here; "" without one


class PromptCache:
    """Which prefixes are kept, for all keys; the oldest are forgotten when there are too many."""

    def __init__(self) -> None:
        self._expiry: OrderedDict[bytes, float] = OrderedDict()

    def use(self, owner: str, request: Prompt, now: float) -> InputUsage:
        """Look `request` up for `owner` (key and model), remember its marked prefixes, split its input tokens."""
        boundaries = list(_boundaries(owner, request))
        marks = [boundary for boundary in boundaries if boundary.ttl]
        if len(marks) > _MAX_MARKS:
            raise invalid(
                f"A maximum of {_MAX_MARKS} blocks with cache_control may be provided. Found {len(marks)}.",
            )
        total = requests.tokens(boundaries[-1].size) if boundaries else 0
        if not marks:
            return InputUsage(plain=total)
        candidates = boundaries[: boundaries.index(marks[-1]) + 1]
        hit = next((one for one in reversed(candidates) if self._expiry.get(one.digest, 0.0) > now), None)
        usage = InputUsage(read=requests.tokens(hit.size) if hit else 0)
        done = usage.read
        for mark in marks:
            fresh = max(0, requests.tokens(mark.size) - done)
            done += fresh
            if mark.ttl == "1h":
                usage.written_1h += fresh
            else:
                usage.written_5m += fresh
            self._keep(mark.digest, now + _LIFETIME[mark.ttl])
        usage.plain = total - done
        return usage

    def _keep(self, digest: bytes, until: float) -> None:
        self._expiry[digest] = max(until, self._expiry.get(digest, 0.0))
        self._expiry.move_to_end(digest)
        if len(self._expiry) > _MAX_ENTRIES:
            self._expiry.popitem(last=False)


def _boundaries(owner: str, request: Prompt) -> list[_Boundary]:
    """Every place where a cached prefix may end."""
    running, size, found = blake2b(owner.encode(), digest_size=16), 0, []
    for where, part in requests.parts(request):
        size += requests.size(part)
        mark = None if isinstance(part, str) else part.cache_control
        if isinstance(part, str):
            running.update(f"{where}\0{part}\0".encode())
        else:
            part.cache_control = None
            running.update(where.encode() + msgspec.json.encode(part))
            part.cache_control = mark
        found.append(_Boundary(running.digest(), size, mark.ttl if mark else ""))
    if request.cache_control and found:
        found[-1].ttl = request.cache_control.ttl
    return found
