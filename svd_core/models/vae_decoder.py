"""The temporal VAE decoder over a whole clip, layer by layer: exact, with one layer's activations in memory.

Decoding parts of a clip is not exact: the temporal convolutions reach further than any overlap, and the group norms
between them pool over all frames. So each layer runs over the whole clip before the next one starts. Spatial layers run
on a few frames at a time, or on tiles of rows of a large frame. Temporal convolutions run on tiles of rows of all
frames. The statistics of group norms over the clip are collected from all parts before any is normalized. Shapes alone
decide the parts, so free memory has no influence on the numbers.
"""

# The model classes declare their submodules as plain modules: a type checker cannot follow.
# pyright: reportCallIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false, reportIndexIssue=false
# pyright: reportGeneralTypeIssues=false, reportOptionalSubscript=false

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from . import layers, tiled_layers
from .group_norm import GroupNormStatistics
from .optimizations import find_modification
from .options import Activations, ChannelsLast

TILE_NUMEL = 2**26
"""Elements of the activations that are computed at once, if one row of pixels has no more. A single frame of 1024x576
has 75 million in the decoder's last level."""
CPU_TILE_NUMEL = 2**21
"""The same on a CPU: tiles stay in its caches, and the allocator reuses their memory instead of returning it."""

COMPOSITES = frozenset(
    {
        "TemporalDecoder",
        "MidBlockTemporalDecoder",
        "UpBlockTemporalDecoder",
        "SpatioTemporalResBlock",
        "ResnetBlock2D",
        "TemporalResnetBlock",
        "AlphaBlender",
        "ModuleList",
        "Upsample2D",
        "Attention",
    }
)


def can_stream(decoder: torch.nn.Module) -> bool:
    """Return True if `decode` computes what the decoder's own forward does: its classes are diffusers', unmodified."""
    return type(decoder).__name__ == "TemporalDecoder" and find_modification(decoder, COMPOSITES) is None


def decode(
    decoder: Any,
    latents: torch.Tensor,
    activations: Activations = "recompute",
    on_progress: Callable[[float], None] | None = None,
    channels_last: ChannelsLast = "auto",
) -> torch.Tensor:
    """Decode one clip of unscaled latents (F, 4, h, w) to pixels (F, 3, 8h, 8w) in the decoder's dtype.

    Args:
        decoder: diffusers' TemporalDecoder.
        latents: On the decoder's device and in its dtype.
        activations: With "offload" the pixels are on the CPU, too.
        on_progress: Called with the fraction of the work that is done, 0 to 1. Its exceptions end the decoding.
        channels_last: The memory format of activations on the device.
    """
    return _ClipDecoder(decoder, latents, activations, on_progress or (lambda _: None), channels_last).decode()


class _ClipDecoder:
    """Holds the activations of a clip between layers, as groups of frames (T, C, H, W)."""

    def __init__(
        self,
        decoder: Any,
        latents: torch.Tensor,
        activations: Activations,
        on_progress: Callable[[float], None],
        channels_last: ChannelsLast,
    ) -> None:
        self._decoder, self._device, self._dtype = decoder, latents.device, latents.dtype
        self._store = torch.device("cpu") if activations == "offload" else latents.device
        self._keeps_hidden = activations == "keep"
        self._blend_alphas = layers.blend_alphas(decoder)
        self._on_progress = on_progress
        self._tile_numel = CPU_TILE_NUMEL if latents.device.type == "cpu" else TILE_NUMEL
        self._channels_last = layers.uses_channels_last(latents.device, channels_last)
        layers.to_channels_last(decoder, self._channels_last)
        layout = torch.channels_last if self._channels_last else torch.contiguous_format
        self._groups = [latents.to(self._store).contiguous(memory_format=layout)]
        sizes, out_size = _activation_sizes(decoder, latents)
        self._largest, self._done, self._total = max(sizes), 0.0, float(3 * sum(sizes) + out_size)

    def decode(self) -> torch.Tensor:
        decoder = self._decoder
        self._resnet(decoder.mid_block.resnets[0], before=decoder.conv_in)
        # with one layer per block diffusers creates an attention that it does not use
        for attention, resnet in zip(decoder.mid_block.attentions, decoder.mid_block.resnets[1:], strict=False):
            self._resnet(resnet, before=attention)
        before: Any = None
        for up_block in decoder.up_blocks:
            for resnet in up_block.resnets:
                self._resnet(resnet, before)
                before = None
            for upsampler in up_block.upsamplers or ():
                before = upsampler
        self._map(self._conv_out, self._groups[0][0].numel())
        pixels = torch.cat(self._groups)
        for rows in self._row_tiles():
            tile = layers.temporal_conv(self._gather(rows), decoder.time_conv_out)
            pixels[:, :, rows] = layers.from_video(tile, like=pixels[:, :, rows])
        return pixels

    def _conv_out(self, frames: torch.Tensor, tiled: bool) -> torch.Tensor:
        norm, conv = self._decoder.conv_norm_out, self._decoder.conv_out
        if tiled:
            return tiled_layers.norm_silu_conv(frames, norm, conv, self._device)
        return conv(layers.norm_silu(frames.to(self._device), norm)).to(self._store)

    def _resnet(self, block: Any, before: Any = None) -> None:
        """Apply `before`, a spatial layer, and a SpatioTemporalResBlock."""
        spatial, temporal = block.spatial_res_block, block.temporal_res_block
        statistics = GroupNormStatistics(temporal.norm1)
        upsamples = type(before).__name__ == "Upsample2D"

        def compute(frames: torch.Tensor, tiled: bool) -> torch.Tensor:
            if tiled and upsamples:
                frames = tiled_layers.upsample(frames, before.conv, self._device)
            elif before is not None:
                frames = before(frames.to(self._device))
            if tiled:
                return tiled_layers.resnet_block(frames.to(self._store), spatial, self._device, statistics)
            frames = layers.resnet_block(frames.to(self._device), spatial)
            statistics.update(layers.to_video(frames))
            return frames.to(self._store)

        pixels = self._groups[0][0, 0].numel() * (4 if upsamples else 1)
        self._map(compute, pixels * max(spatial.in_channels, spatial.out_channels))
        self._temporal_resnet(temporal, self._blend_alphas[block], statistics)

    def _map(self, compute: Callable[[torch.Tensor, bool], torch.Tensor], numel: int) -> None:
        """Apply `compute` to batches of frames, or to single frames in tiles. It moves them from and to the store.

        Each old group is released as soon as its frames are computed. `numel` is that of the largest tensor per frame.
        """
        tiled = tiled_layers.needs_tiling(numel, self._dtype)
        batch = 1 if tiled else max(1, self._tile_numel // (2 * numel))
        pending, self._groups = self._groups[::-1], []
        while pending:
            for frames in pending.pop().split(batch):
                self._groups.append(compute(frames, tiled))
                self._advance(self._groups[-1])

    def _temporal_resnet(self, block: Any, alpha: float, first_norm: GroupNormStatistics) -> None:
        """Add a TemporalResnetBlock without time embedding, weighted by `alpha`."""
        second_norm = GroupNormStatistics(block.norm2)
        kept = []

        def compute_hidden(rows: slice) -> torch.Tensor:
            return layers.temporal_conv(first_norm.normalize_silu(self._gather(rows)), block.conv1)

        # where the level is small, the hidden activations are always kept
        keep = self._keeps_hidden or 2 * sum(group.numel() for group in self._groups) <= self._largest
        for rows in self._row_tiles():
            hidden = compute_hidden(rows)
            second_norm.update(hidden)
            if keep:
                kept.append(hidden.to(self._store))
            self._advance(hidden)
        for index, rows in enumerate(self._row_tiles()):
            hidden = kept[index].to(self._device) if keep else compute_hidden(rows)
            residual = layers.temporal_conv(second_norm.normalize_silu(hidden), block.conv2)
            self._add(rows, residual, alpha)
            self._advance(hidden)

    def _row_tiles(self) -> list[slice]:
        """Split the rows of all frames into tiles of at most `_tile_numel` elements."""
        height = self._groups[0].shape[2]
        rows = max(1, self._tile_numel * height // sum(group.numel() for group in self._groups))
        return [slice(first, min(first + rows, height)) for first in range(0, height, rows)]

    def _gather(self, rows: slice) -> torch.Tensor:
        """Return some rows of all frames on the device, (1, C, F, P)."""
        parts = [group[:, :, rows] for group in self._groups]
        if self._channels_last:
            return layers.to_video(parts[0] if len(parts) == 1 else torch.cat(parts)).to(self._device)
        return torch.cat([part.transpose(0, 1) for part in parts], dim=1)[None].flatten(3).to(self._device)

    def _add(self, rows: slice, video: torch.Tensor, alpha: float) -> None:
        """Add alpha * video (1, C, F, P) to the rows of all frames."""
        first = 0
        for group in self._groups:
            part = group[:, :, rows]
            residual = layers.from_video(video[:, :, first : first + len(group)], like=part)
            if part.device == self._device:
                part.add_(residual, alpha=alpha)
            else:  # add on the computing device: the other one may round differently
                part.copy_(part.to(self._device).add_(residual, alpha=alpha))
            first += len(group)

    def _advance(self, result: torch.Tensor) -> None:
        self._done += result.numel()
        self._on_progress(min(1.0, self._done / self._total))


def _activation_sizes(decoder: Any, latents: torch.Tensor) -> tuple[list[int], int]:
    """Return the elements of the clip's activations after each residual block, and after conv_out."""
    frames, _, height, width = latents.shape
    pixels = frames * height * width
    sizes = [pixels * decoder.conv_in.out_channels] * len(decoder.mid_block.resnets)
    for up_block in decoder.up_blocks:
        sizes += [pixels * up_block.resnets[0].spatial_res_block.out_channels] * len(up_block.resnets)
        pixels *= 4 if up_block.upsamplers else 1
    return sizes, pixels * decoder.conv_out.out_channels
