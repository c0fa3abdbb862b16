"""Batches of graphs: plan, run, look, try again, hand out. What `svd-stages batch` does, and its Python calls."""

from __future__ import annotations

import fnmatch
import json
import os
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from ..svd_core.batch.plan import Binding, plan_rows, read_plan, write_plan
from ..svd_core.batch.pool import Pool
from ..svd_core.batch.reconcile import reconcile
from ..svd_core.batch.report import Status, status_of
from ..svd_core.batch.sheet import write_sheet
from ..svd_core.batch.tasks import digest
from ..svd_core.batch.worker import Setup
from ..svd_core.checkpoint.library import EMBEDDED
from ..svd_core.errors import BatchError, GraphError, SVDStagesError
from ..svd_core.extras import has_extra
from ..svd_core.graph import Prompt, Target, apply_settings, explain, find_target, read_value, validate, with_value
from ..svd_core.graph.check_node import check_value
from ..svd_core.graph.declared import Declarations
from ..svd_core.graph.hints import Hints
from ..svd_core.graph.prompt import looks_like_link
from .animation import Animation, animation_graph
from .graphs import EMBEDDED_NODES, NODES, check_place, open_graph
from .models import code_version, model_sha256
from .preflight import MODEL_FOLDERS
from .refusals import raise_if_faulty
from .rendering import GraphRenderer, RenderSettings, cut_before_savers
from .sources import Source
from .surroundings import Surroundings

FORMAT = 1
NETWORK_DISKS = (
    "nfs", "cifs", "smb", "lustre", "ceph", "gluster", "beegfs", "gpfs", "afs", "fuse.s3", "fuse.ssh", "fuse.gcs", "9p",
)  # fmt: skip
LIBRARIES = 1_000_000_000
"""Bytes that Python, torch and a small clip take."""
REMEMBERED = 10_000
"""Values of rows that are kept as they were read."""
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
    """

    run: str | os.PathLike
    source: str | os.PathLike | None = None
    graph: Source | None = None
    settings: Sequence[str] = ()
    model: str = EMBEDDED
    seeds: Sequence[int] = ()
    images: str | os.PathLike | None = None


@dataclass(frozen=True)
class Engine:
    """What a batch runs on.

    workers  how many; None: one for each GPU, or where there is none for each `threads` CPUs that memory allows
    ray      address of a Ray cluster; None: this machine, through Ray where it is installed
    shard    the part that this driver makes, in plain processes
    threads  of a worker on a CPU. Clips depend on it in their last digits, and on nothing else of this
    """

    workers: int | None = None
    ray: str | None = None
    shard: Shard | None = None
    threads: int = 1
    ledger: Path | None = None


HERE, PLAIN = Engine(), Options()


def plan_batch(ask: Ask, surroundings: Surroundings, engine: Engine = HERE) -> Status:
    """Hash the images, bind the values, find duplicates and bad rows, and write it all into the run folder.

    Raises BatchError, GraphError, CheckpointError; a row that cannot be taken is no error here.
    """
    with _opened(ask, engine) as (folder, ledger):
        _plan(ask, surroundings, folder, ledger, engine.shard)
        reconcile(folder, ledger)
        return status_of(folder, ledger)


def run_batch(
    ask: Ask,
    surroundings: Surroundings,
    engine: Engine = HERE,
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
    with _opened(ask, engine) as (folder, ledger):
        if ask.source is not None:
            _plan(ask, surroundings, folder, ledger, engine.shard)
        else:
            _take_plan(folder, ledger, engine.shard)
        reconcile(folder, ledger)
        status = status_of(folder, ledger)
        if status.left:
            with _pool(folder, surroundings, engine, status.left) as pool:
                begin(pool.name, status)
                watching = _also_copying(watch, folder, ledger)
                driver = Driver(folder, ledger, pool, options, watching, folder.read_probes())
                try:
                    driver.run()
                finally:
                    folder.write_probes(driver.probes)
            status = status_of(folder, ledger)
        if status.counts["done"] and engine.shard is None:
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
        _take_plan(folder, ledger, None)
        ledger.reconcile(folder.walk())
        return status_of(folder, ledger)
    finally:
        ledger.close()


def retry_batch(run: str | os.PathLike, patterns: Sequence[str] = ("*",), engine: Engine = HERE) -> int:
    """Have failed and quarantined tasks whose code fits a pattern (`image.*`) made again at the next run; how many.

    Raises BatchError, also while a driver works on the run.
    """
    with _opened(Ask(run), engine) as (folder, ledger):
        _take_plan(folder, ledger, engine.shard)
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
def _opened(ask: Ask, engine: Engine) -> Iterator[tuple[RunFolder, Ledger]]:
    """The run folder and the ledger, for the one driver."""
    folder = RunFolder(Path(ask.run))
    if ask.source is None and not folder.settings_file.is_file():
        raise _nothing_planned(folder.path)
    check_place(folder.settings_file)
    shard = engine.shard or Shard()
    with sole_driver(folder.path, shard):
        path = engine.ledger or default_ledger(folder, shard)
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


def _plan(ask: Ask, surroundings: Surroundings, folder: RunFolder, ledger: Ledger, shard: Shard | None) -> None:
    assert ask.source is not None
    source = Path(ask.source)
    base = source if source.is_dir() else source.parent
    root = base if ask.images is None else Path(ask.images)
    before = folder.read_settings() or {}
    here = surroundings.host()
    with host.using(here):
        graph = apply_settings(_graph(ask, before, surroundings), (), NODES)
        image = _image_input(graph)
        raise_if_faulty(validate(graph, NODES, given={image[0]: None}), EMBEDDED_NODES)
        cut_before_savers(graph)
        seeds = _seed_inputs(graph)
        models = _Models(graph, here)
        shared = {
            "format": FORMAT,
            "code": code_version(),
            "graph": digest(_without(graph, [image, *(tuple(name.rsplit(".", 1)) for name in seeds)])),
            "models": models.of_graph(),
            "precision": surroundings.precision,
        }
        binding = Binding(_Values(graph, models, f"{image[0]}.{image[1]}"), seeds, shared, models.of_values)
        rows = read_rows(source, ask.seeds)
        planned = plan_rows(rows, ImageFolder(root, base, ledger), binding)
        write_plan(folder.plan_file, planned)
    folder.write_settings(
        {
            "format": FORMAT,
            "run_id": before.get("run_id") or secrets.token_hex(8),
            "graph": graph,
            "image": list(image),
            "images": os.path.realpath(root),
            "models": sorted(models.sums),
            "shared": {"code": code_version(), **{f"model {name}": sha for name, sha in sorted(models.sums.items())}},
            "precision": surroundings.precision,
        }
    )
    _take_plan(folder, ledger, shard)


def _take_plan(folder: RunFolder, ledger: Ledger, shard: Shard | None) -> None:
    """Have the tasks of the plan in the ledger, those of the shard."""
    if folder.read_settings() is None:
        raise _nothing_planned(folder.path)
    tasks = (row.task for row in read_plan(folder.plan_file))
    ledger.plan(task for task in tasks if task is not None and (shard is None or shard.has(task.id)))


def _graph(ask: Ask, before: Mapping[str, Any], surroundings: Surroundings) -> Prompt:
    """The graph of all rows, with the settings in it."""
    if ask.graph is not None:
        return open_graph(ask.graph, ask.settings).prompt
    if before.get("graph"):
        return open_graph({"prompt": before["graph"]}, ask.settings).prompt
    shipped = animation_graph(Animation(model=ask.model), surroundings.host(), "image.png").prompt
    return open_graph({"prompt": shipped}, ask.settings).prompt


def _image_input(graph: Prompt) -> tuple[str, str]:
    """The one input that takes a picture's name."""
    found = [(node_id, "image") for node_id, node in graph.items() if node.get("class_type") == "LoadImage"]
    if len(found) != 1:
        raise GraphError(
            f"a batch puts each image into the graph's LoadImage, of which there must be one; there are {len(found)}.",
            code="graph.images",
        )
    return found[0]


def _seed_inputs(graph: Prompt) -> list[str]:
    """All constants that are seeds, as "NODE.INPUT"."""
    found = []
    declarations = Declarations(NODES)
    for node_id, node in graph.items():
        for name, declared in declarations[str(node["class_type"])].inputs.items():
            linked = looks_like_link(node["inputs"].get(name))
            is_seed = name in ("seed", "noise_seed") and declared.options.get("control_after_generate")
            if is_seed and not linked:
                found.append(f"{node_id}.{name}")
    return found


def _without(graph: Prompt, inputs: Iterable[Sequence[str]]) -> Prompt:
    """The graph with nothing in these inputs: what is in them before a row comes makes no other clips."""
    for node_id, name in inputs:
        graph = with_value(graph, node_id, name, None)
    return graph


class _Models:
    """Checkpoints that a graph and its rows name, hashed once each."""

    def __init__(self, graph: Prompt, here: host.HeadlessHost):
        self._graph, self._here = graph, here
        self.sums: dict[str, str] = {}

    def of_graph(self) -> dict[str, str]:
        """ "NODE.INPUT" -> sha256. Raises CheckpointError."""
        return self.of_values(
            {
                f"{node_id}.{name}": value
                for node_id, node in self._graph.items()
                for name, value in node["inputs"].items()
            }
        )

    def of_values(self, values: Mapping[str, Any]) -> dict[str, str]:
        """The same of values by "NODE.INPUT"; those that name no model are left out. Raises CheckpointError."""
        return {name: self.sum_of(value) for name, value in values.items() if _names_model(name) and type(value) is str}

    def sum_of(self, name: str) -> str:
        """The sha256 of a checkpoint. Raises CheckpointError."""
        if name not in self.sums:
            self.sums[name] = model_sha256(self._here.library.find(name))
        return self.sums[name]


def _names_model(name: str) -> bool:
    """Whether the input called "NODE.INPUT" takes a checkpoint's name."""
    return MODEL_FOLDERS.get(name.rpartition(".")[2]) == "checkpoints"


class _Values:
    """What the columns of a row mean for a graph. Called with a row's values; equal ones are looked at once."""

    def __init__(self, graph: Prompt, models: _Models, image: str):
        self._graph, self._models, self._image = graph, models, image
        self._targets: dict[str, Target | SVDStagesError] = {}
        self._read: dict[tuple[str, str], Any] = {}

    def __call__(self, columns: Mapping[str, Any]) -> dict[str, Any]:
        values = {}
        for column, value in columns.items():
            target = _once(self._targets, column, lambda column=column: self._target(column))
            text = _text(value, target)
            if len(self._read) > REMEMBERED:
                self._read.clear()
            found = _once(self._read, (column, text), lambda target=target, text=text: self._value(target, text))
            if target.name in values and values[target.name] != found:
                raise GraphError(
                    f"{target.where} is given two values for {target.declared.name}.", code="graph.setting"
                )
            values[target.name] = found
        return values

    def _target(self, column: str) -> Target:
        target = find_target(self._graph, column, NODES)
        if target.name == self._image:
            raise GraphError(f'"{column}" is the image, which has a column of its own: image.', code="graph.setting")
        if looks_like_link(self._graph[target.node_id]["inputs"].get(target.declared.name)):
            raise GraphError(
                f'"{column}" is linked in the graph; name the input where the value comes from.', code="graph.setting"
            )
        return target

    def _value(self, target: Target, text: str) -> Any:
        value = read_value(target, text)
        if _names_model(target.name):
            self._models.sum_of(value)
            return value
        found = check_value(target.declared, value, Hints())
        if found is not None:
            node = self._graph[target.node_id]
            faults = {target.node_id: {"errors": [found], "class_type": node["class_type"], "dependent_outputs": []}}
            raise GraphError(explain(None, faults, self._graph), code=f"graph.{found['type']}")
        return value


def _once(known: dict[Any, Any], key: Any, find: Callable[[], Any]) -> Any:
    """What `find` gave for this key before, or gives now; what it raised is raised again."""
    if key not in known:
        try:
            known[key] = find()
        except SVDStagesError as error:
            known[key] = error
    if isinstance(known[key], SVDStagesError):
        raise known[key].with_traceback(None)
    return known[key]


def _text(value: Any, target: Target) -> str:
    """A value of JSON or Parquet as a cell has it. 7.0 is 7 where whole numbers are taken: tables with gaps have it."""
    if isinstance(value, str):
        return value
    if isinstance(value, float) and value.is_integer() and target.declared.kind == "INT":
        return str(int(value))
    try:
        return json.dumps(value)
    except (TypeError, ValueError) as error:
        told = f'input "{target.declared.name}" of {target.where} takes what JSON can hold: {error}.'
        raise GraphError(told, code="graph.setting") from error


@contextmanager
def _pool(folder: RunFolder, surroundings: Surroundings, engine: Engine, left: int) -> Iterator[Pool]:
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
        threads=engine.threads,
    )
    setup = Setup(os.path.realpath(folder.path), settings["run_id"], RUNNER, config.as_dict(), settings["shared"])
    memory = _memory_needed(settings["models"], surroundings.host())
    pool = make_pool(setup, engine, surroundings.device, left, memory)
    try:
        yield pool
    finally:
        pool.close()


def make_pool(setup: Setup, engine: Engine, device: str, left: int, memory: int = 0) -> Pool:
    """The workers that are asked for, not more than there are tasks `left`.

    memory  bytes that a worker on a CPU takes; so many as are free are started when no number is asked for

    Raises MissingExtraError for --ray without Ray, BatchError when there is no room for one.
    """
    if engine.ray is not None or (engine.shard is None and has_extra("ray")):
        from ..svd_core.batch.on_ray import RayPool

        count, gpus = engine.workers, 0 if device == "cpu" else None
        if engine.ray is None:
            count = min(left, count or len(_places(device, engine.threads, memory)))
        return RayPool(setup, engine.ray, count, gpus, engine.threads)
    from ..svd_core.batch.processes import ProcessPool

    places = _places(device, engine.threads, memory)
    count = min(left, engine.workers or len(places))
    return ProcessPool(setup, [places[number % len(places)] for number in range(count)])


def _memory_needed(models: Sequence[str], here: host.HeadlessHost) -> int:
    """Bytes that a worker on a CPU takes, roughly: libraries, and 16-bit weights as 32-bit ones."""
    files = [file for name in models for file in _weights(here.library.find(name))]
    return LIBRARIES + 2 * sum(file.stat().st_size for file in files)


def _weights(path: Path) -> list[Path]:
    return [path] if path.is_file() else list(path.rglob("*.safetensors"))


def _places(device: str, threads: int, memory: int) -> list[dict[str, str]]:
    """Where workers have room on this machine: for each what its environment needs to say."""
    gpus = _visible_gpus() if device in ("auto", "cuda") else []
    if gpus:
        return [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in gpus]
    if device not in ("auto", "cpu"):
        return [{}]
    import psutil

    room = psutil.virtual_memory().available // max(1, memory)
    return [{} for _ in range(max(1, min(_cpus() // threads, room)))]


def _visible_gpus() -> list[str]:
    import torch

    if not torch.cuda.is_available():
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(number) for number in range(torch.cuda.device_count())]


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
