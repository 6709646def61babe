"""The image: pinned, locked, small, unprivileged, and made of tracked files only."""

from __future__ import annotations

import fnmatch
import re
import subprocess
import tomllib

from service.settings import TABLE
from tests.support.stack_files import ROOT

TEXT = (ROOT / "service/Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
LINES = [line.split(maxsplit=1) for line in TEXT.splitlines() if line and not line.startswith("#")]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def _all(instruction: str) -> list[str]:
    return [rest.strip() for name, rest in LINES if name == instruction]


def _copied() -> list[str]:
    """What is copied from the repository."""
    return [source for line in _all("COPY") if not line.startswith("--from") for source in line.split()[:-1]]


def test_both_stages_start_from_one_pinned_python_that_the_project_supports() -> None:
    versions = [re.match(r"python:(3\.\d+\.\d+)-(slim-)?[a-z]+", line) for line in _all("FROM")]
    assert len({match[1] for match in versions if match}) == 1
    assert all(versions)
    assert versions[-1] is not None
    assert versions[-1][2]
    major, minor, _patch = versions[-1][1].split(".")
    wanted = PROJECT["project"]["requires-python"].removeprefix(">=").split(".")
    assert [int(major), int(minor)] >= [int(part) for part in wanted]


def test_what_runs_is_not_root() -> None:
    last_stage = TEXT.rpartition("\nFROM ")[2]
    (user,) = re.findall(r"^USER (\d+):(\d+)$", last_stage, re.MULTILINE)
    assert "0" not in user
    assert last_stage.index("\nUSER ") < last_stage.index("\nENTRYPOINT ")


def test_packages_are_installed_from_the_lock_by_hash_and_from_nowhere_else() -> None:
    installs = [part for line in _all("RUN") for part in line.split("&&") if "pip install " in part]
    assert [line for line in installs if "--require-hashes" not in line and "--no-deps" not in line] == []
    assert any("--requirement requirements.lock" in line for line in installs)
    assert not re.search(r"apt-get|curl|wget|://", TEXT)


def test_only_tracked_files_are_copied_and_the_ignore_file_lets_them_through() -> None:
    ignore = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    allowed = [line.removeprefix("!") for line in ignore if line.startswith("!")]
    assert ignore[0] == "*"
    for source in _copied():
        name = source.removeprefix("./")
        listed = subprocess.run(["git", "ls-files", name], cwd=ROOT, capture_output=True, text=True, check=True)
        assert listed.stdout, f"{name} is not in the repository"
        assert name in allowed, f"{name} does not get into the build"
    assert [name for name in allowed if name not in _copied()] == []


def test_secrets_and_machine_files_stay_out_of_the_build() -> None:
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    allowed = [line.removeprefix("!") for line in ignore if line.startswith("!")]
    for name in (".env", ".git", ".venv", ".tools", "tests", "docker-compose.yml"):
        assert not any(fnmatch.fnmatch(name, pattern) for pattern in allowed)
    assert not re.search(r"^(ARG|ENV) .*(KEY|TOKEN|SECRET|PASSWORD)", TEXT, re.MULTILINE)


def test_every_setting_in_it_is_one() -> None:
    known = {row.name for row in TABLE}
    names = re.findall(r"\b(CLAUDE_PROXY_[A-Z_]+)=", TEXT)
    assert names
    assert set(names) <= known


def test_it_runs_our_command_stops_by_sigterm_and_asks_after_its_health() -> None:
    assert _all("ENTRYPOINT") == ['["claude-proxy"]']
    assert "claude-proxy" in PROJECT["project"]["scripts"]
    assert _all("CMD") == ['["serve"]']
    assert _all("STOPSIGNAL") == ["SIGTERM"]
    (check,) = _all("HEALTHCHECK")
    assert '"python", "-c"' in check


def test_every_install_from_a_lock_takes_the_lock_and_nothing_beside_it() -> None:
    # pip that looks for dependencies takes the newest of one that is wanted with an extra, whatever the lock says.
    files = [ROOT / "Makefile", ROOT / "service/Dockerfile", ROOT / "tests/clients/environments.py"]
    installs = [line for file in files for line in file.read_text().splitlines() if "--require-hashes" in line]
    assert len(installs) >= 6
    assert [line for line in installs if "--no-deps" not in line] == []
