"""An optimized UNet for one video and one side of guidance: values that stay constant over steps are computed once.

Computes diffusers' UNetSpatioTemporalConditionModel on its own modules and weights, with equal results:

- Cross-attention to the single CLIP token is that token's value, as softmax over one key is 1: once per video.
- AlphaBlender is one weighted sum with a number.
- Embeddings of timestep, frame index and micro-conditioning are computed once per video, with the bias of the
  convolution before them.
- Query, key and value projections of self-attention are one matrix product.
- Feed-forward and attention run on chunks of rows that fit into the cache, in place.
- Temporal convolutions are 2D convolutions, in channels-last memory format on a view. On a CPU that is the format of
  all activations, and on a GPU where Triton's group norm works.

Only the weights outlive a video: a LoRA or a patch that changes them takes effect on the next one. UNets with replaced
modules or hooks are not supported (`optimizations.unsupported_reason`).
"""

# The model classes declare their submodules as plain modules: a type checker cannot follow.
# pyright: reportCallIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false, reportIndexIssue=false
# pyright: reportGeneralTypeIssues=false, reportOptionalSubscript=false, reportReturnType=false

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from . import layers
from .attention_backend import SdpaContext, choose_sdpa, default_sdpa
from .compile import CompiledStep, RegionalCompiler, Run, run_eager
from .options import DEFAULT, ModelOptions
from .precompute import BlockConstants, UNetConstants
from .step_cache import DeepFeatures, StepCache
from .weight_streaming import PRECOMPUTED_MODULES, WeightContext, WeightStreamer, pin_weights, resident_weights

logger = logging.getLogger(__name__)

CPU_CHUNK_ROWS = 1024
GPU_CHUNK_ROWS = 2**17
"""Rows of a feed-forward at a time: they fit into a CPU's caches; they keep a GPU busy."""

COMPILERS = {True: RegionalCompiler(layers.COMPILABLE), False: RegionalCompiler(layers.COMPILABLE_OFF_CPU)}
"""The regional compilers of this process, for the CPU and for other devices. They hold no weights."""


@dataclass(frozen=True)
class ComputeOptions:
    """Options for the computation of a block.

    Attributes:
        chunk_rows: Rows of feed-forward and attention at a time. None: all.
        run: Calls functions of tensors, eagerly or compiled.
        spatial_sdpa: SDPA backends of spatial attention.
    """

    chunk_rows: int | None = None
    run: Run = run_eager
    spatial_sdpa: SdpaContext = default_sdpa


class PreparedUNet:
    """Predicts v for one video. Call it with x (F, 4, h, w), scaled by c_in, and c_noise (); it returns (F, 4, h, w).

    Args:
        unet: UNetSpatioTemporalConditionModel in its own dtype, without an `unsupported_reason`.
        embeds: (1, T, D) CLIP embedding. Cross-attention runs in each step if T is above 1.
        image_latents: (F, 4, h, w) concatenated to the noisy latents. Their device computes.
        time_ids: (1, 3) fps - 1, motion_bucket_id, noise_aug_strength.
        c_noises: (steps,) the network's time inputs, ln(sigma) / 4, of the schedule. Others are possible and
            slower.
        stream: Copy the weights of the UNet to the device block by block.
        options: Compilation, chunks, attention and memory format.
        step_cache: Reuse deep features between calls. None: compute the whole network in each call.
    """

    def __init__(
        self,
        unet: Any,
        embeds: torch.Tensor,
        image_latents: torch.Tensor,
        time_ids: torch.Tensor,
        c_noises: torch.Tensor,
        stream: bool = False,
        options: ModelOptions = DEFAULT,
        step_cache: StepCache | None = None,
    ) -> None:
        device = image_latents.device
        if options.compile == "full" and (stream or step_cache):
            reason = "streamed weights" if stream else "steps that reuse features"
            logger.info("%s cannot be compiled as a whole step: compiling the repeated blocks instead", reason)
            options = replace(options, compile="regional")
        self._unet, self._image_latents = unet, image_latents
        self._deep = None if step_cache is None else DeepFeatures(step_cache)
        self._channels_last = layers.uses_channels_last(device, options.channels_last)
        layers.to_channels_last(unet, self._channels_last)
        self._compute = _compute_options(options, unet, image_latents)
        self._step = COMPILED_STEP if options.compile == "full" else PreparedUNet._forward
        if stream and device.type == "cuda":
            pin_weights(unet)
        skip = PRECOMPUTED_MODULES if embeds.shape[1] == 1 else frozenset()
        self._weights: WeightContext = WeightStreamer(device, skip) if stream else resident_weights
        all_weights: WeightContext = WeightStreamer(device) if stream else resident_weights
        self._constants = UNetConstants(unet, embeds, time_ids, len(image_latents), c_noises, all_weights)

    def __call__(self, x: torch.Tensor, c_noise: torch.Tensor) -> torch.Tensor:
        """Predict v at noise level c_noise ()."""
        sample = torch.cat([x, self._image_latents], dim=1)
        if self._channels_last:
            sample = sample.contiguous(memory_format=torch.channels_last)
        conv_biases = self._constants.conv_biases(c_noise)
        if self._deep is None:
            return self._step(self, sample, conv_biases)
        first, second = self._first_blocks(sample, conv_biases)
        deep = self._deep.reusable(math.exp(4 * c_noise.item()))
        if deep is None:
            deep = self._deep_blocks(first, second, conv_biases)
            self._deep.store(deep)
        return self._last_blocks(deep, first, second, conv_biases)

    def _forward(self, sample: torch.Tensor, conv_biases: dict[nn.Module, torch.Tensor]) -> torch.Tensor:
        first, second = self._first_blocks(sample, conv_biases)
        deep = self._deep_blocks(first, second, conv_biases)
        return self._last_blocks(deep, first, second, conv_biases)

    def _first_blocks(
        self, sample: torch.Tensor, conv_biases: dict[nn.Module, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the output of conv_in and of the first residual block with its attention."""
        unet = self._unet
        with self._weights(unet.conv_in):
            first = unet.conv_in(sample)
        block = unet.down_blocks[0]
        return first, self._attention(block, 0, self._resnet(first, block.resnets[0], conv_biases))

    def _deep_blocks(
        self, first: torch.Tensor, second: torch.Tensor, conv_biases: dict[nn.Module, torch.Tensor]
    ) -> torch.Tensor:
        """Return the input of the last two residual blocks, without their skips."""
        unet, weights = self._unet, self._weights
        # as in diffusers: only where halving was uneven are upsamplers passed a size
        forward_upsample_size = any(side % 2**unet.num_upsamplers for side in first.shape[-2:])
        x, skips = second, [second]
        for block in unet.down_blocks:
            for index in range(1 if block is unet.down_blocks[0] else 0, len(block.resnets)):
                x = self._attention(block, index, self._resnet(x, block.resnets[index], conv_biases))
                skips.append(x)
            for downsampler in getattr(block, "downsamplers", None) or ():
                with weights(downsampler):
                    x = downsampler(x)
                skips.append(x)
        mid_block = unet.mid_block
        x = self._resnet(x, mid_block.resnets[0], conv_biases)
        for index, resnet in enumerate(mid_block.resnets[1:]):
            x = self._resnet(self._attention(mid_block, index, x), resnet, conv_biases)
        for block in unet.up_blocks:
            for index in range(len(block.resnets) - (2 if block is unet.up_blocks[-1] else 0)):
                x = torch.cat([x, skips.pop()], dim=1)
                x = self._attention(block, index, self._resnet(x, block.resnets[index], conv_biases))
            for upsampler in block.upsamplers or ():
                with weights(upsampler):
                    x = upsampler(x, skips[-1].shape[-2:] if forward_upsample_size else None)
        return x

    def _last_blocks(
        self,
        deep: torch.Tensor,
        first: torch.Tensor,
        second: torch.Tensor,
        conv_biases: dict[nn.Module, torch.Tensor],
    ) -> torch.Tensor:
        """Return v from the input of the last two residual blocks and their skips."""
        unet, weights = self._unet, self._weights
        block, x = unet.up_blocks[-1], deep
        for index, skip in ((-2, second), (-1, first)):
            x = torch.cat([x, skip], dim=1)
            x = self._attention(block, index, self._resnet(x, block.resnets[index], conv_biases))
        with weights(unet.conv_norm_out, unet.conv_out):
            x = layers.norm_silu(x, unet.conv_norm_out, self._compute.run)
            return unet.conv_out(x)

    def _resnet(self, x: torch.Tensor, block: Any, conv_biases: dict[nn.Module, torch.Tensor]) -> torch.Tensor:
        """Apply a SpatioTemporalResBlock."""
        run, spatial, temporal = self._compute.run, block.spatial_res_block, block.temporal_res_block
        with self._weights(block):
            hidden = layers.resnet_block(x, spatial, conv_biases[spatial], run)
            video = layers.norm_silu(layers.to_video(hidden), temporal.norm1, run)
            video = layers.temporal_conv(video, temporal.conv1, conv_biases[temporal])
            video = layers.temporal_conv(layers.norm_silu(video, temporal.norm2, run), temporal.conv2)
            residual = layers.from_video(video, like=hidden)
            return hidden.add_(residual, alpha=self._constants.blend_alphas[block])

    def _attention(self, block: Any, index: int, x: torch.Tensor) -> torch.Tensor:
        """Apply a block's TransformerSpatioTemporalModel, if it has any."""
        attentions = getattr(block, "attentions", None)
        if attentions is None:
            return x
        model, constants = attentions[index], self._constants
        with self._weights(model):
            rows = layers.linear(layers.to_rows(layers.group_norm(x, model.norm)), *layers.weights_of(model.proj_in))
            frame_embedding = constants.frame_embeddings[model]
            alpha = constants.blend_alphas[model]
            for spatial, temporal in zip(model.transformer_blocks, model.temporal_transformer_blocks, strict=True):
                rows = spatial_block_(rows, spatial, constants.blocks[spatial], self._compute)
                mixed = temporal_block_(rows + frame_embedding, temporal, constants.blocks[temporal], self._compute)
                rows = rows.lerp_(mixed, alpha)
            # x first: the sum takes its memory format
            return x + layers.from_rows(layers.linear(rows, *layers.weights_of(model.proj_out)), like=x)


COMPILED_STEP = CompiledStep(PreparedUNet._forward)
"""The compiled whole steps of this process."""


def _compute_options(options: ModelOptions, unet: Any, latents: torch.Tensor) -> ComputeOptions:
    device, dtype = latents.device, latents.dtype
    on_cpu = device.type == "cpu"
    chunk_rows = CPU_CHUNK_ROWS if on_cpu else GPU_CHUNK_ROWS
    shapes = spatial_attention_shapes(unet, *latents.shape[-2:])
    return ComputeOptions(
        chunk_rows=chunk_rows if options.forward_chunking == "auto" else None,
        run=COMPILERS[on_cpu] if options.compile == "regional" else run_eager,
        spatial_sdpa=choose_sdpa(device, dtype, shapes) if options.attention == "auto" else default_sdpa,
    )


def spatial_attention_shapes(unet: Any, height: int, width: int) -> list[tuple[int, int, int]]:
    """Return (heads, tokens, channels per head) of the spatial attention of each level, for latents (height, width)."""
    shapes = []
    for block in unet.down_blocks:
        for model in getattr(block, "attentions", None) or ():
            attn = model.transformer_blocks[0].attn1
            shapes.append((attn.heads, height * width, attn.inner_dim // attn.heads))
        if block.downsamplers:
            height, width = -(-height // 2), -(-width // 2)
    attn = unet.mid_block.attentions[0].transformer_blocks[0].attn1
    return [*dict.fromkeys(shapes), (attn.heads, height * width, attn.inner_dim // attn.heads)]


def spatial_block_(rows: torch.Tensor, block: Any, constants: BlockConstants, compute: ComputeOptions) -> torch.Tensor:
    """Apply a BasicTransformerBlock to rows (F, N, C) in place."""
    chunk_rows, run = compute.chunk_rows, compute.run
    qkv_weight, output_bias = constants.fused_qkv(block.attn1), constants.output_bias
    layers.self_attention_(
        rows, block.norm1, block.attn1, qkv_weight, output_bias, chunk_rows, run, compute.spatial_sdpa
    )
    if output_bias is None:
        rows.add_(block.attn2(block.norm2(rows), encoder_hidden_states=constants.context))
    return layers.feed_forward_(rows, block.norm3, block.ff.net, chunk_rows, run)


def temporal_block_(rows: torch.Tensor, block: Any, constants: BlockConstants, compute: ComputeOptions) -> torch.Tensor:
    """Apply a TemporalBasicTransformerBlock to rows (F, N, C) in place; its attention is over F."""
    chunk_rows, run = compute.chunk_rows, compute.run
    layers.feed_forward_(rows, block.norm_in, block.ff_in.net, chunk_rows, run)
    qkv_weight, output_bias = constants.fused_qkv(block.attn1), constants.output_bias
    layers.self_attention_(rows, block.norm1, block.attn1, qkv_weight, output_bias, chunk_rows, run)
    if output_bias is None:
        hidden = block.norm2(rows).transpose(0, 1)
        context = constants.context[:1].expand(len(hidden), -1, -1)
        rows.add_(block.attn2(hidden, encoder_hidden_states=context).transpose(0, 1))
    return layers.feed_forward_(rows, block.norm3, block.ff.net, chunk_rows, run)
