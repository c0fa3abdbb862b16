"""SVD Stages: Stable Video Diffusion as separate ComfyUI nodes, and the same graphs with no ComfyUI.

ComfyUI's door (node tables, WEB_DIRECTORY) and the two Python calls. Importing this package loads neither torch's
models nor diffusers, touches no file and asks no device.
"""

import sys

if __package__:
    from .nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

    if "comfy.model_management" in sys.modules:
        from .nodes.comfy import use_comfyui

        use_comfyui()

    from .headless import animate, run_graph

    WEB_DIRECTORY = "./web"
    __all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "WEB_DIRECTORY", "animate", "run_graph"]

__version__ = "0.1.0"
