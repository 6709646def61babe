"""gunicorn as this service wants it: its options from our settings, its lines in our format, its master telling workers why."""

from __future__ import annotations

import itertools
import logging
import mmap
import secrets
import signal
import socket
from collections.abc import Callable
from typing import Any

from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter as StockArbiter
from gunicorn.glogging import Logger as StockLogger

from observability import logs
from service.app import Host, create_gateway
from service.asgi import Bridge
from service.errors import SettingsError
from service.pacer.shared import forget_slot, shared_state
from service.settings import Settings
from service.worker import Order, Worker

Load = Callable[[], Settings]

MAX_SLOTS = 4096
"""Workers that can be alive at a time: reloads under long streams leave several generations side by side."""
_STOPS = {signal.SIGTERM, signal.SIGINT, signal.SIGQUIT}


def options(settings: Settings) -> dict[str, Any]:
    """gunicorn's options for these settings."""
    return {
        "bind": settings.bind,
        "workers": settings.workers,
        "worker_class": "service.worker.Worker",
        "logger_class": Logger,
        "loglevel": settings.log_level,
        "accesslog": None,  # our own line per request says more, and is written after the last byte
        "graceful_timeout": settings.graceful_timeout,
        # A worker whose loop has not run for this long is killed and replaced.
        "timeout": 60,
        "keepalive": settings.keepalive,
        "backlog": 2048,
        "control_socket_disable": True,
        # Long attribution and beta headers are a fact of Claude Code's life.
        "limit_request_line": 8190,
        "limit_request_field_size": 65_536,
        # The watcher sees a client leave within milliseconds; this is only the backstop.
        "asgi_disconnect_grace_period": 3,
        "pre_request": _say_nothing,
        "on_reload": _on_reload,
        "pre_fork": _pre_fork,
        "child_exit": _child_exit,
    }


def assert_free(bind: str) -> None:
    """Raises `SettingsError` if nobody can listen there; gunicorn would try five times, with two log lines each."""
    host, _, port = bind.rpartition(":")
    host = host.strip("[]")
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, int(port)))
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise SettingsError(f"CLAUDE_PROXY_BIND={bind} cannot be listened on: {reason}.") from None


def _say_nothing(worker: Worker, request: Any) -> None:
    """gunicorn's own would write every path at level debug, whatever a client put into it."""


def _on_reload(arbiter: StockArbiter) -> None:
    for worker in arbiter.WORKERS.values():
        worker.tell(Order.SUPERSEDED)


def _pre_fork(arbiter: StockArbiter, worker: Worker) -> None:
    taken = {other.slot for other in arbiter.WORKERS.values()}
    worker.slot = next(slot for slot in itertools.count() if slot not in taken)
    forget_slot(arbiter.app.state, worker.slot)
    arbiter.app.slots[:] = bytes(slot in taken or slot == worker.slot for slot in range(MAX_SLOTS))


def _child_exit(arbiter: StockArbiter, worker: Worker) -> None:
    # However it ended: what it held of the shared limits is free.
    if not forget_slot(arbiter.app.state, worker.slot):
        arbiter.log.warning(
            "the shared limits could not be had: what worker %s held stays taken for a while", worker.pid
        )


class Logger(StockLogger):  # type: ignore[misc]
    """gunicorn's lines as JSON, in the master and, until its telemetry starts, in a worker."""

    def setup(self, cfg: Any) -> None:
        """Also runs at a reload; a worker's own writer is put in place by its telemetry afterwards."""
        self.cfg = cfg
        self._access_log_enabled = False
        self.loglevel = logging.getLevelNamesMapping()[cfg.loglevel.upper()]
        self.error_log.setLevel(self.loglevel)
        logs.install(logs.write_now, cfg.loglevel)

    def reopen_files(self) -> None:
        """Nothing is a file here: lines go to stdout."""


class Arbiter(StockArbiter):  # type: ignore[misc]
    """gunicorn's master; it tells its workers whether a SIGTERM means stop, and survives a reload with bad settings."""

    _reloading = False
    _told_to_stop = False

    def signal(self, sig: int, frame: Any) -> None:
        """Signal handler: queues, no more."""
        self._told_to_stop = self._told_to_stop or sig in _STOPS
        super().signal(sig, frame)

    def stop(self, graceful: bool = True) -> None:
        """Stop all workers within the grace."""
        for worker in self.WORKERS.values():
            worker.tell(Order.STOP)
        super().stop(graceful)

    def reload(self) -> None:
        """SIGHUP: new workers with settings and secrets read anew; with bad ones, nothing changes but a log line."""
        try:
            self.app.load_settings()
        except SettingsError as error:
            self.log.error("reload refused, the old settings stay in force: %s", error)
            return
        self._reloading = True
        try:
            super().reload()
        except _StopWanted:
            self.log.info("told to stop while old workers finish")  # the main loop finds the signal in its queue
        finally:
            self._reloading = False

    def reap_workers(self) -> None:
        """Also where a reload, which waits up to a whole grace for its old workers, sees that it must stop instead."""
        super().reap_workers()
        if self._reloading and self._told_to_stop:
            raise _StopWanted


class _StopWanted(Exception):
    """Leaves gunicorn's wait in a reload."""


class Application(BaseApplication):  # type: ignore[misc]
    """The service as a gunicorn application. `load` reads the settings, at start and at every reload."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self.token = secrets.token_hex(8)
        """Names this gateway's local sockets."""
        self.slots = mmap.mmap(-1, MAX_SLOTS)
        """One byte for each slot, shared with all workers: 1 if a worker has it."""
        self.state = shared_state(MAX_SLOTS)
        """Limits and queues that all workers keep together."""
        self.slot = 0
        """The slot of the worker that this is a copy in."""
        self.load_settings()
        super().__init__()

    def load_settings(self) -> None:
        """Raises `SettingsError`."""
        self.settings = self._load()

    def load_config(self) -> None:
        """gunicorn's hook: our options."""
        for name, value in options(self.settings).items():
            self.cfg.set(name, value)

    def reload(self) -> None:
        """gunicorn's hook; forget the application so that workers make a new one."""
        self.callable = None
        super().reload()

    def load(self) -> Bridge:
        """gunicorn's hook, in the worker, after the fork."""
        return Bridge(create_gateway(self.settings, host=Host(self.state, self.slot)))

    def run(self) -> None:
        """Serve until told to stop."""
        Arbiter(self).run()
