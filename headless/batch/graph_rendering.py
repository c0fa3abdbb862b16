"""Graphs as a batch renders them: models stay loaded, images come read, savers run beside the next render.

A graph is cut in two before its savers (and CreateVideo, whose wire no file can hold). What crosses the cut is images,
which savers store in 8 bits, and plain values: that is `Rendered`, and what is kept of it gives the same file.
"""

from __future__ import annotations

import errno
import importlib.metadata
import json
import logging
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...nodes.compat.folders import annotated_file
from ...svd_core.errors import DeviceLostError, GraphError, ImageError, SettingError
from ...svd_core.media.alpha_compositing import Background
from ...svd_core.media.hashing import frames_sha256
from ...svd_core.pipeline import VideoSettings
from ...svd_core.runtime.runtime import RunWarning, use_runtime
from ..cli.animate import animate_images
from ..engines.embedded.engine import inference, written
from ..engines.embedded.memory_estimate import check_memory_budget
from ..engines.graph_errors import raise_if_faulty
from ..engines.graphs import EMBEDDED_NODES, NODES
from ..engines.preflight import MODEL_FOLDERS
from ..engines.run_config import RunConfig
from ..graph import Engine, Prompt, validate
from ..graph.node_schema import return_types
from ..graph.prompt import looks_like_link, name_node
from .images import check_unchanged
from .model_hashes import facts_of, model_sha256
from .rendering import Rendered
from .tasks import Task

if TYPE_CHECKING:
    import torch

PACKAGE = __name__.removesuffix(".headless.batch.graph_rendering")
PROBE = VideoSettings(width=64, height=64, num_frames=2, steps=1)
"""What every worker renders before it gets work, with svd-nano: about a second."""
_PROBE_SQUARES = 8
STORED = ("IMAGE", "FLOAT", "INT", "STRING", "BOOLEAN")
"""Wires whose values can be kept in a file until a saver has them."""


@dataclass(frozen=True)
class RenderSettings:
    """What a `GraphRenderer` is told; `as_dict` is for JSON.

    graph   API format, without the rows' values
    image   (node id, input) that takes the image
    images  the folder of images
    models  names of checkpoints that rows render with
    background  what transparent parts of the rows' images are put on
    """

    graph: Prompt
    image: Sequence[str]
    images: str
    models: Sequence[str] = ()
    roots: Sequence[str] = ()
    device: str = "auto"
    precision: str = "auto"
    vram: int | None = None
    background: Background | None = None
    threads: int = 1

    def as_dict(self) -> dict[str, Any]:
        """For JSON; `RenderSettings(**that)` is the settings again."""
        return {
            "graph": dict(self.graph),
            "image": list(self.image),
            "images": self.images,
            "models": list(self.models),
            "roots": list(self.roots),
            "device": self.device,
            "precision": self.precision,
            "vram": self.vram,
            "background": self.background,
            "threads": self.threads,
        }


class GraphRenderer:
    """A `headless.batch.rendering.Renderer` of graphs, on the embedded engine."""

    def __init__(self, config: Mapping[str, Any]):
        import torch

        self._settings = settings = RenderSettings(**config)
        torch.set_num_threads(settings.threads)  # another number of threads adds in another order
        self._runtime = RunConfig(
            settings.roots,
            settings.device,
            settings.precision,
            input_folder=settings.images,
            vram=settings.vram,
            background=settings.background,
        ).runtime()
        self._engine = Engine(NODES, "classic")  # keeps what the next graph has, too: the models
        self._cut = cut_before_savers(settings.graph)

    def describe(self) -> dict[str, str]:
        """The version of the code, and the models by sha256. Raises CheckpointError for one that is not here."""
        return facts_of({name: model_sha256(self._runtime.library.find(name)) for name in self._settings.models})

    def probe(self) -> dict[str, Any]:
        """The device; libraries, precision and, on a CPU, threads; the means of squares of a small render's frames.

        Raises SettingError when these are NaN.
        """
        import torch

        ramp = torch.linspace(0, 1, 128)
        image = torch.stack([ramp.expand(128, 128), ramp[:, None].expand(128, 128), 1 - ramp.expand(128, 128)], -1)
        self._load_models()
        with _silently():
            frames = animate_images(image[None], PROBE, self._runtime)[0]
        squares = torch.nn.functional.adaptive_avg_pool2d(frames.permute(0, 3, 1, 2).float(), _PROBE_SQUARES)
        if not squares.isfinite().all():
            raise SettingError(
                f"{self._runtime.device()} renders NaN or infinity with svd-nano at precision "
                f"{self._settings.precision}; "
                "try fp32.",
                code="batch.worker_differs",
            )
        device = self._runtime.device()
        makes = {name: importlib.metadata.version(name) for name in ("torch", "diffusers")}
        makes["precision"] = f"{self._settings.precision} on {device.type}"
        if device.type == "cpu":
            makes["threads"] = str(self._settings.threads)
        shown = bytes(squares.clamp(0, 1).mul(255).round().int().flatten()).hex()
        return {"device": _device_name(device), "makes": makes, "probe": shown}

    def _load_models(self) -> None:
        """Have the graph's checkpoints open, so that no render is slower than others for it."""
        loaders = [key for key, node in self._settings.graph.items() if MODEL_FOLDERS.keys() & node["inputs"]]
        if not loaders:
            return
        with use_runtime(self._runtime):
            checked = validate(self._settings.graph, NODES, (), keep=loaders)
            raise_if_faulty(checked, EMBEDDED_NODES)
            self._engine.run(checked.prompt, [], keep=loaders, node_context=inference)

    def prepare(self, task: Task) -> list[list[Any]]:
        """What the LoadImage node gives, for each slot a list. Raises ImageError."""
        node_id, name = self._settings.image
        if not os.path.isdir(self._settings.images):  # a disk that is away for a while is no fault of the row
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), self._settings.images)
        with use_runtime(self._runtime):
            path = annotated_file(task.image)
            check_unchanged(path, task.image_sha256)
            node = NODES[self._settings.graph[node_id]["class_type"]]()
            loaded = getattr(node, node.FUNCTION)(**{name: task.image})
        if (count := len(loaded[0])) > 1:
            raise ImageError(
                f"{task.image} holds {count} pictures, and a row of a batch animates one; take out the one you mean.",
                code="image.animated",
            )
        return [[value] for value in loaded]

    def render(self, task: Task, prepared: list[list[Any]]) -> Rendered:
        """The graph up to its savers. Raises GraphError, NodeError."""
        prompt = self._prompt(task)
        given = {self._settings.image[0]: prepared}
        notes: list[RunWarning] = []
        with use_runtime(replace(self._runtime, on_note=notes.append)):
            checked = validate(prompt, NODES, self._cut.savers, precomputed=given)
            raise_if_faulty(checked, EMBEDDED_NODES)
            check_memory_budget(checked.prompt, checked.outputs, self._runtime)
            sources = list(dict.fromkeys(node_id for node_id, _ in self._cut.slots))
            kept = [each for each in sources if each not in given]
            result = self._engine.run(checked.prompt, [], precomputed=given, keep=kept, node_context=inference)
        values = {**result.values, **given}
        packed = pack({(node_id, slot): values[node_id][slot] for node_id, slot in self._cut.slots})
        return replace(packed, notes=[note.as_dict() for note in notes])

    def encode(self, task: Task, rendered: Rendered, folder: Path) -> list[tuple[Path, dict[str, Any]]]:
        """The savers, into `folder`. Raises NodeError, OutputError."""
        runtime = replace(self._runtime, output_folder=folder)
        given: dict[str, list[list[Any]]] = {}
        for (node_id, slot), values in unpack(rendered).items():
            row = given.setdefault(node_id, [])
            row += [[] for _ in range(slot + 1 - len(row))]
            row[slot] = values
        with use_runtime(runtime):
            checked = validate(self._prompt(task), NODES, self._cut.savers, precomputed=given)
            raise_if_faulty(checked, EMBEDDED_NODES)
            result = Engine(NODES).run(checked.prompt, self._cut.savers, precomputed=given, node_context=inference)
        files = written(runtime, result.ui)
        return [(path, {"frames_sha256": frames_sha256(path)}) for path in files]

    def is_lost(self, error: BaseException) -> bool:
        """Whether CUDA said that its context is broken, which no later call mends. Too little memory does not."""
        from ...svd_core.runtime.device_errors import is_device_loss

        found: BaseException | None = error
        while found is not None:
            if isinstance(found, DeviceLostError) or is_device_loss(found):
                return True
            found = found.__cause__
        return False

    def _prompt(self, task: Task) -> Prompt:
        return bind(self._settings.graph, self._settings.image, task)


@dataclass(frozen=True)
class GraphSplit:
    """Where a graph is cut: its savers, and the (node id, slot) that they and the nodes behind the cut read."""

    savers: tuple[str, ...]
    slots: tuple[tuple[str, int], ...]


def cut_before_savers(prompt: Prompt) -> GraphSplit:
    """The cut of a graph. Raises GraphError when it saves nothing."""
    savers = [node_id for node_id, node in prompt.items() if _saves(node)]
    if not savers:
        raise GraphError(
            "the graph saves nothing, so a batch of it would give no files; add SaveVideo, SaveAnimatedWEBP or "
            "SaveImage.",
            code="graph.saves_nothing",
        )
    behind, waiting = set(savers), list(savers)
    slots: dict[tuple[str, int], None] = {}
    while waiting:
        for source, slot in _links(prompt[waiting.pop()]):
            if _makes_video(prompt[source]):
                waiting += [source] if source not in behind else []
                behind.add(source)
            else:
                _check_stored(prompt, source, slot)
                slots[source, slot] = None
    return GraphSplit(tuple(savers), tuple(sorted(slots)))


def _check_stored(prompt: Prompt, source: str, slot: int) -> None:
    """Raise GraphError for what a saver reads and no file can keep."""
    kind = return_types(NODES[prompt[source]["class_type"]])[slot]
    if kind not in STORED and not isinstance(kind, (list, tuple)):
        raise GraphError(
            f"a saver reads {kind} of {name_node(prompt, source)}; a batch saves {', '.join(STORED)}. Take that link "
            "out.",
            code="graph.not_saved",
        )


def bind(graph: Prompt, image: Sequence[str], task: Task) -> Prompt:
    """The graph with a task's values in it."""
    prompt = dict(graph)
    for name, value in {**task.values, f"{image[0]}.{image[1]}": task.image}.items():
        node_id, _, input_name = name.rpartition(".")
        node = prompt[node_id]
        prompt[node_id] = {**node, "inputs": {**node["inputs"], input_name: value}}
    return prompt


def pack(values: Mapping[tuple[str, int], list[Any]]) -> Rendered:
    """Images (F, H, W, C) in 8 bits, as savers round them, and plain values. Raises OutputError for NaN and infinity,
    GraphError for what a saver cannot be given here."""
    import torch

    from ...svd_core.media.video_io import check_frames, to_uint8

    arrays, facts = {}, {}
    for (node_id, slot), row in values.items():
        told = facts[f"{node_id} {slot}"] = []
        for number, value in enumerate(row):
            if isinstance(value, torch.Tensor):
                name = f"{node_id} {slot} {number}"
                check_frames(value)
                arrays[name] = to_uint8(value)
                told.append({"array": name})
            elif value is None or isinstance(value, (bool, int, float, str)):
                told.append({"value": value})
            else:
                raise GraphError(
                    f'a saver reads slot {slot} of node "{node_id}", which gave {type(value).__name__} and neither '
                    "images nor a plain value; a batch cannot save that.",
                    code="graph.not_saved",
                )
    return Rendered(arrays, facts)


def unpack(rendered: Rendered) -> dict[tuple[str, int], list[Any]]:
    """What was packed: images float32 in [0, 1], which savers round to the same 8 bits."""
    import torch

    found: dict[tuple[str, int], list[Any]] = {}
    for name, told in rendered.facts.items():
        node_id, _, slot = name.rpartition(" ")
        found[node_id, int(slot)] = [
            torch.from_numpy(rendered.arrays[each["array"]]).float() / 255 if "array" in each else each["value"]
            for each in told
        ]
    return found


@contextmanager
def _silently() -> Iterator[None]:
    """Without what the stages tell a user: the probe is nobody's video."""
    stages = logging.getLogger(f"{PACKAGE}.svd_core.execution")
    level = stages.level
    stages.setLevel(logging.ERROR)
    try:
        yield
    finally:
        stages.setLevel(level)


def _saves(node: Mapping[str, Any]) -> bool:
    return getattr(NODES.get(str(node.get("class_type"))), "FOLDER", None) == "output"


def _makes_video(node: Mapping[str, Any]) -> bool:
    return "VIDEO" in getattr(NODES.get(str(node.get("class_type"))), "RETURN_TYPES", ())


def _links(node: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    return ((value[0], int(value[1])) for value in node["inputs"].values() if looks_like_link(value))


def _device_name(device: torch.device) -> str:
    """Devices of one name render alike."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    about = json.dumps([platform.machine(), torch.backends.cpu.get_cpu_capability()])
    return f"{device.type} {about}"
