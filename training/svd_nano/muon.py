"""The optimizer of svd-nano's hidden matrices: Muon. torch's Adam updates all other parameters.

Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks" (github.com/KellerJordan/Muon): each step
moves a matrix by about the same amount in all its singular directions. Liu et al. 2025 (arXiv:2502.16982, equation 4)
scale the step to AdamW's, so that both use the same learning rate. torch.optim.Muon does not support convolutions and
needs torch 2.9.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # Jordan et al.: a x + b x^3 + c x^5 takes (0, 1] to about 1 in five steps
ITERATIONS = 5
MOMENTUM = 0.95
DECAY = 0.01
NOT_HIDDEN = ("conv_in", "conv_out", "embedding", "pos_embed", "head")
"""Parts of names of matrices whose rows or columns are colors, latents or numbers, not hidden features."""


class Muon(torch.optim.Optimizer):
    """Optimizes hidden matrices. The `lr` may change between steps."""

    def __init__(self, params: Iterable[torch.nn.Parameter], lr: float) -> None:
        super().__init__([{"params": list(params)}], {"lr": lr})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        (group,) = self.param_groups
        by_shape: dict[tuple[int, int], list[Any]] = defaultdict(list)
        for parameter in group["params"]:
            if parameter.grad is not None:
                by_shape[parameter.shape[0], parameter[0].numel()].append(parameter)
        for (rows, columns), params in by_shape.items():
            updates = []
            for parameter in params:
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                state["momentum"].lerp_(parameter.grad, 1 - MOMENTUM)
                updates.append(parameter.grad.lerp(state["momentum"], MOMENTUM).reshape(rows, columns))
            scale = group["lr"] * 0.2 * max(rows, columns) ** 0.5  # arXiv:2502.16982, equation 4
            for parameter, update in zip(params, orthogonalize(torch.stack(updates)), strict=True):
                parameter.mul_(1 - group["lr"] * DECAY).add_(update.reshape(parameter.shape), alpha=-scale)


def is_hidden(name: str, parameter: torch.Tensor) -> bool:
    """Return True for a matrix from hidden features to hidden features; convolutions count as flattened matrices."""
    return parameter.ndim > 1 and min(parameter.shape[:2]) > 8 and not any(part in name for part in NOT_HIDDEN)


def orthogonalize(matrices: torch.Tensor) -> torch.Tensor:
    """Approximate U V^T of each matrix U S V^T in (N, rows, columns) float32. Zeros stay zeros.

    Iterates x -> a x + b (x x^T) x + c (x x^T)^2 x. Each iteration multiplies x from the left by a polynomial of x x^T,
    so the polynomials are computed from the small matrix x x^T, and x is multiplied once by their product.
    """
    a, b, c = COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    gram = x @ x.mT
    identity = torch.eye(x.shape[1], device=x.device).expand_as(gram)
    product = identity
    for _ in range(ITERATIONS):
        polynomial = a * identity + b * gram + c * gram @ gram
        product = polynomial @ product
        gram = polynomial @ gram @ polynomial
    x = product @ x
    return x.mT if tall else x
