"""Values that the UNet computes once per video: embeddings, cross-attention, fused QKV weights, blend weights."""

# pyright: reportCallIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from . import layers
from .optimizations import is_plain_linear
from .weight_streaming import WeightContext, resident_weights


@dataclass(frozen=True, eq=False)
class BlockConstants:
    """Values of one transformer block that stay constant over all sampling steps.

    Attributes:
        qkv_weight: (3C, C) query, key and value weights of self-attention. A view of the model's weights.
            None if there are three projections, or if `concat_qkv` is set.
        concat_qkv: True if weights are streamed and the (3C, C) matrix must be built on each call.
        output_bias: (C,) output bias of self-attention plus the cross-attention output, which is constant for a
            single context token. None if cross-attention must run.
        context: (F, T, D) embeddings per frame. None if `output_bias` is set.
    """

    qkv_weight: torch.Tensor | None = None
    concat_qkv: bool = False
    output_bias: torch.Tensor | None = None
    context: torch.Tensor | None = None

    def fused_qkv(self, attn: Any) -> torch.Tensor | None:
        """Return the (3C, C) projection weights of self-attention, None if there are three projections."""
        return fused_qkv_weight(attn) if self.concat_qkv else self.qkv_weight


class UNetConstants:
    """Values of a UNet that stay constant over the sampling of one video, for one side of guidance.

    Args:
        unet: UNetSpatioTemporalConditionModel.
        embeds: (1, T, D) CLIP embedding.
        time_ids: (1, 3) micro-conditioning.
        num_frames: F.
        c_noises: (steps,) the network's time inputs, ln(sigma) / 4, of the schedule.
        weights: Provides the weights on the device.

    Attributes:
        blocks: Constants of each transformer block.
        blend_alphas: Weight of the temporal branch of each block with a `time_mixer`, 0 to 1.
        frame_embeddings: Embedding of the frame index in each TransformerSpatioTemporalModel, (F, 1, C).
    """

    def __init__(
        self,
        unet: Any,
        embeds: torch.Tensor,
        time_ids: torch.Tensor,
        num_frames: int,
        c_noises: torch.Tensor,
        weights: WeightContext = resident_weights,
    ) -> None:
        self._unet, self._embeds, self._num_frames, self._weights = unet, embeds, num_frames, weights
        context = embeds.expand(num_frames, -1, -1)
        self.blocks: dict[nn.Module, BlockConstants] = {}
        self.blend_alphas = layers.blend_alphas(unet)
        self.frame_embeddings: dict[nn.Module, torch.Tensor] = {}
        self._resnets: list[Any] = []
        for module in unet.modules():
            kind = type(module).__name__
            if kind == "SpatioTemporalResBlock":
                self._resnets += [module.spatial_res_block, module.temporal_res_block]
            if kind == "TransformerSpatioTemporalModel":
                self.frame_embeddings[module] = self._embed_frames(module)
            if kind in ("BasicTransformerBlock", "TemporalBasicTransformerBlock"):
                self.blocks[module] = _transformer_constants(module, context, weights)
        with weights(unet.add_embedding):
            flat = unet.add_time_proj(time_ids.flatten()).reshape(1, -1)
            self._added_embedding = unet.add_embedding(flat.to(embeds.dtype))  # (1, E)
        self._levels = {level: index for index, level in enumerate(c_noises.tolist())}
        self._biases = self._compute_biases(c_noises)

    def _embed_frames(self, transformer: Any) -> torch.Tensor:
        indices = transformer.time_proj(torch.arange(self._num_frames, device=self._embeds.device))
        with self._weights(transformer.time_pos_embed):
            return transformer.time_pos_embed(indices.to(self._embeds.dtype))[:, None]

    def conv_biases(self, c_noise: torch.Tensor) -> dict[nn.Module, torch.Tensor]:
        """Return the bias of conv1 plus the time embedding at a noise level: residual block -> (C,)."""
        index = self._levels.get(c_noise.item())
        if index is None:
            return {block: biases[0] for block, biases in self._compute_biases(c_noise[None]).items()}
        return {block: biases[index] for block, biases in self._biases.items()}

    def _compute_biases(self, c_noises: torch.Tensor) -> dict[nn.Module, torch.Tensor]:
        """Compute the biases at noise levels (N,): residual block -> (N, C)."""
        unet, added = self._unet, self._added_embedding
        with self._weights(unet.time_embedding):
            timesteps = unet.time_embedding(unet.time_proj(c_noises.to(added.device)).to(added.dtype))
        activated = F.silu(timesteps + added)
        biases = {}
        for block in self._resnets:
            with self._weights(block.time_emb_proj):
                biases[block] = block.time_emb_proj(activated) + block.conv1.bias.to(added.device)
        return biases


def _transformer_constants(block: Any, context: torch.Tensor, weights: WeightContext) -> BlockConstants:
    streamed = weights is not resident_weights
    concat_qkv = streamed and can_fuse_qkv(block.attn1)
    qkv_weight = fused_qkv_weight(block.attn1) if not streamed and fuse_qkv(block.attn1) else None
    if context.shape[1] != 1 or block.attn2 is None:
        return BlockConstants(qkv_weight=qkv_weight, concat_qkv=concat_qkv, context=context)
    with weights(block.attn2):
        output = block.attn2.to_out[0](block.attn2.to_v(context[:1]))[0, 0]
    bias = block.attn1.to_out[0].bias
    output_bias = output if bias is None else bias.to(output.device) + output
    return BlockConstants(qkv_weight=qkv_weight, concat_qkv=concat_qkv, output_bias=output_bias)


def fuse_qkv(attn: Any) -> bool:
    """Place the weights of to_q, to_k and to_v one after the other in memory, if they are not yet.

    Names and values stay, no memory is added, and later in-place changes of a weight take effect.

    Returns:
        False if the projections cannot be fused.
    """
    if not can_fuse_qkv(attn):
        return False
    projections = (attn.to_q, attn.to_k, attn.to_v)
    weights = [each.weight for each in projections]
    if not _are_adjacent(weights):
        with torch.inference_mode(False), torch.no_grad():
            fused = torch.cat([each.detach() for each in weights])
            for each, part in zip(projections, fused.chunk(3), strict=True):
                layers.set_weight(each, part)
    return True


def can_fuse_qkv(attn: Any) -> bool:
    """Return False if one of to_q, to_k and to_v is modified or has a bias, or if they differ in shape or dtype."""
    projections = (attn.to_q, attn.to_k, attn.to_v)
    if not all(is_plain_linear(each) and each.bias is None for each in projections):
        return False
    weights = [each.weight for each in projections]
    return len({(each.shape, each.dtype, each.device, each.stride()) for each in weights}) == 1


def fused_qkv_weight(attn: Any) -> torch.Tensor:
    """Return the weights of to_q, to_k and to_v as one matrix (3C, C): a view if they are adjacent, else a copy."""
    weights = [each.weight.detach() for each in (attn.to_q, attn.to_k, attn.to_v)]
    if not _are_adjacent(weights):
        return torch.cat(weights)
    rows, columns = weights[0].shape
    return weights[0].as_strided((3 * rows, columns), (columns, 1))


def _are_adjacent(weights: list[Any]) -> bool:
    first = weights[0]
    if first.is_meta or not first.is_contiguous():
        return False
    storage = first.untyped_storage().data_ptr()
    return all(
        each.untyped_storage().data_ptr() == storage and each.data_ptr() == first.data_ptr() + index * first.nbytes
        for index, each in enumerate(weights)
    )
