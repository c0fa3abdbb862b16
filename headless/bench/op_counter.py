"""Count the operations, memory traffic, FLOPs and peak memory of a computation from shapes.

On the meta device nothing is computed, so full-size models can be counted on any machine.
"""

# torch's dispatch machinery is not typed.
# pyright: reportIncompatibleMethodOverride=false

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

ALLOCATIONS = ("aten::empty", "aten::empty_like", "aten::new_empty", "aten::empty_strided")

CONVOLUTIONS = ("aten::convolution", "aten::conv2d")


@dataclass(frozen=True)
class Cost:
    """The cost of a computation.

    Attributes:
        operations: Operations that compute or move elements. Views are free.
        moved: Bytes that they read and write, each operand once.
        flops: FLOPs of matrix products, attention and convolutions. One multiply-add is 2.
        peak: Most bytes alive at once, without the inputs.
    """

    operations: int
    moved: int
    flops: int
    peak: int


def count(compute: Callable[[], Any]) -> Cost:
    """Count the cost of calling `compute`, which allocates all tensors except its inputs."""
    counter = _Counter()
    flops = FlopCounterMode(display=False)
    with torch.inference_mode(False), torch.no_grad(), _FusedAttention(), flops, counter:
        result = compute()
    del result
    return Cost(counter.operations, counter.moved, flops.get_total_flops(), counter.peak)


class _FusedAttention(TorchFunctionMode):
    """Count attention as one kernel, as on a device: on meta torch would compute all scores by matrix products."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is torch.nn.functional.scaled_dot_product_attention:
            query, key, value = (*args, *(kwargs[name] for name in ("query", "key", "value")[len(args) :]))[:3]
            if query.is_meta:
                return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)[0]
        return function(*args, **kwargs)


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.operations = self.moved = self.peak = 0
        self._allocated = 0
        self._storages: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if function._schema.name in CONVOLUTIONS and args[0].is_meta:
            result = _in_the_format_of(result, *args[:2])
        inputs, outputs = _tensors((args, kwargs)), _tensors(result)
        input_storages = {each.untyped_storage()._cdata for each in inputs}
        new = [each for each in outputs if each.untyped_storage()._cdata not in input_storages]
        for each in new:
            self._track(each.untyped_storage())
        written = outputs if function._schema.is_mutable else new
        if written and function._schema.name not in ALLOCATIONS:
            self.operations += 1
            self.moved += sum(map(_size, [*inputs, *written]))
        return result

    def _track(self, storage: torch.UntypedStorage) -> None:
        size, key = storage.nbytes(), storage._cdata
        if key in self._storages:
            return
        self._storages.add(key)
        self._allocated += size
        self.peak = max(self.peak, self._allocated)
        weakref.finalize(storage, self._release, key, size)

    def _release(self, key: int, size: int) -> None:
        self._storages.discard(key)
        self._allocated -= size


def _in_the_format_of(result: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return a convolution's result in channels-last, as devices do if both operands are. Meta's is contiguous."""
    is_kept = all(each.ndim == 4 and each.is_contiguous(memory_format=torch.channels_last) for each in (x, weight))
    return result.contiguous(memory_format=torch.channels_last) if is_kept else result


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _size(tensor: torch.Tensor) -> int:
    """Return the bytes of a tensor's distinct elements: an expanded dimension counts once."""
    sides = zip(tensor.shape, tensor.stride(), strict=True)
    return math.prod(side for side, stride in sides if stride) * tensor.element_size()
