"""The three modules of svd-nano: the real classes, small, and the weights that training starts from.

Two things were found by trying. GroupNorm has 32 groups in these classes, so every level is at least 64 wide: a group
of one channel forgets how bright the picture is. Residual branches end in zeros: each block begins as nothing, and the
whole as something close to linear, which learns markedly faster.
"""

# The model classes declare their parts as bare modules and their outputs as unions: a type checker cannot follow.
# pyright: reportAttributeAccessIssue=false, reportIndexIssue=false, reportOptionalSubscript=false
# pyright: reportOptionalMemberAccess=false, reportArgumentType=false

from __future__ import annotations

import math
from dataclasses import dataclass
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
    "layers_per_block": 2,  # as published: the one-file layout has two blocks in the decoder's middle, no other number
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
    "attn_implementation": "eager",  # trains faster on a CPU; the loader builds its own
}
FACTS = ModelMetadata(
    num_frames=14,
    width=128,
    height=128,
    min_guidance=1.0,
    max_guidance=2.5,
    clip_heads=2,
    unet_head_width=64,
    image_mean=CLIP_MEAN,
    image_std=CLIP_STD,
)
BRANCH_ENDS = ("conv2.weight", "to_out.0.weight", "net.2.weight", "conv_out.weight", "fc2.weight", "proj_out.weight")
"""Ends of residual branches, and the UNet's last convolution: these start at zero."""


@dataclass(frozen=True, eq=False)
class NanoModules:
    """svd-nano's modules, float32."""

    unet: UNetSpatioTemporalConditionModel
    vae: AutoencoderKLTemporalDecoder
    clip: CLIPVisionModelWithProjection


def new_modules(seed: int) -> NanoModules:
    """The modules before training: the same weights each time, whatever the global random state is."""
    from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    with torch.random.fork_rng(devices=[]):
        unet = UNetSpatioTemporalConditionModel(**UNET)
        vae = AutoencoderKLTemporalDecoder(**VAE)
        clip = CLIPVisionModelWithProjection(CLIPVisionConfig(**CLIP_VISION))
    generator = torch.Generator("cpu").manual_seed(seed)
    for module in (unet, vae, clip):
        _draw(module, generator)
    _start_as_colours(vae, generator)
    _start_as_the_image(unet, generator)
    return NanoModules(unet, vae, clip)


def _draw(module: torch.nn.Module, generator: torch.Generator) -> None:
    """Weights that keep the scale of what passes through; norms at 1, biases and the ends of branches at 0."""
    for name, parameter in module.named_parameters():
        if "mix_factor" in name:
            continue
        if parameter.ndim > 1:
            drawn = torch.randn(parameter.shape, generator=generator) / math.sqrt(parameter[0].numel())
            ends = name.endswith(BRANCH_ENDS) and ".transformer_blocks." not in name  # proj_out ends a transformer
            parameter.data.copy_(0 * drawn if ends else drawn)
        else:
            parameter.data.fill_(1.0 if name.endswith("weight") else 0.0)


def _start_as_colours(vae: AutoencoderKLTemporalDecoder, generator: torch.Generator) -> None:
    """Begin as a picture's colours at an eighth of its size, and back: training only has to add the detail.

    Channels come in pairs of a colour u and -u. A group of GroupNorm is such a pair, whose mean is zero: the norm
    keeps the colour's own mean and divides by its size; and silu(x) - silu(-x) = x.
    """
    ways = torch.nn.functional.normalize(torch.randn((32, 4), generator=generator), dim=1)
    pairs = torch.stack([ways, -ways], dim=1).flatten(0, 1)
    back = torch.linalg.pinv(ways[:, :3])
    back = torch.stack([back, -back], dim=2).flatten(1)
    with torch.no_grad():
        _only_middle(vae.encoder.conv_in, pairs[:, :3])
        _only_middle(vae.encoder.conv_out, torch.cat([back, 0.1 * pairs[:, 3:].T, torch.zeros(4, 64)]))
        vae.encoder.conv_out.bias[4:] = -5.0  # the posterior's log variance
        _only_middle(vae.quant_conv, torch.eye(8))
        _only_middle(vae.decoder.conv_in, pairs)
        _only_middle(vae.decoder.conv_out, 0.4 * back)
        for block in vae.encoder.down_blocks[:-1]:
            _each_channel(block.downsamplers[0].conv, torch.tensor([0.5, 0.5, 0.0]))
        for block in vae.decoder.up_blocks[:-1]:
            _each_channel(block.upsamplers[0].conv, torch.tensor([0.25, 0.5, 0.25]))
        over_time = vae.decoder.time_conv_out
        over_time.bias.zero_()
        over_time.weight.zero_()
        over_time.weight[range(3), range(3), over_time.weight.shape[2] // 2] = 1.0


def _start_as_the_image(unet: UNetSpatioTemporalConditionModel, generator: torch.Generator) -> None:
    """Begin with every frame as the image: v = -image, which at much noise is the image. The pairs are the VAE's."""
    ways = torch.nn.functional.normalize(torch.randn((32, 8), generator=generator), dim=1)
    back = torch.linalg.pinv(ways)[4:]
    into = ways.clone()
    into[:, 4:] *= FACTS.scaling_factor  # the image latent is unscaled, the noisy latents are scaled
    with torch.no_grad():
        _only_middle(unet.conv_in, torch.stack([into, -into], dim=1).flatten(0, 1))
        _only_middle(unet.conv_out, -torch.stack([back, -back], dim=2).flatten(1))
        shortcut = unet.up_blocks[-1].resnets[-1].spatial_res_block.conv_shortcut
        shortcut.weight.mul_(0.1)
        shortcut.weight[:, 64:, 0, 0] = torch.eye(64)


def _only_middle(convolution: torch.nn.Conv2d, weight: torch.Tensor) -> None:
    """Look at one pixel only, with `weight` (out, in)."""
    convolution.weight.zero_()
    middle = convolution.kernel_size[0] // 2
    convolution.weight[:, :, middle, middle] = weight


def _each_channel(convolution: torch.nn.Conv2d, row: torch.Tensor) -> None:
    """Pass each channel on, smoothed by `row` down and across; a little of the others stays."""
    convolution.weight.mul_(0.1)
    channels = range(convolution.weight.shape[0])
    convolution.weight[channels, channels] = row[:, None] * row[None]
