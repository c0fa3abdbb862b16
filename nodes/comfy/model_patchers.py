"""Our parts under ComfyUI's model management: it loads them, counts them and evicts them as it does its own.

Loaded when ComfyUI is there: `ModelPatcher` is rebound while the program starts.
"""

from __future__ import annotations

import weakref
from typing import Any

import comfy.model_management
import comfy.model_patcher
import torch

from ...svd_core.models.components import ModelComponent, SVDVae

MORE_THAN_ALL = 1e32
"""More bytes than any model has: asks for all of it."""

_patchers: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()
"""A part's identity -> its patcher. A patcher knows the module and not the identity: both go when the part does."""


class ParameterSlot(torch.nn.Module):
    """A module in a shell that ComfyUI may set attributes on: diffusers' modules have a `device` of their own."""

    def __init__(self, module: torch.nn.Module):
        super().__init__()
        self.module = module


class WholePatcher(comfy.model_patcher.ModelPatcher):
    """Loads and evicts the module as a whole: plain torch layers cannot compute with weights on another device."""

    def partially_load(self, device_to: Any, extra_memory: float = 0, force_patch_weights: bool = False) -> Any:
        """Load everything."""
        return super().partially_load(device_to, MORE_THAN_ALL, force_patch_weights)

    def partially_unload(self, device_to: Any, memory_to_free: float = 0, *_: Any, **__: Any) -> int:
        """Nothing: ComfyUI then evicts the whole."""
        return 0


def patcher_of(part: ModelComponent) -> Any:
    """The patcher by which ComfyUI manages a part of ours; one for all that share it. VAEs go where --cpu-vae says."""
    patcher = _patchers.get(part.identity)
    if patcher is None:
        management = comfy.model_management
        is_vae = isinstance(part, SVDVae)
        device = management.vae_device() if is_vae else management.get_torch_device()
        idle = management.vae_offload_device() if is_vae else management.unet_offload_device()
        patcher = WholePatcher(ParameterSlot(part.module), device, idle)
        _patchers[part.identity] = patcher
    return patcher


def evict(patcher: Any) -> None:
    """Have core take a model off its device, and no other; also where core was started to keep them all there."""
    management = comfy.model_management
    others = [each for each in management.current_loaded_models if each.model is not patcher]
    management.free_memory(MORE_THAN_ALL, patcher.load_device, keep_loaded=others)
    patcher.model.to("cpu")


def load_whole(patcher: Any, need: int) -> None:
    """Have core load all of a model, with `need` bytes free beside it as far as others can leave.

    Core would load part of it when that leaves more room, which its temporal VAE does not survive (the weights of
    `AE3DConv` stay behind), and with --novram always does; both are undone.
    """
    comfy.model_management.load_models_gpu([patcher], memory_required=need, force_full_load=True)
    if patcher.model.model_lowvram:
        patcher.partially_load(patcher.load_device, MORE_THAN_ALL)
