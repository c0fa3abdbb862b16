"""Conversion of LATENT, CONDITIONING, CLIP_VISION_OUTPUT, IMAGE and SVD_* values to those of svd_core.

Values are never changed in place: ComfyUI caches them and passes them to other nodes.

A LATENT of this package has the key "svd": {"frames": F}. Its samples are videos of F frames each, in order. The key
is used only if F divides the number of samples; otherwise all samples are one clip.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from ..svd_core.errors import ImageError, SettingError
from ..svd_core.models.components import Checkpoint, SVDClipVision, SVDModel, SVDVae
from ..svd_core.utils.nan_checks import check_input
from .backend import get_backend

if TYPE_CHECKING:
    import torch

    from ..svd_core.autoencoder.encode import ImageEmbedding
    from ..svd_core.diffusion.conditioning import Conditioning, MicroConditioning
    from ..svd_core.diffusion.guidance import GuidanceCurve, GuidanceRefinement
    from ..svd_core.models.components import ClipVision, Vae

Part = TypeVar("Part")


class ClipVisionOutput:
    """A CLIP_VISION_OUTPUT. As in ComfyUI its values can be read as attributes and as items.

    Attributes:
        image_embeds: (B, D) float32 on the CPU.
        last_hidden_state: (B, tokens, width) float32 on the CPU.
        penultimate_hidden_states: (B, tokens, width) float32 on the CPU.
        image_sizes: [(3, H, W)] of each image, as in newer versions of ComfyUI.
        mm_projected: None.
    """

    def __init__(self, embedding: ImageEmbedding, image_size: int):
        self.image_embeds = embedding.image_embeds
        self.last_hidden_state = embedding.last_hidden_state
        self.penultimate_hidden_states = embedding.penultimate_hidden_states
        self.image_sizes = [(3, image_size, image_size)] * embedding.image_embeds.shape[0]
        self.mm_projected = None

    def __getitem__(self, name: str) -> Any:
        return getattr(self, name)


@dataclass(frozen=True, eq=False)
class LatentVideos:
    """A LATENT as videos.

    Attributes:
        clips: (N, F, 4, h, w) float32 unscaled latents on the CPU.
        batch_index: Core's frame numbers of the samples, or None.
    """

    clips: torch.Tensor
    batch_index: list[int] | None


def require_part(part: Part | None, value: Any, socket: str) -> Part:
    """Return `part`. If it is None, raise SettingError with the type of the `value` it was read from."""
    if part is None:
        raise SettingError(
            f"the {socket} input takes an output of SVDCheckpointLoader, got {type(value).__name__}. Connect the "
            f"loader's {socket}."
        )
    return part


def vae(value: Any) -> Vae:
    """Read a "SVD_VAE,VAE" socket. Raises SettingError for a value of another type."""
    return require_part(value if isinstance(value, SVDVae) else get_backend().wrap_vae(value), value, "vae")


def clip_vision(value: Any) -> ClipVision:
    """Read a "SVD_CLIP_VISION,CLIP_VISION" socket. Raises SettingError for a value of another type."""
    part = value if isinstance(value, SVDClipVision) else get_backend().wrap_clip_vision(value)
    return require_part(part, value, "clip_vision")


def svd_model(value: Any) -> SVDModel:
    """Read an SVD_MODEL socket. Raises SettingError for a value of another type."""
    return require_part(value if isinstance(value, SVDModel) else None, value, "model")


def checkpoint(model: Any, clip_vision: Any, vae: Any) -> Checkpoint:
    """Join the values of three SVD_* sockets. Raises SettingError for a value of another type."""
    return Checkpoint(
        svd_model(model),
        require_part(clip_vision if isinstance(clip_vision, SVDClipVision) else None, clip_vision, "clip_vision"),
        require_part(vae if isinstance(vae, SVDVae) else None, vae, "vae"),
    )


def guidance_curve(
    override: GuidanceCurve | GuidanceRefinement | None, min_guidance: float, max_guidance: float
) -> GuidanceCurve:
    """Return the connected curve, else a linear one from min_guidance to max_guidance, refined if that is connected."""
    from ..svd_core.diffusion.guidance import UNREFINED, GuidanceCurve

    if isinstance(override, GuidanceCurve):
        return override
    return GuidanceCurve("linear", min_guidance, max_guidance, override or UNREFINED)


def read_tensor(value: Any, name: str, error: type[SettingError] | type[ImageError] = SettingError) -> torch.Tensor:
    """Return `value` as a float32 CPU tensor. Raises `error`, which calls it `name`, if it is not a dense float one."""
    from ..svd_core.utils.tensor_checks import as_float32

    return as_float32(value, name, error)


def images(value: Any) -> torch.Tensor:
    """Read an IMAGE that is resized or saved: (B, H, W, C) float32 on the CPU, any size and any values.

    Images to animate must also pass `svd_core.utils.tensor_checks.check_images`.

    Raises:
        ImageError: `value` is not an image batch.
    """
    tensor = read_tensor(value, "an image", ImageError)
    if tensor.ndim != 4 or 0 in tensor.shape:
        raise ImageError(f"an image must have the shape (batch, height, width, channels), got {tuple(tensor.shape)}")
    return tensor


def samples(latent: Any) -> torch.Tensor:
    """Return the samples of a LATENT unchanged. Raises SettingError if it is not a LATENT."""
    if not isinstance(latent, dict) or "samples" not in latent:
        raise SettingError(
            f'a latent must be a dict with the key "samples", got {type(latent).__name__}. Connect a LATENT output.'
        )
    read_tensor(latent["samples"], "a latent's samples")
    if not latent["samples"].ndim:
        raise SettingError("a latent's samples must be a batch, got a single number. Connect a LATENT output.")
    return latent["samples"]


def read_latent(latent: dict[str, Any]) -> LatentVideos:
    """Read a LATENT. Values may be in the thousands, if it still has noise.

    Raises:
        SettingError: Its shape is not that of SVD's latents.
        NonFiniteError: It holds NaN or Inf.
    """
    frames = read_tensor(samples(latent), "a latent's samples")
    if frames.ndim != 4 or frames.shape[1] != 4 or 0 in frames.shape:
        raise SettingError(
            f"a latent for SVD must have the shape (frames, 4, height/8, width/8), got {tuple(frames.shape)}. Latents "
            f"of other video models cannot be used."
        )
    check_input(frames, "the latent")
    clips = frames.reshape(-1, frames_per_clip(latent), *frames.shape[1:])
    return LatentVideos(clips, latent.get("batch_index"))


def frames_per_clip(latent: dict[str, Any]) -> int:
    """Return F of a LATENT: its "svd" key if that divides the number of samples, else the number of samples."""
    count = samples(latent).shape[0]
    key = latent.get("svd")
    frames = key.get("frames") if isinstance(key, dict) else None
    return frames if isinstance(frames, int) and frames > 0 and count % frames == 0 else count


def write_latent(clips: torch.Tensor, like: dict[str, Any] | None = None) -> dict[str, Any]:
    """Make a LATENT of clips (N, F, 4, h, w) unscaled latents. Other keys are copied from `like`."""
    frames = clips.shape[1]
    return {**(like or {}), "samples": clips.flatten(0, 1).float().cpu(), "svd": {"frames": frames}}


def with_samples(latent: dict[str, Any], frames: torch.Tensor) -> dict[str, Any]:
    """Return the LATENT with other samples. If their number differs, the "svd" key is dropped: one clip, as in core."""
    kept = latent if len(frames) == len(latent["samples"]) else {k: v for k, v in latent.items() if k != "svd"}
    return {**kept, "samples": frames}


def read_embeds(output: Any) -> torch.Tensor:
    """Return the embeddings (B, D) of a CLIP_VISION_OUTPUT, float32 on the CPU.

    Raises:
        SettingError: `output` is of another type or shape.
        NonFiniteError: It holds NaN or Inf.
    """
    if getattr(output, "image_embeds", None) is None:
        raise SettingError(
            f"a CLIP embedding must come from SVDCLIPVisionEncode or CLIPVisionEncode, got {type(output).__name__}"
        )
    embeds = read_tensor(output.image_embeds, "a CLIP embedding")
    if embeds.ndim != 2 or 0 in embeds.shape:
        raise SettingError(
            f"a CLIP embedding must have the shape (images, width), got {tuple(embeds.shape)}. Check the node that "
            f"made it.",
            code="embedding",
        )
    check_input(embeds, "the CLIP embedding", "numbers.embedding")
    return embeds


def write_conditioning(embeds: torch.Tensor, image_latents: torch.Tensor, micro: MicroConditioning) -> list[list[Any]]:
    """Make a CONDITIONING of N videos: embeds (N, 1, D), image latents (N, 4, h, w) unscaled, the user's fps."""
    return [[embeds, {"concat_latent_image": image_latents, **_micro_keys(micro)}]]


def with_micro(conditioning: list[list[Any]], micro: MicroConditioning) -> list[list[Any]]:
    """Return a copy of the CONDITIONING with other micro-conditioning in every entry."""
    check_conditioning(conditioning)
    return [[embeds, {**keys, **_micro_keys(micro)}] for embeds, keys in conditioning]


def read_conditioning(conditioning: list[list[Any]], videos: int, side: str) -> list[Conditioning]:
    """Read the conditioning of each video. Missing keys get core's defaults: fps 6, bucket 127, strength 0.

    Raises:
        SettingError: It is not a CONDITIONING, has several entries or no image, or the numbers of embeddings and image
            latents do not match `videos`. `side` is its name in messages.
        NonFiniteError: It holds NaN or Inf.
    """
    from ..svd_core.diffusion.conditioning import Conditioning, MicroConditioning

    check_conditioning(conditioning, side)
    if len(conditioning) != 1:
        raise SettingError(
            f"a model of SVD Stages takes one conditioning entry, got {len(conditioning)} in the {side} conditioning. "
            f"For combined or scheduled conditioning run the graph in ComfyUI with a MODEL of its "
            f"ImageOnlyCheckpointLoader."
        )
    embeds, keys = conditioning[0]
    if embeds is None or keys.get("concat_latent_image") is None:
        raise SettingError(
            f"the {side} conditioning has no image (no embedding or no concat_latent_image). Make it with "
            f"SVDImageConditioning or core's SVD_img2vid_Conditioning."
        )
    embeds = _conditioning_tensor(embeds, 3, f"the {side} conditioning's embedding")
    image_latents = _conditioning_tensor(keys["concat_latent_image"], 4, f"the {side} conditioning's image latent")
    micro = MicroConditioning(
        fps=keys.get("fps", 6),
        motion_bucket_id=keys.get("motion_bucket_id", 127),
        noise_aug_strength=keys.get("augmentation_level", 0.0),
    )
    pairs = _split_by_video(embeds, image_latents, videos, side)
    return [Conditioning(embed, image_latent, micro) for embed, image_latent in pairs]


def check_conditioning(conditioning: Any, side: str = "given") -> None:
    """Raise SettingError unless it is a list of [embedding, dict of keys]."""

    def is_entry(entry: Any) -> bool:
        return isinstance(entry, (list, tuple)) and len(entry) == 2 and isinstance(entry[1], dict)

    if not isinstance(conditioning, (list, tuple)) or not all(map(is_entry, conditioning)):
        raise SettingError(
            f"the {side} conditioning must be a list of [embedding, keys], got {type(conditioning).__name__}. "
            f"Connect a CONDITIONING output."
        )


def _conditioning_tensor(value: Any, ndim: int, name: str) -> torch.Tensor:
    tensor = read_tensor(value, name)
    if tensor.ndim != ndim or 0 in tensor.shape:
        shape = "(images, tokens, width)" if ndim == 3 else "(images, 4, height/8, width/8)"
        raise SettingError(
            f"{name} must have the shape {shape}, got {tuple(tensor.shape)}. Connect an output of SVDImageConditioning."
        )
    check_input(tensor, name, "numbers.conditioning")
    return tensor


def split_conditioning(conditioning: list[list[Any]], videos: int, side: str) -> list[list[list[Any]]]:
    """Split a CONDITIONING into those of `videos` videos. That of one video is returned unchanged, whatever it holds.

    Raises:
        SettingError: The numbers of embeddings or image latents do not match, or several videos have several entries.
    """
    if videos == 1:
        return [conditioning]
    if len(conditioning) != 1 or conditioning[0][1].get("concat_latent_image") is None:
        raise SettingError(
            f"the latent holds {videos} videos, so the {side} conditioning must be one entry of SVDImageConditioning "
            f"for as many images. Sample the videos one by one."
        )
    embeds, keys = conditioning[0]
    pairs = _split_by_video(embeds, keys["concat_latent_image"], videos, side)
    return [[[embed, {**keys, "concat_latent_image": image_latent}]] for embed, image_latent in pairs]


def _split_by_video(
    embeds: torch.Tensor, image_latents: torch.Tensor, videos: int, side: str
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return (embeds, image latents) of each video. One video gets all image latents: one, or one per frame."""
    if embeds.shape[0] == 1 and videos == 1:
        return [(embeds, image_latents)]
    if embeds.shape[0] == image_latents.shape[0] == videos:
        return list(zip(embeds.split(1), image_latents.split(1), strict=True))
    raise SettingError(
        f"the {side} conditioning has {embeds.shape[0]} embeddings and {image_latents.shape[0]} image latents, and the "
        f"latent holds {videos} videos. The three numbers must be equal."
    )


def _micro_keys(micro: MicroConditioning) -> dict[str, float]:
    return {
        "fps": micro.fps,
        "motion_bucket_id": micro.motion_bucket_id,
        "augmentation_level": micro.noise_aug_strength,
    }
