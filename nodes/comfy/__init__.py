"""The backend and runtime inside ComfyUI. Within nodes/ only this folder imports ComfyUI."""

from __future__ import annotations


def use_comfyui() -> None:
    """Set ComfyUI as runtime and backend of this process. The package's `__init__` calls it inside ComfyUI."""
    from ...svd_core.runtime.runtime import set_runtime
    from ..backend import set_backend
    from .backend import ComfyBackend
    from .runtime import ComfyRuntime

    set_runtime(ComfyRuntime())
    set_backend(ComfyBackend())
