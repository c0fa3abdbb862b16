"""The backend without ComfyUI: MODEL, GUIDER and SAMPLER are those of `values`."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from .. import samplers
from .values import Guidance, Guider, Model, NamedSampler, read_model, read_sampler

if TYPE_CHECKING:
    from ...svd_core.diffusion.guidance import GuidanceCurve
    from ...svd_core.diffusion.sampling import Solve
    from ...svd_core.models.components import Checkpoint
    from ..backend import Sampler

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CompatBackend:
    """Implements `nodes.backend.Backend`. VAE and CLIP_VISION sockets carry svd_core's components."""

    def wrap_vae(self, value: Any) -> None:
        return None

    def wrap_clip_vision(self, value: Any) -> None:
        return None

    def get_sampler(self, value: Any) -> Sampler | None:
        if not isinstance(value, Model):
            return None
        if value.guidance != Guidance():
            logger.warning(
                "the guidance of the MODEL (VideoLinearCFGGuidance or the like) is replaced by the sampler's. Remove "
                "that node."
            )
        return partial(samplers.sample, value.model)

    def frame_guider(self, model: Any, positive: Any, negative: Any, curve: GuidanceCurve) -> Guider:
        return Guider(read_model(model), positive, negative, curve)

    def frame_guidance(self, model: Any, curve: GuidanceCurve) -> Model:
        return replace(read_model(model), guidance=Guidance(fixed=curve))

    def make_sampler(self, name: str) -> NamedSampler:
        return NamedSampler(name)

    def read_sampler(self, value: Any) -> Solve:
        from ...svd_core.diffusion.sampling import SOLVERS

        return SOLVERS[read_sampler(value).name]

    def convert_checkpoint(self, checkpoint: Checkpoint) -> tuple[Any, Any, Any]:
        return Model(checkpoint.model), checkpoint.clip_vision, checkpoint.vae
