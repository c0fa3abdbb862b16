"""svd-nano: a small Stable Video Diffusion of the real classes, 128x128 and 14 frames, and how it is made."""
