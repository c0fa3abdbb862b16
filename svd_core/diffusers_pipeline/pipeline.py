"""StableVideoDiffusionPipeline: the arguments, shapes and defaults of diffusers' class, computed by this package."""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import AutoencoderKLTemporalDecoder, EulerDiscreteScheduler, UNetSpatioTemporalConditionModel
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from diffusers.video_processor import VideoProcessor
from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

from .. import execution
from ..checkpoints.model_metadata import VideoDefaults
from ..diffusion.conditioning import MicroConditioning
from ..diffusion.guidance import SHAPES, GuidanceCurve
from ..diffusion.noise_augmentation import seed_for_index
from ..diffusion.sampling import SOLVERS, SamplerStep, Solver
from ..diffusion.schedules import SIGMA_MAX, SIGMA_MIN, check_sigmas
from ..errors import SettingError
from ..media.image_ops import resize_images
from ..media.video_size import choose_size, is_far
from ..models.components import Checkpoint, SVDModel, SVDVae
from ..models.options import ModelOptions
from ..pipeline import BROWNIAN_SAMPLERS, SAMPLERS, SCHEDULES, VideoNoise, condition_images
from ..runtime.runtime import LocalRuntime
from ..utils.optional_deps import require_extra
from .arguments import (
    COMPONENT_NAMES,
    HUB_ARGUMENTS,
    Generators,
    check_choice,
    check_integer,
    check_loading,
    check_number,
    choose_generator,
    plan_decoding,
    refuse_unknown,
    requested_dtype,
)
from .inputs import read_images
from .loading import Components, check_scheduler, find_checkpoint, load_file, load_pretrained
from .outputs import OUTPUT_TYPES, as_output
from .scheduler_solver import SchedulerSolver
from .stage_methods import StageMethods

logger = logging.getLogger(__name__)

CALLBACK_TENSORS = ["latents"]


@dataclass
class StableVideoDiffusionPipelineOutput(BaseOutput):
    """The result of a call: `frames`, see `StableVideoDiffusionPipeline.__call__`."""

    frames: Any


def _check_names(
    unknown: dict[str, Any],
    sampler: str | None,
    schedule: str | None,
    output_type: str,
    callback_tensors: Sequence[str],
) -> None:
    """Raise TypeError for an unknown argument of a call, SettingError for an unknown value of the others.

    Raise MissingExtraError if the package of a sampler is not installed.
    """
    refuse_unknown("the pipeline", unknown, inspect.signature(StableVideoDiffusionPipeline.__call__).parameters)
    if sampler is not None:
        check_choice("sampler", sampler, SAMPLERS)
    if sampler in BROWNIAN_SAMPLERS:
        require_extra("torchsde", "sde")
    if schedule is not None:
        check_choice("schedule", schedule, SCHEDULES)
    check_choice("output_type", output_type, OUTPUT_TYPES)
    for name in callback_tensors:
        check_choice("callback_on_step_end_tensor_inputs", name, CALLBACK_TENSORS)


def _step_seeds(solver: Solver | SchedulerSolver, seed: int | None, generator: Generators, videos: int) -> list[int]:
    """Return a seed for the noise that a solver adds to each video. Only if it adds some a generator is asked."""
    if seed is not None or not solver.adds_noise:
        return [seed_for_index(seed or 0, video) for video in range(videos)]
    if isinstance(generator, list):
        return [_draw_seed(each) for each in generator]
    first = _draw_seed(generator)
    return [first + video for video in range(videos)]


def _draw_seed(generator: torch.Generator | None) -> int:
    device = None if generator is None else generator.device
    return int(torch.randint(2**62, (), generator=generator, device=device))


def _levels(model: SVDModel, steps: int, schedule: str, sigmas: Sequence[float] | None) -> torch.Tensor:
    """Return the noise levels of a call, (steps + 1,) float32. Raises SettingError if they do not fall."""
    if sigmas is None:
        return execution.model_sigmas(model, steps, schedule)
    return check_sigmas(torch.tensor([check_number("sigmas", sigma, 80.0) for sigma in sigmas], dtype=torch.float32))


def _curve(shape: str, lowest: float, largest: float) -> GuidanceCurve:
    """Return the guidance of a call: none if `largest` is 1 or below, as in diffusers."""
    check_choice("guidance_shape", shape, SHAPES)
    lowest = check_number("min_guidance_scale", lowest, 1.0)
    largest = check_number("max_guidance_scale", largest, 3.0)
    return GuidanceCurve(shape, lowest, largest) if largest > 1 else GuidanceCurve("constant", 1.0, 1.0)


def _micro(fps: float, motion_bucket_id: float, noise_aug_strength: float) -> MicroConditioning:
    """Return the micro-conditioning of a call. Raises TypeError for a value that is not a number."""
    return MicroConditioning(
        check_number("fps", fps, 7),
        check_number("motion_bucket_id", motion_bucket_id, 127),
        check_number("noise_aug_strength", noise_aug_strength, 0.02),
    )


def _resize(images: Sequence[torch.Tensor], width: int, height: int, checkpoint: Checkpoint) -> torch.Tensor:
    """Stretch images to (B, height, width, 3). Log if that is visible, and if the model was trained for another area.

    Raises:
        SettingError: A side is not a multiple of the pixels of a latent pixel.
    """
    width, height = check_integer("width", width, 1024), check_integer("height", height, 576)
    scale = checkpoint.vae.scale
    resized, warnings = zip(*(resize_images(each, width, height, "stretch", scale) for each in images), strict=True)
    if any(warnings):
        logger.warning("the image is stretched visibly to %dx%d. Crop it to that shape first.", width, height)
    trained = (checkpoint.model.defaults.width, checkpoint.model.defaults.height)
    if is_far(trained, (width, height)):
        image_height, image_width = images[0].shape[1:3]
        logger.warning(
            "the model was trained for videos of the area of %dx%d, not %dx%d. Set height=%d, width=%d.",
            *(*trained, width, height, *reversed(choose_size(trained, (image_width, image_height)))),
        )
    return torch.cat(resized)


class StableVideoDiffusionPipeline(StageMethods):
    """Animate images. The interface of diffusers' class of this name; this package computes.

    Loaded once, it serves many calls. What is not described here, such as `components` and `set_progress_bar_config`,
    is that of diffusers' base class. `video_processor` and `vae_scale_factor` are for code that uses them.

    Differences from diffusers: several videos are sampled one after the other, so each equals its single run, and a
    callback sees the latents (1, F, 4, h, w) of one; `decode_chunk_size` never mixes two videos; with
    `num_videos_per_prompt` the videos of an image follow each other; sampling computes in float32 between network
    calls, also with float16 weights.

    The arguments of a call, its result and its errors:

    Args:
        image: A PIL image, a tensor (B, 3, H, W) in [0, 1], an array (H, W, 3), or a list of those.
        height: Pixels, a multiple of 8. None: the UNet's `sample_size`, as in diffusers.
        width: Pixels, likewise.
        num_frames: None: what the UNet was trained for.
        num_inference_steps: Sampling steps.
        sigmas: Noise levels in place of those of the steps, falling, as a rule to 0.
        min_guidance_scale: Guidance weight of the first frame.
        max_guidance_scale: Guidance weight of the last frame. Without guidance if it is 1 or below.
        fps: Frames per second of the motion, 1 or more.
        motion_bucket_id: Amount of motion.
        noise_aug_strength: Standard deviation of the noise added to the image in [-1, 1].
        decode_chunk_size: Frames that are decoded at a time. None: see `decode`.
        num_videos_per_prompt: Videos of each image.
        generator: The source of all noise; a list has one for each video. None: `seed`, or torch's own.
        latents: Unit Gaussian starting noise (videos, F, 4, h, w) in place of the generator's.
        output_type: pil, np, pt or latent.
        callback_on_step_end: Called with (pipeline, step, timestep, {"latents": (1, F, 4, h, w) scaled}). The
            "latents" in its result replace them.
        callback_on_step_end_tensor_inputs: ["latents"].
        return_dict: False: return the frames themselves.
        seed: In place of `generator`: the seed of one on the CPU.
        sampler: How a step is made, see `diffusion.sampling.SOLVERS`. None: euler. Noise that it adds in steps has
            `seed`, or one drawn from the generator after all other noise.
        schedule: karras, align_your_steps, exponential or animate_lcm: how the noise levels are spaced. None: karras.
        guidance_shape: linear, triangle or constant, see `GuidanceCurve`.
        decode: exact: all frames as one clip, with no more memory than chunks. windowed: in chunks, by default of
            `CHUNK_SIZE`. None: windowed if a size or a context is given, else exact.
        decode_context: Frames that a chunk sees on each side of it.
        memory: auto, resident, offload or stream, see `ModelOptions`. None: what `enable_model_cpu_offload` and
            `enable_sequential_cpu_offload` set, else auto.
        compile: off, regional or full, see `ModelOptions`.
        vram: Size of the device's memory to use, in bytes or as "6G". None: all that is free.

    Returns:
        `frames`, for B * num_videos_per_prompt videos. pil: lists of images; np: (videos, F, H, W, 3); pt: (videos,
        F, 3, H, W) in [0, 1]; latent: scaled latents (videos, F, 4, h, w). The last two are on the computing device.

    Raises:
        SettingError: A setting is out of range.
        TypeError: A setting is of the wrong type, or has another name.
        ImageError: The image is not usable.
        MemoryBudgetError: A stage does not fit into memory.
        NonFiniteError: NaN or infinity in a result.
    """

    model_cpu_offload_seq = "image_encoder->unet->vae"
    _callback_tensor_inputs = CALLBACK_TENSORS

    def __init__(
        self,
        vae: AutoencoderKLTemporalDecoder,
        image_encoder: CLIPVisionModelWithProjection,
        unet: UNetSpatioTemporalConditionModel,
        scheduler: EulerDiscreteScheduler,
        feature_extractor: CLIPImageProcessor,
    ) -> None:
        """Combine components: diffusers' VAE, UNet and scheduler, transformers' CLIP image encoder and processor.

        Raises:
            SettingError: The scheduler is not SVD's.
        """
        super().__init__()
        check_scheduler(scheduler)
        self.register_modules(
            vae=vae,
            image_encoder=image_encoder,
            unet=unet,
            scheduler=scheduler,
            feature_extractor=feature_extractor,
        )
        self.vae_scale_factor = 8 if vae is None else SVDVae(vae).scale
        self.video_processor = VideoProcessor(do_resize=True, vae_scale_factor=self.vae_scale_factor)
        self._memory = "auto"

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **arguments: Any) -> Any:
        """Load a diffusers folder, a checkpoint of the models folders, or download a folder from the hub.

        The folder is read with the limits and checks of `load_checkpoint`: only .safetensors, only known settings.

        Args:
            pretrained_model_name_or_path: A folder with model_index.json; "svd-nano", or another name that
                `animate(model=...)` takes; or a name of the hub.
            arguments: `torch_dtype` or `dtype`: float32 (default), float16, bfloat16, or a dict by component.
                `variant`: "fp16". `device_map`: a device to move to. `unet=`, `scheduler=`...: a component to use in
                place of the folder's. `revision`, `token`, `cache_dir`, `local_files_only`, `force_download`: for the
                hub.

        Raises:
            CheckpointError: The folder is missing, damaged, incomplete or of another model.
            SettingError: An argument is not supported, such as custom_pipeline or use_safetensors=False.
            TypeError: An argument is unknown.
        """
        check_loading("from_pretrained", arguments, more=(*HUB_ARGUMENTS, "variant"))
        variant, dtype = arguments.get("variant"), requested_dtype(arguments)
        path = find_checkpoint(pretrained_model_name_or_path, variant, arguments)
        pipeline = cls._from_components(load_pretrained(path, dtype, variant), arguments)
        pipeline.register_to_config(_name_or_path=str(pretrained_model_name_or_path))
        return pipeline

    @classmethod
    def from_single_file(cls, pretrained_model_link_or_path: str | Path, **arguments: Any) -> Any:
        """Load a single .safetensors file in Stability's layout, by path or by a name of the models folders.

        Arguments and errors as in `from_pretrained`.
        """
        check_loading("from_single_file", arguments, local=True)
        dtype = requested_dtype(arguments)
        return cls._from_components(load_file(pretrained_model_link_or_path, dtype), arguments)

    @classmethod
    def _from_components(cls, components: Components, arguments: dict[str, Any]) -> Any:
        given = {name: arguments[name] for name in COMPONENT_NAMES if arguments.get(name) is not None}
        pipeline = cls(**components._replace(**given)._asdict())
        return pipeline if arguments.get("device_map") is None else pipeline.to(arguments["device_map"])

    def save_pretrained(self, save_directory: str | Path, safe_serialization: bool = True, **arguments: Any) -> None:
        """Save as diffusers does, always as .safetensors. Stock diffusers loads the folder."""
        if not safe_serialization:
            logger.warning("save_pretrained saves .safetensors: safe_serialization=False would write pickles")
        if isinstance(self.feature_extractor, CLIPImageProcessor):  # the class of transformers 5 has other names
            self.register_to_config(feature_extractor=("transformers", "CLIPImageProcessor"))
        super().save_pretrained(save_directory, safe_serialization=True, **arguments)

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """Move or convert the components as diffusers does. A device ends offloading."""
        if kwargs.get("device") is not None or any(isinstance(each, (str, int, torch.device)) for each in args):
            self._offload_to, self._memory = None, "auto"
        return super().to(*args, **kwargs)

    def enable_model_cpu_offload(self, gpu_id: int | None = None, device: torch.device | str | None = None) -> None:
        """Keep each component on the CPU, and on the device only while it computes.

        Without an accelerator it does nothing and warns, where diffusers raises.
        """
        self._enable_offload("offload", gpu_id, device)

    def enable_sequential_cpu_offload(
        self, gpu_id: int | None = None, device: torch.device | str | None = None
    ) -> None:
        """As `enable_model_cpu_offload`, and stream the UNet's weights to the device block by block: least memory."""
        self._enable_offload("stream", gpu_id, device)

    def _enable_offload(self, memory: str, gpu_id: int | None, device: torch.device | str | None) -> None:
        target = LocalRuntime(device_name=str(device or "auto")).device()
        if target.type == "cpu":
            logger.warning("there is no accelerator to offload from; everything runs on the CPU")
            return
        if gpu_id is not None and target.index not in (None, gpu_id):
            raise SettingError(f"gpu_id={gpu_id} and device={target} name two devices; leave gpu_id out")
        self.to("cpu", silence_dtype_warnings=True)
        self._offload_to = target if gpu_id is None else torch.device(target.type, gpu_id)
        self._memory = memory

    @property
    def guidance_scale(self) -> torch.Tensor:
        """Guidance weights of the last call, (videos, F, 1, 1, 1)."""
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """True if the last call used guidance."""
        return bool(torch.as_tensor(self._guidance_scale).max() > 1)  # a subclass may set one number

    @property
    def num_timesteps(self) -> int:
        """Sampling steps of the last call."""
        return self._num_timesteps

    @torch.no_grad()
    def __call__(
        self,
        image: Any,
        height: int | None = 576,
        width: int | None = 1024,
        num_frames: int | None = None,
        num_inference_steps: int = 25,
        sigmas: Sequence[float] | None = None,
        min_guidance_scale: float = 1.0,
        max_guidance_scale: float = 3.0,
        fps: int = 7,
        motion_bucket_id: int = 127,
        noise_aug_strength: float = 0.02,
        decode_chunk_size: int | None = None,
        num_videos_per_prompt: int = 1,
        generator: Generators = None,
        latents: torch.Tensor | None = None,
        output_type: str = "pil",
        callback_on_step_end: Callable[[Any, int, torch.Tensor, dict[str, Any]], dict[str, Any]] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        return_dict: bool = True,
        *,
        seed: int | None = None,
        sampler: str | None = None,
        schedule: str | None = None,
        guidance_shape: str = "linear",
        decode: str | None = None,
        decode_context: int = 0,
        memory: str | None = None,
        compile: str = "off",
        vram: int | str | None = None,
        **unknown: Any,
    ) -> Any:
        """Animate images. The arguments, the result and the errors are described at the class."""
        _check_names(unknown, sampler, schedule, output_type, callback_on_step_end_tensor_inputs)
        checkpoint, runtime = self._checkpoint(memory, compile), self._runtime(vram)
        model = checkpoint.model
        frames = check_integer("num_frames", model.defaults.num_frames if num_frames is None else num_frames, 14)
        mode, chunk_size = plan_decoding(decode, decode_chunk_size, decode_context, frames)
        solver, levels = self._solver(model, sampler, schedule, num_inference_steps, sigmas)
        self._num_timesteps = len(levels) - 1
        curve = _curve(guidance_shape, min_guidance_scale, max_guidance_scale)
        micro = _micro(fps, motion_bucket_id, noise_aug_strength)
        images = read_images(image)
        videos = len(images) * check_integer("num_videos_per_prompt", num_videos_per_prompt, 1)
        generator = choose_generator(generator, seed, videos)
        self._guidance_scale = curve.weights(frames).view(1, -1, 1, 1, 1).repeat(videos, 1, 1, 1, 1)
        resized = _resize(images, width or model.defaults.width, height or model.defaults.height, checkpoint)
        noise = self._draw_noise(resized, (videos, frames), checkpoint.vae.scale, generator, latents)
        pairs = condition_images(checkpoint, images, resized, noise, micro, runtime)
        with cast(Any, self.progress_bar)(total=self._num_timesteps * videos) as bar:
            on_step = self._step_callback(bar.update, callback_on_step_end)
            start, seeds = noise.start(levels[0]), _step_seeds(solver, seed, generator, videos)
            sampled = execution.sample(runtime, model, pairs, start, curve, levels, on_step, solver, seeds)
        if output_type == "latent":
            result: Any = (sampled * model.scaling_factor).to(self._execution_device, self.unet.dtype)
        else:
            clips = execution.decode(runtime, checkpoint.vae, sampled, mode, chunk_size, decode_context)
            result = as_output(clips, output_type, self._execution_device)
        return StableVideoDiffusionPipelineOutput(frames=result) if return_dict else result

    def _checkpoint(self, memory: str | None, compile: str) -> Checkpoint:
        """Return the components as this package's. They are read anew at each call, because users replace them."""
        config, scheduler, vae = self.unet.config, self.scheduler.config, SVDVae(self.vae)
        size = vae.scale * (config.sample_size or 96)  # 96 in the published unet/config.json
        model = SVDModel(
            self.unet,
            self.vae.config.scaling_factor,
            scheduler.get("sigma_min") or SIGMA_MIN,
            scheduler.get("sigma_max") or SIGMA_MAX,
            VideoDefaults(config.num_frames, width=size, height=size),
            options=ModelOptions(memory=memory or self._memory, compile=compile),
            identity=self.unet,
        )
        return Checkpoint(model, self._clip_vision, vae)

    def _solver(
        self,
        model: SVDModel,
        sampler: str | None,
        schedule: str | None,
        steps: int,
        sigmas: Sequence[float] | None,
    ) -> tuple[Solver | SchedulerSolver, torch.Tensor]:
        """Return the solver and the noise levels of a call: this package's, or those of a scheduler that was assigned.

        Raises:
            SettingError: Noise levels do not fall, the scheduler does not fit SVD, or the call names what it chooses.
        """
        steps = check_integer("num_inference_steps", steps, 25)
        if isinstance(self.scheduler, EulerDiscreteScheduler):
            check_scheduler(self.scheduler)
            return SOLVERS[sampler or "euler"], _levels(model, steps, schedule or "karras", sigmas)
        if (sampler, schedule, sigmas) != (None, None, None):
            raise SettingError(
                f"the pipeline samples with its {type(self.scheduler).__name__}: leave out sampler, schedule and "
                "sigmas, or set the scheduler of the checkpoint again",
                code="pipeline.scheduler",
            )
        solver = SchedulerSolver(self.scheduler, steps)
        return solver, solver.sigmas

    def _draw_noise(
        self,
        images: torch.Tensor,
        videos_and_frames: tuple[int, int],
        scale: int,
        generator: Generators,
        latents: torch.Tensor | None,
    ) -> VideoNoise:
        """Draw all noise in diffusers' order: first that of images (B, H, W, 3), then that of the videos.

        Raises:
            SettingError: `latents` has another shape.
        """
        count, height, width, _ = images.shape
        shape = (*videos_and_frames, 4, height // scale, width // scale)
        augmentation = self._randn((count, 3, height, width), generator, torch.float32).movedim(1, -1)
        if latents is None:
            latents = self._randn(shape, generator, self.image_encoder.dtype)
        elif tuple(getattr(latents, "shape", ())) != shape:
            got = tuple(latents.shape) if isinstance(latents, torch.Tensor) else type(latents).__name__
            raise SettingError(f"latents must be a tensor {shape}, got {got}. Leave them out to draw them.")
        return VideoNoise(augmentation, latents.detach().float().cpu())

    def _randn(self, shape: tuple[int, ...], generator: Generators, dtype: torch.dtype) -> torch.Tensor:
        """Draw noise as diffusers does, in the order of its calls: float32 on the CPU."""
        return randn_tensor(shape, generator=generator, device=self._execution_device, dtype=dtype).float().cpu()

    def _step_callback(self, advance: Callable[[int], Any], callback: Any) -> execution.OnStep:
        """Return the callback of `execution.sample` that moves the progress bar and calls the user's."""

        def on_step(video: int, step: SamplerStep) -> torch.Tensor | None:
            advance(1)
            if callback is None:
                return None
            timestep = torch.tensor(0.25 * math.log(step.sigma))
            changed = callback(self, step.done - 1, timestep, {"latents": step.x})
            if not isinstance(changed, dict):
                raise TypeError(f"callback_on_step_end must return a dict, got {type(changed).__name__}; return {{}}")
            return changed["latents"].to(step.x) if "latents" in changed else None

        return on_step
