"""promtool: the rules are sound, and each alert fires when it should and not when it must not."""

from __future__ import annotations

import subprocess

import pytest

from tests.stack.servers import promtool
from tests.support.stack_files import ROOT, RULES

CASES = sorted((ROOT / "tests/stack").glob("*_test.yml"))


def _run(*arguments: str) -> None:
    done = subprocess.run([promtool(), *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_accepts_the_rules() -> None:
    _run("check", "rules", "--lint-fatal", str(RULES))


@pytest.mark.parametrize("path", [pytest.param(path, id=path.stem) for path in CASES])
def test_alerts_fire_when_they_should_and_not_when_they_must_not(path: object) -> None:
    _run("test", "rules", str(path))
