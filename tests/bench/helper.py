"""What the benchmark's own server processes share: serve on a free loopback port until stdin is closed."""

from __future__ import annotations

import asyncio
import gc
import resource
import sys
from collections.abc import Callable


def raise_descriptor_limit() -> None:
    """A thousand streams are a thousand descriptors."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def serve(make: Callable[[asyncio.AbstractEventLoop], asyncio.Protocol]) -> None:
    """Print the port, serve, return when the parent closes our stdin or is gone."""
    raise_descriptor_limit()
    asyncio.run(_serve(make))


async def _serve(make: Callable[[asyncio.AbstractEventLoop], asyncio.Protocol]) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: make(loop), "127.0.0.1", 0, backlog=4096)
    gc.freeze()
    print(server.sockets[0].getsockname()[1], flush=True)
    parent_gone = asyncio.Event()
    loop.add_reader(sys.stdin.fileno(), parent_gone.set)
    await parent_gone.wait()
    server.close()
