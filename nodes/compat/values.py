"""Values of the sockets MODEL, GUIDER, NOISE and SAMPLER in runs without ComfyUI.

All are immutable: a node that patches a MODEL returns a copy. CLIP_VISION and VAE sockets carry svd_core's components.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from ...svd_core.errors import SettingError
from ...svd_core.pipeline import SAMPLERS
from ..samplers import validate_solver_name

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
"""ComfyUI's samplers."""
SCHEDULER_NAMES = (
    "simple", "sgm_uniform", "karras", "exponential", "ddim_uniform", "beta", "normal", "linear_quadratic",
    "kl_optimal",
)  # fmt: skip
"""The SCHEDULERS of svd_core.diffusion, repeated because that module imports torch."""


@dataclass(frozen=True)
class Guidance:
    """Guidance of a MODEL: makes a curve over the frames from the sampler's cfg.

    Attributes:
        shape: Shape of the curve.
        min_guidance: Smallest weight. The largest is the cfg.
        fixed: A curve that is used whatever the cfg, or None.
    """

    shape: str = "constant"
    min_guidance: float = 1.0
    fixed: GuidanceCurve | None = None

    def curve(self, cfg: float) -> GuidanceCurve:
        """Return the curve for a sampler's cfg."""
        from ...svd_core.diffusion.guidance import GuidanceCurve

        return self.fixed or GuidanceCurve(self.shape, self.min_guidance, cfg)


@dataclass(frozen=True, eq=False)
class Model:
    """A MODEL: an SVD UNet and its guidance."""

    model: SVDModel
    guidance: Guidance = Guidance()


@dataclass(frozen=True)
class Noise:
    """A NOISE of the kind comfyui or none, see svd_core/diffusion/sampling.py."""

    kind: str
    seed: int = 0


@dataclass(frozen=True)
class NamedSampler:
    """A SAMPLER: the solver of this name in svd_core/diffusion/sampling.py."""

    name: str


@dataclass(frozen=True, eq=False)
class Guider:
    """A GUIDER. `negative` is None for BasicGuider."""

    model: Model
    positive: Any
    negative: Any | None
    curve: GuidanceCurve


def cfg_guider(model: Any, positive: Any, negative: Any | None, cfg: float) -> Guider:
    """Make a GUIDER with the guidance of the MODEL. Raises SettingError if it is not a MODEL."""
    network = read_model(model)
    return Guider(network, positive, negative, network.guidance.curve(cfg))


def read_model(value: Any) -> Model:
    """Return the value of a MODEL socket. Raises SettingError for another type."""
    return _checked(value, Model, "model", "ImageOnlyCheckpointLoader")


def read_guider(value: Any) -> Guider:
    """Return the value of a GUIDER socket. Raises SettingError for another type."""
    return _checked(value, Guider, "guider", "CFGGuider")


def read_noise(value: Any) -> Noise:
    """Return the value of a NOISE socket. Raises SettingError for another type."""
    return _checked(value, Noise, "noise", "RandomNoise")


def read_sampler(value: Any) -> NamedSampler:
    """Return the value of a SAMPLER socket. Raises SettingError for another type."""
    return _checked(value, NamedSampler, "sampler", "KSamplerSelect or SVDSamplerSelect")


def _checked(value: Any, kind: type[Value], socket: str, maker: str) -> Value:
    if not isinstance(value, kind):
        raise SettingError(f"the {socket} input takes an output of {maker}, got {type(value).__name__}")
    return value


def validate_sampler_name(name: str | None) -> bool | str:
    """Return True if the sampler runs without ComfyUI, else a message. None, a linked name, is checked when it runs."""
    if name is None or name in SAMPLERS:
        return validate_solver_name(name)
    reason = f'sampler "{name}" runs only inside ComfyUI' if name in SAMPLER_NAMES else f'unknown sampler "{name}"'
    return f"{reason}. Use {', '.join(SAMPLERS[:-1])} or {SAMPLERS[-1]}."


def raise_if_refused(validation: bool | str) -> None:
    """Raise SettingError with the message of a `VALIDATE_INPUTS`. A linked value is validated only when it runs."""
    if validation is not True:
        raise SettingError(str(validation))
