"""Google's and OpenAI's own SDKs, unmodified: each can do through the gateway what it can do without, and is seen doing it."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from service import settings
from service.web.auth import hash_key
from tests.clients import environments
from tests.clients.conftest import installed
from tests.clients.environments import HERE, Tell
from tests.clients.sdk import PROVIDER_KEY, SCRIPTS
from tests.support.processes import Gateway, Simulator, clean_environ

GENAI, OPENAI = "google-genai-3.4.0", "openai-3.54.0"
_SCRIPT = {GENAI: "sdk_gemini.py", OPENAI: "sdk_openai.py"}
_RUN_SECONDS = 120
V1 = "/gemini/v1/models"
GENERATE, STREAM = f"{V1}/<model>:generateContent", f"{V1}/<model>:streamGenerateContent"
CHAT, RESPONSES = "/openai/v1/chat/completions", "/openai/v1/responses"


@dataclass(frozen=True)
class Seen:
    """What the gateway's log must say of a check. `usage`: the tokens in it must be those that the SDK saw."""

    route: str
    status: int = 200
    outcome: str = "ok"
    usage: bool = False
    limit: str | None = None


CHECKS: dict[str, dict[str, Seen]] = {
    GENAI: {
        "generates": Seen(GENERATE, usage=True),
        "generates_asynchronously": Seen(GENERATE, usage=True),
        "generates_with_the_older_version": Seen(GENERATE.replace("v1", "v1beta"), usage=True),
        "thinks": Seen(GENERATE, usage=True),
        "streams": Seen(STREAM, usage=True),
        "streams_asynchronously": Seen(STREAM, usage=True),
        "counts_tokens": Seen(f"{V1}/<model>:countTokens"),
        "lists_models": Seen(V1),
        "gets_a_model": Seen(f"{V1}/<model_id>"),
        "raises_rate_limit": Seen(GENERATE, 429, "upstream_429", limit="requests"),
        "raises_overloaded": Seen(GENERATE, 503, "upstream_overloaded"),
        "raises_for_an_unknown_key": Seen(GENERATE, 401, "client_auth"),
        "raises_for_a_stream_that_is_cut_off": Seen(STREAM, 200, "cut_off"),
        "raises_for_an_error_in_a_stream": Seen(STREAM, 200, "upstream_overloaded"),
    },
    OPENAI: {
        "completes_a_chat": Seen(CHAT, usage=True),
        "completes_a_chat_asynchronously": Seen(CHAT, usage=True),
        "streams_a_chat_with_usage": Seen(CHAT, usage=True),
        "streams_a_chat_without_usage": Seen(CHAT),
        "creates_a_response": Seen(RESPONSES, usage=True),
        "streams_a_response": Seen(RESPONSES, usage=True),
        "streams_a_response_asynchronously": Seen(RESPONSES, usage=True),
        "lists_models": Seen("/openai/v1/models"),
        "gets_a_model": Seen("/openai/v1/models/<model_id>"),
        "raises_rate_limit": Seen(CHAT, 429, "upstream_429", limit="requests"),
        "raises_insufficient_quota": Seen(CHAT, 429, "upstream_429", limit="spend"),
        "raises_overloaded": Seen(CHAT, 503, "upstream_overloaded"),
        "raises_bad_request_of_the_gateway": Seen(CHAT, 400, "client_invalid"),
        "raises_for_an_unknown_key": Seen(CHAT, 401, "client_auth"),
        "raises_for_a_chat_stream_that_is_cut_off": Seen(CHAT, 200, "cut_off"),
        "raises_for_a_response_stream_that_is_cut_off": Seen(RESPONSES, 200, "cut_off"),
        "raises_for_an_error_in_a_stream": Seen(CHAT, 200, "upstream_overloaded"),
    },
}


def _key(name: str) -> str:
    return f"sk-client-{name}"


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    """With client keys, and the simulator as every provider."""
    keys = " ".join(f"{name}:{hash_key(_key(name))}" for name in CHECKS)
    with Simulator("--fast", "--api-key", PROVIDER_KEY) as simulator:
        environ = {
            name: PROVIDER_KEY if name.endswith("_KEY") else value
            for name, value in settings.simulated(simulator.url).items()
        }
        with Gateway(simulator.url, CLAUDE_PROXY_CLIENT_KEYS=keys, **environ) as made:
            yield made


Report = Callable[[str], dict[str, dict[str, Any]]]


@pytest.fixture(scope="module")
def report(gateway: Gateway, tell: Tell) -> Report:
    """What an SDK's script said of each check; it is run when first asked for."""
    known: dict[str, dict[str, dict[str, Any]]] = {}

    def of(sdk: str) -> dict[str, dict[str, Any]]:
        if sdk not in known:
            known[sdk] = {}  # so that a script that fails is not run again for each of its checks
            interpreter = installed(lambda: environments.python(HERE / "locks" / f"{sdk}.txt", tell))
            task = {
                "base_url": gateway.url,
                "key": _key(sdk),
                "traces": {check: _trace(sdk, check) for check in CHECKS[sdk]},
            }
            done = subprocess.run(
                [str(interpreter), str(SCRIPTS / _SCRIPT[sdk])],
                input=json.dumps(task),
                env=clean_environ({}),
                capture_output=True,
                text=True,
                timeout=_RUN_SECONDS,
            )
            assert done.returncode == 0, done.stderr[-4000:]
            known[sdk] = {line["name"]: line for line in map(json.loads, done.stdout.splitlines())}
        return known[sdk]

    return of


def _trace(sdk: str, check: str) -> str:
    return hashlib.md5(f"{sdk} {check}".encode(), usedforsecurity=False).hexdigest()


@pytest.mark.parametrize(("sdk", "check"), [(sdk, check) for sdk, checks in CHECKS.items() for check in checks])
def test_the_sdk(gateway: Gateway, report: Report, sdk: str, check: str) -> None:
    result = report(sdk).get(check)
    assert result is not None, "the script did not report this check: it failed at its start, see its first test"
    assert result["ok"], result["error"]
    expected, trace = CHECKS[sdk][check], _trace(sdk, check)
    line = gateway.wait_log(lambda each: each["event"] == "request" and each["trace_id"] == trace, f"a line of {check}")
    assert (line["route"], line["status"], line["outcome"]) == (expected.route, expected.status, expected.outcome)
    assert line.get("limit") == expected.limit
    kinds = ("input", "output", "cache_read", "reasoning")
    if expected.usage:
        seen = {kind: line.get(f"{kind}_tokens") or 0 for kind in kinds}
        assert seen == result["detail"]["usage"]
    elif expected.outcome == "ok":
        assert not [kind for kind in kinds if f"{kind}_tokens" in line]


def test_openais_own_request_id_is_what_its_sdk_shows(gateway: Gateway, report: Report) -> None:
    shown = report(OPENAI)["completes_a_chat"]["detail"]["request_id"]
    gateway.wait_log(lambda line: line.get("upstream_request_id") == shown, "the line with that id")
