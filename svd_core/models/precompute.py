"""What the UNet computes once for a video: embeddings, the token's values, joined matrices, shares of the blends."""

# pyright: reportCallIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from . import layers
from .optimizations import Optimizations, is_plain_linear
from .weight_streaming import WeightContext, resident


@dataclass(frozen=True, eq=False)
class BlockConstants:
    """Of one block.

    share    how much of the block over time is added, 0 to 1; None: AlphaBlender computes it
    joined   whether query, key and value of self-attention are one product
    matrix   (3 C, C) of that product, a view of the weights; None: they come and go, it is to be found each time
    bias     (C,) of self-attention's last product, with what cross-attention gives, whatever it is asked, in it; None:
             compute that from `context`
    context  (F, T, D) the embedding for each frame
    """

    share: float | None = None
    joined: bool = False
    matrix: torch.Tensor | None = None
    bias: torch.Tensor | None = None
    context: torch.Tensor | None = None

    def fused_qkv_weight(self, attention: Any) -> torch.Tensor | None:
        """The matrix of the product; None when there are three."""
        return fused_qkv_weight(attention) if self.joined and self.matrix is None else self.matrix


class Constants:
    """Of one UNet, one side of guidance and one schedule."""

    def __init__(
        self,
        unet: Any,
        embeds: torch.Tensor,
        time_ids: torch.Tensor,
        frames: int,
        c_noises: torch.Tensor,
        optimizations: Optimizations,
        weights: WeightContext = resident,
    ) -> None:
        self._weights = weights
        self._unet, self._frames, self._rewrites, self._like = unet, frames, optimizations, embeds
        context = embeds.expand(frames, -1, -1)
        if optimizations.channels_last:
            layers.to_channels_last(unet)
        self._blocks: dict[nn.Module, BlockConstants] = {}
        self._positions: dict[nn.Module, torch.Tensor] = {}
        self._residuals: list[Any] = []
        for module in unet.modules():
            kind = type(module).__name__
            if kind == "SpatioTemporalResBlock":
                self._residuals += [module.spatial_res_block, module.temporal_res_block]
            if kind in ("SpatioTemporalResBlock", "TransformerSpatioTemporalModel"):
                share = layers.blend_alpha(module.time_mixer) if optimizations.blend else None
                self._blocks[module] = BlockConstants(share=share)
            if kind == "TransformerSpatioTemporalModel" and optimizations.embeddings:
                self._positions[module] = self._positions_of(module)
            if kind in ("BasicTransformerBlock", "TemporalBasicTransformerBlock"):
                self._blocks[module] = _of_transformer(module, context, optimizations, weights)
        with weights(unet.add_embedding):
            self._micro = self._embed_micro(time_ids, embeds.dtype)
        self._rows: dict[float, int] = {}
        if optimizations.embeddings:
            self._rows = {level: row for row, level in enumerate(c_noises.tolist())}
            self._tables = self._tables_of(c_noises)

    def of(self, block: nn.Module) -> BlockConstants:
        """The constants of a block."""
        return self._blocks[block]

    def positions(self, transformer: nn.Module) -> torch.Tensor:
        """(F, 1, C): the embedding of each frame's place in the video."""
        known = self._positions.get(transformer)
        return known if known is not None else self._positions_of(transformer)

    def _positions_of(self, transformer: Any) -> torch.Tensor:
        places = transformer.time_proj(torch.arange(self._frames, device=self._like.device))
        with self._weights(transformer.time_pos_embed):
            return transformer.time_pos_embed(places.to(self._like.dtype))[:, None]

    def at(self, c_noise: torch.Tensor) -> dict[nn.Module, torch.Tensor]:
        """For each residual block, in space and over time: (C,) the bias of its first convolution at this level."""
        row = self._rows.get(c_noise.item())
        if row is None:
            return {block: table[0] for block, table in self._tables_of(c_noise[None]).items()}
        return {block: table[row] for block, table in self._tables.items()}

    def _tables_of(self, c_noises: torch.Tensor) -> dict[nn.Module, torch.Tensor]:
        """(S, C) for each residual block."""
        unet, device = self._unet, self._micro.device
        with self._weights(unet.time_embedding):
            times = unet.time_embedding(unet.time_proj(c_noises.to(device)).to(self._micro.dtype))
        active = F.silu(times + self._micro)
        tables = {}
        for block in self._residuals:
            with self._weights(block.time_emb_proj):
                tables[block] = block.time_emb_proj(active) + block.conv1.bias.to(device)
        return tables

    def _embed_micro(self, time_ids: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """(1, E) of (1, 3)."""
        flat = self._unet.add_time_proj(time_ids.flatten()).reshape(1, -1)
        return self._unet.add_embedding(flat.to(dtype))


def _of_transformer(
    block: Any, context: torch.Tensor, optimizations: Optimizations, weights: WeightContext
) -> BlockConstants:
    joined = optimizations.qkv and fuse_qkv(block.attn1)
    matrix = fused_qkv_weight(block.attn1) if joined and weights is resident else None
    if not optimizations.cross_attention or block.attn2 is None:
        return BlockConstants(joined=joined, matrix=matrix, context=context)
    with weights(block.attn2):
        row = block.attn2.to_out[0](block.attn2.to_v(context[:1]))[0, 0]
    out = block.attn1.to_out[0]
    return BlockConstants(joined=joined, matrix=matrix, bias=row if out.bias is None else out.bias.to(row.device) + row)


def fuse_qkv(attention: Any) -> bool:
    """Make the weights of to_q, to_k and to_v parts of one matrix, when they are not yet; whether they could be.

    Their names, values and memory stay what they were, and who changes a weight in place changes the product. False
    when one of them is more than a plain product.
    """
    parts = (attention.to_q, attention.to_k, attention.to_v)
    if not all(is_plain_linear(each) and each.bias is None for each in parts):
        return False
    weights = [each.weight for each in parts]
    if len({(each.shape, each.dtype, each.device, each.stride()) for each in weights}) != 1:
        return False
    if not _are_side_by_side(weights):
        with torch.inference_mode(False), torch.no_grad():
            joined = torch.cat([each.detach() for each in weights])
            for each, part in zip(parts, joined.chunk(3), strict=True):
                layers.set_weight(each, part)
    return True


def fused_qkv_weight(attention: Any) -> torch.Tensor:
    """The matrix (3 C, C) of which the three weights are parts: itself, or of weights that were copied one by one."""
    weights = [each.weight.detach() for each in (attention.to_q, attention.to_k, attention.to_v)]
    if not _are_side_by_side(weights):
        return torch.cat(weights)
    rows, columns = weights[0].shape
    return weights[0].as_strided((3 * rows, columns), (columns, 1))


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
