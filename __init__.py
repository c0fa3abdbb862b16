"""SVD Stages: Stable Video Diffusion as separate ComfyUI nodes, and the same graphs without ComfyUI.

ComfyUI's entry point (node tables, WEB_DIRECTORY), and the Python interface: `animate`, `run_graph`, and diffusers'
`StableVideoDiffusionPipeline`, `load_image` and `export_to_video`. Importing this package loads neither torch nor
diffusers, opens no file and uses no device.
"""

import sys

if __package__:  # pytest also meets this file as a lone module, where relative imports have no meaning
    from ._version import __version__
    from .nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
    from .svd_core.utils.lazy_names import lazy_names

    if "comfy.model_management" in sys.modules:
        from .nodes.comfy import use_comfyui

        use_comfyui()
    else:
        from .nodes.backend import set_backend
        from .nodes.compat.backend import CompatBackend

        set_backend(CompatBackend())

    WEB_DIRECTORY = "./web"
    _NAMES = {
        "animate": "headless.animation.render",
        "run_graph": "headless.engines.choose",
        "StableVideoDiffusionPipeline": "svd_core.diffusers_pipeline.pipeline",
        "load_image": "svd_core.diffusers_pipeline.inputs",
        "export_to_video": "svd_core.diffusers_pipeline.outputs",
    }
    __all__ = [  # pyright: ignore[reportUnsupportedDunderAll]
        "NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "WEB_DIRECTORY", "__version__", *_NAMES
    ]  # fmt: skip
    __getattr__, __dir__ = lazy_names(__name__, _NAMES)
