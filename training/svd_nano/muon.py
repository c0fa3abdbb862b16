"""The optimizer of svd-nano: Muon for hidden matrices, Adam for all other parameters.

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
BETAS = (0.9, 0.99)
DECAY = 0.01
NOT_HIDDEN = ("conv_in", "conv_out", "embedding", "pos_embed", "head")
"""Parts of names of matrices whose rows or columns are colors, latents or numbers, not hidden features."""


class Muon(torch.optim.Optimizer):
    """Optimizes `named` parameters. The `lr` of each group may change between steps."""

    def __init__(self, named: Iterable[tuple[str, torch.nn.Parameter]], lr: float) -> None:
        params: dict[bool, list[torch.nn.Parameter]] = {True: [], False: []}
        for name, parameter in named:
            params[is_hidden(name, parameter)].append(parameter)
        groups = [{"params": each, "hidden": hidden} for hidden, each in params.items() if each]
        super().__init__(groups, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            params = [each for each in group["params"] if each.grad is not None]
            (self._muon_step if group["hidden"] else self._adam_step)(params, group["lr"])

    def _muon_step(self, params: list[Any], lr: float) -> None:
        by_shape: dict[tuple[int, int], list[Any]] = defaultdict(list)
        for parameter in params:
            by_shape[parameter.shape[0], parameter[0].numel()].append(parameter)
        for (rows, columns), group in by_shape.items():
            updates = []
            for parameter in group:
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                state["momentum"].lerp_(parameter.grad, 1 - MOMENTUM)
                updates.append(parameter.grad.lerp(state["momentum"], MOMENTUM).reshape(rows, columns))
            scale = 0.2 * max(rows, columns) ** 0.5  # arXiv:2502.16982, equation 4
            for parameter, update in zip(group, orthogonalize(torch.stack(updates)), strict=True):
                parameter.mul_(1 - lr * DECAY).add_(update.reshape(parameter.shape), alpha=-lr * scale)

    def _adam_step(self, params: list[Any], lr: float) -> None:
        """Kingma and Ba 2015 (arXiv:1412.6980), algorithm 1."""
        for parameter in params:
            state = self.state[parameter]
            if not state:
                state.update(
                    first=torch.zeros_like(parameter), second=torch.zeros_like(parameter), count=torch.zeros(())
                )
            first, second, count = state["first"], state["second"], state["count"]
            count += 1
            first.lerp_(parameter.grad, 1 - BETAS[0])
            second.lerp_(parameter.grad.square(), 1 - BETAS[1])
            denominator = (second / (1 - BETAS[1] ** count.item())).sqrt_().add_(1e-8)
            parameter.addcdiv_(first, denominator, value=-lr / (1 - BETAS[0] ** count.item()))


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
