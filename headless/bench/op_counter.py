"""What a computation costs by its shapes alone: operations, bytes moved, FLOPs, and the memory alive at its peak.

Run it on the meta device and no number is computed, so the full-size models can be counted on any machine.
"""

# torch's dispatch machinery is not typed.
# pyright: reportIncompatibleMethodOverride=false

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Cost:
    """operations  that compute or move numbers; views are free
    moved          bytes read and written by them, each operand once
    flops          of products of matrices, attention and convolutions; one multiply-add is 2
    peak           bytes alive at once beyond what was there before
    """

    operations: int
    moved: int
    flops: int
    peak: int


def count(compute: Callable[[], Any]) -> Cost:
    """The cost of calling `compute`, which allocates all but its inputs itself."""
    counter = _Counter()
    flops = FlopCounterMode(display=False)
    with torch.inference_mode(False), torch.no_grad(), _FusedAttention(), flops, counter:
        kept = compute()
    del kept
    return Cost(counter.operations, counter.moved, flops.get_total_flops(), counter.peak)


class _FusedAttention(TorchFunctionMode):
    """Attention as the one kernel that it is on a device: on meta it would fall into products with all its scores."""

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
        self._alive = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        inputs, outputs = list(_tensors((args, kwargs))), list(_tensors(result))
        before = {_storage(each) for each in inputs}
        written = [each for each in outputs if _storage(each) not in before or _writes(function)]
        for each in outputs:
            if _storage(each) not in before:
                self._born(each)
        if written and not _only_allocates(function):
            self.operations += 1
            self.moved += sum(map(_size, inputs)) + sum(_size(each) for each in written)
        return result

    def _born(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata in self._known:
            return
        size, key = storage.nbytes(), storage._cdata
        self._known.add(key)
        self._alive += size
        self.peak = max(self.peak, self._alive)
        weakref.finalize(storage, self._died, key, size)

    def _died(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._alive -= size


def _tensors(tree: Any) -> Iterator[torch.Tensor]:
    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, (list, tuple)):
        for each in tree:
            yield from _tensors(each)
    elif isinstance(tree, dict):
        yield from _tensors(list(tree.values()))


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _size(tensor: torch.Tensor) -> int:
    """Bytes of the numbers that there are; a tensor that repeats some of them reads those once."""
    numbers = 1
    for side, stride in zip(tensor.shape, tensor.stride(), strict=True):
        numbers *= side if stride else 1
    return numbers * tensor.element_size()


def _writes(function: Any) -> bool:
    return function._schema.is_mutable


def _only_allocates(function: Any) -> bool:
    return function._schema.name in ("aten::empty", "aten::empty_like", "aten::new_empty", "aten::empty_strided")
