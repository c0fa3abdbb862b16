"""Plan, run, inspect and retry batches of graphs: the functions behind `svd-stages batch`."""

from __future__ import annotations

import fnmatch
import logging
import os
import secrets
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..._version import __version__
from ...svd_core.checkpoints.library import EMBEDDED
from ...svd_core.errors import BatchError, GraphError, SettingError, SVDStagesError, quoted
from ...svd_core.media.alpha_compositing import GREY, KEEP, Background, read_background
from ...svd_core.pipeline import PRESETS, VideoSettings
from ...svd_core.runtime.runtime import LocalRuntime, use_runtime
from ...svd_core.utils.user_tempdir import private_folder
from ..engines.embedded.memory_estimate import check_memory_budget
from ..engines.graph_errors import raise_if_faulty
from ..engines.graph_loading import Source
from ..engines.graphs import EMBEDDED_NODES, NODES, check_place, open_graph
from ..engines.run_config import RunConfig, as_list
from ..engines.setting_checks import SETTING_INPUTS, SETTINGS, check_settings, unknown_name
from ..engines.video_graph import SAMPLING, image_to_video_graph, takes_settings, with_compile, with_sampling
from ..graph import Prompt, apply_settings, find_target, validate
from ..graph.node_schema import return_types
from .contact_sheet import write_sheet
from .driver import Driver, Options, Progress, Watch
from .environment import Environment
from .folder import RunFolder
from .graph_binding import (
    ImageSizes,
    ModelHashes,
    Values,
    canonical_graph,
    image_input,
    seed_inputs,
    size_inputs,
)
from .graph_rendering import GraphRenderer, RenderSettings
from .graph_workers import Workers, make_pool, memory_needed
from .images import ImageFolder
from .ledger import Ledger, reconcile
from .lock import Shard, active_drivers, ledger_lock, planning_lock, run_lock
from .manifest import read_rows
from .model_hashes import code_version, facts_of
from .plan import Binding, PlannedRow, Totals, no_plan, plan_rows, read_plan, write_plan
from .recorded_run import (
    RUN_ID,
    check_recorded,
    graph_digest,
    inputs_of_checkpoint,
    is_graph,
    is_texts,
    with_checkpoint,
)
from .report import Status, status_of
from .setting_changes import describe_changes, find_changes
from .spool import open_spool
from .tasks import digest
from .worker import Setup
from .worker_pool import Pool

logger = logging.getLogger(__name__)

FORMAT = 1
NETWORK_DISKS = (
    "nfs", "cifs", "smb", "lustre", "ceph", "gluster", "beegfs", "gpfs", "afs", "9p", "weka", "panfs", "s3", "ssh",
    "gcs", "rclone", "juicefs", "mountpoint",
)  # fmt: skip
"""Prefixes of the types of network file systems, with or without "fuse." before them."""
COPY_EVERY = 300.0
"""Seconds between copies into the run folder of a ledger that is elsewhere."""
RUNNER = f"{GraphRenderer.__module__}:{GraphRenderer.__qualname__}"


@dataclass(frozen=True)
class BatchRequest:
    """The request for a batch.

    Attributes:
        run: The run folder.
        source: A manifest, or a folder of images. None: use the plan of the run.
        graph: The graph that renders each video. None: that of the run, or the shipped image_to_video.
        settings: "NODE.INPUT=VALUE" for all rows.
        model: Checkpoint of the shipped graph. None: that of the run, or svd-nano.
        video: Settings of the shipped graph for all rows, as those of `animate`. None: that of the run.
        seeds: A row without a seed is repeated once for each of these.
        images: The folder that contains all images. None: that of the manifest, or the folder itself.
        ledger: Path of the ledger. None: in the run folder, or elsewhere if that is on a network disk.

    Settings that a request does not give are those of the run, also the precision if that of `RunConfig` is auto. What
    the checkpoint chooses (frames, guidance, size) follows a new `model` unless it was set.

    Transparent parts of images are composited on `RunConfig.background`. If that is None: on that of the run, or else
    with the shipped graph on grey, as `animate` does, and with another graph as in ComfyUI.
    """

    run: str | os.PathLike
    source: str | os.PathLike | None = None
    graph: Source | None = None
    settings: Sequence[str] = ()
    model: str | None = None
    video: Mapping[str, Any] = field(default_factory=dict)
    seeds: Sequence[int] = ()
    images: str | os.PathLike | None = None
    ledger: str | os.PathLike | None = None


LOCAL_WORKERS, DEFAULT_OPTIONS = Workers(), Options()


def plan_batch(request: BatchRequest, run_config: RunConfig, workers: Workers = LOCAL_WORKERS) -> Status:
    """Hash the images, validate the values, find duplicates and faulty rows, and write the plan to the run folder.

    Faulty rows are part of the status and raise no error.

    Raises:
        BatchError: The source, the ledger or the run folder cannot be used.
        GraphError: The graph cannot be used.
        CheckpointError: A model is missing or damaged.
    """
    with _opened(request, workers) as (folder, ledger), planning_lock(folder.path):
        before = folder.read_settings() or {}
        totals, _ = _plan(request, run_config, folder, ledger, workers.shard, before)
        reconcile(folder, ledger)
        status = status_of(folder, ledger, totals)
        _note_changes(before, folder, status, run_config)
        return status


def run_batch(
    request: BatchRequest,
    run_config: RunConfig,
    workers: Workers = LOCAL_WORKERS,
    options: Options = DEFAULT_OPTIONS,
    watch: Watch = lambda progress, outcome: None,
    begin: Callable[[str, Status], None] = lambda pool, status: None,
) -> Status:
    """Render all videos of a batch that are not done, and return the status. Call it again to resume.

    Args:
        request: The batch.
        run_config: Device, precision and folders of models.
        workers: Number and kind of workers.
        options: Limits and deadlines.
        watch: Called with the progress, see `headless.batch.driver.Watch`.
        begin: Called with the name of the pool and the status before the first render.

    Failed rows are part of the status and raise no error. All finished videos are kept on KeyboardInterrupt.

    Raises:
        BatchError: The batch cannot start, or no worker can be used.
    """
    with _opened(request, workers) as (folder, ledger):
        with planning_lock(folder.path):
            before = folder.read_settings() or {}
            if request.source is not None:
                totals, settings = _plan(request, run_config, folder, ledger, workers.shard, before)
            else:
                _check_needs_no_plan(request, run_config, folder)
                totals, settings = _take_plan(folder, ledger, workers.shard)
        reconcile(folder, ledger)
        status = status_of(folder, ledger, totals)
        _note_changes(before, folder, status, run_config)
        if status.left:
            with _pool(folder, settings, run_config, workers, status.left) as pool:
                begin(pool.name, status)
                environment = Environment.read(folder.environment_file)
                copying_watch = _also_copying(watch, folder, ledger)
                try:
                    Driver(folder, ledger, pool, options, copying_watch, environment).run()
                finally:
                    environment.save()
            status = status_of(folder, ledger, totals)
        if status.counts["done"] and (workers.shard or Shard()).count == 1:
            write_sheet(folder, folder.path / "contact_sheet.jpg")
        return status


def _check_needs_no_plan(request: BatchRequest, run_config: RunConfig, folder: RunFolder) -> None:
    """Raise BatchError if the request has something that requires a new plan."""
    names = ("graph", "settings", "model", "seeds", "images")
    changed = [f"`{name}`" for name in names if getattr(request, name) not in (None, (), [])]
    changed += [f"`{name}`" for name, value in request.video.items() if value is not None]
    planned = folder.read_settings() or {}
    if run_config.precision not in ("auto", planned.get("precision", "auto")):
        changed.append("`precision`")
    if run_config.background not in (None, _background_of(planned)):
        changed.append("`background`")
    if changed:
        message = (
            f"{', '.join(changed)} would change the plan of {quoted(folder.path)}. Give the manifest or "
            "folder to plan anew."
        )
        raise BatchError(message, code="batch.no_source")


def _also_copying(watch: Watch, folder: RunFolder, ledger: Ledger) -> Watch:
    """Return a watch that copies a ledger elsewhere into the run folder now and then: only it has the attempts."""
    copied = time.monotonic()

    def copying_watch(progress: Progress, event: dict[str, Any] | None) -> None:
        nonlocal copied
        watch(progress, event)
        assert ledger.path is not None
        if ledger.path.parent != folder.path and time.monotonic() - copied > COPY_EVERY:
            copied = time.monotonic()
            try:
                ledger.copy_to(_copy_of(ledger.path, folder))
            except (SVDStagesError, sqlite3.Error, OSError) as error:
                logger.warning("the ledger was not copied into the run folder: %s", error)

    return copying_watch


def _copy_of(ledger: Path, folder: RunFolder) -> Path:
    """Return the path of the copy of a ledger that is elsewhere."""
    return folder.path / f"{ledger.stem}-copy.sqlite"


def batch_status(run: str | os.PathLike) -> Status:
    """Return the status of a batch by the files of its run folder, also during a run. Raises BatchError."""
    folder = RunFolder(Path(run))
    with closing(Ledger(None)) as ledger:
        totals, _ = _take_plan(folder, ledger, None)
        ledger.apply_scan(folder.scan())
        return status_of(folder, ledger, totals)


def retry_batch(
    run: str | os.PathLike, patterns: Sequence[str] = ("*",), ledger_file: str | os.PathLike | None = None
) -> int:
    """Delete the failures of tasks whose code matches a pattern (`image.*`), and return their number.

    The next run renders these tasks again. Raises BatchError, also while a driver works on the run.
    """
    with _opened(BatchRequest(run, ledger=ledger_file), LOCAL_WORKERS) as (folder, ledger):
        _take_plan(folder, ledger, None)
        reconcile(folder, ledger)
        matching = [
            task_id
            for task_id, code in ledger.failed()
            if any(fnmatch.fnmatchcase(code, pattern) for pattern in patterns)
        ]
        for task_id in matching:
            folder.forget_failure(task_id)
        return len(matching)


@contextmanager
def _opened(request: BatchRequest, workers: Workers) -> Iterator[tuple[RunFolder, Ledger]]:
    """Lock and open the run folder and the ledger."""
    folder = RunFolder(Path(request.run))
    if request.source is None and not folder.settings_file.is_file():
        raise no_plan(folder.path)
    check_place(folder.settings_file)
    shard = workers.shard or Shard()
    with run_lock(folder.path, shard):
        path = Path(request.ledger) if request.ledger else default_ledger(folder, shard)
        with ledger_lock(path):
            if not path.exists() and path.parent != folder.path and (copy := _copy_of(path, folder)).is_file():
                shutil.copyfile(copy, path)  # has the attempts that a driver on another machine counted
            try:
                with closing(Ledger(path)) as ledger:
                    yield folder, ledger
            except sqlite3.Error as error:
                message = f"the ledger {quoted(path)} cannot be written: {error}. Free some space, or change `ledger`."
                raise BatchError(message, code="batch.ledger") from error


def default_ledger(folder: RunFolder, shard: Shard) -> Path:
    """Return the path of the ledger: in the run folder, or in the user's cache if that is on a network disk.

    SQLite's locks are not reliable on network disks.
    """
    name = f"ledger-{shard.name}.sqlite" if shard.name else "ledger.sqlite"
    if not _is_on_network(folder.path):
        return folder.path / name
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "svd-stages"
    if _is_on_network(caches):  # clusters often have home folders on one
        try:
            caches = private_folder("ledgers")
        except OSError as error:
            message = (
                f"no local disk for the ledger ({quoted(error.filename)}: {error.strerror}). Give a path as `ledger`."
            )
            raise BatchError(message, code="batch.ledger") from error
    return caches / digest(os.path.realpath(folder.path))[:16] / name


def _is_on_network(path: Path) -> bool:
    import psutil

    real = os.path.realpath(path) + os.sep
    disks = [
        disk for disk in psutil.disk_partitions(all=True) if real.startswith(disk.mountpoint.rstrip(os.sep) + os.sep)
    ]
    kind = max(disks, key=lambda disk: len(disk.mountpoint)).fstype.lower() if disks else ""
    return kind.removeprefix("fuse.").startswith(NETWORK_DISKS)


def _note_changes(before: Mapping[str, Any], folder: RunFolder, status: Status, run_config: RunConfig) -> None:
    """Warn if run.json differs from what it was `before`, and videos are to be rendered."""
    changes = find_changes(before, folder.read_settings() or {})
    if changes and status.left:
        run_config.runtime().warn(describe_changes(changes, status))


def _plan(
    request: BatchRequest,
    run_config: RunConfig,
    folder: RunFolder,
    ledger: Ledger,
    shard: Shard | None,
    before: Mapping[str, Any],
) -> tuple[Totals, Mapping[str, Any]]:
    """Plan anew. Return the totals and the content of run.json, which was `before`."""
    assert request.source is not None
    source = Path(request.source)
    base = source if source.is_dir() else source.parent
    root = base if request.images is None else Path(request.images)
    request_digest = _digest_request(request, run_config)
    request = _with_settings(request)
    if shard is not None and before.get("asked") == request_digest and len(active_drivers(folder.path)) > 1:
        return _take_plan(folder, ledger, shard)  # another shard has just planned the same
    run_config = _with_recorded_precision(run_config, before)
    background = _choose_background(request, run_config, before)
    runtime = run_config.runtime()
    with use_runtime(runtime):
        graph = apply_settings(_graph(request, before, run_config), (), NODES)
        image = image_input(graph)
        canonical = _check_graph(graph, image[0], runtime)
        seeds = [name for name in _free_seeds(request, graph, before) if name.rpartition(".")[0] in canonical]
        follow = _following(request, graph, before, "sizes", size_inputs(graph))
        models = ModelHashes(graph, runtime)
        shared = {
            "format": FORMAT,
            "code": code_version(),
            "graph": graph_digest(canonical, [image, *(name.rsplit(".", 1) for name in seeds)], before),
            "models": models.of_graph(),
            "precision": run_config.precision,
            "background": background,
        }
        sizes = ImageSizes(graph, root, follow)
        binding = Binding(Values(graph, models, ".".join(image)), seeds, shared, models.of_values, sizes)
        planned = plan_rows(read_rows(source, request.seeds), ImageFolder(root, base, ledger), binding)
        head = digest([shared, image, seeds, *follow])
        totals = _store_tasks(write_plan(folder.plan_file, head, planned), ledger, shard)
    settings = {
        "format": FORMAT,
        "asked": request_digest,
        "plan": head,
        "run_id": _run_id(before),
        "graph": graph,
        "image": list(image),
        "seeds": seeds,
        "sizes": follow,
        "of_checkpoint": _following(request, graph, before, "of_checkpoint", inputs_of_checkpoint(graph)),
        "images": os.path.abspath(root),
        "models": sorted(models),
        "shared": facts_of(models),
        "precision": run_config.precision,
        "background": background,
        "graph_digest": shared["graph"],
    }
    folder.write_settings(settings)
    return totals, settings


def _check_graph(graph: Prompt, image_node: str, runtime: LocalRuntime) -> Prompt:
    """Return the canonical graph. Raises GraphError if it cannot run, or saves the same for all images."""
    checked = validate(graph, NODES, precomputed={image_node: return_types(NODES["LoadImage"])})
    raise_if_faulty(checked, EMBEDDED_NODES)
    check_memory_budget(checked.prompt, checked.outputs, runtime)
    canonical = canonical_graph(graph)
    if image_node not in canonical:
        message = "a saver of the graph must depend on its LoadImage, or all videos would be equal. Link it."
        raise GraphError(message, code="graph.images")
    return canonical


def _store_tasks(planned: Iterable[PlannedRow], ledger: Ledger, shard: Shard | None) -> Totals:
    """Count the rows of a plan and store the tasks of the shard in the ledger."""
    totals = Totals()
    tasks = (row.task for row in totals.count(planned))
    ledger.plan(task for task in tasks if task is not None and (shard is None or shard.has(task.id)))
    return totals


def _run_id(before: Mapping[str, Any]) -> str:
    """Return the valid id of the run, or a new one."""
    known = before.get("run_id")
    return known if isinstance(known, str) and RUN_ID.fullmatch(known) else secrets.token_hex(8)


def _with_recorded_precision(run_config: RunConfig, before: Mapping[str, Any]) -> RunConfig:
    """Return the run configuration with the run's precision in place of auto."""
    known = before.get("precision")
    is_kept = run_config.precision == "auto" and isinstance(known, str)
    return replace(run_config, precision=known) if is_kept else run_config


def _choose_background(request: BatchRequest, run_config: RunConfig, before: Mapping[str, Any]) -> Background:
    """Return the requested background, or the run's, or grey for the shipped graph and "keep" for another one."""
    known = run_config.background or _background_of(before)
    if known is not None:
        return known
    return read_background(GREY) if request.graph is None else KEEP


def _background_of(settings: Mapping[str, Any]) -> Background | None:
    """Return the background of a run.json. None if it has none. Raises SettingError if it is invalid."""
    known = settings.get("background")
    return None if known is None else read_background(known)


def _digest_request(request: BatchRequest, run_config: RunConfig) -> str:
    """Return the digest of all inputs of a plan as they are now. Shards started with one command have the same."""
    assert request.source is not None
    graph = request.graph
    if isinstance(graph, (str, os.PathLike)) and Path(graph).is_file():
        graph = str(_file_state(Path(graph)))
    config = (run_config.precision, run_config.background)
    inputs = (
        graph,
        request.images,
        request.settings,
        request.seeds,
        request.model,
        sorted(request.video.items()),
        *config,
    )
    return digest([_file_state(Path(request.source)), [str(value) for value in inputs], __version__])


def _file_state(source: Path) -> list[Any]:
    """Return path, time and size of a file, or of a folder and its subfolders.

    Adding or removing an image changes the time of its folder.
    """
    paths = [Path(parent) for parent, _, _ in os.walk(source)] if source.is_dir() else [source]
    try:
        return [[os.path.abspath(path), path.stat().st_mtime_ns, path.stat().st_size] for path in sorted(paths)]
    except OSError as error:
        raise BatchError(
            f"{quoted(error.filename)} cannot be read: {error.strerror}. Check the path.", code="manifest.file"
        ) from error


def _free_seeds(request: BatchRequest, graph: Prompt, before: Mapping[str, Any]) -> list[str]:
    """Return the inputs that take the rows' seeds: those not set for all rows, now or when the run was planned.

    Raises:
        BatchError: The request has seeds and no input takes them.
    """
    seeds = _without_fixed(request, graph, seed_inputs(graph))
    known: Any = before.get("seeds")
    if _keeps_graph(request, before) and is_texts(known):
        seeds = [name for name in seeds if name in known]
    if request.seeds and not seeds:
        message = (
            "the graph takes no seeds of rows, because each is linked or set. Omit `seeds`, or the seed in `settings`."
        )
        raise BatchError(message, code="batch.seeds")
    return seeds


def _following(
    request: BatchRequest, graph: Prompt, before: Mapping[str, Any], key: str, names: Sequence[str]
) -> list[str]:
    """Return those of `names` that are set for no row: they follow each image, or the checkpoint.

    A run that keeps its graph keeps those that run.json lists at `key`. A run of an earlier version has none.
    """
    if request.graph is not None:
        return []
    if _keeps_graph(request, before):
        known: Any = before.get(key)
        names = [name for name in names if name in known] if is_texts(known) else []
    return _without_fixed(request, graph, names)


def _without_fixed(request: BatchRequest, graph: Prompt, names: Iterable[str]) -> list[str]:
    """Return the inputs that the request does not set for all rows."""
    fixed = {find_target(graph, setting.partition("=")[0], NODES).name for setting in request.settings}
    return [name for name in names if name not in fixed]


def _with_settings(request: BatchRequest) -> BatchRequest:
    """Return the request with checked settings of the video, and with their values as "NODE.INPUT=VALUE".

    Raises:
        TypeError: A setting is unknown, or has another type.
        SettingError: A value is out of its range, or the request has another graph.
    """
    for name in request.video:
        if name not in SETTINGS:
            raise unknown_name(name, SETTINGS, "BatchRequest.video has no setting", "svd_stages.animate")
    names = [*request.video, *(["model"] if request.model is not None else [])]
    if request.graph is not None and names:
        fix = "Set the input of your graph with `settings`"
        raise SettingError(f"`{names[0]}` is a setting of the shipped graph. {fix}.")
    checked = check_settings(replace(VideoSettings(), **request.video))
    preset = {} if checked.preset is None else PRESETS[checked.preset]
    given = {name: getattr(checked, name) for name, value in request.video.items() if value is not None}
    video = {**preset, **given}
    video.pop("preset", None)
    model = video.pop("model", request.model)
    places = {name: ".".join(place) for name, place in SETTING_INPUTS.items() if name not in SAMPLING}
    values = [f"{places[name]}={value}" for name, value in video.items() if name in places]
    return replace(request, model=model, video=video, settings=[*values, *as_list(request.settings)])


def _keeps_graph(request: BatchRequest, before: Mapping[str, Any]) -> bool:
    """Return True if the rows are rendered by the graph of the run: none is given. A model replaces a damaged one."""
    graph: Any = before.get("graph")
    if request.graph is not None or not graph:
        return False
    return request.model is None or is_graph(graph)


def _take_plan(folder: RunFolder, ledger: Ledger, shard: Shard | None) -> tuple[Totals, Mapping[str, Any]]:
    """Store the tasks of the existing plan in the ledger. Return the totals and the content of run.json."""
    settings = folder.read_settings()
    if settings is None:
        raise no_plan(folder.path)
    check_recorded(settings, folder)
    return _store_tasks(read_plan(folder.plan_file, settings.get("plan")), ledger, shard), settings


def _graph(request: BatchRequest, before: Mapping[str, Any], run_config: RunConfig) -> Prompt:
    """Return the graph of all rows, with the settings applied. Raises SettingError if it has no place for them."""
    if request.graph is not None:
        return open_graph(request.graph, request.settings).prompt
    names = list(request.video)
    if _keeps_graph(request, before):
        prompt = apply_settings(before["graph"], (), NODES)
        models = [node.get("inputs", {}).get("checkpoint") for node in prompt.values()]
        if request.model is not None and takes_settings(prompt):
            following = [
                name for key in ("sizes", "of_checkpoint") if is_texts(before.get(key)) for name in before[key]
            ]
            prompt = with_checkpoint(prompt, request.model, following, run_config.runtime())
        elif request.model not in (None, *models):
            names.append("model")
    else:
        video = VideoSettings(model=request.model or EMBEDDED, preset="reference")  # rows set the inputs of its nodes
        prompt = image_to_video_graph(video, run_config.runtime(), "image.png").prompt
    if names and not takes_settings(prompt):
        fix = "Set the input of the run's graph with `settings`"
        raise SettingError(f"`{names[0]}` is a setting of the shipped graph. {fix}.")
    if "compile" in request.video:
        prompt = with_compile(prompt, request.video["compile"])
    sampling = {name: value for name, value in request.video.items() if name in SAMPLING}
    return apply_settings(with_sampling(prompt, sampling) if sampling else prompt, request.settings, NODES)


@contextmanager
def _pool(
    folder: RunFolder, settings: Mapping[str, Any], run_config: RunConfig, workers: Workers, tasks: int
) -> Iterator[Pool]:
    """Start the workers of a run. Afterwards end them, and delete renders that are not needed any more."""
    config = RenderSettings(
        graph=settings["graph"],
        image=settings["image"],
        run_config={
            "models": [os.path.abspath(root) for root in run_config.models_roots()],
            "device": run_config.device,
            "precision": settings["precision"],
            "input_folder": settings["images"],
            "vram": run_config.vram,
            "background": _background_of(settings),
        },
        models=settings["models"],
        threads=workers.threads,
    )
    setup = Setup(
        run=os.path.abspath(folder.path),
        run_id=settings["run_id"],
        spool=f"{settings['run_id']}-{__version__}",
        runner=RUNNER,
        config=vars(config),
        shared=settings["shared"],
    )
    memory = memory_needed(settings["models"], run_config.runtime())
    pool = make_pool(setup, workers, run_config.device, tasks, memory)
    try:
        yield pool
    finally:
        pool.close()
        open_spool(setup.spool).clean(folder)
