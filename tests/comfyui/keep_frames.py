"""A custom node that writes an IMAGE to an .npy file without rounding."""

from __future__ import annotations

import numpy as np


class KeepFrames:
    """Writes an IMAGE to an .npy file."""

    CATEGORY = "tests"
    RETURN_TYPES = ()
    OUTPUT_NODE = True
    FUNCTION = "keep"

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {"images": ("IMAGE",), "path": ("STRING", {"default": ""})}}

    def keep(self, images, path: str) -> dict:
        """Write images (F, H, W, 3) unchanged."""
        np.save(path, images.cpu().numpy())
        return {}


NODE_CLASS_MAPPINGS = {"KeepFrames": KeepFrames}
