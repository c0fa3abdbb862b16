"""Our modules under ComfyUI's model management: it loads them, counts them and evicts them as it does its own.

Loaded when ComfyUI is there: `ModelPatcher` is rebound while the program starts.
"""

from __future__ import annotations

from typing import Any

import comfy.model_management
import comfy.model_patcher
import torch

KEPT_AS = "svd_stages_patcher"
"""The module's attribute that keeps its patcher, so that both live and die together."""


class Held(torch.nn.Module):
    """A module in a shell that ComfyUI may set attributes on: diffusers' modules have a `device` of their own."""

    def __init__(self, module: torch.nn.Module):
        super().__init__()
        self.module = module


class WholePatcher(comfy.model_patcher.ModelPatcher):
    """Loads and evicts the module as a whole: plain torch layers cannot compute with weights on another device."""

    def partially_load(self, device_to: Any, extra_memory: float = 0, force_patch_weights: bool = False) -> Any:
        """Load everything."""
        return super().partially_load(device_to, max(extra_memory, 2.0 * self.model_size()), force_patch_weights)

    def partially_unload(self, device_to: Any, memory_to_free: float = 0, *_: Any, **__: Any) -> int:
        """Nothing: ComfyUI then evicts the whole."""
        return 0


def patcher_of(module: torch.nn.Module) -> Any:
    """The patcher by which ComfyUI manages `module`; one for each module."""
    patcher = getattr(module, KEPT_AS, None)
    if patcher is None:
        management = comfy.model_management
        patcher = WholePatcher(Held(module), management.get_torch_device(), management.unet_offload_device())
        setattr(module, KEPT_AS, patcher)
    return patcher
