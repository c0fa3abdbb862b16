"""The layers of the video models in functional form, with few passes over memory.

Activations are (F, C, H, W), the frames of one video. In channels-last memory format three views of it cost nothing:
the input of a 2D convolution, rows of tokens (F, H W, C), and a 2D image of time and pixels (1, C, F, H W), on which a
temporal convolution is a 2D convolution with kernel (3, 1). A name that ends in _ computes in place.
"""

# The model classes declare their submodules as plain modules: a type checker cannot follow.
# pyright: reportCallIssue=false, reportArgumentType=false

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from . import triton_group_norm
from .attention_backend import SdpaContext, default_sdpa
from .compile import Run, TensorFunction, run_eager

LayerNorm = tuple[torch.Tensor, torch.Tensor, float]
"""Weight, bias and eps of a layer norm."""
Linear = tuple[torch.Tensor, torch.Tensor | None]
"""Weight and bias of a linear layer."""

LAYOUTS = {nn.Conv2d: torch.channels_last, nn.Conv3d: torch.channels_last_3d}

MAX_BATCH = 65535
"""Sequences of one attention: the most blocks that a CUDA grid has in its second and third dimension."""
MPS_SCORES = 2**30
"""Attention scores of one call on MPS, which computes them all, in float32, and allocates at most 2^32 bytes."""

HAS_ONEDNN = torch.backends.mkldnn.is_available()


def set_weight(module: Any, weight: torch.Tensor, name: str = "weight") -> None:
    """Replace the memory of one of a module's parameters. The Parameter stays, unless inference mode created it."""
    parameter = getattr(module, name)
    if parameter.is_inference():
        setattr(module, name, nn.Parameter(weight, requires_grad=False))
    else:
        parameter.data = weight


def to_channels_last(module: nn.Module, wanted: bool = True) -> None:
    """Convert the weights of convolutions to channels-last memory format, once: torch would convert on each call.

    Names and values stay. safetensors' `save_file` needs contiguous weights: convert them back before calling it.

    Args:
        module: The network.
        wanted: False: convert them back. Convolutions return the format of either operand.
    """
    for layer in module.modules():
        layout = LAYOUTS.get(type(layer))
        if layout is None:
            continue
        layout = layout if wanted else torch.contiguous_format
        if not layer.weight.is_contiguous(memory_format=layout):
            with torch.inference_mode(False), torch.no_grad():
                set_weight(layer, layer.weight.detach().contiguous(memory_format=layout))


def uses_channels_last(device: torch.device, option: str = "auto") -> bool:
    """Return True if activations on a device are in channels-last format. auto: on CPUs, and where Triton's norm works.

    PyTorch's group norms on other devices than the CPU return another format.
    """
    if option != "auto":
        return option == "on"
    return device.type == "cpu" or triton_group_norm.is_available(device)


def norm_silu(x: torch.Tensor, norm: Any, run: Run = run_eager) -> torch.Tensor:
    """Apply a group norm, then SiLU. x stays unchanged."""
    if triton_group_norm.serves(x):
        return triton_group_norm.group_norm(x, norm, silu=True)
    return run(group_norm_silu, x, norm.weight, norm.bias, norm.num_groups, norm.eps)


def group_norm_silu(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, groups: int, eps: float) -> torch.Tensor:
    """Compute `norm_silu` from tensors alone."""
    return F.silu(F.group_norm(x, groups, weight, bias, eps), inplace=True)


def group_norm(x: torch.Tensor, norm: Any) -> torch.Tensor:
    """Apply a group norm. x stays unchanged."""
    return triton_group_norm.group_norm(x, norm, silu=False) if triton_group_norm.serves(x) else norm(x)


def resnet_block(x: torch.Tensor, block: Any, bias: torch.Tensor | None = None, run: Run = run_eager) -> torch.Tensor:
    """Apply a ResnetBlock2D. `bias` (C,) replaces conv1's: it includes the time embedding."""
    conv1 = block.conv1
    hidden = norm_silu(x, block.norm1, run)
    hidden = F.conv2d(hidden, conv1.weight, conv1.bias if bias is None else bias, conv1.stride, conv1.padding)
    hidden = block.conv2(norm_silu(hidden, block.norm2, run))
    return hidden.add_(x if block.conv_shortcut is None else block.conv_shortcut(x))


def blend_alphas(module: nn.Module) -> dict[nn.Module, float]:
    """Return the weight of the temporal branch, 0 to 1, of each submodule with an AlphaBlender, for frames of a video.

    All are read from the device at once: each read waits for the device.
    """
    mixed = [each for each in module.modules() if hasattr(each, "time_mixer")]
    mixers: list[Any] = [each.time_mixer for each in mixed]
    if any(mixer.mix_factor.is_meta for mixer in mixers):
        return dict.fromkeys(mixed, 0.5)  # any value: nothing is computed on the meta device
    factors = [
        mixer.mix_factor if mixer.merge_strategy == "fixed" else torch.sigmoid(mixer.mix_factor) for mixer in mixers
    ]
    alphas = torch.cat(factors).cpu().tolist() if factors else []
    return {
        each: alpha if mixer.switch_spatial_to_temporal_mix else 1.0 - alpha
        for each, mixer, alpha in zip(mixed, mixers, alphas, strict=True)
    }


def to_video(x: torch.Tensor) -> torch.Tensor:
    """Reshape (F, C, H, W) to (1, C, F, H W); a view in channels-last format."""
    frames, channels, height, width = x.shape
    if is_channels_last(x):
        return x.permute(0, 2, 3, 1).reshape(1, frames, height * width, channels).permute(0, 3, 1, 2)
    return x.transpose(0, 1).reshape(1, channels, frames, height * width)


def from_video(video: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """View (1, C, F, H W) as (F, C, H, W), with the H and W of `like`."""
    return video[0].transpose(0, 1).unflatten(2, like.shape[-2:])


def is_channels_last(x: torch.Tensor) -> bool:
    """Return True if x (N, C, H, W) is in channels-last memory format."""
    return x.is_contiguous(memory_format=torch.channels_last)


def to_rows(x: torch.Tensor) -> torch.Tensor:
    """Reshape (F, C, H, W) to rows (F, H W, C); a view in channels-last format."""
    return x.permute(0, 2, 3, 1).reshape(x.shape[0], x.shape[2] * x.shape[3], x.shape[1])


def from_rows(rows: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """View rows (F, H W, C) as (F, C, H, W), with the H and W of `like`."""
    return rows.unflatten(1, like.shape[-2:]).permute(0, 3, 1, 2)


def temporal_conv(video: torch.Tensor, module: Any, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Apply a Conv3d with kernel (3, 1, 1) to (1, C, F, H W), as a 2D convolution with kernel (3, 1)."""
    bias = module.bias if bias is None else bias
    return F.conv2d(video, module.weight.flatten(3), bias, padding=(1, 0))


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Apply a linear layer (D, C) to x (..., C).

    In float32 on a CPU by oneDNN: MKL, which torch calls, takes twice as long on AMD's CPUs. Compiled code and autocast
    keep it, and so does a bias that is not contiguous, which the operation of oneDNN would misread.
    """
    is_plain = bias is None or bias.is_contiguous()
    if x.is_cpu and x.dtype == torch.float32 and HAS_ONEDNN and is_plain and not _has_other_rules():
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


def _has_other_rules() -> bool:
    return torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu")


def weights_of(module: Any) -> Linear:
    """Return weight and bias of a linear layer."""
    return module.weight, module.bias


def feed_forward_(rows: torch.Tensor, norm: Any, net: Any, chunk_rows: int | None, run: Run) -> torch.Tensor:
    """Add the FeedForward `net` of the layer norm of `rows` to them, `chunk_rows` rows at a time (None: all)."""
    flat = rows.view(-1, rows.shape[-1])
    for chunk in flat.split(chunk_rows or len(flat)):
        run(geglu_, chunk, (norm.weight, norm.bias, norm.eps), weights_of(net[0].proj), weights_of(net[2]))
    return rows


def geglu_(rows: torch.Tensor, norm: LayerNorm, proj: Linear, out: Linear) -> torch.Tensor:
    """Compute `feed_forward_` of rows (R, C) from tensors alone."""
    value, gate = linear(F.layer_norm(rows, rows.shape[-1:], *norm), *proj).chunk(2, dim=-1)
    return rows.add_(linear(F.gelu(gate).mul_(value), *out))


def self_attention_(
    rows: torch.Tensor,
    norm: Any,
    attn: Any,
    qkv_weight: torch.Tensor | None,
    output_bias: torch.Tensor | None,
    chunk_rows: int | None,
    run: Run,
    spatial_sdpa: SdpaContext | None = None,
) -> torch.Tensor:
    """Add the self-attention of the layer norm of rows to them: spatial within a frame, or temporal per pixel.

    Args:
        rows: (F, N, C) tokens.
        norm: LayerNorm.
        attn: diffusers' Attention.
        qkv_weight: (3C, C) fused projection weights. None: three projections.
        output_bias: (C,) replaces the bias of the output projection. None: its own.
        chunk_rows: Rows at a time, at least one frame or one pixel. None: all.
        run: Calls the computation, eagerly or compiled.
        spatial_sdpa: SDPA backends of spatial attention. None: attention is temporal.
    """
    qkv = ((qkv_weight, None),) if qkv_weight is not None else tuple(map(weights_of, (attn.to_q, attn.to_k, attn.to_v)))
    weight, bias = weights_of(attn.to_out[0])
    out = (weight, bias if output_bias is None else output_bias)
    batch_dim = 0 if spatial_sdpa else 1
    tokens = rows.shape[1 - batch_dim]
    wanted = (chunk_rows or rows.shape[0] * rows.shape[1]) // tokens
    for chunk in rows.split(_attention_batch(wanted, attn.heads, tokens, rows.device), dim=batch_dim):
        run(attention_, chunk, (norm.weight, norm.bias, norm.eps), qkv, out, attn.heads, spatial_sdpa)
    return rows


def _attention_batch(wanted: int, heads: int, tokens: int, device: torch.device) -> int:
    """Limit a number of sequences to what the attention kernels of a device compute in one call."""
    if device.type == "mps":
        wanted = min(wanted, MPS_SCORES // (heads * tokens**2))
    return max(1, min(wanted, MAX_BATCH))


def attention_(
    rows: torch.Tensor,
    norm: LayerNorm,
    qkv: tuple[Linear, ...],
    out: Linear,
    heads: int,
    spatial_sdpa: SdpaContext | None,
) -> torch.Tensor:
    """Compute `self_attention_` of all rows from tensors alone. The memory order stays (F, N, C)."""
    normed = F.layer_norm(rows, rows.shape[-1:], *norm)
    query, key, value = _project_qkv(normed, qkv, heads, (0, 3, 1) if spatial_sdpa else (1, 3, 0))
    with (spatial_sdpa or default_sdpa)():
        hidden = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
    if spatial_sdpa is None:
        if hidden.is_contiguous():  # the kernel's memory order varies: multiply in that order, without a copy
            return rows.add_(linear(hidden, *out).transpose(0, 1))
        hidden = hidden.transpose(0, 1)
    return rows.add_(linear(hidden, *out))


def _project_qkv(
    rows: torch.Tensor, qkv: tuple[Linear, ...], heads: int, order: tuple[int, int, int]
) -> tuple[torch.Tensor, ...]:
    """Project rows (F, N, C) to query, key and value (batch, heads, tokens, C / heads).

    `order`: the dimensions of (F, N, parts, heads, C / heads) that become batch, heads and tokens.
    """
    each = [linear(rows, *layer) for layer in qkv]
    parts = 3 // len(qkv)
    return tuple(
        part
        for projected in each
        for part in projected.unflatten(-1, (parts, heads, -1)).permute(2, *order, 4).unbind(0)
    )


COMPILABLE: dict[TensorFunction, int] = {geglu_: -1, attention_: -1}
"""Functions worth compiling, with the channel dimension of their first argument."""
COMPILABLE_OFF_CPU: dict[TensorFunction, int] = {**COMPILABLE, group_norm_silu: 1}
"""The same for other devices. On a CPU torch's channels-last group norm is faster than compiled code."""
