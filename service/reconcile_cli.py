"""`claude-proxy reconcile`: the ledger against Claude's own usage and cost reports, by day and model, with likely causes."""

from __future__ import annotations

import argparse
import datetime
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from service import parse, setting_rows, settings
from service.errors import SettingsError

if TYPE_CHECKING:
    from service.account.reconcile import Key, Line, Theirs
    from service.account.reconcile_calls import CallDifference, TheirCall
    from service.upstream.anthropic_admin import AdminClient, Counted, Period

ADMIN_KEY = setting_rows.Setting(
    "ANTHROPIC_ADMIN_KEY", "admin_key", parse.key, "", "Key of Claude's Admin API, for `reconcile` alone.", True
)
"""Not among the gateway's settings: a gateway has no use for a key that reads the whole organization's accounts."""
EPILOG = """\
The report is of the whole organization, or of the keys named with --api-key-id. Differences are ours less theirs.
Exit status: 0 everything agrees within the tolerance, 1 there are differences, 2 it could not be compared.

examples:
  claude-proxy reconcile                              the last seven days
  claude-proxy reconcile --since 2d --until 2d        yesterday, which is complete: for a nightly job
  claude-proxy reconcile --since 2026-11-01 --until 2026-11-30 --format csv > november.csv
  claude-proxy reconcile --simulator http://127.0.0.1:8787     call by call, with the simulator's own count
"""
_SIMULATED_KEY = "sk-ant-admin01-simulated"
_NANOS_A_CENT = 10_000_000


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """The command with its options."""
    parser = commands.add_parser(
        "reconcile",
        help="compare the ledger with Claude's own usage and cost reports",
        description="The ledger against Claude's own usage and cost reports, by day and model, with the likely cause of "
        "each difference. Needs an Admin API key: ANTHROPIC_ADMIN_KEY, or ANTHROPIC_ADMIN_KEY_FILE with a file's name.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--since", type=_day, default="7d", metavar="DATE|7d", help="first day (UTC), or days up to today (%(default)s)"
    )
    add("--until", type=_day, default="1d", metavar="DATE|1d", help="last day (UTC), included (default: today)")
    add("--tolerance", type=_share, default="0.5%", metavar="SHARE", help="difference that is none (0.5%%)")
    add("--format", choices=("table", "csv", "json"), default="table", help="how to print it (%(default)s)")
    add("--admin-key-file", type=Path, metavar="FILE", help="file with the Admin API key; wins over the environment")
    add("--api-key-id", action="append", default=[], metavar="ID", help="only usage of this key (repeatable); no costs")
    add(
        "--base-url", metavar="URL", help="where the API is (default: CLAUDE_PROXY_ANTHROPIC_BASE_URL, or Claude's own)"
    )
    add("--path", type=Path, metavar="DIR", help="the ledger's directory (default: that of the gateway's settings)")
    add("--simulator", metavar="URL", help="compare with this simulator, call by call too")
    return parser


def run(arguments: argparse.Namespace, environ: Callable[[], Mapping[str, str]]) -> int:
    """Compare and print. Raises `SettingsError`."""
    from service import reconcile_report
    from service.account.ledger import DatabaseError  # 0.4 s that no other command should wait
    from service.upstream.anthropic_admin import ReportError

    if arguments.since > min(arguments.until, _today()):
        raise SettingsError(f"--since {arguments.since} is after the last day, {min(arguments.until, _today())}.")
    try:
        lines, differing = _compared(arguments, environ())
    except ReportError as error:
        sys.stderr.write(f"claude-proxy: {error}\n")
        return 2
    except DatabaseError as error:
        raise SettingsError(f"the ledger cannot be read: {error.orig}.") from None
    try:
        getattr(reconcile_report, f"write_{arguments.format}")(lines, differing, arguments.tolerance)
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return 0 if reconcile_report.agree(lines, differing) else 1


def _compared(arguments: argparse.Namespace, env: Mapping[str, str]) -> tuple[list[Line], list[CallDifference]]:
    from service.account import reconcile, reconcile_calls, reconcile_ours
    from service.account.ledger import Ledger, directory
    from service.upstream.anthropic_admin import Period

    where = arguments.path or directory(env.get("CLAUDE_PROXY_LEDGER", ""), env)
    if where is None:
        raise SettingsError("CLAUDE_PROXY_LEDGER=off: no ledger is kept. --path DIR compares one that was.")
    since, until = arguments.since, min(arguments.until, _today())
    after = None if until == _today() else _plus_a_day(until)  # a named end leaves out the day that has only begun
    ledger = Ledger(where, create=False)
    try:
        ledger.open()
        with _client(arguments, env) as client:
            theirs = _theirs(client, Period(since, after), arguments.api_key_id)
            counted = _simulated(client.simulated(), since, until) if arguments.simulator else None
        # Theirs first: what they have counted, we have. Ours may know of later calls, which are then `report_late`.
        ours = reconcile_ours.sums(ledger, since, until)
        mine = reconcile_ours.calls(ledger, since, until) if counted is not None else []
    finally:
        ledger.close()
    costs = not arguments.api_key_id
    lines = reconcile.compare(ours, theirs, now=time.time(), tolerance=arguments.tolerance, costs=costs)
    return lines, reconcile_calls.differences(mine, counted) if counted is not None else []


def _client(arguments: argparse.Namespace, env: Mapping[str, str]) -> AdminClient:
    from service.upstream.anthropic_admin import AdminClient

    row = {row.name: row for row in settings.TABLE}
    address = _given_address(arguments) or setting_rows.value(row["CLAUDE_PROXY_ANTHROPIC_BASE_URL"], env)
    if arguments.admin_key_file:
        env = {k: v for k, v in env.items() if k != ADMIN_KEY.name}
        env[f"{ADMIN_KEY.name}_FILE"] = str(arguments.admin_key_file)
    # A key that reads real accounts is not for a simulator, unless it is named.
    simulated = arguments.simulator and not arguments.admin_key_file
    key = _SIMULATED_KEY if simulated else setting_rows.value(ADMIN_KEY, env)
    if not key:
        raise SettingsError(
            f"{ADMIN_KEY.name} is empty: set it, or {ADMIN_KEY.name}_FILE, or name a file with --admin-key-file. The Claude "
            "Console makes Admin API keys (sk-ant-admin…) for organizations; a key that calls models is not one."
        )
    try:
        proxy = parse.proxy(setting_rows.value(row["HTTPS_PROXY"], env), address, env)
    except ValueError as error:
        raise SettingsError(f"{error}.") from None
    return AdminClient(address, key, proxy=proxy, ca_file=setting_rows.value(row["SSL_CERT_FILE"], env), tell=_tell)


def _given_address(arguments: argparse.Namespace) -> str | None:
    option, given = ("--simulator", arguments.simulator) if arguments.simulator else ("--base-url", arguments.base_url)
    try:
        return parse.base_url(given) if given else None
    except ValueError as error:
        raise SettingsError(f"{option} {parse.without_userinfo(given)} is not valid: expected {error}.") from None


def _tell(text: str) -> None:
    sys.stderr.write(f"claude-proxy: {text}\n")


def _theirs(client: AdminClient, period: Period, keys: Sequence[str]) -> dict[Key, Theirs]:
    """The reports as the comparison wants them. Raises `ReportError`."""
    from service.account.reconcile import NOT_BY_TOKEN, Theirs, add, model_name

    found: dict[Key, Theirs] = {}
    for day, used in client.usage(period, keys):
        tokens = {
            "input": used.uncached_input_tokens,
            "cache_read": used.cache_read_input_tokens,
            "cache_write_5m": used.cache_creation.ephemeral_5m_input_tokens,
            "cache_write_1h": used.cache_creation.ephemeral_1h_input_tokens,
            "output": used.output_tokens,
        }
        said = found.setdefault((day, model_name(used.model) or "(unknown)"), Theirs())
        add(said.tokens, tokens)
        add(said.by_key.setdefault(used.api_key_id or "(none: the Console)", {}), tokens)
        if used.service_tier in ("batch", "priority"):
            add(getattr(said, used.service_tier), tokens)
    if keys:
        return found
    for day, paid in client.cost(period):
        by_token = paid.cost_type in (None, "tokens")
        name = model_name(paid.model) or "(unknown)" if by_token else NOT_BY_TOKEN
        said = found.setdefault((day, name), Theirs())
        said.cost = (said.cost or 0) + int((paid.amount * _NANOS_A_CENT).to_integral_value())
    return found


def _simulated(counted: Counted, since: str, until: str) -> list[TheirCall]:
    from service.account.reconcile import model_name
    from service.account.reconcile_calls import TheirCall

    kept, every = len(counted.calls), counted.requests.total
    if kept < every:
        _tell(f"the simulator keeps the last {kept:,} of {every:,} requests: older calls are compared in the sums only")
    found = []
    for call in counted.calls:
        billed, day = call.billed, datetime.datetime.fromtimestamp(call.started, datetime.UTC).date().isoformat()
        if not billed.requests or call.provider != "anthropic" or not since <= day <= until:
            continue
        tokens = {
            "input": billed.input_tokens,
            "cache_read": billed.cache_read_input_tokens,
            "cache_write_5m": billed.cache_creation_input_tokens - billed.cache_creation_1h_input_tokens,
            "cache_write_1h": billed.cache_creation_1h_input_tokens,
            "output": billed.output_tokens,
        }
        name = model_name(call.model)
        found.append(TheirCall(call.request_id, call.message_id, name, call.key_hash, call.started, tokens))
    return found


def _today() -> str:
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def _plus_a_day(day: str) -> str:
    return (datetime.date.fromisoformat(day) + datetime.timedelta(days=1)).isoformat()


def _day(text: str) -> str:
    today = datetime.date.fromisoformat(_today())
    try:
        if text.endswith("d"):
            return (today - datetime.timedelta(days=int(text[:-1]) - 1)).isoformat()
        return datetime.date.fromisoformat(text).isoformat()
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither a day like {today} nor a number of days like 7d"
        ) from None


def _share(text: str) -> float:
    """A share: 0.5% or 0.005."""
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share like 0.5% or 0.005")
    return value
