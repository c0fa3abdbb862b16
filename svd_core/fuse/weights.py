"""Where the weights are while a part of the network computes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

Here = Callable[..., contextlib.AbstractContextManager[Any]]
"""Called with modules: inside the `with` their weights are on the device that computes."""

USED_ONCE = frozenset(
    {
        ("TransformerSpatioTemporalModel", "time_pos_embed"),
        ("BasicTransformerBlock", "attn2"),
        ("BasicTransformerBlock", "norm2"),
        ("TemporalBasicTransformerBlock", "attn2"),
        ("TemporalBasicTransformerBlock", "norm2"),
        ("ResnetBlock2D", "time_emb_proj"),
        ("TemporalResnetBlock", "time_emb_proj"),
    }
)
"""Class and name of what is computed once for a video where the rewrites are on: a step need not fetch it."""


def resident(*modules: nn.Module) -> contextlib.AbstractContextManager[None]:
    """The weights are there all the time."""
    return contextlib.nullcontext()


class Streamed:
    """The weights live elsewhere, and a copy comes to `device` for as long as it is used.

    The copies are made in the order of the computation itself, so a part never computes with half of its weights. The
    numbers are those of weights that are there all the time, to the bit.
    """

    def __init__(self, device: torch.device, skip: frozenset[tuple[str, str]] = frozenset()) -> None:
        self._device, self._skip = device, skip

    @contextlib.contextmanager
    def __call__(self, *modules: nn.Module) -> Iterator[None]:
        held = [each for module in modules for each in self._parameters(module)]
        try:
            for owner, name, weight in held:
                owner._parameters[name] = nn.Parameter(self._copied(weight), requires_grad=False)
            yield
        finally:
            for owner, name, weight in held:
                owner._parameters[name] = weight

    def _copied(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.detach().to(self._device, non_blocking=True, copy=True)

    def _parameters(self, module: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
        """The parameters of a module and of what is in it, but for the parts to skip."""
        for name, weight in module._parameters.items():
            if weight is not None:
                yield module, name, weight
        for name, child in module.named_children():
            if (type(module).__name__, name) not in self._skip:
                yield from self._parameters(child)
