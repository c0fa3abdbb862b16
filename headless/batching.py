"""Batches of graphs: plan, run, look, try again, hand out. What `svd-stages batch` does, and its Python calls."""

from __future__ import annotations

import fnmatch
import os
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..svd_core import host
from ..svd_core.batch.driver import Driver, Options, Progress, Watch
from ..svd_core.batch.folder import RunFolder
from ..svd_core.batch.images import ImageFolder
from ..svd_core.batch.ledger import Ledger
from ..svd_core.batch.lock import Shard, sole_driver, sole_owner
from ..svd_core.batch.manifest import read_rows
from ..svd_core.batch.plan import Binding, Totals, plan_rows, read_plan, write_plan
from ..svd_core.batch.pool import Pool
from ..svd_core.batch.reconcile import reconcile
from ..svd_core.batch.report import Status, status_of
from ..svd_core.batch.sheet import write_sheet
from ..svd_core.batch.tasks import digest
from ..svd_core.batch.worker import Setup
from ..svd_core.checkpoint.library import EMBEDDED
from ..svd_core.errors import BatchError
from ..svd_core.graph import Prompt, apply_settings, find_target, validate
from .animation import Animation, animation_graph
from .binding import Models, Values, image_input, seed_inputs, without
from .graphs import EMBEDDED_NODES, NODES, check_place, open_graph
from .models import code_version
from .refusals import raise_if_faulty
from .rendering import GraphRenderer, RenderSettings, cut_before_savers
from .sources import Source
from .surroundings import Surroundings
from .workers import Workers, make_pool, memory_needed

FORMAT = 1
NETWORK_DISKS = (
    "nfs", "cifs", "smb", "lustre", "ceph", "gluster", "beegfs", "gpfs", "afs", "fuse.s3", "fuse.ssh", "fuse.gcs", "9p",
)  # fmt: skip
COPY_EVERY = 300.0
"""Seconds between copies of a ledger that is not in the run folder."""
RUNNER = f"{GraphRenderer.__module__}:{GraphRenderer.__qualname__}"


@dataclass(frozen=True)
class Ask:
    """A batch as a person asks for it.

    run       the run folder
    source    a manifest, or a folder of pictures; None: what was planned there before
    graph     what makes each clip; None: that of the run, or the shipped image_to_video with `model`
    settings  "NODE.INPUT=VALUE" for all rows
    model     of the shipped graph
    seeds     each row that names none is made once with each
    images    the folder that all images lie in; None: that of the manifest, or the folder itself
    ledger    where the driver keeps its account; None: in the run folder, or where that is a network disk, elsewhere
    """

    run: str | os.PathLike
    source: str | os.PathLike | None = None
    graph: Source | None = None
    settings: Sequence[str] = ()
    model: str = EMBEDDED
    seeds: Sequence[int] = ()
    images: str | os.PathLike | None = None
    ledger: str | os.PathLike | None = None


HERE, PLAIN = Workers(), Options()


def plan_batch(ask: Ask, surroundings: Surroundings, workers: Workers = HERE) -> Status:
    """Hash the images, bind the values, find duplicates and bad rows, and write it all into the run folder.

    Raises BatchError, GraphError, CheckpointError; a row that cannot be taken is no error here.
    """
    with _opened(ask, workers) as (folder, ledger):
        totals = _plan(ask, surroundings, folder, ledger, workers.shard)
        reconcile(folder, ledger)
        return status_of(folder, ledger, totals)


def run_batch(
    ask: Ask,
    surroundings: Surroundings,
    workers: Workers = HERE,
    options: Options = PLAIN,
    watch: Watch = lambda progress, outcome: None,
    begin: Callable[[str, Status], None] = lambda pool, status: None,
) -> Status:
    """Make all clips of a batch that are not made yet; how it stands then. Call it again to go on.

    watch  told the progress, see `svd_core.batch.driver.Watch`
    begin  told what works and how the batch stands before the first render

    Raises BatchError when it cannot begin, or no worker can work; KeyboardInterrupt goes through, and nothing is lost.
    Rows that fail are told in the status.
    """
    with _opened(ask, workers) as (folder, ledger):
        if ask.source is not None:
            totals = _plan(ask, surroundings, folder, ledger, workers.shard)
        else:
            totals = _take_plan(folder, ledger, workers.shard)
        reconcile(folder, ledger)
        status = status_of(folder, ledger, totals)
        if status.left:
            with _pool(folder, surroundings, workers, status.left) as pool:
                begin(pool.name, status)
                watching = _also_copying(watch, folder, ledger)
                driver = Driver(folder, ledger, pool, options, watching, folder.read_probes())
                try:
                    driver.run()
                finally:
                    folder.write_probes(driver.probes)
            status = status_of(folder, ledger, totals)
        if status.counts["done"] and workers.shard is None:
            write_sheet(folder, folder.path / "contact_sheet.jpg")
        return status


def _also_copying(watch: Watch, folder: RunFolder, ledger: Ledger) -> Watch:
    """Copy a ledger that lies elsewhere into the run folder now and then: attempts are in no other file."""
    copied = time.monotonic()

    def told(progress: Progress, outcome: dict[str, Any] | None) -> None:
        nonlocal copied
        watch(progress, outcome)
        assert ledger.path is not None
        if ledger.path.parent != folder.path and time.monotonic() - copied > COPY_EVERY:
            copied = time.monotonic()
            ledger.copy_to(folder.path / f"{ledger.path.stem}-copy.sqlite")

    return told


def batch_status(run: str | os.PathLike) -> Status:
    """How a batch stands, by what lies in its folder; a driver may be at work. Raises BatchError."""
    folder, ledger = RunFolder(Path(run)), Ledger(None)
    try:
        totals = _take_plan(folder, ledger, None)
        ledger.reconcile(folder.walk())
        return status_of(folder, ledger, totals)
    finally:
        ledger.close()


def retry_batch(
    run: str | os.PathLike, patterns: Sequence[str] = ("*",), ledger_file: str | os.PathLike | None = None
) -> int:
    """Have failed and quarantined tasks whose code fits a pattern (`image.*`) made again at the next run; how many.

    Raises BatchError, also while a driver works on the run.
    """
    with _opened(Ask(run, ledger=ledger_file), HERE) as (folder, ledger):
        _take_plan(folder, ledger, None)
        reconcile(folder, ledger)
        chosen = [
            task_id
            for task_id, _, code in ledger.failed()
            if any(fnmatch.fnmatchcase(code, pattern) for pattern in patterns)
        ]
        for task_id in chosen:
            folder.forget_failure(task_id)
        ledger.retry(chosen)
        return len(chosen)


@contextmanager
def _opened(ask: Ask, workers: Workers) -> Iterator[tuple[RunFolder, Ledger]]:
    """The run folder and the ledger, for the one driver."""
    folder = RunFolder(Path(ask.run))
    if ask.source is None and not folder.settings_file.is_file():
        raise _nothing_planned(folder.path)
    check_place(folder.settings_file)
    shard = workers.shard or Shard()
    with sole_driver(folder.path, shard):
        path = Path(ask.ledger) if ask.ledger else default_ledger(folder, shard)
        with sole_owner(path):
            ledger = Ledger(path)
            try:
                yield folder, ledger
            except sqlite3.Error as error:
                raise BatchError(
                    f"the ledger {path} cannot be written: {error}. Free some space, or name another place "
                    "(--ledger FILE); what was made stays.",
                    code="batch.ledger",
                ) from error
            finally:
                ledger.close()


def default_ledger(folder: RunFolder, shard: Shard) -> Path:
    """In the run folder; where that is a network disk, on which SQLite cannot keep its promises, among the user's
    caches on this machine."""
    name = f"ledger-{shard.name}.sqlite" if shard.name else "ledger.sqlite"
    if not _is_on_network(folder.path):
        return folder.path / name
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return caches / "svd-stages" / digest(os.path.realpath(folder.path))[:16] / name


def _nothing_planned(run: Path) -> BatchError:
    return BatchError(
        f"nothing was planned in {run}; give a manifest or a folder of pictures, too: "
        f"svd-stages batch run PHOTOS --run {run}",
        code="batch.no_plan",
    )


def _is_on_network(path: Path) -> bool:
    import psutil

    def is_below(path: str, folder: str) -> bool:
        return (path + os.sep).startswith(folder.rstrip(os.sep) + os.sep)

    real = os.path.realpath(path)
    disks = [each for each in psutil.disk_partitions(all=True) if is_below(real, each.mountpoint)]
    kind = max(disks, key=lambda each: len(each.mountpoint)).fstype.lower() if disks else ""
    return kind.startswith(NETWORK_DISKS)


def _plan(ask: Ask, surroundings: Surroundings, folder: RunFolder, ledger: Ledger, shard: Shard | None) -> Totals:
    assert ask.source is not None
    source = Path(ask.source)
    base = source if source.is_dir() else source.parent
    root = base if ask.images is None else Path(ask.images)
    before = folder.read_settings() or {}
    here = surroundings.host()
    with host.using(here):
        graph = apply_settings(_graph(ask, before, surroundings), (), NODES)
        image = image_input(graph)
        raise_if_faulty(validate(graph, NODES, given={image[0]: None}), EMBEDDED_NODES)
        cut_before_savers(graph)
        seeds = _free_seeds(ask, graph, before)
        models = Models(graph, here)
        shared = {
            "format": FORMAT,
            "code": code_version(),
            "graph": digest(without(graph, [image, *(tuple(name.rsplit(".", 1)) for name in seeds)])),
            "models": models.of_graph(),
            "precision": surroundings.precision,
        }
        binding = Binding(Values(graph, models, f"{image[0]}.{image[1]}"), seeds, shared, models.of_values)
        rows = read_rows(source, ask.seeds)
        planned = plan_rows(rows, ImageFolder(root, base, ledger), binding)
        write_plan(folder.plan_file, planned)
    folder.write_settings(
        {
            "format": FORMAT,
            "run_id": before.get("run_id") or secrets.token_hex(8),
            "graph": graph,
            "image": list(image),
            "seeds": seeds,
            "images": os.path.realpath(root),
            "models": sorted(models.sums),
            "shared": {"code": code_version(), **{f"model {name}": sha for name, sha in sorted(models.sums.items())}},
            "precision": surroundings.precision,
        }
    )
    return _take_plan(folder, ledger, shard)


def _free_seeds(ask: Ask, graph: Prompt, before: Mapping[str, Any]) -> list[str]:
    """The inputs that take the rows' seeds: all but those that were set for all rows, now or when the run's own graph
    was planned. Raises BatchError when seeds are asked for and none is left to take them."""
    fixed = {find_target(graph, setting.partition("=")[0], NODES).name for setting in ask.settings}
    seeds = [name for name in seed_inputs(graph) if name not in fixed]
    if ask.graph is None and "seeds" in before:
        seeds = [name for name in seeds if name in before["seeds"]]
    if ask.seeds and not seeds:
        raise BatchError(
            "the graph takes no seeds of rows: none of its nodes has one that is not linked or set for all rows. Leave "
            "out --seeds, or the --set of the seed.",
            code="batch.seeds",
        )
    return seeds


def _take_plan(folder: RunFolder, ledger: Ledger, shard: Shard | None) -> Totals:
    """Have the tasks of the plan in the ledger, those of the shard; what the plan comes to."""
    if folder.read_settings() is None:
        raise _nothing_planned(folder.path)
    totals = Totals()
    tasks = (row.task for row in totals.counting(read_plan(folder.plan_file)))
    ledger.plan(task for task in tasks if task is not None and (shard is None or shard.has(task.id)))
    return totals


def _graph(ask: Ask, before: Mapping[str, Any], surroundings: Surroundings) -> Prompt:
    """The graph of all rows, with the settings in it."""
    if ask.graph is not None:
        return open_graph(ask.graph, ask.settings).prompt
    if before.get("graph"):
        return open_graph({"prompt": before["graph"]}, ask.settings).prompt
    shipped = animation_graph(Animation(model=ask.model), surroundings.host(), "image.png").prompt
    return open_graph({"prompt": shipped}, ask.settings).prompt


@contextmanager
def _pool(folder: RunFolder, surroundings: Surroundings, workers: Workers, left: int) -> Iterator[Pool]:
    settings = folder.read_settings()
    assert settings is not None
    config = RenderSettings(
        graph=settings["graph"],
        image=settings["image"],
        images=settings["images"],
        models=settings["models"],
        roots=[os.path.realpath(root) for root in surroundings.models_roots()],
        device=surroundings.device,
        precision=settings["precision"],
        vram=surroundings.vram,
        threads=workers.threads,
    )
    setup = Setup(os.path.realpath(folder.path), settings["run_id"], RUNNER, config.as_dict(), settings["shared"])
    memory = memory_needed(settings["models"], surroundings.host())
    pool = make_pool(setup, workers, surroundings.device, left, memory)
    try:
        yield pool
    finally:
        pool.close()
