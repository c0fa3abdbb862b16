"""What the program around the nodes gives them: its own parts on our inputs, its samplers, our checkpoint as its parts.

`nodes/comfy` answers inside ComfyUI, `nodes/standins` elsewhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from ..svd_core.checkpoint.parts import Checkpoint, ClipVision, Vae
    from ..svd_core.guidance import GuidanceCurve
    from .samplers import Sampler


class Program(Protocol):
    """The program around the nodes, beyond what `Host` asks of it."""

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


class _Process:
    """The program that the door chose; None outside ComfyUI."""

    program: Program | None = None


def set_default(program: Program) -> None:
    """Choose the process's program. Called once, by a door."""
    _Process.program = program


def current() -> Program:
    """The program around the nodes; outside ComfyUI that of the stand-ins, loaded when it is asked for."""
    if _Process.program is not None:
        return _Process.program
    from .standins.program import HeadlessProgram

    return HeadlessProgram()
