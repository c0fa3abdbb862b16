"""Write the generated parts of docs/reference: command-line.md, nodes.md, error-codes.md and python.md.

    python docs/generate_reference.py           write the parts between the markers again
    python docs/generate_reference.py --check   write nothing; exit with 1 if a page is out of date

A page is written by hand outside of `<!-- generated: NAME -->` and `<!-- end of generated: NAME -->`.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = ROOT / "docs" / "reference"

Row = tuple[str, ...]


def main(arguments: list[str] | None = None) -> int:
    """Write or check the pages. Return the exit status."""
    parser = argparse.ArgumentParser(description="Write the generated parts of docs/reference.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a page is out of date")
    check = parser.parse_args(arguments).check
    outdated = {page: text for page, text in pages().items() if text != page.read_text(encoding="utf-8")}
    for page, text in outdated.items():
        if check:
            sys.stderr.write(f"{page.relative_to(ROOT)} is out of date: run python docs/generate_reference.py\n")
        else:
            page.write_text(text, encoding="utf-8")
    return 1 if check and outdated else 0


def pages() -> dict[Path, str]:
    """Return each page with generated parts, and its text as it must be."""
    parts = {
        "command-line.md": {"commands": commands_text},
        "nodes.md": {"nodes": nodes_text, "compat": compat_text},
        "error-codes.md": {"classes": error_classes_text},
        "python.md": {"settings": settings_text},
    }
    made = {}
    for name, generators in parts.items():
        page = REFERENCE / name
        text = page.read_text(encoding="utf-8")
        for part, generate in generators.items():
            text = _replace_part(text, part, generate())
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
        parts.append(f"## {name}\n\n{_sentence(parser.description or '')}\n\n`{parser.form()}`")
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


def _group_text(group: Any) -> str:
    titled = group.title not in ("positional arguments", "options")
    description = f"{_sentence(group.description)}\n\n" if group.description else ""
    return (f"**{group.title.capitalize()}.** {description}" if titled else "") + _options_table(group)


def _options_table(group: Any) -> str:
    rows = [(_option(action), _action_help(action)) for action in _shown(group)]
    head = "option" if any(action.option_strings for action in _shown(group)) else "argument"
    return _table((head, "meaning"), rows)


def _option(action: argparse.Action) -> str:
    from svd_stages.headless.cli.parser import metavar

    if not action.option_strings:
        return f"`{metavar(action)}`"
    value = "" if action.nargs == 0 else f" {metavar(action)}"
    return ", ".join(f"`{name}{value}`" for name in action.option_strings)


def _action_help(action: argparse.Action) -> str:
    text = (action.help or "").replace("%%", "%")  # as argparse prints it
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
        default = about["unset"] if setting.default is None else f"`{setting.default!r}`"
        rows.append((f"`{setting.name}`", default, about["description"] + choices))
    return _table(("setting", "default", "meaning"), rows)


# errors


def error_classes_text() -> str:
    """Return the table of the exception classes."""
    from svd_stages.svd_core import errors

    rows = [
        (f"`{kind.__name__}`", f"`{kind.code}`", str(kind.exit_status), (inspect.getdoc(kind) or "").split("\n\n")[0])
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.SVDStagesError)
    ]
    return _table(("class", "code", "exit status", "meaning"), rows)


if __name__ == "__main__":
    sys.exit(main())
