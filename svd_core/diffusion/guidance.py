"""Classifier-free guidance with one weight per frame, and its refinements: interval, projection, rescale."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ..errors import SettingError

SHAPES = ("linear", "triangle", "constant")
FRAME_DIMS = (-3, -2, -1)
"""The dimensions (4, h, w) of one frame in latents (..., F, 4, h, w)."""


@dataclass(frozen=True)
class GuidanceRefinement:
    """Changes to guidance that are the same for every frame. The defaults change nothing.

    D_p and D_n are the denoised scaled latents of one frame, (4, h, w), of the positive and the negative side, and w is
    its weight. The order is: interval, momentum, norm_threshold, eta, rescale.

    Attributes:
        sigma_low: See `sigma_high`.
        sigma_high: Guidance acts at noise levels sigma_low < sigma <= sigma_high. At others D_p is the result, and the
            negative side is not computed. Kynkäänniemi et al. 2024 (arXiv:2404.07724).
        rescale: 0 to 1, phi of Lin et al. 2023 (arXiv:2305.08891), section 3.4: the guided v is scaled to the standard
            deviation of the positive side's v, by this part of the way.
        eta: 0 to 1. Factor of the part of D_p - D_n that is parallel to D_p. Adaptive projected guidance, Sadat et al.
            2024 (arXiv:2410.02416): the result is D_p + (w - 1) (orthogonal + eta parallel).
        norm_threshold: Largest L2 norm of D_p - D_n over the 4 h w values of a frame, r in that paper; 0 is no limit.
        momentum: -1 to 1, beta in that paper, usually negative. The difference of a network call is replaced by
            sum <- (D_p - D_n) + momentum sum.

    Raises:
        SettingError: A value outside of its range, or an empty interval.
    """

    sigma_low: float = 0.0
    sigma_high: float = math.inf
    rescale: float = 0.0
    eta: float = 1.0
    norm_threshold: float = 0.0
    momentum: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.sigma_low < self.sigma_high:
            raise SettingError(
                f"guidance acts for sigma above sigma_low up to sigma_high, got {self.sigma_low} and "
                f"{self.sigma_high}; sigma_low must be 0 or more, and below sigma_high"
            )
        for name, low, high in (("rescale", 0, 1), ("eta", 0, 1), ("momentum", -1, 1)):
            if not low <= getattr(self, name) <= high:
                raise SettingError(f"{name} must be {low} to {high}, got {getattr(self, name)}")
        if not (math.isfinite(self.norm_threshold) and self.norm_threshold >= 0):
            raise SettingError(f"norm_threshold must be 0 or more, got {self.norm_threshold}; 0 is no limit")

    def acts_at(self, sigma: torch.Tensor) -> bool:
        """Return True if guidance acts at noise level sigma ()."""
        if (self.sigma_low, self.sigma_high) == (0.0, math.inf):
            return True  # without reading sigma from its device
        return bool((sigma > self.sigma_low) & (sigma <= self.sigma_high))

    @property
    def projects(self) -> bool:
        """True if eta, norm_threshold or momentum changes the difference of both sides."""
        return (self.eta, self.norm_threshold, self.momentum) != (1.0, 0.0, 0.0)

    @property
    def is_linear(self) -> bool:
        """True if the guided prediction is negative + weight (positive - negative) where guidance acts."""
        return not self.projects and self.rescale == 0.0


UNREFINED = GuidanceRefinement()


@dataclass(frozen=True)
class GuidanceCurve:
    """The guidance weight of each frame. Weight 1 is no guidance.

    - linear: min on the first frame, rising evenly to max on the last (Stability's LinearPredictionGuider; diffusers).
    - triangle: min on the first and last frame, max in the middle.
    - constant: max on every frame.

    min may be above max: the curve then falls. `refinement` changes what the weights do.

    Raises:
        SettingError: Unknown shape, or a weight that is negative or not finite.
    """

    shape: str = "linear"
    min_guidance: float = 1.0
    max_guidance: float = 3.0
    refinement: GuidanceRefinement = UNREFINED

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


class RefinedGuidance:
    """Guidance that is not linear in the prediction, for one video: it keeps the sum of differences for `momentum`."""

    def __init__(self, refinement: GuidanceRefinement) -> None:
        self._refinement = refinement
        self._sum: torch.Tensor | None = None

    def __call__(
        self,
        x: torch.Tensor,
        sigma: torch.Tensor,
        positive: torch.Tensor,
        negative: torch.Tensor,
        weights: torch.Tensor,
    ) -> torch.Tensor:
        """Return the guided denoised latents, (..., F, 4, h, w).

        Args:
            x: Scaled latents at noise level sigma () of the same shape.
            positive: Denoised scaled latents of the positive side.
            negative: Those of the negative side.
            weights: (F, 1, 1, 1), one for each frame.
        """
        if self._refinement.projects:
            guided = positive + (weights - 1) * self._projected(positive, positive - negative)
        else:
            guided = negative + weights * (positive - negative)
        return _rescaled(x, sigma, positive, guided, self._refinement.rescale)

    def _projected(self, positive: torch.Tensor, difference: torch.Tensor) -> torch.Tensor:
        """Return the difference with momentum, norm cap, and eta on its part parallel to `positive`, per frame."""
        refinement = self._refinement
        if refinement.momentum:
            if self._sum is not None:
                difference = difference + refinement.momentum * self._sum
            self._sum = difference
        if refinement.norm_threshold:
            norm = torch.linalg.vector_norm(difference, dim=FRAME_DIMS, keepdim=True)
            difference = difference * (refinement.norm_threshold / norm).clamp(max=1.0)
        direction = torch.nn.functional.normalize(positive.flatten(-3), dim=-1).view_as(positive)
        parallel = (difference * direction).sum(FRAME_DIMS, keepdim=True) * direction
        return difference - (1 - refinement.eta) * parallel


def _rescaled(
    x: torch.Tensor, sigma: torch.Tensor, positive: torch.Tensor, guided: torch.Tensor, part: float
) -> torch.Tensor:
    """Return `guided` with the frame's standard deviation of v moved to that of `positive`, by `part` of the way.

    v is proportional to D - x / (sigma^2 + 1), and the factor cancels in the ratio of deviations.
    """
    if not part:
        return guided
    skip = x / (sigma**2 + 1)
    wanted, deviation = ((each - skip).std(FRAME_DIMS, keepdim=True) for each in (positive, guided))
    return skip + (guided - skip) * (1 - part + part * wanted / deviation)
