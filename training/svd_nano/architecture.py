"""The architecture of svd-nano, of diffusers' and transformers' classes, and its initialization.

Two experimental results: GroupNorm has 32 groups in these classes, so every level has at least 64 channels, because a
group of one channel loses the brightness of the image. The last layer of each residual branch starts at zero, which
learns markedly faster: the network starts close to linear.
"""

# The model classes declare their submodules as plain modules and their outputs as unions: a type checker cannot follow.
# pyright: reportAttributeAccessIssue=false, reportIndexIssue=false, reportOptionalSubscript=false
# pyright: reportOptionalMemberAccess=false, reportArgumentType=false

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from ...svd_core.checkpoints.model_metadata import CLIP_MEAN, CLIP_STD, ModelMetadata

if TYPE_CHECKING:
    from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
    from transformers import CLIPVisionModelWithProjection

UNET = {
    "sample_size": 16,
    "block_out_channels": (64, 64, 128, 64),
    "num_attention_heads": (1, 1, 2, 1),
    "cross_attention_dim": 128,
    "layers_per_block": 1,
    "num_frames": 14,
}
VAE = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "block_out_channels": (64, 64, 64, 64),
    "layers_per_block": 2,  # as published: the single-file layout needs two blocks in the decoder's middle
    "sample_size": 128,
}
CLIP_VISION = {
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "patch_size": 16,
    "image_size": 224,
    "projection_dim": 128,
    "hidden_act": "gelu",
    "attn_implementation": "eager",  # trains faster on a CPU; the loader uses its own
}
METADATA = ModelMetadata(
    num_frames=14,
    width=128,
    height=128,
    min_guidance=1.0,
    max_guidance=2.5,
    preset="fast",
    clip_heads=2,
    unet_head_width=64,
    image_mean=CLIP_MEAN,
    image_std=CLIP_STD,
)
BRANCH_ENDS = ("conv2.weight", "to_out.0.weight", "net.2.weight", "conv_out.weight", "fc2.weight", "proj_out.weight")
"""Last layers of residual branches, and the UNet's last convolution: these start at zero."""


class NanoModules(torch.nn.Module):
    """The modules of svd-nano."""

    def __init__(
        self,
        unet: UNetSpatioTemporalConditionModel,
        vae: AutoencoderKLTemporalDecoder,
        clip: CLIPVisionModelWithProjection,
    ) -> None:
        super().__init__()
        self.unet, self.vae, self.clip = unet, vae, clip


def new_modules(seed: int) -> NanoModules:
    """Create the modules before training: the same weights for the same seed, whatever the global random state."""
    from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    with torch.random.fork_rng(devices=[]):
        unet = UNetSpatioTemporalConditionModel(**UNET)
        vae = AutoencoderKLTemporalDecoder(**VAE)
        clip = CLIPVisionModelWithProjection(CLIPVisionConfig(**CLIP_VISION))
    generator = torch.Generator("cpu").manual_seed(seed)
    for module in (unet, vae, clip):
        _draw(module, generator)
    with torch.no_grad():
        _start_as_downscaling(vae, generator)
        _start_as_image(unet, generator)
    return NanoModules(unet, vae, clip)


def _draw(module: torch.nn.Module, generator: torch.Generator) -> None:
    """Draw weights that keep the scale of activations. Norms start at 1, biases and ends of residual branches at 0."""
    for name, parameter in module.named_parameters():
        if "mix_factor" in name:
            continue
        if parameter.ndim > 1:
            drawn = torch.randn(parameter.shape, generator=generator) / math.sqrt(parameter[0].numel())
            is_end = name.endswith(BRANCH_ENDS) and ".transformer_blocks." not in name  # proj_out ends a transformer
            parameter.data.copy_(0 * drawn if is_end else drawn)
        else:
            parameter.data.fill_(1.0 if name.endswith("weight") else 0.0)


def _draw_directions(dimensions: int, generator: torch.Generator) -> torch.Tensor:
    """Draw 32 unit vectors (32, dimensions)."""
    return torch.nn.functional.normalize(torch.randn((32, dimensions), generator=generator), dim=1)


def _pairs(directions: torch.Tensor, dim: int = 0) -> torch.Tensor:
    """Interleave 32 directions with their negatives along `dim`, as pairs of channels u and -u.

    A group of GroupNorm is such a pair, whose mean is zero: the norm keeps the color's own mean and divides by its
    size. And silu(x) - silu(-x) = x.
    """
    return torch.stack([directions, -directions], dim=dim + 1).flatten(dim, dim + 1)


def _start_as_downscaling(vae: AutoencoderKLTemporalDecoder, generator: torch.Generator) -> None:
    """Initialize the encoder as downscaling of the colors by 8, and the decoder as upscaling. Training adds detail."""
    directions = _draw_directions(4, generator)
    pairs = _pairs(directions)
    inverse = _pairs(torch.linalg.pinv(directions[:, :3]), dim=1)
    _set_center(vae.encoder.conv_in, pairs[:, :3])
    _set_center(vae.encoder.conv_out, torch.cat([inverse, 0.1 * pairs[:, 3:].T, torch.zeros(4, 64)]))
    vae.encoder.conv_out.bias[4:] = -5.0  # the posterior's log variance
    _set_center(vae.quant_conv, torch.eye(8))
    _set_center(vae.decoder.conv_in, pairs)
    _set_center(vae.decoder.conv_out, 0.4 * inverse)
    for block in vae.encoder.down_blocks[:-1]:
        _blur_channels(block.downsamplers[0].conv, torch.tensor([0.5, 0.5, 0.0]))
    for block in vae.decoder.up_blocks[:-1]:
        _blur_channels(block.upsamplers[0].conv, torch.tensor([0.25, 0.5, 0.25]))
    time_conv = vae.decoder.time_conv_out
    time_conv.bias.zero_()
    time_conv.weight.zero_()
    time_conv.weight[range(3), range(3), time_conv.weight.shape[2] // 2] = 1.0


def _start_as_image(unet: UNetSpatioTemporalConditionModel, generator: torch.Generator) -> None:
    """Initialize v as minus the image: at a high noise level, every frame is then the image."""
    directions = _draw_directions(8, generator)
    pairs = _pairs(directions)
    inverse = _pairs(torch.linalg.pinv(directions)[4:], dim=1)
    pairs[:, 4:] *= METADATA.scaling_factor  # the image latent is unscaled, the noisy latents are scaled
    _set_center(unet.conv_in, pairs)
    _set_center(unet.conv_out, -inverse)
    shortcut = unet.up_blocks[-1].resnets[-1].spatial_res_block.conv_shortcut
    shortcut.weight.mul_(0.1)
    shortcut.weight[:, 64:, 0, 0] = torch.eye(64)


def _set_center(conv: torch.nn.Conv2d, weight: torch.Tensor) -> None:
    """Make a convolution pointwise, with `weight` (out, in)."""
    conv.weight.zero_()
    center = conv.kernel_size[0] // 2
    conv.weight[:, :, center, center] = weight


def _blur_channels(conv: torch.nn.Conv2d, row: torch.Tensor) -> None:
    """Make a convolution blur each channel by `row` along both axes, with small weights between channels."""
    conv.weight.mul_(0.1)
    channels = range(conv.weight.shape[0])
    conv.weight[channels, channels] = row[:, None] * row[None]
