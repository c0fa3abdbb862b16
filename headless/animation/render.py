"""Animate images: the main job, as a Python call and for the command line."""

from __future__ import annotations

import contextlib
import inspect
import os
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ...nodes.compat.saving import graph_metadata
from ...svd_core.errors import (
    DeviceLostError,
    GraphError,
    ImageError,
    Interrupted,
    NodeError,
    SettingError,
    SVDStagesError,
)
from ...svd_core.media.alpha_compositing import GREY, Background, read_background
from ...svd_core.media.image_io import display_name
from ...svd_core.pipeline import VideoSettings, image_to_video
from ...svd_core.runtime.runtime import (
    LocalRuntime,
    OnNote,
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
from ..engines.setting_checks import SETTINGS, unknown_name
from ..engines.video_graph import STAGE_NODES, image_to_video_graph, node_of_class, settings_of
from ..graph import Prompt
from ..graph.explain import describe_error
from .image_sources import ImageSource, find_images
from .video_files import OutputNames, parents_of

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL import Image

    from ...svd_core.models.components import Checkpoint

    OneImage = str | os.PathLike | Image.Image | np.ndarray | torch.Tensor

OutputType = Literal["pt", "np", "pil"]


def animate(
    image: OneImage | Sequence[OneImage],
    model: str = VideoSettings.model,
    *,
    seeds: Sequence[int] = (),
    background: str | float | Sequence[float] = GREY,
    models: Sequence[str | os.PathLike] = (),
    device: str = "auto",
    precision: str = "auto",
    vram: int | str | None = None,
    on_oom: OnOom = "strict",
    output_type: OutputType = "pt",
    on_progress: Reporter = ignore_progress,
    allow_network: bool = True,
    **settings: Any,
) -> torch.Tensor | np.ndarray | list[list[Image.Image]]:
    """Animate images: frames (B, F, H, W, 3) in [0, 1], one video per image and seed. The model is loaded once.

    Args:
        image: A file, a folder of images, a pattern such as "photos/*.jpg", an http(s) address, a PIL image, an array
            or tensor (H, W, 3) or (B, H, W, 3), float in [0, 1] or uint8, or a list of those. The videos of an image
            follow each other.
        model: Name of the checkpoint.
        seeds: In place of `seed`. Each image of a list is animated with each of them.
        background: Color behind transparent parts: a grey level from 0 to 1, three, "white", "#336699"; "keep": as
            ComfyUI does.
        models: Folders of models.
        device: auto, cpu, cuda, cuda:1 or mps.
        precision: auto, fp16, bf16 or fp32.
        vram: Size of the device's memory to use, in bytes or as "6G". None: all that is free.
        on_oom: strict, or adapt: use smaller windows where windowed decoding runs out of memory.
        output_type: pt: float32 tensor; np: float32 array; pil: a list of frames for each video. pt and np need videos
            of one size.
        on_progress: Called with (stage, units done, units in all, name of the unit).
        allow_network: False refuses addresses.
        settings: Fields of `VideoSettings`. None: what the checkpoint was trained for.

    Raises:
        TypeError: An argument is not a field of `VideoSettings`.
        SettingError, ImageError, CheckpointError, GraphError, NodeError: See errors.py.
    """
    if output_type not in ("pt", "np", "pil"):
        raise SettingError(f'`output_type` must be pt, np or pil, got "{output_type}"')
    if unknown := sorted(settings.keys() - set(SETTINGS)):
        known = inspect.signature(animate).parameters
        raise unknown_name(unknown[0], known, "animate() has no argument", "svd_stages.animate")
    runtime = RunConfig(models, device, precision, reporter=on_progress, vram=vram, on_oom=on_oom).runtime()
    video = VideoSettings(os.fspath(model) if isinstance(model, os.PathLike) else model, **settings)
    color = read_background(background)
    batches = [_read(source, color, allow_network, runtime) for source in find_images(image)]
    plans = [plan_video(batch, each, runtime) for batch in batches for each in _with_seeds(video, seeds)]
    if output_type != "pil":
        _check_one_size(plans, output_type)
    checkpoint = _load(plans[0], runtime)
    return _as_output([frames for plan in plans for frames in plan.render(checkpoint, runtime)], output_type)


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
    plan = plan_video(images, settings, runtime)
    return plan.render(_load(plan, runtime), runtime)


@dataclass(frozen=True, eq=False)
class VideoPlan:
    """The videos of one batch of images and one seed, checked and not rendered.

    Attributes:
        images: (N, H, W, 3) in [0, 1].
        settings: Without None.
        prompt: The graph that makes the same videos.
    """

    images: torch.Tensor
    settings: VideoSettings
    prompt: Prompt

    def render(self, checkpoint: Checkpoint, runtime: LocalRuntime) -> list[torch.Tensor]:
        """Return N videos (F, height, width, 3) in [0, 1]. Raises NodeError of the stage that failed."""
        with _StageErrors(self.prompt) as stage:
            return image_to_video(checkpoint, self.images, self.settings, runtime, stage)


def plan_video(
    images: torch.Tensor, settings: VideoSettings, runtime: LocalRuntime, image_name: str | None = None
) -> VideoPlan:
    """Choose the size, check the settings and make the graph.

    Args:
        images: (N, H, W, 3) in [0, 1].
        settings: None: what the checkpoint was trained for.
        image_name: Of the image file in a graph that saves its video. None: a graph that saves nothing.

    Raises:
        CheckpointError: There is no such checkpoint.
        SettingError, GraphError: A setting is out of range, or a stage surely does not fit into memory.
    """
    size = (images.shape[2], images.shape[1])
    prompt = image_to_video_graph(settings, runtime, image_name or "input.png", size).prompt
    keep: tuple[str, ...] = ()
    if image_name is None:
        prompt = {key: node for key, node in prompt.items() if node["class_type"] not in ("CreateVideo", "SaveVideo")}
        keep = (node_of_class(prompt, "SVDTemporalVAEDecode"),)
    precomputed = {node_of_class(prompt, "LoadImage"): [[images], [None]]}
    try:
        with use_runtime(runtime):
            prompt = validate_and_budget(prompt, runtime, precomputed, keep).prompt
    except GraphError as error:
        facts = [fault["details"] for entry in error.node_errors.values() for fault in entry["errors"]]
        raise GraphError("; ".join(facts), code=error.code, node_errors=error.node_errors) from None
    return VideoPlan(images, settings_of(prompt, settings), prompt)


def _with_seeds(settings: VideoSettings, seeds: Sequence[int]) -> list[VideoSettings]:
    return [replace(settings, seed=seed) for seed in seeds] or [settings]


def _read(source: ImageSource, background: Background, allow_network: bool, runtime: LocalRuntime) -> torch.Tensor:
    """Return an image as (N, H, W, 3) in [0, 1], and pass the warnings about it to the runtime."""
    images, warnings = source.read(background, allow_network)
    forward_warnings(runtime, warnings)
    return images


def _check_one_size(plans: Sequence[VideoPlan], output_type: str) -> None:
    sizes = {(plan.settings.width, plan.settings.height): None for plan in plans}
    if len(sizes) > 1:
        named = " and ".join(f"{width}x{height}" for width, height in list(sizes)[:2])
        raise SettingError(
            f"the images have different shapes and give videos of {named}, which are no one "
            f'{"tensor" if output_type == "pt" else "array"}. Give `width` and `height`, or `output_type` "pil".'
        )


def _load(plan: VideoPlan, runtime: LocalRuntime) -> Checkpoint:
    """Load the checkpoint of a plan. Raises NodeError of the node that loads."""
    from ...svd_core import execution

    with _StageErrors(plan.prompt):
        return execution.load(runtime, plan.settings.model, "auto")


@dataclass(frozen=True, eq=False)
class FailedImage:
    """An image without a video. Nothing was written for it."""

    name: str
    error: SVDStagesError


@dataclass(frozen=True, eq=False)
class FilePlan:
    """The videos of one image and one seed.

    Attributes:
        number: Of the image and seed, counted from 1.
        paths: The file of each video.
        notes: Warnings about the image and the settings.
    """

    number: int
    source: ImageSource
    video: VideoPlan
    paths: Sequence[Path]
    notes: Sequence[RunWarning]


@dataclass(frozen=True, eq=False)
class FileRequest:
    """Images to animate to files.

    Attributes:
        sources: The images.
        names: Of the files.
        paths: The file of each image and each seed.
        settings: For each seed.
        allow_network: False refuses addresses.
    """

    sources: Sequence[ImageSource]
    names: OutputNames
    paths: Sequence[Sequence[Path]]
    settings: Sequence[VideoSettings]
    allow_network: bool = True

    @classmethod
    def make(
        cls,
        image: Any,
        output: str | None,
        settings: VideoSettings,
        seeds: Sequence[int] = (),
        force: bool = False,
        allow_network: bool = True,
    ) -> FileRequest:
        """Find the images and name the files. `image` and `seeds` are those of `animate`.

        Args:
            image: What to animate.
            output: A file name, a folder, or a name with {name}, {seed} and a frame number, see `OutputNames.parse`.
            settings: For all videos.
            seeds: In place of the settings' seed.
            force: Replace existing files.
            allow_network: False refuses addresses.

        Raises:
            ImageError: There is no image.
            SettingError: A file cannot be named so, or exists.
        """
        sources, each_seed = find_images(image), _with_seeds(settings, seeds)
        names = OutputNames.parse(output, len(sources), len(each_seed), force)
        paths = names.paths([source.stem for source in sources], [each.seed for each in each_seed])
        return cls(sources, names, paths, each_seed, allow_network)

    def plan(self, runtime: LocalRuntime) -> Generator[FilePlan | FailedImage, None, None]:
        """Yield the videos in order. Each image is read when its turn comes.

        An unreadable image is yielded as a FailedImage if there are others. Raises as `plan_video` does.
        """
        background = runtime.background or read_background(GREY)
        for index, (source, paths) in enumerate(zip(self.sources, self.paths, strict=True)):
            try:
                images, unnamed = self._read(source, background)
            except ImageError as error:
                yield self.failed(source, error)
                continue
            notes: list[RunWarning] = []
            collecting = replace(runtime, on_note=_naming(source, chain_callbacks(notes.append, runtime.on_note)))
            forward_warnings(collecting, unnamed)
            first_number = 1 + index * len(self.settings)
            for number, (settings, first) in enumerate(zip(self.settings, paths, strict=True), first_number):
                own_notes = list(notes)
                on_note = _naming(source, chain_callbacks(own_notes.append, runtime.on_note))
                collecting = replace(runtime, on_note=on_note)
                video = plan_video(images, settings, collecting, source.file_name)
                following = [self.names.next_path(source.stem, settings.seed) for _ in images[1:]]
                yield FilePlan(number, source, video, [first, *following], own_notes)

    @property
    def count(self) -> int:
        """Return the number of images and seeds."""
        return len(self.sources) * len(self.settings)

    def _read(self, source: ImageSource, background: Background) -> tuple[torch.Tensor, Sequence[RunWarning]]:
        if source.is_file and not os.path.isfile(source.image):
            raise ImageError(
                f"there is no image file {display_name(source.image)}; give the path of a PNG, JPEG or WebP image"
            )
        return source.read(background, self.allow_network)

    def failed(self, source: ImageSource, error: SVDStagesError) -> FailedImage:
        """Return the failure of one of several images. Raises the error if there is only one."""
        if len(self.sources) == 1:
            raise error
        return FailedImage(source.name, error)


def animate_files(
    request: FileRequest, run_config: RunConfig, on_plan: Callable[[FilePlan], None] = lambda plan: None
) -> Generator[Report | FailedImage, None, None]:
    """Animate images to files, with the graph of the video in each file whose format has a place for it.

    Yields a report for each image and seed when its files are complete, and a FailedImage for one that failed; the
    others are rendered all the same. The model is loaded once. An animated file makes several videos: the named file,
    then the free ones of name_00002 and so on. Nothing is left behind by what fails. Transparent parts are put on the
    run configuration's background, on grey if it has none. `on_plan` is called before a plan is rendered.

    Raises:
        SettingError: A folder cannot be written, or a setting is out of range.
        CheckpointError, GraphError: A model is missing; a setting is out of range, or memory cannot suffice.
        ImageError, NodeError: The only image is not readable, or a stage failed.
    """
    from ...svd_core.utils.output_files import scratch_folder_beside

    warnings: list[RunWarning] = []
    runtime = replace(run_config, on_note=chain_callbacks(warnings.append, run_config.on_note)).runtime()
    checkpoint = None
    with contextlib.ExitStack() as folders:
        for folder in parents_of(request.paths):
            folders.enter_context(scratch_folder_beside(folder / "video"))
        for plan in request.plan(run_config.runtime()):
            if isinstance(plan, FailedImage):
                yield plan
                continue
            warnings.clear()
            on_plan(plan)
            video = plan.video
            checkpoint = checkpoint or _load(video, runtime)
            naming = replace(runtime, on_note=_naming(plan.source, runtime.on_note))
            try:
                with _StageErrors(video.prompt) as stage:
                    videos = image_to_video(checkpoint, video.images, video.settings, naming, stage)
                    stage("save")
                    files = _save(videos, plan, request.names, naming)
            except NodeError as error:
                if isinstance(error.__cause__, DeviceLostError):
                    raise
                yield request.failed(plan.source, error)
            else:
                yield _report(files, video.prompt, [*plan.notes, *warnings])


def _naming(source: ImageSource, on_note: OnNote) -> OnNote:
    """Return a callback that passes each warning on with the name of the image that it is about."""
    return lambda note: on_note(replace(note, facts={"image": source.name, **note.facts}))


def animate_file(image: Path, output: Path, settings: VideoSettings, run_config: RunConfig) -> Report:
    """Animate one image file, as `animate_files` does. A file at `output` is replaced."""
    (report,) = animate_files(FileRequest.make(str(image), str(output), settings, force=True), run_config)
    assert isinstance(report, Report)  # the failure of the only image is raised
    return report


def _save(videos: list[torch.Tensor], plan: FilePlan, names: OutputNames, runtime: LocalRuntime) -> list[Path]:
    """Write the videos (F, H, W, 3) of a plan. Raises OutputError."""
    from ...svd_core.media.video_io import exact_fps

    files: list[Path] = []
    metadata, fps = graph_metadata(plan.video.prompt, None), exact_fps(float(plan.video.settings.fps))
    for video, path in zip(videos, plan.paths, strict=True):
        saved, warnings = names.save(video, path, fps, metadata)
        forward_warnings(runtime, warnings)
        files += saved
    return files


def _report(files: list[Path], prompt: Prompt, warnings: list[RunWarning]) -> Report:
    entries = [{"filename": path.name, "subfolder": "", "type": "output"} for path in files]
    ui = {node_of_class(prompt, "SaveVideo"): {"images": entries, "animated": (True,)}}
    return Report(files, ui, notes=warnings)


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
