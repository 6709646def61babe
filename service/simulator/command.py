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

_DEFAULTS = Config()

EPILOG = """\
scenarios
  A request says how it wants to be answered in the header x-simulator-scenario:
    x-simulator-scenario: fault=stall;after=3;gap_ms=20;output_tokens=200
  Parts are separated by ";", a flag needs no value, an unknown part is a 400 that names it.

  fault=NAME       an answer instead of the usual one:
    rate_limit_requests, rate_limit_input_tokens, rate_limit_output_tokens
                   429 with retry-after and that limit's remaining at 0
    acceleration   429, error_code ramp_limit_exceeded, with retry-after
    spend          429, error_code enforced_spend_limit_reached, without retry-after
    overloaded 529, api_error 500, timeout 504, unavailable 503, invalid_request 400, authentication 401,
    billing 402, permission 403, not_found 404, conflict 409, too_large 413
    hang           nothing at all, until the client leaves
    reset          TCP reset before the headers
  fault=NAME       a break in the body, in a stream after `after` content deltas, else in its middle:
    stall          silence, for ever or for stall_ms
    cut            connection closed within an event
    cut_boundary   connection closed between two events
    reset_mid      TCP reset
    malformed      an event (or body) that is not JSON; the stream then goes on
    garbage        200 with bytes that are neither events nor JSON
    error_first    an error event as the first event; without stream its HTTP status
    error_after    an error event after `after` content deltas; without stream its HTTP status
  after=N          content deltas before the break (default: half of them)
  error=KIND       overloaded_error (default) or api_error, of error_first and error_after
  retry_after=S    seconds in retry-after        should_retry=true|false  x-should-retry header
  ttfb_ms=MS       wait before the headers       first_ms=MS   wait between headers and first content delta
  gap_ms=MS        wait between content deltas   stall_ms=MS   length of a stall
  chunks=N         content deltas per block      output_tokens=N  length of the answer
  thinking_tokens=N  thinking, asked for or not  stop=REASON   stop_reason of the answer
  tool=NAME        call that tool (auto: the first)   seed=N   another answer to the same request
  ping_every=N     a ping before every Nth delta      message_deltas=N  several message_delta events
  split=N          write the stream N bytes at a time
  flags            crlf, comments, unknown_events (streams); gzip (not streamed); cookie (set-cookie)

schedule
  A JSON list of rules, from --schedule or POST /_simulator/schedule, for requests without the header; the first
  rule that holds wins. All conditions but scenario may be left out, path is /v1/messages unless given:
    [{"scenario": "fault=overloaded", "every": 10}, {"scenario": "fault=cut", "nth": 3},
     {"scenario": "fault=hang", "probability": 0.01, "seed": 7, "between": [60, 120], "path": "/v1/models"}]

truth
  GET /_simulator/counts     requests by status, streams by ending, tokens billed by key hash, model and kind, and
                             every call by itself (?calls=0 leaves those out). A stream is billed for what was
                             written; nothing is billed for a fault before the headers, error_first or garbage.
  GET /_simulator/requests   what came in: method, path, query, headers in order, SHA-256 and length of the body
  POST /_simulator/reset     forget all of that, refill the limits, empty the prompt cache, restart the schedule
"""


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
    add("--rpm", type=int, help="requests per minute, per key and model class (Start tier)")
    add("--itpm", type=int, help="input tokens per minute (Start tier)")
    add("--otpm", type=int, help="output tokens per minute (Start tier)")
    add("--unlimited", action="store_true", help="limits so high that nothing reaches them")
    add("--api-key", action="append", default=[], help="accept only this key; may be repeated (any key)")
    add("--batch-seconds", type=float, default=_DEFAULTS.batch_seconds, help="length of a batch (%(default)s)")
    add("--schedule", type=Path, metavar="FILE.json", help="faults by schedule, see below")
    add("--record", type=int, default=_DEFAULTS.record_requests, help="requests to remember (%(default)s)")
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
        record_headers=args.record_headers,
        schedule=rules,
    )


def run(args: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit status, 2 for a bad schedule or an address in use."""
    try:
        config = config_from(args)
        asyncio.run(_serve(config, args.host, args.port))
    except (ApiError, OSError) as error:
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
