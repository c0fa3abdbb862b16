"""The errors that a user can meet. Each says what was expected, what was given and the fix, and has an exit status.

Exit statuses of the command line: 2 bad usage or bad graph, 3 a model or input file is missing or not what it should
be, or a server cannot be reached, 4 a node failed, 130 interrupted (143 by SIGTERM).
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any


class SVDStagesError(Exception):
    """The base of all errors that users meet. `code` is stable, for programs: `<area>.<reason>`."""

    code = "error"
    exit_status = 4

    def __init__(self, message: str, *, code: str | None = None):
        super().__init__(message)
        if code is not None:
            self.code = code


class SettingError(SVDStagesError, ValueError):
    """A value is out of its range, or values do not fit together."""

    code = "setting"
    exit_status = 2


class UsageError(SVDStagesError):
    """The command line has an unknown command, option or value, or lacks one. Python calls never raise it."""

    code = "usage"
    exit_status = 2


class CheckpointError(SVDStagesError):
    """A model file or folder is missing, damaged, of another family, or not complete."""

    code = "checkpoint"
    exit_status = 3


class ImageError(SVDStagesError):
    """An input image is missing, unreadable or not usable."""

    code = "image"
    exit_status = 3


class GraphError(SVDStagesError):
    """A graph cannot be read, converted or run. `node_errors` has ComfyUI's shape: node id -> {errors, ...}."""

    code = "graph"
    exit_status = 2

    def __init__(self, message: str, *, code: str | None = None, node_errors: dict[str, Any] | None = None):
        super().__init__(message, code=code)
        self.node_errors = node_errors or {}


class NodeError(SVDStagesError):
    """A node failed. `__cause__` is its exception; the exit status is the cause's if it is an error of this package."""

    code = "node"

    def __init__(self, message: str, *, node_id: str, class_type: str, cause: BaseException):
        super().__init__(message)
        self.node_id = node_id
        self.class_type = class_type
        if isinstance(cause, SVDStagesError):
            self.code, self.exit_status = cause.code, cause.exit_status


class OutputError(SVDStagesError):
    """A result could not be written to the requested path."""

    code = "output"


class BatchError(SVDStagesError):
    """A batch cannot be planned or run: its manifest or run folder is invalid, or another driver is running.

    Exit status 4 when rows or workers failed.
    """

    code = "batch"
    exit_status = 2

    def __init__(self, message: str, *, code: str | None = None, exit_status: int | None = None):
        super().__init__(message, code=code)
        if exit_status is not None:
            self.exit_status = exit_status


class ServerError(SVDStagesError):
    """A ComfyUI server cannot be reached, refuses the request, or gives an invalid answer."""

    code = "server"
    exit_status = 3


class MemoryBudgetError(SVDStagesError):
    """A stage needs more memory than is available."""

    code = "memory"


class NonFiniteError(SVDStagesError):
    """NaN or infinity in a result. No file is written."""

    code = "numbers"


class DeviceLostError(SVDStagesError):
    """The device is unusable in this process. Only another process can continue."""

    code = "device.lost"


class MissingExtraError(SVDStagesError):
    """An optional package is needed. The message names the extra that brings it."""

    code = "extra"
    exit_status = 2


class Interrupted(SVDStagesError):
    """The user stopped the run."""

    code = "interrupted"
    exit_status = 130


def printable(text: object, longest: int = 300) -> str:
    """Shorten a text to one line of about `longest` characters; the middle is left out.

    Characters that a terminal interprets or hides (line ends, escapes, direction marks, surrogates) are spelled out.
    """
    shown = str(text)
    if len(shown) > longest:
        shown = f"{shown[: longest // 2]}...{shown[-longest // 2 :]}"
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in shown)


def quoted(path: object) -> str:
    """Return a path in quotes, for a message: sentences end in points, and so do paths."""
    return f'"{printable(path)}"'


def counted(number: int, noun: str) -> str:
    """Return "1 row" or "2 rows". A unit such as MiB has no plural."""
    return f"{number} {noun}" if number == 1 or not noun.islower() else f"{number} {noun}s"


def format_seconds(seconds: float) -> str:
    """Format a duration for people: 31 s, 5 min, 1.2 h."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def for_shell(path: object, placeholder: str = "PATH") -> str:
    """Return a path for a command to be copied; the placeholder if the path is long or cannot be printed as it is."""
    text = str(path)
    return shlex.quote(text) if printable(text) == text else placeholder


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """Return up to `count` names of `known` that are most similar to `name`, for a message: "a", "b" or "c"."""
    matches = get_close_matches(name, list(known), n=count, cutoff=0.0)
    quoted = [f'"{each}"' for each in matches]
    if len(quoted) < 2:
        return "".join(quoted)
    return ", ".join(quoted[:-1]) + " or " + quoted[-1]


def closest(name: str, known: Iterable[str]) -> str | None:
    """Return the name that was probably meant by `name`, None if none resembles it.

    A name that holds another one as a whole is closest to it: num_inference_steps to steps, frames to num_frames.
    """
    known = list(known)
    containing = [each for each in known if each in name or name in each] if len(name) > 2 else []
    matches = sorted(containing, key=len, reverse=True) or get_close_matches(name, known, n=1, cutoff=0.6)
    return matches[0] if matches else None
