"""The only folder that imports ComfyUI: what stands between the stages and the program around them."""

from __future__ import annotations


def use_comfyui() -> None:
    """Make ComfyUI the process's host. The package's `__init__.py` calls it when ComfyUI imports the package."""
    from ...svd_core.host import set_default
    from .host import ComfyHost

    set_default(ComfyHost())
