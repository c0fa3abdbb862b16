"""The stages of a video as methods with the names and shapes of diffusers' class, computed by this package."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.utils.torch_utils import randn_tensor

from .. import execution
from ..models.components import ModelComponent, SVDClipVision, SVDVae
from ..runtime.memory import parse_bytes
from ..runtime.residency import After
from ..runtime.runtime import LocalRuntime
from ..utils.size_checks import check_multiple
from .arguments import Generators, choose_generator
from .inputs import read_images


@dataclass(frozen=True)
class PipelineRuntime(LocalRuntime):
    """A runtime that leaves each component on the device where it found it."""

    @contextlib.contextmanager
    def on_device(self, component: ModelComponent, need: int = 0, after: After = "default") -> Iterator[torch.device]:
        """Move a component to the device, and after the work back to where it was, or where `after` says."""
        before, device = next(component.module.parameters()).device, self.device()
        self.make_room(component.module, device, need)
        component.module.to(device)
        try:
            yield device
        finally:
            component.module.to({"default": before, "keep": device, "offload": torch.device("cpu")}[after])

    @contextlib.contextmanager
    def reserve_memory(self, component: ModelComponent, need: int) -> Iterator[torch.device]:
        """Move a component to the CPU, and after the work back to where it was."""
        before = next(component.module.parameters()).device
        component.module.to("cpu")
        self.make_room(component.module, self.device(), need)
        try:
            yield self.device()
        finally:
            component.module.to(before)


def _repeat_for_videos(rows: torch.Tensor, copies: int, with_guidance: bool) -> torch.Tensor:
    """Repeat each row for the videos of its image. With guidance, put as many zeros before them."""
    rows = rows.repeat_interleave(copies, 0)
    return torch.cat([torch.zeros_like(rows), rows]) if with_guidance else rows


class StageMethods(DiffusionPipeline):
    """The stages of a video, for training scripts and subclasses with a sampling loop of their own.

    A call of the pipeline does not use these methods. They give no gradients.
    """

    unet: Any
    vae: Any
    image_encoder: Any
    feature_extractor: Any
    scheduler: Any
    vae_scale_factor: int
    _offload_to: torch.device | None = None

    @property
    def _execution_device(self) -> torch.device:
        """The device that computes: that of offloading, else the first one of a component that is not the CPU.

        The option memory = offload leaves the UNet on the CPU.
        """
        devices = [each.device for each in (self.unet, self.vae, self.image_encoder) if each is not None]
        return self._offload_to or next((each for each in devices if each.type != "cpu"), super()._execution_device)

    @property
    def _clip_vision(self) -> SVDClipVision:
        processor = self.feature_extractor
        return SVDClipVision(self.image_encoder, tuple(processor.image_mean), tuple(processor.image_std))

    def _runtime(self, vram: int | str | None = None) -> PipelineRuntime:
        """Return the runtime of a call."""
        budget = None if vram is None else parse_bytes("vram", vram)
        return PipelineRuntime(device_name=str(self._execution_device), vram=budget)

    def check_inputs(self, image: Any, height: int, width: int) -> None:
        """Check the image and the size of a call.

        Raises:
            ImageError: The image is not usable, see `read_images`.
            SettingError: A side is not a multiple of 8.
        """
        read_images(image)
        check_multiple("height", height, 8)
        check_multiple("width", width, 8)

    @torch.no_grad()
    def _encode_image(
        self, image: Any, device: Any, num_videos_per_prompt: int, do_classifier_free_guidance: bool
    ) -> torch.Tensor:
        """Embed images with CLIP: (videos, 1, D), after as many zeros with guidance.

        Args:
            image: See `read_images`.
        """
        embeds = execution.embed(self._runtime(), self._clip_vision, read_images(image), "reference").image_embeds
        rows = embeds[:, None].to(device, self.image_encoder.dtype)
        return _repeat_for_videos(rows, num_videos_per_prompt, do_classifier_free_guidance)

    @torch.no_grad()
    def _encode_vae_image(
        self, image: torch.Tensor, device: Any, num_videos_per_prompt: int, do_classifier_free_guidance: bool
    ) -> torch.Tensor:
        """Encode pixels (B, 3, H, W) in [-1, 1]: unscaled (videos, 4, h, w), after as many zeros with guidance."""
        latents = execution.encode(self._runtime(), SVDVae(self.vae), image.float().movedim(1, -1) / 2 + 0.5)
        rows = latents.to(device, self.vae.dtype)
        return _repeat_for_videos(rows, num_videos_per_prompt, do_classifier_free_guidance)

    def _get_add_time_ids(
        self,
        fps: float,
        motion_bucket_id: float,
        noise_aug_strength: float,
        dtype: torch.dtype,
        batch_size: int,
        num_videos_per_prompt: int,
        do_classifier_free_guidance: bool,
    ) -> torch.Tensor:
        """Return the micro-conditioning as the UNet takes it, (videos, 3), twice as many with guidance.

        Args:
            fps: One less than the rate of the motion.
        """
        ids = torch.tensor([[fps, motion_bucket_id, noise_aug_strength]], dtype=dtype)
        return ids.repeat(batch_size * num_videos_per_prompt * (2 if do_classifier_free_guidance else 1), 1)

    def prepare_latents(
        self,
        batch_size: int,
        num_frames: int,
        num_channels_latents: int,
        height: int,
        width: int,
        dtype: torch.dtype,
        device: Any,
        generator: Generators,
        latents: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return scaled latents (videos, F, 4, h, w) at the scheduler's largest noise level.

        Args:
            batch_size: The number of videos.
            num_channels_latents: Channels of the UNet's input, 8.
            latents: Unit Gaussian noise in place of the generator's.

        Raises:
            SettingError: A list of generators has another length than there are videos.
        """
        choose_generator(generator, None, batch_size)
        if latents is None:
            size = (height // self.vae_scale_factor, width // self.vae_scale_factor)
            shape = (batch_size, num_frames, num_channels_latents // 2, *size)
            latents = randn_tensor(shape, generator=generator, device=torch.device(device), dtype=dtype)
        return latents.to(device) * self.scheduler.init_noise_sigma

    @torch.no_grad()
    def decode_latents(self, latents: torch.Tensor, num_frames: int, decode_chunk_size: int = 14) -> torch.Tensor:
        """Decode scaled latents (B, F, 4, h, w) to float32 pixels (B, 3, F, H, W), about [-1, 1], on the device.

        Args:
            decode_chunk_size: Frames that are decoded at a time. They are of one video.
        """
        vae = SVDVae(self.vae)
        clips = (latents / self.vae.config.scaling_factor).reshape(-1, num_frames, *latents.shape[-3:])
        with self._runtime().on_device(vae) as device:
            chunks = [[vae.decode_clip(each.to(device)) for each in clip.split(decode_chunk_size)] for clip in clips]
        return torch.stack([torch.cat(each) for each in chunks]).movedim(2, 1).float()
