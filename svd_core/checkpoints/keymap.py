"""Map tensor names between the two published formats, in both directions.

One side is Stability's single-file layout (github.com/Stability-AI/generative-models,
sgm/modules/diffusionmodules/video_model.py and sgm/modules/autoencoding/temporal_ae.py, and open_clip's vision tower),
the other the modules of diffusers and transformers. A `KeyMapping` maps the tensors below one dotted name to those
below another; the longest matching name decides. Written from the classes of both sides, not from diffusers' conversion
script, whose VAE part is outdated.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from .reader import LazyTensor, Tensors

if TYPE_CHECKING:
    import torch

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
CLIP_PREFIX = "conditioner.embedders.0.open_clip.model.visual."
CONDITIONING_VAE_PREFIX = "conditioner.embedders.3.encoder."
"""The second VAE of a single file: the reference implementation encodes the conditioning image with its encoder."""

FIRST_ENCODER = VAE_PREFIX + "encoder."
SECOND_DECODER = (CONDITIONING_VAE_PREFIX + "decoder.", CONDITIONING_VAE_PREFIX + "post_quant_conv.")
UNUSED_PREFIXES = {
    "conditioner.embedders.0.open_clip.model.": "the text encoder",
    **dict.fromkeys(SECOND_DECODER, "the second VAE's decoder"),
    FIRST_ENCODER: "the first VAE's encoder",
    "denoiser.": "training",
    "model_ema.": "training",
}
"""Prefix of tensors that published files hold in addition to the model -> their origin."""


class TensorTransform(Enum):
    """Conversion of a tensor of the single file to the module's tensor."""

    NONE = "unchanged"
    MATRIX = "1x1 convolution (o, i, 1, 1) -> matrix (o, i)"
    TRANSPOSE = "(i, o) -> (o, i)"
    QUERY = "first third of the rows"
    KEY = "second third of the rows"
    VALUE = "last third of the rows"


THIRDS = (TensorTransform.QUERY, TensorTransform.KEY, TensorTransform.VALUE)


@dataclass(frozen=True)
class KeyMapping:
    """Maps the tensors below `file` in the single-file layout to those below `module` in diffusers or transformers."""

    file: str
    module: str
    transform: TensorTransform = TensorTransform.NONE


@dataclass(frozen=True)
class UNetLayout:
    """Layout that the UNet's names depend on: ResNet layers per level, and for each level True if it has attention."""

    layers: int
    attention: tuple[bool, ...]


Rows = tuple[tuple[str, str], ...]


def _unchanged(*names: str) -> Rows:
    return tuple((name, name) for name in names)


UNET_ENDS: Rows = (
    ("time_embed.0", "time_embedding.linear_1"),
    ("time_embed.2", "time_embedding.linear_2"),
    ("label_emb.0.0", "add_embedding.linear_1"),
    ("label_emb.0.2", "add_embedding.linear_2"),
    ("input_blocks.0.0", "conv_in"),
    ("out.0", "conv_norm_out"),
    ("out.2", "conv_out"),
)
RESNET: Rows = (
    ("in_layers.0", "norm1"),
    ("in_layers.2", "conv1"),
    ("emb_layers.1", "time_emb_proj"),  # only in the UNet
    ("out_layers.0", "norm2"),
    ("out_layers.3", "conv2"),
)
TEMPORAL_RESNET: Rows = tuple((f"time_stack.{file}", f"temporal_res_block.{module}") for file, module in RESNET)
UNET_RESNET: Rows = (
    *((file, f"spatial_res_block.{module}") for file, module in RESNET),
    ("skip_connection", "spatial_res_block.conv_shortcut"),
    *TEMPORAL_RESNET,
    *_unchanged("time_mixer.mix_factor"),
)
UNET_ATTENTION: Rows = (
    *_unchanged("norm", "proj_in", "transformer_blocks", "time_mixer.mix_factor", "proj_out"),
    ("time_stack", "temporal_transformer_blocks"),
    ("time_pos_embed.0", "time_pos_embed.linear_1"),
    ("time_pos_embed.2", "time_pos_embed.linear_2"),
)
VAE_RESNET: Rows = (*_unchanged("norm1", "conv1", "norm2", "conv2"), ("nin_shortcut", "conv_shortcut"))
VAE_TEMPORAL_RESNET: Rows = (
    *((file, f"spatial_res_block.{module}") for file, module in VAE_RESNET),
    *TEMPORAL_RESNET,
    ("mix_factor", "time_mixer.mix_factor"),  # on both sides sigmoid(mix_factor) weights the temporal branch
)
VAE_ATTENTION_MATRICES: Rows = (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("proj_out", "to_out.0"))
VAE_ENDS: Rows = (("conv_in", "conv_in"), ("norm_out", "conv_norm_out"), ("conv_out", "conv_out"))
CLIP_ENDS: Rows = (
    ("class_embedding", "vision_model.embeddings.class_embedding"),
    ("positional_embedding", "vision_model.embeddings.position_embedding.weight"),
    ("conv1", "vision_model.embeddings.patch_embedding"),
    ("ln_pre", "vision_model.pre_layrnorm"),
    ("ln_post", "vision_model.post_layernorm"),
)
CLIP_LAYER: Rows = (
    ("ln_1", "layer_norm1"),
    ("attn.out_proj", "self_attn.out_proj"),
    ("ln_2", "layer_norm2"),
    ("mlp.c_fc", "mlp.fc1"),
    ("mlp.c_proj", "mlp.fc2"),
)
CLIP_PROJECTIONS = dict(zip(("q_proj", "k_proj", "v_proj"), THIRDS, strict=True))


class Keymap:
    """The key mappings of one component, with lookup in both directions. `prefix` is its prefix in the file."""

    def __init__(self, prefix: str, mappings: Iterable[KeyMapping]):
        self.prefix = prefix
        self._by_file: dict[str, list[KeyMapping]] = {}
        self._by_module: dict[str, KeyMapping] = {}
        for mapping in mappings:
            self._by_file.setdefault(prefix + mapping.file, []).append(mapping)
            self._by_module[mapping.module] = mapping

    def module_names(self, name: str) -> list[tuple[str, TensorTransform]]:
        """Return the module's tensors that come from the file's tensor `name`, with their transforms."""
        for start, rest in _splits(name):
            if start in self._by_file:
                return [(mapping.module + rest, mapping.transform) for mapping in self._by_file[start]]
        return []

    def file_name(self, name: str) -> tuple[str, TensorTransform] | None:
        """Return the file's tensor that the module's tensor `name` comes from, with its transform. None if unmapped."""
        for start, rest in _splits(name):
            if start in self._by_module:
                mapping = self._by_module[start]
                return self.prefix + mapping.file + rest, mapping.transform
        return None

    def to_module(self, tensors: Tensors) -> Tensors:
        """Rename the file's tensors to the module's names. Unmapped tensors are omitted."""
        return {
            module_name: _to_module(tensor, transform)
            for name, tensor in tensors.items()
            for module_name, transform in self.module_names(name)
        }

    def to_file(self, tensors: Tensors) -> Tensors:
        """Rename the module's tensors to the file's names. Unmapped tensors are omitted."""
        sources: dict[str, dict[TensorTransform, LazyTensor]] = {}
        for name, tensor in tensors.items():
            target = self.file_name(name)
            if target is not None:
                sources.setdefault(target[0], {})[target[1]] = tensor
        return {name: _to_file(by_transform) for name, by_transform in sources.items()}


def unet_keymap(layout: UNetLayout) -> Keymap:
    """Return the mappings of the UNet."""
    layers, levels = layout.layers, len(layout.attention)
    mappings = [KeyMapping(file, module) for file, module in UNET_ENDS]
    for level, attention in enumerate(layout.attention):
        first = 1 + level * (layers + 1)
        for layer in range(layers):
            mappings += _unet_layer(f"input_blocks.{first + layer}", f"down_blocks.{level}", layer, attention)
        if level < levels - 1:
            file, module = f"input_blocks.{first + layers}.0.op", f"down_blocks.{level}.downsamplers.0.conv"
            mappings.append(KeyMapping(file, module))
    mappings += _below("middle_block.0", "mid_block.resnets.0", UNET_RESNET)
    mappings += _below("middle_block.1", "mid_block.attentions.0", UNET_ATTENTION)
    mappings += _below("middle_block.2", "mid_block.resnets.1", UNET_RESNET)
    for level, attention in enumerate(reversed(layout.attention)):
        for layer in range(layers + 1):
            block = f"output_blocks.{level * (layers + 1) + layer}"
            mappings += _unet_layer(block, f"up_blocks.{level}", layer, attention)
        if level < levels - 1:
            last = f"output_blocks.{level * (layers + 1) + layers}.{2 if attention else 1}.conv"
            mappings.append(KeyMapping(last, f"up_blocks.{level}.upsamplers.0.conv"))
    return Keymap(UNET_PREFIX, mappings)


def _unet_layer(block: str, module: str, layer: int, attention: bool) -> list[KeyMapping]:
    mappings = _below(f"{block}.0", f"{module}.resnets.{layer}", UNET_RESNET)
    if attention:
        mappings += _below(f"{block}.1", f"{module}.attentions.{layer}", UNET_ATTENTION)
    return mappings


def vae_encoder_keymap(levels: int, layers: int, prefix: str) -> Keymap:
    """Return the mappings of the VAE's encoder and quant_conv. `prefix` is that of the first or of the second VAE."""
    mappings = [KeyMapping("quant_conv", "quant_conv"), *_below("encoder", "encoder", VAE_ENDS)]
    for level in range(levels):
        mappings += _vae_level(f"encoder.down.{level}", f"encoder.down_blocks.{level}", layers, VAE_RESNET, "down")
    return Keymap(prefix, mappings + _vae_middle("encoder", VAE_RESNET))


def vae_decoder_keymap(levels: int, layers: int) -> Keymap:
    """Return the mappings of the temporal decoder. Level 0 is the image's in the file, the latent's in the module."""
    mappings = _below("decoder", "decoder", (*VAE_ENDS, ("conv_out.time_mix_conv", "time_conv_out")))
    for level in range(levels):
        file, module = f"decoder.up.{level}", f"decoder.up_blocks.{levels - 1 - level}"
        mappings += _vae_level(file, module, layers + 1, VAE_TEMPORAL_RESNET, "up")
    return Keymap(VAE_PREFIX, mappings + _vae_middle("decoder", VAE_TEMPORAL_RESNET))


def _vae_level(file: str, module: str, layers: int, resnet: Rows, direction: str) -> list[KeyMapping]:
    mappings = [KeyMapping(f"{file}.{direction}sample.conv", f"{module}.{direction}samplers.0.conv")]
    for layer in range(layers):
        mappings += _below(f"{file}.block.{layer}", f"{module}.resnets.{layer}", resnet)
    return mappings


def _vae_middle(side: str, resnet: Rows) -> list[KeyMapping]:
    file, module = f"{side}.mid", f"{side}.mid_block"
    mappings = _below(f"{file}.block_1", f"{module}.resnets.0", resnet)
    mappings += _below(f"{file}.block_2", f"{module}.resnets.1", resnet)
    attention = f"{module}.attentions.0"
    mappings.append(KeyMapping(f"{file}.attn_1.norm", f"{attention}.group_norm"))
    for file_end, module_end in VAE_ATTENTION_MATRICES:
        mappings.append(KeyMapping(f"{file}.attn_1.{file_end}", f"{attention}.{module_end}", TensorTransform.MATRIX))
    return mappings


def clip_keymap(layers: int) -> Keymap:
    """Return the mappings of the CLIP image encoder and its projection."""
    mappings = [KeyMapping(file, module) for file, module in CLIP_ENDS]
    mappings.append(KeyMapping("proj", "visual_projection.weight", TensorTransform.TRANSPOSE))
    for layer in range(layers):
        file, module = f"transformer.resblocks.{layer}", f"vision_model.encoder.layers.{layer}"
        mappings += _below(file, module, CLIP_LAYER)
        for projection, third in CLIP_PROJECTIONS.items():
            for kind in ("weight", "bias"):
                target = f"{module}.self_attn.{projection}.{kind}"
                mappings.append(KeyMapping(f"{file}.attn.in_proj_{kind}", target, third))
    return Keymap(CLIP_PREFIX, mappings)


def _below(file: str, module: str, rows: Rows) -> list[KeyMapping]:
    return [KeyMapping(f"{file}.{file_end}", f"{module}.{module_end}") for file_end, module_end in rows]


def _splits(name: str) -> Iterator[tuple[str, str]]:
    """Split `name` at each dot, longest start first; the rest begins with the dot."""
    end = len(name)
    while end > 0:
        yield name[:end], name[end:]
        end = name.rfind(".", 0, end)


def _to_module(tensor: LazyTensor, transform: TensorTransform) -> LazyTensor:
    """Convert a tensor of the file to the module's, still unread."""
    if transform is TensorTransform.NONE:
        return tensor
    shape = tensor.shape
    if transform is TensorTransform.MATRIX:
        shape = shape[:2] if shape[2:] == (1, 1) else shape
    elif transform is TensorTransform.TRANSPOSE:
        shape = shape[::-1]
    elif shape and shape[0] % 3 == 0:
        shape = (shape[0] // 3, *shape[1:])
    return LazyTensor(tensor.dtype, shape, lambda: apply_transform(tensor.read(), transform))


def apply_transform(tensor: torch.Tensor, transform: TensorTransform) -> torch.Tensor:
    """Convert a tensor of the file to the module's. The result is a view."""
    if transform is TensorTransform.MATRIX:
        return tensor.flatten(1) if tensor.ndim == 4 else tensor
    if transform is TensorTransform.TRANSPOSE:
        return tensor.T
    if transform in THIRDS:
        return tensor.chunk(3)[THIRDS.index(transform)]
    return tensor


def _to_file(sources: dict[TensorTransform, LazyTensor]) -> LazyTensor:
    """Convert one tensor of the module, or three (query, key, value), to the file's tensor, still unread."""
    transform, first = next(iter(sources.items()))
    if transform in THIRDS:
        rows = [sources[third] for third in THIRDS]
        shape = (sum(row.shape[0] for row in rows), *first.shape[1:])
        return LazyTensor(first.dtype, shape, lambda: _concatenate(rows))
    if transform is TensorTransform.TRANSPOSE:
        return LazyTensor(first.dtype, first.shape[::-1], lambda: first.read().T)
    if transform is TensorTransform.MATRIX and len(first.shape) == 2:
        return LazyTensor(first.dtype, (*first.shape, 1, 1), lambda: first.read()[:, :, None, None])
    return first


def _concatenate(rows: list[LazyTensor]) -> torch.Tensor:
    import torch

    return torch.cat([row.read() for row in rows])
