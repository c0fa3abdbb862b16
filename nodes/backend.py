"""The interface between the nodes and their environment: ComfyUI (`nodes/comfy`) or none (`nodes/compat`).

A leaf: the package's `__init__` sets the implementation, nothing imports one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

    from ..svd_core.diffusion.guidance import GuidanceCurve
    from ..svd_core.diffusion.sampling import Solve
    from ..svd_core.models.components import Checkpoint, ClipVision, Vae


@dataclass(frozen=True, eq=False)
class Request:
    """Settings of one sampling run.

    Attributes:
        noise: Kind of starting noise: comfyui, diffusers or none.
        seed: Seed of video 0. Video i uses seed + i.
        steps: Number of steps of the Karras schedule over the model's own range. Used if `sigmas` is None.
        curve: Guidance weight of each frame.
        sigmas: (N + 1,) falling noise levels, or None.
        sampler: Value of a SAMPLER socket, or None for Euler.
    """

    noise: str
    seed: int
    steps: int
    curve: GuidanceCurve
    sigmas: torch.Tensor | None = None
    sampler: Any = None


Sampler = Callable[[Any, Any, dict[str, Any], Request], dict[str, Any]]
"""(positive CONDITIONING, negative CONDITIONING, LATENT, Request) -> LATENT."""


class Backend(Protocol):
    """Conversions between this package's values and those of core's sockets.

    The first three methods return None if `value` is not of the environment's own type.
    """

    def wrap_vae(self, value: Any) -> Vae | None:
        """Wrap a core VAE. Raises SettingError if it is not SVD's temporal VAE."""
        ...

    def wrap_clip_vision(self, value: Any) -> ClipVision | None:
        """Wrap a core CLIP_VISION."""
        ...

    def get_sampler(self, value: Any) -> Sampler | None:
        """Return the sampling function of a core MODEL. Raises SettingError if it is not SVD."""
        ...

    def frame_guider(self, model: Any, positive: Any, negative: Any, curve: GuidanceCurve) -> Any:
        """Make a GUIDER with one guidance weight per frame."""
        ...

    def frame_guidance(self, model: Any, curve: GuidanceCurve) -> Any:
        """Patch a MODEL to use one guidance weight per frame instead of the sampler's cfg."""
        ...

    def make_sampler(self, name: str) -> Any:
        """Return this package's solver of this name as a SAMPLER."""
        ...

    def read_sampler(self, value: Any) -> Solve:
        """Return the solver of a SAMPLER, for an SVD_MODEL. Raises SettingError if it has none."""
        ...

    def convert_checkpoint(self, checkpoint: Checkpoint) -> tuple[Any, Any, Any]:
        """Convert a checkpoint to core's MODEL, CLIP_VISION and VAE."""
        ...


_backend: Backend | None = None


def set_backend(backend: Backend) -> None:
    """Set the backend of this process. The package's `__init__` calls it, and the engine that starts ComfyUI."""
    global _backend
    _backend = backend


def get_backend() -> Backend:
    """Return the backend of this process."""
    assert _backend is not None, "the package's __init__ sets the backend"
    return _backend
