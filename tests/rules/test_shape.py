"""Small files, short functions, every public thing explained, everything annotated, every emitted name in one place."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from observability import catalog
from tests.rules.modules import Function, Module, functions, modules, strings

MAX_FILE, MAX_FUNCTION = 300, 50
EMITTED = re.compile(r"\b(claude_proxy_|gen_ai[._])[a-z]")


def test_files_are_under_300_lines() -> None:
    lengths = {m.name: len(m.text.splitlines()) for m in modules().values()}
    assert {name: length for name, length in lengths.items() if length >= MAX_FILE} == {}


def test_functions_are_under_50_lines() -> None:
    lengths = {
        f"{module.where(node)} {node.name}": (node.end_lineno or 0) - node.lineno + 1
        for module in modules().values()
        for node in functions(module)
    }
    assert {name: length for name, length in lengths.items() if length >= MAX_FUNCTION} == {}


def test_every_module_and_everything_public_has_a_docstring() -> None:
    silent = [m.name for m in modules().values() if m.text.strip() and not ast.get_docstring(m.tree)]
    silent += [
        f"{module.where(node)} {node.name}"
        for module in modules().values()
        for node in _public(module.tree)
        if not ast.get_docstring(node) and not _is_stub(node)
    ]
    assert silent == []


def test_every_argument_and_every_result_is_annotated() -> None:
    bare = []
    for module in modules().values():
        methods = {id(n) for c in ast.walk(module.tree) if isinstance(c, ast.ClassDef) for n in c.body}
        for node in functions(module):
            arguments = node.args.posonlyargs + node.args.args
            is_method = id(node) in methods and not any(ast.unparse(d) == "staticmethod" for d in node.decorator_list)
            named = arguments[1:] if is_method else arguments
            every = [*named, *node.args.kwonlyargs, *filter(None, (node.args.vararg, node.args.kwarg))]
            bare += [f"{module.where(node)} {node.name}({a.arg})" for a in every if a.annotation is None]
            if node.returns is None:
                bare.append(f"{module.where(node)} {node.name} -> ?")
    assert bare == []


def test_emitted_names_are_literals_only_in_the_catalogue() -> None:
    attributes = {value for own in (catalog.Attr, catalog.Http) for key, value in vars(own).items() if key.isupper()}
    stray = [
        f"{module.where(node)}: {node.value!r}"
        for module in modules().values()
        if module.name not in ("observability.catalog", "observability.attributes")
        for node in strings(module)
        if isinstance(node.value, str) and (EMITTED.search(node.value) or node.value in attributes)
    ]
    assert stray == []


def _public(tree: ast.Module | ast.ClassDef) -> Iterator[ast.ClassDef | Function]:
    """Public classes and functions, and public methods of public classes; what is inside a function is nobody's."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from _public(node)


def _is_stub(node: ast.ClassDef | Function) -> bool:
    """A protocol's member: its body is `...`; what it is, the protocol's docstring says."""
    return len(node.body) == 1 and ast.unparse(node.body[0]) == "..."


def test_the_rules_see_the_whole_product() -> None:
    assert len(modules()) > 40
    assert all(isinstance(module, Module) for module in modules().values())
