"""Count the network calls of a sampler without a network."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..models.step_cache import DeepFeatures, StepCache
from .guidance import GuidanceCurve
from .sampling import Solver, ignore_step


@dataclass(frozen=True)
class NetworkCalls:
    """The network calls of one video, both sides of guidance counted.

    Attributes:
        whole: Calls that compute the whole network.
        cached: Calls that reuse deep features, see `models.step_cache`.
    """

    whole: int
    cached: int = 0

    @property
    def total(self) -> int:
        """Return the number of all calls."""
        return self.whole + self.cached


def count_network_calls(
    solver: Solver, sigmas: torch.Tensor, curve: GuidanceCurve, step_cache: StepCache | None = None
) -> NetworkCalls:
    """Run a solver on one number, and count the calls of its denoiser where guidance and the step cache decide.

    Args:
        solver: One of `diffusion.sampling.SOLVERS`. Its noise is not drawn.
        sigmas: (steps + 1,) float32 noise levels on the CPU.
        curve: Guidance. Outside of its interval, and with all weights 1, only the positive side is computed.
        step_cache: None: every call is whole.
    """
    caches = [DeepFeatures(step_cache or StepCache(interval=1)) for _ in range(2)]  # of the positive, negative side
    number = torch.zeros(1, 1, 1, 1, 1)
    are_whole: list[bool] = []

    def denoise(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        for cache in caches[: 1 + (curve.guides and curve.refinement.acts_at(sigma))]:
            are_whole.append(cache.reusable(sigma.item()) is None)
            if are_whole[-1]:
                cache.store(number)
        return x

    noise = () if solver.make_noise is None else (lambda sigma, sigma_next: number,)
    solver.sample(denoise, number, sigmas, ignore_step, *noise)
    return NetworkCalls(sum(are_whole), are_whole.count(False))
