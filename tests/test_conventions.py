"""Check names, docstrings, function lengths and tests against the conventions that no linter checks."""

from __future__ import annotations

import ast
import json
import re
import statistics
from collections.abc import Iterator
from pathlib import Path

from count_sentences import lines_with_sentences

ROOT = Path(__file__).parents[1]
OLD_NAMES = json.loads((ROOT / "tests/data/old_names.json").read_text())
"""Kind -> old name -> its name today. Parameters are too common in tests to be checked there."""

LONGEST, MEDIAN, SENTENCES = 60, 8, 40
RIDDLE = re.compile(r"(What|Whether|Who|How|That|The same)\b")
PACKAGE = ("", "headless", "nodes", "svd_core", "training")
Function = (ast.FunctionDef, ast.AsyncFunctionDef)


def trees(*folders: str) -> Iterator[tuple[str, ast.Module]]:
    """Yield (path, syntax tree) of the Python files in these folders. The root folder stands for its own files."""
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py") if folder else ROOT.glob("*.py")):
            yield path.relative_to(ROOT).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def old_names(path: str, tree: ast.Module, kinds: tuple[str, ...]) -> Iterator[str]:
    """Yield each name of the old vocabulary that a file defines: modules, classes, functions, parameters."""
    names = [("modules", part) for part in Path(path).with_suffix("").parts]
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            names.append(("classes", node.name))
        elif isinstance(node, Function):
            names.append(("functions", node.name))
            names += [("parameters", each.arg) for each in [*node.args.args, *node.args.kwonlyargs]]
    for kind, name in names:
        if kind in kinds and name in OLD_NAMES[kind]:
            yield f"{path}: {name} -> {OLD_NAMES[kind][name]}"


def test_no_name_of_the_old_vocabulary_comes_back():
    package = [each for path, tree in trees(*PACKAGE) for each in old_names(path, tree, tuple(OLD_NAMES))]
    tests = [
        each for path, tree in trees("tests") for each in old_names(path, tree, ("modules", "classes", "functions"))
    ]
    assert not package + tests, "\n".join(package + tests)


def test_no_docstring_begins_with_a_riddle():
    starts = [
        f"{path}:{getattr(node, 'lineno', 1)} {text.splitlines()[0]}"
        for path, tree in trees(*PACKAGE)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, *Function)) and (text := ast.get_docstring(node))
    ]
    riddles = [each for each in starts if RIDDLE.match(each.split(" ", 1)[1])]
    assert len(starts) > 1500 and not riddles, "\n".join(riddles)


def test_functions_are_short():
    lengths = {
        f"{path}:{node.lineno} {node.name}": (node.end_lineno or 0) - node.lineno + 1
        for path, tree in trees(*PACKAGE)
        for node in ast.walk(tree)
        if isinstance(node, Function)
    }
    assert {name: length for name, length in lengths.items() if length > LONGEST} == {}
    assert statistics.median(lengths.values()) <= MEDIAN


def test_few_tests_depend_on_the_wording_of_messages():
    lines = [
        f"{path}:{number} {line}"
        for path in (ROOT / "tests").rglob("*.py")
        for number, line in lines_with_sentences(path)
    ]
    assert len(lines) <= SENTENCES, "\n".join(lines)
