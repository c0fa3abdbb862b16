"""What travels on the wires: LATENT, CONDITIONING, CLIP_VISION_OUTPUT, SVD_* <-> the core's values.

Nothing that arrives is changed in place: ComfyUI caches it and gives it to others.

Our namespaced key `"svd"`
    in a LATENT        {"frames": F}: the samples are videos of F frames, one after the other. Believed only when F
                       divides the number of samples; else the batch is one clip.
    in a CONDITIONING  unused so far; readers ignore what they do not know.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from ..svd_core.errors import ImageError, SettingError
from . import backend

if TYPE_CHECKING:
    import torch

    from ..svd_core.autoencoder.encode import ImageEmbedding
    from ..svd_core.diffusion.conditioning import Conditioning, MicroConditioning
    from ..svd_core.diffusion.guidance import GuidanceCurve
    from ..svd_core.models.components import Checkpoint, ClipVision, SVDModel, Vae

Part = TypeVar("Part")


class ClipVisionOutput:
    """ComfyUI's CLIP_VISION_OUTPUT: the same values by attribute and by item.

    image_embeds (B, D), last_hidden_state (B, tokens, width), penultimate_hidden_states (B, tokens, width), float32
    CPU; image_sizes [(3, H, W)] as newer cores give; mm_projected None.
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
    """A LATENT as videos: clips (N, F, 4, h, w) float32 CPU unscaled latents, and the samples' batch_index, if any."""

    clips: torch.Tensor
    batch_index: list[int] | None


def vae(value: Any) -> Vae:
    """The VAE of a "SVD_VAE,VAE" wire. Raises SettingError when it is something else."""
    from ..svd_core.models.components import SVDVae

    return _either(value, SVDVae, "vae", lambda around: around.vae(value))


def clip_vision(value: Any) -> ClipVision:
    """The CLIP tower of a "SVD_CLIP_VISION,CLIP_VISION" wire. Raises SettingError when it is something else."""
    from ..svd_core.models.components import SVDClipVision

    return _either(value, SVDClipVision, "clip_vision", lambda around: around.clip_vision(value))


def _either(value: Any, kind: type[Part], socket: str, adopt: Callable[[backend.Backend], Part | None]) -> Any:
    if isinstance(value, kind):
        return value
    adopted = adopt(backend.get_backend())
    if adopted is None:
        raise wrong_part(value, socket)
    return adopted


def own_model(value: Any) -> SVDModel:
    """The network of an SVD_MODEL wire. Raises SettingError when it is something else."""
    from ..svd_core.models.components import SVDModel

    if not isinstance(value, SVDModel):
        raise wrong_part(value, "model")
    return value


def checkpoint(model: Any, clip_vision: Any, vae: Any) -> Checkpoint:
    """The values of three SVD_* wires. Raises SettingError when one is something else."""
    from ..svd_core.models.components import Checkpoint, SVDClipVision, SVDModel, SVDVae

    kinds = {"model": (model, SVDModel), "clip_vision": (clip_vision, SVDClipVision), "vae": (vae, SVDVae)}
    for socket, (value, kind) in kinds.items():
        if not isinstance(value, kind):
            raise wrong_part(value, socket)
    return Checkpoint(model, clip_vision, vae)


def wrong_part(value: Any, socket: str) -> SettingError:
    """The error for a wire that carries neither our part nor the program's own."""
    return SettingError(
        f"the {socket} input takes what SVD Stages' loader gives (SVDCheckpointLoader), got {type(value).__name__}"
    )


def curve(given: GuidanceCurve | None, min_guidance: float, max_guidance: float) -> GuidanceCurve:
    """The wired guidance curve, else the straight line between the two weights."""
    from ..svd_core.diffusion.guidance import GuidanceCurve

    return given or GuidanceCurve("linear", min_guidance, max_guidance)


def images(value: Any) -> torch.Tensor:
    """The IMAGE of a wire, (B, H, W, C) float32 CPU, for nodes that pictures only pass through: any size and values.

    Stages that animate an image use `svd_core.utils.tensor_checks.check_images` too. Raises ImageError when it is none.
    """
    from ..svd_core.utils.tensor_checks import as_float32

    tensor = as_float32(value, "an image", ImageError)
    if tensor.ndim != 4 or 0 in tensor.shape:
        raise ImageError(f"an image must be shaped (batch, height, width, channels), got {tuple(tensor.shape)}")
    return tensor


def samples(latent: Any) -> torch.Tensor:
    """The samples of a LATENT, as they are. Raises SettingError when it is none."""
    from ..svd_core.utils.tensor_checks import as_float32

    if not isinstance(latent, dict) or "samples" not in latent:
        raise SettingError(
            f'a latent is a dict that holds "samples", got {type(latent).__name__}; connect a LATENT output'
        )
    as_float32(latent["samples"], "a latent's samples")
    if not latent["samples"].ndim:
        raise SettingError("a latent's samples must be a batch, got a single number; connect a LATENT output")
    return latent["samples"]


def read_latent(latent: dict[str, Any]) -> LatentVideos:
    """Read a LATENT. Raises SettingError for other shapes than SVD's, NonFiniteError for NaN and infinity.

    Values may be large: a latent that still carries noise holds thousands.
    """
    from ..svd_core.utils.nan_checks import check_input
    from ..svd_core.utils.tensor_checks import as_float32

    given = as_float32(samples(latent), "a latent's samples")
    if given.ndim != 4 or given.shape[1] != 4 or 0 in given.shape:
        raise SettingError(
            f"a latent for SVD is shaped (frames, 4, height/8, width/8), got {tuple(given.shape)}; latents of other "
            f"video models do not fit"
        )
    check_input(given, "the latent")
    frames = frames_per_clip(latent)
    return LatentVideos(given.reshape(-1, frames, *given.shape[1:]), latent.get("batch_index"))


def frames_per_clip(latent: dict[str, Any]) -> int:
    """F of a LATENT: our key when it divides the sample count, else all samples are one clip."""
    count = samples(latent).shape[0]
    ours = latent.get("svd")
    told = ours.get("frames") if isinstance(ours, dict) else None
    return told if isinstance(told, int) and told > 0 and count % told == 0 else count


def write_latent(clips: torch.Tensor, like: dict[str, Any] | None = None) -> dict[str, Any]:
    """A LATENT of clips (N, F, 4, h, w) unscaled latents, float32 CPU; other keys are taken over from `like`."""
    frames = clips.shape[1]
    return {**(like or {}), "samples": clips.flatten(0, 1).float().cpu(), "svd": {"frames": frames}}


def with_frames(latent: dict[str, Any], others: torch.Tensor) -> dict[str, Any]:
    """The LATENT with other samples. Of another number they are one clip, as in core: our key told of the old ones."""
    kept = latent if len(others) == len(latent["samples"]) else {k: v for k, v in latent.items() if k != "svd"}
    return {**kept, "samples": others}


def read_embeds(output: Any) -> torch.Tensor:
    """The embeddings (B, D) float32 CPU of a CLIP_VISION_OUTPUT, ours or core's.

    Raises SettingError for another, NonFiniteError for NaN and infinity in it.
    """
    from ..svd_core.utils.nan_checks import check_input
    from ..svd_core.utils.tensor_checks import as_float32

    if getattr(output, "image_embeds", None) is None:
        raise SettingError(
            f"a CLIP embedding is what SVDCLIPVisionEncode or CLIPVisionEncode gives, got {type(output).__name__}"
        )
    embeds = as_float32(output.image_embeds, "a CLIP embedding")
    if embeds.ndim != 2 or 0 in embeds.shape:
        raise SettingError(
            f"a CLIP embedding is shaped (images, width), got {tuple(embeds.shape)}; look at the node it comes from",
            code="embedding",
        )
    check_input(embeds, "the CLIP embedding", "numbers.embedding")
    return embeds


def write_conditioning(embeds: torch.Tensor, image_latents: torch.Tensor, micro: MicroConditioning) -> list[list[Any]]:
    """A CONDITIONING of N videos: embeds (N, 1, D), image latents (N, 4, h, w) unscaled, the user's fps."""
    return [[embeds, {"concat_latent_image": image_latents, **_micro_keys(micro)}]]


def with_micro(conditioning: list[list[Any]], micro: MicroConditioning) -> list[list[Any]]:
    """The CONDITIONING with other micro-conditioning. Every entry is copied."""
    check_conditioning(conditioning)
    return [[embeds, {**keys, **_micro_keys(micro)}] for embeds, keys in conditioning]


def read_conditioning(conditioning: list[list[Any]], videos: int, side: str) -> list[Conditioning]:
    """The conditioning of each of `videos` videos. Missing keys have core's defaults (fps 6, bucket 127, strength 0).

    Raises SettingError for what is no CONDITIONING, several entries, missing image latents, and counts that fit no
    reading; NonFiniteError for NaN and infinity.
    """
    from ..svd_core.diffusion.conditioning import Conditioning, MicroConditioning

    check_conditioning(conditioning, side)
    if len(conditioning) != 1:
        raise SettingError(
            f"the {side} conditioning has {len(conditioning)} entries, and a model of SVD Stages takes one; for "
            f"combined or scheduled conditioning run the graph in ComfyUI with a MODEL of its ImageOnlyCheckpointLoader"
        )
    embeds, keys = conditioning[0]
    if embeds is None or keys.get("concat_latent_image") is None:
        raise SettingError(
            f"the {side} conditioning carries no image (no embedding or no concat_latent_image); make it with "
            f"SVDImageConditioning or core's SVD_img2vid_Conditioning"
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
            f"the {side} conditioning must be a list of [embedding, keys], got {type(conditioning).__name__}; "
            f"connect a CONDITIONING output"
        )


def _conditioning_tensor(value: Any, ndim: int, what: str) -> torch.Tensor:
    from ..svd_core.utils.nan_checks import check_input
    from ..svd_core.utils.tensor_checks import as_float32

    tensor = as_float32(value, what)
    if tensor.ndim != ndim or 0 in tensor.shape:
        shape = "(images, tokens, width)" if ndim == 3 else "(images, 4, height/8, width/8)"
        raise SettingError(
            f"{what} is shaped {shape}, got {tuple(tensor.shape)}; connect what SVDImageConditioning gives"
        )
    check_input(tensor, what, "numbers.conditioning")
    return tensor


def split(conditioning: list[list[Any]], videos: int, side: str) -> list[list[list[Any]]]:
    """A CONDITIONING for each of `videos` videos. That of one video is handed on as it is, whatever it holds.

    Raises SettingError when the counts do not fit, or several videos have several entries.
    """
    if videos == 1:
        return [conditioning]
    if len(conditioning) != 1 or conditioning[0][1].get("concat_latent_image") is None:
        raise SettingError(
            f"the latent holds {videos} videos, and the {side} conditioning is not that of SVDImageConditioning for as "
            f"many images; sample the videos one by one"
        )
    embeds, keys = conditioning[0]
    pairs = _split_by_video(embeds, keys["concat_latent_image"], videos, side)
    return [[[embed, {**keys, "concat_latent_image": image_latent}]] for embed, image_latent in pairs]


def _split_by_video(
    embeds: torch.Tensor, image_latents: torch.Tensor, videos: int, side: str
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(embeds, image latents) of each video. One video takes all image latents: one for all frames, or one for each."""
    if embeds.shape[0] == 1 and videos == 1:
        return [(embeds, image_latents)]
    if embeds.shape[0] == image_latents.shape[0] == videos:
        return list(zip(embeds.split(1), image_latents.split(1), strict=True))
    raise SettingError(
        f"the {side} conditioning has {embeds.shape[0]} embeddings and {image_latents.shape[0]} image latents, and the "
        f"latent holds {videos} videos; the three numbers must be the same"
    )


def _micro_keys(micro: MicroConditioning) -> dict[str, float]:
    return {
        "fps": micro.fps,
        "motion_bucket_id": micro.motion_bucket_id,
        "augmentation_level": micro.noise_aug_strength,
    }
