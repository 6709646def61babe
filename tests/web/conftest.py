"""The application inside the test's process, under Flask's test client, in front of a scripted upstream."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest
from flask.testing import FlaskClient

from service import settings
from service.app import create_gateway
from service.upstream.provider import Provider
from service.upstream.providers import PROVIDERS
from service.web.flask_loop import background
from tests.support.claude import MESSAGE
from tests.support.inside import Told, telemetry
from tests.support.upstream import Upstream, json_answer


@dataclass
class Stage:
    """A client of the gateway, what it told, and the provider behind it (`upstream.script` may be exchanged)."""

    client: FlaskClient
    told: Told
    upstream: Upstream

    def post(self, path: str, json: Any, **headers: str) -> Any:
        """A POST with a JSON body."""
        return self.client.post(path, json=json, headers={k.replace("_", "-"): v for k, v in headers.items()})


Open = Callable[..., Stage]


@pytest.fixture
def open_stage() -> Iterator[Open]:
    """Makes stages with further settings; all are closed at the end."""
    with ExitStack() as stack:

        def make(providers: Sequence[Provider] = PROVIDERS, **environ: str) -> Stage:
            upstream = stack.enter_context(Upstream(json_answer(MESSAGE)))
            told = stack.enter_context(telemetry())
            base = {
                "ANTHROPIC_API_KEY": "sk-ant-provider",
                **{row.name: upstream.url for row in settings.table(providers) if row.attribute == "base_url"},
                "CLAUDE_PROXY_MAX_RETRIES": "0",
                "CLAUDE_PROXY_LEDGER": "off",
                "CLAUDE_PROXY_PACING": "off",
            }
            merged = {name: value for name, value in (base | environ).items() if value}
            gateway = create_gateway(settings.load(merged, providers), told.telemetry, providers)
            stack.callback(lambda: background().run(gateway.client.aclose()))
            return Stage(gateway.app.test_client(), told, upstream)

        yield make


@pytest.fixture
def stage(open_stage: Open) -> Stage:
    """A stage with the default settings."""
    return open_stage()
