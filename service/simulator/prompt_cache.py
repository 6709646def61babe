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
_IMPLICIT_LIFETIME = 1800.0
_IMPLICIT_MINIMUM, _IMPLICIT_STEP = 1024, 128  # tokens; OpenAI's prompt caching guide


@dataclass(slots=True)
class InputUsage:
    """Input tokens by how they are billed; the three kinds do not overlap."""

    plain: int = 0
    written_5m: int = 0
    written_1h: int = 0
    read: int = 0

    @property
    def written(self) -> int:
        """All that was written to the cache."""
        return self.written_5m + self.written_1h

    @property
    def limited(self) -> int:
        """What counts towards the input token limit: all but cache reads (Rate limits page)."""
        return self.plain + self.written


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


class ImplicitCache:
    """Prefixes that are kept without being asked to: what OpenAI and Gemini do with any long prompt."""

    def __init__(self) -> None:
        self._expiry: OrderedDict[bytes, float] = OrderedDict()

    def use(self, owner: str, request: Prompt, now: float, *, writes: bool) -> InputUsage:
        """Look `request` up for `owner` (provider, key and model), remember it, and split its input tokens. What is
        written counts as plain input unless the model `writes`, that is, bills for it."""
        boundaries = list(_boundaries(owner, request))
        total = requests.tokens(boundaries[-1].size) if boundaries else 0
        if total < _IMPLICIT_MINIMUM:
            return InputUsage(plain=total)
        hit = next((one for one in reversed(boundaries) if self._expiry.get(one.digest, 0.0) > now), None)
        read = _kept(hit.size) if hit else 0
        written = _kept(boundaries[-1].size) - read if writes else 0
        for boundary in boundaries:
            if _kept(boundary.size):
                self._keep(boundary.digest, now + _IMPLICIT_LIFETIME)
        return InputUsage(plain=total - read - written, written_5m=written, read=read)

    def _keep(self, digest: bytes, until: float) -> None:
        self._expiry[digest] = until
        self._expiry.move_to_end(digest)
        if len(self._expiry) > _MAX_ENTRIES:
            self._expiry.popitem(last=False)


def _kept(size_in_bytes: int) -> int:
    """How many tokens of a prefix are worth keeping: whole steps, none of a short one."""
    tokens = requests.tokens(size_in_bytes)
    return tokens // _IMPLICIT_STEP * _IMPLICIT_STEP if tokens >= _IMPLICIT_MINIMUM else 0


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
