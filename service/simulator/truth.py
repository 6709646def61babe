"""The true count of what was served and billed, and a recording of what came in."""

import re
from bisect import bisect_left
from collections import Counter, deque
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from typing import Literal, NamedTuple

import msgspec

Ending = Literal["open", "completed", "aborted", "cut", "errored"]
_CREDENTIALS = frozenset((b"x-api-key", b"x-goog-api-key", b"authorization", b"proxy-authorization", b"cookie"))
_BANDS = (100_000, 200_000)
_QUERY_KEY = re.compile(r"(?:^|(?<=&))key=([^&]*)")


@lru_cache(maxsize=4096)
def hashed(secret: str) -> str:
    """Sixteen hex digits that stand for a key; the key itself is never shown."""
    return sha256(secret.encode()).hexdigest()[:16]


class Billed(msgspec.Struct, gc=False):
    """Tokens that were billed, for every API in the same way: the three kinds of input do not overlap, and output is
    all output. The last two are parts of others: of what was written to the cache, and of the output."""

    requests: int = 0
    input_tokens: int = 0
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int = 0
    output_tokens: int = 0
    cache_creation_1h_input_tokens: int = 0
    reasoning_output_tokens: int = 0

    def add(self, other: "Billed") -> None:
        """Add `other` to this."""
        self.requests += other.requests
        self.input_tokens += other.input_tokens
        self.cache_creation_input_tokens += other.cache_creation_input_tokens
        self.cache_read_input_tokens += other.cache_read_input_tokens
        self.output_tokens += other.output_tokens
        self.cache_creation_1h_input_tokens += other.cache_creation_1h_input_tokens
        self.reasoning_output_tokens += other.reasoning_output_tokens


class Place(NamedTuple):
    """What is told apart in the usage and cost reports of Claude's Admin API. Bands of the prompt: up to 100,000
    tokens, up to 200,000, above."""

    minute: int
    key_hash: str
    model: str
    tier: str
    geo: str
    speed: str
    band: int


class Line(msgspec.Struct, gc=False):
    """One request: what it was, how it ended, what was billed. Times in seconds since the epoch."""

    request_id: str
    method: str
    path: str
    started: float
    provider: str = "anthropic"  # whose API was asked: anthropic, gemini, openai
    key_hash: str = ""
    kind: str = "other"  # message, stream, count_tokens, batch, other
    model: str | None = None
    message_id: str | None = None
    status: int = 0  # 0: no status line was sent
    inference_geo: str = "global"
    speed: str = "standard"
    fault: str = ""
    ending: Ending = "open"  # of the response: aborted by the client, cut by a fault, errored in-band
    billed: Billed = msgspec.field(default_factory=Billed)
    first_byte: float | None = None
    ended: float | None = None
    trace_id: str = ""  # of the traceparent that came with it


class Recorded(msgspec.Struct, gc=False):
    """One request as it came in. The body is kept as its SHA-256 and length only."""

    request_id: str
    method: str
    path: str
    query: str
    headers: tuple[tuple[bytes, bytes], ...]
    body_sha256: str = sha256().hexdigest()
    body_bytes: int = 0

    def shown(self) -> dict[str, object]:
        """As JSON: headers in the order received, names as spelled by the client."""
        headers = [[name.decode("latin-1"), value.decode("latin-1")] for name, value in self.headers]
        return {name: getattr(self, name) for name in self.__struct_fields__} | {"headers": headers}


def without_credentials(headers: tuple[tuple[bytes, bytes], ...]) -> tuple[tuple[bytes, bytes], ...]:
    """The headers with the SHA-256 of each credential in its place."""
    return tuple([(name, _masked(value)) if name.lower() in _CREDENTIALS else (name, value) for name, value in headers])


def without_key(query: str) -> str:
    """The query with the SHA-256 of Gemini's `key` in its place."""
    return _QUERY_KEY.sub(lambda found: f"key={_masked(found[1].encode()).decode()}", query)


@lru_cache(maxsize=4096)
def _masked(secret: bytes) -> bytes:
    return sha256(secret).hexdigest().encode()


@dataclass
class Truth:
    """Counts since the start or the last reset."""

    keep_lines: int
    keep_requests: int
    by_status: Counter[int] = field(default_factory=Counter)
    streams: Counter[str] = field(default_factory=Counter)
    billed: dict[tuple[str, str, str, str], Billed] = field(default_factory=dict)
    usage: dict[Place, Billed] = field(default_factory=dict)  # of Claude alone
    in_flight: int = 0

    def __post_init__(self) -> None:
        self.lines: deque[Line] = deque(maxlen=self.keep_lines)
        self.requests: deque[Recorded] = deque(maxlen=self.keep_requests)

    def close(self, line: Line) -> None:
        """Count a request that has ended."""
        self.by_status[line.status] += 1
        if line.kind == "stream" and line.status == 200:
            self.streams[line.ending] += 1
        if line.billed.requests and line.model:
            self.bill(line, line.model, line.kind, line.billed, line.ended or line.started)
        self.lines.append(line)

    def bill(self, line: Line, model: str, kind: str, billed: Billed, at: float) -> None:
        """Add one answer to the bill of the key that asked for it."""
        self.billed.setdefault((line.provider, line.key_hash, model, kind), Billed()).add(billed)
        if line.provider == "anthropic":
            prompt = billed.input_tokens + billed.cache_creation_input_tokens + billed.cache_read_input_tokens
            band = bisect_left(_BANDS, prompt)
            tier = "batch" if kind == "batch" else "standard"
            place = Place(int(at // 60), line.key_hash, model, tier, line.inference_geo, line.speed, band)
            self.usage.setdefault(place, Billed()).add(billed)

    def reset(self) -> None:
        """Forget all but what is in flight, which will be counted when it ends."""
        for each in (self.by_status, self.streams, self.billed, self.usage, self.lines, self.requests):
            each.clear()

    def counts(self, *, with_calls: bool = True) -> dict[str, object]:
        """What GET /_simulator/counts shows; `?calls=0` leaves the list of calls out."""
        streams: dict[str, int] = {name: self.streams[name] for name in ("completed", "aborted", "cut", "errored")}
        billed = [
            {"provider": who, "key_hash": key, "model": model, "kind": kind, **msgspec.structs.asdict(bill)}
            for (who, key, model, kind), bill in self.billed.items()
        ]
        by_status = {str(status): count for status, count in sorted(self.by_status.items())}
        requests = {"total": self.by_status.total(), "in_flight": self.in_flight, "by_status": by_status}
        return {
            "requests": requests,
            "streams": streams,
            "billed": billed,
            "calls": list(self.lines) if with_calls else [],
        }
