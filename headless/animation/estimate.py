"""Describe a planned video and the memory that it needs. No weights are read."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ...svd_core.errors import counted
from ...svd_core.pipeline import VideoSettings
from ...svd_core.runtime.memory import decode_bytes, format_bytes, optimized_denoise_bytes
from ...svd_core.runtime.runtime import LocalRuntime
from ..engines.embedded.memory_estimate import SCALE, base_channels

if TYPE_CHECKING:
    from .render import FilePlan

ITEMSIZE = {"fp64": 8, "fp32": 4, "fp16": 2, "bf16": 2, "fp8": 1}
"""Bytes of a number, by the names of `checkpoints.inspect`."""


@dataclass(frozen=True)
class _Decoder:
    """The part of a VAE that `decode_bytes` needs."""

    base_channels: int
    itemsize: int
    streams: bool = True


@dataclass(frozen=True)
class VideoEstimate:
    """The memory of one video on a device, in bytes.

    Attributes:
        device: cpu, cuda, cuda:1 or mps.
        weights: Of the UNet. They are streamed if they do not fit.
        sampling: Activations of a sampling step.
        decoding: Activations of decoding all frames as one clip. Split if they do not fit.
        free: Free now.
    """

    device: str
    weights: int
    sampling: int
    decoding: int
    free: int

    def __str__(self) -> str:
        weights, sampling, decoding, free = map(format_bytes, (self.weights, self.sampling, self.decoding, self.free))
        return f"{weights} of weights and {sampling} to sample, {decoding} to decode; {self.device} has {free} free"


def estimate_memory(settings: VideoSettings, runtime: LocalRuntime) -> VideoEstimate:
    """Estimate the memory of a video from its settings, none of them None, and the headers of its checkpoint.

    Raises:
        CheckpointError: The checkpoint is damaged.
        SettingError: There is no such device or precision.
    """
    import torch

    from ...svd_core.checkpoints.inspect import inspect
    from ...svd_core.checkpoints.load import resolve_dtypes

    video: Any = settings
    unet = next(part for part in inspect(runtime.library.find(video.model)).parts if part.name == "UNet")
    stored = torch.bfloat16 if "bf16" in unet.dtypes else torch.float32
    device = runtime.device()
    itemsize = resolve_dtypes(runtime.precision, device, stored, force_upcast=True).compute.itemsize
    unet_channels, vae_channels = base_channels(runtime, video.model)
    rows = video.num_frames * (video.height // SCALE) * (video.width // SCALE)
    decoder: Any = _Decoder(vae_channels, itemsize)
    return VideoEstimate(
        device=str(device),
        weights=unet.bytes // ITEMSIZE.get(unet.dtypes[0], 4) * itemsize,
        sampling=optimized_denoise_bytes(rows, unet_channels, itemsize),
        decoding=decode_bytes(decoder, video.num_frames, video.height, video.width),
        free=runtime.free_memory(device),
    )


def describe_plan(plan: FilePlan, runtime: LocalRuntime) -> tuple[str, dict[str, Any]]:
    """Return the plan of a video as text, and as values for JSON."""
    video: Any = plan.video.settings  # no field is None
    _, height, width, _ = plan.video.images.shape
    memory, outputs = estimate_memory(video, runtime), [str(path) for path in plan.paths]
    first = ("model", "width", "height", "fit", "num_frames", "fps")
    others = {name: value for name, value in asdict(video).items() if name not in first and value is not None}
    text = (
        f"{plan.source.name} ({width}x{height}) -> {', '.join(outputs)}\n"
        f"  {video.width}x{video.height} ({video.fit}), {counted(video.num_frames, 'frame')} at {video.fps} fps, "
        f"{video.model}\n"
        f"  {', '.join(f'{name} {value}' for name, value in others.items())}\n"
        f"  memory: {memory}"
    )
    values = {"image": plan.source.name, "image_size": [width, height], "output": outputs[0], "outputs": outputs}
    return text, {**values, "settings": asdict(video), "memory": asdict(memory)}
