"""The three parts of a loaded checkpoint, as they travel on SVD_MODEL, SVD_CLIP_VISION and SVD_VAE wires.

`Vae` and `ClipVision` are what the stages ask of a part. The classes here answer with diffusers' and transformers'
modules; a program around us may have parts of its own that answer the same.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from .options import DEFAULT, ModelOptions

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
    from transformers import CLIPVisionModelWithProjection

    from ..checkpoints.deferred_weights import DeferredWeights
    from ..checkpoints.model_metadata import VideoDefaults


class ModelComponent(Protocol):
    """A part whose weights are a module of ours."""

    @property
    def module(self) -> torch.nn.Module:
        """What a host moves to its device."""
        ...

    @property
    def identity(self) -> object:
        """The same object for all parts that share these weights; what a program keeps about them may hang on it."""
        ...


class Vae(Protocol):
    """A temporal VAE on the host's device. Latents are unscaled, pixels are in [-1, 1]."""

    @property
    def base_channels(self) -> int:
        """Channels of the first level; 128 in the published models."""
        ...

    @property
    def itemsize(self) -> int:
        """Bytes of one number the decoder computes with."""
        ...

    def encoding(
        self, offload_activations: bool = False
    ) -> contextlib.AbstractContextManager[Callable[[torch.Tensor], torch.Tensor]]:
        """Inside the `with`, the function from pixels (1, 3, H, W) to the posterior's mode (1, 4, H/8, W/8).

        spare  keep a large picture's activations on the CPU; heeded by a VAE that cuts pictures
        """
        ...

    @property
    def tiles_input(self) -> bool:
        """Whether a large picture is encoded in slabs of rows, and not in a whole call of the encoder's."""
        ...

    @property
    def streams(self) -> bool:
        """Whether decoding holds one layer's activations at a time, and not a whole call of the decoder's."""
        ...

    def decode_clip(
        self,
        latents: torch.Tensor,
        offload_activations: bool = False,
        on_progress: Callable[[float], None] | None = None,
    ) -> torch.Tensor:
        """Pixels (T, 3, 8h, 8w) of latents (T, 4, h, w): every frame sees every other, whatever memory is free.

        spare    keep on the CPU what need not be on the device; heeded by a VAE that streams
        on_part  called with the share of the work done, 0 to 1; what it raises ends the work
        """
        ...

    def in_float32(self) -> contextlib.AbstractContextManager[None]:
        """Inside the `with` the decoder computes in float32; afterwards it has its own weights again."""
        ...

    @property
    def float32_bytes(self) -> int:
        """Bytes that `in_float32` takes beside the weights."""
        ...


class ClipVision(Protocol):
    """A CLIP image tower with its projection, on the host's device, and how its input is normalised (per channel)."""

    @property
    def image_size(self) -> int:
        """Width and height of its input in pixels; 224 in the published models."""
        ...

    @property
    def image_mean(self) -> tuple[float, float, float]:
        """What is taken off the input's [0, 1]."""
        ...

    @property
    def image_std(self) -> tuple[float, float, float]:
        """What the rest is divided by."""
        ...

    def embed(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(image_embeds, last_hidden_state, penultimate_hidden_states) of normalised pixels (1, 3, size, size)."""
        ...


class WeightsKey:
    """Nothing but itself."""


@dataclass(frozen=True, eq=False)
class SVDModel:
    """The denoising network, and what sampling has to know beside it.

    unet           UNetSpatioTemporalConditionModel: (B, F, 8, h, w) -> (B, F, 4, h, w)
    scaling_factor scaled latents = unscaled latents * scaling_factor  (vae/config.json; 0.18215)
    sigma_min, sigma_max  the noise range it was trained for  (scheduler/scheduler_config.json; 0.002 and 700)
    left_out       weights that are still on the disk, as a video of one CLIP token does not use them; None: none are
    options        how to run it; copies with other options (`dataclasses.replace`) share weights and identity
    """

    unet: UNetSpatioTemporalConditionModel
    scaling_factor: float
    sigma_min: float
    sigma_max: float
    defaults: VideoDefaults
    deferred_weights: DeferredWeights | None = None
    options: ModelOptions = DEFAULT
    identity: WeightsKey = field(default_factory=WeightsKey, repr=False)

    @property
    def module(self) -> torch.nn.Module:
        """All of it."""
        return self.unet

    def load_deferred(self) -> None:
        """Read what was left out. Raises CheckpointError when the checkpoint is not there any more."""
        if self.deferred_weights is not None:
            self.deferred_weights.read_into(self.unet)

    @property
    def base_channels(self) -> int:
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
    def module(self) -> torch.nn.Module:
        """All of it."""
        return self.vae

    @property
    def identity(self) -> object:
        """Itself: there are no copies."""
        return self

    @property
    def itemsize(self) -> int:
        """Bytes of one number of the decoder."""
        return next(self.vae.decoder.parameters()).element_size()

    @contextlib.contextmanager
    def encoding(self, offload_activations: bool = False) -> Iterator[Callable[[torch.Tensor], torch.Tensor]]:
        """The encoder, in float32 where the VAE asks for it (`force_upcast`); its own weights are back afterwards."""
        from .precision import in_float32

        parts: tuple[torch.nn.Module, ...] = (self.vae.encoder, self.vae.quant_conv)
        differ = len({next(part.parameters()).dtype for part in parts}) > 1
        with in_float32(*parts) if self.force_upcast or differ else contextlib.nullcontext():
            yield functools.partial(self._posterior_mode, offload_activations=offload_activations)

    def _posterior_mode(self, pixels: torch.Tensor, offload_activations: bool) -> torch.Tensor:
        import torch

        from . import vae_encoder as streaming

        encoder: Any = self.vae.encoder
        pixels = pixels.to(next(encoder.parameters()).dtype)
        if self.tiles_input:
            moments = streaming.encode(encoder, pixels, torch.device("cpu") if offload_activations else pixels.device)
        else:
            moments = encoder(pixels)
        mean, _log_variance = self.vae.quant_conv(moments).chunk(2, dim=1)
        return mean

    @property
    def tiles_input(self) -> bool:
        """Unless someone put other modules or hooks into the encoder."""
        from .vae_encoder import can_stream

        return can_stream(self.vae.encoder)

    @property
    def streams(self) -> bool:
        """Unless someone put other modules or hooks into the decoder."""
        from .vae_decoder import can_stream

        return can_stream(self.vae.decoder)

    def decode_clip(
        self,
        latents: torch.Tensor,
        offload_activations: bool = False,
        on_progress: Callable[[float], None] | None = None,
    ) -> torch.Tensor:
        """The decoder on a clip, in its own precision."""
        import torch

        from .vae_decoder import decode

        decoder: Any = self.vae.decoder
        latents = latents.to(next(decoder.parameters()).dtype)
        if self.streams:
            return decode(
                decoder,
                latents,
                torch.device("cpu") if offload_activations else latents.device,
                on_progress=on_progress,
            )
        image_only = latents.new_zeros((1, latents.shape[0]))
        return decoder(latents, num_frames=latents.shape[0], image_only_indicator=image_only)

    def in_float32(self) -> contextlib.AbstractContextManager[None]:
        """The decoder's weights."""
        from .precision import in_float32

        return in_float32(self.vae.decoder)

    @property
    def float32_bytes(self) -> int:
        """What that takes."""
        from .precision import float32_bytes

        return float32_bytes(self.vae.decoder)

    @property
    def force_upcast(self) -> bool:
        """Whether the encoder must compute in float32."""
        config: Any = self.vae.config
        return config.force_upcast

    @property
    def base_channels(self) -> int:
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
    def module(self) -> torch.nn.Module:
        """All of it."""
        return self.encoder

    @property
    def identity(self) -> object:
        """Itself: there are no copies."""
        return self

    def embed(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The tower's answers, in its own precision."""
        dtype = next(self.encoder.parameters()).dtype
        answer = self.encoder(pixel_values=pixels.to(dtype), output_hidden_states=True)
        return answer.image_embeds, answer.last_hidden_state, answer.hidden_states[-2]

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
