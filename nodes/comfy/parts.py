"""ComfyUI's own VAE and CLIP_VISION as parts for our stages, with their patches and under their own patchers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import comfy.clip_vision
import comfy.ldm.modules.temporal_ae
import comfy.sd
import torch

from ...svd_core.errors import SettingError
from ...svd_core.models.precision import float32_bytes, in_float32


@dataclass(frozen=True, eq=False)
class CoreVae:
    """A `comfy.sd.VAE` with SVD's temporal decoder."""

    vae: Any

    @property
    def patcher(self) -> Any:
        """By which core manages it."""
        return self.vae.patcher

    @property
    def base_channels(self) -> int:
        """Channels of the first level."""
        return self.vae.first_stage_model.decoder.ch

    @property
    def itemsize(self) -> int:
        """Bytes of one number it computes with."""
        return self._dtype.itemsize

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.vae.first_stage_model.decoder.parameters()).dtype

    @contextlib.contextmanager
    def encoding(self, offload_activations: bool = False) -> Iterator[Callable[[torch.Tensor], torch.Tensor]]:
        """Core's encoder as it is, in core's precision."""
        yield lambda pixels: self.vae.first_stage_model.encode(pixels.to(self.vae.vae_dtype))

    @property
    def tiles_input(self) -> bool:
        """Core's encoder is called as it is."""
        return False

    @property
    def streams(self) -> bool:
        """Core's decoder is called as it is."""
        return False

    def decode_clip(
        self,
        latents: torch.Tensor,
        offload_activations: bool = False,
        on_progress: Callable[[float], None] | None = None,
    ) -> torch.Tensor:
        """Core's decoder in one call. `VAE.decode` would cut the clip by what memory is free."""
        return self.vae.first_stage_model.decode(latents.to(self._dtype))

    def in_float32(self) -> contextlib.AbstractContextManager[None]:
        """The decoder's weights; core's own are back afterwards."""
        return in_float32(self.vae.first_stage_model.decoder)

    @property
    def float32_bytes(self) -> int:
        """What that takes."""
        return float32_bytes(self.vae.first_stage_model.decoder)


@dataclass(frozen=True, eq=False)
class CoreClipVision:
    """A `comfy.clip_vision.ClipVisionModel`."""

    clip: Any

    @property
    def patcher(self) -> Any:
        """By which core manages it."""
        return self.clip.patcher

    @property
    def image_size(self) -> int:
        """Width and height of its input in pixels."""
        return self.clip.image_size

    @property
    def image_mean(self) -> tuple[float, float, float]:
        """What is taken off the input's [0, 1]."""
        return tuple(self.clip.image_mean)

    @property
    def image_std(self) -> tuple[float, float, float]:
        """What the rest is divided by."""
        return tuple(self.clip.image_std)

    def embed(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Core's tower; it casts by itself."""
        last_hidden_state, penultimate, embeds, *_ = self.clip.model(pixel_values=pixels, intermediate_output=-2)
        return embeds, last_hidden_state, penultimate


def vae_of(value: Any) -> CoreVae | None:
    """Core's VAE for our stages; None when `value` is none. Raises SettingError for one without SVD's decoder."""
    if not isinstance(value, comfy.sd.VAE):
        return None
    value.throw_exception_if_invalid()
    decoder = getattr(value.first_stage_model, "decoder", None)
    if not isinstance(decoder, comfy.ldm.modules.temporal_ae.VideoDecoder):
        raise SettingError(
            "the vae input got a VAE that is not SVD's temporal one; take the VAE of the SVD checkpoint "
            "(ImageOnlyCheckpointLoader or SVDCheckpointLoader), or decode with core's VAEDecode"
        )
    return CoreVae(value)


def clip_vision_of(value: Any) -> CoreClipVision | None:
    """Core's CLIP_VISION for our stages; None when `value` is none."""
    return CoreClipVision(value) if isinstance(value, comfy.clip_vision.ClipVisionModel) else None
