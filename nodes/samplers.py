"""Who samples: our own loop for an SVD_MODEL, the program's machinery around our loop for a MODEL."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from ..svd_core import host
from ..svd_core.errors import SettingError
from . import program, wires

if TYPE_CHECKING:
    import torch

    from ..svd_core.checkpoint.parts import SVDModel
    from ..svd_core.guidance import GuidanceCurve


@dataclass(frozen=True, eq=False)
class Request:
    """What a sampler is asked for.

    noise   comfyui, diffusers or none
    seed    of video 0; video i uses seed + i
    sigmas  (N + 1,) falling noise levels; None: `steps` of the Karras schedule over the model's own range
    """

    noise: str
    seed: int
    steps: int
    curve: GuidanceCurve
    sigmas: torch.Tensor | None = None


Sampler = Callable[[Any, Any, dict[str, Any], Request], dict[str, Any]]
"""(positive CONDITIONING, negative CONDITIONING, LATENT, Request) -> LATENT."""


def sampler_of(model: Any) -> Sampler:
    """How the value of a "SVD_MODEL,MODEL" wire samples. Raises SettingError when it is neither."""
    from ..svd_core.checkpoint.parts import SVDModel

    if isinstance(model, SVDModel):
        return partial(sample, model)
    around = program.current()
    sampler = around.sampler(model) if around else None
    if sampler is None:
        raise wires.wrong_part(model, "model")
    return sampler


def sample(model: SVDModel, positive: Any, negative: Any, latent: dict[str, Any], request: Request) -> dict[str, Any]:
    """Sample with a model of ours. Raises SettingError for a noise mask, which our loop would have to ignore."""
    from ..svd_core import stages

    if latent.get("noise_mask") is not None:
        raise SettingError(
            "the latent carries a noise_mask, and SVDEulerSampler with an SVD_MODEL cannot keep parts of a video; "
            "take the mask away, or wire a MODEL of ComfyUI's ImageOnlyCheckpointLoader"
        )
    clips = wires.read_latent(latent)
    count = clips.clips.shape[0]
    sides = zip(
        wires.read_conditioning(positive, count, "positive"),
        wires.read_conditioning(negative, count, "negative"),
        strict=True,
    )
    start = stages.Start(clips.clips, request.noise, request.seed, clips.batch_index)
    row = stages.model_sigmas(model, request.steps) if request.sigmas is None else request.sigmas
    sampled = stages.sample(host.current(), model, list(sides), start, request.curve, row)
    return wires.write_latent(sampled, like=latent)
