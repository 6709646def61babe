"""One `/metrics` for all workers of a host: each renders its own families, any one splices them together.

Rendered text is fetched from the siblings over local sockets and joined by family, never parsed. Rendering gives the
event loop back every few hundred lines. Formats: OpenMetrics 1.0 (with exemplars) and the classic text 0.0.4.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import msgspec
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.samples import Sample
from prometheus_client.utils import floatToGoString as _library_number

from observability import catalog
from observability.catalog import Metric
from observability.metrics import Metrics

OPEN_METRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
CLASSIC = "text/plain; version=0.0.4; charset=utf-8"

SLICE_LINES = 100
"""Lines rendered before the loop gets its turn: about a millisecond."""
PATIENCE = 1.0
"""Seconds that a sibling may take; one that takes longer is reported down. Prometheus' own default timeout is ten."""


class Piece(msgspec.Struct, array_like=True):
    """One worker's samples of one family: `head` is its HELP and TYPE, `body` its lines.

    Of a per-host family a piece is one series instead, seen at `seen` (Unix time): only the newest is shown.
    """

    name: str
    head: str
    body: str
    series: str = ""
    seen: float = 0.0


@dataclass(frozen=True, slots=True)
class Place:
    """Where a worker stands among its siblings: its slot, the name they share (none: it has no siblings), and who lives.

    `living` tells the slots taken now; one whose worker has gone since may be among them.
    """

    slot: int = 0
    token: str = ""
    living: Callable[[], Iterable[int]] = tuple

    def address(self, slot: int) -> str:
        """The abstract socket (no file; Linux) of a slot's worker."""
        return f"\0claude-proxy-{self.token}-{slot}"


class Exposition:
    """Answers `/metrics`. `start` and `stop` it on the worker's loop; without siblings neither is needed."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._place = Place()
        self._server: asyncio.Server | None = None

    async def start(self, place: Place) -> None:
        """Listen for siblings. Elsewhere than on Linux, which alone has abstract sockets, a worker knows only itself."""
        if sys.platform != "linux":
            return
        self._place = place
        if place.token:
            self._server = await asyncio.start_unix_server(self._answer_sibling, path=place.address(place.slot))

    async def stop(self) -> None:
        """Stop listening; a sibling that asks from now on finds nobody here."""
        if self._server is not None:
            self._server.close()

    async def text(self, accept: str) -> tuple[bytes, str]:
        """All workers' metrics and their content type, by the scraper's Accept header; within about `PATIENCE`."""
        openmetrics = "application/openmetrics-text" in accept
        others = [slot for slot in self._place.living() if slot != self._place.slot]
        own, *answers = await asyncio.gather(self._render(openmetrics), *(self._ask(s, openmetrics) for s in others))
        up = {self._place.slot: True} | {s: a is not None for s, a in zip(others, answers, strict=True) if a != []}
        pieces = [_worker_up(up), *(own or []), *(piece for answer in answers for piece in answer or [])]
        end = "# EOF\n" if openmetrics else ""
        return (_splice(pieces) + end).encode(), OPEN_METRICS if openmetrics else CLASSIC

    async def _render(self, openmetrics: bool) -> list[Piece] | None:
        label = f'worker="{self._place.slot}"'
        pieces = []
        counts: dict[str, int] = {}
        for family in self._metrics.registry.collect():
            lines: list[str] = []
            for sample in family.samples:
                lines.append(_line(sample, label, openmetrics))
                if len(lines) % SLICE_LINES == 0:
                    await asyncio.sleep(0)
            counts[family.name] = len(lines)
            pieces.append(Piece(family.name, _head(family, openmetrics), "".join(lines)))
            await asyncio.sleep(0)
        return [*pieces, _series(counts, label), *(_newest(*seen) for seen in self._metrics.newest())]

    async def _ask(self, slot: int, openmetrics: bool) -> list[Piece] | None:
        """A sibling's pieces; empty when nobody has that slot, None when its worker does not answer in time."""
        try:
            async with asyncio.timeout(PATIENCE):
                reader, writer = await asyncio.open_unix_connection(self._place.address(slot))
                with contextlib.closing(writer):
                    if not _is_ours(writer):
                        return []  # another user's process has taken a free slot's name; its figures are not ours
                    writer.write(b"o" if openmetrics else b"c")
                    answer = await reader.read(-1)
            return msgspec.msgpack.decode(answer, type=list[Piece])
        except ConnectionRefusedError:
            return []
        except (OSError, TimeoutError, msgspec.DecodeError):
            return None

    async def _answer_sibling(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A sibling that waits no longer (we were blocked) has hung up: nobody's error.
        with contextlib.closing(writer), contextlib.suppress(OSError):
            if not _is_ours(writer):
                return
            wanted = await reader.read(1)
            writer.write(msgspec.msgpack.encode(await self._render(wanted == b"o")))
            await writer.drain()


def _is_ours(writer: asyncio.StreamWriter) -> bool:
    """Whether the peer runs as our user: an abstract socket has no file permissions to say so."""
    peer: socket.socket = writer.get_extra_info("socket")
    _pid, uid, _gid = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return bool(uid == os.getuid())


def _splice(pieces: Sequence[Piece]) -> str:
    families: dict[str, list[str]] = {}
    newest: dict[str, Piece] = {}
    for piece in pieces:
        if piece.series and piece.seen >= newest.get(piece.series, piece).seen:
            newest[piece.series] = piece
    for piece in (p for p in pieces if not p.series or newest[p.series] is p):
        families.setdefault(piece.name, [piece.head]).append(piece.body)
    return "".join(text for parts in families.values() for text in parts)


def _newest(metric: Metric, labels: tuple[str, ...], value: float, seen: float) -> Piece:
    text = ",".join(f'{k}="{_escape(v)}"' for k, v in zip(metric.labels, labels, strict=True) if v)
    series = f"{metric.name}{{{text}}}"
    return Piece(metric.name, _gauge_head(metric), f"{series} {_number(value)}\n", series, seen)


def _gauge_head(metric: Metric) -> str:
    return f"# HELP {metric.name} {_escape(metric.help)}\n# TYPE {metric.name} gauge\n"


def _worker_up(up: dict[int, bool]) -> Piece:
    name = catalog.WORKER_UP.name
    lines = (f'{name}{{worker="{slot}"}} {int(alive)}\n' for slot, alive in sorted(up.items()))
    return Piece(name, _gauge_head(catalog.WORKER_UP), "".join(lines))


def _series(counts: dict[str, int], worker: str) -> Piece:
    row = catalog.SERIES
    lines = (f'{row.name}{{{row.labels[0]}="{name}",{worker}}} {count}\n' for name, count in counts.items())
    return Piece(row.name, _gauge_head(row), "".join(lines))


def _head(family: Family, openmetrics: bool) -> str:
    name, kind = family.name, family.type
    if not openmetrics:
        # Classic text knows counters by their sample's name, and no info, unknown or gauge histogram type.
        name += {"counter": "_total", "info": "_info"}.get(kind, "")
        kind = {"info": "gauge", "unknown": "untyped", "stateset": "gauge"}.get(kind, kind)
    text = _escape(family.documentation) if openmetrics else family.documentation.replace("\\", "\\\\")
    return f"# HELP {name} {text}\n# TYPE {name} {kind}\n"


def _line(sample: Sample, worker: str, openmetrics: bool) -> str:
    labels = "".join(f'{key}="{_escape(value)}",' for key, value in sample.labels.items() if value)
    text = f"{sample.name}{{{labels}{worker}}} {_number(sample.value)}"
    exemplar = sample.exemplar
    if exemplar is None or not openmetrics:
        return text + "\n"
    ids = ",".join(f'{key}="{_escape(value)}"' for key, value in exemplar.labels.items())
    return f"{text} # {{{ids}}} {_number(exemplar.value)} {exemplar.timestamp}\n"


def _number(value: float) -> str:
    text: str = _library_number(value)  # type: ignore[no-untyped-call]
    return text


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
