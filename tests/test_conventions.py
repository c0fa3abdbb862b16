"""Check names, docstrings, function lengths and tests against the conventions that no linter checks."""

from __future__ import annotations

import ast
import json
import re
import statistics
from collections.abc import Iterator
from pathlib import Path

from sources import PACKAGES, ROOT, nodes_of, trees

OLD_NAMES = json.loads((ROOT / "tests/data/old_names.json").read_text())
"""Kind -> old name -> its name today. Parameters are too common in tests to be checked there."""

LONGEST, MEDIAN, SENTENCES = 60, 8, 40
RIDDLE = re.compile(r"(What|Whether|Who|How|That|The same)\b")
PACKAGE = ("", *PACKAGES, "training")
Function = (ast.FunctionDef, ast.AsyncFunctionDef)
MESSAGE = re.compile(
    r"\bstr\(|caplog|capsys|capfd|\.(text|out|err|stdout|stderr|message|messages|args)\b|\b(message|text|printed|said|err|out|error)\b"
)
"""Source of a text of an error, a log or a program's output."""


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
    package = [each for path, tree in trees(*PACKAGE).items() for each in old_names(path, tree, tuple(OLD_NAMES))]
    tests = [
        each
        for path, tree in trees("tests").items()
        for each in old_names(path, tree, ("modules", "classes", "functions"))
    ]
    assert not package + tests, "\n".join(package + tests)


def test_no_docstring_begins_with_a_riddle():
    starts = [
        (place, text.splitlines()[0])
        for place, node in nodes_of(ast.Module, ast.ClassDef, *Function, folders=PACKAGE)
        if (text := ast.get_docstring(node))
    ]
    assert len(starts) > 1500 and [each for each in starts if RIDDLE.match(each[1])] == []


def test_functions_are_short():
    lengths = {
        f"{place} {node.name}": (node.end_lineno or 0) - node.lineno + 1
        for place, node in nodes_of(*Function, folders=PACKAGE)
    }
    assert {name: length for name, length in lengths.items() if length > LONGEST} == {}
    assert statistics.median(lengths.values()) <= MEDIAN


def is_sentence(node: ast.AST) -> bool:
    """Return True for a string constant (or the constant part of an f-string) of two words or more."""
    parts = node.values if isinstance(node, ast.JoinedStr) else [node]
    texts = [part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str)]
    return any(re.search(r"[A-Za-z]{2,},? +[A-Za-z]{2,}", text) for text in texts)


def depends_on_wording(node: ast.AST) -> bool:
    """Return True for a call with `match=`, and where the text of a message is compared with a sentence."""
    if isinstance(node, ast.Call):
        return any(each.arg == "match" for each in node.keywords)
    sides = [node.left, *node.comparators]
    texts = [side for side in sides if is_sentence(side)]
    return bool(texts) and any(MESSAGE.search(ast.unparse(side)) for side in sides if side not in texts)


def test_few_tests_depend_on_the_wording_of_messages():
    """Wording may change; codes, names, numbers and paths may not."""
    nodes = nodes_of(ast.Call, ast.Compare, folders=("tests",))
    lines = {place: ast.unparse(node) for place, node in nodes if depends_on_wording(node)}
    assert len(lines) <= SENTENCES, lines
