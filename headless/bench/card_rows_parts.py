"""Rows of `svd-stages bench --card` about single layers, kernels, copies and the limits of the device."""

from __future__ import annotations

import contextlib
import copy
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from ...svd_core.media.image_ops import to_images
from ...svd_core.models import layers
from ...svd_core.models.compile import run_eager
from ...svd_core.models.group_norm import GroupNormStatistics
from ...svd_core.models.precompute import fuse_qkv, fused_qkv_weight
from ...svd_core.models.unet import CPU_CHUNK_ROWS, GPU_CHUNK_ROWS
from .card_models import Card, NotMeasured
from .measuring import timed

LEVELS = 4
MOVES = 3
CALLS = 10
"""Calls of a layer in a turn on a GPU: one may take less time than its launch."""
VAE_CHANNELS = 512
"""Channels of the one head in the middle of the published decoder."""


def _level_0(card: Card, name: str) -> tuple[Any, Any]:
    """Return the first residual block and the first transformer of a UNet."""
    block = card.use_one(name).down_blocks[0]
    return block.resnets[0], block.attentions[0]


def _random(card: Card, *shape: int) -> torch.Tensor:
    generator = torch.Generator(card.device).manual_seed(5)
    return torch.randn(shape, generator=generator, device=card.device).to(card.dtype)


def _activations(card: Card, channels: int) -> torch.Tensor:
    """Return activations (F, C, h, w) of the UNet's first level."""
    size = card.size
    return _random(card, size.frames, channels, size.height, size.width)


def _rows(card: Card) -> torch.Tensor:
    """Return rows (F, h w, C) of the UNet's first level."""
    size = card.size
    return _random(card, size.frames, size.height * size.width, size.unet_channels[0])


def _chunk_rows(card: Card) -> int:
    return CPU_CHUNK_ROWS if card.device.type == "cpu" else GPU_CHUNK_ROWS


def _compare(card: Card, without: Callable[[], torch.Tensor], with_it: Callable[[], torch.Tensor]) -> dict[str, Any]:
    return card.compare(without, with_it, name="without", calls=CALLS if card.is_cuda else 1)


def norm_silu(card: Card, channels_last: bool) -> dict[str, Any]:
    """Group norm and SiLU: two operations beside this package's."""
    resnet, _ = _level_0(card, "UNet")
    norm, x = resnet.spatial_res_block.norm1, _activations(card, card.size.unet_channels[0])
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    return _compare(card, lambda: F.silu(norm(x)), lambda: layers.norm_silu(x, norm))


def clip_norm_silu(card: Card) -> dict[str, Any]:
    """Group norm and SiLU of a clip: in one call beside statistics and normalization of a part."""
    resnet, _ = _level_0(card, "UNet")
    norm, x = resnet.temporal_res_block.norm1, _activations(card, card.size.unet_channels[0])
    video = layers.to_video(x)

    def in_parts() -> torch.Tensor:
        moments = GroupNormStatistics(norm)
        moments.update(video)
        return moments.normalize_silu(video)

    return _compare(card, lambda: F.silu(norm(video)), in_parts)


def convolution_format(card: Card) -> dict[str, Any]:
    """A convolution of the first level in channels-last memory format beside the other one."""
    resnet, _ = _level_0(card, "stock UNet")
    conv, x = resnet.spatial_res_block.conv2, _activations(card, card.size.unet_channels[0])
    converted, y = copy.deepcopy(conv), x.contiguous(memory_format=torch.channels_last)
    layers.to_channels_last(converted)
    return _compare(card, lambda: conv(x), lambda: converted(y))


def temporal_convolution(card: Card, channels_last: bool) -> dict[str, Any]:
    """A temporal convolution as a 2D one on a view beside Conv3d."""
    resnet, _ = _level_0(card, "UNet")
    conv, x = copy.deepcopy(resnet.temporal_res_block.conv2), _activations(card, card.size.unet_channels[0])
    ours = copy.deepcopy(conv)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
        layers.to_channels_last(ours)
    video = x.transpose(0, 1)[None].contiguous()

    def as_2d() -> torch.Tensor:
        return layers.from_video(layers.temporal_conv(layers.to_video(x), ours), like=x)

    return _compare(card, lambda: conv(video)[0].transpose(0, 1), as_2d)


def joined_projections(card: Card, spatial: bool) -> dict[str, Any]:
    """Self-attention with one projection beside that with three."""
    _, model = _level_0(card, "UNet")
    block = model.transformer_blocks[0] if spatial else model.temporal_transformer_blocks[0]
    if not fuse_qkv(block.attn1):
        raise NotMeasured("the projections cannot be joined")
    rows, weight = _rows(card), fused_qkv_weight(block.attn1)
    sdpa = contextlib.nullcontext if spatial else None

    def attend(qkv_weight: torch.Tensor | None) -> torch.Tensor:
        return layers.self_attention_(
            rows.clone(), block.norm1, block.attn1, qkv_weight, None, _chunk_rows(card), run_eager, sdpa
        )

    return _compare(card, lambda: attend(None), lambda: attend(weight))


def constant_cross_attention(card: Card) -> dict[str, Any]:
    """The bias in place of cross-attention to one token."""
    _, model = _level_0(card, "UNet")
    block, rows = model.transformer_blocks[0], _rows(card)
    context = _random(card, 1, 1, card.size.embedding_width)
    every = context.expand(len(rows), -1, -1)
    constant = block.attn2.to_out[0](block.attn2.to_v(context))[0, 0]
    return _compare(
        card,
        lambda: rows + block.attn2(block.norm2(rows), encoder_hidden_states=every),
        lambda: rows + constant,
    )


def feed_forward(card: Card) -> dict[str, Any]:
    """The feed-forward layer in chunks of rows and in place beside diffusers'."""
    _, model = _level_0(card, "UNet")
    block, rows, chunk = model.transformer_blocks[0], _rows(card), _chunk_rows(card)
    return _compare(
        card,
        lambda: rows + block.ff(block.norm3(rows)),
        lambda: layers.feed_forward_(rows.clone(), block.norm3, block.ff.net, chunk, run_eager),
    )


def blend(card: Card) -> dict[str, Any]:
    """The blend of both branches as one weighted sum beside AlphaBlender."""
    _, model = _level_0(card, "UNet")
    spatial, temporal = _rows(card), _rows(card).neg()
    indicator = torch.zeros((1, card.size.frames), device=card.device, dtype=card.dtype)
    alpha = layers.blend_alphas(model)[model]
    return _compare(
        card,
        lambda: model.time_mixer(x_spatial=spatial, x_temporal=temporal, image_only_indicator=indicator),
        lambda: spatial.lerp(temporal, alpha),
    )


def attention(card: Card, kind: str, level: int, backend: str | None) -> dict[str, Any]:
    """The attention of a level of the UNet by one of torch's kernels, on views as the UNet has them.

    Args:
        kind: spatial or temporal.
        level: 0 to 3: the last is the middle block's.
        backend: A name of SDPBackend. None: torch's choice.
    """
    size = card.size
    tokens = size.height * size.width // 4**level
    heads, channels = size.heads[level], size.unet_channels[level]
    shape = (size.frames, tokens, 3, heads, channels // heads)
    if kind == "spatial":
        frames = max(1, min(size.frames, GPU_CHUNK_ROWS // tokens))
        query, key, value = _random(card, frames, *shape[1:]).permute(2, 0, 3, 1, 4).unbind(0)
    else:
        query, key, value = _random(card, *shape).permute(2, 1, 3, 0, 4).unbind(0)
    return _time_attention(card, query, key, value, backend)


def decoder_attention(card: Card, backend: str | None) -> dict[str, Any]:
    """The attention in the middle of the decoder, one wide head, of all frames by one of torch's kernels."""
    query, key, value = _decoder_heads(card)
    return _time_attention(card, query, key, value, backend)


def decoder_attention_by_products(card: Card) -> dict[str, Any]:
    """The attention in the middle of the decoder as two products and a softmax, frame by frame."""
    query, key, value = _decoder_heads(card)

    def attend() -> torch.Tensor:
        result = torch.empty_like(query)
        for index in range(len(query)):
            scores = query[index, 0] * query.shape[-1] ** -0.5 @ key[index, 0].T
            torch.matmul(scores.softmax(dim=-1), value[index, 0], out=result[index, 0])
        return result

    return card.compare(
        lambda: F.scaled_dot_product_attention(query, key, value), attend, _attention_flops(query), name="torch's"
    )


def _decoder_heads(card: Card) -> tuple[torch.Tensor, ...]:
    size = card.size
    channels = size.vae_channels[-1]
    rows = _random(card, 3, size.frames, size.height * size.width, channels)
    return tuple(each[:, None] for each in rows.unbind(0))


def _attention_flops(query: torch.Tensor) -> int:
    return 4 * query.numel() * query.shape[-2]


def _time_attention(
    card: Card, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, backend: str | None
) -> dict[str, Any]:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    def attend() -> torch.Tensor:
        with sdpa_kernel([getattr(SDPBackend, backend)]) if backend else contextlib.nullcontext():
            return F.scaled_dot_product_attention(query, key, value)

    return {"shape": list(query.shape)} | card.time(attend, _attention_flops(query))


def matrix_product(card: Card) -> dict[str, Any]:
    """A large matrix product in the models' dtype: what the device reaches."""
    side = 8192 if card.is_cuda else 1024
    factor = _random(card, side, side)
    return {"shape": [side, side]} | card.time(lambda: factor @ factor, 2 * side**3)


def convolution(card: Card, channels_last: bool) -> dict[str, Any]:
    """A convolution with kernel 3 of the UNet's first level."""
    channels = card.size.unet_channels[0]
    x, weight = _activations(card, channels), _random(card, channels, channels, 3, 3)
    if channels_last:
        x, weight = (each.contiguous(memory_format=torch.channels_last) for each in (x, weight))
    flops = 2 * 9 * channels * x.numel()
    return {"shape": list(x.shape)} | card.time(lambda: F.conv2d(x, weight, padding=1), flops)


def copy_on_device(card: Card) -> dict[str, Any]:
    """A copy within the device's memory: bytes that are read and written."""
    source = torch.ones(2**30 if card.is_cuda else 2**26, dtype=torch.uint8, device=card.device)
    target = torch.empty_like(source)
    return card.time(lambda: target.copy_(source), moved=2 * source.nbytes)


def copy_clip(card: Card, to_device: bool, pinned: bool) -> dict[str, Any]:
    """Copy the images of the clip, float32, between host and device."""
    size = card.size
    host = torch.ones(size.frames, 8 * size.height, 8 * size.width, 3)
    host = host.pin_memory() if pinned else host
    target = host.to(card.device, copy=True)
    pair = (target, host) if to_device else (host, target)
    return card.time(lambda: pair[0].copy_(pair[1], non_blocking=True), moved=host.nbytes)


def convert_images(card: Card, on_device: bool) -> dict[str, Any]:
    """Convert the pixels of the clip to images on the CPU, before or after the copy from the device."""
    size = card.size
    pixels = _random(card, size.frames, 3, 8 * size.height, 8 * size.width)
    if on_device:
        return card.time(lambda: to_images(pixels).cpu())
    return card.time(lambda: to_images(pixels.cpu()).contiguous())


def move(card: Card, name: str, to_device: bool) -> dict[str, Any]:
    """Move a model to the device or back, from and to pageable memory."""
    model = card.on_cpu(name)
    moved = sum(weight.nbytes for weight in model.parameters())
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(MOVES):
        for goes in (True, False):
            target = card.device if goes else torch.device("cpu")
            seconds[goes].append(timed(lambda target=target: model.to(target), card.device)[0])
    times = seconds[to_device]
    spread = (max(times) - min(times)) / statistics.median(times)
    median = statistics.median(times)
    return {"seconds": median, "spread": spread, "turns": MOVES, "gb_per_s": moved / median / 1e9}
