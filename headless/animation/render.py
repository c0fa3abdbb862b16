"""Animate an image file or array: the main job, as a Python call and for the command line."""

from __future__ import annotations

import inspect
import itertools
import os
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ...nodes.compat.videos import SaveVideo
from ...svd_core.errors import (
    GraphError,
    ImageError,
    Interrupted,
    NodeError,
    SettingError,
    SVDStagesError,
    closest,
)
from ...svd_core.media.alpha_compositing import GREY, Background, read_background
from ...svd_core.media.image_io import as_images, display_name
from ...svd_core.media.video_size import Size
from ...svd_core.pipeline import VideoSettings, image_to_video
from ...svd_core.runtime.runtime import (
    LocalRuntime,
    OnOom,
    Reporter,
    RunWarning,
    chain_callbacks,
    forward_warnings,
    ignore_progress,
    use_runtime,
)
from ..engines.embedded.engine import validate_and_budget
from ..engines.graphs import Report
from ..engines.run_config import RunConfig
from ..engines.video_graph import STAGE_NODES, image_to_video_graph, node_of_class, settings_of
from ..graph import Prompt
from ..graph.explain import describe_error

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL import Image

OutputType = Literal["pt", "np", "pil"]
SETTINGS = tuple(field.name for field in fields(VideoSettings))


def animate(
    image: str | os.PathLike | Image.Image | np.ndarray | torch.Tensor,
    model: str = VideoSettings.model,
    *,
    background: str | float | Sequence[float] = GREY,
    models: Sequence[str | os.PathLike] = (),
    device: str = "auto",
    precision: str = "auto",
    vram: int | str | None = None,
    on_oom: OnOom = "strict",
    output_type: OutputType = "pt",
    on_progress: Reporter = ignore_progress,
    **settings: Any,
) -> torch.Tensor | np.ndarray | list[list[Image.Image]]:
    """Animate an image: frames (B, F, H, W, 3) in [0, 1], one video per image.

    Args:
        image: A file, a PIL image, or an array or tensor (H, W, 3) or (B, H, W, 3): float in [0, 1], or uint8.
        model: Name of the checkpoint.
        background: Color behind transparent parts: a grey level from 0 to 1, three, "white", "#336699"; "keep": as
            ComfyUI does.
        models: Folders of models.
        device: auto, cpu, cuda, cuda:1 or mps.
        precision: auto, fp16, bf16 or fp32.
        vram: Size of the device's memory to use, in bytes or as "6G". None: all that is free.
        on_oom: strict, or adapt: use smaller windows where windowed decoding runs out of memory.
        output_type: pt: float32 tensor; np: float32 array; pil: a list of frames for each video.
        on_progress: Called with (stage, units done, units in all, name of the unit).
        settings: Fields of `VideoSettings`. None: what the checkpoint was trained for.

    Raises:
        TypeError: An argument is not a field of `VideoSettings`, or its value has another type.
        SettingError, ImageError, CheckpointError, GraphError, NodeError: See errors.py.
    """
    if output_type not in ("pt", "np", "pil"):
        raise SettingError(f'`output_type` must be pt, np or pil, got "{output_type}"')
    if unknown := sorted(settings.keys() - set(SETTINGS)):
        raise _unknown_argument(unknown[0])
    runtime = RunConfig(models, device, precision, reporter=on_progress, vram=vram, on_oom=on_oom).runtime()
    images = _images(image, read_background(background), runtime)
    video = VideoSettings(os.fspath(model) if isinstance(model, os.PathLike) else model, **settings)
    return _as_output(animate_images(images, video, runtime), output_type)


def _unknown_argument(name: str) -> TypeError:
    """Return the error for an argument that `animate` does not have, with the nearest one."""
    near = closest(name, inspect.signature(animate).parameters)
    hint = f"did you mean {near!r}?" if near else "see help(svd_stages.animate)"
    return TypeError(f"animate() has no argument {name!r}; {hint}")


def _signature() -> inspect.Signature:
    """Return the signature of `animate` with the fields of `VideoSettings` in place of `**settings`."""
    parameters = list(inspect.signature(animate).parameters.values())[:-1]
    names = {parameter.name for parameter in parameters}
    named = [
        inspect.Parameter(each.name, inspect.Parameter.KEYWORD_ONLY, default=each.default, annotation=each.type)
        for each in fields(VideoSettings)
        if each.name not in names
    ]
    return inspect.Signature([*parameters[:2], *named, *parameters[2:]])


animate.__signature__ = _signature()  # type: ignore[attr-defined]


def animate_images(images: torch.Tensor, settings: VideoSettings, runtime: LocalRuntime) -> list[torch.Tensor]:
    """Animate images (N, H, W, 3) in [0, 1]: N videos (F, height, width, 3) in [0, 1]. Raises as `animate` does."""
    prompt = image_to_video_graph(settings, runtime, "input.png", _size_of(images)).prompt
    prompt = {key: node for key, node in prompt.items() if node["class_type"] not in ("CreateVideo", "SaveVideo")}
    prompt = _validated(prompt, images, runtime, keep=(node_of_class(prompt, "SVDTemporalVAEDecode"),))
    from ...svd_core import execution

    with _StageErrors(prompt) as stage:
        checkpoint = execution.load(runtime, settings.model, "auto")
        return image_to_video(checkpoint, images, settings_of(prompt, settings), runtime, stage)


def animate_file(image: Path, output: Path, settings: VideoSettings, run_config: RunConfig) -> Report:
    """Animate an image file to an mp4 at `output`, with the graph of the video in its metadata.

    A file at `output` is replaced. An image file that holds several images makes several videos: `output`, then the
    free ones of output_00002 and so on. Nothing is left behind when it fails. Transparent parts are put on the run
    configuration's background, on grey if it has none.

    Raises:
        SettingError: `output` cannot be written, or a setting is out of range.
        ImageError: The file is not an image.
        CheckpointError, GraphError: A model is missing; a setting is out of range, or memory cannot suffice.
        NodeError: A stage failed. `node_id` and `class_type` are those of its node.
    """
    from ...svd_core import execution
    from ...svd_core.utils.output_files import free_names, scratch_folder_beside

    if not image.is_file():
        raise ImageError(f"there is no image file {display_name(image)}; give the path of a PNG, JPEG or WebP image")
    if output.suffix.lower() != ".mp4":
        raise SettingError(f'the output must be an .mp4 file, got "{output.name}"; graphs can save other formats')
    warnings: list[RunWarning] = []
    on_note = chain_callbacks(warnings.append, run_config.on_note)
    with scratch_folder_beside(output) as folder:
        runtime = replace(run_config, input_folder=image.parent, output_folder=folder, on_note=on_note).runtime()
        images = _images(image, run_config.background or read_background(GREY), runtime)
        graph = image_to_video_graph(settings, runtime, image.name, _size_of(images))
        prompt = _validated(graph.prompt, images, runtime)
        with _StageErrors(prompt) as stage:
            checkpoint = execution.load(runtime, settings.model, "auto")
            settings = settings_of(prompt, settings)
            videos = image_to_video(checkpoint, images, settings, runtime, stage)
            stage("save")
            files = [_save(video, settings.fps, prompt, runtime) for video in videos]
        paths = [output, *itertools.islice(free_names(output, 2), len(files) - 1)]
        for temporary, path in zip(files, paths, strict=True):
            os.replace(temporary, path)
    entries = [{"filename": path.name, "subfolder": "", "type": "output"} for path in paths]
    ui = {node_of_class(prompt, "SaveVideo"): {"images": entries, "animated": (True,)}}
    return Report(paths, ui, notes=warnings)


def _images(image: Any, background: Background, runtime: LocalRuntime) -> torch.Tensor:
    """Return an image as (N, H, W, 3) in [0, 1], and pass the warnings about it to the runtime."""
    images, warnings = as_images(image, background)
    forward_warnings(runtime, warnings)
    return images


def _size_of(images: torch.Tensor) -> Size:
    """Return the width and height of images (N, H, W, 3)."""
    return images.shape[2], images.shape[1]


def _validated(prompt: Prompt, images: torch.Tensor, runtime: LocalRuntime, keep: Sequence[str] = ()) -> Prompt:
    """Return the graph with its defaults filled in.

    Raises:
        GraphError: A setting is out of range, or a stage surely does not fit into memory.
    """
    given = {node_of_class(prompt, "LoadImage"): [[images], [None]]}
    try:
        with use_runtime(runtime):
            return validate_and_budget(prompt, runtime, given, keep).prompt
    except GraphError as error:
        facts = [fault["details"] for entry in error.node_errors.values() for fault in entry["errors"]]
        raise GraphError("; ".join(facts), code=error.code, node_errors=error.node_errors) from None


def _save(video: torch.Tensor, fps: int, prompt: Prompt, runtime: LocalRuntime) -> Path:
    """Write a video (F, H, W, 3) with its graph to an mp4 in the output folder, as the node SaveVideo does."""
    from ...svd_core.media.video_io import Video, exact_fps

    with use_runtime(runtime):
        saved = SaveVideo().run(Video(video, exact_fps(float(fps))), "video", "auto", "auto", prompt)
    return runtime.output_folder / saved["ui"]["images"][0]["filename"]


class _StageErrors:
    """Turn an error of a stage into a NodeError of its node. Called with the name of each stage as it starts."""

    def __init__(self, prompt: Prompt) -> None:
        self._prompt = prompt
        self._stage = "load"

    def __call__(self, stage: str) -> None:
        self._stage = stage

    def __enter__(self) -> _StageErrors:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        if not isinstance(error, Exception) or isinstance(error, Interrupted):
            return
        node_id = node_of_class(self._prompt, STAGE_NODES[self._stage])
        text = describe_error(error)
        if not isinstance(error, SVDStagesError):
            text = f"the stage {self._stage} failed: {text}"
        class_type = self._prompt[node_id]["class_type"]
        raise NodeError(text, node_id=node_id, class_type=class_type, cause=error) from error


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
