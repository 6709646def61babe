"""The command line of the simulator."""

import argparse
import asyncio
import gc
import resource
import signal
import sys
from pathlib import Path

from service.simulator.app import create_app, serve
from service.simulator.config import UNLIMITED, Config, Limits
from service.simulator.errors import ApiError
from service.simulator.faults import Rule, decode_rules, parse
from service.simulator.manual import EPILOG as EPILOG

_DEFAULTS = Config()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the simulator."""
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    add("--port", type=int, default=8001, help="port, 0 for any free one (%(default)s)")
    add("--seed", type=int, default=_DEFAULTS.seed, help="same seed and request, same answer (%(default)s)")
    add("--fast", action="store_true", help="no delays, unless a scenario asks for them")
    add("--ttfb-ms", type=float, default=_DEFAULTS.ttfb_ms, help="median time to first byte (%(default)s)")
    add("--gap-ms", type=float, default=_DEFAULTS.gap_ms, help="median time between chunks (%(default)s)")
    add("--jitter", type=float, default=_DEFAULTS.jitter, help="log-normal sigma of both, 0 for none (%(default)s)")
    add("--output-tokens", type=int, default=_DEFAULTS.output_tokens, help="median length of answers (%(default)s)")
    add(
        "--rpm", type=int, help="requests per minute, per key and model class (Start tier; Gemini 1,000, OpenAI 10,000)"
    )
    add(
        "--itpm",
        type=int,
        help="input tokens per minute (Start tier; Gemini 1,000,000), of OpenAI all tokens (2,000,000)",
    )
    add("--otpm", type=int, help="output tokens per minute, of Claude alone (Start tier)")
    add("--unlimited", action="store_true", help="limits so high that nothing reaches them")
    add("--api-key", action="append", default=[], help="accept only this key; may be repeated (any key)")
    add("--batch-seconds", type=float, default=_DEFAULTS.batch_seconds, help="length of a batch (%(default)s)")
    add("--schedule", type=Path, metavar="FILE.json", help="faults by schedule, see below")
    add("--record", type=int, default=_DEFAULTS.record_requests, help="requests to remember (%(default)s)")
    add("--record-calls", type=int, default=_DEFAULTS.record_calls, help="calls to count one by one (%(default)s)")
    add("--record-headers", action="store_true", help="remember credentials as sent, not hashed")


def config_from(args: argparse.Namespace) -> Config:
    """The options as a config; raises ApiError or OSError for a bad schedule."""
    rules: tuple[Rule, ...] = decode_rules(args.schedule.read_bytes()) if args.schedule else ()
    for rule in rules:
        parse(rule.scenario)
    limits = UNLIMITED if args.unlimited else None
    if args.rpm or args.itpm or args.otpm:
        limits = Limits(args.rpm or 1_000, args.itpm or 2_000_000, args.otpm or 400_000)
    return Config(
        seed=args.seed,
        ttfb_ms=0.0 if args.fast else args.ttfb_ms,
        gap_ms=0.0 if args.fast else args.gap_ms,
        jitter=args.jitter,
        output_tokens=args.output_tokens,
        limits=limits,
        api_keys=frozenset(args.api_key),
        batch_seconds=args.batch_seconds,
        record_requests=args.record,
        record_calls=args.record_calls,
        record_headers=args.record_headers,
        schedule=rules,
    )


def run(args: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit status, 2 for a bad schedule or an address in use."""
    try:
        config = config_from(args)
        asyncio.run(_serve(config, args.host, args.port))
    except (ApiError, OSError, OverflowError) as error:  # the last: a port that is none
        print(f"simulator: {error}", file=sys.stderr)
        return 2
    return 0


async def _serve(config: Config, host: str, port: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    runner, actual = await serve(create_app(config), host, port)
    gc.collect()
    gc.freeze()  # nothing that exists now will go away: do not look at it again with every collection
    gc.set_threshold(50_000, 20, 100)
    print(f"simulator listening on http://{host}:{actual}", flush=True)
    await stop.wait()
    await runner.cleanup()
