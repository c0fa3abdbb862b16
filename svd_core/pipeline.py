"""Animate images with Stable Video Diffusion: the settings of a video, and the method in one function.

Blattmann et al. 2023, "Stable Video Diffusion" (arXiv:2311.15127). The defaults and the order of the stages are those
of diffusers' `StableVideoDiffusionPipeline`. Importing this module loads no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from .checkpoints.model_metadata import PRESET_NAMES, VideoDefaults
from .errors import SettingError, closest, printable
from .media.video_size import Size, choose_size
from .models.options import CHOICES, ModelOptions
from .utils.size_checks import check_multiple

if TYPE_CHECKING:
    import torch

    from .diffusion.conditioning import Conditioning, MicroConditioning
    from .models.components import Checkpoint
    from .runtime.runtime import Runtime

STAGES = ("resize", "embed", "augment", "encode", "condition", "sample", "decode")
"""The stages of `image_to_video`, in order."""

SAMPLERS = (
    "euler", "heun", "dpmpp_2m", "euler_ancestral", "dpmpp_2m_sde", "dpmpp_sde", "dpmpp_2s_ancestral", "lcm", "ddim",
    "uni_pc", "uni_pc_bh2",
)  # fmt: skip
"""The SOLVERS of svd_core.diffusion, repeated because that module imports torch."""
ODE_SAMPLERS = ("euler", "heun", "dpmpp_2m", "ddim", "uni_pc", "uni_pc_bh2")
"""Those that add no noise: `diffusion.sampling.ODE_SOLVERS`."""
BROWNIAN_SAMPLERS = ("dpmpp_2m_sde", "dpmpp_sde")
"""Those whose noise needs torchsde."""
SCHEDULES = ("karras", "align_your_steps", "exponential", "animate_lcm")
"""The schedules of `diffusion.schedules.make_sigmas`."""

ALL_LEVELS = {"guidance_from": 0.0, "guidance_to": 10000.0}
PRESETS: dict[str, dict[str, Any]] = {
    "reference": {"sampler": "euler", "schedule": "karras", "steps": 25, **ALL_LEVELS},
    "balanced": {"sampler": "dpmpp_2m", "schedule": "align_your_steps", "steps": 10, **ALL_LEVELS},
    "fast": {
        "sampler": "euler", "schedule": "align_your_steps", "steps": 10, "guidance_from": 0.28, "guidance_to": 5.42
    },
}  # fmt: skip
"""Name -> the settings that it gives where none are given. reference is diffusers' pipeline."""

OF_CHECKPOINT = "what the checkpoint was trained for"
OF_PRESET = "that of the preset"
OF_IMAGE = "the image's shape, at the size that the checkpoint was trained for"


def _setting(default: Any, description: str, **metadata: Any) -> Any:
    """Declare a setting.

    `metadata`: kind (type of a value), choices, metavar, flag (None: no option), unset (the meaning of None).
    """
    about = {"description": description, "kind": type(default), "unset": OF_CHECKPOINT, **metadata}
    return field(default=default, metadata=about)


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """Raise SettingError unless the value of a setting is one of the choices."""
    if value not in choices:
        near = closest(str(value), choices)
        hint = f'. Did you mean "{near}"?' if near else ""
        raise SettingError(f"`{name}` must be one of {', '.join(choices)}, got {printable(value, 60)}{hint}")


@dataclass(frozen=True)
class VideoSettings:
    """The settings of a video. None means: what the checkpoint was trained for (decode_mode: exact).

    Without width and height, the size has the shape of the image and the area that the checkpoint was trained for, see
    `media.video_size.choose_size`. With one of them, the other follows from the image.

    The command line's options, the arguments of `animate` and the table in the documentation are made from these
    fields. `model` is the name of the checkpoint, for callers that load it by name.
    """

    model: str = _setting("svd-nano", "name of a checkpoint", metavar="NAME")
    width: int | None = _setting(None, "multiple of 64", kind=int, unset=OF_IMAGE)
    height: int | None = _setting(None, "multiple of 64", kind=int, unset=OF_IMAGE)
    fit: str = _setting("crop", "how the image is fitted to the size", choices=("stretch", "crop", "pad"))
    num_frames: int | None = _setting(None, "number of frames", kind=int, metavar="N", flag="--frames")
    preset: str | None = _setting(
        None,
        "sampler, schedule and steps. reference: euler, karras, 25. balanced: dpmpp_2m, align_your_steps, 10, as near "
        "to the exact solution with svd-nano in 20 network calls, not 50. fast: euler, align_your_steps, 10, guidance "
        "from 0.28 to 5.42: 14 calls, a last frame as near to the truth. Not measured with published weights",
        kind=str,
        choices=PRESET_NAMES,
        unset="reference; animate with svd-nano: fast",
    )
    sampler: str | None = _setting(None, "how a step is made", kind=str, choices=SAMPLERS, unset=OF_PRESET)
    schedule: str | None = _setting(
        None, "how the noise levels are spaced", kind=str, choices=SCHEDULES, unset=OF_PRESET
    )
    steps: int | None = _setting(None, "sampling steps", kind=int, metavar="N", unset=OF_PRESET)
    sigmas: Sequence[float] | str | None = _setting(
        None, "falling noise levels in place of those of the steps, such as 700,15.9,4.2,1,0.2,0", kind=str,
        metavar="LIST", unset="from the steps",
    )  # fmt: skip
    seed: int = _setting(0, "seed of the noise; further images of an animated file use the next seeds", metavar="N")
    fps: int = _setting(7, "frames per second, of the motion and of the file", metavar="N")
    motion_bucket_id: int = _setting(127, "amount of motion, 1 to 1023", metavar="N")
    noise_aug_strength: float = _setting(
        0.02, "standard deviation of the noise added to the image: more motion, less likeness", metavar="X"
    )
    min_guidance: float | None = _setting(None, "guidance weight of the first frame", kind=float, metavar="X")
    max_guidance: float | None = _setting(None, "guidance weight of the last frame", kind=float, metavar="X")
    guidance_from: float | None = _setting(
        None, "noise level above which guidance acts", kind=float, metavar="SIGMA", unset=OF_PRESET
    )
    guidance_to: float | None = _setting(
        None, "largest noise level at which guidance acts", kind=float, metavar="SIGMA", unset=OF_PRESET
    )
    step_cache: int = _setting(
        1,
        "of so many network calls one computes the whole UNet, the others only its first and last blocks, see "
        "SVDStepCache: faster, and another video; 1 is off. With svd-nano and 25 Euler steps 3 adds a tenth to the "
        "error; not measured with published weights",
        metavar="N",
    )
    decode_mode: str | None = _setting(
        "exact", "decode all frames as one clip, or in windows", choices=("exact", "windowed")
    )
    decode_chunk: int = _setting(8, "windowed: frames that a window keeps", metavar="N")
    decode_context: int = _setting(2, "windowed: frames that a window sees on each side of those", metavar="N")
    compile: str = _setting(
        "off", "torch.compile on the UNet: its repeated blocks, or a whole step", choices=CHOICES["compile"]
    )
    noise: str = _setting(
        "diffusers", "which program's starting noise a seed gives", choices=("comfyui", "diffusers"), flag=None
    )

    def with_defaults(self, defaults: VideoDefaults, image_size: Size | None = None) -> VideoSettings:
        """Return the settings with the checkpoint's defaults in place of None.

        Args:
            defaults: What the checkpoint was trained for.
            image_size: Width and height of the image. None: it has the trained shape.

        Raises:
            SettingError: width or height is not a multiple of 64, fps is not an integer, or a name is unknown.
        """
        trained = (defaults.width, defaults.height)
        width, height = choose_size(trained, image_size or trained, self.width, self.height)
        preset = defaults.preset if self.preset is None else self.preset
        check_choice("preset", preset, PRESET_NAMES)
        names = ("num_frames", "min_guidance", "max_guidance")
        values = {**{name: getattr(defaults, name) for name in names}, **PRESETS[preset], "preset": preset}
        unset = {name: value for name, value in values.items() if getattr(self, name) is None}
        settings: Any = replace(self, width=width, height=height, **unset, decode_mode=self.decode_mode or "exact")
        check_choice("sampler", settings.sampler, SAMPLERS)
        check_choice("schedule", settings.schedule, SCHEDULES)
        if not settings.guidance_from < settings.guidance_to:
            raise SettingError(
                f"`guidance_from` must be below `guidance_to`, got {settings.guidance_from} and {settings.guidance_to}"
            )
        if settings.step_cache < 1:
            raise SettingError(f"`step_cache` must be 1 or more, got {settings.step_cache}. 2 and 3 are usual.")
        for name in ("width", "height"):
            check_multiple(name, getattr(settings, name), 64)
        if settings.fps != int(settings.fps):
            raise SettingError(f"`fps` must be an integer, got {settings.fps}. The model was trained on whole numbers.")
        return settings


def image_to_video(
    checkpoint: Checkpoint,
    images: torch.Tensor,
    settings: VideoSettings,
    runtime: Runtime,
    on_stage: Callable[[str], None] = lambda stage: None,
) -> list[torch.Tensor]:
    """Animate images: one video per image.

    Args:
        checkpoint: UNet, VAE and CLIP image encoder, see `checkpoints.load.load_checkpoint`.
        images: (N, H, W, 3) float32 in [0, 1], at any size.
        settings: Sizes, motion, guidance, decoding. Image i uses `settings.seed + i`.
        runtime: Places the components on the device, reports progress and receives warnings.
        on_stage: Called with the name of each stage (see `STAGES`) before it starts.

    Returns:
        N videos (F, height, width, 3), float32 on the CPU, in [0, 1].

    Raises:
        SettingError: A setting is out of range.
        ImageError: The images have the wrong shape, or values outside of [0, 1].
        MemoryBudgetError: A stage does not fit into memory.
        NonFiniteError: NaN or infinity in a result.
    """
    import torch

    from . import execution
    from .diffusion.conditioning import MicroConditioning
    from .diffusion.guidance import GuidanceCurve, GuidanceRefinement
    from .diffusion.noise_augmentation import seed_for_index
    from .diffusion.sampling import SOLVERS
    from .diffusion.schedules import read_sigmas
    from .media.image_ops import resize_images
    from .runtime.runtime import forward_warnings
    from .utils.tensor_checks import check_images

    _, image_height, image_width, _ = check_images(images).shape
    video: Any = settings.with_defaults(checkpoint.model.defaults, (image_width, image_height))  # no field is None
    model = checkpoint.model.with_options(ModelOptions(compile=video.compile)).with_step_cache(video.step_cache)
    with torch.inference_mode():
        on_stage("resize")
        resized, warnings = resize_images(images, video.width, video.height, video.fit)
        forward_warnings(runtime, warnings)
        noise = VideoNoise.from_seed(video.seed, video.noise, resized, video.num_frames)
        micro = MicroConditioning(video.fps, video.motion_bucket_id, video.noise_aug_strength)
        pairs = condition_images(checkpoint, [images], resized, noise, micro, runtime, on_stage)
        on_stage("sample")
        levels = None if video.sigmas is None else read_sigmas(video.sigmas)
        sigmas = execution.model_sigmas(model, video.steps, video.schedule) if levels is None else levels
        refinement = GuidanceRefinement(video.guidance_from, video.guidance_to)
        curve = GuidanceCurve("linear", video.min_guidance, video.max_guidance, refinement)
        start = execution.noisy_latents(model, torch.zeros_like(noise.starting), noise.starting, sigmas[0])
        solver = SOLVERS[video.sampler]
        seeds = [seed_for_index(video.seed, index) for index in range(len(images))]
        latents = execution.sample(runtime, model, pairs, start, curve, sigmas, solver=solver, seeds=seeds)
        on_stage("decode")
        return execution.decode(
            runtime, checkpoint.vae, latents, video.decode_mode, video.decode_chunk, video.decode_context
        )


@dataclass(frozen=True, eq=False)
class VideoNoise:
    """The random numbers of new videos: unit Gaussian, float32.

    Attributes:
        augmentation: (B, H, W, 3), added to the images.
        starting: (N, F, 4, h, w), the latents before the first step. N is a multiple of B: the videos of an image
            follow each other.
    """

    augmentation: torch.Tensor
    starting: torch.Tensor

    @classmethod
    def from_seed(cls, seed: int, kind: str, images: torch.Tensor, frames: int) -> VideoNoise:
        """Draw the noise of one video for each of images (B, H, W, 3). Image i uses `seed + i`.

        Raises:
            SettingError: The seed is out of range, or unknown `kind`, see `diffusion.sampling.starting_noise`.
        """
        from .diffusion.noise_augmentation import draw_augmentation_noise
        from .diffusion.sampling import SCALE, draw_noise

        count, height, width, _ = images.shape
        starting = draw_noise(kind, seed, (count, frames, 4, height // SCALE, width // SCALE))
        return cls(draw_augmentation_noise(seed, images.shape), starting)

    def start(self, sigma: torch.Tensor) -> torch.Tensor:
        """Return the scaled latents (N, F, 4, h, w) of new videos at noise level sigma (), as diffusers scales them."""
        return self.starting * (sigma**2 + 1) ** 0.5


def condition_images(
    checkpoint: Checkpoint,
    images: Sequence[torch.Tensor],
    resized: torch.Tensor,
    noise: VideoNoise,
    micro: MicroConditioning,
    runtime: Runtime,
    on_stage: Callable[[str], None] = lambda stage: None,
) -> list[tuple[Conditioning, Conditioning]]:
    """Embed, augment and encode B images: the (positive, negative) conditioning of each of N videos.

    Args:
        images: For the CLIP image encoder: batches (b, H, W, 3) in [0, 1], each of any size, of B images in all.
        resized: (B, height, width, 3), the same images at the size of the video.
        noise: Of the images and of N videos.
        micro: fps, motion_bucket_id, noise_aug_strength.
        runtime, on_stage: See `image_to_video`.

    Raises:
        ImageError, MemoryBudgetError, NonFiniteError: As `image_to_video`.
    """
    from . import execution
    from .diffusion.conditioning import make_conditioning_pairs

    on_stage("embed")
    embeds = execution.embed(runtime, checkpoint.clip_vision, images, "reference").image_embeds
    on_stage("augment")
    augmented = resized + micro.noise_aug_strength / 2 * noise.augmentation
    on_stage("encode")
    image_latents = execution.encode(runtime, checkpoint.vae, augmented)
    on_stage("condition")
    copies = len(noise.starting) // len(resized)
    return make_conditioning_pairs(
        embeds.repeat_interleave(copies, 0), image_latents.repeat_interleave(copies, 0), micro
    )
