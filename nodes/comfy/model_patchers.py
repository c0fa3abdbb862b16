"""ModelPatchers of this package's components, so that ComfyUI loads, counts and evicts them like its own models.

Imported on use only: ComfyUI rebinds `ModelPatcher` while it starts.
"""

from __future__ import annotations

import weakref
from typing import Any

import comfy.model_management
import comfy.model_patcher
import torch

from ...svd_core.models.components import ModelComponent, SVDVae

ALL_BYTES = 1e32
"""More bytes than any model has."""

_patchers: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()
"""Identity of a component -> its patcher. A patcher does not refer to the identity, so both are freed together."""


class ModuleWrapper(torch.nn.Module):
    """A module on which ComfyUI can set attributes. diffusers' modules have a read-only `device`."""

    def __init__(self, module: torch.nn.Module):
        super().__init__()
        self.module = module


class WholePatcher(comfy.model_patcher.ModelPatcher):
    """A patcher that loads and evicts only whole modules: torch layers cannot use weights on another device."""

    def partially_load(self, device_to: Any, extra_memory: float = 0, force_patch_weights: bool = False) -> Any:
        """Load all weights."""
        return super().partially_load(device_to, ALL_BYTES, force_patch_weights)

    def partially_unload(self, device_to: Any, memory_to_free: float = 0, *_: Any, **__: Any) -> int:
        """Unload nothing. ComfyUI then evicts the whole module."""
        return 0


def patcher_of(part: ModelComponent) -> Any:
    """Return the patcher of a component, shared by all copies of it. ComfyUI's --cpu-vae applies to VAEs."""
    patcher = _patchers.get(part.identity)
    if patcher is None:
        management = comfy.model_management
        is_vae = isinstance(part, SVDVae)
        device = management.vae_device() if is_vae else management.get_torch_device()
        idle = management.vae_offload_device() if is_vae else management.unet_offload_device()
        patcher = WholePatcher(ModuleWrapper(part.module), device, idle)
        _patchers[part.identity] = patcher
    return patcher


def evict(patcher: Any) -> None:
    """Move one model off its device, even if ComfyUI was started to keep all models there."""
    management = comfy.model_management
    keep_loaded = [each for each in management.current_loaded_models if each.model is not patcher]
    management.free_memory(ALL_BYTES, patcher.load_device, keep_loaded=keep_loaded)
    patcher.model.to("cpu")


def load_all(patcher: Any, need: int) -> None:
    """Load all weights of a model and free `need` more bytes, as far as other models can be evicted.

    Core loads only a part of the weights if memory is short, and always with --novram. Its temporal VAE fails then: the
    weights of `AE3DConv` stay on the CPU.
    """
    comfy.model_management.load_models_gpu([patcher], memory_required=need, force_full_load=True)
    if patcher.model.model_lowvram:
        patcher.partially_load(patcher.load_device, ALL_BYTES)
