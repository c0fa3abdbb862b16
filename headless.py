"""Runs graphs with no ComfyUI: builds a runner from the nodes and svd_core, above both.

The command line, the Python calls and anything else that renders outside ComfyUI come through here.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
from .nodes.standins import STANDIN_CLASS_MAPPINGS, STANDIN_DISPLAY_NAME_MAPPINGS
from .svd_core import host
from .svd_core.checkpoint.library import EMBEDDED, ModelLibrary
from .svd_core.errors import CheckpointError, GraphError, ImageError, SettingError
from .svd_core.graph import (
    Emit,
    Engine,
    Prompt,
    RunResult,
    Validation,
    apply_settings,
    explain,
    is_ui_format,
    raise_if_invalid,
    read_graph,
    to_api,
    unwrap,
    validate,
)
from .svd_core.options import DEFAULT, ModelOptions
from .svd_core.pictures import as_images

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL import Image

    from .svd_core.checkpoint.parts import VideoDefaults

PACKAGE = Path(__file__).resolve().parent
TEMPLATE = PACKAGE / "example_workflows" / "image_to_video.json"
NODES: dict[str, type] = {**NODE_CLASS_MAPPINGS, **STANDIN_CLASS_MAPPINGS}
DISPLAY_NAMES: dict[str, str] = {**NODE_DISPLAY_NAME_MAPPINGS, **STANDIN_DISPLAY_NAME_MAPPINGS}

OutputType = Literal["pt", "np", "pil"]


@dataclass(frozen=True)
class Graph:
    """A graph that was read: the prompt (API format), and the workflow (UI format) it came from, if any."""

    prompt: Prompt
    workflow: dict[str, Any] | None = None


@dataclass(frozen=True)
class Report:
    """What a run made.

    files        in the order they were written
    ui           each output node's answer in ComfyUI's shape
    faults       as a sentence, why some outputs of the graph could not run; empty when all did
    node_errors  the same in ComfyUI's shape
    """

    files: list[Path]
    ui: dict[str, dict[str, Any]]
    faults: str = ""
    node_errors: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Animation:
    """What `animate` is to do. None means: what the checkpoint is for."""

    model: str = EMBEDDED
    width: int | None = None
    height: int | None = None
    fit: str = "stretch"
    num_frames: int | None = None
    steps: int = 25
    seed: int = 0
    fps: int = 7
    motion_bucket_id: int = 127
    noise_aug_strength: float = 0.02
    min_guidance: float | None = None
    max_guidance: float | None = None
    decode_mode: str | None = None
    decode_chunk: int = 8
    decode_context: int = 2
    compile: str = "off"


@dataclass(frozen=True)
class Surroundings:
    """Where and on what to run; what the command line's common options say. vram: bytes to get by with."""

    models: Sequence[str | os.PathLike] = ()
    device: str = "auto"
    precision: str = "auto"
    input_folder: str | os.PathLike = "input"
    output_folder: str | os.PathLike = "output"
    reporter: host.Reporter = field(default=host.ignore_progress)
    vram: int | None = None

    def host(self) -> host.HeadlessHost:
        """The host of such a run. Touches no disk and asks no device."""
        return host.HeadlessHost(
            library=ModelLibrary.from_roots(_listed(self.models) or default_models_roots()),
            device_name=self.device,
            precision=self.precision,
            input_folder=Path(self.input_folder),
            output_folder=Path(self.output_folder),
            reporter=self.reporter,
            vram=self.vram,
        )


def _listed(one_or_more: Any) -> list[Any]:
    """A lone text or path as a list of one."""
    return [one_or_more] if isinstance(one_or_more, (str, os.PathLike)) else list(one_or_more)


def default_models_roots() -> list[Path]:
    """`$SVD_STAGES_MODELS` (several with the system's path separator), else the models folder of the ComfyUI that the
    package lies in, else ./models."""
    if named := os.environ.get("SVD_STAGES_MODELS"):
        return [Path(each) for each in named.split(os.pathsep) if each]
    if PACKAGE.parent.name == "custom_nodes":
        return [PACKAGE.parent.parent / "models"]
    return [Path("models")]


def open_graph(source: str | os.PathLike | Mapping[str, Any], settings: Sequence[str] = ()) -> Graph:
    """Read a graph file, or take a graph that is a dict, in API or UI format, and set values in it.

    settings are "NODE.INPUT=VALUE" with a node's id, its class if it is the only one of it, or its title. A workflow
    with changed values is not handed on as metadata, because it would no longer be what ran.
    Raises GraphError.
    """
    if not isinstance(source, (str, os.PathLike, Mapping)):
        raise GraphError(f"a graph is a file or a dict, got {type(source).__name__}", code="graph.shape")
    settings = _listed(settings)
    given = dict(source) if isinstance(source, Mapping) else read_graph(Path(source))
    inner, workflow = unwrap(given)
    if is_ui_format(inner):
        inner, workflow = to_api(inner, NODES, DISPLAY_NAMES), inner
    if settings:
        return Graph(apply_settings(inner, settings, NODES))
    return Graph(inner, workflow)


def check_graph(graph: Graph, surroundings: Surroundings) -> Validation:
    """Validate a graph against our nodes and stand-ins, with the models and input files of `surroundings`.

    Raises GraphError when any of its outputs could not run (exit status 3 when only files are missing).
    """
    with host.using(surroundings.host()):
        validation = validate(graph.prompt, NODES)
    _raise_faults(validation)
    if validation.node_errors:
        words = explain(None, validation.node_errors, validation.prompt)
        raise _marked(GraphError(words, code="graph.some_outputs", node_errors=validation.node_errors))
    return validation


def object_info(surroundings: Surroundings) -> dict[str, dict[str, Any]]:
    """Every node that a headless run knows, in the shape of ComfyUI's /object_info."""
    from .svd_core.graph import object_info as describe

    with host.using(surroundings.host()):
        return describe(NODES, DISPLAY_NAMES)


def run(graph: Graph, surroundings: Surroundings, emit: Emit | None = None) -> Report:
    """Validate and run a graph. Results are written below the output folder.

    As in ComfyUI, outputs that can run do so when others cannot; the report then says which and why.

    Raises SettingError when a saver could not write its result, GraphError (exit status 3 when only model or input
    files are missing), NodeError, Interrupted.
    """
    here = surroundings.host()
    with host.using(here):
        _check_output_folder(graph, here)
        validation, result = _validate_and_execute(graph, emit=emit)
    faults = explain(None, validation.node_errors, validation.prompt) if validation.node_errors else ""
    return Report(_written(here, result.ui), result.ui, faults, validation.node_errors)


def run_graph(
    graph: str | os.PathLike | Mapping[str, Any],
    settings: Sequence[str] = (),
    *,
    input_dir: str | os.PathLike = "input",
    output_dir: str | os.PathLike = "output",
    models: Sequence[str | os.PathLike] = (),
    device: str = "auto",
    precision: str = "auto",
    vram: int | None = None,
    on_progress: host.Reporter = host.ignore_progress,
) -> Report:
    """Run a saved graph (a file or a dict, API or UI format) without ComfyUI; what `svd-stages run` does.

    settings     "NODE.INPUT=VALUE" each
    vram         bytes of the device's memory to get by with; None: all that is free
    on_progress  called with (stage, done, total, unit)

    Raises svd_core.errors: GraphError, CheckpointError, ImageError, NodeError and their kin.
    """
    surroundings = Surroundings(models, device, precision, input_dir, output_dir, on_progress, vram)
    return run(open_graph(graph, settings), surroundings)


def animate(
    image: str | os.PathLike | Image.Image | np.ndarray | torch.Tensor,
    model: str = EMBEDDED,
    *,
    width: int | None = None,
    height: int | None = None,
    fit: str = "stretch",
    num_frames: int | None = None,
    steps: int = 25,
    seed: int = 0,
    fps: int = 7,
    motion_bucket_id: int = 127,
    noise_aug_strength: float = 0.02,
    min_guidance: float | None = None,
    max_guidance: float | None = None,
    decode_mode: str | None = None,
    decode_chunk: int = 8,
    decode_context: int = 2,
    compile: str = "off",
    models: Sequence[str | os.PathLike] = (),
    device: str = "auto",
    precision: str = "auto",
    vram: int | None = None,
    output_type: OutputType = "pt",
    on_progress: host.Reporter = host.ignore_progress,
) -> torch.Tensor | np.ndarray | list[list[Image.Image]]:
    """Animate a picture: frames (B, F, H, W, 3) in [0, 1], one video per image. None: what the model is for.

    image        a file, a PIL image, or an array or tensor (H, W, 3) or (B, H, W, 3): float in [0, 1], or uint8
    compile      off, regional or full; see SVDModelOptions
    vram         bytes of the device's memory to get by with; None: all that is free
    output_type  pt: float32 tensor, np: float32 array, pil: a list of frames for each video

    Raises SettingError, ImageError, CheckpointError, NodeError.
    """
    if output_type not in ("pt", "np", "pil"):
        raise SettingError(f'output_type must be pt, np or pil, got "{output_type}"')
    animation = Animation(
        model=str(model),
        width=width,
        height=height,
        fit=fit,
        num_frames=num_frames,
        steps=steps,
        seed=seed,
        fps=fps,
        motion_bucket_id=motion_bucket_id,
        noise_aug_strength=noise_aug_strength,
        min_guidance=min_guidance,
        max_guidance=max_guidance,
        decode_mode=decode_mode,
        decode_chunk=decode_chunk,
        decode_context=decode_context,
        compile=compile,
    )
    here = Surroundings(models, device, precision, reporter=on_progress, vram=vram).host()
    return _as_output(_animate_images(as_images(image), animation, here), output_type)


def _animate_images(images: torch.Tensor, animation: Animation, here: host.HeadlessHost) -> list[torch.Tensor]:
    """The shipped graph without its file nodes: images in, the frames of each video out."""
    with host.using(here):
        graph = animation_graph(animation, here, "input.png")
        loader, decoder = _only(graph.prompt, "LoadImage"), _only(graph.prompt, "SVDTemporalVAEDecode")
        files = ("CreateVideo", "SaveVideo")
        prompt = {key: node for key, node in graph.prompt.items() if node["class_type"] not in files}
        _, result = _validate_and_execute(Graph(prompt), given={loader: [images, None]}, keep=(decoder,))
    return result.values[decoder][0]


def animate_file(
    image: Path, output: Path, animation: Animation, surroundings: Surroundings, emit: Emit | None = None
) -> Report:
    """Animate a picture file to an mp4 at `output`: the shipped graph with values set.

    A file at `output` is replaced. A picture file that holds several pictures makes several videos: `output`, then the
    free ones of output_00002 and so on. Nothing is left behind when it fails. Raises SettingError when `output` cannot
    be written, ImageError for what is no picture, and what `run` raises.
    """
    from .svd_core.outputs import free_names, scratch_folder_beside

    if not image.is_file():
        raise ImageError(f'there is no image file "{image}"; give the path of a PNG, JPEG or WebP picture')
    if output.suffix.lower() != ".mp4":
        raise SettingError(f'the output must be an .mp4 file, got "{output.name}"; graphs can save other formats')
    images = as_images(image)
    with scratch_folder_beside(output) as folder:
        here = replace(surroundings, input_folder=image.parent, output_folder=folder).host()
        with host.using(here):
            graph = animation_graph(animation, here, image.name)
            given = {_only(graph.prompt, "LoadImage"): [images, None]}
            _, result = _validate_and_execute(graph, emit=emit, given=given)
        made = _written(here, result.ui)
        names = [output, *itertools.islice(free_names(output, 2), len(made) - 1)]
        for temporary, final in zip(made, names, strict=True):
            os.replace(temporary, final)
    return Report(names, result.ui)


def animation_graph(animation: Animation, here: host.Host, image_name: str) -> Graph:
    """The shipped image_to_video graph with the animation's values in it.

    Raises CheckpointError when the model is not there, SettingError for a size that is no multiple of 64.
    """
    values = _with_defaults(animation, checkpoint_defaults(here, animation.model))
    _check_values(values)
    prompt = open_graph(TEMPLATE).prompt
    for class_type, inputs in _widgets(values, image_name).items():
        node = prompt[_only(prompt, class_type)]
        node["inputs"] = {**node["inputs"], **inputs}
    if values.compile != DEFAULT.compile:
        prompt = _with_options(prompt, ModelOptions(compile=values.compile))
    return Graph(prompt)


def _with_options(prompt: Prompt, options: ModelOptions) -> Prompt:
    """The graph with SVDModelOptions before its sampler."""
    sampler = _only(prompt, "SVDEulerSampler")
    model = prompt[sampler]["inputs"]["model"]
    added = {"class_type": "SVDModelOptions", "inputs": {"model": model, **asdict(options)}}
    changed = {**prompt[sampler], "inputs": {**prompt[sampler]["inputs"], "model": ["options", 0]}}
    return {**prompt, "options": added, sampler: changed}


def checkpoint_defaults(here: host.Host, model: str) -> VideoDefaults:
    """What the checkpoint called `model` was trained for, from its headers. Raises CheckpointError."""
    from .svd_core.checkpoint.inspect import read_defaults

    return read_defaults(here.library.find(model))


def _with_defaults(animation: Animation, defaults: VideoDefaults) -> Animation:
    """The animation with nothing left open."""

    def chosen(value: Any, default: Any) -> Any:
        return default if value is None else value

    width, height = chosen(animation.width, defaults.width), chosen(animation.height, defaults.height)
    frames = chosen(animation.num_frames, defaults.num_frames)
    return replace(
        animation,
        width=width,
        height=height,
        num_frames=frames,
        min_guidance=chosen(animation.min_guidance, defaults.min_guidance),
        max_guidance=chosen(animation.max_guidance, defaults.max_guidance),
        decode_mode=chosen(animation.decode_mode, "exact"),
    )


def _check_output_folder(graph: Graph, here: host.HeadlessHost) -> None:
    """Raise SettingError now rather than after the video has been computed."""
    from .svd_core.outputs import scratch_folder_beside

    class_types = [node.get("class_type") for node in graph.prompt.values() if isinstance(node, dict)]
    if any(getattr(NODES.get(str(each)), "FOLDER", None) == "output" for each in class_types):
        with scratch_folder_beside(here.output_folder / "result"):
            pass


def _check_values(values: Animation) -> None:
    """Raise SettingError now rather than after a checkpoint has been loaded."""
    if values.fps != int(values.fps):
        raise SettingError(f"fps must be a whole number, got {values.fps}; the model knows no others")
    from .svd_core.images import check_multiple

    for name in ("width", "height"):
        check_multiple(name, getattr(values, name), 64)


def _widgets(values: Animation, image_name: str) -> dict[str, dict[str, Any]]:
    """The widget values of each node of the shipped graph. Strength, seed and fps are set once and travel by wire."""
    return {
        "LoadImage": {"image": image_name},
        "SVDCheckpointLoader": {"checkpoint": values.model, "precision": "auto"},
        "SVDResizeImage": {"width": values.width, "height": values.height, "fit": values.fit},
        "SVDNoiseAugmentation": {"noise_aug_strength": values.noise_aug_strength, "seed": values.seed},
        "SVDImageConditioning": {"video_frames": values.num_frames},
        "SVDMicroConditioning": {"fps": values.fps, "motion_bucket_id": values.motion_bucket_id},
        "SVDEulerSampler": {
            "steps": values.steps,
            "min_guidance": values.min_guidance,
            "max_guidance": values.max_guidance,
        },
        "SVDTemporalVAEDecode": {
            "mode": values.decode_mode,
            "chunk_size": values.decode_chunk,
            "context": values.decode_context,
        },
        "SaveVideo": {"filename_prefix": "video"},
    }


def _validate_and_execute(
    graph: Graph,
    emit: Emit | None = None,
    given: Mapping[str, Sequence[Any]] | None = None,
    keep: Sequence[str] = (),
) -> tuple[Validation, RunResult]:
    validation = validate(graph.prompt, NODES, given=given, keep=keep)
    _raise_faults(validation)
    result = Engine(NODES).run(
        validation.prompt,
        [output for output in validation.outputs if output not in keep],
        extra_data={"extra_pnginfo": {"workflow": graph.workflow}} if graph.workflow else None,
        emit=emit,
        given=given,
        keep=keep,
        node_context=_inference,
    )
    return validation, result


def _raise_faults(validation: Validation) -> None:
    """Raise GraphError when nothing can run, with the exit status of a missing file when nothing else is wrong."""
    try:
        raise_if_invalid(validation)
    except GraphError as error:
        raise _marked(error) from None


def _marked(error: GraphError) -> GraphError:
    if _only_files_are_missing(error.node_errors):
        error.exit_status = CheckpointError.exit_status
    return error


def _only_files_are_missing(node_errors: Mapping[str, Any]) -> bool:
    """Whether every fault is about an input that names a model or a picture (the class's FILE_INPUTS)."""
    faults = [(entry["class_type"], fault) for entry in node_errors.values() for fault in entry["errors"]]
    return bool(faults) and all(
        fault["extra_info"].get("input_name") in getattr(NODES.get(class_type), "FILE_INPUTS", ())
        and fault["type"] in ("custom_validation_failed", "value_not_in_list")
        for class_type, fault in faults
    )


def _inference() -> contextlib.AbstractContextManager:
    """Nodes run as in ComfyUI: no gradients are kept."""
    import torch

    return torch.inference_mode()


def _only(prompt: Prompt, class_type: str) -> str:
    found = [key for key, node in prompt.items() if node["class_type"] == class_type]
    if len(found) != 1:
        raise GraphError(f"the graph must hold one {class_type}, it holds {len(found)}")
    return found[0]


def _written(here: host.HeadlessHost, ui: Mapping[str, Mapping[str, Any]]) -> list[Path]:
    """The files that output nodes say they wrote, each once: equal nodes run once and answer alike."""
    return list(dict.fromkeys(_named(here, ui)))


def _named(here: host.HeadlessHost, ui: Mapping[str, Mapping[str, Any]]) -> Iterator[Path]:
    for answer in ui.values():
        for entries in answer.values():
            for entry in entries:
                if isinstance(entry, dict) and "filename" in entry:
                    yield here.folder(entry["type"]) / entry.get("subfolder", "") / entry["filename"]


def write_text(path: Path, text: str) -> None:
    """Write a text file; the name is put in place when it is complete. Raises OutputError when it cannot be written."""
    from .svd_core.outputs import replacing

    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def describe_file(path: Path) -> str:
    """What a finished file is, for people: ": 14 frames, 128x128, 7 fps" for a video, nothing for others."""
    if path.suffix.lower() != ".mp4":
        return ""
    from .svd_core.video import describe_mp4

    return f": {describe_mp4(path)}"


def _as_output(videos: list[torch.Tensor], output_type: OutputType) -> Any:
    import torch

    if output_type == "pt":
        return torch.stack(videos)
    arrays = [video.numpy() for video in videos]
    if output_type == "np":
        import numpy as np

        return np.stack(arrays)
    from PIL import Image

    return [[Image.fromarray((frame * 255.0).round().astype("uint8")) for frame in frames] for frames in arrays]
