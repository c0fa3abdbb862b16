"""The temporal decoder over a whole clip, exactly, without ever holding more of it than one layer's activations.

Calling the decoder on a part of a clip is not exact: its convolutions over time reach further than any halo, and the
group norms between them pool over all frames. So the clip goes through layer by layer instead. What looks at one frame
(convolutions in space, attention, upsampling) is done frame by frame, or slab by slab of a large frame; what looks
along the frames (convolutions over time) is done on slabs of rows that hold every frame; the statistics of the norms
over the clip are gathered from the parts before any part is normalised. The parts are chosen by shape alone, so free
memory has no say in the numbers.
"""

# The model classes declare their parts as bare modules: a type checker cannot follow.
# pyright: reportCallIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false, reportIndexIssue=false
# pyright: reportGeneralTypeIssues=false, reportOptionalSubscript=false

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from . import layers, tiled_layers
from .group_norm import GroupNormStatistics
from .optimizations import find_modification

TILE_NUMEL = 2**26
"""Numbers that a slab's activations hold at most (where one row of pixels holds no more). A single frame of 1024x576
has 75 million in the decoder's last level."""

DECODER_COMPOSITES = frozenset(
    {
        "TemporalDecoder",
        "MidBlockTemporalDecoder",
        "UpBlockTemporalDecoder",
        "SpatioTemporalResBlock",
        "ResnetBlock2D",
        "TemporalResnetBlock",
        "AlphaBlender",
    }
)
CALLED_AS_THEY_ARE = frozenset({"ModuleList", "Upsample2D", "Attention"})


def can_stream(decoder: torch.nn.Module) -> bool:
    """Whether a decoder is made of the classes whose forward is written again here, and nothing is hooked on them."""
    known = DECODER_COMPOSITES | CALLED_AS_THEY_ARE
    return type(decoder).__name__ == "TemporalDecoder" and find_modification(decoder, known) is None


def decode(
    decoder: Any,
    latents: torch.Tensor,
    store: torch.device,
    keep_hidden: bool = False,
    on_progress: Callable[[float], None] | None = None,
) -> torch.Tensor:
    """Pixels (F, 3, 8h, 8w) in the decoder's precision of one clip of unscaled latents (F, 4, h, w); in the store.

    latents      on the decoder's device, in its precision
    store        where a layer's activations lie between passes: the decoder's device, or the CPU to spare it
    keep_hidden  hold the temporal blocks' inner activations too instead of computing them twice: the same bits
    on_part      called after each frame or slab with the share of the work done, 0 to 1; what it raises ends it
    """
    return _Clip(decoder, latents, store, keep_hidden, on_progress or (lambda share: None)).decoded()


class _Clip:
    """A clip on its way through the decoder: groups of frames, (T, C, H, W) each, which change from pass to pass."""

    def __init__(
        self,
        decoder: Any,
        latents: torch.Tensor,
        store: torch.device,
        keep_hidden: bool,
        on_progress: Callable[[float], None],
    ) -> None:
        self._decoder, self._device, self._store, self._dtype = decoder, latents.device, store, latents.dtype
        self._keep_hidden, self._on_part = keep_hidden, on_progress
        self._done, self._work = 0.0, _work(decoder, latents)
        self._channels_last = _uses_channels_last(latents.device)
        if self._channels_last:
            layers.to_channels_last(decoder)
        layout = torch.channels_last if self._channels_last else torch.contiguous_format
        self._groups = [latents.to(store).contiguous(memory_format=layout)]
        self._largest = max(_level_sizes(decoder, latents))

    def decoded(self) -> torch.Tensor:
        decoder = self._decoder
        self._residual(decoder.mid_block.resnets[0], before=decoder.conv_in)
        # with one layer a block diffusers makes an attention that it does not use
        for attention, block in zip(decoder.mid_block.attentions, decoder.mid_block.resnets[1:], strict=False):
            self._residual(block, before=attention)
        before: Any = None
        for up_block in decoder.up_blocks:
            for block in up_block.resnets:
                self._residual(block, before)
                before = None
            for upsampler in up_block.upsamplers or ():
                before = upsampler
        norm, out, last = decoder.conv_norm_out, decoder.conv_out, self._groups[0][0].numel()
        if tiled_layers.needs_tiling(last, self._dtype):
            self._frame_by_frame(lambda frame: tiled_layers.norm_silu_conv(frame, norm, out, self._device))
        else:
            self._in_space(lambda frames: out(layers.norm_silu(frames, norm)), last)
        pixels = torch.cat(self._groups)
        for rows in self._slabs():
            part = self._gathered(rows)
            made = layers.temporal_conv(part, decoder.time_conv_out)
            pixels[:, :, rows] = layers.from_video(made, like=pixels[:, :, rows])
        return pixels

    def _residual(self, block: Any, before: Any = None) -> None:
        """SpatioTemporalResBlock, after `before`, which looks at one frame."""
        statistics = GroupNormStatistics(block.temporal_res_block.norm1)

        inner, goes_up = block.spatial_res_block, type(before).__name__ == "Upsample2D"

        def compute(frames: torch.Tensor) -> torch.Tensor:
            return layers.spatial_residual(frames if before is None else before(frames), inner)

        def compute_large(frame: torch.Tensor) -> torch.Tensor:
            if goes_up:
                frame = tiled_layers.upsampled(frame, before.conv, self._device)
            elif before is not None:
                frame = before(frame.to(self._device)).to(self._store)
            return tiled_layers.residual(frame, inner, self._device, statistics)

        pixels = self._groups[0][0, 0].numel() * (4 if goes_up else 1)
        numbers = pixels * max(inner.in_channels, inner.out_channels)
        if tiled_layers.needs_tiling(numbers, self._dtype):
            self._frame_by_frame(compute_large)
        else:
            self._in_space(compute, numbers, statistics)
        self._over_time(block.temporal_res_block, layers.blend_alpha(block.time_mixer), statistics)

    def _in_space(
        self,
        compute: Callable[[torch.Tensor], torch.Tensor],
        numbers: int,
        statistics: GroupNormStatistics | None = None,
    ) -> None:
        """Each frame through `compute`, as many together as are small; the old ones go when the new ones are there.

        numbers  in the largest tensor that `compute` makes of one frame
        """
        together = max(1, TILE_NUMEL // (2 * numbers))
        old, self._groups = self._groups[::-1], []
        while old:
            for frames in old.pop().split(together):
                new = compute(frames.to(self._device))
                if statistics is not None:
                    statistics.add(layers.to_video(new))
                self._groups.append(new.to(self._store))
                self._advance(new)

    def _frame_by_frame(self, compute: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Each frame through `compute`, which takes and gives it in the store."""
        old, self._groups = self._groups[::-1], []
        while old:
            for frame in old.pop().split(1):
                self._groups.append(compute(frame))
                self._advance(self._groups[-1])

    def _over_time(self, block: Any, share: float, first: GroupNormStatistics) -> None:
        """TemporalResnetBlock without a time embedding, of which `share` is added."""
        second = GroupNormStatistics(block.norm2)
        kept = []

        def hidden_of(rows: slice) -> torch.Tensor:
            return layers.temporal_conv(first.normalize_silu(self._gathered(rows)), block.conv1)

        keep = self._keep_hidden or 2 * sum(group.numel() for group in self._groups) <= self._largest
        for rows in self._slabs():
            hidden = hidden_of(rows)
            second.add(hidden)
            if keep:
                kept.append(hidden.to(self._store))
            self._advance(hidden)
        for index, rows in enumerate(self._slabs()):
            hidden = kept[index].to(self._device) if keep else hidden_of(rows)
            added = layers.temporal_conv(second.normalize_silu(hidden), block.conv2)
            self._add(rows, added, share)
            self._advance(hidden)

    def _slabs(self) -> list[slice]:
        """The rows of pixels cut into slabs, by shape alone."""
        height = self._groups[0].shape[2]
        rows = max(1, TILE_NUMEL * height // sum(group.numel() for group in self._groups))
        return [slice(first, min(first + rows, height)) for first in range(0, height, rows)]

    def _gathered(self, rows: slice) -> torch.Tensor:
        """Some rows of all frames, (1, C, F, P)."""
        parts = [group[:, :, rows] for group in self._groups]
        if self._channels_last:
            return layers.to_video(parts[0] if len(parts) == 1 else torch.cat(parts)).to(self._device)
        return torch.cat([part.transpose(0, 1) for part in parts], dim=1)[None].flatten(3).to(self._device)

    def _add(self, rows: slice, video: torch.Tensor, share: float) -> None:
        """The rows of all frames += share * video."""
        first = 0
        for group in self._groups:
            part = group[:, :, rows]
            added = layers.from_video(video[:, :, first : first + len(group)], like=part)
            if part.device == self._device:
                part.add_(added, alpha=share)
            else:  # on the device all the same: another one may round otherwise
                part.copy_(part.to(self._device).add_(added, alpha=share))
            first += len(group)

    def _advance(self, done: torch.Tensor) -> None:
        self._done += done.numel()
        self._on_part(min(1.0, self._done / self._work))


def _uses_channels_last(device: torch.device) -> bool:
    """Elsewhere group norms may answer in the other layout: not yet measured."""
    return device.type == "cpu"


def _level_sizes(decoder: Any, latents: torch.Tensor) -> list[int]:
    """The numbers in the clip's activations after each residual block."""
    frames, _, height, width = latents.shape
    pixels = frames * height * width
    sizes = [pixels * decoder.conv_in.out_channels] * len(decoder.mid_block.resnets)
    for up_block in decoder.up_blocks:
        sizes += [pixels * up_block.resnets[0].spatial_res_block.out_channels] * len(up_block.resnets)
        pixels *= 4 if up_block.upsamplers else 1
    return sizes


def _work(decoder: Any, latents: torch.Tensor) -> float:
    """The numbers that all passes write: what `_Clip` counts as it goes."""
    frames, _, height, width = latents.shape
    pixels = frames * height * width * 4 ** sum(bool(up_block.upsamplers) for up_block in decoder.up_blocks)
    return float(3 * sum(_level_sizes(decoder, latents)) + pixels * decoder.conv_out.out_channels)
