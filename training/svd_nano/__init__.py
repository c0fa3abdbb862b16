"""Train and evaluate svd-nano: a small Stable Video Diffusion for 128x128 and 14 frames, of diffusers' classes."""
