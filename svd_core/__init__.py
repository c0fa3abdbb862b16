"""Stable Video Diffusion on torch, diffusers' model classes and transformers. Imports neither ComfyUI nor a node.

Glossary
--------
B, N     videos, one per input image; N where each is sampled alone
F        frames of one video
steps    sampling steps; sigmas are steps + 1 numbers
H, W     height and width in pixels
h, w     height and width in latent pixels, H / 8 and W / 8
D        width of the CLIP image embedding, 1024 in the published models

pixels           (B, 3, H, W) float32 in [-1, 1]; input and output of the VAE
images           (B, H, W, 3) float32 in [0, 1]; ComfyUI's IMAGE. Noise augmentation leaves this range on purpose
unscaled latents (F, 4, h, w), of N videos (N, F, 4, h, w): what the VAE encodes to and decodes; on LATENT sockets
scaled latents   (B, F, 4, h, w) unscaled times the VAE's scaling_factor (0.18215); only inside the sampling loop
image latent     (B, 4, h, w) posterior mode of the augmented input image, unscaled; concatenated to every frame
embeds           (B, 1, D) CLIP embedding of the input image, the single token of cross-attention
fps              frames per second as the user gives them; the model gets fps - 1 (`MicroConditioning.time_ids`)
motion_bucket_id amount of motion, 127 in the middle of the training data
noise_aug_strength  standard deviation of the noise added to the input image, in [-1, 1]; the model gets it too
sigma            noise level of the EDM formulation (Karras et al. 2022, arXiv:2206.00364), 700 down to 0.002, then 0
denoised         the denoiser's estimate of the latents without noise, D(x; sigma)
weight           guidance weight of one frame
window           input frames of one decoder call: a chunk that is kept, and context around it that is dropped

Importing this package loads nothing; each name below is imported when it is first used.
"""

from .utils.lazy_names import lazy_names

_NAMES = {
    # the method
    "VideoSettings": "pipeline",
    "image_to_video": "pipeline",
    # its stages on a runtime: placement, progress, memory
    "load": "execution",
    "embed": "execution",
    "encode": "execution",
    "noisy_latents": "execution",
    "sample": "execution",
    "decode": "execution",
    "decode_tiled": "execution",
    # the mathematics
    "MicroConditioning": "diffusion.conditioning",
    "Conditioning": "diffusion.conditioning",
    "make_conditioning_pairs": "diffusion.conditioning",
    "augment_images": "diffusion.noise_augmentation",
    "make_sigmas": "diffusion.schedules",
    "GuidanceCurve": "diffusion.guidance",
    "GuidanceRefinement": "diffusion.guidance",
    "make_denoiser": "diffusion.denoiser",
    "sample_euler": "diffusion.sampling",
    "draw_noise": "diffusion.sampling",
    # the autoencoder and the CLIP image encoder
    "embed_images": "autoencoder.encode",
    "encode_images": "autoencoder.encode",
    "plan_windows": "autoencoder.decode",
    "decode_windows": "autoencoder.decode",
    # models
    "Checkpoint": "models.components",
    "ModelOptions": "models.options",
    # checkpoints
    "load_checkpoint": "checkpoints.load",
    "inspect": "checkpoints.inspect",
    "convert_checkpoint": "checkpoints.convert",
    "download": "checkpoints.download",
    "ModelLibrary": "checkpoints.library",
    # images and videos
    "load_image": "media.image_io",
    "as_images": "media.image_io",
    "resize_images": "media.image_ops",
    "encode_mp4": "media.video_io",
    # the surrounding program
    "Runtime": "runtime.runtime",
    "LocalRuntime": "runtime.runtime",
    "use_runtime": "runtime.runtime",
}
"""Public name -> the module that defines it."""

__all__ = list(_NAMES)  # pyright: ignore[reportUnsupportedDunderAll]

__getattr__, __dir__ = lazy_names(__name__, _NAMES)
