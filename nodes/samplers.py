"""Who samples: our own loop for an SVD_MODEL, the program's machinery around our loop for a MODEL."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from ..svd_core.errors import SettingError
from ..svd_core.runtime.runtime import get_runtime
from . import backend, wire_formats
from .backend import Request, Sampler

if TYPE_CHECKING:
    import torch

    from ..svd_core.diffusion.sampling import SamplerStep
    from ..svd_core.execution import SamplerInputs
    from ..svd_core.models.components import SVDModel


def sampler_of(model: Any) -> Sampler:
    """How the value of a "SVD_MODEL,MODEL" wire samples. Raises SettingError when it is neither."""
    from ..svd_core.models.components import SVDModel

    if isinstance(model, SVDModel):
        return partial(sample, model)
    sampler = backend.get_backend().sampler(model)
    if sampler is None:
        raise wire_formats.wrong_part(model, "model")
    return sampler


def sample(model: SVDModel, positive: Any, negative: Any, latent: dict[str, Any], request: Request) -> dict[str, Any]:
    """Sample with a model of ours. Raises SettingError for a noise mask, which our loop would have to ignore."""
    return sample_and_estimate(model, positive, negative, latent, request)[0]


def sample_and_estimate(
    model: SVDModel, positive: Any, negative: Any, latent: dict[str, Any], request: Request
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The same, and as a second LATENT what the denoiser took for clean in the last step."""
    import torch

    from ..svd_core import execution

    start = _start_of(latent, request.noise, request.seed)
    count = start.latents.shape[0]
    sides = zip(
        wire_formats.read_conditioning(positive, count, "positive"),
        wire_formats.read_conditioning(negative, count, "negative"),
        strict=True,
    )
    row = execution.model_sigmas(model, request.steps) if request.sigmas is None else request.sigmas
    denoised: dict[int, torch.Tensor] = {}

    def keep(video: int, step: SamplerStep) -> None:
        denoised[video] = step.denoised

    sampled = execution.sample(get_runtime(), model, list(sides), start, request.curve, row, keep)
    estimate = torch.cat([denoised[video].cpu() for video in range(count)]) / model.scaling_factor
    return wire_formats.write_latent(sampled, like=latent), wire_formats.write_latent(estimate, like=latent)


def add_noise(model: SVDModel, latent: dict[str, Any], noise: str, seed: int, sigma: torch.Tensor) -> dict[str, Any]:
    """The LATENT at noise level sigma (), from where sampling would begin."""
    from ..svd_core import execution

    return wire_formats.write_latent(execution.add_noise(model, _start_of(latent, noise, seed), sigma), like=latent)


def _start_of(latent: dict[str, Any], noise: str, seed: int) -> SamplerInputs:
    """What the videos of a LATENT start from. Raises SettingError for a noise mask."""
    from ..svd_core.execution import SamplerInputs

    clips = wire_formats.read_latent(latent)
    if latent.get("noise_mask") is not None:
        raise SettingError(
            "the latent carries a noise_mask, and a model of SVD Stages cannot keep parts of a video; take the mask "
            "away, or run the graph in ComfyUI with a MODEL of its ImageOnlyCheckpointLoader"
        )
    return SamplerInputs(clips.clips, noise, seed, clips.batch_index)
