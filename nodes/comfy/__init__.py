"""The only folder that imports ComfyUI: what stands between the stages and the program around them."""

from __future__ import annotations


def use_comfyui() -> None:
    """Make ComfyUI the process's host, and the program around the nodes. `__init__.py` calls it inside ComfyUI."""
    from ...svd_core.runtime.runtime import set_runtime
    from ..backend import set_backend
    from .backend import ComfyBackend
    from .runtime import ComfyRuntime

    set_runtime(ComfyRuntime())
    set_backend(ComfyBackend())
