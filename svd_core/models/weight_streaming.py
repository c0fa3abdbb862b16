"""Copy weights to the device block by block while the network computes."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from .layers import set_weight

logger = logging.getLogger(__name__)

Modules = tuple[nn.Module, ...]
ParameterSlot = tuple[nn.Module, str, nn.Parameter]
"""A module, the name of one of its own parameters, and the parameter."""

WeightContext = Callable[..., contextlib.AbstractContextManager[Any]]
"""Called with modules, returns a context manager inside which their weights are on the computing device."""

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
"""(class, submodule) that are used once per video if optimizations are on: a step does not copy them."""

STREAMED_BLOCKS = frozenset({"SpatioTemporalResBlock", "TransformerSpatioTemporalModel"})
"""The largest modules of the UNet whose weights are copied at once."""


def streamed_bytes(unet: nn.Module) -> int:
    """Return the most bytes of weights on the device while they are streamed: those of two blocks."""
    blocks = [module for module in unet.modules() if type(module).__name__ in STREAMED_BLOCKS]
    return 2 * max(sum(weight.nbytes for *_, weight in iter_parameters(block, PRECOMPUTED_MODULES)) for block in blocks)


def iter_parameters(module: nn.Module, skip: frozenset[tuple[str, str]] = frozenset()) -> Iterator[ParameterSlot]:
    """Yield the parameters of a module and its submodules, except for (class, submodule) in `skip`."""
    for name, weight in module._parameters.items():
        if weight is not None:
            yield module, name, weight
    for name, child in module.named_children():
        if (type(module).__name__, name) not in skip:
            yield from iter_parameters(child, skip)


def pin_weights(module: nn.Module) -> None:
    """Move weights on the CPU to page-locked memory, once, from which a GPU copies them while the CPU goes on.

    Names and values stay. From other memory the driver copies through a buffer of its own, at about half the speed, and
    the CPU waits. Where the system locks no more memory, the rest stays where it is.
    """
    slots = [slot for slot in iter_parameters(module) if slot[2].device.type == "cpu" and not slot[2].is_pinned()]
    try:
        with torch.inference_mode(False), torch.no_grad():
            for owner, name, weight in slots:
                set_weight(owner, weight.detach().pin_memory(), name)
    except RuntimeError as error:
        logger.info("streamed weights are copied more slowly, as not all fit into page-locked memory: %s", error)


def resident_weights(*modules: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Do nothing: the weights stay on the device."""
    return contextlib.nullcontext()


@functools.cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    """Return the CUDA stream for copies of weights. One per device, so that freed memory serves the next copy."""
    return torch.cuda.Stream(device)


class WeightStreamer:
    """A WeightContext that copies weights to a device for the time of their use.

    The result is bit-equal to that with resident weights. On CUDA the weights of the next modules are copied while the
    present ones compute, so those of two are on the device. The next ones are those that followed the last time.

    Args:
        device: The computing device.
        skip: (class, submodule) not to copy.
        prefetch: Copy ahead. None: on CUDA.
    """

    def __init__(
        self, device: torch.device, skip: frozenset[tuple[str, str]] = frozenset(), prefetch: bool | None = None
    ) -> None:
        self._device, self._skip = device, skip
        self._prefetch = device.type == "cuda" if prefetch is None else prefetch
        self._stream = _copy_stream(device) if device.type == "cuda" else None
        self._computed: Any = None
        self._next: dict[Modules, Modules] = {}
        self._previous: Modules | None = None
        self._prefetched: dict[Modules, list[nn.Parameter]] = {}

    @contextlib.contextmanager
    def __call__(self, *modules: nn.Module) -> Iterator[None]:
        """Keep copies of the weights of `modules` on the device inside the `with`."""
        slots = self._slots(modules)
        copies = self._prefetched.pop(modules, None) or self._fetch(slots)
        self._prefetched.clear()  # the copies of modules that did not follow
        if self._previous is not None:
            self._next[self._previous] = modules
        self._previous = modules
        self._synchronize(copies)
        try:
            for (module, name, _), copy in zip(slots, copies, strict=True):
                module._parameters[name] = copy
            yield
        finally:
            for module, name, weight in slots:
                module._parameters[name] = weight
        following = self._next.get(modules) if self._prefetch else None
        if following is not None:  # this block's kernels are queued: the CPU is free to copy
            self._wait_for_previous_block()
            self._prefetched[following] = self._fetch(self._slots(following))

    def _fetch(self, slots: list[ParameterSlot]) -> list[nn.Parameter]:
        with torch.cuda.stream(self._stream) if self._stream is not None else contextlib.nullcontext():
            return [nn.Parameter(self._copy(weight), requires_grad=False) for _, _, weight in slots]

    def _synchronize(self, copies: list[nn.Parameter]) -> None:
        """Let the computation wait for the copies, and the release of their memory for the computation."""
        if self._stream is None:
            return
        computing = torch.cuda.current_stream(self._device)
        computing.wait_stream(self._stream)
        for copy in copies:
            copy.record_stream(computing)

    def _wait_for_previous_block(self) -> None:
        """Keep the CPU from running ahead: at most the weights of two blocks are on the device or requested."""
        if self._stream is None:
            return
        previous, self._computed = self._computed, torch.cuda.current_stream(self._device).record_event()
        if previous is not None:
            previous.synchronize()

    def _copy(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.detach().to(self._device, non_blocking=True, copy=True)

    def _slots(self, modules: Modules) -> list[ParameterSlot]:
        return [slot for module in modules for slot in iter_parameters(module, self._skip)]
