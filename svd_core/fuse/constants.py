"""What the UNet computes once for a video: embeddings, the token's values, joined matrices, shares of the blends."""

# pyright: reportCallIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from . import layers
from .rewrites import Rewrites, is_plain_linear


@dataclass(frozen=True, eq=False)
class BlockConstants:
    """Of one block.

    share    how much of the block over time is added, 0 to 1; None: AlphaBlender computes it
    qkv      the joined matrix of self-attention (3 C, C); None: three products
    cross    (C,) what cross-attention gives, whatever it is asked; None: compute it from `context`
    bias     (C,) the last product's own bias with `cross` in it; None when the product is no plain one
    context  (F, T, D) the embedding for each frame
    """

    share: float | None = None
    qkv: torch.Tensor | None = None
    cross: torch.Tensor | None = None
    bias: torch.Tensor | None = None
    context: torch.Tensor | None = None


class Constants:
    """Of one UNet, one side of guidance and one schedule."""

    def __init__(
        self,
        unet: Any,
        embeds: torch.Tensor,
        time_ids: torch.Tensor,
        frames: int,
        c_noises: torch.Tensor,
        rewrites: Rewrites,
    ) -> None:
        self._unet, self._frames, self._rewrites = unet, frames, rewrites
        context = embeds.expand(frames, -1, -1)
        if rewrites.channels_last:
            layers.lay_out(unet)
        self._blocks: dict[nn.Module, BlockConstants] = {}
        self._positions: dict[nn.Module, torch.Tensor] = {}
        self._residuals: list[Any] = []
        for module in unet.modules():
            kind = type(module).__name__
            if kind == "SpatioTemporalResBlock":
                self._residuals += [module.spatial_res_block, module.temporal_res_block]
            if kind in ("SpatioTemporalResBlock", "TransformerSpatioTemporalModel"):
                share = layers.share_of(module.time_mixer) if rewrites.blend else None
                self._blocks[module] = BlockConstants(share=share)
            if kind == "TransformerSpatioTemporalModel" and rewrites.embeddings:
                self._positions[module] = _positions(module, frames, embeds)
            if kind in ("BasicTransformerBlock", "TemporalBasicTransformerBlock"):
                self._blocks[module] = _of_transformer(module, context, rewrites)
        self._micro = self._embed_micro(time_ids, embeds.dtype)
        self._like = embeds
        self._rows: dict[float, int] = {}
        if rewrites.embeddings:
            self._rows = {level: row for row, level in enumerate(c_noises.tolist())}
            self._tables = self._tables_of(c_noises)

    def of(self, block: nn.Module) -> BlockConstants:
        """The constants of a block."""
        return self._blocks[block]

    def positions(self, transformer: nn.Module) -> torch.Tensor:
        """(F, 1, C): the embedding of each frame's place in the video."""
        known = self._positions.get(transformer)
        return known if known is not None else _positions(transformer, self._frames, self._like)

    def at(self, c_noise: torch.Tensor) -> dict[nn.Module, torch.Tensor]:
        """For each residual block, in space and over time: (C,) the bias of its first convolution at this level."""
        row = self._rows.get(c_noise.item())
        if row is None:
            return {block: table[0] for block, table in self._tables_of(c_noise[None]).items()}
        return {block: table[row] for block, table in self._tables.items()}

    def _tables_of(self, c_noises: torch.Tensor) -> dict[nn.Module, torch.Tensor]:
        """(S, C) for each residual block."""
        unet, device = self._unet, self._micro.device
        embedding = unet.time_embedding(unet.time_proj(c_noises.to(device)).to(self._micro.dtype)) + self._micro
        active = F.silu(embedding)
        return {block: block.time_emb_proj(active) + block.conv1.bias for block in self._residuals}

    def _embed_micro(self, time_ids: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """(1, E) of (1, 3)."""
        flat = self._unet.add_time_proj(time_ids.flatten()).reshape(1, -1)
        return self._unet.add_embedding(flat.to(dtype))


def _positions(model: Any, frames: int, like: torch.Tensor) -> torch.Tensor:
    places = model.time_proj(torch.arange(frames, device=like.device))
    return model.time_pos_embed(places.to(like.dtype))[:, None]


def _of_transformer(block: Any, context: torch.Tensor, rewrites: Rewrites) -> BlockConstants:
    qkv = joined_qkv(block.attn1) if rewrites.qkv else None
    if not rewrites.cross_attention or block.attn2 is None:
        return BlockConstants(qkv=qkv, context=context)
    row = block.attn2.to_out[0](block.attn2.to_v(context[:1]))[0, 0]
    out = block.attn1.to_out[0]
    bias = out.bias + row if is_plain_linear(out) and out.bias is not None else None
    return BlockConstants(qkv=qkv, cross=row, bias=bias)


def joined_qkv(attention: Any) -> torch.Tensor | None:
    """The matrix (3 C, C) whose parts the weights of to_q, to_k and to_v are.

    When they are not yet, a copy is made and they become views of it: their names, values and memory stay what they
    were, and who changes a weight in place changes the product. None when one is more than a plain product.
    """
    parts = (attention.to_q, attention.to_k, attention.to_v)
    if not all(is_plain_linear(each) and each.bias is None for each in parts):
        return None
    weights = [each.weight for each in parts]
    if len({(each.shape, each.dtype, each.device, each.stride()) for each in weights}) != 1:
        return None
    rows, columns = weights[0].shape
    if not _are_side_by_side(weights):
        with torch.inference_mode(False), torch.no_grad():
            joined = torch.cat([each.detach() for each in weights])
            for each, part in zip(parts, joined.split(rows), strict=True):
                each.weight = nn.Parameter(part, requires_grad=False)
    return attention.to_q.weight.detach().as_strided((3 * rows, columns), (columns, 1))


def _are_side_by_side(weights: list[Any]) -> bool:
    first = weights[0]
    if first.is_meta or not first.is_contiguous():
        return False
    size = first.numel() * first.element_size()
    storage = first.untyped_storage().data_ptr()
    return all(
        each.untyped_storage().data_ptr() == storage and each.data_ptr() == first.data_ptr() + place * size
        for place, each in enumerate(weights)
    )
