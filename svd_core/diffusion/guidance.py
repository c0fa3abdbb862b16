"""Classifier-free guidance with one weight per frame."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ..errors import SettingError

SHAPES = ("linear", "triangle", "constant")


@dataclass(frozen=True)
class GuidanceCurve:
    """The guidance weight of each frame. Weight 1 is no guidance.

    - linear: min on the first frame, rising evenly to max on the last (Stability's LinearPredictionGuider; diffusers).
    - triangle: min on the first and last frame, max in the middle.
    - constant: max on every frame.

    min may be above max: the curve then falls.

    Raises:
        SettingError: Unknown shape, or a weight that is negative or not finite.
    """

    shape: str = "linear"
    min_guidance: float = 1.0
    max_guidance: float = 3.0

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            raise SettingError(f'the guidance shape must be one of {", ".join(SHAPES)}, got "{self.shape}"')
        for name, value in (("min_guidance", self.min_guidance), ("max_guidance", self.max_guidance)):
            if not (math.isfinite(value) and value >= 0):
                raise SettingError(f"{name} must be 0 or more, got {value}; 1 to 3 is usual")

    @property
    def guides(self) -> bool:
        """True if any weight differs from 1, for any number of frames."""
        return any(end != 1.0 for end in self._ends)

    @property
    def largest(self) -> float:
        """The largest weight."""
        return max(self._ends)

    @property
    def _ends(self) -> tuple[float, ...]:
        return (self.max_guidance,) if self.shape == "constant" else (self.min_guidance, self.max_guidance)

    def weights(self, frames: int) -> torch.Tensor:
        """Return one weight per frame, (frames,) float32. A single frame gets min; with `constant` it gets max."""
        if self.shape == "constant":
            return torch.full((frames,), float(self.max_guidance))
        if self.shape == "linear":
            return torch.linspace(self.min_guidance, self.max_guidance, frames)
        height = 1.0 - (2.0 * torch.linspace(0, 1, frames, dtype=torch.float64) - 1.0).abs()
        return (self.min_guidance + height * (self.max_guidance - self.min_guidance)).float()
