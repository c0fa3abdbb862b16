"""The layers of the video models, written for few passes over memory. Activations are (F, C, H, W), of one video.

With channels last in memory such a tensor is at once the input of a 2D convolution, the rows (F, H W, C) of a matrix,
and a 2D picture (1, C, F, H W) on which a convolution over time has the kernel (3, 1): all three are views.
"""

# The model classes declare their parts as bare modules: a type checker cannot follow.
# pyright: reportCallIssue=false, reportArgumentType=false

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from . import attention_backend
from .compile import Run, TensorFunction, run_eager

LAYOUTS = {nn.Conv2d: torch.channels_last, nn.Conv3d: torch.channels_last_3d}


def set_weight(module: Any, weight: torch.Tensor) -> None:
    """Have a module's weight be in other memory; the same parameter, unless inference mode made it."""
    if module.weight.is_inference():
        module.weight = nn.Parameter(weight, requires_grad=False)
    else:
        module.weight.data = weight


def to_channels_last(module: torch.nn.Module) -> None:
    """Have the weights of convolutions in the layout that channels last computes with: same names, values and memory.

    Once; the layout stays with a weight when it is moved. Otherwise each call would make such a copy. Whoever writes
    the weights to a file by safetensors' own function has to make them contiguous first.
    """
    for part in module.modules():
        if type(part) in LAYOUTS:
            layout = LAYOUTS[type(part)]
            if not part.weight.is_contiguous(memory_format=layout):
                with torch.inference_mode(False), torch.no_grad():
                    laid_out = part.weight.detach().contiguous(memory_format=layout)
                    set_weight(part, laid_out)


def norm_silu(x: torch.Tensor, norm: nn.Module, in_place: bool = True, run: Run = run_eager) -> torch.Tensor:
    """SiLU of the group norm of x."""
    return run(group_norm_silu, x, norm.weight, norm.bias, norm.num_groups, norm.eps, in_place)


def group_norm_silu(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, groups: int, eps: float, in_place: bool
) -> torch.Tensor:
    """The same, of tensors."""
    return F.silu(F.group_norm(x, groups, weight, bias, eps), inplace=in_place)


def spatial_residual(
    x: torch.Tensor, block: Any, bias: torch.Tensor | None = None, in_place: bool = True, run: Run = run_eager
) -> torch.Tensor:
    """ResnetBlock2D. bias: of the first convolution, with the time embedding in it."""
    hidden = conv(norm_silu(x, block.norm1, in_place, run), block.conv1, bias)
    hidden = block.conv2(norm_silu(hidden, block.norm2, in_place, run))
    return hidden.add_(x if block.conv_shortcut is None else block.conv_shortcut(x))


def blend_alpha(mixer: Any) -> float:
    """How much of the temporal side AlphaBlender takes; SVD's frames are never single images to it."""
    factor = mixer.mix_factor
    if factor.is_meta:
        return 0.5  # no numbers are computed there
    alpha = factor if mixer.merge_strategy == "fixed" else torch.sigmoid(factor)
    alpha = alpha.to(factor.dtype).item()
    return alpha if mixer.switch_spatial_to_temporal_mix else 1.0 - alpha


def to_video(x: torch.Tensor) -> torch.Tensor:
    """(F, C, H, W) as a picture of time and place, (1, C, F, H W); a view when channels are last."""
    frames, channels, height, width = x.shape
    if is_channels_last(x):
        return x.permute(0, 2, 3, 1).reshape(1, frames, height * width, channels).permute(0, 3, 1, 2)
    return x.transpose(0, 1).reshape(1, channels, frames, height * width)


def from_video(video: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The way back to the shape of `like`; a view."""
    return video[0].transpose(0, 1).unflatten(2, like.shape[-2:])


def is_channels_last(x: torch.Tensor) -> bool:
    """Whether channels are last in memory."""
    return x.is_contiguous(memory_format=torch.channels_last)


def to_rows(x: torch.Tensor) -> torch.Tensor:
    """(F, C, H, W) as the rows of a matrix, (F, H W, C); a view when channels are last."""
    return x.permute(0, 2, 3, 1).reshape(x.shape[0], x.shape[2] * x.shape[3], x.shape[1])


def from_rows(rows: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The way back to (F, C, H, W), in the size of `like`; a view with channels last."""
    return rows.unflatten(1, like.shape[-2:]).permute(0, 3, 1, 2)


def conv(x: torch.Tensor, module: Any, bias: torch.Tensor | None) -> torch.Tensor:
    """A 2D convolution, with another bias when there is one."""
    if bias is None:
        return module(x)
    return F.conv2d(x, module.weight, bias, module.stride, module.padding)


def temporal_conv(video: torch.Tensor, module: Any, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Conv3d with kernel (3, 1, 1) on (1, C, F, H W), as a 2D convolution with kernel (3, 1)."""
    bias = module.bias if bias is None else bias
    return F.conv2d(video, module.weight.flatten(3), bias, padding=(1, 0))


def blend(space: torch.Tensor, time: torch.Tensor, mixer: Any, share: float | None) -> torch.Tensor:
    """space + share (time - space), in place; with no share what AlphaBlender makes of frames of a video."""
    if share is not None:
        return space.lerp_(time, share)
    frames = space.new_zeros((1, len(space)))
    if space.ndim == 4:  # AlphaBlender takes (1, C, F, H, W) or (F, N, C)
        return mixer(space.transpose(0, 1)[None], time.transpose(0, 1)[None], frames)[0].transpose(0, 1)
    return mixer(space, time, frames)


def feed_forward_(rows: torch.Tensor, norm: Any, net: Any, chunk_rows: int | None, run: Run) -> torch.Tensor:
    """rows += feed-forward(norm(rows)), in place, `chunk_rows` rows at a time. Rows do not see each other."""
    into, out = net[0].proj, net[2]
    flat = rows.view(-1, rows.shape[-1])
    for some in flat.split(chunk_rows or len(flat)):
        run(geglu_, some, *_of_norm(norm), into.weight, into.bias, out.weight, out.bias)
    return rows


def geglu_(
    rows: torch.Tensor,
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor,
    eps: float,
    into: torch.Tensor,
    into_bias: torch.Tensor | None,
    out: torch.Tensor,
    out_bias: torch.Tensor | None,
) -> torch.Tensor:
    """The same on rows (R, C), of tensors."""
    normed = F.layer_norm(rows, rows.shape[-1:], norm_weight, norm_bias, eps)
    value, gate = F.linear(normed, into, into_bias).chunk(2, dim=-1)
    return rows.add_(F.linear(F.gelu(gate).mul_(value), out, out_bias))


def self_attention_(
    rows: torch.Tensor,
    norm: Any,
    module: Any,
    joined: torch.Tensor | None,
    bias: torch.Tensor | None,
    chunk_rows: int | None,
    run: Run,
    spatial_sdpa: attention_backend.Context | None = None,
) -> torch.Tensor:
    """rows += self-attention(norm(rows)) on (F, N, C), in place: within each frame, or over time at each place.

    joined    (3 C, C) the three projections as one matrix, if there is one
    bias      (C,) of the last product; None: its own
    chunk_rows     rows at a time, but never less than a frame or a place
    in_space  the context to compute it in within each frame; None: over time
    """
    to_qkv = (module.to_q, module.to_k, module.to_v)
    weights = (joined,) if joined is not None else tuple(each.weight for each in to_qkv)
    biases = (None,) if joined is not None else tuple(each.bias for each in to_qkv)
    out = module.to_out[0]
    last = (out.weight, out.bias if bias is None else bias, module.heads, spatial_sdpa)
    whole, cut = (1, 0) if spatial_sdpa else (0, 1)
    for some in rows.split(_share_of_piece(chunk_rows, rows, whole), dim=cut):
        run(attention_, some, *_of_norm(norm), weights, biases, *last)
    return rows


def attention_(
    rows: torch.Tensor,
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor,
    eps: float,
    qkv: tuple[torch.Tensor, ...],
    qkv_biases: tuple[torch.Tensor | None, ...],
    out: torch.Tensor,
    out_bias: torch.Tensor | None,
    heads: int,
    spatial_sdpa: attention_backend.Context | None,
) -> torch.Tensor:
    """The same of tensors, on all rows at once. Their order in memory stays (F, N, C), over time too."""
    normed = F.layer_norm(rows, rows.shape[-1:], norm_weight, norm_bias, eps)
    query, key, value = _projected(normed, qkv, qkv_biases, heads, (0, 3, 1) if spatial_sdpa else (1, 3, 0))
    with (spatial_sdpa or attention_backend.default_sdpa)():
        mixed = _attend(query, key, value)
    if spatial_sdpa is None:
        if mixed.is_contiguous():  # which of the two orders the kernel wrote; the other would be copied
            return rows.add_(F.linear(mixed, out, out_bias).transpose(0, 1))
        mixed = mixed.transpose(0, 1)
    return rows.add_(F.linear(mixed, out, out_bias))


def _of_norm(norm: Any) -> tuple[torch.Tensor, torch.Tensor, float]:
    return norm.weight, norm.bias, norm.eps


def _share_of_piece(chunk_rows: int | None, rows: torch.Tensor, whole: int) -> int:
    """Return the number of frames, or places, that make `chunk_rows` rows of (F, N, C); at least 1."""
    return max(1, (chunk_rows or rows.shape[0] * rows.shape[1]) // rows.shape[whole])


def _projected(
    rows: torch.Tensor,
    weights: tuple[torch.Tensor, ...],
    biases: tuple[torch.Tensor | None, ...],
    heads: int,
    order: tuple[int, int, int],
) -> tuple[torch.Tensor, ...]:
    """(F, N, C) -> query, key and value (B, heads, tokens, C / heads); `order` puts batch, heads, tokens in place."""
    parts = 3 // len(weights)
    each = [F.linear(rows, weight, bias) for weight, bias in zip(weights, biases, strict=True)]
    return tuple(
        part
        for projected in each
        for part in projected.unflatten(-1, (parts, heads, -1)).permute(2, *order, 4).unbind(0)
    )


def _attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """(B, heads, N, d) three times -> (B, N, heads d)."""
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


COMPILABLE: dict[TensorFunction, int] = {geglu_: -1, attention_: -1}
"""What is worth compiling, and which dimension of its first argument is the block's width."""
COMPILABLE_OFF_CPU: dict[TensorFunction, int] = {**COMPILABLE, group_norm_silu: 1}
"""With channels last a CPU's own group norm is quicker."""
