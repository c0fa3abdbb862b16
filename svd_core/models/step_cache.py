"""Reuse the deep features of the UNet between sampling steps: faster, and another video.

Ma et al. 2023, "DeepCache" (arXiv:2312.00858), with branch 0 of its SVD version: a cached step computes conv_in, the
first residual block, and the last two residual blocks with their attention.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import SettingError

if TYPE_CHECKING:
    import torch

ROUNDING = 1e-5
"""Of a noise level that is computed back from ln(sigma) / 4 in float32."""


@dataclass(frozen=True)
class StepCache:
    """Which network calls reuse the features of an earlier one.

    Attributes:
        interval: Of so many calls one computes the whole network. 1: all do.
        sigma_from: Largest noise level of a call that may reuse features.
        sigma_to: Noise level above which they are reused.

    Raises:
        SettingError: interval is below 1, or the levels are no range.
    """

    interval: int = 3
    sigma_from: float = math.inf
    sigma_to: float = 0.0

    def __post_init__(self) -> None:
        if self.interval < 1:
            raise SettingError(f"`interval` must be 1 or more, got {self.interval}. 2 and 3 are usual.")
        if not 0 <= self.sigma_to < self.sigma_from:
            raise SettingError(
                f"`sigma_from` must be above `sigma_to`, which is 0 or more, got {self.sigma_from} and {self.sigma_to}"
            )


class DeepFeatures:
    """The cached features of one video and one side of guidance."""

    def __init__(self, settings: StepCache) -> None:
        self._settings = settings
        self._features: torch.Tensor | None = None
        self._age = 0

    def reusable(self, sigma: float) -> torch.Tensor | None:
        """Return the features that a call at noise level sigma reuses. None: it computes the whole network.

        sigma may be off by ROUNDING, relative.
        """
        settings = self._settings
        is_inside = settings.sigma_to * (1 + ROUNDING) < sigma <= settings.sigma_from * (1 + ROUNDING)
        if self._features is None or not is_inside or self._age + 1 >= settings.interval:
            self._features = None  # frees its memory during the whole call
            return None
        self._age += 1
        return self._features

    def store(self, features: torch.Tensor) -> None:
        """Keep the features of a whole call."""
        self._features, self._age = features, 0
