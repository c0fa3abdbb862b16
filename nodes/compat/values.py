"""What travels headless on core's wires MODEL, GUIDER, NOISE and SAMPLER. CLIP_VISION and VAE carry our own parts.

Nothing here is changed: a node that patches a MODEL gives a copy.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from ...svd_core.errors import SettingError

if TYPE_CHECKING:
    from ...svd_core.diffusion.guidance import GuidanceCurve
    from ...svd_core.models.components import SVDModel

Value = TypeVar("Value")

SAMPLER_NAMES = (
    "euler", "euler_cfg_pp", "euler_ancestral", "euler_ancestral_cfg_pp", "heun", "heunpp2", "dpm_2",
    "dpm_2_ancestral", "lms", "dpm_fast", "dpm_adaptive", "dpmpp_2s_ancestral", "dpmpp_2s_ancestral_cfg_pp",
    "dpmpp_sde", "dpmpp_sde_gpu", "dpmpp_2m", "dpmpp_2m_cfg_pp", "dpmpp_2m_sde", "dpmpp_2m_sde_gpu",
    "dpmpp_2m_sde_heun", "dpmpp_2m_sde_heun_gpu", "dpmpp_3m_sde", "dpmpp_3m_sde_gpu", "ddpm", "lcm", "ipndm",
    "ipndm_v", "deis", "res_multistep", "res_multistep_cfg_pp", "res_multistep_ancestral",
    "res_multistep_ancestral_cfg_pp", "gradient_estimation", "gradient_estimation_cfg_pp", "er_sde", "seeds_2",
    "seeds_3", "sa_solver", "sa_solver_pece", "ddim", "uni_pc", "uni_pc_bh2",
)  # fmt: skip
"""What ComfyUI's samplers offer."""
EULER_NAMES = ("euler", "ddim")
"""What is sampled here. ComfyUI's ddim is euler, but for latents with a noise mask, which are refused."""
SCHEDULER_NAMES = (
    "simple", "sgm_uniform", "karras", "exponential", "ddim_uniform", "beta", "normal", "linear_quadratic",
    "kl_optimal",
)  # fmt: skip
"""Those of svd_core/diffusion/schedulers.py, which needs torch."""


@dataclass(frozen=True)
class Guidance:
    """How a MODEL makes a curve over the frames of the sampler's cfg.

    shape, min_guidance  of the curve; its largest weight is the cfg
    fixed                a whole curve that takes the place of any cfg
    """

    shape: str = "constant"
    min_guidance: float = 1.0
    fixed: GuidanceCurve | None = None

    def curve(self, cfg: float) -> GuidanceCurve:
        """The curve for a sampler's cfg."""
        from ...svd_core.diffusion.guidance import GuidanceCurve

        return self.fixed or GuidanceCurve(self.shape, self.min_guidance, cfg)


@dataclass(frozen=True, eq=False)
class Model:
    """A MODEL: the network of an SVD checkpoint, and how it is guided."""

    model: SVDModel
    guidance: Guidance = Guidance()

    def guided(self, guidance: Guidance) -> Model:
        """The same network with another guidance, which takes the place of the one before."""
        return replace(self, guidance=guidance)


@dataclass(frozen=True)
class Noise:
    """A NOISE: `kind` as in svd_core/diffusion/sampling.py, comfyui or none."""

    kind: str
    seed: int = 0


@dataclass(frozen=True)
class EulerSampler:
    """A SAMPLER: the only one there is here."""


@dataclass(frozen=True, eq=False)
class Guider:
    """A GUIDER: what is denoised, towards what, and how strongly. BasicGuider's has no negative side."""

    model: Model
    positive: Any
    negative: Any | None
    curve: GuidanceCurve


def model_of(value: Any) -> Model:
    """The value of a MODEL wire. Raises SettingError when it is something else."""
    return _checked(value, Model, "model", "ImageOnlyCheckpointLoader")


def guider_of(value: Any) -> Guider:
    """The value of a GUIDER wire. Raises SettingError when it is something else."""
    return _checked(value, Guider, "guider", "CFGGuider")


def noise_of(value: Any) -> Noise:
    """The value of a NOISE wire. Raises SettingError when it is something else."""
    return _checked(value, Noise, "noise", "RandomNoise")


def sampler_of(value: Any) -> EulerSampler:
    """The value of a SAMPLER wire. Raises SettingError when it is something else."""
    return _checked(value, EulerSampler, "sampler", "KSamplerSelect")


def _checked(value: Any, kind: type[Value], socket: str, maker: str) -> Value:
    if not isinstance(value, kind):
        raise SettingError(f"the {socket} input takes what {maker} gives, got {type(value).__name__}")
    return value


def why_not_sampler(name: str) -> str | None:
    """Why a sampler cannot be had without ComfyUI, and the way out; None when it can."""
    if name in EULER_NAMES:
        return None
    what = f'sampler "{name}" runs only inside ComfyUI' if name in SAMPLER_NAMES else f'there is no sampler "{name}"'
    return f"{what}; without it there are {' and '.join(EULER_NAMES)}, and SVD was made for euler: choose that"


def check_sampler(name: str) -> EulerSampler:
    """The SAMPLER of this name. Raises SettingError when it cannot be had: a wired name is known only now."""
    reason = why_not_sampler(name)
    if reason is not None:
        raise SettingError(reason)
    return EulerSampler()


def validated_sampler(sampler_name: str | None) -> bool | str:
    """What VALIDATE_INPUTS answers for a sampler's name; a wired one is None and is looked at when it is known."""
    reason = None if sampler_name is None else why_not_sampler(sampler_name)
    return True if reason is None else reason
