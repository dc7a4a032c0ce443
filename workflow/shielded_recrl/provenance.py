"""A digest of the code behind a command, so that a job reruns when, and only when, it changed."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

PACKAGE = "shielded_recrl"
ROOT = Path(__file__).resolve().parent


def code_digest(module: str) -> str:
    """Digest of a module and of all modules of this package that it imports, at any depth.

    Works on the syntax tree without docstrings: comments, layout and docstrings do not count.

    Args:
        module: dotted name, for example ``shielded_recrl.ranker.train``.

    Raises:
        ModuleNotFoundError: no such module in the package.
    """
    digest = hashlib.sha256()
    for name in sorted(import_closure(module)):
        digest.update(f"{name}\0{_tree(name)}\0".encode())
    return digest.hexdigest()[:16]


def import_closure(module: str) -> set[str]:
    """All modules of this package reachable from `module` by import statements, itself included."""
    if _path(module) is None:
        raise ModuleNotFoundError(f"{module}: no such module under {ROOT}")
    found, queue = set(), [module]
    while queue:
        name = queue.pop()
        if name not in found:
            found.add(name)
            queue.extend(_imports(name))
    return found


def _path(module: str) -> Path | None:
    base = ROOT.joinpath(*module.split(".")[1:])
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.is_file():
            return path
    return None


@cache
def _parse(module: str) -> ast.Module:
    return ast.parse(_path(module).read_text(encoding="utf-8"))


def _statements(tree: ast.Module) -> Iterator[ast.AST]:
    """A module and its statements at any depth, without the many expressions in them."""
    queue: list[ast.AST] = [tree]
    while queue:
        node = queue.pop()
        yield node
        for field in ("body", "orelse", "finalbody", "handlers", "cases"):
            queue.extend(getattr(node, field, ()))


@cache
def _tree(module: str) -> str:
    tree = _parse(module)
    for node in _statements(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and (
            ast.get_docstring(node, clean=False) is not None
        ):
            node.body = node.body[1:]
    return ast.dump(tree)


@cache
def _imports(module: str) -> frozenset[str]:
    names = set()
    for node in _statements(_parse(module)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    own = {name for name in names if name.split(".")[0] == PACKAGE}
    parents = {name.rsplit(".", 1)[0] for name in own if "." in name}
    return frozenset(name for name in own | parents if _path(name) is not None)
