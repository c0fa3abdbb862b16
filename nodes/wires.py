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

from ..svd_core.errors import SettingError
from . import program

if TYPE_CHECKING:
    import torch

    from ..svd_core.checkpoint.parts import Checkpoint, ClipVision, SVDModel, Vae
    from ..svd_core.conditioning import Conditioning, MicroConditioning
    from ..svd_core.encode import ImageEmbedding
    from ..svd_core.guidance import GuidanceCurve

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
class Clips:
    """A LATENT as videos: clips (N, F, 4, h, w) float32 CPU unscaled latents, and the samples' batch_index, if any."""

    clips: torch.Tensor
    batch_index: list[int] | None


def vae(value: Any) -> Vae:
    """The VAE of a "SVD_VAE,VAE" wire. Raises SettingError when it is something else."""
    from ..svd_core.checkpoint.parts import SVDVae

    return _either(value, SVDVae, "vae", lambda around: around.vae(value))


def clip_vision(value: Any) -> ClipVision:
    """The CLIP tower of a "SVD_CLIP_VISION,CLIP_VISION" wire. Raises SettingError when it is something else."""
    from ..svd_core.checkpoint.parts import SVDClipVision

    return _either(value, SVDClipVision, "clip_vision", lambda around: around.clip_vision(value))


def _either(value: Any, kind: type[Part], socket: str, adopt: Callable[[program.Program], Part | None]) -> Any:
    if isinstance(value, kind):
        return value
    adopted = adopt(program.current())
    if adopted is None:
        raise wrong_part(value, socket)
    return adopted


def own_model(value: Any) -> SVDModel:
    """The network of an SVD_MODEL wire. Raises SettingError when it is something else."""
    from ..svd_core.checkpoint.parts import SVDModel

    if not isinstance(value, SVDModel):
        raise wrong_part(value, "model")
    return value


def checkpoint(model: Any, clip_vision: Any, vae: Any) -> Checkpoint:
    """The values of three SVD_* wires. Raises SettingError when one is something else."""
    from ..svd_core.checkpoint.parts import Checkpoint, SVDClipVision, SVDModel, SVDVae

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
    from ..svd_core.guidance import GuidanceCurve

    return given or GuidanceCurve("linear", min_guidance, max_guidance)


def read_latent(latent: dict[str, Any]) -> Clips:
    """Read a LATENT. Raises SettingError for shapes that are no SVD latent."""
    samples = latent["samples"]
    if getattr(samples, "is_nested", False) or samples.ndim != 4 or samples.shape[1] != 4 or not samples.shape[0]:
        raise SettingError(
            f"a latent for SVD is shaped (frames, 4, height/8, width/8), got {tuple(samples.shape)}; latents of other "
            f"video models do not fit"
        )
    frames = frames_per_clip(latent)
    clips = samples.detach().to("cpu").float()
    return Clips(clips.reshape(-1, frames, *clips.shape[1:]), latent.get("batch_index"))


def frames_per_clip(latent: dict[str, Any]) -> int:
    """F of a LATENT: our key when it divides the sample count, else all samples are one clip."""
    count = latent["samples"].shape[0]
    ours = latent.get("svd")
    told = ours.get("frames") if isinstance(ours, dict) else None
    return told if isinstance(told, int) and told > 0 and count % told == 0 else count


def write_latent(clips: torch.Tensor, like: dict[str, Any] | None = None) -> dict[str, Any]:
    """A LATENT of clips (N, F, 4, h, w) unscaled latents, float32 CPU; other keys are taken over from `like`."""
    frames = clips.shape[1]
    return {**(like or {}), "samples": clips.flatten(0, 1).float().cpu(), "svd": {"frames": frames}}


def with_frames(latent: dict[str, Any], samples: torch.Tensor) -> dict[str, Any]:
    """The LATENT with other samples. Of another number they are one clip, as in core: our key told of the old ones."""
    kept = latent if len(samples) == len(latent["samples"]) else {k: v for k, v in latent.items() if k != "svd"}
    return {**kept, "samples": samples}


def write_conditioning(embeds: torch.Tensor, image_latents: torch.Tensor, micro: MicroConditioning) -> list[list[Any]]:
    """A CONDITIONING of N videos: embeds (N, 1, D), image latents (N, 4, h, w) unscaled, the user's fps."""
    return [[embeds, {"concat_latent_image": image_latents, **_micro_keys(micro)}]]


def with_micro(conditioning: list[list[Any]], micro: MicroConditioning) -> list[list[Any]]:
    """The CONDITIONING with other micro-conditioning. Every entry is copied."""
    return [[embeds, {**keys, **_micro_keys(micro)}] for embeds, keys in conditioning]


def read_conditioning(conditioning: list[list[Any]], videos: int, side: str) -> list[Conditioning]:
    """The conditioning of each of `videos` videos. Missing keys have core's defaults (fps 6, bucket 127, strength 0).

    Raises SettingError for several entries, missing image latents, and counts that fit no reading.
    """
    from ..svd_core.conditioning import Conditioning, MicroConditioning

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
    micro = MicroConditioning(
        fps=keys.get("fps", 6),
        motion_bucket_id=keys.get("motion_bucket_id", 127),
        noise_aug_strength=keys.get("augmentation_level", 0.0),
    )
    pairs = _split_by_video(embeds.float().cpu(), keys["concat_latent_image"].float().cpu(), videos, side)
    return [Conditioning(embed, image_latent, micro) for embed, image_latent in pairs]


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
