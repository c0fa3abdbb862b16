"""The only folder that imports ComfyUI: what stands between the stages and the program around them."""

from __future__ import annotations


def use_comfyui() -> None:
    """Make ComfyUI the process's host, and the program around the nodes. `__init__.py` calls it inside ComfyUI."""
    from ...svd_core.host import set_default as set_host
    from ..program import set_default as set_program
    from .host import ComfyHost
    from .program import ComfyProgram

    set_host(ComfyHost())
    set_program(ComfyProgram())
