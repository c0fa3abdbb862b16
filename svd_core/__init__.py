"""The library under the nodes: Stable Video Diffusion, one function a stage. Knows no ComfyUI and no node.

Glossary
--------
B        videos (one per input image)
F        frames of one video
N        sampling steps; a row of sigmas has N + 1 numbers
H, W     height and width in pixels
h, w     height and width in latent pixels, H / 8 and W / 8
D        width of the CLIP image embedding, 1024 in the published models

pixels           (B, 3, H, W) float32 in [-1, 1]; what the VAE takes and gives
images           (B, H, W, 3) float32 in [0, 1]; ComfyUI's IMAGE. Noise-augmented images leave that range on purpose
unscaled latents (F, 4, h, w) what the VAE's encoder returns and its decoder takes; on every LATENT wire
scaled latents   (B, F, 4, h, w) unscaled times the VAE's scaling_factor (0.18215); only inside the sampling loop
image latent     (B, 4, h, w) posterior mode of the (augmented) input image, unscaled, joined to every frame
embeds           (B, 1, D) the input image's CLIP embedding, the one token of cross-attention
fps              frames per second as the user says it; the model is told fps - 1, once, in `conditioning.time_ids`
motion_bucket_id how much motion, 127 in training's middle
noise_aug_strength  standard deviation of the noise added to the input image in [-1, 1]; the model is told it too
sigma            noise level of the EDM formulation (Karras et al. 2022, arXiv:2206.00364), 700 down to 0.002, then 0
denoised         the denoiser's estimate of the latents without noise, D(x; sigma)
weight           guidance weight of one frame
window           the frames that one decoder call sees: a chunk that is kept, and context around it that is dropped
"""
