"""No file says where it was made: neither a package index nor a path of somebody's machine."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MACHINE = re.compile("|".join(("/" + "work/", "/" + "tmp/v/", r"/(home|Users)/\w+/", "/" + "root/")))
INDEX = re.compile(r"--(extra-)?index-url[ =]\S|^\s*(extra-)?index-url\s*=|^registry\s*=", re.MULTILINE)


def _tracked() -> dict[str, str]:
    """Every tracked text file; all files of the tree where there is no git."""
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    found = {}
    for name in filter(None, listed.decode().split("\0")):
        try:
            found[name] = (ROOT / name).read_text(encoding="utf-8")
        except (UnicodeDecodeError, FileNotFoundError):
            continue  # a picture, or a file that is being removed
    return found


def test_no_tracked_file_contains_a_path_of_a_machine() -> None:
    assert [(name, match[0]) for name, text in _tracked().items() if (match := MACHINE.search(text))] == []


def test_no_tracked_file_names_a_package_index() -> None:
    assert [(name, match[0]) for name, text in _tracked().items() if (match := INDEX.search(text))] == []


def test_no_lock_file_contains_an_address() -> None:
    locks = {name: text for name, text in _tracked().items() if name.endswith((".lock", "-lock.json", "-lock.yaml"))}
    assert {"requirements.lock", "requirements-dev.lock"} <= locks.keys()
    assert [name for name, text in locks.items() if "://" in text and not name.endswith(".json")] == []
    assert [name for name, text in locks.items() if '"resolved"' in text] == []


def test_every_locked_requirement_has_a_hash() -> None:
    for name in ("requirements.lock", "requirements-dev.lock"):
        text = re.sub(r"\\\n", "", (ROOT / name).read_text(encoding="utf-8"))
        bare = [line for line in text.splitlines() if re.match(r"[\w.-]+==", line) and "--hash=sha256:" not in line]
        assert bare == []
