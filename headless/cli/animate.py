"""The main job: one picture to one video, through the shipped graph."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ...svd_core.checkpoints.library import EMBEDDED
from ...svd_core.errors import GraphError, ImageError, SettingError
from ...svd_core.media.alpha_compositing import GREY, read_background
from ...svd_core.media.image_io import as_images, display_name
from ...svd_core.models.options import DEFAULT, ModelOptions
from ...svd_core.runtime.runtime import (
    LocalRuntime,
    OnOom,
    Reporter,
    Runtime,
    RunWarning,
    chain_callbacks,
    forward_warnings,
    ignore_progress,
    use_runtime,
)
from ...svd_core.utils.size_checks import check_multiple
from ..engines.embedded.engine import validate_and_execute, written
from ..engines.graphs import Graph, Report, open_graph
from ..engines.run_config import PACKAGE, RunConfig
from ..graph import OnEvent, Prompt

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL import Image

    from ...svd_core.checkpoints.model_metadata import VideoDefaults

TEMPLATE = PACKAGE / "example_workflows" / "image_to_video.json"

OutputType = Literal["pt", "np", "pil"]


@dataclass(frozen=True)
class VideoSettings:
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
    background: str | float | Sequence[float] = GREY,
    models: Sequence[str | os.PathLike] = (),
    device: str = "auto",
    precision: str = "auto",
    vram: int | None = None,
    on_oom: OnOom = "strict",
    output_type: OutputType = "pt",
    on_progress: Reporter = ignore_progress,
) -> torch.Tensor | np.ndarray | list[list[Image.Image]]:
    """Animate a picture: frames (B, F, H, W, 3) in [0, 1], one video per image. None: what the model is for.

    image        a file, a PIL image, or an array or tensor (H, W, 3) or (B, H, W, 3): float in [0, 1], or uint8
    compile      off, regional or full; see SVDModelOptions
    background   for transparent parts: a grey level from 0 to 1, three, "white", "#336699"; "keep": as ComfyUI does
    vram         bytes of the device's memory to get by with; None: all that is free
    on_oom       strict, or adapt: where windows run out of memory, they get smaller
    output_type  pt: float32 tensor, np: float32 array, pil: a list of frames for each video

    Raises SettingError, ImageError, CheckpointError, NodeError.
    """
    if output_type not in ("pt", "np", "pil"):
        raise SettingError(f'output_type must be pt, np or pil, got "{output_type}"')
    animation = VideoSettings(
        model=str(model), width=width, height=height, fit=fit, num_frames=num_frames, steps=steps, seed=seed, fps=fps,
        motion_bucket_id=motion_bucket_id, noise_aug_strength=noise_aug_strength, min_guidance=min_guidance,
        max_guidance=max_guidance, decode_mode=decode_mode, decode_chunk=decode_chunk, decode_context=decode_context,
        compile=compile,
    )  # fmt: skip
    images, run_warnings = as_images(image, read_background(background))
    forward_warnings(run_warnings)
    runtime = RunConfig(models, device, precision, reporter=on_progress, vram=vram, on_oom=on_oom).runtime()
    return _as_output(animate_images(images, animation, runtime), output_type)


def animate_images(images: torch.Tensor, animation: VideoSettings, runtime: LocalRuntime) -> list[torch.Tensor]:
    """The shipped graph without its file nodes: images in, the frames of each video out."""
    with use_runtime(runtime):
        graph = image_to_video_graph(animation, runtime, "input.png")
        loader, decoder = _only(graph.prompt, "LoadImage"), _only(graph.prompt, "SVDTemporalVAEDecode")
        files = ("CreateVideo", "SaveVideo")
        prompt = {key: node for key, node in graph.prompt.items() if node["class_type"] not in files}
        _, result = validate_and_execute(Graph(prompt), runtime, given={loader: [[images], [None]]}, keep=(decoder,))
    return result.values[decoder][0]


def animate_file(
    image: Path, output: Path, animation: VideoSettings, run_config: RunConfig, on_event: OnEvent | None = None
) -> Report:
    """Animate a picture file to an mp4 at `output`: the shipped graph with values set.

    A file at `output` is replaced. A picture file that holds several pictures makes several videos: `output`, then the
    free ones of output_00002 and so on. Nothing is left behind when it fails. Transparent parts are put on the
    surroundings' background, on grey when they have none. Raises SettingError when `output` cannot be written,
    ImageError for what is no picture, and what `run` raises.
    """
    from ...svd_core.utils.output_files import free_names, scratch_folder_beside

    if not image.is_file():
        raise ImageError(
            f'there is no image file "{display_name(image)}"; give the path of a PNG, JPEG or WebP picture'
        )
    if output.suffix.lower() != ".mp4":
        raise SettingError(f'the output must be an .mp4 file, got "{output.name}"; graphs can save other formats')
    notes: list[RunWarning] = []
    told = chain_callbacks(notes.append, run_config.on_note)
    with scratch_folder_beside(output) as folder:
        runtime = replace(run_config, input_folder=image.parent, output_folder=folder, on_note=told).runtime()
        with use_runtime(runtime):
            images, run_warnings = as_images(image, run_config.background or read_background(GREY))
            forward_warnings(run_warnings)
            graph = image_to_video_graph(animation, runtime, image.name)
            given = {_only(graph.prompt, "LoadImage"): [[images], [None]]}
            _, result = validate_and_execute(graph, runtime, on_event=on_event, given=given)
        made = written(runtime, result.ui)
        names = [output, *itertools.islice(free_names(output, 2), len(made) - 1)]
        for temporary, final in zip(made, names, strict=True):
            os.replace(temporary, final)
    return Report(names, result.ui, notes=notes)


def image_to_video_graph(animation: VideoSettings, runtime: Runtime, image_name: str) -> Graph:
    """The shipped image_to_video graph with the animation's values in it.

    Raises CheckpointError when the model is not there, SettingError for a size that is no multiple of 64.
    """
    values = _with_defaults(animation, checkpoint_defaults(runtime, animation.model))
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


def checkpoint_defaults(runtime: Runtime, model: str) -> VideoDefaults:
    """What the checkpoint called `model` was trained for, from its headers. Raises CheckpointError."""
    from ...svd_core.checkpoints.inspect import read_defaults

    return read_defaults(runtime.library.find(model))


def _with_defaults(animation: VideoSettings, defaults: VideoDefaults) -> VideoSettings:
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


def _check_values(values: VideoSettings) -> None:
    """Raise SettingError now rather than after a checkpoint has been loaded."""
    if values.fps != int(values.fps):
        raise SettingError(f"fps must be a whole number, got {values.fps}; the model knows no others")
    for name in ("width", "height"):
        check_multiple(name, getattr(values, name), 64)


def _widgets(values: VideoSettings, image_name: str) -> dict[str, dict[str, Any]]:
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


def _only(prompt: Prompt, class_type: str) -> str:
    found = [key for key, node in prompt.items() if node["class_type"] == class_type]
    if len(found) != 1:
        raise GraphError(f"the graph must hold one {class_type}, it holds {len(found)}")
    return found[0]


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
