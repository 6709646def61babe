"""The product's modules as syntax trees: what each imports, defines and says."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("service", "observability")

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Module:
    """One file. `imports` are the full names it imports, local and type-checking ones included."""

    name: str
    path: Path
    text: str
    tree: ast.Module
    imports: frozenset[str]

    def where(self, node: ast.stmt | ast.expr) -> str:
        """File and line of a node."""
        return f"{self.path.relative_to(ROOT)}:{node.lineno}"


@cache
def modules() -> dict[str, Module]:
    """Every module of the product by its full name; a package's `__init__` goes by the package's name."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            text = path.read_text(encoding="utf-8")
            tree = ast.parse(text)
            found[name] = Module(name, path, text, tree, frozenset(_imports(tree)))
    return found


def own_imports(module: Module) -> set[str]:
    """The product's own modules that `module` imports; importing a name from a module is importing that module."""
    known = modules()
    return {target for name in module.imports if (target := _longest(name, known)) is not None} - {module.name}


def functions(module: Module) -> Iterator[Function]:
    """Every function, methods and nested ones included."""
    return (node for node in ast.walk(module.tree) if isinstance(node, Function))


def strings(module: Module) -> Iterator[ast.Constant]:
    """Every string literal, parts of f-strings included, docstrings not."""
    prose = {id(node.value) for node in ast.walk(module.tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            yield node


def _imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide who is imported"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _longest(name: str, known: dict[str, Module]) -> str | None:
    while name and name not in known:
        name = name.rpartition(".")[0]
    return name or None
