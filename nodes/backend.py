"""What the program around the nodes gives them: its own parts on our inputs, its samplers, our checkpoint as its parts.

`nodes/comfy` answers inside ComfyUI, `nodes/compat` elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

    from ..svd_core.diffusion.guidance import GuidanceCurve
    from ..svd_core.models.components import Checkpoint, ClipVision, Vae


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


class Backend(Protocol):
    """The program around the nodes, beyond what `Runtime` asks of it."""

    def vae(self, value: Any) -> Vae | None:
        """The program's own VAE for our stages; None when `value` is none. SettingError for one that is not SVD's."""
        ...

    def clip_vision(self, value: Any) -> ClipVision | None:
        """The program's own CLIP tower for our stages; None when `value` is none."""
        ...

    def sampler(self, value: Any) -> Sampler | None:
        """How a MODEL of the program's samples; None when `value` is none. SettingError for one that is not SVD."""
        ...

    def frame_guider(self, model: Any, positive: Any, negative: Any, curve: GuidanceCurve) -> Any:
        """A GUIDER with a weight for each frame."""
        ...

    def frame_guidance(self, model: Any, curve: GuidanceCurve) -> Any:
        """A MODEL that guides each frame with its own weight, whatever the cfg of the sampler."""
        ...

    def euler_sampler(self) -> Any:
        """Our Euler loop as a SAMPLER."""
        ...

    def own_parts(self, checkpoint: Checkpoint) -> tuple[Any, Any, Any]:
        """A checkpoint of ours as the program's MODEL, CLIP_VISION and VAE."""
        ...


_backend: Backend | None = None


def set_backend(backend: Backend) -> None:
    """Set the backend of this process. The package's `__init__` calls it once: ComfyUI's inside ComfyUI, else ours."""
    global _backend
    _backend = backend


def get_backend() -> Backend:
    """Return the backend of this process."""
    assert _backend is not None, "the package's __init__ sets the backend"
    return _backend
