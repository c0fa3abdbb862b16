"""ComfyUI's VAE and CLIP_VISION as components for svd_core. They keep their patches and their patchers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import comfy.clip_vision
import comfy.ldm.modules.temporal_ae
import comfy.sd
import torch

from ...svd_core.errors import SettingError
from ...svd_core.models.options import Activations
from ...svd_core.models.precision import float32_bytes, in_float32


@dataclass(frozen=True, eq=False)
class CoreVae:
    """A `comfy.sd.VAE` with SVD's temporal decoder. Implements `svd_core.models.components.Vae`."""

    vae: Any
    _overrides: list[torch.dtype] = field(default_factory=list, init=False, repr=False)
    """The dtypes of `with` blocks in which this computes, in place of core's."""

    @property
    def patcher(self) -> Any:
        """Core's patcher of the model."""
        return self.vae.patcher

    @property
    def base_channels(self) -> int:
        """Channels of the decoder's first level."""
        return self.vae.first_stage_model.decoder.ch

    @property
    def scale(self) -> int:
        """Pixels per latent pixel: 8, as core assumes for its image VAEs."""
        return 8

    @property
    def itemsize(self) -> int:
        """Bytes of one number of the decoder's dtype."""
        return self._dtype.itemsize

    @property
    def _dtype(self) -> torch.dtype:
        """The dtype that core computes in. With dynamic VRAM the parameters have that of their file."""
        return self._overrides[-1] if self._overrides else self.vae.vae_dtype

    @contextlib.contextmanager
    def encoding(self, offload_activations: bool = False) -> Iterator[Callable[[torch.Tensor], torch.Tensor]]:
        """Yield core's unchanged encoder, in core's precision."""
        yield lambda pixels: self.vae.first_stage_model.encode(pixels.to(self.vae.vae_dtype))

    @property
    def tiles_input(self) -> bool:
        """False: core's encoder is not replaced by a tiled one."""
        return False

    @property
    def streams(self) -> bool:
        """False: core's decoder is not replaced by a streaming one."""
        return False

    def decode_clip(
        self,
        latents: torch.Tensor,
        activations: Activations = "recompute",
        on_progress: Callable[[float], None] | None = None,
    ) -> torch.Tensor:
        """Call core's decoder once. `VAE.decode` would split the clip depending on free memory."""
        return self.vae.first_stage_model.decode(latents.to(self._dtype))

    @contextlib.contextmanager
    def in_float32(self) -> Iterator[None]:
        """Compute in float32 inside the `with`. Core's weights are restored afterwards.

        Layers whose weights core casts to the dtype of their input stay as they are: of those, core keeps copies on the
        device and in page-locked memory whose size and dtype are those of the original weights (`comfy.ops`).
        """
        self._overrides.append(torch.float32)
        try:
            with in_float32(self.vae.first_stage_model.decoder, skip=_is_cast_by_core):
                yield
        finally:
            self._overrides.pop()

    @property
    def float32_bytes(self) -> int:
        """Bytes of the decoder's float32 weights that `in_float32` allocates."""
        return float32_bytes(self.vae.first_stage_model.decoder, skip=_is_cast_by_core)


def _is_cast_by_core(module: torch.nn.Module) -> bool:
    """Return True for a layer of core that computes in the dtype of its input, whatever that of its weights is."""
    return getattr(module, "comfy_cast_weights", False)


@dataclass(frozen=True, eq=False)
class CoreClipVision:
    """A `comfy.clip_vision.ClipVisionModel`. Implements `svd_core.models.components.ClipVision`."""

    clip: Any

    @property
    def patcher(self) -> Any:
        """Core's patcher of the model."""
        return self.clip.patcher

    @property
    def image_size(self) -> int:
        """Width and height of the input in pixels."""
        return self.clip.image_size

    @property
    def image_mean(self) -> tuple[float, float, float]:
        """Mean of each channel for normalization, in [0, 1]."""
        return tuple(self.clip.image_mean)

    @property
    def image_std(self) -> tuple[float, float, float]:
        """Standard deviation of each channel for normalization."""
        return tuple(self.clip.image_std)

    def embed(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Embed normalized pixels. Core's encoder casts them to its dtype."""
        last_hidden_state, penultimate, embeds, *_ = self.clip.model(pixel_values=pixels, intermediate_output=-2)
        return embeds, last_hidden_state, penultimate


def wrap_vae(value: Any) -> CoreVae | None:
    """Wrap a `comfy.sd.VAE`; None for another type. Raises SettingError if it has no temporal decoder."""
    if not isinstance(value, comfy.sd.VAE):
        return None
    value.throw_exception_if_invalid()
    decoder = getattr(value.first_stage_model, "decoder", None)
    if not isinstance(decoder, comfy.ldm.modules.temporal_ae.VideoDecoder):
        raise SettingError(
            "the vae input takes SVD's temporal VAE, got another VAE. Connect the VAE of the SVD checkpoint "
            "(ImageOnlyCheckpointLoader or SVDCheckpointLoader), or decode with core's VAEDecode."
        )
    return CoreVae(value)


def wrap_clip_vision(value: Any) -> CoreClipVision | None:
    """Wrap a `comfy.clip_vision.ClipVisionModel`; None for another type."""
    return CoreClipVision(value) if isinstance(value, comfy.clip_vision.ClipVisionModel) else None
