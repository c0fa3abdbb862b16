"""The argument parser: an error is one sentence with the nearest name, and no usage text."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from ...svd_core.errors import UsageError, closest, for_shell, printable
from ...svd_core.media.image_io import SUFFIXES

OPENED_BY = {
    **dict.fromkeys((".json", ".mp4", ".webm"), "run"),
    **dict.fromkeys((".csv", ".jsonl", ".ndjson", ".parquet"), "batch run"),
    **dict.fromkeys((".safetensors", ".ckpt", ".pt", ".pth"), "inspect"),
    **dict.fromkeys(SUFFIXES, "animate"),
}
"""Suffix of a file -> the command that opens it."""

LISTED = 6
"""Commands that the answer to an unknown one names."""


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises UsageError. Its subparsers are of the same class."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "exit_on_error": False})

    def form(self) -> str:
        """Return the form of a command line: the command, the options that it needs, its arguments."""
        actions = [each for each in self._actions if not isinstance(each, argparse._HelpAction)]
        named = [each for each in actions if each.option_strings]
        needed = [f"{each.option_strings[-1]} {metavar(each)}" for each in named if each.required]
        arguments = [metavar(each) for each in actions if not each.option_strings and each.nargs != "?"]
        optional = [f"[{metavar(each)}]" for each in actions if not each.option_strings and each.nargs == "?"]
        return " ".join([self.prog, *needed, "[OPTIONS]", *arguments, *optional])

    def flag(self, dest: str) -> str | None:
        """Return the option, or the name of the argument, that sets `dest`. None if there is none."""
        for action in self._actions:
            if action.dest == dest:
                return action.option_strings[-1] if action.option_strings else metavar(action)
        return None

    def spell(self, text: str) -> str:
        """Return a text for the shell: `` `name` `` of an argument becomes the option that sets it."""
        return re.sub(r"`([a-z_]+)`", lambda match: self.flag(match[1]) or match[0], text)

    def commands(self) -> dict[str, Parser]:
        """Return the parsers of the commands and of their commands, by name: "run", "batch run"."""
        named = {}
        for action in self._actions:
            for name, parser in action.choices.items() if isinstance(action, argparse._SubParsersAction) else ():
                named[name] = parser
                named |= {f"{name} {below}": each for below, each in parser.commands().items()}
        return named

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Parse arguments. Raises UsageError, also for what no option and no argument takes."""
        parsed, rest = self.parse_known_args(args, namespace)
        if rest:
            raise UsageError(f"{_shown(rest[0])} is one argument too many: {getattr(parsed, 'form', self.form)()}")
        return parsed

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse the arguments that are known. Raises UsageError for an unknown option."""
        args = sys.argv[1:] if args is None else args
        for option in self._unknown_options(args):
            raise UsageError(self._explain_unknown(option))
        try:
            parsed, rest = super().parse_known_args(args, namespace)
        except argparse.ArgumentError as error:
            if error.argument_name is None:
                self.error(error.message)
            name = error.argument_name.rpartition("/")[2]
            link = " " if error.message.startswith("must") else ": "
            raise UsageError(f"{name}{link}{error.message}") from None
        for action in self._actions:
            if action.nargs == "+" and not action.option_strings:  # argparse gives it no more values after an option
                getattr(parsed, action.dest).extend(each for each in rest if each != "--")
                rest = []
        return parsed, rest

    def error(self, message: str) -> NoReturn:
        """Raise UsageError for a missing or ambiguous argument."""
        if self.commands():
            raise UsageError(f'give a command: {self._listed()}; "{self.prog} --help" describes them')
        raise UsageError(f"{message}; the form is: {self.form()}")

    def _unknown_options(self, args: Sequence[str]) -> Iterator[str]:
        """Yield the arguments that look like an option and are none, nor the beginning of one: --widht, -width, -w."""
        known = self._option_string_actions
        for arg in args:
            name = arg.partition("=")[0]
            if arg == "--" or (self.commands() and not arg.startswith("-")):
                return
            if " " in arg:
                continue
            if arg.startswith("--"):
                is_known = any(each.startswith(name) for each in known)
            else:
                is_known = re.match("-[a-zA-Z]", arg) is None or (name[:2] in known and f"-{name}" not in known)
            if not is_known:
                yield name

    def _explain_unknown(self, option: str) -> str:
        if any(option in each._option_string_actions for each in self.commands().values()):
            return f"{option} must stand after the command, as in: {self.prog} COMMAND {option}"
        known = {name.lstrip("-"): name for name in self._option_string_actions if name.startswith("--")}
        near = closest(option.lstrip("-"), known)
        fix = f"did you mean {known[near]}?" if near else f'"{self.prog} --help" lists the options'
        command = self.prog.partition(" ")[2] or self.prog
        return f'{command} has no option "{printable(option, 60)}"; {fix}'

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Refuse a value that is not a choice, with the nearest one."""
        if action.choices is None or value in action.choices:
            return
        if isinstance(action, argparse._SubParsersAction):
            raise UsageError(self._explain_command(value))
        near = closest(str(value), action.choices)
        fix = f'; did you mean "{near}"?' if near else ""
        raise argparse.ArgumentError(action, f"must be {_or(action.choices)}, got {_shown(value)}{fix}")

    def _listed(self, most: int | None = None) -> str:
        """Return the names of the commands. Of more than `most`, only the first and where to find the others."""
        names = [name for name in self.commands() if " " not in name]
        more = f', ...; "{self.prog} --help" lists all' if most is not None and len(names) > most else ""
        return ", ".join(names[:most]) + more

    def _explain_command(self, text: str) -> str:
        kind = OPENED_BY.get(Path(text).suffix.lower())
        root, path = self.prog.split()[0], for_shell(text)
        if os.path.isdir(text):
            return f"{_shown(text)} is a folder; animate its images with: {root} batch run {path} --run RUN"
        if kind or os.path.isfile(text):
            more = " --run RUN" if kind == "batch run" else ""
            return f"{_shown(text)} is not a command; give it to one: {root} {kind or 'animate'} {path}{more}"
        known = {name.rpartition(" ")[2]: name for name in reversed(self.commands())}
        near = closest(text, known)
        if near:
            return f'{_shown(text)} is not a command; did you mean "{self.prog} {known[near]}"?'
        return f"{_shown(text)} is not a command. Use {self._listed(LISTED)}"


def metavar(action: argparse.Action) -> str:
    """Return the name of an action's value in help texts."""
    if action.metavar:
        return str(action.metavar)
    return "{" + ",".join(map(str, action.choices)) + "}" if action.choices else action.dest.upper()


def integer(text: str) -> int:
    """Parse an integer. The type of an option."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be an integer, got {_shown(text)}") from None


def count(text: str) -> int:
    """Parse an integer of at least 1. The type of an option."""
    if integer(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1, got {_shown(text)}")
    return int(text)


def number(text: str) -> float:
    """Parse a number. The type of an option."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, got {_shown(text)}") from None


def _or(choices: Any) -> str:
    *others, last = map(str, choices)
    return f"{', '.join(others)} or {last}" if others else last


def _shown(value: object) -> str:
    """Quote a value that a user typed."""
    return f'"{printable(value, 60)}"'
