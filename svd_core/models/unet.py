"""The UNet of one side of guidance, for one video: what does not change from step to step is computed once.

The same function as diffusers' UNetSpatioTemporalConditionModel on its own modules and weights, written again with the
rewrites of `Rewrites`. Nothing is kept between videos but the weights themselves, so a LoRA or a patch that changes
them is seen by the next video; a module that was replaced or has a hook is called as it is.
"""

# The model classes declare their parts as bare modules: a type checker cannot follow.
# pyright: reportCallIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false, reportIndexIssue=false
# pyright: reportGeneralTypeIssues=false, reportOptionalSubscript=false, reportReturnType=false

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from . import attention_backend, layers
from .compile import CompiledStep, RegionalCompiler, Run, run_eager
from .optimizations import ALL, Optimizations
from .options import DEFAULT, ModelOptions
from .precompute import BlockConstants, Constants
from .weight_streaming import PRECOMPUTED_MODULES, WeightContext, WeightStreamer, resident

logger = logging.getLogger(__name__)

CPU_CHUNK_ROWS = 1024
GPU_CHUNK_ROWS = 2**17
"""Rows of a feed-forward at a time: what the caches of a CPU hold; what keeps a GPU busy."""

COMPILERS = {True: RegionalCompiler(layers.COMPILABLE), False: RegionalCompiler(layers.COMPILABLE_OFF_CPU)}
"""The programs of this process for the pieces: on the CPU, and elsewhere. They hold no weights."""


@dataclass(frozen=True)
class ComputeOptions:
    """How a block is computed: in pieces of how many rows (None: all at once), what calls them, which attention."""

    chunk_rows: int | None = None
    run: Run = run_eager
    spatial_sdpa: attention_backend.Context = attention_backend.default_sdpa

    @staticmethod
    def of(
        options: ModelOptions, device: torch.device, optimizations: Optimizations, chunk_rows: int | None
    ) -> ComputeOptions:
        """As the options say."""
        pieces = optimizations.geglu and options.forward_chunking == "auto"
        return ComputeOptions(
            chunk_rows=(chunk_rows or _piece_of(device)) if pieces else None,
            run=COMPILERS[device.type == "cpu"] if options.compile == "regional" else run_eager,
            spatial_sdpa=attention_backend.preferred(device)
            if options.attention == "auto"
            else attention_backend.default_sdpa,
        )


class PreparedUNet:
    """v for one side of guidance: call it with (x (F, 4, h, w) already scaled by c_in, c_noise) -> (F, 4, h, w).

    unet          UNetSpatioTemporalConditionModel that `unsupported_reason` has nothing against, in its own dtype
    embeds        (1, T, D) CLIP embedding; with T above 1 cross-attention is computed as it comes
    image_latents (F, 4, h, w) what the noisy latents are joined with, on the UNet's device
    time_ids      (1, 3) fps - 1, motion bucket, augmentation strength
    c_noises      (S,) the noise levels that will be asked for; others may be, and cost a little more
    stream        the UNet's weights are elsewhere and shall come to the device of `image_latents` block by block
    options       how to compute
    """

    def __init__(
        self,
        unet: Any,
        embeds: torch.Tensor,
        image_latents: torch.Tensor,
        time_ids: torch.Tensor,
        c_noises: torch.Tensor,
        optimizations: Optimizations = ALL,
        chunk_rows: int | None = None,
        stream: bool = False,
        options: ModelOptions = DEFAULT,
    ) -> None:
        if embeds.shape[1] != 1:
            optimizations = replace(optimizations, cross_attention=False)
        if image_latents.device.type != "cpu":  # group norms may answer in the other layout: not yet measured
            optimizations = replace(optimizations, channels_last=False)
        self._unet = unet
        self._image_latents = image_latents
        self._rewrites = optimizations
        once = PRECOMPUTED_MODULES if optimizations.cross_attention and optimizations.embeddings else frozenset()
        device = image_latents.device
        if options.compile == "full" and stream:
            logger.info("weights that come block by block cannot be compiled as one: the repeated pieces are")
            options = replace(options, compile="regional")
        self._how = ComputeOptions.of(options, device, optimizations, chunk_rows)
        self._step = COMPILED_STEP if options.compile == "full" else PreparedUNet._network
        self._weights: WeightContext = WeightStreamer(device, once) if stream else resident
        all_of: WeightContext = WeightStreamer(device) if stream else resident
        self._constants = Constants(unet, embeds, time_ids, image_latents.shape[0], c_noises, optimizations, all_of)

    def __call__(self, x: torch.Tensor, c_noise: torch.Tensor) -> torch.Tensor:
        """The network's answer at noise level c_noise ()."""
        sample = torch.cat([x, self._image_latents], dim=1)
        if self._rewrites.channels_last:
            sample = sample.contiguous(memory_format=torch.channels_last)
        return self._step(self, sample, self._constants.at(c_noise))

    def _network(self, sample: torch.Tensor, at: dict[nn.Module, torch.Tensor]) -> torch.Tensor:
        unet, weights = self._unet, self._weights
        with weights(unet.conv_in):
            x = unet.conv_in(sample)
        sizes = _Sizes.of(unet, sample)
        skips = [x]
        for block in unet.down_blocks:
            for index, resnet in enumerate(block.resnets):
                x = self._pair(block, index, self._residual(x, resnet, at))
                skips.append(x)
            for down in getattr(block, "downsamplers", None) or ():
                with weights(down):
                    x = down(x)
                skips.append(x)
        middle = unet.mid_block
        x = self._residual(x, middle.resnets[0], at)
        for transformer, resnet in zip(middle.attentions, middle.resnets[1:], strict=True):
            x = self._residual(self._transformer(x, transformer), resnet, at)
        for block in unet.up_blocks:
            for index, resnet in enumerate(block.resnets):
                joined = torch.cat([x, skips.pop()], dim=1)
                x = self._pair(block, index, self._residual(joined, resnet, at))
            for up in block.upsamplers or ():
                with weights(up):
                    x = up(x, sizes.above(skips))
        with weights(unet.conv_norm_out, unet.conv_out):
            x = layers.norm_silu(x, unet.conv_norm_out, self._rewrites.norm_silu, self._how.run)
            return unet.conv_out(x)

    def _pair(self, block: Any, index: int, x: torch.Tensor) -> torch.Tensor:
        """The transformer that follows a residual block, where there is one."""
        attentions = getattr(block, "attentions", None)
        return self._transformer(x, attentions[index]) if attentions is not None else x

    def _residual(self, x: torch.Tensor, block: Any, at: dict[nn.Module, torch.Tensor]) -> torch.Tensor:
        """SpatioTemporalResBlock."""
        biases = (at[block.spatial_res_block], at[block.temporal_res_block])
        with self._weights(block):
            return residual(x, block, biases, self._constants.of(block), self._rewrites.norm_silu, self._how.run)

    def _transformer(self, x: torch.Tensor, model: Any) -> torch.Tensor:
        """TransformerSpatioTemporalModel."""
        with self._weights(model):
            return self._transformed(x, model)

    def _transformed(self, x: torch.Tensor, model: Any) -> torch.Tensor:
        rows = model.proj_in(layers.to_rows(model.norm(x)))
        positions = self._constants.positions(model)
        blend = self._constants.of(model)
        for space, time in zip(model.transformer_blocks, model.temporal_transformer_blocks, strict=True):
            rows = spatial_block_(rows, space, self._constants.of(space), self._how)
            mixed = temporal_block_(rows + positions, time, self._constants.of(time), self._how)
            rows = layers.blend(rows, mixed, model.time_mixer, blend.share)
        return layers.from_rows(model.proj_out(rows), like=x) + x


COMPILED_STEP = CompiledStep(PreparedUNet._network)
"""The programs of this process for whole steps."""


def residual(
    x: torch.Tensor,
    block: Any,
    biases: tuple[torch.Tensor, torch.Tensor],
    constants: BlockConstants,
    in_place: bool,
    run: Run,
) -> torch.Tensor:
    """A residual block in space, then one over time, of which the block's own share is added.

    biases  of the first convolution of either, with the time embedding of this step in it
    """
    space, time = block.spatial_res_block, block.temporal_res_block
    hidden = layers.spatial_residual(x, space, biases[0], in_place, run)
    video = layers.norm_silu(layers.to_video(hidden), time.norm1, in_place, run)
    video = layers.temporal_conv(video, time.conv1, biases[1])
    video = layers.temporal_conv(layers.norm_silu(video, time.norm2, in_place, run), time.conv2)
    added = layers.from_video(video, like=hidden)
    if constants.share is None:
        return layers.blend(hidden, hidden + added, block.time_mixer, None)
    return hidden.add_(added, alpha=constants.share)


def spatial_block_(rows: torch.Tensor, block: Any, constants: BlockConstants, how: ComputeOptions) -> torch.Tensor:
    """BasicTransformerBlock on (F, N, C), in place: attention within a frame, the picture's token, feed-forward."""
    joined = constants.fused_qkv_weight(block.attn1)
    layers.self_attention_(
        rows, block.norm1, block.attn1, joined, constants.bias, how.chunk_rows, how.run, how.spatial_sdpa
    )
    if constants.bias is None:
        rows.add_(block.attn2(block.norm2(rows), encoder_hidden_states=constants.context))
    return layers.feed_forward_(rows, block.norm3, block.ff.net, how.chunk_rows, how.run)


def temporal_block_(rows: torch.Tensor, block: Any, constants: BlockConstants, how: ComputeOptions) -> torch.Tensor:
    """TemporalBasicTransformerBlock on (F, N, C), in place. Only attention looks along the frames."""
    layers.feed_forward_(rows, block.norm_in, block.ff_in.net, how.chunk_rows, how.run)
    joined = constants.fused_qkv_weight(block.attn1)
    layers.self_attention_(rows, block.norm1, block.attn1, joined, constants.bias, how.chunk_rows, how.run)
    if constants.bias is None:
        flip_sigmas = block.norm2(rows).transpose(0, 1)
        context = constants.context[:1].expand(len(flip_sigmas), -1, -1)
        rows.add_(block.attn2(flip_sigmas, encoder_hidden_states=context).transpose(0, 1))
    return layers.feed_forward_(rows, block.norm3, block.ff.net, how.chunk_rows, how.run)


def _piece_of(device: torch.device) -> int:
    return CPU_CHUNK_ROWS if device.type == "cpu" else GPU_CHUNK_ROWS


@dataclass(frozen=True)
class _Sizes:
    """The sizes to go up to, told to the upsamplers only where halving did not come out even."""

    uneven: bool

    @staticmethod
    def of(unet: Any, sample: torch.Tensor) -> _Sizes:
        whole = 2**unet.num_upsamplers
        return _Sizes(any(side % whole for side in sample.shape[-2:]))

    def above(self, skips: list[torch.Tensor]) -> torch.Size | None:
        return skips[-1].shape[-2:] if self.uneven else None
