"""One guidance weight per frame inside ComfyUI's sampling: a GUIDER, and a MODEL patch for KSampler.

Guidance is linear in the prediction, so it can be applied to v, to the denoised latents or, as here, to x - denoised.
Core skips the negative conditioning if its cfg is 1. A curve that only ends at 1 needs it
(`disable_cfg1_optimization`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import comfy.model_base
import comfy.model_patcher
import comfy.samplers
import torch

from ...svd_core.diffusion.guidance import GuidanceCurve
from ...svd_core.errors import SettingError

logger = logging.getLogger(__name__)

CFG_FUNCTION = "sampler_cfg_function"
"""Core's model option: the function that combines the positive and the negative prediction."""


def check_model(model: Any) -> None:
    """Raise SettingError unless the MODEL is Stable Video Diffusion."""
    if not isinstance(model.model, comfy.model_base.SVD_img2vid):
        raise SettingError(
            f"the model input takes Stable Video Diffusion, got a MODEL of the family {type(model.model).__name__}. "
            f"Load svd.safetensors or svd_xt.safetensors with ImageOnlyCheckpointLoader."
        )


class FrameGuider(comfy.samplers.CFGGuider):
    """Core's guider with a guidance curve over the frames instead of its cfg."""

    def __init__(self, model: Any, positive: Any, negative: Any, curve: GuidanceCurve):
        check_model(model)
        super().__init__(model)
        self.curve = curve
        self.set_conds(positive, negative)
        self.set_cfg(curve.largest)  # read by core's patches; the curve is what guides
        if CFG_FUNCTION in self.model_options:
            logger.warning(
                "the guidance of the MODEL (VideoLinearCFGGuidance, RescaleCFG or the like) is replaced by the "
                "guidance curve over the frames. Remove that node."
            )

    def predict_noise(self, x: torch.Tensor, timestep: Any, model_options: Any = None, seed: int | None = None) -> Any:
        """Return the guided denoised latents (F, 4, h, w) of x."""
        options = comfy.model_patcher.create_model_options_clone(model_options or {})
        options[CFG_FUNCTION] = cfg_function(self.curve)
        options["disable_cfg1_optimization"] = self.curve.guides
        negative, positive = (self.conds.get(side) for side in ("negative", "positive"))
        return comfy.samplers.sampling_function(
            self.inner_model, x, timestep, negative, positive, self.cfg, model_options=options, seed=seed
        )


def with_frame_guidance(model: Any, curve: GuidanceCurve) -> Any:
    """Return a clone of the MODEL that `curve` guides with any of core's samplers."""
    check_model(model)
    patched = model.clone()
    patched.set_model_sampler_cfg_function(cfg_function(curve), disable_cfg1_optimization=curve.guides)
    return patched


def cfg_function(curve: GuidanceCurve) -> Callable[[dict[str, torch.Tensor]], torch.Tensor]:
    """Return a `sampler_cfg_function`: x - denoised, (F, 4, h, w), of both predictions -> that of the guided one."""

    def guide(predictions: dict[str, torch.Tensor]) -> torch.Tensor:
        positive, negative = predictions["cond"], predictions["uncond"]
        if not curve.guides:
            return positive
        weights = curve.weights(positive.shape[0]).to(positive)
        return negative + weights.view(-1, *[1] * (positive.ndim - 1)) * (positive - negative)

    return guide
