"""Imports point one way: who may know whom (design, rooms)."""

from __future__ import annotations

import ast
import re
from graphlib import CycleError, TopologicalSorter

import pytest

from tests.rules.modules import Module, modules, own_imports

LADDER = (
    ("cli",),
    ("gunicorn_conf", "ledger_cli", "reconcile_cli"),
    ("worker",),
    ("asgi", "wsgi"),
    ("app",),
    ("web",),
    ("pipeline", "settings", "reconcile_report"),
    ("results", "capacity", "allowances", "caching", "batching", "capturing"),
    ("relay", "tries", "pacer"),
    ("policy", "store", "upstream", "account", "setting_rows", "setting_values"),
    ("record", "errors", "lifetime", "parse", "answer"),
)
"""Rooms of `service` from the doors down. A room imports rooms of lower rungs only, never its neighbours."""

RUNG = {room: index for index, rung in enumerate(LADDER) for room in rung}

KNOWN_ONLY_IN = {
    "service.web": ("flask", "werkzeug", "prometheus_flask_exporter", "opentelemetry.instrumentation.flask"),
    "service.upstream": ("httpx", "aiohttp", "yarl", "opentelemetry.instrumentation.httpx"),
    "service.account": ("sqlalchemy",),
}


def _room(name: str) -> str:
    """`web` for `service.web.auth`; empty for the package itself and for what is not in `service`."""
    parts = name.split(".")
    return parts[1] if parts[0] == "service" and len(parts) > 1 else ""


def _in(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def _every_import() -> list[tuple[Module, str]]:
    return [(module, target) for module in modules().values() for target in sorted(own_imports(module))]


def test_every_room_stands_on_the_ladder() -> None:
    rooms = {_room(name) for name in modules()} - {"", "simulator"}
    assert rooms <= RUNG.keys()


def test_a_room_imports_lower_rungs_only_and_never_a_sibling() -> None:
    wrong = [
        f"{module.name} imports {target}"
        for module, target in _every_import()
        if _room(module.name) in RUNG and _room(target) in RUNG and _room(target) != _room(module.name)
        if RUNG[_room(target)] <= RUNG[_room(module.name)]
    ]
    assert wrong == []


def test_observability_imports_nothing_of_service() -> None:
    wrong = [m.name for m, target in _every_import() if _in(m.name, "observability") and _in(target, "service")]
    assert wrong == []


def test_the_simulator_imports_nothing_of_the_rest() -> None:
    wrong = [
        f"{module.name} imports {target}"
        for module, target in _every_import()
        if _room(module.name) == "simulator" and _room(target) != "simulator"
    ]
    assert wrong == []


def test_only_the_command_line_imports_the_simulator() -> None:
    importers = {m.name for m, target in _every_import() if _room(target) == "simulator" != _room(m.name)}
    assert importers == {"service.cli"}


@pytest.mark.parametrize(("room", "libraries"), KNOWN_ONLY_IN.items())
def test_a_library_is_known_in_one_room_only(room: str, libraries: tuple[str, ...]) -> None:
    wrong = [
        f"{module.name} imports {name}"
        for module in modules().values()
        for name in sorted(module.imports)
        if not _in(module.name, room) and _room(module.name) != "simulator"  # an application of its own
        if any(_in(name, library) for library in libraries)
    ]
    assert wrong == []


def test_there_are_no_import_cycles() -> None:
    try:
        order = list(TopologicalSorter({m.name: own_imports(m) for m in modules().values()}).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))
    assert len(order) == len(modules())


def test_only_the_settings_read_the_environment_and_only_the_command_line_writes_it() -> None:
    wrong = []
    for module in modules().values():
        if module.name == "service.settings":
            continue
        written = _environment_writes(module.tree) if module.name == "service.cli" else set()
        for node in ast.walk(module.tree):
            named = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
            if re.fullmatch(r"os\.(environb?|getenvb?|putenv|unsetenv)", named) and id(node) not in written:
                wrong.append(f"{module.where(node)}: {named}")  # type: ignore[arg-type]  # an Attribute is an expression
        wrong += [f"{module.name} imports {name}" for name in module.imports if re.match(r"os\.(environ|getenv)", name)]
    assert wrong == []


def _environment_writes(tree: ast.Module) -> set[int]:
    """The `os.environ` nodes of `os.environ[name] = value` and `os.environ.setdefault(name, value)` as statements."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            found |= {id(t.value) for t in node.targets if isinstance(t, ast.Subscript)}
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            called = node.value.func
            if isinstance(called, ast.Attribute) and called.attr == "setdefault":
                found.add(id(called.value))
    return found
