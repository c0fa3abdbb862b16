"""The README and docs/: code blocks run, links lead somewhere, generated tables are up to date.

docs/development/testing.md describes the comments before a block. A page is run in one folder, with a copy of
example_workflows, in this process as far as it can be: importing torch and diffusers once saves most of the time.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from svd_stages.headless.cli.main import main, make_parser
from svd_stages.svd_core.errors import UsageError

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]

REASONS = {"weights", "server", "gpu", "comfyui", "network", "cluster", "install", "minutes"}
TESTED = {"sh", "bash", "python"}
NOT_TESTED = {"text", "json"}
OPERATORS = {"|", "||", "&", "&&", ";", ">", ">>", "<", "<<", "(", ")"}


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Attributes:
        line: Number of its first line in the page.
        needs: Reasons why it is not run.
        adds: Options that the test adds to each svd-stages command.
    """

    page: Path
    line: int
    language: str
    code: str
    needs: frozenset[str] = frozenset()
    adds: tuple[str, ...] = ()

    @property
    def where(self) -> str:
        """Return the file and line for messages."""
        return f"{self.page.name}:{self.line}"


def blocks_of(page: Path) -> list[Block]:
    """Return the fenced blocks of a page. Raises ValueError for an unknown language, comment or reason."""
    lines = page.read_text(encoding="utf-8").splitlines()
    blocks, start, before = [], None, ""
    for number, line in enumerate(lines):
        if not line.startswith("```"):
            continue
        if start is None:
            start, before = number, lines[number - 1] if number else ""
            continue
        code = "\n".join(lines[start + 1 : number]) + "\n"
        blocks.append(_block(page, start + 2, lines[start].removeprefix("```"), code, before))
        start = None
    if start is not None:
        raise ValueError(f"{page.name}: a block is not closed")
    return blocks


def _block(page: Path, line: int, language: str, code: str, before: str) -> Block:
    if language not in TESTED | NOT_TESTED:
        raise ValueError(f"{page.name}:{line}: unknown language {language!r}")
    comment = re.fullmatch(r"<!-- (.+?): (.+) -->", before)
    if comment is None:
        return Block(page, line, language, code)
    if comment[1] == "test adds":
        return Block(page, line, language, code, adds=tuple(shlex.split(comment[2])))
    needs = frozenset(comment[2].replace(" ", "").split(","))
    if comment[1] != "needs" or not needs <= REASONS:
        raise ValueError(f"{page.name}:{line}: unknown comment {before!r}")
    return Block(page, line, language, code, needs=needs)


# commands of a shell block


def logical_lines(code: str) -> Iterator[str]:
    """Yield the lines of a shell block, those that end in a backslash joined with the next one."""
    yield from re.sub(r"\\\n\s*", " ", code).splitlines()


def words_of(line: str) -> list[str]:
    """Return the words and operators of a shell line, without comments."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    return list(lexer)


def svd_stages_commands(code: str) -> Iterator[list[str]]:
    """Yield the arguments of each svd-stages command in a shell block."""
    for line in logical_lines(code):
        command: list[str] = []
        for word in [*words_of(line), ";"]:
            if word not in OPERATORS:
                command.append(word)
                continue
            if (arguments := _arguments(command)) is not None:
                yield arguments
            command = []


def _arguments(command: list[str]) -> list[str] | None:
    while command and (command[0] in ("if", "!", "then", "do") or re.match(r"\w+=", command[0])):
        command = command[1:]
    if command[:1] == ["svd-stages"]:
        return command[1:]
    return command[3:] if command[:3] == ["python", "-m", "svd_stages"] else None


def is_simple(line: str) -> bool:
    """Return True for one svd-stages command without shell syntax, which can run in this process."""
    if line[:1].isspace() or re.search(r"[$`\\]", line):
        return False
    words = words_of(line)
    return not OPERATORS & set(words) and _arguments(words) is not None


# running and checking blocks


def run_shell(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a shell block: simple svd-stages commands in this process, all other lines by bash."""
    others: list[str] = []
    for line in logical_lines(block.code):
        if not is_simple(line):
            others.append(line)
            continue
        run_bash(block, others)
        others = []
        with monkeypatch.context() as patch:
            for word in words_of(line):
                if re.match(r"\w+=", word):
                    patch.setenv(*word.split("=", 1))
            arguments = [*(_arguments(words_of(line)) or []), *block.adds]
            assert main(arguments) == 0, f"{block.where}: {shlex.join(arguments)}"
    run_bash(block, others)


def run_bash(block: Block, lines: list[str]) -> None:
    """Run lines by bash. It stops at the first command that fails."""
    if not any(line.strip() for line in lines):
        return
    python, adds = shlex.quote(sys.executable), shlex.join(block.adds)
    head = [
        "set -euo pipefail",
        f'svd-stages() {{ {python} -m svd_stages "$@" {adds}; }}',
        f'python() {{ {python} "$@"; }}',
    ]
    done = subprocess.run(["bash"], input="\n".join([*head, *lines, ""]), text=True, capture_output=True, timeout=300)
    assert done.returncode == 0, f"{block.where}: {done.stdout}{done.stderr}"


def check_block(block: Block) -> None:
    """Check a block that is not run. Raises AssertionError for what does not exist."""
    (check_python if block.language == "python" else check_shell)(block)


def check_shell(block: Block) -> None:
    """Parse each svd-stages command of a block that is not run. Raises AssertionError for a wrong option."""
    for arguments in svd_stages_commands(block.code):
        try:
            make_parser().parse_args(arguments)
        except (SystemExit, UsageError) as error:
            raise AssertionError(f"{block.where}: svd-stages {shlex.join(arguments)} cannot be parsed") from error


def check_python(block: Block) -> None:
    """Check imports, attributes of modules, and argument names of a block that is not run. Raises AssertionError."""
    tree = ast.parse(block.code, block.where)
    names: dict[str, Any] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                module = importlib.import_module(alias.name)
                names[alias.asname or alias.name.partition(".")[0]] = (
                    module if alias.asname else sys.modules[alias.name.partition(".")[0]]
                )
        elif isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module or "")
            for alias in node.names:
                assert hasattr(module, alias.name), f"{block.where}: {node.module} has no {alias.name}"
                names[alias.asname or alias.name] = getattr(module, alias.name)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            _resolve(node, names, block)
        elif isinstance(node, ast.Call) and callable(function := _resolve(node.func, names, block)):
            parameters = inspect.signature(function).parameters
            if not any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
                unknown = {keyword.arg for keyword in node.keywords} - {*parameters, None}
                assert not unknown, f"{block.where}: {function.__name__} has no argument {unknown}"


def _resolve(node: ast.expr, names: dict[str, Any], block: Block) -> Any:
    """Return the imported object that an expression names, or None. Raises AssertionError if a module lacks it."""
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if not isinstance(node, ast.Attribute):
        return None
    owner = _resolve(node.value, names, block)
    if isinstance(owner, ModuleType):
        assert hasattr(owner, node.attr), f"{block.where}: {owner.__name__} has no {node.attr}"
        return getattr(owner, node.attr)
    return None


def reference() -> ModuleType:
    """Return docs/generate_reference.py as a module."""
    name = "svd_stages_generate_reference"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / "generate_reference.py")
        assert spec is not None and spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with what a checkout has that the pages use, and no models but the built-in one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SVD_STAGES_MODELS", raising=False)
    shutil.copytree(ROOT / "example_workflows", tmp_path / "example_workflows")
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    return tmp_path


WITH_BLOCKS = [page for page in PAGES if "```" in page.read_text(encoding="utf-8")]


@pytest.mark.parametrize("page", WITH_BLOCKS, ids=[page.relative_to(ROOT).as_posix() for page in WITH_BLOCKS])
def test_the_code_blocks_of_a_page_run_in_order(page, checkout, monkeypatch):
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks_of(page):
        if block.language not in TESTED:
            continue
        if block.needs:
            check_block(block)
        elif block.language == "python":
            exec(compile(block.code, block.where, "exec"), names)
        else:
            run_shell(block, monkeypatch)


def page_with(tmp_path: Path, text: str) -> Path:
    page = tmp_path / "page.md"
    page.write_text(text, encoding="utf-8")
    return page


@pytest.mark.parametrize(
    "text",
    [
        "<!-- needs: luck -->\n```sh\nsvd-stages nodes\n```\n",
        "<!-- needs: weights, luck -->\n```sh\nsvd-stages nodes\n```\n",
        "<!-- skip: weights -->\n```python\npass\n```\n",
        "```shell\nsvd-stages nodes\n```\n",
        "```\nsvd-stages nodes\n```\n",
        "```sh\nsvd-stages nodes\n",
    ],
)
def test_a_block_cannot_escape_the_test(tmp_path, text):
    with pytest.raises(ValueError):
        blocks_of(page_with(tmp_path, text))


@pytest.mark.parametrize(
    ("language", "code"),
    [
        ("sh", "svd-stages animate photo.jpg --more-motion\n"),
        ("sh", "A=1 svd-stages run graph.json && svd-stages animat photo.jpg\n"),
        ("sh", "svd-stages run graph.json \\\n    --oputput-dir videos\n"),
        ("sh", "if ! python -m svd_stages validate --graph g.json 2> log; then\n    echo bad\nfi\n"),
        ("python", "from svd_stages import animat\n"),
        ("python", "import svd_stages\nsvd_stages.animat('a.png')\n"),
        ("python", "import svd_stages\nsvd_stages.animate('a.png', motion=3)\n"),
        ("python", "from svd_stages import headless\nheadless.run_batches()\n"),
    ],
)
def test_a_wrong_option_or_name_in_a_block_that_is_not_run_is_noticed(tmp_path, language, code):
    (block,) = blocks_of(page_with(tmp_path, f"<!-- needs: weights, gpu -->\n```{language}\n{code}```\n"))
    assert block.needs == {"weights", "gpu"}
    with pytest.raises(AssertionError):
        check_block(block)


def test_a_failing_command_of_a_shell_block_is_noticed(tmp_path, monkeypatch):
    for code in ("false\nsvd-stages nodes\n", "svd-stages inspect nothing.safetensors\n"):
        (block,) = blocks_of(page_with(tmp_path, f"```sh\n{code}```\n"))
        with pytest.raises(AssertionError):
            run_shell(block, monkeypatch)


# links


def without_code(text: str) -> str:
    """Return a page without fenced blocks and code in lines."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL))


def links_of(page: Path) -> list[str]:
    """Return the targets of links and images that are not on the web."""
    found = re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text(encoding="utf-8")))
    return [target for target in found if not re.match(r"[a-z]+:", target)]


def anchors_of(page: Path) -> set[str]:
    """Return the anchors that GitHub makes of the headings of a page."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    anchors: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", re.sub(r"\]\([^)]*\)", "", heading).lower()).replace(" ", "-")
        number = 1
        while (name := slug if number == 1 else f"{slug}-{number - 1}") in anchors:
            number += 1
        anchors.add(name)
    return anchors


def broken_links(page: Path) -> list[str]:
    """Return the relative links of a page that lead nowhere."""
    broken = []
    for target in links_of(page):
        path, _, anchor = target.partition("#")
        file = page if not path else Path(os.path.normpath(page.parent / path))
        if not file.exists() or (anchor and anchor not in anchors_of(file)):
            broken.append(target)
    return broken


@pytest.mark.parametrize("page", PAGES, ids=[page.relative_to(ROOT).as_posix() for page in PAGES])
def test_links_and_anchors_of_a_page_exist(page):
    assert broken_links(page) == []


def test_broken_links_are_noticed(tmp_path):
    text = "# Top\n\n[a](page.md#top) [b](#nowhere) [c](gone.md) ![d](gone.png) [e](https://example.org) `[f](g.md)`\n"
    assert broken_links(page_with(tmp_path, text)) == ["#nowhere", "gone.md", "gone.png"]


def test_every_page_of_docs_is_in_its_index():
    index = ROOT / "docs" / "README.md"
    linked = {(index.parent / target.partition("#")[0]).resolve() for target in links_of(index)}
    assert {page for page in PAGES if page.parent != ROOT} - linked - {index} == set()


def test_images_of_docs_are_small():
    assert {path.name: size for path in (ROOT / "docs").rglob("*.png") if (size := path.stat().st_size) > 150_000} == {}


# generated tables


def test_generated_tables_are_up_to_date(capsys):
    status = reference().main(["--check"])
    assert status == 0, capsys.readouterr().err
