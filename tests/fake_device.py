"""A device that computes on the CPU and refuses to mix its tensors with those of the CPU, as a GPU does.

torch's device type `lazy` has no kernels of its own and needs no driver. Inside `fake_device()` its tensors hold one of
the CPU. Two rules of CUDA hold: a tensor without dimensions of the CPU may meet those of the device, and `copy_` and
`to` copy between the two.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

DEVICE = torch.device("lazy", 0)
aten = torch.ops.aten
COPIES = {aten.copy_.default, aten._to_copy.default}
SHALLOW_COPY = aten._has_compatible_shallow_copy_type.default
INDEXING = {aten.index.Tensor, aten.index_put_.default}
"""Operators that take indices of the CPU."""


class DeviceTensor(torch.Tensor):
    """A tensor of the device. `inner` is its CPU tensor."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> DeviceTensor:
        tensor = torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, inner.stride(), inner.storage_offset(), dtype=inner.dtype, device=DEVICE
        )
        tensor.inner = inner
        return tensor

    @classmethod
    def __torch_dispatch__(cls, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(operator, args, kwargs or {})

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.inner.untyped_storage()

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def __repr__(self, **more: Any) -> str:
        return f"DeviceTensor({tuple(self.shape)})"


def compute(operator: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operator on the CPU. Its results are on the device that it names, or on that of its tensors."""
    if operator is SHALLOW_COPY:
        return False  # modules that are moved get new parameters
    tensors = [each for each in tree_flatten((args, kwargs))[0] if isinstance(each, torch.Tensor)]
    on_device = [each for each in tensors if isinstance(each, DeviceTensor)]
    if on_device and operator not in COPIES:
        checked = args[:1] if operator in INDEXING else tensors
        others = [each for each in checked if not isinstance(each, DeviceTensor) and each.ndim > 0]
        if others:
            raise RuntimeError(f"{operator}: tensors on {DEVICE} and on the CPU, {tuple(others[0].shape)}")
    target = kwargs.get("device") or (DEVICE if on_device else None)
    if operator is aten.copy_.default:
        target = args[0].device
    wraps = target is not None and torch.device(target).type == DEVICE.type
    if kwargs.get("device") is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    outer = {id(each.inner): each for each in on_device}
    args, kwargs = tree_map_only(DeviceTensor, lambda each: each.inner, (args, kwargs))
    result = operator(*args, **kwargs)
    if not wraps:
        return result
    return tree_map_only(
        torch.Tensor, lambda each: outer[id(each)] if id(each) in outer else DeviceTensor(each), result
    )


class _DeviceMode(TorchDispatchMode):
    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(operator, args, kwargs or {})


@contextlib.contextmanager
def fake_device() -> Iterator[torch.device]:
    """Make the device usable inside the `with`."""
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # `inner` does not follow an assignment to `data`
    try:
        with (
            torch.inference_mode(False),
            torch.no_grad(),
            _DeviceMode(),
        ):  # inference mode passes on composite operators
            yield DEVICE
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)
