"""The names of one model in its two published forms, as one table that is read in both directions.

Stability's one-file layout (github.com/Stability-AI/generative-models, sgm/modules/diffusionmodules/video_model.py and
sgm/modules/autoencoding/temporal_ae.py, and open_clip's vision tower) against the modules of diffusers and
transformers. A pair says that the tensors below one dotted prefix are those below the other; the longest prefix that
fits decides. Written from the classes on both sides, not from diffusers' conversion script, whose VAE part is stale.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from .lazy_tensors import LazyTensor, Tensors

if TYPE_CHECKING:
    import torch

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
CLIP_PREFIX = "conditioner.embedders.0.open_clip.model.visual."
CONDITIONING_VAE_PREFIX = "conditioner.embedders.3.encoder."
"""The second VAE of a one-file checkpoint: the reference encodes the conditioning image with its encoder."""

FIRST_ENCODER = VAE_PREFIX + "encoder."
SECOND_DECODER = (CONDITIONING_VAE_PREFIX + "decoder.", CONDITIONING_VAE_PREFIX + "post_quant_conv.")
TEXT_TOWER = "conditioner.embedders.0.open_clip.model."
LEFTOVERS = {
    **{
        TEXT_TOWER + end: "the text tower"
        for end in ("positional_embedding", "text_projection", "logit_scale", "token_embedding.", "ln_final.")
    },
    **{each: "the second VAE's decoder" for each in SECOND_DECODER},
    FIRST_ENCODER: "the first VAE's encoder",
    "denoiser.": "training",
    "model_ema.": "training",
}
"""How the names begin of what files hold beside the model -> what it is of."""


class TensorTransform(Enum):
    """How a tensor of the one file becomes the module's tensor."""

    NONE = "as it is"
    MATRIX = "a 1x1 convolution (o, i, 1, 1) becomes a matrix (o, i)"
    TRANSPOSE = "(i, o) becomes (o, i)"
    QUERY = "the first third of the rows"
    KEY = "the second third of the rows"
    VALUE = "the last third of the rows"


THIRDS = (TensorTransform.QUERY, TensorTransform.KEY, TensorTransform.VALUE)


@dataclass(frozen=True)
class KeyMapping:
    """The tensors below `file` in the one-file layout are those below `module` in diffusers or transformers."""

    file: str
    module: str
    change: TensorTransform = TensorTransform.NONE


@dataclass(frozen=True)
class UNetLayout:
    """What the UNet's names depend on: levels, ResNet layers of a level, and which levels have attention."""

    layers: int
    attention: tuple[bool, ...]


Rows = tuple[tuple[str, str], ...]

UNET_ENDS: Rows = (
    ("time_embed.0", "time_embedding.linear_1"),
    ("time_embed.2", "time_embedding.linear_2"),
    ("label_emb.0.0", "add_embedding.linear_1"),
    ("label_emb.0.2", "add_embedding.linear_2"),
    ("input_blocks.0.0", "conv_in"),
    ("out.0", "conv_norm_out"),
    ("out.2", "conv_out"),
)
UNET_RESNET: Rows = (
    ("in_layers.0", "spatial_res_block.norm1"),
    ("in_layers.2", "spatial_res_block.conv1"),
    ("emb_layers.1", "spatial_res_block.time_emb_proj"),
    ("out_layers.0", "spatial_res_block.norm2"),
    ("out_layers.3", "spatial_res_block.conv2"),
    ("skip_connection", "spatial_res_block.conv_shortcut"),
    ("time_stack.in_layers.0", "temporal_res_block.norm1"),
    ("time_stack.in_layers.2", "temporal_res_block.conv1"),
    ("time_stack.emb_layers.1", "temporal_res_block.time_emb_proj"),
    ("time_stack.out_layers.0", "temporal_res_block.norm2"),
    ("time_stack.out_layers.3", "temporal_res_block.conv2"),
    ("time_mixer.mix_factor", "time_mixer.mix_factor"),
)
UNET_ATTENTION: Rows = (  # inside a transformer block both sides use the same names
    ("norm", "norm"),
    ("proj_in", "proj_in"),
    ("transformer_blocks", "transformer_blocks"),
    ("time_stack", "temporal_transformer_blocks"),
    ("time_pos_embed.0", "time_pos_embed.linear_1"),
    ("time_pos_embed.2", "time_pos_embed.linear_2"),
    ("time_mixer.mix_factor", "time_mixer.mix_factor"),
    ("proj_out", "proj_out"),
)
VAE_RESNET: Rows = (
    ("norm1", "norm1"),
    ("conv1", "conv1"),
    ("norm2", "norm2"),
    ("conv2", "conv2"),
    ("nin_shortcut", "conv_shortcut"),
)
VAE_TEMPORAL_RESNET: Rows = (
    *((file, f"spatial_res_block.{module}") for file, module in VAE_RESNET),
    ("time_stack.in_layers.0", "temporal_res_block.norm1"),
    ("time_stack.in_layers.2", "temporal_res_block.conv1"),
    ("time_stack.out_layers.0", "temporal_res_block.norm2"),
    ("time_stack.out_layers.3", "temporal_res_block.conv2"),
    ("mix_factor", "time_mixer.mix_factor"),  # on both sides: sigmoid(mix_factor) weighs the temporal branch
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
CLIP_LAYER_THIRDS = ("q_proj", "k_proj", "v_proj")


def _below(file: str, module: str, rows: Rows) -> list[KeyMapping]:
    return [KeyMapping(f"{file}.{left}", f"{module}.{right}") for left, right in rows]


def unet_pairs(layout: UNetLayout) -> list[KeyMapping]:
    """The pairs of the UNet, without the prefix it has in the one file."""
    layers, levels = layout.layers, len(layout.attention)
    pairs = [KeyMapping(file, module) for file, module in UNET_ENDS]
    for level, attention in enumerate(layout.attention):
        first = 1 + level * (layers + 1)
        for layer in range(layers):
            block = f"input_blocks.{first + layer}"
            pairs += _unet_layer(block, f"down_blocks.{level}", layer, attention)
        if level < levels - 1:
            pairs.append(KeyMapping(f"input_blocks.{first + layers}.0.op", f"down_blocks.{level}.downsamplers.0.conv"))
    pairs += _below("middle_block.0", "mid_block.resnets.0", UNET_RESNET)
    pairs += _below("middle_block.1", "mid_block.attentions.0", UNET_ATTENTION)
    pairs += _below("middle_block.2", "mid_block.resnets.1", UNET_RESNET)
    for step, attention in enumerate(reversed(layout.attention)):
        for layer in range(layers + 1):
            block = f"output_blocks.{step * (layers + 1) + layer}"
            pairs += _unet_layer(block, f"up_blocks.{step}", layer, attention)
        if step < levels - 1:
            last = f"output_blocks.{step * (layers + 1) + layers}.{2 if attention else 1}.conv"
            pairs.append(KeyMapping(last, f"up_blocks.{step}.upsamplers.0.conv"))
    return pairs


def _unet_layer(block: str, module: str, layer: int, attention: bool) -> list[KeyMapping]:
    pairs = _below(f"{block}.0", f"{module}.resnets.{layer}", UNET_RESNET)
    if attention:
        pairs += _below(f"{block}.1", f"{module}.attentions.{layer}", UNET_ATTENTION)
    return pairs


def vae_encoder_pairs(levels: int, layers: int) -> list[KeyMapping]:
    """The pairs of the VAE's encoder and its quant_conv, the same below either of the file's two VAE prefixes."""
    pairs = [KeyMapping("quant_conv", "quant_conv"), *_below("encoder", "encoder", VAE_ENDS)]
    for level in range(levels):
        file, module = f"encoder.down.{level}", f"encoder.down_blocks.{level}"
        for layer in range(layers):
            pairs += _below(f"{file}.block.{layer}", f"{module}.resnets.{layer}", VAE_RESNET)
        pairs.append(KeyMapping(f"{file}.downsample.conv", f"{module}.downsamplers.0.conv"))
    return pairs + _vae_middle("encoder", VAE_RESNET)


def vae_decoder_pairs(levels: int, layers: int) -> list[KeyMapping]:
    """The pairs of the temporal decoder. The file counts its levels from the picture, the module from the latent."""
    pairs = _below("decoder", "decoder", (*VAE_ENDS, ("conv_out.time_mix_conv", "time_conv_out")))
    for level in range(levels):
        file, module = f"decoder.up.{level}", f"decoder.up_blocks.{levels - 1 - level}"
        for layer in range(layers + 1):
            pairs += _below(f"{file}.block.{layer}", f"{module}.resnets.{layer}", VAE_TEMPORAL_RESNET)
        pairs.append(KeyMapping(f"{file}.upsample.conv", f"{module}.upsamplers.0.conv"))
    return pairs + _vae_middle("decoder", VAE_TEMPORAL_RESNET)


def _vae_middle(side: str, resnet: Rows) -> list[KeyMapping]:
    file, module = f"{side}.mid", f"{side}.mid_block"
    pairs = _below(f"{file}.block_1", f"{module}.resnets.0", resnet)
    pairs += _below(f"{file}.block_2", f"{module}.resnets.1", resnet)
    attention = f"{module}.attentions.0"
    pairs.append(KeyMapping(f"{file}.attn_1.norm", f"{attention}.group_norm"))
    for left, right in VAE_ATTENTION_MATRICES:
        pairs.append(KeyMapping(f"{file}.attn_1.{left}", f"{attention}.{right}", TensorTransform.MATRIX))
    return pairs


def clip_pairs(layers: int) -> list[KeyMapping]:
    """The pairs of the CLIP image tower and its projection."""
    pairs = [KeyMapping(file, module) for file, module in CLIP_ENDS]
    pairs.append(KeyMapping("proj", "visual_projection.weight", TensorTransform.TRANSPOSE))
    for layer in range(layers):
        file, module = f"transformer.resblocks.{layer}", f"vision_model.encoder.layers.{layer}"
        pairs += _below(file, module, CLIP_LAYER)
        for third, change in zip(CLIP_LAYER_THIRDS, THIRDS, strict=True):
            for kind in ("weight", "bias"):
                pairs.append(KeyMapping(f"{file}.attn.in_proj_{kind}", f"{module}.self_attn.{third}.{kind}", change))
    return pairs


class Keymap:
    """A table of pairs, asked for names in either direction."""

    def __init__(self, pairs: Iterable[KeyMapping]):
        self._by_file: dict[str, list[KeyMapping]] = {}
        self._by_module: dict[str, KeyMapping] = {}
        for pair in pairs:
            self._by_file.setdefault(pair.file, []).append(pair)
            self._by_module[pair.module] = pair

    def module_names(self, name: str) -> list[tuple[str, TensorTransform]]:
        """The module's tensors that come from the file's tensor `name`, and how; none when the table has no place."""
        for prefix, rest in _prefixes(name):
            if prefix in self._by_file:
                return [(pair.module + rest, pair.change) for pair in self._by_file[prefix]]
        return []

    def file_name(self, name: str) -> tuple[str, TensorTransform] | None:
        """The file's tensor that the module's tensor `name` comes from, and how; None when the table has no place."""
        for prefix, rest in _prefixes(name):
            if prefix in self._by_module:
                pair = self._by_module[prefix]
                return pair.file + rest, pair.change
        return None

    def to_module(self, tensors: Tensors, prefix: str = "") -> tuple[Tensors, set[str]]:
        """The file's tensors below `prefix` under the module's names, and the names that were used."""
        renamed: Tensors = {}
        used: set[str] = set()
        for name, tensor in tensors.items():
            if not name.startswith(prefix):
                continue
            for module_name, change in self.module_names(name[len(prefix) :]):
                renamed[module_name] = _changed(tensor, change)
                used.add(name)
        return renamed, used

    def to_file(self, tensors: Tensors, prefix: str = "") -> Tensors:
        """The module's tensors that the table knows, under the file's names below `prefix`."""
        parts: dict[str, dict[TensorTransform, LazyTensor]] = {}
        for name, tensor in tensors.items():
            place = self.file_name(name)
            if place is not None:
                parts.setdefault(prefix + place[0], {})[place[1]] = tensor
        return {name: _restored(by_change) for name, by_change in parts.items()}


def _prefixes(name: str) -> Iterator[tuple[str, str]]:
    """`name` cut at each of its dots, the longest prefix first, with what follows it (dot and all)."""
    end = len(name)
    while end > 0:
        yield name[:end], name[end:]
        end = name.rfind(".", 0, end)


def _changed(tensor: LazyTensor, change: TensorTransform) -> LazyTensor:
    """The module's tensor, still to be read, from the file's."""
    if change is TensorTransform.NONE:
        return tensor
    shape = tensor.shape
    if change is TensorTransform.MATRIX:
        shape = shape[:2] if shape[2:] == (1, 1) else shape
    elif change is TensorTransform.TRANSPOSE:
        shape = shape[::-1]
    elif shape and shape[0] % 3 == 0:
        shape = (shape[0] // 3, *shape[1:])
    return LazyTensor(tensor.dtype, shape, lambda: change_tensor(tensor.read(), change))


def change_tensor(tensor: torch.Tensor, change: TensorTransform) -> torch.Tensor:
    """Apply `change` to a tensor of the file; the result is a view of it."""
    if change is TensorTransform.MATRIX:
        return tensor.flatten(1) if tensor.ndim == 4 else tensor
    if change is TensorTransform.TRANSPOSE:
        return tensor.T
    if change in THIRDS:
        return tensor.chunk(3)[THIRDS.index(change)]
    return tensor


def _restored(parts: dict[TensorTransform, LazyTensor]) -> LazyTensor:
    """The file's tensor, still to be read, from the one or three tensors of the module that it becomes."""
    change, first = next(iter(parts.items()))
    if change in THIRDS:
        rows = [parts[third] for third in THIRDS]
        shape = (sum(row.shape[0] for row in rows), *first.shape[1:])
        return LazyTensor(first.dtype, shape, lambda: _joined([row.read() for row in rows]))
    if change is TensorTransform.TRANSPOSE:
        return LazyTensor(first.dtype, first.shape[::-1], lambda: first.read().T)
    if change is TensorTransform.MATRIX and len(first.shape) == 2:
        return LazyTensor(first.dtype, (*first.shape, 1, 1), lambda: first.read()[:, :, None, None])
    return first


def _joined(rows: list[torch.Tensor]) -> torch.Tensor:
    import torch

    return torch.cat(rows)
