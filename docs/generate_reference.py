"""Write the generated parts of docs/reference: command-line.md, nodes.md, error-codes.md and python.md.

    python docs/generate_reference.py           write the parts between the markers again
    python docs/generate_reference.py --check   write nothing; exit with 1 if a page is out of date

A page is written by hand outside of `<!-- generated: NAME -->` and `<!-- end of generated: NAME -->`. The meanings in
error-codes.md are written by hand, too: the generator keeps them and fails on a code that has none.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import functools
import inspect
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = ROOT / "docs" / "reference"
SOURCES = ("*.py", "svd_core/**/*.py", "nodes/**/*.py", "headless/**/*.py")

CODE = re.compile(
    r"(augmentation|batch|checkpoint|comfyui|device|graph|image|manifest|memory|node|numbers|output|server|setting|video)"
    r"\.[a-z0-9_]+"
)
NOT_CODES = (".py", ".png", ".json", ".jsonl", ".mp4", ".csv", ".txt", ".md", ".input")
"""Endings of texts that have the form of a code and are something else."""
OF_ROWS = ("batch.hung", "batch.killed", "manifest.image", "manifest.row", "manifest.value")
"""Codes of rows of a batch. The batch goes on, and its exit status is 4."""
NO_MEANING = "**no meaning yet**"

Row = tuple[str, ...]


def main(arguments: list[str] | None = None) -> int:
    """Write or check the pages. Return the exit status."""
    parser = argparse.ArgumentParser(description="Write the generated parts of docs/reference.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a page is out of date")
    check = parser.parse_args(arguments).check
    problems = []
    for page, text in pages().items():
        if NO_MEANING in text:
            problems.append(f"{page.relative_to(ROOT)}: write the meaning of each code marked {NO_MEANING}")
        if text == page.read_text(encoding="utf-8"):
            continue
        if check:
            problems.append(f"{page.relative_to(ROOT)} is out of date: run python docs/generate_reference.py")
        else:
            page.write_text(text, encoding="utf-8")
    for problem in problems:
        sys.stderr.write(problem + "\n")
    return 1 if problems else 0


def pages() -> dict[Path, str]:
    """Return each page with generated parts, and its text as it must be."""
    parts = {
        "command-line.md": {"commands": commands_text},
        "nodes.md": {"nodes": nodes_text, "compat": compat_text},
        "error-codes.md": {"classes": error_classes_text, "codes": codes_text},
        "python.md": {"settings": settings_text},
    }
    made = {}
    for name, generators in parts.items():
        page = REFERENCE / name
        text = page.read_text(encoding="utf-8")
        for part, generate in generators.items():
            text = _replace_part(text, part, generate(text) if generate is codes_text else generate())
        made[page] = text
    return made


def _replace_part(text: str, part: str, content: str) -> str:
    begin, end = f"<!-- generated: {part} -->", f"<!-- end of generated: {part} -->"
    before, found, rest = text.partition(begin)
    _, found_end, after = rest.partition(end)
    if not (found and found_end):
        raise ValueError(f'the page needs the markers "{begin}" and "{end}"')
    return f"{before}{begin}\n\n{content.strip()}\n\n{end}{after}"


def _table(head: Row, rows: Iterable[Row]) -> str:
    lines = [head, tuple("---" for _ in head), *(tuple(map(_cell, row)) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(text: str) -> str:
    """Return `text` for a table cell: one line, with the characters escaped that Markdown would read."""
    text = " ".join(text.split()).replace("|", "\\|")
    return re.sub(r"(`[^`]*`)|<|\*", lambda match: match[1] or "\\" + match[0], text)


# commands


def commands_text() -> str:
    """Return the section of each command, and the options that all of them have."""
    from svd_stages.headless.cli.main import make_parser

    commands = list(_commands(make_parser()))
    common = next(group for group in _groups(commands[0][1]) if group.title == "common options")
    parts = [f"## Options of every command\n\n{_options_table(common)}"]
    for name, parser in commands:
        parts.append(f"## {name}\n\n{_sentence(parser.description or '')}\n\n{_usage(name, parser)}")
        parts += [_group_text(group) for group in _groups(parser) if group.title != "common options"]
    return "\n\n".join(part for part in parts if part)


def _commands(parser: argparse.ArgumentParser, name: str = "svd-stages") -> Iterator[tuple[str, Any]]:
    """Yield (name, parser) of each command that has no commands of its own."""
    below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not below:
        yield name, parser
    for action in below:
        for word, each in action.choices.items():
            yield from _commands(each, f"{name} {word}")


def _groups(parser: argparse.ArgumentParser) -> list[Any]:
    return [group for group in parser._action_groups if _shown(group)]


def _shown(group: Any) -> list[argparse.Action]:
    return [each for each in group._group_actions if not isinstance(each, argparse._HelpAction)]


def _usage(name: str, parser: argparse.ArgumentParser) -> str:
    actions = [action for group in _groups(parser) for action in _shown(group)]
    required = [
        f"{each.option_strings[-1]} {_metavar(each)}" for each in actions if each.option_strings and each.required
    ]
    positional = [
        f"[{_metavar(each)}]" if each.nargs == "?" else _metavar(each) for each in actions if not each.option_strings
    ]
    return f"`{' '.join([name, *required, '[OPTIONS]', *positional])}`"


def _metavar(action: argparse.Action) -> str:
    if action.metavar:
        return str(action.metavar)
    return "{" + ",".join(map(str, action.choices)) + "}" if action.choices else action.dest.upper()


def _group_text(group: Any) -> str:
    titled = group.title not in ("positional arguments", "options")
    description = f"{_sentence(group.description)}\n\n" if group.description else ""
    return (f"**{group.title.capitalize()}.** {description}" if titled else "") + _options_table(group)


def _options_table(group: Any) -> str:
    rows = [(_option(action), _action_help(action)) for action in _shown(group)]
    head = "option" if any(action.option_strings for action in _shown(group)) else "argument"
    return _table((head, "meaning"), rows)


def _option(action: argparse.Action) -> str:
    if not action.option_strings:
        return f"`{_metavar(action)}`"
    value = "" if action.nargs == 0 else f" {_metavar(action)}"
    return ", ".join(f"`{name}{value}`" for name in action.option_strings)


def _action_help(action: argparse.Action) -> str:
    text = action.help or ""
    if action.default not in (None, False, argparse.SUPPRESS, "", []) and "default" not in text:
        text += f" (default: {action.default})"
    return text


def _sentence(text: str) -> str:
    text = text.strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


# nodes


def nodes_text() -> str:
    """Return the section of each node of this package."""
    from svd_stages import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

    sections = []
    for name, node in NODE_CLASS_MAPPINGS.items():
        parts = [
            f"## {NODE_DISPLAY_NAME_MAPPINGS[name]}",
            f"`{name}`, [help page](../../web/docs/{name}.md)",
            node.DESCRIPTION,
            _inputs_table(node),
            _table(
                ("output", "type", "meaning"),
                zip(
                    (f"`{each}`" for each in node.RETURN_NAMES),
                    (f"`{each}`" for each in node.RETURN_TYPES),
                    node.OUTPUT_TOOLTIPS,
                    strict=True,
                ),
            ),
        ]
        sections.append("\n\n".join(part for part in parts if part))
    return "\n\n".join(sections)


def _inputs_table(node: Any) -> str:
    declared = node.INPUT_TYPES()
    files = getattr(node, "FILE_INPUTS", ())
    rows = []
    for kind in ("required", "optional"):
        for name, (type_name, options) in declared.get(kind, {}).items():
            shown = f"`{name}`" + (", optional" if kind == "optional" else "")
            rows.append((shown, *_type_and_values(type_name, options, name in files), options.get("tooltip", "")))
    return _table(("input", "type", "default", "values", "meaning"), rows) if rows else ""


def _type_and_values(kind: Any, options: Mapping[str, Any], is_file: bool) -> Row:
    if isinstance(kind, list):
        default = f"`{options.get('default', kind[0])}`"
        return "choice", "" if is_file else default, "names" if is_file else ", ".join(f"`{each}`" for each in kind)
    if "min" in options:
        step = f", step {options['step']}" if options.get("step", 1) != 1 else ""
        return f"`{kind}`", str(options["default"]), f"{options['min']} to {options['max']}{step}"
    return " or ".join(f"`{each}`" for each in kind.split(",")), "", ""


def compat_text() -> str:
    """Return the table of the nodes that stand in for those of ComfyUI's core without ComfyUI."""
    from svd_stages import NODE_CLASS_MAPPINGS, headless

    others = {name: node for name, node in headless.NODES.items() if name not in NODE_CLASS_MAPPINGS}
    rows = ((f"`{name}`", inspect.cleandoc(node.DESCRIPTION)) for name, node in others.items())
    return f"{len(others)} nodes.\n\n{_table(('node', 'what it does without ComfyUI'), rows)}"


def settings_text() -> str:
    """Return the table of the fields of VideoSettings."""
    from svd_stages.svd_core.pipeline import VideoSettings

    rows = []
    for setting in dataclasses.fields(VideoSettings):
        about = setting.metadata
        choices = f": {', '.join(f'`{each}`' for each in about['choices'])}" if "choices" in about else ""
        default = "the checkpoint's" if setting.default is None else f"`{setting.default!r}`"
        rows.append((f"`{setting.name}`", default, about["description"] + choices))
    return _table(("setting", "default", "meaning"), rows)


# errors


def error_classes_text() -> str:
    """Return the table of the exception classes."""
    rows = []
    for name, kind in _error_classes().items():
        first = inspect.getdoc(kind) or ""
        rows.append((f"`{name}`", f"`{kind.code}`", str(kind.exit_status), first.split("\n\n")[0]))
    return _table(("class", "code", "exit status", "meaning"), rows)


@functools.cache
def _error_classes() -> dict[str, Any]:
    from svd_stages.svd_core import errors

    found = inspect.getmembers(errors, inspect.isclass)
    ours = [each for each in found if issubclass(each[1], errors.SVDStagesError)]
    return dict(sorted(ours, key=lambda each: inspect.getsourcelines(each[1])[1]))


def codes_text(page: str) -> str:
    """Return the table of the codes in the source. The meanings are those of `page`."""
    kept = dict(re.findall(r"^\| `([\w.]+)` \| [^|]* \| ((?:[^|]|\\\|)+) \|$", page, re.MULTILINE))
    rows = []
    for code, statuses in sorted(codes().items()):
        rows.append((f"`{code}`", " or ".join(sorted(statuses)) or "none"))
    lines = [
        "| " + " | ".join((code, status, kept.get(code.strip("`"), NO_MEANING).strip())) + " |" for code, status in rows
    ]
    return "\n".join(["| code | exit status | meaning |", "| --- | --- | --- |", *lines])


def codes() -> dict[str, set[str]]:
    """Return each code in the source and the exit statuses that it comes with. A warning has none.

    A code is a text `DOMAIN.REASON`: `code="..."` of an error, the first argument of a warning, or anywhere else.
    Raises ValueError for a `code="..."` in an unknown domain.
    """
    found: dict[str, set[str]] = {}
    for path in sorted({path for pattern in SOURCES for path in ROOT.glob(pattern)}):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        of_calls: set[ast.expr] = set()
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            for node, status in _codes_of_call(call):
                of_calls.add(node)
                found.setdefault(_literal(node), set()).update({status} - {""})
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and node not in of_calls and _is_code(node.value):
                code = str(node.value)
                found.setdefault(code, set()).add(_usual_status(code))
    return found


def _codes_of_call(call: ast.Call) -> Iterator[tuple[ast.expr, str]]:
    """Yield each code in the arguments of a call to an error class or a warning, with its exit status, "" for none."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    code, classes = given.get("code"), _error_classes()
    if name in classes and code is not None and isinstance(_literal(code), str):
        if "." in _literal(code) and CODE.fullmatch(_literal(code)) is None:
            raise ValueError(f'the code "{_literal(code)}" is in no known domain')
        status = _literal(given["exit_status"]) if "exit_status" in given else classes[name].exit_status
        yield code, str(status)
    elif any(word in name.lower() for word in ("note", "warn")):
        first = call.args[0] if call.args else code
        if first is not None and _is_code(_literal(first)):
            yield first, ""


def _usual_status(code: str) -> str:
    """Return the exit status of the class that has the errors of this domain."""
    domain = code.partition(".")[0]
    if code in OF_ROWS:
        return "4"
    domain = {"manifest": "batch", "video": "setting", "comfyui": "setting"}.get(domain, domain)
    return next((str(each.exit_status) for each in _error_classes().values() if each.code.startswith(domain)), "4")


def _literal(node: ast.expr) -> Any:
    return node.value if isinstance(node, ast.Constant) else None


def _is_code(value: Any) -> bool:
    if not isinstance(value, str) or CODE.fullmatch(value) is None or value.endswith(NOT_CODES):
        return False
    return not (ROOT / "headless" / value.replace(".", "/")).with_suffix(".py").exists()  # a module, not a code


if __name__ == "__main__":
    sys.exit(main())
