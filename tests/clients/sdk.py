"""The SDKs and what each must be able to do through the gateway; what the gateway must have seen of it.

A client's script runs once, in the client's own environment. It reads a task from stdin and writes one JSON line per
check. Each check has a trace id of its own, by which its log lines are found.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.processes import clean_environ

PROVIDER_KEY = "sk-ant-provider-key"
SCRIPTS = Path(__file__).parent / "scripts"
_RUN_SECONDS = 120


@dataclass(frozen=True)
class Sdk:
    """One SDK in one version."""

    language: str
    version: str

    @property
    def name(self) -> str:
        """As in locks, client keys and test ids."""
        return f"{'anthropic' if self.language == 'python' else 'anthropic-node'}-{self.version}"

    @property
    def key(self) -> str:
        """The client key it comes in with."""
        return f"sk-client-{self.name}"


PYTHON_0, PYTHON_1, PYTHON_2 = (Sdk("python", version) for version in ("0.125.0", "1.17.0", "2.12.0"))
NODE = Sdk("node", "1.12.0")
SDKS = (PYTHON_0, PYTHON_1, PYTHON_2, NODE)


@dataclass(frozen=True)
class Check:
    """What the gateway's log must say of a check, in order, repeats folded: (route, status, outcome).

    `attempts`: only the last line is looked at, and how many tries at the provider there were in all.
    """

    seen: tuple[tuple[str, int, str], ...]
    attempts: int | None = None
    usage: bool = False
    """Whether the tokens in the log must be those that the SDK saw."""


MESSAGES, BATCHES, BATCH = "/v1/messages", "/v1/messages/batches", "/v1/messages/batches/<batch_id>"
FILES, FILE = "/v1/files", "/v1/files/<file_id>"
ANSWERED = Check(((MESSAGES, 200, "ok"),), usage=True)


def _ended(status: int, outcome: str, route: str = MESSAGES) -> Check:
    return Check(((route, status, outcome),), attempts=1)


def _refused(status: int, outcome: str, route: str = MESSAGES) -> Check:
    return Check(((route, status, outcome),), attempts=0)


CHECKS: dict[str, Check] = {
    "creates_a_message": ANSWERED,
    "creates_a_message_asynchronously": ANSWERED,
    "streams_with_the_helper": ANSWERED,
    "streams_text_with_the_helper": ANSWERED,
    "streams_raw_events": ANSWERED,
    "streams_asynchronously": ANSWERED,
    "reuses_a_cached_prompt": ANSWERED,
    "uses_a_tool": ANSWERED,
    "streams_a_tool_call": ANSWERED,
    "thinks": ANSWERED,
    "streams_thinking": ANSWERED,
    "counts_tokens": Check((("/v1/messages/count_tokens", 200, "ok"),)),
    "lists_models_page_by_page": Check((("/v1/models", 200, "ok"),)),
    "retrieves_a_model": Check((("/v1/models/<model_id>", 200, "ok"),)),
    "runs_a_batch": Check(
        (
            (BATCHES, 200, "ok"),
            (BATCH, 200, "ok"),
            (BATCH + "/results", 200, "ok"),
            (BATCHES, 200, "ok"),
            (BATCH, 200, "ok"),
        )
    ),
    "cancels_a_batch": Check(((BATCHES, 200, "ok"), (BATCH + "/cancel", 200, "ok"), (BATCH, 200, "ok"))),
    "keeps_a_file": Check(
        ((FILES, 200, "ok"), (FILE, 200, "ok"), (FILE + "/content", 200, "ok"), (FILE, 200, "ok")),
    ),
    "raises_bad_request": _ended(400, "client_invalid"),
    "raises_bad_request_of_the_gateway_once": _refused(400, "client_invalid"),
    "raises_authentication_error_for_an_unknown_key_once": _refused(401, "client_auth"),
    "raises_authentication_error": _ended(401, "upstream_error"),
    "raises_permission_denied": _ended(403, "upstream_error"),
    "raises_not_found": _ended(404, "client_invalid"),
    "raises_not_found_for_a_route_that_is_not_there": _refused(404, "client_invalid", "other"),
    "raises_rate_limit": _ended(429, "upstream_429"),
    "raises_spend_limit_by_its_code": _ended(429, "upstream_429"),
    "raises_overloaded": _ended(529, "upstream_overloaded"),
    "raises_internal_server_error": _ended(500, "upstream_error"),
    "raises_request_too_large_of_the_provider": _ended(413, "client_invalid"),
    "raises_request_too_large_of_the_gateway": _refused(413, "client_invalid"),
    "retries_an_overloaded_answer": Check(((MESSAGES, 200, "ok"),), attempts=2),
    "does_not_retry_when_told_not_to": _ended(529, "upstream_overloaded"),
    "raises_for_an_error_event_in_a_stream": _ended(200, "upstream_overloaded"),
    "raises_for_a_stream_that_is_cut_off": _ended(200, "cut_off"),
    "raises_for_a_stream_that_ends_between_two_events": _ended(200, "cut_off"),
    "may_leave_a_stream_early": _ended(200, "client_abort"),
    "comes_in_with_a_bearer_token": ANSWERED,
    "comes_in_with_x_api_key": ANSWERED,
    "reaches_the_provider_as_it_was_sent": ANSWERED,
}

NOT_IN: dict[str, dict[str, str]] = {
    PYTHON_0.name: {"raises_spend_limit_by_its_code": "error classes by error_code came with 2.5.0"},
    PYTHON_1.name: {"raises_spend_limit_by_its_code": "error classes by error_code came with 2.5.0"},
    NODE.name: {
        "creates_a_message_asynchronously": "every call is asynchronous there",
        "streams_asynchronously": "every call is asynchronous there",
    },
}
"""What an SDK cannot do, by SDK and check, with the reason."""


def trace_id(sdk: Sdk, check: str) -> str:
    """The id under which a check's requests are found: 32 hex digits."""
    return hashlib.md5(f"{sdk.name} {check}".encode(), usedforsecurity=False).hexdigest()


@dataclass(frozen=True)
class Result:
    """What a script said of one check."""

    ok: bool
    detail: dict[str, Any]
    error: str


class ScriptFailed(Exception):
    """A script did not get to its end."""


def run(sdk: Sdk, command: list[str], folder: Path, gateway: str, simulator: str) -> dict[str, Result]:
    """Run an SDK's script through all its checks."""
    checks = [name for name in CHECKS if name not in NOT_IN.get(sdk.name, {})]
    task = {
        "client": sdk.name,
        "base_url": gateway,
        "key": sdk.key,
        "direct": {"url": simulator, "key": PROVIDER_KEY},
        "traces": {name: trace_id(sdk, name) for name in checks},
    }
    try:
        done = subprocess.run(
            command,
            input=json.dumps(task),
            cwd=folder,
            env=clean_environ({}),
            capture_output=True,
            text=True,
            timeout=_RUN_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise ScriptFailed(f"{command} took longer than {_RUN_SECONDS} s; so far:\n{error.stdout!r}") from error
    if done.returncode:
        raise ScriptFailed(f"{command} ended with {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return {line["name"]: Result(line["ok"], line["detail"], line.get("error", "")) for line in lines}
