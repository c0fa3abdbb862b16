"""The optimizer that svd-nano is trained with: Muon for the matrices inside, Adam for all else.

Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks" (github.com/KellerJordan/Muon): a step in
which each matrix moves by about the same in all its directions. Its size is matched to AdamW's as in Liu et al. 2025
(arXiv:2502.16982, equation 4), so that both take the same learning rate. torch.optim.Muon knows neither convolutions
nor a torch older than 2.9.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch

QUINTIC = (3.4445, -4.7750, 2.0315)  # Jordan et al.: x -> a x + b x^3 + c x^5 takes (0, 1] to about 1 in five turns
TURNS = 5
MOMENTUM = 0.95
BETAS = (0.9, 0.99)
DECAY = 0.01
ENDS = ("conv_in", "conv_out", "embedding", "pos_embed", "head")
"""Parts of names of matrices whose rows or columns are colours, latents or numbers, not hidden features: Adam's."""


class Muon(torch.optim.Optimizer):
    """Steps `named` parameters. Each group has an `lr` that the caller may change between steps."""

    def __init__(self, named: Iterable[tuple[str, torch.nn.Parameter]], rate: float) -> None:
        named = list(named)
        hidden = [each for name, each in named if is_hidden(name, each)]
        others = [each for name, each in named if not is_hidden(name, each)]
        groups = [{"params": each, "hidden": kind} for each, kind in ((hidden, True), (others, False)) if each]
        super().__init__(groups, {"lr": rate})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient."""
        for group in self.param_groups:
            moving = [each for each in group["params"] if each.grad is not None]
            (self._orthogonal_step if group["hidden"] else self._adam_step)(moving, group["lr"])

    def _orthogonal_step(self, parameters: list[torch.nn.Parameter], rate: float) -> None:
        by_shape: dict[tuple[int, int], list[torch.nn.Parameter]] = defaultdict(list)
        for parameter in parameters:
            by_shape[parameter.shape[0], parameter[0].numel()].append(parameter)
        for (rows, columns), alike in by_shape.items():
            moves = []
            for parameter in alike:
                state = self.state[parameter]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(parameter)
                momentum = state["momentum"]
                gradient = _gradient(parameter)
                momentum.lerp_(gradient, 1 - MOMENTUM)
                moves.append(gradient.lerp(momentum, MOMENTUM).reshape(rows, columns))
            size = 0.2 * max(rows, columns) ** 0.5  # arXiv:2502.16982, equation 4
            for parameter, move in zip(alike, orthogonalize(torch.stack(moves)), strict=True):
                parameter.mul_(1 - rate * DECAY).add_(move.reshape(parameter.shape), alpha=-rate * size)

    def _adam_step(self, parameters: list[torch.nn.Parameter], rate: float) -> None:
        """Kingma and Ba 2015 (arXiv:1412.6980), algorithm 1."""
        for parameter in parameters:
            state = self.state[parameter]
            if "count" not in state:
                state.update(
                    first=torch.zeros_like(parameter), second=torch.zeros_like(parameter), count=torch.zeros(())
                )
            first, second, count = state["first"], state["second"], state["count"]
            count += 1
            gradient = _gradient(parameter)
            first.lerp_(gradient, 1 - BETAS[0])
            second.lerp_(gradient.square(), 1 - BETAS[1])
            unbiased = (second / (1 - BETAS[1] ** count.item())).sqrt_().add_(1e-8)
            parameter.addcdiv_(first, unbiased, value=-rate / (1 - BETAS[0] ** count.item()))


def _gradient(parameter: torch.nn.Parameter) -> torch.Tensor:
    assert parameter.grad is not None  # step asked before
    return parameter.grad


def is_hidden(name: str, parameter: torch.Tensor) -> bool:
    """Whether a parameter is a matrix from hidden features to hidden features; convolutions are, flattened."""
    return parameter.ndim > 1 and min(parameter.shape[:2]) > 8 and not any(end in name for end in ENDS)


def orthogonalize(matrices: torch.Tensor) -> torch.Tensor:
    """About U V^T of each matrix U S V^T: (N, rows, columns) float32. Zeros stay zeros.

    x -> a x + b (x x^T) x + c (x x^T)^2 x, TURNS times. Every turn multiplies x from the left by a polynomial of
    x x^T, so the turns are made with x x^T alone, which is small, and x is multiplied once by their product.
    """
    a, b, c = QUINTIC
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    gram = x @ x.mT
    identity = torch.eye(x.shape[1], device=x.device).expand_as(gram)
    product = identity
    for _ in range(TURNS):
        turn = a * identity + b * gram + c * gram @ gram
        product = turn @ product
        gram = turn @ gram @ turn
    x = product @ x
    return x.mT if tall else x
