"""One request being served: who asks, what it shall be like, how it ends, and the ways to break it."""

import asyncio
import gzip
import random
import socket
import struct
import zlib
from hashlib import sha256
from typing import NoReturn

import msgspec
from aiohttp import StreamReader, web

from service.simulator.config import Clock, Config
from service.simulator.errors import ApiError, invalid
from service.simulator.face import CLAUDE, Face
from service.simulator.faults import PLAIN, Scenario, Schedule, parse
from service.simulator.generate import new_id
from service.simulator.limits import Limiter, RateLimits
from service.simulator.prompt_cache import ImplicitCache, PromptCache
from service.simulator.truth import Ending, Line, Recorded, Truth, hashed, without_credentials, without_key

JSON = "application/json"


class Simulator:
    """What all requests share."""

    def __init__(self, config: Config, clock: Clock) -> None:
        self.config, self.clock = config, clock
        self.truth = Truth(config.record_calls, config.record_requests)
        self.dice = random.Random(config.seed)  # of delays; what is said depends on the request alone
        self.reset()

    def reset(self) -> None:
        """Start afresh: counts, recording, rate limits, prompt cache, and the schedule that it was started with."""
        self.truth.reset()
        self.limiter = Limiter(self.config.limits)
        self.pools: dict[tuple[str, str, str], RateLimits] = {}  # by provider, key and model; Claude's are above
        self.cache = PromptCache()
        self.implicit_cache = ImplicitCache()
        self.schedule = Schedule(self.config.schedule, self.clock.time())


class Call:
    """One request from its first byte to its last; `close` writes it into the truth, once."""

    def __init__(self, sim: Simulator, request: web.Request, face: Face = CLAUDE) -> None:
        self.sim, self.request, self.face = sim, request, face
        self.scenario: Scenario = PLAIN
        self.body = b""
        self.streaming = False
        self.headers: dict[str, str] = {}
        path, _, query = request.raw_path.partition("?")
        self.line = Line(face.request_id(), request.method, path, sim.clock.time(), face.provider)
        self.line.trace_id = request.headers.get("traceparent", "")[3:35]
        headers = request.raw_headers
        if not sim.config.record_headers:
            headers, query = without_credentials(headers), without_key(query) if query else ""
        self.recorded = Recorded(self.line.request_id, request.method, path, query, headers)
        sim.truth.requests.append(self.recorded)
        sim.truth.in_flight += 1

    def authenticate(self) -> None:
        """Find the key and look at the headers, or raise the API's refusal."""
        key = self.face.credential(self.request)
        allowed = self.sim.config.api_keys
        if allowed and key not in allowed:
            raise self.face.wrong_key()
        self.line.key_hash = hashed(key)
        self.face.check(self.request)

    def choose_scenario(self) -> None:
        """Take the scenario of the header, else of the schedule."""
        asked = self.request.headers.get("x-simulator-scenario")
        if asked is not None:
            self.scenario = parse(asked)
        else:
            self.scenario = self.sim.schedule.choose(self.line.path, self.sim.clock.time()) or PLAIN
        self.line.fault = self.scenario.fault

    async def read_body(self, limit: int) -> None:
        """Read the body into `body`; raises 413 beyond `limit` bytes, 400 for an encoding that is not understood."""
        content = self.request.content
        if (self.request.content_length or 0) > limit:
            raise too_large()
        data = content.read_nowait() if content.is_eof() else await _rest(content, limit)
        self.recorded.body_bytes, self.recorded.body_sha256 = len(data), sha256(data).hexdigest()
        self.body = _decoded(data, self.request.headers.get("content-encoding", "identity"), limit)

    def delay(self, asked: float | None, usual: float) -> float:
        """Seconds to wait: exactly what the scenario asks, else drawn around what is usual; both in ms."""
        if asked is not None:
            return asked / 1000
        return usual * self.sim.dice.lognormvariate(0, self.sim.config.jitter) / 1000 if usual else 0.0

    async def wait(self, seconds: float) -> None:
        """Wait, if there is anything to wait for."""
        if seconds > 0:
            await self.sim.clock.sleep(seconds)

    def response_headers(self) -> dict[str, str]:
        """What every response carries."""
        seconds = self.sim.clock.time() - self.line.started
        headers = {**self.face.headers(self.line.request_id, seconds), **self.headers}
        if self.scenario.cookie:
            headers["set-cookie"] = f"__cf_bm={new_id('', 24)}; path=/; HttpOnly; Secure"
        if self.scenario.should_retry is not None:
            headers["x-should-retry"] = str(self.scenario.should_retry).lower()
        return headers

    def answer(self, payload: object, status: int = 200) -> web.Response:
        """A finished JSON answer."""
        return self.raw(msgspec.json.encode(payload), JSON, status)

    def raw(self, body: bytes, content_type: str, status: int = 200) -> web.Response:
        """A finished answer of any type."""
        self.line.status = status
        headers = self.response_headers()
        headers["content-type"] = content_type
        if self.scenario.gzip and "gzip" in self.request.headers.get("accept-encoding", ""):
            body = gzip.compress(body, mtime=0)
            headers["content-encoding"] = "gzip"
        return web.Response(body=body, status=status, headers=headers)

    def refuse(self, error: ApiError) -> web.Response:
        """An error as an answer."""
        self.headers.update(error.headers)
        return self.raw(self.face.body(error, self.request, self.line.request_id), JSON, error.status)

    def close(self, ending: Ending = "completed") -> None:
        """Write the call into the truth; only the first ending counts."""
        if self.line.ending == "open":
            self.line.ending = ending
            self.line.ended = self.sim.clock.time()
            self.sim.truth.in_flight -= 1
            self.sim.truth.close(self.line)

    async def hang(self) -> NoReturn:
        """Wait until the client leaves, which cancels this task."""
        while True:
            await asyncio.Event().wait()

    async def drop(self, *, reset: bool) -> NoReturn:
        """End the connection, politely (FIN, what was written arrives) or with a reset (RST)."""
        self.close("cut")
        transport = self.request.transport
        if transport is not None and reset:
            sock: socket.socket = transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            transport.abort()
        elif transport is not None:
            transport.close()
        await self.hang()


def too_large() -> ApiError:
    """The 413 for a body beyond the limit of its route."""
    return ApiError(413, "request_too_large", "Request exceeds the maximum size")


async def _rest(content: StreamReader, limit: int) -> bytes:
    pieces, size = [], 0
    async for piece in content.iter_any():
        size += len(piece)
        if size > limit:
            raise too_large()
        pieces.append(piece)
    return b"".join(pieces)


def _decoded(data: bytes, encoding: str, limit: int) -> bytes:
    if encoding == "identity":
        return data
    if encoding not in ("gzip", "deflate"):
        raise invalid(f"Unsupported Content-Encoding: {encoding}", "request_body_encoding_unsupported")
    unpack = zlib.decompressobj(zlib.MAX_WBITS | 32 if encoding == "gzip" else zlib.MAX_WBITS)
    try:
        plain = unpack.decompress(data, limit + 1)
    except zlib.error:
        raise invalid(f"The request body is not valid {encoding}", "request_body_encoding_invalid") from None
    if len(plain) > limit:
        raise ApiError(413, "request_too_large", "Too large", code="request_body_too_large_after_decoding")
    return plain
