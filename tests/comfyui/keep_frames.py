"""A node for either program that keeps the very numbers of an IMAGE: the tests put it among ComfyUI's custom nodes."""

from __future__ import annotations

import numpy as np


class KeepFrames:
    """IMAGE -> an .npy file."""

    CATEGORY = "tests"
    RETURN_TYPES = ()
    OUTPUT_NODE = True
    FUNCTION = "keep"

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {"images": ("IMAGE",), "path": ("STRING", {"default": ""})}}

    def keep(self, images, path: str) -> dict:
        """Write images (F, H, W, 3) as they are."""
        np.save(path, images.cpu().numpy())
        return {}


NODE_CLASS_MAPPINGS = {"KeepFrames": KeepFrames}
