"""Environments of the real clients: made from locks with hashes on first use, kept inside the checkout, ignored by git."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).parent
CACHE = HERE.parent.parent / ".venv-clients"
_INSTALL_SECONDS = 600

Tell = Callable[[str], None]
"""Shows a line of progress."""


class InstallFailed(Exception):
    """A client could not be installed; the message has the command and the end of its output."""


def python(lock: Path, tell: Tell) -> Path:
    """The interpreter of an environment that holds exactly what `lock` names."""
    folder = CACHE / lock.stem
    interpreter = folder / "bin" / "python"

    def make() -> None:
        _run([sys.executable, "-m", "venv", "--clear", str(folder)])
        # The lock is whole. Left to look for dependencies, pip takes the newest of one that is wanted with an extra.
        _run([str(interpreter), "-m", "pip", "install", "--quiet", "--no-deps", "--require-hashes", "-r", str(lock)])

    _once(folder, [lock], make, tell)
    return interpreter


def node(source: Path, name: str, tell: Tell) -> Path:
    """A folder whose `node_modules` holds what the package-lock.json in `source` names. Node must be there."""
    folder = CACHE / name
    files = [source / "package.json", source / "package-lock.json"]

    def make() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for file in files:
            shutil.copy(file, folder)
        _run(["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(folder)])

    _once(folder, files, make, tell)
    return folder


def _once(folder: Path, locks: list[Path], make: Callable[[], None], tell: Tell) -> None:
    """Run `make` unless `folder` was made from the same locks; one process at a time."""
    digest = hashlib.sha256(b"\0".join(lock.read_bytes() for lock in locks)).hexdigest()
    stamp = folder / ".made-from"
    CACHE.mkdir(exist_ok=True)
    with (CACHE / f"{folder.name}.lock").open("w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        if stamp.exists() and stamp.read_text() == digest:
            return
        started = time.monotonic()
        tell(f"installing {folder.name} (kept in {CACHE.name}/ for the next time) ...")
        make()
        stamp.write_text(digest)
        tell(f"installed {folder.name} in {time.monotonic() - started:.0f} s")


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_INSTALL_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InstallFailed(f"{' '.join(command)}\n{error}") from error
    if done.returncode:
        raise InstallFailed(
            f"{' '.join(command)}\nended with {done.returncode}:\n{(done.stdout + done.stderr)[-2000:]}"
        )
