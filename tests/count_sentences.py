"""Count the lines of tests that depend on the wording of messages: `python tests/count_sentences.py [FILE ...]`.

A line counts when it passes `match=` to pytest, or when it compares the text of an error, a log or a program's output
with a constant that has two words or more. Wording may change; codes, names, numbers and paths may not.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).parent
MESSAGE = re.compile(
    r"\bstr\(|caplog|capsys|capfd|\.(text|out|err|stdout|stderr|message|messages|args)\b|\b(message|text|printed|said|err|out|error)\b"
)


def lines_with_sentences(path: Path) -> Iterator[tuple[int, str]]:
    """Give (line number, line) of each line of a test file that depends on wording."""
    source = path.read_text(encoding="utf-8")
    lines = source.splitlines()
    numbers = {number for node in ast.walk(ast.parse(source)) for number in _numbers(node)}
    for number in sorted(numbers):
        yield number, lines[number - 1].strip()


def _numbers(node: ast.AST) -> Iterator[int]:
    if isinstance(node, ast.Call) and any(each.arg == "match" for each in node.keywords):
        yield node.lineno
    if isinstance(node, ast.Compare):
        sides = [node.left, *node.comparators]
        texts = [side for side in sides if _is_sentence(side)]
        if texts and any(MESSAGE.search(ast.unparse(side)) for side in sides if side not in texts):
            yield node.lineno


def _is_sentence(node: ast.AST) -> bool:
    """Return True for a string constant (or the constant part of an f-string) of two words or more."""
    parts = node.values if isinstance(node, ast.JoinedStr) else [node]
    texts = [part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str)]
    return any(re.search(r"[A-Za-z]{2,},? +[A-Za-z]{2,}", text) for text in texts)


def main(names: list[str]) -> None:
    """Print each line, and the count."""
    count = 0
    for path in map(Path, names) if names else sorted(TESTS.rglob("*.py")):
        for number, line in lines_with_sentences(path):
            print(f"{path}:{number}: {line}")
            count += 1
    print(f"{count} lines")


if __name__ == "__main__":
    main(sys.argv[1:])
