"""The backend inside ComfyUI. Its modules are imported on use: this file is imported while ComfyUI starts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ...svd_core.diffusion.guidance import GuidanceCurve
    from ...svd_core.diffusion.sampling import Solve
    from ...svd_core.models.components import Checkpoint, ClipVision, Vae
    from ..backend import Sampler


@dataclass(frozen=True)
class ComfyBackend:
    """Implements `nodes.backend.Backend` with ComfyUI's values."""

    def wrap_vae(self, value: Any) -> Vae | None:
        from . import parts

        return parts.wrap_vae(value)

    def wrap_clip_vision(self, value: Any) -> ClipVision | None:
        from . import parts

        return parts.wrap_clip_vision(value)

    def get_sampler(self, value: Any) -> Sampler | None:
        from . import sampling

        return sampling.get_sampler(value)

    def frame_guider(self, model: Any, positive: Any, negative: Any, curve: GuidanceCurve) -> Any:
        from .guiding import FrameGuider

        return FrameGuider(model, positive, negative, curve)

    def frame_guidance(self, model: Any, curve: GuidanceCurve) -> Any:
        from .guiding import with_frame_guidance

        return with_frame_guidance(model, curve)

    def make_sampler(self, name: str) -> Any:
        from . import sampling

        return sampling.make_sampler(name)

    def read_sampler(self, value: Any) -> Solve:
        from . import sampling

        return sampling.read_sampler(value)

    def convert_checkpoint(self, checkpoint: Checkpoint) -> tuple[Any, Any, Any]:
        from .converting import convert_checkpoint

        return convert_checkpoint(checkpoint)
