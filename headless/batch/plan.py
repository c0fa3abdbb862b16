"""The plan of a batch: each row of the manifest with its task, or with what is wrong with it."""

from __future__ import annotations

import io
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...svd_core.errors import BatchError, SVDStagesError
from ...svd_core.utils.output_files import replacing
from ...svd_core.utils.safe_open import open_regular_file
from .images import Image, ImageFolder
from .manifest import Row
from .tasks import Task, derived_seed, digest, read_task, task_id

_AT_ONCE = 4096
"""Rows whose images are hashed together."""
LONGEST_LINE = 8 * 1024 * 1024
"""Characters of a line of a plan: a row of a manifest with every letter escaped, and then some."""
_LONGEST = 800
"""Characters of a message about a row."""


@dataclass(frozen=True)
class PlannedRow:
    """A row and its task; without one, `code` and `message` say why. `name` is what a person would call its clip."""

    number: int
    name: str
    image: str
    task: Task | None
    code: str = ""
    message: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        if self.task is None:
            return {"row": self.number, "name": self.name, "image": self.image, **self.fault()}
        return {"row": self.number, "name": self.name, "task": self.task.as_dict()}

    def fault(self) -> dict[str, str]:
        """Its code and message."""
        return {"code": self.code, "message": self.message}


@dataclass(frozen=True)
class Binding:
    """How a row becomes the values of a graph.

    values   the values that a row's columns mean, "NODE.INPUT" by node id -> value; raises SVDStagesError
    seeds    the inputs that take the seed, as "NODE.INPUT" by node id
    shared   what all rows have in common, for JSON: clips of other graphs, models or settings have other ids
    models   of values, the sha256 of each model that they name, by "NODE.INPUT": the clip comes from what is in it
    """

    values: Callable[[Mapping[str, Any]], dict[str, Any]]
    seeds: Sequence[str]
    shared: Mapping[str, Any]
    models: Callable[[Mapping[str, Any]], Mapping[str, str]] = lambda values: {}


@dataclass
class Totals:
    """What a plan comes to.

    tasks       clips that are wanted, each counted once
    duplicates  rows whose clip an earlier row gives
    bad         code -> (how many rows have no task because of it, what is said of the first)
    """

    rows: int = 0
    duplicates: int = 0
    bad: dict[str, tuple[int, str]] = field(default_factory=dict)
    _seen: set[str] = field(default_factory=set)

    @property
    def tasks(self) -> int:
        """How many there are."""
        return len(self._seen)

    def counting(self, planned: Iterable[PlannedRow]) -> Iterator[PlannedRow]:
        """The same rows, counted as they go by."""
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
    """Look at each row's image, and give it its task. A row that cannot be taken says why; nothing else is raised."""
    shared = digest(binding.shared)
    waiting = iter(rows)
    while group := list(itertools.islice(waiting, _AT_ONCE)):
        looked_at = images.look([row.image for row in group if row.fault is None])
        for row in group:
            yield _plan_row(row, looked_at.get(row.image), binding, shared)


def _plan_row(row: Row, image: Image | SVDStagesError | None, binding: Binding, shared: str) -> PlannedRow:
    name = row.name or _without_suffix(image.name if isinstance(image, Image) else row.image)
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
        told = f"row {row.number} names a seed, but the graph takes none; leave it out."
        return _bad(row, name, "manifest.seed", told)
    if binding.seeds:
        seed = _seed_of(row, image, {name: each for name, each in values.items() if name not in models}, binding.seeds)
        values = {**dict.fromkeys(binding.seeds, seed), **values}
    task = Task(task_id(shared, image.sha256, {**values, **models}), image.name, image.sha256, values, seed)
    return PlannedRow(row.number, name, image.name, task)


def _bad(row: Row, name: str, code: str, message: str) -> PlannedRow:
    """Cut to what a person reads: a cell may have a million characters."""
    message = message if len(message) <= _LONGEST else message[:_LONGEST] + "..."
    return PlannedRow(row.number, name[:_LONGEST], row.image[:_LONGEST], None, code, message)


def _seed_of(row: Row, image: Image, values: Mapping[str, Any], seeds: Sequence[str]) -> int:
    """The row's own; else, when columns give all seeds of the graph, the first of these; else what follows from it."""
    if row.seed is not None:
        return row.seed
    if all(name in values for name in seeds):
        return values[seeds[0]]
    return derived_seed(image.sha256, values)


def _without_suffix(path: str) -> str:
    return os.path.splitext(path)[0].replace(os.sep, "/")


def written(path: Path, head: str, planned: Iterable[PlannedRow]) -> Iterator[PlannedRow]:
    """The same rows, while they are written down, a JSON object a line; the file is in place when the last went by.

    head  the first line: what the plan belongs to, as run.json says it, too
    """
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
        stream.write(json.dumps({"plan": head}) + "\n")
        for row in planned:
            stream.write(json.dumps(row.as_dict()) + "\n")
            yield row


def _read_row(found: Mapping[str, Any]) -> PlannedRow:
    """A row as it was written down. Raises ValueError and its kin for anything else."""
    task = read_task(found["task"]) if "task" in found else None
    texts = [found["name"], found.get("image", task.image if task else ""), found.get("code", "")]
    texts.append(found.get("message", ""))
    if type(found["row"]) is not int or not all(isinstance(text, str) for text in texts):
        raise ValueError("it holds what is no row")
    name, image, code, message = texts
    return PlannedRow(found["row"], name, image, task, code, message)


def read_plan(path: Path, head: str | None = None) -> Iterator[PlannedRow]:
    """The rows of a plan. Raises BatchError when there is none, it was damaged, or its head is another than asked."""
    try:
        with io.TextIOWrapper(open_regular_file(path), encoding="utf-8") as stream:
            lines = iter(lambda: stream.readline(LONGEST_LINE + 1), "")
            found_head = json.loads(next(lines, "{}"))["plan"]
            if head is not None and found_head != head:
                raise ValueError("planning was broken off before it was whole")
            for line in lines:
                if len(line) > LONGEST_LINE:
                    raise ValueError(f"a line has more than {LONGEST_LINE} characters")
                yield _read_row(json.loads(line))
    except FileNotFoundError as error:
        raise BatchError(
            f"nothing was planned in {path.parent}; give the manifest or folder, too: "
            f"svd-stages batch run MANIFEST --graph GRAPH.json --run {path.parent}",
            code="batch.no_plan",
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BatchError(
            f"the plan {path} cannot be read ({error}); give the manifest again to plan anew. Clips that are done are "
            "found again.",
            code="batch.plan",
        ) from error
