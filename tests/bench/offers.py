"""Open load: requests are offered at their times, whatever became of those before; by clients that retry or do not."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import aiohttp

_SDK_BASE, _SDK_LONGEST, _SDK_PATIENCE = 0.5, 8.0, 60.0
"""Anthropic's SDKs: first pause, longest of their own, and the longest `retry-after` that they follow (all seconds)."""
_SDK_JITTER = 0.25
_SDK_STATUSES = frozenset((408, 409, 429))


@dataclass(frozen=True, slots=True)
class Offer:
    """One request, `at` seconds after the beginning, by client `client` (its key), with `cost` of the limit measured."""

    at: float
    client: str
    body: bytes
    cost: float = 1.0


@dataclass(slots=True)
class Told:
    """What became of an offer. `status` 0: no answer. Times as `Offer.at`."""

    offer: Offer
    ended: float = 0.0
    status: int = 0
    ours: bool = False
    """It was the gateway that refused."""
    statuses: list[int] = field(default_factory=list)
    """Of every attempt of this client."""
    input_tokens: int | None = None

    @property
    def seconds(self) -> float:
        """From the offer to the answer."""
        return self.ended - self.offer.at


@dataclass(frozen=True, slots=True)
class Client:
    """How clients behave: `retries` as Anthropic's SDKs make them. All of them leave `patience` seconds after the end."""

    port: int
    retries: int = 0
    patience: float = 8.0


async def offer(client: Client, offers: Iterable[Offer], began: float) -> list[Told]:
    """Make all offers, in order of time; `began` by `time.monotonic`. Who has no answer at the end gets none."""
    tolds: list[Told] = []
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=60)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=120)) as session:
        running: set[asyncio.Task[None]] = set()
        for one in offers:
            await asyncio.sleep(began + one.at - time.monotonic())
            told = Told(one)
            tolds.append(told)
            running.add(asyncio.ensure_future(_ask(session, client, told, began)))
        if running:
            _, late = await asyncio.wait(running, timeout=client.patience)
            for task in late:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
    return tolds


async def _ask(session: aiohttp.ClientSession, client: Client, told: Told, began: float) -> None:
    url = f"http://127.0.0.1:{client.port}/v1/messages"
    headers = {"x-api-key": told.offer.client, "anthropic-version": "2023-06-01", "content-type": "application/json"}
    for made in range(client.retries + 1):
        status, answer, said = 0, b"", {}
        try:
            async with session.post(url, data=told.offer.body, headers=headers) as response:
                status, said, answer = response.status, dict(response.headers), await response.read()
        except aiohttp.ClientError:
            pass
        told.status, told.ended = status, time.monotonic() - began
        told.statuses.append(status)
        if status == 200:
            told.input_tokens = json.loads(answer)["usage"]["input_tokens"]
            return
        told.ours = b'"source":"claude-proxy"' in answer.replace(b'": "', b'":"')
        pause = _pause(status, said, made)
        if made == client.retries or pause is None:
            return
        await asyncio.sleep(pause)


def _pause(status: int, headers: Mapping[str, str], made: int) -> float | None:
    """Seconds until an SDK tries again; None: it does not."""
    word = headers.get("x-should-retry")
    if word == "false" or (word != "true" and status and status not in _SDK_STATUSES and status < 500):
        return None
    try:
        asked = float(headers.get("retry-after", ""))
    except ValueError:
        asked = 0.0
    if 0 < asked <= _SDK_PATIENCE:
        return asked
    return min(_SDK_LONGEST, _SDK_BASE * 2.0**made) * (1 - _SDK_JITTER * random.random())


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of request: `share` of all, input tokens by the simulator's rule (four bytes each), and output at most.

    `text` is what the prompt repeats: JSON escapes make more bytes of some texts, so that estimates by bytes are wrong.
    """

    share: float
    tokens: int
    max_tokens: int
    text: str = "The quick brown fox jumps over the lazy dog. "


def bodies(model: str, kinds: Sequence[Kind], seed: str) -> Iterator[tuple[Kind, bytes]]:
    """Requests without end. Bodies are made once: only their order is random."""
    dice = random.Random(seed)
    made = [(kind, body(model, kind)) for kind in kinds]
    weights = [kind.share for kind in kinds]
    while True:
        yield dice.choices(made, weights)[0]


def body(model: str, kind: Kind) -> bytes:
    """A Messages request."""
    size = len(kind.text.encode())
    text = kind.text * (kind.tokens * 4 // size)
    text += "." * (kind.tokens * 4 - len(text.encode()))
    messages = [{"role": "user", "content": text}]
    return json.dumps({"model": model, "max_tokens": kind.max_tokens, "messages": messages}).encode()


def times(rate: float, seconds: float, burst: int) -> list[float]:
    """When requests come: `rate` a second, evenly, or `burst` at a time."""
    count = round(rate * seconds)
    return [index // burst * burst / rate for index in range(count)]
