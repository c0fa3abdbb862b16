"""The configurations of the three modules of a one-file checkpoint: depths from its facts, widths from its shapes.

Depths are never counted from the tensors: a part that is missing must be missing, and not make a smaller model. Where
several tensors say the same width, the most of them decide: then one damaged tensor is named as the wrong one, and not
all the others. Needs no torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt
from typing import Any

from ..errors import CheckpointError
from .keymap import CLIP_PREFIX, UNET_PREFIX, VAE_PREFIX, UNetLayout
from .model_metadata import ModelMetadata

CLIP_HEAD_WIDTH = 80  # ViT-H-14: 16 heads of 80
VAE_LAYERS = 2
"""ResNet layers of a VAE level. The one-file layout always has two in the middle, and diffusers as many as a level."""

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Reader:
    """Looks up shapes below one prefix of one file; a tensor that is needed and not there is an error that names it."""

    file: str
    prefix: str
    shapes: Shapes

    def size(self, axis: int, *parts: str) -> int:
        """The size along `axis` that most of the tensors `parts` have."""
        found = [self.shapes[self.prefix + part] for part in parts if self.prefix + part in self.shapes]
        sizes = Counter(shape[axis] for shape in found if len(shape) > axis)
        if not sizes:
            raise CheckpointError(
                f'{self.file} has no tensor "{self.prefix}{parts[0]}" to read the model\'s size from: the checkpoint '
                "is not complete. Download it again, or the published file of the same model.",
                code="checkpoint.missing_tensors",
            )
        return sizes.most_common(1)[0][0]


def unet_config(file: str, shapes: Shapes, facts: ModelMetadata) -> tuple[dict[str, Any], UNetLayout]:
    """Arguments for UNetSpatioTemporalConditionModel, and what its names depend on.

    Raises CheckpointError when a tensor that decides is missing, or when the widths are no multiple of a head.
    """
    reader = Reader(file, UNET_PREFIX, shapes)
    layout = UNetLayout(facts.unet_layers, facts.unet_attention)
    firsts = [1 + level * (layout.layers + 1) for level in range(len(layout.attention))]  # one more: the downsampler
    widths = tuple(_resnet_width(reader, f"input_blocks.{first}.0") for first in firsts)
    cross_blocks = [f"input_blocks.{first}.1" for first, has in zip(firsts, layout.attention, strict=True) if has]
    cross_blocks.append("middle_block.1")
    keys = [f"{block}.transformer_blocks.0.attn2.to_{each}.weight" for block in cross_blocks for each in "kv"]
    vector = reader.size(1, "label_emb.0.0.weight")
    config = {
        "sample_size": 96,  # SVD unet/config.json; what a pipeline takes for a size when it is told none
        "in_channels": reader.size(1, "input_blocks.0.0.weight"),
        "out_channels": reader.size(0, "out.2.bias", "out.2.weight"),
        "down_block_types": tuple(_block_type("Down", has) for has in layout.attention),
        "up_block_types": tuple(_block_type("Up", has) for has in reversed(layout.attention)),
        "block_out_channels": widths,
        "addition_time_embed_dim": vector // 3,  # fps, motion bucket, noise augmentation
        "projection_class_embeddings_input_dim": vector,
        "layers_per_block": layout.layers,
        "cross_attention_dim": reader.size(1, *keys),
        "transformer_layers_per_block": facts.unet_transformers,
        "num_attention_heads": tuple(_heads(file, "UNet", width, facts.unet_head_width) for width in widths),
        "num_frames": facts.defaults().num_frames,
    }
    return config, layout


def _resnet_width(reader: Reader, block: str) -> int:
    says = ("out_layers.3.weight", "out_layers.3.bias", "out_layers.0.weight", "in_layers.2.bias", "emb_layers.1.bias")
    return reader.size(0, *(f"{block}.{tensor}" for tensor in says))


def _block_type(side: str, attention: bool) -> str:
    return f"{'CrossAttn' if attention else ''}{side}BlockSpatioTemporal"


def _heads(file: str, part: str, width: int, head_width: int) -> int:
    if width % head_width:
        raise CheckpointError(
            f"the {part} of {file} is {width} wide, which is no multiple of {head_width}, the width of its attention "
            'heads in the published models. Say what it is in the file\'s "svd_stages" metadata '
            "(unet_head_width, clip_heads).",
            code="checkpoint.heads",
        )
    return width // head_width


def vae_config(file: str, shapes: Shapes, facts: ModelMetadata, encoder_prefix: str) -> dict[str, Any]:
    """Arguments for AutoencoderKLTemporalDecoder; the encoder is the one below `encoder_prefix`.

    Raises CheckpointError when a tensor that decides is missing.
    """
    decoder, encoder = Reader(file, VAE_PREFIX, shapes), Reader(file, encoder_prefix, shapes)
    says = ("conv2.weight", "conv2.bias", "norm2.weight", "conv1.bias")
    widths = tuple(
        decoder.size(0, *(f"decoder.up.{level}.block.0.{tensor}" for tensor in says))
        for level in range(facts.vae_levels)
    )
    return {
        "in_channels": encoder.size(1, "encoder.conv_in.weight"),
        "out_channels": decoder.size(0, "decoder.conv_out.bias", "decoder.conv_out.weight"),
        "down_block_types": ("DownEncoderBlock2D",) * facts.vae_levels,
        "block_out_channels": widths,
        "layers_per_block": VAE_LAYERS,
        "latent_channels": decoder.size(1, "decoder.conv_in.weight"),
        "sample_size": 768,  # SVD vae/config.json; tells only how tiles are cut, which we do not use
        "scaling_factor": facts.scaling_factor,
        "force_upcast": facts.force_upcast,
    }


def clip_config(file: str, shapes: Shapes, facts: ModelMetadata) -> dict[str, Any]:
    """Arguments for transformers' CLIPVisionConfig.

    Raises CheckpointError when a tensor that decides is missing, or when the head count cannot be told.
    """
    reader = Reader(file, CLIP_PREFIX, shapes)
    width = reader.size(0, "class_embedding", "ln_pre.weight", "ln_post.weight", "conv1.weight")
    patch = reader.size(2, "conv1.weight")
    heads = facts.clip_heads or _heads(file, "CLIP tower", width, CLIP_HEAD_WIDTH)
    if width % heads:
        raise CheckpointError(
            f'the CLIP tower of {file} is {width} wide, which does not divide into the {heads} heads that "clip_heads" '
            'in its metadata says. Correct the "svd_stages" metadata.',
            code="checkpoint.heads",
        )
    layer = "transformer.resblocks.0"
    return {
        "hidden_size": width,
        "intermediate_size": reader.size(0, f"{layer}.mlp.c_fc.weight", f"{layer}.mlp.c_fc.bias"),
        "num_hidden_layers": facts.clip_layers,
        "num_attention_heads": heads,
        "num_channels": reader.size(1, "conv1.weight"),
        "patch_size": patch,
        "image_size": patch * isqrt(max(reader.size(0, "positional_embedding") - 1, 1)),
        "projection_dim": reader.size(1, "proj"),
        "hidden_act": "gelu",  # open_clip ViT-H-14; the default of CLIPVisionConfig is another
    }
