"""SVD Stages: Stable Video Diffusion as separate ComfyUI nodes, and the same graphs without ComfyUI.

ComfyUI's entry point (node tables, WEB_DIRECTORY), and the Python functions `animate` and `run_graph`. Importing this
package loads neither torch nor diffusers, opens no file and uses no device.
"""

import sys
from typing import Any

if __package__:  # pytest also meets this file as a lone module, where relative imports have no meaning
    from ._version import __version__
    from .nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

    if "comfy.model_management" in sys.modules:
        from .nodes.comfy import use_comfyui

        use_comfyui()
    else:
        from .nodes.backend import set_backend
        from .nodes.compat.backend import CompatBackend

        set_backend(CompatBackend())

    WEB_DIRECTORY = "./web"
    __all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "WEB_DIRECTORY", "__version__"]

    def __getattr__(name: str) -> Any:
        """Import `animate` or `run_graph` when it is first used. Inside ComfyUI nothing uses them."""
        if name in ("animate", "run_graph"):
            from . import headless

            return getattr(headless, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
