"""The program around the nodes where no ComfyUI is: the stand-ins' own MODEL, GUIDER and SAMPLER."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from .. import samplers
from .values import EulerSampler, Guidance, Guider, Model, model_of

if TYPE_CHECKING:
    from ...svd_core.diffusion.guidance import GuidanceCurve
    from ...svd_core.models.components import Checkpoint

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CompatBackend:
    """Answers for `nodes.backend.Backend`; see there. VAE and CLIP_VISION wires carry our own parts."""

    def vae(self, value: Any) -> None:
        return None

    def clip_vision(self, value: Any) -> None:
        return None

    def sampler(self, value: Any) -> samplers.Sampler | None:
        if not isinstance(value, Model):
            return None
        if value.guidance != Guidance():
            logger.warning(
                "the MODEL's own guidance (VideoLinearCFGGuidance or the like) gives way to the sampler's; take that "
                "node out"
            )
        return partial(samplers.sample, value.model)

    def frame_guider(self, model: Any, positive: Any, negative: Any, curve: GuidanceCurve) -> Guider:
        return Guider(model_of(model), positive, negative, curve)

    def frame_guidance(self, model: Any, curve: GuidanceCurve) -> Model:
        return model_of(model).guided(Guidance(fixed=curve))

    def euler_sampler(self) -> EulerSampler:
        return EulerSampler()

    def own_parts(self, checkpoint: Checkpoint) -> tuple[Any, Any, Any]:
        return Model(checkpoint.model), checkpoint.clip_vision, checkpoint.vae
