"""`claude-proxy`: serve, simulate, check, key. Every command has --help."""

from __future__ import annotations

import argparse
import os
import platform
import secrets
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import service
from observability import catalog
from service import ledger_cli, parse, reconcile_cli, settings
from service.errors import SettingsError
from service.simulator import command as simulate
from service.web.auth import hash_key

TRY = """
claude-proxy is on http://{bind}  (Claude: {upstream})

  curl -s http://{bind}/generate -H 'content-type: application/json'{auth} -d '{{"prompt": "Hello"}}'
  curl -sN http://{bind}/v1/messages -H 'content-type: application/json' -H 'anthropic-version: 2023-06-01'{auth} \\
       -d '{{"model": "claude-opus-5-5", "max_tokens": 64, "stream": true, "messages": [{{"role": "user", "content": "Hello"}}]}}'
  curl -s http://{bind}/metrics{token} | grep ^{requests}_total

Each request is one JSON line below. Stop with Ctrl-C.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    arguments = _parser().parse_args(argv)
    command: Callable[[argparse.Namespace], int] = arguments.run
    try:
        return command(arguments)
    except SettingsError as error:
        print(f"claude-proxy: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="claude-proxy", description="A gateway in front of Claude that can be watched."
    )
    version = f"claude-proxy {service.__version__} (Python {platform.python_version()})"
    parser.add_argument("--version", action="version", version=version)
    parser.set_defaults(run=lambda _: _helped(parser))
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    serve = commands.add_parser(
        "serve", help="start the gateway", description="Start the gateway; settings come from the environment."
    )
    _add_env_file(serve)
    serve.add_argument(
        "--simulate-without-key",
        action="store_true",
        help="with no provider key configured, start the simulator too and use it as Claude",
    )
    serve.set_defaults(run=_serve)

    sim = commands.add_parser(
        "simulate",
        help="start the Claude simulator",
        description="A Claude API that runs without a key.",
        epilog=simulate.EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    simulate.add_arguments(sim)
    sim.set_defaults(run=simulate.run)

    check = commands.add_parser(
        "check",
        help="check the settings and show them",
        description="Check the settings and show them, without secrets.",
    )
    _add_env_file(check)
    check.set_defaults(run=_check)

    _add_accounts(commands)

    key = commands.add_parser(
        "key",
        help="make a client key",
        description="Make a client key: prints it once, and the entry for CLAUDE_PROXY_CLIENT_KEYS.",
    )
    key.add_argument("name", help="who it is for: letters, digits, dot, dash, underscore")
    key.set_defaults(run=_key)
    return parser  # fmt: skip


def _add_accounts(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    _add_env_file(ledger := ledger_cli.add_command(commands))
    ledger.set_defaults(run=lambda arguments: ledger_cli.run(arguments, _environment(arguments).merged))
    _add_env_file(reconcile := reconcile_cli.add_command(commands))
    reconcile.set_defaults(run=lambda arguments: reconcile_cli.run(arguments, _environment(arguments).merged))


def _helped(parser: argparse.ArgumentParser) -> int:
    parser.print_help(sys.stderr)
    return 2


def _add_env_file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--env-file",
        type=Path,
        help="read settings from this file too; the environment wins (default: .env, if there is one)",
    )


def _serve(arguments: argparse.Namespace) -> int:
    from service.gunicorn_conf import Application, assert_free  # the other commands do not need gunicorn's import

    _keep_standard_descriptors()
    environment = _environment(arguments)
    master = os.getpid()
    alone = arguments.simulate_without_key and not settings.names_a_provider(environment.merged())
    simulator = _start_simulator(environment) if alone else None
    try:
        application = Application(environment.load)
        if not environment.gives_listeners:
            assert_free(application.settings.bind)
        if arguments.simulate_without_key:
            _say_what_to_try(application.settings)
        application.run()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0
    finally:
        # Forked workers come through here as well when they exit; the simulator is the master's.
        if simulator is not None and os.getpid() == master:
            simulator.terminate()
            simulator.wait(5)
    return 0


def _keep_standard_descriptors() -> None:
    """Started with a closed stdout, the next socket would be descriptor 1, and log lines would go to whom it leads."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest that is free: this one


def _start_simulator(environment: settings.Environment) -> subprocess.Popen[str]:
    """Start it on a free port and point the settings at it. Raises `SettingsError` if it does not come up."""
    simulator = subprocess.Popen(
        [sys.executable, "-m", "service.simulator", "--port", "0"], stdout=subprocess.PIPE, text=True
    )
    line = simulator.stdout.readline() if simulator.stdout else ""
    _, found, address = line.strip().partition("listening on ")
    if not found:
        raise SettingsError("the simulator did not start; try `claude-proxy simulate` to see why")
    environment.override(**settings.simulated(address))
    return simulator


def _say_what_to_try(loaded: settings.Settings) -> None:
    auth = " -H 'x-api-key: YOUR_CLIENT_KEY'" if loaded.client_keys else ""
    token = " -H 'authorization: Bearer YOUR_METRICS_TOKEN'" if loaded.metrics_token else ""
    upstream, requests = loaded.upstreams["anthropic"].base_url, catalog.REQUESTS.name
    print(TRY.format(bind=loaded.bind, upstream=upstream, auth=auth, token=token, requests=requests), flush=True)


def _check(arguments: argparse.Namespace) -> int:
    shown, problem = settings.overview(_environment(arguments).merged())
    for name, value in shown.items():
        print(f"{name:48} {value}".rstrip())
    if problem:
        raise SettingsError(problem)
    return 0


def _key(arguments: argparse.Namespace) -> int:
    key = f"cpk-{secrets.token_urlsafe(32)}"
    entry = f"{arguments.name}:{hash_key(key)}"
    try:
        parse.client_keys(entry)
    except ValueError:
        raise SettingsError("name: letters, digits, dot, dash and underscore only, at most 64") from None
    print(f"key (shown once, give it to the client): {key}\nentry for CLAUDE_PROXY_CLIENT_KEYS:         {entry}")
    return 0


def _environment(arguments: argparse.Namespace) -> settings.Environment:
    given: Path | None = arguments.env_file
    return settings.Environment(given or Path(".env"), required=given is not None)


if __name__ == "__main__":
    sys.exit(main())
