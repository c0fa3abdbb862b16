"""Encode images to latents and decode latents to images with the temporal VAE."""
