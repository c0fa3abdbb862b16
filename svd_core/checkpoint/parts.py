"""The three parts of a loaded checkpoint, as they travel on SVD_MODEL, SVD_CLIP_VISION and SVD_VAE wires."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
    from transformers import CLIPVisionModelWithProjection


@dataclass(frozen=True)
class VideoDefaults:
    """What a checkpoint was trained for: the values to use when the user gives none."""

    num_frames: int = 25
    width: int = 1024
    height: int = 576
    min_guidance: float = 1.0
    max_guidance: float = 3.0


@dataclass(frozen=True, eq=False)
class SVDModel:
    """The denoising network, and what sampling has to know beside it.

    unet           UNetSpatioTemporalConditionModel: (B, F, 8, h, w) -> (B, F, 4, h, w)
    scaling_factor scaled latents = unscaled latents * scaling_factor  (vae/config.json; 0.18215)
    sigma_min, sigma_max  the noise range it was trained for  (scheduler/scheduler_config.json; 0.002 and 700)
    """

    unet: UNetSpatioTemporalConditionModel
    scaling_factor: float
    sigma_min: float
    sigma_max: float
    defaults: VideoDefaults

    @property
    def first_width(self) -> int:
        """Channels of the UNet's first level; 320 in the published models."""
        config: Any = self.unet.config
        return config.block_out_channels[0]

    @property
    def embedding_width(self) -> int:
        """D, the width of the embedding it attends to; 1024 in the published models."""
        config: Any = self.unet.config
        width = config.cross_attention_dim
        return width if isinstance(width, int) else width[0]


@dataclass(frozen=True, eq=False)
class SVDVae:
    """The temporal VAE: `encoder` and `quant_conv` on one image, `decoder` on a clip. Latents are unscaled."""

    vae: AutoencoderKLTemporalDecoder

    @property
    def force_upcast(self) -> bool:
        """Whether the encoder must compute in float32."""
        config: Any = self.vae.config
        return config.force_upcast

    @property
    def first_width(self) -> int:
        """Channels of the first level; 128 in the published models."""
        config: Any = self.vae.config
        return config.block_out_channels[0]


@dataclass(frozen=True, eq=False)
class SVDClipVision:
    """The CLIP image tower with its projection, and the mean and deviation its input is normalised by (per channel)."""

    encoder: CLIPVisionModelWithProjection
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]

    @property
    def image_size(self) -> int:
        """Width and height of its input in pixels; 224 in the published models."""
        config: Any = self.encoder.config
        return config.image_size


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """All of one checkpoint."""

    model: SVDModel
    clip_vision: SVDClipVision
    vae: SVDVae
