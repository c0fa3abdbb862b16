"""Write random checkpoints in Stability's one-file layout with 320 channels per level: `random_checkpoint.py FOLDER`.

This reads the names and shapes of the published files and does not import the package, so it cannot repeat a mistake in
the package's key table. The VAE, the CLIP tower and the conditioning encoder keep their published shapes, which readers
may assume. The seed of each tensor is made from its name.

Tensors are float16, which float32 represents exactly.
"""

from __future__ import annotations

import gzip
import json
import math
import sys
import zlib
from pathlib import Path

import torch
from safetensors.torch import save_file

LAYOUT = Path(__file__).parents[1] / "data" / "svd_single_file_layout.json.gz"
UNET = "model.diffusion_model."
CLIP = "conditioner.embedders.0.open_clip.model.visual."
VAE = "first_stage_model."
CONDITIONING_ENCODER = "conditioner.embedders.3.encoder."
WIDTH = 320

NARROW_ENDINGS = {
    ".emb_layers.1.weight": (WIDTH, 4 * WIDTH),
    ".attn2.to_k.weight": (WIDTH, 1024),
    ".attn2.to_v.weight": (WIDTH, 1024),
    ".net.0.proj.weight": (8 * WIDTH, WIDTH),
    ".net.0.proj.bias": (8 * WIDTH,),
    ".net.2.weight": (WIDTH, 4 * WIDTH),
    ".time_pos_embed.0.weight": (4 * WIDTH, WIDTH),
    ".time_pos_embed.0.bias": (4 * WIDTH,),
    ".time_pos_embed.2.weight": (WIDTH, 4 * WIDTH),
}
"""Shapes that are not square in the level's channels: time embedding, image tokens and feed-forward layers."""

JOINED_ENDINGS = {
    ".0.in_layers.0.weight": (2 * WIDTH,),
    ".0.in_layers.0.bias": (2 * WIDTH,),
    ".0.in_layers.2.weight": (WIDTH, 2 * WIDTH, 3, 3),
    ".0.skip_connection.weight": (WIDTH, 2 * WIDTH, 1, 1),
}
"""Shapes in the spatial residual blocks of the decoder half, which read the lower level and the skip concatenated."""


def published_layout() -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor in the published files, by name."""
    layout = json.loads(gzip.decompress(LAYOUT.read_bytes()))["tensors"]
    return {name: tuple(shape) for name, shape in layout.items()}


def narrow_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return the shape of a UNet tensor with 320 channels per level. None if that UNet has no such tensor."""
    if not name.startswith((f"{UNET}input_blocks", f"{UNET}middle_block", f"{UNET}output_blocks")):
        return shape
    if name.startswith(f"{UNET}input_blocks") and ".skip_connection." in name:
        return None  # the first block of a level changes no channels
    endings = dict(NARROW_ENDINGS)
    if name.startswith(f"{UNET}output_blocks") and ".time_stack." not in name:
        endings |= JOINED_ENDINGS
    for ending, narrow in endings.items():
        if name.endswith(ending):
            return narrow
    return tuple(WIDTH if size in (WIDTH, 2 * WIDTH, 4 * WIDTH) else size for size in shape)


def random_values(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Draw values of a scale that keeps activations near 1 and gives every tensor an effect."""
    generator = torch.Generator("cpu").manual_seed(zlib.crc32(name.encode()))
    noise = torch.randn(shape, generator=generator)
    if name.endswith("mix_factor"):
        return noise
    if name.endswith(("class_embedding", "positional_embedding")):
        return noise * 0.5
    if len(shape) == 1:
        return 1 + 0.2 * noise if name.endswith(".weight") else 0.2 * noise
    inputs = shape[0] if name.endswith(".proj") else math.prod(shape[1:])
    return noise / math.sqrt(inputs)


def random_checkpoint() -> dict[str, torch.Tensor]:
    """Return all tensors of the four models, float16."""
    tensors = {}
    for name, shape in published_layout().items():
        narrow = narrow_shape(name, shape)
        if narrow is not None and name.startswith((UNET, CLIP, VAE, CONDITIONING_ENCODER)):
            tensors[name] = random_values(name, narrow).half()
    return tensors


def main(folder: str) -> None:
    """Write `with_conditioning_encoder.safetensors`, and `without.safetensors` without `CONDITIONING_ENCODER`."""
    tensors = random_checkpoint()
    save_file(tensors, Path(folder, "with_conditioning_encoder.safetensors"))
    without = {name: tensor for name, tensor in tensors.items() if not name.startswith(CONDITIONING_ENCODER)}
    save_file(without, Path(folder, "without.safetensors"))


if __name__ == "__main__":
    main(sys.argv[1])
