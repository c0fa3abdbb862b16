"""One guidance weight per frame inside ComfyUI's sampling: a GUIDER, and a MODEL patch for KSampler.

Guidance by weights is linear in the prediction, so it can be applied to v, to the denoised latents or, as here, to
x - denoised. A refinement that is not linear gets the denoised latents.
Core skips the negative conditioning if its cfg is 1. A curve that only ends at 1 needs it
(`disable_cfg1_optimization`). Outside of a refinement's interval a wrapper of core's `calc_cond_batch` skips it.
"""

from __future__ import annotations

import logging
from typing import Any

import comfy.model_base
import comfy.model_patcher
import comfy.samplers
import torch
from comfy.patcher_extension import WrappersMP, add_wrapper_with_key

from ...svd_core.diffusion.guidance import GuidanceCurve, RefinedGuidance
from ...svd_core.errors import SettingError

logger = logging.getLogger(__name__)

CFG_FUNCTION = "sampler_cfg_function"
"""Core's model option: the function that combines the positive and the negative prediction."""
WRAPPER_KEY = "svd_stages.guidance"


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
        self._guide = FrameGuide(curve)
        self.set_conds(positive, negative)
        self.set_cfg(curve.largest)  # read by core's patches; the curve is what guides
        if CFG_FUNCTION in self.model_options:
            logger.warning(
                "the guidance of the MODEL (VideoLinearCFGGuidance, RescaleCFG or the like) is replaced by the "
                "guidance curve over the frames. Remove that node."
            )

    def sample(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Sample as core's guider does. Momentum starts anew."""
        self._guide = FrameGuide(self.curve)
        return super().sample(*args, **kwargs)

    def predict_noise(self, x: torch.Tensor, timestep: Any, model_options: Any = None, seed: int | None = None) -> Any:
        """Return the guided denoised latents (F, 4, h, w) of x."""
        options = comfy.model_patcher.create_model_options_clone(model_options or {})
        options[CFG_FUNCTION] = self._guide
        options["disable_cfg1_optimization"] = self.curve.guides
        add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, WRAPPER_KEY, skip_negative, options, is_model_options=True)
        negative, positive = (self.conds.get(side) for side in ("negative", "positive"))
        return comfy.samplers.sampling_function(
            self.inner_model, x, timestep, negative, positive, self.cfg, model_options=options, seed=seed
        )


def with_frame_guidance(model: Any, curve: GuidanceCurve) -> Any:
    """Return a clone of the MODEL that `curve` guides with any of core's samplers."""
    check_model(model)
    patched = model.clone()
    patched.set_model_sampler_cfg_function(FrameGuide(curve), disable_cfg1_optimization=curve.guides)
    patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, WRAPPER_KEY, restart_guide)
    patched.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, WRAPPER_KEY, skip_negative)
    return patched


class FrameGuide:
    """A `sampler_cfg_function` of one sampling run."""

    def __init__(self, curve: GuidanceCurve) -> None:
        self.curve = curve
        self._refined = RefinedGuidance(curve.refinement)

    def acts_at(self, timestep: torch.Tensor) -> bool:
        """Return True if guidance acts at the noise level (F,), the same for all frames."""
        return self.curve.guides and self.curve.refinement.acts_at(timestep.flatten()[0])

    def __call__(self, predictions: dict[str, Any]) -> torch.Tensor:
        """Return x - denoised, (F, 4, h, w), of the guided prediction from core's dictionary of both."""
        positive, negative = predictions["cond"], predictions["uncond"]
        if not self.acts_at(predictions["sigma"]):
            return positive
        weights = self.curve.weights(positive.shape[0]).to(positive).view(-1, *[1] * (positive.ndim - 1))
        if self.curve.refinement.is_linear:
            return negative + weights * (positive - negative)
        x, sigma = predictions["input"], predictions["sigma"].flatten()[0]
        return x - self._refined(x, sigma, predictions["cond_denoised"], predictions["uncond_denoised"], weights)


def restart_guide(executor: Any, *args: Any, **kwargs: Any) -> Any:
    """Wrap core's `outer_sample`: give the run a guide of its own, so that momentum starts anew."""
    options = executor.class_obj.model_options
    guide = options.get(CFG_FUNCTION)
    if isinstance(guide, FrameGuide):
        options[CFG_FUNCTION] = FrameGuide(guide.curve)
    return executor(*args, **kwargs)


def skip_negative(
    executor: Any, model: Any, conds: list[Any], x: torch.Tensor, timestep: torch.Tensor, options: dict[str, Any]
) -> Any:
    """Wrap core's `calc_cond_batch`: where guidance does not act, only the positive side is computed.

    It stands for the negative side too, because samplers with cfg_pp read that one.
    """
    guide = options.get(CFG_FUNCTION)
    if not isinstance(guide, FrameGuide) or len(conds) != 2 or guide.acts_at(timestep):
        return executor(model, conds, x, timestep, options)
    positive, _ = executor(model, [conds[0], None], x, timestep, options)
    return [positive, positive]
