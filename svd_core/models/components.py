"""The components of a loaded checkpoint, as they travel on SVD_MODEL, SVD_CLIP_VISION and SVD_VAE wires.

`Vae` and `ClipVision` are the interfaces that the pipeline uses. The classes here implement them with diffusers' and
transformers' modules. Another program can implement them with its own.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from .options import DEFAULT, Activations, ChannelsLast, ModelOptions, merged
from .step_cache import StepCache

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
    from transformers import CLIPVisionModelWithProjection

    from ..checkpoints.deferred_weights import DeferredWeights
    from ..checkpoints.model_metadata import VideoDefaults


class ModelComponent(Protocol):
    """A component whose weights are in a module of this package."""

    @property
    def module(self) -> torch.nn.Module:
        """The module that a runtime moves to its device."""
        ...

    @property
    def identity(self) -> object:
        """One object for all components that share these weights. Usable as a key of a weak dictionary."""
        ...


class Vae(Protocol):
    """A temporal VAE on the runtime's device. Latents are unscaled, pixels are in [-1, 1]."""

    @property
    def base_channels(self) -> int:
        """Channels of the first level; 128 in the published models."""
        ...

    @property
    def scale(self) -> int:
        """Pixels per latent pixel, each way; 8 in the published models."""
        ...

    @property
    def itemsize(self) -> int:
        """Bytes per element of the decoder's dtype."""
        ...

    def encoding(
        self, offload_activations: bool = False
    ) -> contextlib.AbstractContextManager[Callable[[torch.Tensor], torch.Tensor]]:
        """Return a context manager that yields a function from pixels (1, 3, H, W) to the posterior's mode.

        The mode is (1, 4, H/8, W/8). `offload_activations` keeps the activations of a large image on the CPU. It has an
        effect only if `tiles_input`.
        """
        ...

    @property
    def tiles_input(self) -> bool:
        """True if large images are encoded in tiles of rows, False if the encoder runs on the whole image."""
        ...

    @property
    def streams(self) -> bool:
        """True if decoding has one layer's activations in memory, False if the decoder runs as one call."""
        ...

    def decode_clip(
        self,
        latents: torch.Tensor,
        activations: Activations = "recompute",
        on_progress: Callable[[float], None] | None = None,
    ) -> torch.Tensor:
        """Decode latents (F, 4, h, w) as one clip to pixels (F, 3, 8h, 8w).

        Args:
            latents: Each frame influences every other, whatever memory is free.
            activations: Has an effect only if `streams`.
            on_progress: Called with the fraction of the work that is done, 0 to 1. Its exceptions end the decoding.
        """
        ...

    def in_float32(self) -> contextlib.AbstractContextManager[None]:
        """Return a context manager inside which the decoder computes in float32. Its weights are restored after."""
        ...

    @property
    def float32_bytes(self) -> int:
        """Bytes that `in_float32` allocates."""
        ...


class ClipVision(Protocol):
    """A CLIP vision model with projection on the runtime's device, with the normalization of its input per channel."""

    @property
    def image_size(self) -> int:
        """Width and height of the input in pixels; 224 in the published models."""
        ...

    @property
    def image_mean(self) -> tuple[float, float, float]:
        """Mean that is subtracted from pixels in [0, 1]."""
        ...

    @property
    def image_std(self) -> tuple[float, float, float]:
        """Standard deviation that the difference is divided by."""
        ...

    def embed(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Compute (image_embeds, last_hidden_state, penultimate_hidden_states) of normalized pixels (1, 3, S, S)."""
        ...


class WeightsKey:
    """An object that identifies a set of weights."""


@dataclass(frozen=True, eq=False)
class SVDModel:
    """The denoising network and the values that sampling needs.

    Attributes:
        unet: UNetSpatioTemporalConditionModel, (B, F, 8, h, w) -> (B, F, 4, h, w).
        scaling_factor: Scaled latents are unscaled latents times this. 0.18215 in vae/config.json.
        sigma_min: Lower end of the trained noise range. 0.002 in scheduler/scheduler_config.json.
        sigma_max: Upper end of the trained noise range, 700.
        defaults: Frames, size and guidance that the model was trained for.
        deferred_weights: Weights not loaded yet: a video of one CLIP token does not use them. None: all are loaded.
        options: How to run the network. Copies with other options share weights and identity.
        step_cache: Which network calls reuse the features of an earlier one. None: none.
        identity: Identifies the weights.
    """

    unet: UNetSpatioTemporalConditionModel
    scaling_factor: float
    sigma_min: float
    sigma_max: float
    defaults: VideoDefaults
    deferred_weights: DeferredWeights | None = None
    options: ModelOptions = DEFAULT
    step_cache: StepCache | None = None
    identity: WeightsKey = field(default_factory=WeightsKey, repr=False)

    @property
    def module(self) -> torch.nn.Module:
        """The UNet."""
        return self.unet

    def load_deferred(self) -> None:
        """Load the deferred weights.

        Raises:
            CheckpointError: The checkpoint file is missing or has changed.
        """
        if self.deferred_weights is not None:
            self.deferred_weights.read_into(self.unet)

    def with_options(self, options: ModelOptions) -> SVDModel:
        """Return the model that runs by these options where they are not at their default, else by its own."""
        return replace(self, options=merged(self.options, options))

    def with_step_cache(self, interval: int) -> SVDModel:
        """Return the model that computes the whole network in one of `interval` calls. 1 changes nothing."""
        return self if interval == 1 else replace(self, step_cache=StepCache(interval))

    @property
    def base_channels(self) -> int:
        """Channels of the UNet's first level; 320 in the published models."""
        return self.unet.config["block_out_channels"][0]

    @property
    def embedding_width(self) -> int:
        """D, the width of the CLIP embedding; 1024 in the published models."""
        width = self.unet.config["cross_attention_dim"]
        return width if isinstance(width, int) else width[0]


@dataclass(frozen=True, eq=False)
class SVDVae:
    """The temporal VAE of diffusers: `encoder` and `quant_conv` take one image, `decoder` a clip.

    Attributes:
        vae: The model.
        channels_last: The memory format of the decoder's activations. Has an effect only if `streams`.
    """

    vae: AutoencoderKLTemporalDecoder
    channels_last: ChannelsLast = "auto"

    @property
    def module(self) -> torch.nn.Module:
        """The VAE's module."""
        return self.vae

    @property
    def identity(self) -> object:
        """The object itself: it is never copied."""
        return self

    @property
    def scale(self) -> int:
        """Pixels per latent pixel, each way; 8 in the published models."""
        config: Any = self.vae.config
        return 2 ** (len(config.block_out_channels) - 1)

    @property
    def itemsize(self) -> int:
        """Bytes per element of the decoder's dtype."""
        return next(self.vae.decoder.parameters()).element_size()

    @contextlib.contextmanager
    def encoding(self, offload_activations: bool = False) -> Iterator[Callable[[torch.Tensor], torch.Tensor]]:
        """Yield the encoding function, in float32 if the VAE needs it (`force_upcast`). Weights are restored after."""
        from .precision import in_float32

        modules: tuple[torch.nn.Module, ...] = (self.vae.encoder, self.vae.quant_conv)
        mixed = len({next(module.parameters()).dtype for module in modules}) > 1
        with in_float32(*modules) if self.force_upcast or mixed else contextlib.nullcontext():
            yield functools.partial(self._posterior_mode, offload_activations=offload_activations)

    def _posterior_mode(self, pixels: torch.Tensor, offload_activations: bool) -> torch.Tensor:
        from .vae_encoder import encode

        encoder: Any = self.vae.encoder
        pixels = pixels.to(next(encoder.parameters()).dtype)
        moments = encode(encoder, pixels, offload_activations) if self.tiles_input else encoder(pixels)
        mean, _log_variance = self.vae.quant_conv(moments).chunk(2, dim=1)
        return mean

    @property
    def tiles_input(self) -> bool:
        """True unless the encoder has other modules or hooks."""
        from .vae_encoder import can_stream

        return can_stream(self.vae.encoder)

    @property
    def streams(self) -> bool:
        """True unless the decoder has other modules or hooks."""
        from .vae_decoder import can_stream

        return can_stream(self.vae.decoder)

    def decode_clip(
        self,
        latents: torch.Tensor,
        activations: Activations = "recompute",
        on_progress: Callable[[float], None] | None = None,
    ) -> torch.Tensor:
        """Decode a clip in the decoder's dtype."""
        from .vae_decoder import decode

        decoder: Any = self.vae.decoder
        latents = latents.to(next(decoder.parameters()).dtype)
        if self.streams:
            return decode(decoder, latents, activations, on_progress, self.channels_last)
        image_only_indicator = latents.new_zeros((1, len(latents)))
        return decoder(latents, num_frames=len(latents), image_only_indicator=image_only_indicator)

    def in_float32(self) -> contextlib.AbstractContextManager[None]:
        """Convert the decoder's weights to float32 inside the `with`."""
        from .precision import in_float32

        return in_float32(self.vae.decoder)

    @property
    def float32_bytes(self) -> int:
        """Bytes that `in_float32` allocates."""
        from .precision import float32_bytes

        return float32_bytes(self.vae.decoder)

    @property
    def force_upcast(self) -> bool:
        """True if the encoder must compute in float32."""
        return self.vae.config["force_upcast"]

    @property
    def base_channels(self) -> int:
        """Channels of the first level; 128 in the published models."""
        return self.vae.config["block_out_channels"][0]


@dataclass(frozen=True, eq=False)
class SVDClipVision:
    """The CLIP vision model with projection of transformers, with the normalization of its input per channel."""

    encoder: CLIPVisionModelWithProjection
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]

    @property
    def module(self) -> torch.nn.Module:
        """The CLIP vision model."""
        return self.encoder

    @property
    def identity(self) -> object:
        """The object itself: it is never copied."""
        return self

    def embed(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Compute the embeddings in the model's dtype."""
        dtype = next(self.encoder.parameters()).dtype
        output = self.encoder(pixel_values=pixels.to(dtype), output_hidden_states=True)
        return output.image_embeds, output.last_hidden_state, output.hidden_states[-2]

    @property
    def image_size(self) -> int:
        """Width and height of the input in pixels; 224 in the published models."""
        config: Any = self.encoder.config
        return config.image_size


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """All components of one checkpoint."""

    model: SVDModel
    clip_vision: SVDClipVision
    vae: SVDVae
