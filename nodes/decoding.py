"""The node of the decoding stage."""

from __future__ import annotations

from ..svd_core.runtime.runtime import get_runtime
from . import sockets, wire_formats
from .base import StageNode


class SVDTemporalVAEDecode(StageNode):
    """LATENT -> list of IMAGE, one batch of frames per video."""

    DESCRIPTION = (
        "Decodes the video. exact lets every frame see every other, layer by layer, in little memory; windowed decodes "
        "chunk_size frames at a time, seen with context frames on both sides. Never chosen by free memory."
    )
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("images",)
    OUTPUT_IS_LIST = (True,)
    OUTPUT_TOOLTIPS = ("The frames: one batch per video, so that a saver runs once per video.",)
    INPUTS = {
        "vae": sockets.socket(sockets.EITHER_VAE, "The temporal VAE, ours or ComfyUI's."),
        "latent": sockets.socket("LATENT", "The sampled video."),
        "mode": sockets.decode_mode(),
        **sockets.decode_window(),
    }

    def run(self, vae, latent: dict, mode: str, chunk_size: int, context: int) -> tuple:
        from ..svd_core import execution

        clips = wire_formats.read_latent(latent).clips
        return (execution.decode(get_runtime(), wire_formats.vae(vae), clips, mode, chunk_size, context),)
