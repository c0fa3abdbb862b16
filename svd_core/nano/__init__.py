"""svd-nano: a small Stable Video Diffusion of the real classes, 128x128 and 14 frames, built into the package."""

from ..checkpoint.parts import VideoDefaults

DEFAULTS = VideoDefaults(num_frames=14, width=128, height=128, min_guidance=1.0, max_guidance=2.5)

__all__ = ["DEFAULTS"]
