"""Batches of graphs: plan, run, look, try again, hand out. What `svd-stages batch` does, and its Python calls."""

from __future__ import annotations

import fnmatch
import logging
import os
import re
import secrets
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..._version import __version__
from ...svd_core.checkpoints.library import EMBEDDED
from ...svd_core.errors import BatchError, GraphError, SVDStagesError
from ...svd_core.media.alpha_compositing import GREY, KEEP, Background, read_background
from ...svd_core.pipeline import VideoSettings
from ...svd_core.runtime.runtime import use_runtime
from ...svd_core.utils.user_tempdir import private_folder
from ..engines.embedded.memory_estimate import check_memory_budget
from ..engines.graph_errors import raise_if_faulty
from ..engines.graph_loading import Source
from ..engines.graphs import EMBEDDED_NODES, NODES, check_place, open_graph
from ..engines.run_config import RunConfig
from ..engines.video_graph import image_to_video_graph
from ..graph import Prompt, apply_settings, find_target, validate
from ..graph.validate import shape_fault
from .contact_sheet import write_sheet
from .driver import Driver, Options, Progress, Watch
from .environment import Environment
from .folder import RunFolder
from .graph_binding import ModelHashes, Values, canonical_graph, image_input, seed_inputs, without
from .graph_rendering import GraphRenderer, RenderSettings
from .graph_workers import Workers, make_pool, memory_needed
from .images import ImageFolder
from .ledger import Ledger
from .lock import Shard, active_drivers, ledger_lock, planning, run_lock
from .manifest import read_rows
from .model_hashes import code_version, facts_of
from .plan import Binding, Totals, plan_rows, read_plan, written
from .reconcile import reconcile
from .report import Status, status_of
from .tasks import digest
from .worker import Setup, open_spool, tidy_spool
from .worker_pool import Pool

logger = logging.getLogger(__name__)

FORMAT = 1
NETWORK_DISKS = (
    "nfs", "cifs", "smb", "lustre", "ceph", "gluster", "beegfs", "gpfs", "afs", "9p", "weka", "panfs", "s3", "ssh",
    "gcs", "rclone", "juicefs", "mountpoint",
)  # fmt: skip
"""How the kinds of disks that lie behind a network begin, with or without "fuse."."""
COPY_EVERY = 300.0
"""Seconds between copies of a ledger that is not in the run folder."""
_RUN_ID = re.compile(r"[0-9a-f]{16}", re.ASCII)
RUNNER = f"{GraphRenderer.__module__}:{GraphRenderer.__qualname__}"


@dataclass(frozen=True)
class BatchRequest:
    """A batch as a person asks for it.

    run       the run folder
    source    a manifest, or a folder of pictures; None: what was planned there before
    graph     what makes each clip; None: that of the run, or the shipped image_to_video
    settings  "NODE.INPUT=VALUE" for all rows
    model     of the shipped graph, which it asks for; None: svd-nano
    seeds     each row that names none is made once with each
    images    the folder that all images lie in; None: that of the manifest, or the folder itself
    ledger    where the driver keeps its account; None: in the run folder, or where that is a network disk, elsewhere

    Transparent parts of images are put on the surroundings' background. Where that is None, on that of the run, else
    with the shipped graph on grey, as `animate` does, and with another as ComfyUI has it.
    """

    run: str | os.PathLike
    source: str | os.PathLike | None = None
    graph: Source | None = None
    settings: Sequence[str] = ()
    model: str | None = None
    seeds: Sequence[int] = ()
    images: str | os.PathLike | None = None
    ledger: str | os.PathLike | None = None


HERE, PLAIN = Workers(), Options()


def plan_batch(ask: BatchRequest, run_config: RunConfig, workers: Workers = HERE) -> Status:
    """Hash the images, bind the values, find duplicates and bad rows, and write it all into the run folder.

    Raises BatchError, GraphError, CheckpointError; a row that cannot be taken is no error here.
    """
    with _opened(ask, workers) as (folder, ledger), planning(folder.path):
        totals, _ = _plan(ask, run_config, folder, ledger, workers.shard)
        reconcile(folder, ledger)
        return status_of(folder, ledger, totals)


def run_batch(
    ask: BatchRequest,
    run_config: RunConfig,
    workers: Workers = HERE,
    options: Options = PLAIN,
    watch: Watch = lambda progress, outcome: None,
    begin: Callable[[str, Status], None] = lambda pool, status: None,
) -> Status:
    """Make all clips of a batch that are not made yet; how it stands then. Call it again to go on.

    watch  told the progress, see `headless.batch.driver.Watch`
    begin  told what works and how the batch stands before the first render

    Raises BatchError when it cannot begin, or no worker can work; KeyboardInterrupt goes through, and nothing is lost.
    Rows that fail are told in the status.
    """
    with _opened(ask, workers) as (folder, ledger):
        if ask.source is not None:
            with planning(folder.path):
                totals, settings = _plan(ask, run_config, folder, ledger, workers.shard)
        else:
            _refuse_what_needs_a_plan(ask, run_config, folder)
            with planning(folder.path):
                totals, settings = _take_plan(folder, ledger, workers.shard)
        reconcile(folder, ledger)
        status = status_of(folder, ledger, totals)
        if status.left:
            with _pool(folder, settings, run_config, workers, status.left) as pool:
                begin(pool.name, status)
                environment = Environment.from_dict(folder.read_environment(), str(folder.environment_file))
                watching = _also_copying(watch, folder, ledger)
                try:
                    Driver(folder, ledger, pool, options, watching, environment).run()
                finally:
                    _keep(environment, folder)
            status = status_of(folder, ledger, totals)
        if status.counts["done"] and (workers.shard or Shard()).count == 1:
            write_sheet(folder, folder.path / "contact_sheet.jpg")
        return status


def _refuse_what_needs_a_plan(ask: BatchRequest, run_config: RunConfig, folder: RunFolder) -> None:
    """Raise BatchError when something is asked for that the plan of the run does not have."""
    names = ("graph", "settings", "model", "seeds", "images")
    asked = [name for name in names if getattr(ask, name) not in (None, (), [])]
    planned = folder.read_settings() or {}
    if run_config.precision not in ("auto", planned.get("precision", "auto")):
        asked.append("precision")
    if run_config.background not in (None, _known_background(planned)):
        asked.append("background")
    if asked:
        raise BatchError(
            f"{', '.join(asked)} would change what was planned in {folder.path}; give the manifest or the folder of "
            "pictures, too, so that it is planned anew. What is done and stays the same is not made again.",
            code="batch.no_source",
        )


def _also_copying(watch: Watch, folder: RunFolder, ledger: Ledger) -> Watch:
    """Copy a ledger that lies elsewhere into the run folder now and then: attempts are in no other file."""
    copied = time.monotonic()

    def told(progress: Progress, outcome: dict[str, Any] | None) -> None:
        nonlocal copied
        watch(progress, outcome)
        assert ledger.path is not None
        if ledger.path.parent != folder.path and time.monotonic() - copied > COPY_EVERY:
            copied = time.monotonic()
            try:
                ledger.copy_to(_copy_of(ledger.path, folder))
            except (SVDStagesError, sqlite3.Error, OSError) as error:
                logger.warning("the ledger was not copied into the run folder: %s", error)

    return told


def _copy_of(ledger: Path, folder: RunFolder) -> Path:
    """Where a ledger that lies elsewhere is copied to."""
    return folder.path / f"{ledger.stem}-copy.sqlite"


def _keep(environment: Environment, folder: RunFolder) -> None:
    """Write env.json. A full disk must not hide why a driver ended."""
    try:
        folder.write_environment(environment.as_dict(folder.read_environment()))
    except SVDStagesError as error:
        logger.warning("what the clips are made with was not written down: %s", error)


def batch_status(run: str | os.PathLike) -> Status:
    """How a batch stands, by what lies in its folder; a driver may be at work. Raises BatchError."""
    folder, ledger = RunFolder(Path(run)), Ledger(None)
    try:
        totals, _ = _take_plan(folder, ledger, None)
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
    with _opened(BatchRequest(run, ledger=ledger_file), HERE) as (folder, ledger):
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
def _opened(ask: BatchRequest, workers: Workers) -> Iterator[tuple[RunFolder, Ledger]]:
    """The run folder and the ledger, for the one driver."""
    folder = RunFolder(Path(ask.run))
    if ask.source is None and not folder.settings_file.is_file():
        raise _nothing_planned(folder.path)
    check_place(folder.settings_file)
    shard = workers.shard or Shard()
    with run_lock(folder.path, shard):
        path = Path(ask.ledger) if ask.ledger else default_ledger(folder, shard)
        with ledger_lock(path):
            if not path.exists() and path.parent != folder.path and (copy := _copy_of(path, folder)).is_file():
                shutil.copyfile(copy, path)  # another machine's driver counted attempts in it
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
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "svd-stages"
    if _is_on_network(caches):  # as homes of clusters are
        try:
            caches = private_folder("ledgers")
        except OSError as error:
            raise BatchError(
                f"no place for the ledger was found on a local disk ({error.filename}: {error.strerror}); name one "
                "(--ledger FILE).",
                code="batch.ledger",
            ) from error
    return caches / digest(os.path.realpath(folder.path))[:16] / name


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
    return kind.removeprefix("fuse.").startswith(NETWORK_DISKS)


def _plan(
    ask: BatchRequest, run_config: RunConfig, folder: RunFolder, ledger: Ledger, shard: Shard | None
) -> tuple[Totals, Mapping[str, Any]]:
    """Plan anew: what it comes to, and run.json."""
    assert ask.source is not None
    source = Path(ask.source)
    base = source if source.is_dir() else source.parent
    root = base if ask.images is None else Path(ask.images)
    before = folder.read_settings() or {}
    asked = _what_is_asked(ask, run_config)
    others = len(active_drivers(folder.path)) > 1
    if shard is not None and others and before.get("asked") == asked:
        return _take_plan(folder, ledger, shard)  # another shard has just planned the same
    background = _background(ask, run_config, before)
    runtime = run_config.runtime()
    with use_runtime(runtime):
        graph = apply_settings(_graph(ask, before, run_config), (), NODES)
        image = image_input(graph)
        checked = validate(graph, NODES, precomputed={image[0]: None})
        raise_if_faulty(checked, EMBEDDED_NODES)
        check_memory_budget(checked.prompt, checked.outputs, runtime)
        makes = canonical_graph(graph)
        if image[0] not in makes:
            raise GraphError(
                "no saver of the graph needs its LoadImage, so all rows would give the same; link it to what is saved.",
                code="graph.images",
            )
        seeds = [name for name in _free_seeds(ask, graph, before) if name.rpartition(".")[0] in makes]
        models = ModelHashes(graph, runtime)
        shared = {
            "format": FORMAT,
            "code": code_version(),
            "graph": digest(without(makes, [image, *(tuple(name.rsplit(".", 1)) for name in seeds)])),
            "models": models.of_graph(),
            "precision": run_config.precision,
            "background": background,
        }
        binding = Binding(Values(graph, models, f"{image[0]}.{image[1]}"), seeds, shared, models.of_values)
        rows = read_rows(source, ask.seeds)
        planned = plan_rows(rows, ImageFolder(root, base, ledger), binding)
        totals = Totals()
        head = digest([shared, image, seeds])
        rows = totals.counting(written(folder.plan_file, head, planned))
        ledger.plan(row.task for row in rows if row.task is not None and (shard is None or shard.has(row.task.id)))
    settings = {
        "format": FORMAT,
        "asked": asked,
        "plan": head,
        "run_id": _run_id(before),
        "graph": graph,
        "image": list(image),
        "seeds": seeds,
        "images": os.path.abspath(root),
        "models": sorted(models.sums),
        "shared": facts_of(models.sums),
        "precision": run_config.precision,
        "background": background,
    }
    folder.write_settings(settings)
    return totals, settings


def _run_id(before: Mapping[str, Any]) -> str:
    """The one that the run has, if it is one; else a new one."""
    known = before.get("run_id")
    return known if isinstance(known, str) and _RUN_ID.fullmatch(known) else secrets.token_hex(8)


def _background(ask: BatchRequest, run_config: RunConfig, before: Mapping[str, Any]) -> Background:
    """What transparent parts are put on: as asked, as the run has it, else grey for the shipped graph alone."""
    known = run_config.background or _known_background(before)
    if known is not None:
        return known
    return read_background(GREY) if ask.graph is None else KEEP


def _known_background(settings: Mapping[str, Any]) -> Background | None:
    """The background of a run.json; None where there is none. Raises SettingError for what is none."""
    known = settings.get("background")
    return None if known is None else read_background(known)


def _what_is_asked(ask: BatchRequest, run_config: RunConfig) -> str:
    """All that a plan comes from, as it is now; two shards that were started with one command ask the same."""
    assert ask.source is not None
    graph = ask.graph
    if isinstance(graph, (str, os.PathLike)) and Path(graph).is_file():
        graph = str(_state_of(Path(graph)))
    about = (run_config.precision, run_config.background)
    said = [str(each) for each in (graph, ask.images, ask.settings, ask.seeds, ask.model, *about)]
    return digest([_state_of(Path(ask.source)), said, __version__])


def _state_of(source: Path) -> list[Any]:
    """A file as it is now, or the folders of pictures: adding or removing one changes its folder's time."""
    folders = [source]
    if source.is_dir():
        folders = [Path(parent) for parent, _, _ in os.walk(source)]
    try:
        return [[os.path.abspath(each), each.stat().st_mtime_ns, each.stat().st_size] for each in sorted(folders)]
    except OSError as error:
        raise BatchError(
            f"{error.filename} cannot be read: {error.strerror}. Check the path.", code="manifest.file"
        ) from error


def _free_seeds(ask: BatchRequest, graph: Prompt, before: Mapping[str, Any]) -> list[str]:
    """The inputs that take the rows' seeds: all but those that were set for all rows, now or when the run's own graph
    was planned. Raises BatchError when seeds are asked for and none is left to take them."""
    fixed = {find_target(graph, setting.partition("=")[0], NODES).name for setting in ask.settings}
    seeds = [name for name in seed_inputs(graph) if name not in fixed]
    if ask.graph is None and ask.model is None and "seeds" in before:
        seeds = [name for name in seeds if name in before["seeds"]]
    if ask.seeds and not seeds:
        raise BatchError(
            "the graph takes no seeds of rows: none of its nodes has one that is not linked or set for all rows. Leave "
            "out --seeds, or the --set of the seed.",
            code="batch.seeds",
        )
    return seeds


def _take_plan(folder: RunFolder, ledger: Ledger, shard: Shard | None) -> tuple[Totals, Mapping[str, Any]]:
    """Have the tasks of the plan in the ledger, those of the shard; what the plan comes to, and run.json."""
    settings = folder.read_settings()
    if settings is None:
        raise _nothing_planned(folder.path)
    _check_settings(settings, folder)
    totals = Totals()
    tasks = (row.task for row in totals.counting(read_plan(folder.plan_file, settings.get("plan"))))
    ledger.plan(task for task in tasks if task is not None and (shard is None or shard.has(task.id)))
    return totals, settings


def _check_settings(settings: Mapping[str, Any], folder: RunFolder) -> None:
    """Raise BatchError unless run.json is one that `_plan` wrote: a run folder may be a stranger's."""
    graph: Any = settings.get("graph")
    image: Any = settings.get("image")
    texts = [settings.get(key) for key in ("run_id", "plan", "images", "precision")]
    lists = [settings.get(key) for key in ("image", "seeds", "models")]
    sound = all(isinstance(text, str) for text in texts) and all(map(_is_texts, lists))
    if not sound or shape_fault(graph) is not None or not isinstance(settings.get("shared"), dict):
        fault = "it is not as a plan leaves it"
    elif not _RUN_ID.fullmatch(settings["run_id"]):  # it names a folder
        fault = "its run_id is none"
    elif any(node.get("class_type") not in NODES for node in graph.values()):
        fault = "its graph has nodes that are not known here"
    elif len(image) != 2 or image[0] not in graph:
        fault = "it names no node that takes the image"
    else:
        return
    raise BatchError(
        f"{folder.settings_file} cannot be taken: {fault}. Give the manifest again to plan anew, in a new folder.",
        code="batch.plan",
    )


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _graph(ask: BatchRequest, before: Mapping[str, Any], run_config: RunConfig) -> Prompt:
    """The graph of all rows, with the settings in it."""
    if ask.graph is not None:
        return open_graph(ask.graph, ask.settings).prompt
    if before.get("graph") and ask.model is None:
        return open_graph({"prompt": before["graph"]}, ask.settings).prompt
    shipped = image_to_video_graph(VideoSettings(model=ask.model or EMBEDDED), run_config.runtime(), "image.png").prompt
    return open_graph({"prompt": shipped}, ask.settings).prompt


@contextmanager
def _pool(
    folder: RunFolder, settings: Mapping[str, Any], run_config: RunConfig, workers: Workers, left: int
) -> Iterator[Pool]:
    config = RenderSettings(
        graph=settings["graph"],
        image=settings["image"],
        images=settings["images"],
        models=settings["models"],
        roots=[os.path.abspath(root) for root in run_config.models_roots()],
        device=run_config.device,
        precision=settings["precision"],
        vram=run_config.vram,
        background=_known_background(settings),
        threads=workers.threads,
    )
    setup = Setup(
        run=os.path.abspath(folder.path),
        run_id=settings["run_id"],
        spool=f"{settings['run_id']}-{__version__}",
        runner=RUNNER,
        config=config.as_dict(),
        shared=settings["shared"],
    )
    memory = memory_needed(settings["models"], run_config.runtime())
    pool = make_pool(setup, workers, run_config.device, left, memory)
    try:
        yield pool
    finally:
        pool.close()
        spool = open_spool(setup.spool)
        tidy_spool(spool, folder)
        spool.remove_if_empty()
