"""Guidance with a weight for each frame inside ComfyUI's sampling: a GUIDER, and a MODEL patch for KSampler.

Guidance is linear in the prediction, so it may be applied to v, to the clean latents or, as here, to x - clean. Core
skips the negative side when its one cfg is 1; a curve that only ends at 1 needs it (`disable_cfg1_optimization`).
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

GUIDES = "sampler_cfg_function"
"""Core's name for the one function that joins the two sides."""


def check_model(model: Any) -> None:
    """Raise SettingError unless the MODEL is a Stable Video Diffusion."""
    if not isinstance(model.model, comfy.model_base.SVD_img2vid):
        raise SettingError(
            f"the model input got a MODEL of another family ({type(model.model).__name__}); SVD Stages needs Stable "
            f"Video Diffusion: load svd.safetensors or svd_xt.safetensors with ImageOnlyCheckpointLoader"
        )


class FrameGuider(comfy.samplers.CFGGuider):
    """Core's guider with a curve over the frames in place of its cfg."""

    def __init__(self, model: Any, positive: Any, negative: Any, curve: GuidanceCurve):
        check_model(model)
        super().__init__(model)
        self.curve = curve
        self.set_conds(positive, negative)
        self.set_cfg(curve.largest)  # what patches of core's read; the curve guides
        if GUIDES in self.model_options:
            logger.warning(
                "the MODEL's own guidance (VideoLinearCFGGuidance, RescaleCFG or the like) gives way to the guidance "
                "curve over the frames; take that node out"
            )

    def predict_noise(self, x: torch.Tensor, timestep: Any, model_options: Any = None, seed: int | None = None) -> Any:
        """The guided clean latents (F, 4, h, w) of x."""
        options = comfy.model_patcher.create_model_options_clone(model_options or {})
        options[GUIDES] = guided(self.curve)
        options["disable_cfg1_optimization"] = self.curve.guides
        negative, positive = (self.conds.get(side) for side in ("negative", "positive"))
        return comfy.samplers.sampling_function(
            self.inner_model, x, timestep, negative, positive, self.cfg, model_options=options, seed=seed
        )


def with_frame_guidance(model: Any, curve: GuidanceCurve) -> Any:
    """A clone of the MODEL that is guided by `curve` under any sampler of core's."""
    check_model(model)
    patched = model.clone()
    patched.set_model_sampler_cfg_function(guided(curve), disable_cfg1_optimization=curve.guides)
    return patched


def guided(curve: GuidanceCurve) -> Callable[[dict[str, torch.Tensor]], torch.Tensor]:
    """Core's `sampler_cfg_function`: from x - clean of both sides, (F, 4, h, w), the guided one."""

    def guide(sides: dict[str, torch.Tensor]) -> torch.Tensor:
        positive, negative = sides["cond"], sides["uncond"]
        if not curve.guides:
            return positive
        weights = curve.weights(positive.shape[0]).to(positive)
        return negative + weights.view(-1, *[1] * (positive.ndim - 1)) * (positive - negative)

    return guide
