"""Plan a batch: assign a task, or an error, to each row of the manifest."""

from __future__ import annotations

import io
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...svd_core.errors import BatchError, SVDStagesError, for_shell, quoted
from ...svd_core.utils.output_files import replacing
from ...svd_core.utils.safe_open import open_regular_file
from .images import Image, ImageFolder
from .manifest import Row
from .tasks import Task, derived_seed, digest, has_types, read_task, task_id

_GROUP = 4096
"""Rows whose images are hashed together."""
LONGEST_LINE = 8 * 1024 * 1024
"""Characters of a line of a plan: enough for the longest row of a manifest with each letter escaped."""
_LONGEST = 800
"""Characters of a message about a row."""


@dataclass(frozen=True)
class PlannedRow:
    """A row of the manifest and its task.

    Attributes:
        number: Of the row, from 1.
        name: Name of the video for people.
        image: Path as the manifest has it, or below the folder of images.
        task: None if the row is faulty.
        code: Error code of a faulty row.
        message: Error message of a faulty row.
    """

    number: int
    name: str
    image: str
    task: Task | None
    code: str = ""
    message: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return the fields for JSON."""
        if self.task is not None:
            return {"row": self.number, "name": self.name, "task": self.task.as_dict()}
        fault = {"code": self.code, "message": self.message}
        return {"row": self.number, "name": self.name, "image": self.image, **fault}


@dataclass(frozen=True)
class Binding:
    """The rules that turn a row into values of a graph.

    Attributes:
        values: Converts a row's columns to "NODE.INPUT" (by node id) -> value. Raises SVDStagesError.
        seeds: The inputs that take the seed, as "NODE.INPUT" by node id.
        shared: JSON values that all rows have in common. They are part of each task's id.
        models: Maps those of the values that name a model to its sha256, by "NODE.INPUT".
        sizes: Returns the values that follow from the size of a row's image. Gets its name and the row's values.
    """

    values: Callable[[Mapping[str, Any]], dict[str, Any]]
    seeds: Sequence[str]
    shared: Mapping[str, Any]
    models: Callable[[Mapping[str, Any]], Mapping[str, str]] = lambda values: {}
    sizes: Callable[[str, Mapping[str, Any]], Mapping[str, Any]] = lambda image, values: {}


@dataclass
class Totals:
    """Counts over the rows of a plan.

    Attributes:
        rows: All rows.
        duplicates: Rows that have the task of an earlier row.
        bad: Error code -> (number of rows, message of the first one).
    """

    rows: int = 0
    duplicates: int = 0
    bad: dict[str, tuple[int, str]] = field(default_factory=dict)
    _seen: set[str] = field(default_factory=set)

    def count(self, planned: Iterable[PlannedRow]) -> Iterator[PlannedRow]:
        """Yield the rows unchanged and count them."""
        for row in planned:
            self.rows += 1
            if row.task is None:
                count, first = self.bad.get(row.code, (0, row.message))
                self.bad[row.code] = count + 1, first
            else:
                self.duplicates += row.task.id in self._seen
                self._seen.add(row.task.id)
            yield row


def plan_rows(rows: Iterable[Row], images: ImageFolder, binding: Binding) -> Iterator[PlannedRow]:
    """Hash each row's image and yield the row with its task, or with its error. Raises no error of a row."""
    shared = digest(binding.shared)
    remaining = iter(rows)
    while group := list(itertools.islice(remaining, _GROUP)):
        resolved = images.resolve([row.image for row in group if row.fault is None])
        for row in group:
            yield _plan_row(row, resolved.get(row.image), binding, shared)


def _plan_row(row: Row, image: Image | SVDStagesError | None, binding: Binding, shared: str) -> PlannedRow:
    path = image.name if isinstance(image, Image) else row.image
    name = row.name or os.path.splitext(path)[0].replace(os.sep, "/")
    if row.fault is not None or image is None:
        return _bad(row, name, *(row.fault or ("manifest.image", "the row names no image.")))
    if isinstance(image, SVDStagesError):
        return _bad(row, name, image.code, str(image))
    try:
        values = binding.values(row.values)
        models = binding.models(values)
    except SVDStagesError as error:
        return _bad(row, name, error.code, f"row {row.number}: {error}")
    seed = None
    if row.seed is not None and not binding.seeds:
        message = f"row {row.number} has a seed, but the graph takes none. Leave the seed out."
        return _bad(row, name, "manifest.seed", message)
    if binding.seeds:
        without_models = {name: value for name, value in values.items() if name not in models}
        seed = _choose_seed(row, image, without_models, binding.seeds)
        values = {**dict.fromkeys(binding.seeds, seed), **values}
    values = {**binding.sizes(image.name, values), **values}
    task = Task(task_id(shared, image.sha256, {**values, **models}), image.name, image.sha256, values, seed)
    return PlannedRow(row.number, name, image.name, task)


def _bad(row: Row, name: str, code: str, message: str) -> PlannedRow:
    """Return a faulty row. Texts are shortened, because a cell may have a million characters."""
    message = message if len(message) <= _LONGEST else message[:_LONGEST] + "..."
    return PlannedRow(row.number, name[:_LONGEST], row.image[:_LONGEST], None, code, message)


def _choose_seed(row: Row, image: Image, values: Mapping[str, Any], seeds: Sequence[str]) -> int:
    """Return the row's seed; or the first seed input if columns set all of them; or the derived seed."""
    if row.seed is not None:
        return row.seed
    if all(name in values for name in seeds):
        return values[seeds[0]]
    return derived_seed(image.sha256, values)


def write_plan(path: Path, head: str, planned: Iterable[PlannedRow]) -> Iterator[PlannedRow]:
    """Yield the rows unchanged and write them as JSON Lines. The file is in place after the last row.

    Args:
        path: The file.
        head: The first line: digest of what the plan was made from, as run.json has it.
        planned: The rows.
    """
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
        stream.write(json.dumps({"plan": head}) + "\n")
        for row in planned:
            stream.write(json.dumps(row.as_dict()) + "\n")
            yield row


def _read_row(fields: Mapping[str, Any]) -> PlannedRow:
    """Return a row as `write_plan` wrote it. Raises ValueError, KeyError or TypeError for anything else."""
    task = read_task(fields["task"]) if "task" in fields else None
    row = {"image": task.image, "code": "", "message": "", **fields} if task else fields
    if not has_types(row, {"row": (int,), **dict.fromkeys(("name", "image", "code", "message"), (str,))}):
        raise ValueError("row must be an integer, and name, image, code and message must be text")
    return PlannedRow(row["row"], row["name"], row["image"], task, row["code"], row["message"])


def no_plan(run: Path) -> BatchError:
    """Return the error of a run folder without a plan."""
    message = (
        f"{quoted(run)} has no plan. Give a manifest or a folder of images: svd-stages batch run PHOTOS "
        f"--run {for_shell(run)}"
    )
    return BatchError(message, code="batch.no_plan")


def read_plan(path: Path, head: str | None = None) -> Iterator[PlannedRow]:
    """Yield the rows of a plan.

    Raises:
        BatchError: There is no plan, it is damaged, or its head is not `head`.
    """
    try:
        with io.TextIOWrapper(open_regular_file(path), encoding="utf-8") as stream:
            lines = iter(lambda: stream.readline(LONGEST_LINE + 1), "")
            if json.loads(next(lines, "{}"))["plan"] != head and head is not None:
                raise ValueError("planning was interrupted")
            for line in lines:
                if len(line) > LONGEST_LINE:
                    raise ValueError(f"a line has more than {LONGEST_LINE} characters")
                yield _read_row(json.loads(line))
    except FileNotFoundError as error:
        raise no_plan(path.parent) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        message = (
            f"the plan {quoted(path)} cannot be read ({error}). Give the manifest again. Finished videos are kept."
        )
        raise BatchError(message, code="batch.plan") from error
