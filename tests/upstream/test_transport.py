"""The transport against real sockets: adds nothing, keeps the failures apart, closes what it must."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

import httpx
import pytest

from service.errors import (
    AnswerTimeout,
    ClientGone,
    ConnectTimeout,
    DiedMidBody,
    GatewayError,
    InvalidAnswer,
    NoAnswer,
    NotSent,
    RequestTimeout,
    Stalled,
)
from service.upstream.transport import Transport
from tests.support.claude import LAST_CHUNK, SSE_HEAD, chunk
from tests.support.poll import poll
from tests.support.processes import nobody
from tests.support.upstream import RawUpstream, Script, Seen, Upstream, answer, json_answer, reset

T = TypeVar("T")

LONG, SHORT = 30.0, 0.05


def _request(
    url: str,
    method: str = "POST",
    *headers: tuple[bytes, bytes],
    body: bytes | AsyncIterator[bytes] = b"{}",
    connect: float = LONG,
    first_byte: float = LONG,
    idle: float = LONG,
) -> httpx.Request:
    return httpx.Request(
        method,
        url,
        headers=list(headers),
        content=body,
        extensions={
            "timeout": {"connect": connect, "first_byte": first_byte, "idle": idle},
            "url": url,
            "streaming_body": not isinstance(body, bytes),
        },
    )


def _with(work: Callable[[Transport], Awaitable[T]], *, proxy: str | None = None) -> T:
    """What `work` returns on a loop of its own, with every connection closed at the end."""

    async def run() -> T:
        transport = Transport(proxy=proxy)
        try:
            return await work(transport)
        finally:
            await transport.aclose()

    return asyncio.run(run())


async def _read(response: httpx.Response) -> bytes:
    stream = response.stream
    assert isinstance(stream, httpx.AsyncByteStream)
    try:
        return b"".join([piece async for piece in stream])
    finally:
        await stream.aclose()


def _whole(request: httpx.Request) -> Callable[[Transport], Awaitable[tuple[int, bytes]]]:
    async def work(transport: Transport) -> tuple[int, bytes]:
        response = await transport.handle_async_request(request)
        return response.status_code, await _read(response)

    return work


def _fails(request: httpx.Request, proxy: str | None = None) -> GatewayError:
    with pytest.raises(GatewayError) as caught:
        _with(_whole(request), proxy=proxy)
    return caught.value


def test_exactly_the_given_headers_go_up_in_their_order_and_the_body_untouched() -> None:
    body = '{"a":  1, "\u2014": [ ]}'.encode()
    given = [(b"x-b", b"2"), (b"anthropic-beta", b"a,b"), (b"x-a", b"1"), (b"x-b", b"3")]
    with Upstream(json_answer(b"ok")) as upstream:
        assert _with(_whole(_request(upstream.url + "/v1/messages", "POST", *given, body=body))) == (200, b"ok")
    (seen,) = upstream.seen
    assert seen.line == "POST /v1/messages HTTP/1.1"
    assert seen.body == body
    own = {"host": upstream.url.removeprefix("http://"), "content-length": str(len(body))}
    assert {k.lower(): v for k, v in seen.headers if k.lower() in own} == own
    assert [(k, v) for k, v in seen.headers if k.lower() not in own] == [(k.decode(), v.decode()) for k, v in given]


def test_a_get_goes_up_without_a_body_or_a_header_of_ours() -> None:
    with Upstream(json_answer(b"ok")) as upstream:
        _with(_whole(_request(upstream.url + "/v1/models", "GET", body=b"")))
    assert [k.lower() for k, _ in upstream.seen[0].headers] == ["host"]


@pytest.mark.parametrize(
    "target", ["/v1/messages?beta=true", "/a%2Fb/%7Ec?x=%20&y=a+b&z", "/v1/models/a:b@c;d,e", "/a//b/../c"]
)
def test_the_target_stands_on_the_wire_as_it_was_written(target: str) -> None:
    with Upstream(json_answer(b"ok")) as upstream:
        _with(_whole(_request(upstream.url + target, "GET", body=b"")))
    assert upstream.seen[0].line == f"GET {target} HTTP/1.1"


def test_one_callers_cookie_is_never_sent_with_anothers_request() -> None:
    with Upstream(lambda c, s: c.sendall(answer("200 OK", b"", "set-cookie: tenant=a; Path=/"))) as upstream:

        async def twice(transport: Transport) -> list[str]:
            url = upstream.url.replace("127.0.0.1", "localhost") + "/"  # jars take no cookies from bare addresses
            answers = [await transport.handle_async_request(_request(url)) for _ in range(2)]
            return [found.headers["set-cookie"] for found in answers]

        assert _with(twice) == ["tenant=a; Path=/"] * 2
    assert [seen.header("cookie") for seen in upstream.seen] == [None, None]


def test_a_redirect_is_an_answer_and_is_not_followed() -> None:
    with Upstream(lambda c, s: c.sendall(answer("302 Found", b"", f"location: {upstream.url}/other"))) as upstream:
        assert _with(_whole(_request(upstream.url + "/"))) == (302, b"")
    assert len(upstream.seen) == 1


def test_a_gzip_answer_comes_through_compressed_with_raw_headers_in_order() -> None:
    heads = ("content-encoding: gzip", "X-Two: 1", "x-two: 2")

    async def work(transport: Transport) -> tuple[list[tuple[bytes, bytes]], bytes]:
        response = await transport.handle_async_request(_request(upstream.url + "/"))
        return response.headers.raw, await _read(response)

    with Upstream(lambda c, s: c.sendall(answer("200 OK", b"\x1f\x8bnot inflated", *heads))) as upstream:
        raw, body = _with(work)
    assert body == b"\x1f\x8bnot inflated"
    assert raw == [(b"content-length", b"14"), (b"content-encoding", b"gzip"), (b"X-Two", b"1"), (b"x-two", b"2")]


def test_a_large_body_arrives_whole() -> None:
    body = bytes(range(256)) * 4096
    with Upstream(json_answer(b"ok")) as upstream:
        _with(_whole(_request(upstream.url + "/", body=body)))
    assert upstream.seen[0].body == body
    assert upstream.seen[0].header("content-length") == str(len(body))
    assert upstream.seen[0].header("transfer-encoding") is None


def test_a_streamed_body_goes_up_in_chunks_as_it_comes() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for piece in (b"one", b"two", b"three"):
            yield piece

    with Upstream(json_answer(b"ok")) as upstream:
        _with(_whole(_request(upstream.url + "/", body=pieces())))
    assert upstream.seen[0].body == b"onetwothree"
    assert upstream.seen[0].header("transfer-encoding") == "chunked"


def test_a_streamed_body_whose_client_leaves_is_the_clients_ending_not_the_providers() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"one"
        raise ClientGone("left")

    with Upstream(json_answer(b"ok")) as upstream:
        assert type(_fails(_request(upstream.url + "/", body=pieces()))) is ClientGone


async def _slowly(gap: float) -> AsyncIterator[bytes]:
    for piece in (b"one", b"two", b"three"):
        await asyncio.sleep(gap)
        yield piece


def test_a_slow_upload_does_not_run_down_the_first_byte_timeout() -> None:
    patience = 20 * SHORT
    with Upstream(json_answer(b"ok")) as upstream:
        request = _request(upstream.url + "/", body=_slowly(patience / 2), first_byte=patience)
        assert _with(_whole(request)) == (200, b"ok")
    assert upstream.seen[0].body == b"onetwothree"


def test_the_first_byte_timeout_runs_once_a_streamed_body_is_sent() -> None:
    with Upstream(lambda connection, seen: None) as upstream:
        error = _fails(_request(upstream.url + "/", body=_slowly(2 * SHORT), first_byte=SHORT))
        poll(lambda: upstream.seen, what="the body to be in")
    assert (type(error), upstream.seen[0].body) == (AnswerTimeout, b"onetwothree")


def test_a_provider_that_stops_reading_a_streamed_body_is_timed_out() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(64):
            yield b"x" * 1024 * 1024

    async def work(transport: Transport) -> None:
        with pytest.raises(AnswerTimeout):
            await transport.handle_async_request(_request(upstream.url + "/", body=pieces(), first_byte=4 * SHORT))
        timed_out.set()
        assert await asyncio.to_thread(gave_up.acquire, timeout=30)
        await asyncio.sleep(SHORT)

    def deaf(connection: socket.socket) -> None:
        timed_out.wait(LONG)
        connection.close()
        gave_up.release()

    gave_up, timed_out = threading.Semaphore(0), threading.Event()
    with RawUpstream(deaf) as upstream:
        _with(work)


def test_an_answer_before_a_streamed_body_is_in_is_an_answer() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"one"
        await asyncio.sleep(2 * SHORT)
        assert await asyncio.to_thread(answered.wait, LONG)
        yield b"two"

    def early(connection: socket.socket) -> None:
        connection.recv(65_536)
        connection.sendall(answer("413 Too Large", b"no"))
        answered.set()
        connection.recv(65_536)

    answered = threading.Event()

    with RawUpstream(early) as upstream:
        assert _with(_whole(_request(upstream.url + "/", body=pieces(), first_byte=SHORT))) == (413, b"no")


def test_a_streamed_body_whose_client_stalls_is_the_clients_ending_not_the_providers() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"one"
        await asyncio.sleep(2 * SHORT)
        raise RequestTimeout(2 * SHORT)

    with Upstream(json_answer(b"ok")) as upstream:
        assert type(_fails(_request(upstream.url + "/", body=pieces(), first_byte=SHORT))) is RequestTimeout


def test_a_refused_connection_was_not_sent() -> None:
    with nobody() as url:
        error = _fails(_request(url + "/"))
    assert (type(error), error.message) == (NotSent, "no connection to the provider could be made")


def test_a_name_that_does_not_resolve_was_not_sent() -> None:
    assert type(_fails(_request("http://claude.invalid/"))) is NotSent


def test_a_connection_that_does_not_come_about_in_time_was_not_sent() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        fillers = []
        for _ in range(8):  # more than the kernel queues: further SYNs go unanswered
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
            fillers.append(filler)
        error = _fails(_request(f"http://127.0.0.1:{full.getsockname()[1]}/", connect=SHORT))
        for filler in fillers:
            filler.close()
    assert (type(error), error.message) == (ConnectTimeout, "no connection to the provider within 0.05 s")


def test_a_tls_handshake_that_does_not_come_about_in_time_was_not_sent() -> None:
    with Upstream(json_answer(b"ok")) as upstream:  # speaks no TLS at all, and waits for more
        error = _fails(_request(upstream.url.replace("http:", "https:") + "/", connect=SHORT))
    assert (type(error), upstream.seen) == (ConnectTimeout, [])


def test_a_peer_that_speaks_no_tls_was_not_sent_to() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer_plainly() -> None:
            connection, _ = listener.accept()
            connection.recv(65_536)
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            connection.close()

        thread = threading.Thread(target=answer_plainly)
        thread.start()
        assert type(_fails(_request(f"https://127.0.0.1:{listener.getsockname()[1]}/"))) is NotSent
        thread.join()


@pytest.mark.parametrize("end", [socket.socket.close, reset], ids=["closed", "reset"])
def test_a_connection_that_ends_after_the_request_may_have_been_billed(end: Callable[[socket.socket], None]) -> None:
    with Upstream(lambda connection, seen: end(connection)) as upstream:
        error = _fails(_request(upstream.url + "/"))
    assert (type(error), len(upstream.seen)) == (NoAnswer, 1)


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_kept_connection_that_ends_is_not_silently_tried_again(method: str) -> None:
    def once(connection: socket.socket, seen: Seen) -> None:
        if len(upstream.seen) == 1:
            connection.sendall(answer("200 OK", b"first"))
        else:
            reset(connection)

    async def twice(transport: Transport) -> None:
        assert await _read(await transport.handle_async_request(_request(upstream.url + "/", method))) == b"first"
        await transport.handle_async_request(_request(upstream.url + "/", method))

    with Upstream(once) as upstream:
        with pytest.raises(NoAnswer):
            _with(twice)
        assert (len(upstream.seen), upstream.connections) == (2, 1)


def test_half_an_answers_head_is_no_answer() -> None:
    def script(connection: socket.socket, seen: Seen) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-")
        connection.close()

    with Upstream(script) as upstream:
        assert type(_fails(_request(upstream.url + "/"))) is NoAnswer


def test_no_answer_within_the_first_byte_timeout_is_a_timeout_and_closes_the_connection() -> None:
    with Upstream(lambda connection, seen: None) as upstream:
        error = _fails(_request(upstream.url + "/", first_byte=SHORT))
        assert (type(error), error.message) == (AnswerTimeout, "the provider did not begin to answer within 0.05 s")
        assert upstream.closed.acquire(timeout=30)


@pytest.mark.parametrize(
    "data", [b"SSH-2.0-OpenSSH\r\n\r\n", b"HTTP/1.1 two hundred\r\n\r\n", b"\x16\x03\x01 hello\r\n\r\n"]
)
def test_an_answer_that_is_not_http_is_invalid(data: bytes) -> None:
    with Upstream(lambda connection, seen: connection.sendall(data)) as upstream:
        error = _fails(_request(upstream.url + "/"))
    assert (type(error), error.message) == (InvalidAnswer, "the provider's answer is not HTTP")


CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


def test_a_chunk_size_that_makes_no_sense_is_a_death_mid_body() -> None:
    def script(connection: socket.socket, seen: Seen) -> None:
        connection.sendall(CHUNKED + chunk(b"one"))
        headers_are_in.acquire(timeout=30)
        connection.sendall(b"zz\r\n")

    async def work(transport: Transport) -> None:
        response = await transport.handle_async_request(_request(upstream.url + "/"))
        headers_are_in.release()
        await _read(response)

    headers_are_in = threading.Semaphore(0)
    with Upstream(script) as upstream, pytest.raises(DiedMidBody):
        _with(work)


@pytest.mark.parametrize(
    "begun",
    [b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf", CHUNKED, CHUNKED + chunk(b"half"), CHUNKED + b"5\r\nha"],
    ids=["by length", "no chunk", "no last chunk", "inside a chunk"],
)
@pytest.mark.parametrize("end", [socket.socket.close, reset], ids=["closed", "reset"])
def test_a_connection_that_ends_inside_the_body_died_mid_body(
    begun: bytes, end: Callable[[socket.socket], None]
) -> None:
    def script(connection: socket.socket, seen: Seen) -> None:
        connection.sendall(begun)
        headers_are_in.acquire(timeout=30)
        end(connection)

    async def work(transport: Transport) -> None:
        response = await transport.handle_async_request(_request(upstream.url + "/"))
        headers_are_in.release()
        await _read(response)

    headers_are_in = threading.Semaphore(0)
    with Upstream(script) as upstream, pytest.raises(DiedMidBody):
        _with(work)


def test_silence_inside_the_body_is_a_stall_and_closes_the_connection() -> None:
    with Upstream(lambda connection, seen: connection.sendall(SSE_HEAD + chunk(b"one"))) as upstream:
        error = _fails(_request(upstream.url + "/", idle=SHORT))
        assert (type(error), error.message) == (
            Stalled,
            "the provider sent nothing for 0.05 s in the middle of its answer",
        )
        assert upstream.closed.acquire(timeout=30)


def test_chunks_come_one_by_one_as_they_arrive() -> None:
    async def work(transport: Transport) -> list[bytes]:
        response = await transport.handle_async_request(_request(upstream.url + "/"))
        stream = response.stream
        assert isinstance(stream, httpx.AsyncByteStream)
        got = []
        async for piece in stream:
            got.append(piece)
            go_on.release()
        await stream.aclose()
        return got

    go_on = threading.Semaphore(0)

    def script(connection: socket.socket, seen: Seen) -> None:
        connection.sendall(SSE_HEAD)
        for piece in (b"one", b"two", b"three"):
            connection.sendall(chunk(piece))
            go_on.acquire(timeout=30)
        connection.sendall(LAST_CHUNK)

    with Upstream(script) as upstream:
        assert _with(work) == [b"one", b"two", b"three"]


def test_a_connection_read_to_its_end_is_used_again() -> None:
    async def thrice(transport: Transport) -> None:
        for _ in range(3):
            assert await _read(await transport.handle_async_request(_request(upstream.url + "/"))) == b"ok"

    with Upstream(json_answer(b"ok")) as upstream:
        _with(thrice)
        assert (len(upstream.seen), upstream.connections) == (3, 1)


def test_an_answer_closed_early_closes_its_connection_at_once() -> None:
    async def work(transport: Transport) -> None:
        response = await transport.handle_async_request(_request(upstream.url + "/"))
        stream = response.stream
        assert isinstance(stream, httpx.AsyncByteStream)
        assert await anext(aiter(stream)) == b"one"
        await stream.aclose()
        assert await asyncio.to_thread(upstream.closed.acquire, timeout=30)

    with Upstream(lambda connection, seen: connection.sendall(SSE_HEAD + chunk(b"one"))) as upstream:
        _with(work)


def test_a_cancelled_request_closes_its_connection() -> None:
    async def work(transport: Transport) -> None:
        task = asyncio.create_task(transport.handle_async_request(_request(upstream.url + "/")))
        assert await asyncio.to_thread(arrived.acquire, timeout=30)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(upstream.closed.acquire, timeout=30)

    arrived = threading.Semaphore(0)
    with Upstream(lambda connection, seen: arrived.release()) as upstream:
        _with(work)


def test_a_plain_request_goes_through_the_proxy_in_absolute_form() -> None:
    with Upstream(json_answer(b"ok")) as proxy:
        answered = _with(_whole(_request("http://claude.invalid/v1/models?a=%20", "GET", body=b"")), proxy=proxy.url)
    assert answered == (200, b"ok")
    assert proxy.seen[0].line == "GET http://claude.invalid/v1/models?a=%20 HTTP/1.1"
    assert proxy.seen[0].header("host") == "claude.invalid"


def test_the_proxys_credential_goes_to_the_proxy() -> None:
    with Upstream(json_answer(b"ok")) as proxy:
        address = proxy.url.replace("http://", "http://user:hunter2@")
        _with(_whole(_request("http://claude.invalid/", "GET", body=b"")), proxy=address)
    assert proxy.seen[0].header("proxy-authorization") == "Basic dXNlcjpodW50ZXIy"


def _connect_refused(status: str) -> Script:
    return lambda connection, seen: connection.sendall(answer(status, b""))


def test_a_tls_request_asks_the_proxy_for_a_tunnel_and_a_proxy_that_says_no_means_not_sent() -> None:
    with Upstream(_connect_refused("407 Proxy Authentication Required")) as proxy:
        assert type(_fails(_request("https://claude.invalid/v1/messages"), proxy=proxy.url)) is NotSent
    assert [seen.line for seen in proxy.seen] == ["CONNECT claude.invalid:443 HTTP/1.1"]
    assert [seen.body for seen in proxy.seen] == [b""]
