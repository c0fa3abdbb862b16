"""The syntax trees of the Python files, for the tests of architecture, conventions and names."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

Node = TypeVar("Node", bound=ast.AST)

ROOT = Path(__file__).parents[1]
PACKAGES = ("headless", "nodes", "svd_core")
ALL = ("", *PACKAGES, "training", "docs")


@functools.cache
def trees(*folders: str) -> dict[str, ast.Module]:
    """Parse the Python files in these folders: path -> tree. The root folder stands for its own files."""
    paths = (path for name in folders for path in sorted((ROOT / name).rglob("*.py") if name else ROOT.glob("*.py")))
    return {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in paths}


def nodes_of(*kinds: type[Node], folders: tuple[str, ...] = ALL) -> Iterator[tuple[str, Node]]:
    """Yield ("file:line", node) of every syntax node of these kinds."""
    for path, tree in trees(*folders).items():
        for node in ast.walk(tree):
            if isinstance(node, kinds):
                yield f"{path}:{getattr(node, 'lineno', 1)}", node


def imports() -> Iterator[tuple[str, str, set[str]]]:
    """Yield ("file:line", module, imported names) of every absolute import, wherever in a file."""
    for place, node in nodes_of(ast.Import, ast.ImportFrom):
        if isinstance(node, ast.Import):
            yield from ((place, alias.name, {alias.name}) for alias in node.names)
        elif node.level == 0 and node.module:
            yield place, node.module, {alias.name for alias in node.names}
