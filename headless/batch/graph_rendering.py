"""Render graphs for a batch: models stay loaded, images are read ahead, and savers run during the next render.

A graph is cut before its savers (and before CreateVideo, whose output cannot be stored). The values at the cut are
images, which savers store in 8 bits, and plain values. They become `Rendered`, from which encoding makes equal files.
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
from ...svd_core.errors import DeviceLostError, GraphError, ImageError, SettingError, quoted
from ...svd_core.media.hashing import frames_sha256
from ...svd_core.pipeline import VideoSettings
from ...svd_core.runtime.runtime import RunWarning, use_runtime
from ..animation.render import animate_images
from ..engines.embedded.engine import inference, written
from ..engines.embedded.memory_estimate import check_memory_budget
from ..engines.graph_errors import raise_if_faulty
from ..engines.graphs import EMBEDDED_NODES, NODES
from ..engines.preflight import MODEL_FOLDERS
from ..engines.run_config import RunConfig
from ..graph import Engine, Prompt, validate, with_value
from ..graph.node_schema import return_types
from ..graph.prompt import links_of, name_node
from .images import check_unchanged
from .model_hashes import facts_of, model_sha256
from .rendering import Rendered
from .tasks import Task

if TYPE_CHECKING:
    import torch

PACKAGE_NAME = __name__.removesuffix(".headless.batch.graph_rendering")
PROBE = VideoSettings(width=64, height=64, num_frames=2, steps=1)
"""Each worker renders this with svd-nano before it gets tasks. Takes about a second."""
_PROBE_SQUARES = 8
STORED = ("IMAGE", "FLOAT", "INT", "STRING", "BOOLEAN")
"""Types of values that can be stored in a file between render and saver."""


@dataclass(frozen=True)
class RenderSettings:
    """Configuration of a `GraphRenderer`. The fields are JSON values, and `vars(settings)` is the form for JSON.

    Attributes:
        graph: API format, without the rows' values.
        image: (node id, input) that takes the image.
        run_config: Fields of the RunConfig: folder of images, folders of models, device, precision, ...
        models: Names of the checkpoints that rows render with.
        threads: Threads of torch on a CPU.
    """

    graph: Prompt
    image: Sequence[str]
    run_config: Mapping[str, Any]
    models: Sequence[str] = ()
    threads: int = 1


class GraphRenderer:
    """A `headless.batch.rendering.Renderer` that runs graphs on the embedded engine."""

    def __init__(self, config: Mapping[str, Any]):
        import torch

        self._settings = settings = RenderSettings(**config)
        torch.set_num_threads(settings.threads)  # the number of threads changes the order of additions
        self._runtime = RunConfig(**settings.run_config).runtime()
        self._engine = Engine(NODES, "classic")  # caches the outputs that the next graph has, too: the models
        self._cut = cut_before_savers(settings.graph)

    def describe(self) -> dict[str, str]:
        """See `Renderer.describe`. Raises CheckpointError if a model is missing."""
        return facts_of({name: model_sha256(self._runtime.library.find(name)) for name in self._settings.models})

    def probe(self) -> dict[str, Any]:
        """See `Renderer.probe`. The probe is the mean color of 8x8 squares of a small render's frames.

        Raises:
            SettingError: The means are NaN or infinite.
        """
        import torch

        ramp = torch.linspace(0, 1, 128)
        image = torch.stack([ramp.expand(128, 128), ramp[:, None].expand(128, 128), 1 - ramp.expand(128, 128)], -1)
        self._load_models()
        with _silently():
            frames = animate_images(image[None], PROBE, self._runtime)[0]
        device = self._runtime.device()
        squares = torch.nn.functional.adaptive_avg_pool2d(frames.permute(0, 3, 1, 2).float(), _PROBE_SQUARES)
        if not squares.isfinite().all():
            message = f"{device} renders NaN or infinity at precision {self._runtime.precision}. Try fp32."
            raise SettingError(message, code="batch.worker_differs")
        makes = {name: importlib.metadata.version(name) for name in ("torch", "diffusers")}
        makes["precision"] = f"{self._runtime.precision} on {device.type}"
        if device.type == "cpu":
            makes["threads"] = str(self._settings.threads)
        probe = bytes(squares.clamp(0, 1).mul(255).round().int().flatten()).hex()
        probe_model = model_sha256(self._runtime.library.find(PROBE.model))
        return {"device": _device_name(device), "makes": makes, "probe": probe, "probe_model": probe_model}

    def _load_models(self) -> None:
        """Open the graph's checkpoints, so that the first render is not slower."""
        loaders = [key for key, node in self._settings.graph.items() if MODEL_FOLDERS.keys() & node["inputs"]]
        if not loaders:
            return
        with use_runtime(self._runtime):
            checked = validate(self._settings.graph, NODES, (), keep=loaders)
            raise_if_faulty(checked, EMBEDDED_NODES)
            self._engine.run(checked.prompt, [], keep=loaders, node_context=inference)

    def prepare(self, task: Task) -> list[list[Any]]:
        """Return the outputs of the LoadImage node, each as a list. Raises ImageError."""
        node_id, name = self._settings.image
        images = self._runtime.input_folder
        if not images.is_dir():  # a temporarily unavailable disk is not the row's fault
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(images))
        with use_runtime(self._runtime):
            path = annotated_file(task.image)
            check_unchanged(path, task.image_sha256)
            node = NODES[self._settings.graph[node_id]["class_type"]]()
            loaded = getattr(node, node.FUNCTION)(**{name: task.image})
        if (count := len(loaded[0])) > 1:
            message = f"{quoted(task.image)} must have one image, got {count}. Save the one to animate as its own file."
            raise ImageError(message, code="image.animated")
        return [[value] for value in loaded]

    def render(self, task: Task, prepared: list[list[Any]]) -> Rendered:
        """Run the graph up to its savers. Raises GraphError, NodeError."""
        prompt = self._prompt(task)
        outputs = {self._settings.image[0]: prepared}
        notes: list[RunWarning] = []
        with use_runtime(replace(self._runtime, on_note=notes.append)):
            checked = validate(prompt, NODES, self._cut.savers, precomputed=outputs)
            raise_if_faulty(checked, EMBEDDED_NODES)
            check_memory_budget(checked.prompt, checked.outputs, self._runtime)
            keep = [node_id for node_id in dict(self._cut.slots) if node_id not in outputs]
            result = self._engine.run(checked.prompt, [], precomputed=outputs, keep=keep, node_context=inference)
        values = {**result.values, **outputs}
        packed = _pack({(node_id, slot): values[node_id][slot] for node_id, slot in self._cut.slots})
        return replace(packed, notes=[note.as_dict() for note in notes])

    def encode(self, task: Task, rendered: Rendered, folder: Path) -> list[tuple[Path, dict[str, Any]]]:
        """Run the savers, which write into `folder`. Raises NodeError, OutputError."""
        runtime = replace(self._runtime, output_folder=folder)
        outputs = _unpack(rendered)
        with use_runtime(runtime):
            checked = validate(self._prompt(task), NODES, self._cut.savers, precomputed=outputs)
            raise_if_faulty(checked, EMBEDDED_NODES)
            result = Engine(NODES).run(checked.prompt, self._cut.savers, precomputed=outputs, node_context=inference)
        files = written(runtime, result.ui)
        return [(path, {"frames_sha256": frames_sha256(path)}) for path in files]

    def is_lost(self, error: BaseException) -> bool:
        """See `Renderer.is_lost`. Too little memory does not break the device."""
        from ...svd_core.runtime.device_errors import is_device_lost

        return isinstance(error, DeviceLostError) or is_device_lost(error)

    def _prompt(self, task: Task) -> Prompt:
        """Return the graph with a task's values and image."""
        prompt = self._settings.graph
        for name, value in {**task.values, ".".join(self._settings.image): task.image}.items():
            node_id, _, input_name = name.rpartition(".")
            prompt = with_value(prompt, node_id, input_name, value)
        return prompt


@dataclass(frozen=True)
class GraphSplit:
    """The cut of a graph before its savers.

    Attributes:
        savers: Ids of the nodes that write files.
        slots: (node id, output slot) of the values that the nodes after the cut read.
    """

    savers: tuple[str, ...]
    slots: tuple[tuple[str, int], ...]


def cut_before_savers(prompt: Prompt) -> GraphSplit:
    """Return the cut of a graph. Raises GraphError if it saves nothing, or a saver reads a value that is not stored."""
    savers = [node_id for node_id, node in prompt.items() if getattr(_node_class(node), "FOLDER", None) == "output"]
    if not savers:
        message = "the graph must save its result. Add SaveVideo, SaveAnimatedWEBP or SaveImage."
        raise GraphError(message, code="graph.saves_nothing")
    after, pending = set(savers), list(savers)
    slots: dict[tuple[str, int], None] = {}
    while pending:
        for source, slot in links_of(prompt[pending.pop()]):
            if "VIDEO" in getattr(_node_class(prompt[source]), "RETURN_TYPES", ()):
                pending += [source] if source not in after else []
                after.add(source)
            else:
                _check_stored(prompt, source, slot)
                slots[source, slot] = None
    return GraphSplit(tuple(savers), tuple(sorted(slots)))


def _check_stored(prompt: Prompt, source: str, slot: int) -> None:
    """Raise GraphError if a saver reads a value that cannot be stored in a file."""
    kind = return_types(NODES[prompt[source]["class_type"]])[slot]
    if kind not in STORED and not isinstance(kind, (list, tuple)):
        message = (
            f"savers of a batch must read {', '.join(STORED)}, got {kind} of {name_node(prompt, source)}. Unlink it."
        )
        raise GraphError(message, code="graph.not_saved")


def _pack(values: Mapping[tuple[str, int], list[Any]]) -> Rendered:
    """Store the values at the cut: images (F, H, W, C) in [0, 1] as uint8, rounded as savers do, and plain values.

    Raises:
        OutputError: An image has NaN or infinity.
        GraphError: A value is neither an image nor plain.
    """
    import torch

    from ...svd_core.media.video_io import check_frames, to_uint8

    arrays, facts = {}, {}
    for (node_id, slot), values_of_slot in values.items():
        entries = facts[f"{node_id} {slot}"] = []
        for number, value in enumerate(values_of_slot):
            if isinstance(value, torch.Tensor):
                name = f"{node_id} {slot} {number}"
                check_frames(value)
                arrays[name] = to_uint8(value)
                entries.append({"array": name})
            elif value is None or isinstance(value, (bool, int, float, str)):
                entries.append({"value": value})
            else:
                kind = f'{type(value).__name__} from slot {slot} of node "{node_id}"'
                message = f"savers of a batch must read images or plain values, got {kind}."
                raise GraphError(message, code="graph.not_saved")
    return Rendered(arrays, facts)


def _unpack(rendered: Rendered) -> dict[str, list[list[Any]]]:
    """Return the outputs of each node at the cut, by slot; other slots are empty.

    Images are float32 in [0, 1]; savers round them to the same uint8.
    """
    import torch

    outputs: dict[str, list[list[Any]]] = {}
    for name, entries in rendered.facts.items():
        node_id, _, slot = name.rpartition(" ")
        slots = outputs.setdefault(node_id, [])
        slots += [[] for _ in range(int(slot) + 1 - len(slots))]
        for entry in entries:
            is_array = "array" in entry
            slots[int(slot)].append(
                torch.from_numpy(rendered.arrays[entry["array"]]).float() / 255 if is_array else entry["value"]
            )
    return outputs


@contextmanager
def _silently() -> Iterator[None]:
    """Suppress warnings about the video, which do not apply to the probe."""
    logger = logging.getLogger(f"{PACKAGE_NAME}.svd_core.execution")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _node_class(node: Mapping[str, Any]) -> type | None:
    return NODES.get(str(node.get("class_type")))


def _device_name(device: torch.device) -> str:
    """Return the kind of a device. Devices of one kind must render alike."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    details = json.dumps([platform.machine(), torch.backends.cpu.get_cpu_capability()])
    return f"{device.type} {details}"
