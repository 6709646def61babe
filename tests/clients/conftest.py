"""One gateway with client keys, in front of one simulator that takes only the provider key, for all real clients."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from service.web.auth import hash_key
from tests.clients import environments, sdk
from tests.clients.environments import HERE, InstallFailed, Tell
from tests.clients.sdk import NODE, PROVIDER_KEY, SDKS, Result, Sdk
from tests.support.processes import Gateway, Simulator, pair

CURL, CLAUDE_CODE = "curl", "claude-code"
OLDEST_NODE = 20
"""The oldest that the TypeScript SDK says it works with."""
NO_NODE = f"Node {OLDEST_NODE} or newer with npm is not installed: apt-get install nodejs npm, or any other build of it"


class House(NamedTuple):
    """The gateway under test and the provider behind it."""

    gateway: Gateway
    simulator: Simulator

    @staticmethod
    def key(name: str) -> str:
        """The client key of that name."""
        return f"sk-client-{name}"


@pytest.fixture(scope="session")
def house() -> Iterator[House]:
    names = [*(each.name for each in SDKS), CURL, CLAUDE_CODE]
    keys = " ".join(f"{name}:{hash_key(House.key(name))}" for name in names)
    simulator = ("--api-key", PROVIDER_KEY, "--batch-seconds", "0.3", "--record", "5000")
    with pair(*simulator, ANTHROPIC_API_KEY=PROVIDER_KEY, CLAUDE_PROXY_CLIENT_KEYS=keys) as (gateway, provider):
        yield House(gateway, provider)


@pytest.fixture(scope="session")
def tell(request: pytest.FixtureRequest) -> Tell:
    """Shows progress although output is captured: an install takes a while."""
    capture = request.config.pluginmanager.getplugin("capturemanager")
    terminal = request.config.pluginmanager.getplugin("terminalreporter")

    def show(line: str) -> None:
        with capture.global_and_fixture_disabled():
            terminal.ensure_newline()
            terminal.write_line(line)

    return show


@pytest.fixture(scope="session")
def node_packages(tell: Tell) -> Callable[[Path, str], Path]:
    """Installs npm packages from a lock; without Node the test is skipped, and `.ci/run` does not let that pass."""

    def packages(source: Path, name: str) -> Path:
        if not has_node():
            pytest.skip(NO_NODE)
        return installed(lambda: environments.node(source, name, tell))

    return packages


def has_node() -> bool:
    """Whether there is a Node that is new enough."""
    if not shutil.which("node") or not shutil.which("npm"):
        return False
    version = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout
    return int(version.removeprefix("v").partition(".")[0]) >= OLDEST_NODE


def installed(make: Callable[[], Path]) -> Path:
    """What `make` installed; a test that cannot have its client fails, it is never skipped."""
    try:
        return make()
    except InstallFailed as error:
        told = str(error)
    pytest.fail(
        "A client could not be installed. It comes from the package registry, through pip or npm as they are set up on "
        f"this machine; to try by hand:\n{told}",
        pytrace=False,
    )


@pytest.fixture(scope="session")
def results(house: House, tell: Tell, node_packages: Callable[[Path, str], Path]) -> Callable[[Sdk], dict[str, Result]]:
    """What an SDK's script said; it is run when first asked for."""
    known: dict[Sdk, dict[str, Result]] = {}

    def of(which: Sdk) -> dict[str, Result]:
        if which not in known:
            known[which] = {}  # so that a script that fails is not run again for each of its checks
            known[which] = sdk.run(which, *_command(which, tell, node_packages), house.gateway.url, house.simulator.url)
        return known[which]

    return of


def _command(which: Sdk, tell: Tell, node_packages: Callable[[Path, str], Path]) -> tuple[list[str], Path]:
    """How to start the script of an SDK, and where."""
    if which is not NODE:
        lock = HERE / "locks" / f"{which.name}.txt"
        interpreter = installed(lambda: environments.python(lock, tell))
        return [str(interpreter), str(sdk.SCRIPTS / "sdk_python.py")], lock.parent
    folder = node_packages(HERE / "node", which.name)
    script = shutil.copy(sdk.SCRIPTS / "sdk_node.mjs", folder)  # beside node_modules, where its import looks
    return ["node", str(script)], folder
