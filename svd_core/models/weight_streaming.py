"""Where the weights are while a part of the network computes."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

Modules = tuple[nn.Module, ...]
ParameterSlot = tuple[nn.Module, str, nn.Parameter]
"""The owner of a parameter, its name there, and the parameter."""

WeightContext = Callable[..., contextlib.AbstractContextManager[Any]]
"""Called with modules: inside the `with` their weights are on the device that computes."""

PRECOMPUTED_MODULES = frozenset(
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

STREAMED_BLOCKS = frozenset({"SpatioTemporalResBlock", "TransformerSpatioTemporalModel"})
"""The largest parts of the UNet that come at once."""


def streamed_bytes(unet: nn.Module) -> int:
    """The most bytes of weights that are on the device while they come block by block: of two parts."""
    blocks = [module for module in unet.modules() if type(module).__name__ in STREAMED_BLOCKS]
    return 2 * max(sum(weight.nbytes for *_, weight in iter_parameters(block, PRECOMPUTED_MODULES)) for block in blocks)


def iter_parameters(module: nn.Module, skip: frozenset[tuple[str, str]] = frozenset()) -> Iterator[ParameterSlot]:
    """The parameters of a module and of what is in it, but for the parts to skip."""
    for name, weight in module._parameters.items():
        if weight is not None:
            yield module, name, weight
    for name, child in module.named_children():
        if (type(module).__name__, name) not in skip:
            yield from iter_parameters(child, skip)


def resident(*modules: nn.Module) -> contextlib.AbstractContextManager[None]:
    """The weights are there all the time."""
    return contextlib.nullcontext()


@functools.cache
def _stream_of(device: torch.device) -> torch.cuda.Stream:
    """The one on which weights are copied: memory that was freed for one copy serves the next."""
    return torch.cuda.Stream(device)


class WeightStreamer:
    """The weights live elsewhere, and a copy comes to `device` for as long as it is used.

    The copies are made in the order of the computation itself, so a part never computes with half of its weights. The
    numbers are those of weights that are there all the time, to the bit. Where the device computes by itself (CUDA),
    the weights of the part that followed the last time are fetched while this part is computed: two are there at once.

    skip   class and name of what is not to be fetched
    ahead  whether to fetch ahead; None: on CUDA
    """

    def __init__(
        self, device: torch.device, skip: frozenset[tuple[str, str]] = frozenset(), ahead: bool | None = None
    ) -> None:
        self._device, self._skip = device, skip
        self._ahead = device.type == "cuda" if ahead is None else ahead
        self._copying = _stream_of(device) if device.type == "cuda" else None
        self._computed: Any = None
        self._following: dict[Modules, Modules] = {}
        self._last: Modules | None = None
        self._fetched: dict[Modules, list[nn.Parameter]] = {}

    @contextlib.contextmanager
    def __call__(self, *modules: nn.Module) -> Iterator[None]:
        """Hold the weights of these modules on the device."""
        held = self._held(modules)
        copies = self._fetched.pop(modules, None) or self._fetch(held)
        self._fetched.clear()  # of a part that did not follow after all
        if self._last is not None:
            self._following[self._last] = modules
        self._last = modules
        self._arrive(copies)
        try:
            for (owner, name, _), copy in zip(held, copies, strict=True):
                owner._parameters[name] = copy
            yield
        finally:
            for owner, name, weight in held:
                owner._parameters[name] = weight
        following = self._following.get(modules) if self._ahead else None
        if following is not None:  # this part's kernels are under way: the host has time
            self._wait_for_the_part_before()
            self._fetched[following] = self._fetch(self._held(following))

    def _fetch(self, held: list[ParameterSlot]) -> list[nn.Parameter]:
        with torch.cuda.stream(self._copying) if self._copying is not None else contextlib.nullcontext():
            return [nn.Parameter(self._copied(weight), requires_grad=False) for _, _, weight in held]

    def _arrive(self, copies: list[nn.Parameter]) -> None:
        """Have what is computed next wait for the copies, and their memory wait for what is computed."""
        if self._copying is None:
            return
        computing = torch.cuda.current_stream(self._device)
        computing.wait_stream(self._copying)
        for copy in copies:
            copy.record_stream(computing)

    def _wait_for_the_part_before(self) -> None:
        """Not to run ahead: only this part's weights and the next one's may be on the device, or wanted there."""
        if self._copying is None:
            return
        before, self._computed = self._computed, torch.cuda.current_stream(self._device).record_event()
        if before is not None:
            before.synchronize()

    def _copied(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.detach().to(self._device, non_blocking=True, copy=True)

    def _held(self, modules: Modules) -> list[ParameterSlot]:
        return [each for module in modules for each in iter_parameters(module, self._skip)]
