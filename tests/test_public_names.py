"""Check the names that scripts, saved graphs and installed programs depend on.

tests/data/public_names.json lists flags, events with their fields, and error codes. Add a name by editing it. Never
remove one.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import json
import logging
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest
from sources import PACKAGES, ROOT, nodes_of
from svd_stages import headless
from svd_stages.headless.cli.main import make_parser
from svd_stages.svd_core import errors
from svd_stages.svd_core.checkpoints.library import EMBEDDED_FILE
from svd_stages.svd_core.errors import ImageError, NodeError

NAMES = json.loads((ROOT / "tests/data/public_names.json").read_text())
NOT_CODES = {"image.png", "image.webp", "server.py"}


def flags(parser: argparse.ArgumentParser, command: str = "") -> Iterator[tuple[str, list[str]]]:
    """Yield (command, its flags) of each command and subcommand."""
    if command:
        yield command, sorted(flag for action in parser._actions for flag in action.option_strings)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, subparser in action.choices.items():
                yield from flags(subparser, f"{command} {name}".strip())


def test_flags_of_every_command_are_the_listed_ones():
    found = dict(flags(make_parser()))
    assert found == NAMES["flags"]


def strings() -> set[str]:
    """Return all string constants of the package."""
    return {node.value for _, node in nodes_of(ast.Constant, folders=PACKAGES) if isinstance(node.value, str)}


def test_error_codes_are_the_listed_ones():
    rooms = {code.split(".")[0] for code in NAMES["codes"]}
    code = re.compile(rf"({'|'.join(sorted(rooms))})\.[a-z_0-9]+")
    classes = nodes_of(ast.ClassDef, folders=PACKAGES)
    values = [
        each.value for _, node in classes for each in node.body if isinstance(each, ast.Assign) and _sets_code(each)
    ]
    defaults = {value.value for value in values if isinstance(value, ast.Constant)}
    codes = defaults | {text for text in strings() if code.fullmatch(text)}
    assert set(NAMES["codes"]) - codes == set()
    assert {text for text in codes - set(NAMES["codes"]) - NOT_CODES if not _is_module(text)} == set()


def _is_module(text: str) -> bool:
    return (ROOT / "headless" / f"{text.replace('.', '/')}.py").exists()


def _sets_code(node: ast.Assign) -> bool:
    return isinstance(node.targets[0], ast.Name) and node.targets[0].id == "code"


def test_the_page_of_error_codes_lists_them_with_their_exit_statuses():
    page = (ROOT / "docs/reference/error-codes.md").read_text(encoding="utf-8").partition("## All codes")[2]
    statuses = dict(re.findall(r"^\| `([\w.]+)` \| ([^|]+) \| [^|]", page, re.MULTILINE))
    assert statuses.keys() - {"embedding"} == {code for code in NAMES["codes"] if "." in code}
    for where, call in nodes_of(ast.Call, folders=PACKAGES):
        given = {each.arg: each.value.value for each in call.keywords if isinstance(each.value, ast.Constant)}
        kind = getattr(errors, getattr(call.func, "id", ""), None)
        if isinstance(kind, type) and issubclass(kind, errors.SVDStagesError) and "." in str(given.get("code")):
            assert str(given.get("exit_status", kind.exit_status)) in statuses[given["code"]].split(" or "), where


def test_events_and_their_fields_are_the_listed_ones():
    calls = [node for _, node in nodes_of(ast.Call, folders=PACKAGES) if node.args]
    for call in calls:
        name = getattr(call.args[0], "value", None)
        if isinstance(call.func, ast.Attribute) and call.func.attr == "event" and isinstance(name, str):
            assert {each.arg for each in call.keywords if each.arg} <= set(NAMES["events"][name]), name
    keywords = {each.arg for call in calls for each in call.keywords}
    declared = (node.target for _, node in nodes_of(ast.AnnAssign, folders=PACKAGES))
    attributes = {target.id for target in declared if isinstance(target, ast.Name)}
    names = strings() | keywords | attributes
    assert {field for fields in NAMES["events"].values() for field in fields} <= names
    assert set(NAMES["events"]) <= strings()


LEVELS = """
import logging, sys
from svd_stages.headless.cli.main import main
main(["animate", "missing.png", "--vram", "6G", "--compile", "regional"])
print([name for name, each in logging.root.manager.loggerDict.items()
       if name.startswith("svd_stages.") and getattr(each, "level", 0) == logging.INFO])
"""


def test_loggers_that_options_set_are_modules():
    result = subprocess.run([sys.executable, "-c", LEVELS], capture_output=True, text=True, timeout=300)
    names = ast.literal_eval(result.stdout.splitlines()[-1])
    assert len(names) >= 4 and "svd_stages.svd_core.models" in names
    assert [name for name in names if importlib.util.find_spec(name) is None] == []


def test_the_logger_that_a_batch_probe_silences_is_a_module():
    from svd_stages.headless.batch import graph_rendering

    with graph_rendering._silently():
        loggers = logging.root.manager.loggerDict.items()
        names = [name for name, each in loggers if getattr(each, "level", 0) == logging.ERROR]
    (name,) = [name for name in names if name.startswith("svd_stages.")]
    assert importlib.util.find_spec(name)


def test_paths_made_from_a_files_own_place_exist():
    from svd_stages.headless.engines.comfyui import bootstrap

    assert EMBEDDED_FILE.is_file()
    assert headless.PACKAGE == bootstrap.PACKAGE == ROOT.resolve()


def test_errors_are_defined_in_the_module_by_which_a_server_names_them():
    """Errors of a server are recognised by the suffix svd_core.errors.<class>."""
    assert {error.__module__ for error in (ImageError, NodeError)} == {"svd_stages.svd_core.errors"}


@pytest.mark.parametrize(("module", "answer"), [("svd_core.nano.evaluate", "svd_stages.training.svd_nano.evaluate")])
def test_moved_programs_answer_with_their_new_name(module, answer):
    command = [sys.executable, "-m", f"svd_stages.{module}"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode and answer in result.stderr
    assert importlib.util.find_spec(answer)


def test_few_modules_lie_directly_in_svd_core():
    assert len([path for path in (ROOT / "svd_core").glob("*.py") if path.stem != "__init__"]) <= 4
