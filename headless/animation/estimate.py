"""Describe a planned video, the memory that it needs, and its time. No weights are read."""

from __future__ import annotations

import functools
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from ...svd_core.errors import MemoryBudgetError, counted, format_seconds
from ...svd_core.pipeline import VideoSettings
from ...svd_core.runtime.memory import decode_bytes, describe_chunks, format_bytes, optimized_denoise_bytes
from ...svd_core.runtime.runtime import WORKSPACE_BYTES, LocalRuntime
from ..engines.embedded.memory_estimate import SCALE, base_channels

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from ...svd_core.diffusion.network_calls import NetworkCalls
    from .render import FilePlan

ITEMSIZE = {"fp64": 8, "fp32": 4, "fp16": 2, "bf16": 2, "fp8": 1}
"""Bytes of a number, by the names of `checkpoints.inspect`."""

EFFICIENCY = 0.4
"""FLOPs per second of sampling and decoding, relative to a large matrix product. Measured with svd-nano on a CPU: 0.4
for the UNet, 0.65 for the decoder. GPUs were not measured, so their estimate is called a guess."""


@dataclass(frozen=True)
class _Decoder:
    """The part of a VAE that `decode_bytes` and `place_activations` need."""

    base_channels: int
    itemsize: int
    streams: bool = True
    scale: int = SCALE


@dataclass(frozen=True)
class VideoEstimate:
    """The memory of one video on a device, in bytes, and the choices that follow from it.

    Attributes:
        device: cpu, cuda, cuda:1 or mps.
        weights: Of the UNet.
        sampling: Activations of a sampling step.
        decoding: Activations of decoding all frames as one clip. Split if they do not fit.
        free: Free now, without `reserve`.
        reserve: Left for workspaces of a GPU.
        streamed: The weights are streamed to the device block by block, on CUDA from page-locked memory.
        activations: Where those of the decoder are, see `models.options.Activations`. None: decoding does not fit.
        chunks: Rows of feed-forward and attention that are computed at a time, in words.
    """

    device: str
    weights: int
    sampling: int
    decoding: int
    free: int
    reserve: int
    streamed: bool
    activations: str | None
    chunks: str

    def __str__(self) -> str:
        sizes = (self.weights, self.sampling, self.decoding, self.free, self.reserve)
        weights, sampling, decoding, free, reserve = map(format_bytes, sizes)
        pinned = " from page-locked memory" if self.device.startswith("cuda") else ""
        choices = (
            f"weights streamed{pinned}" if self.streamed else "weights on the device",
            f"rows computed {self.chunks}",
            f"decoder: {self.activations}" if self.activations else "decoding does not fit",
        )
        beside = f" beside {reserve} for workspaces" if self.reserve else ""
        need = f"{weights} of weights and {sampling} to sample, {decoding} to decode"
        return f"{need}; {self.device} has {free} free{beside}; {', '.join(choices)}"


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
    weights = unet.bytes // ITEMSIZE.get(unet.dtypes[0], 4) * itemsize
    sampling, free = optimized_denoise_bytes(rows, unet_channels, itemsize), runtime.free_memory(device)
    return VideoEstimate(
        device=str(device),
        weights=weights,
        sampling=sampling,
        decoding=decode_bytes(decoder, video.num_frames, video.height, video.width),
        free=free,
        reserve=WORKSPACE_BYTES if device.type == "cuda" else 0,
        streamed=device.type != "cpu" and weights + sampling > free,
        activations=_place_activations(decoder, video, device, free),
        chunks=describe_chunks(device),
    )


def _place_activations(decoder: Any, video: Any, device: torch.device, free: int) -> str | None:
    """Return where the activations of the decoder are, None if decoding does not fit."""
    from ...svd_core.autoencoder.decode import place_activations, plan_windows

    frames = video.num_frames
    chunk, context = (frames, 0) if video.decode_mode == "exact" else (video.decode_chunk, video.decode_context)
    windows = plan_windows(frames, chunk, context)
    try:
        return place_activations(decoder, windows, video.height // SCALE, video.width // SCALE, device, free)
    except MemoryBudgetError:
        return None


def estimate_seconds(settings: VideoSettings, runtime: LocalRuntime) -> float:
    """Estimate the time of sampling and decoding a video, from its FLOPs and the speed of a matrix product.

    The settings have no None. Loading, compiling and streaming weights are not included. Raises as `estimate_memory`.
    """
    import torch

    from ...svd_core.autoencoder.decode import plan_windows
    from ...svd_core.checkpoints.load import resolve_dtypes

    video: Any = settings
    device = runtime.device()
    dtype = resolve_dtypes(runtime.precision, device, torch.float32, force_upcast=True).compute
    sizes = video.num_frames, video.height // SCALE, video.width // SCALE
    unet, cached, decoder = _count_flops(runtime.library.find(video.model), *sizes)
    decoded = video.num_frames
    if video.decode_mode == "windowed":
        windows = plan_windows(video.num_frames, video.decode_chunk, video.decode_context)
        decoded = sum(window.last - window.first for window in windows)
    calls = _network_calls(video)
    flops = calls.whole * unet + calls.cached * cached + decoder * decoded / video.num_frames
    return flops / EFFICIENCY / _matmul_speed(device, dtype)


def _network_calls(settings: Any) -> NetworkCalls:
    """Return the UNet calls of a video on both sides of guidance, with settings without None."""
    from ...svd_core.diffusion.guidance import GuidanceCurve, GuidanceRefinement
    from ...svd_core.diffusion.network_calls import count_network_calls
    from ...svd_core.diffusion.sampling import SOLVERS
    from ...svd_core.diffusion.schedules import make_sigmas, read_sigmas
    from ...svd_core.models.step_cache import StepCache

    levels = settings.sigmas
    sigmas = make_sigmas(settings.schedule, settings.steps) if levels is None else read_sigmas(levels)
    refinement = GuidanceRefinement(settings.guidance_from, settings.guidance_to)
    curve = GuidanceCurve("linear", settings.min_guidance, settings.max_guidance, refinement)
    return count_network_calls(SOLVERS[settings.sampler], sigmas, curve, StepCache(settings.step_cache))


def _steps(settings: Any) -> int:
    """Return the number of sampling steps that run with settings without None."""
    if settings.sigmas is None:
        return settings.steps
    from ...svd_core.diffusion.schedules import read_sigmas

    return len(read_sigmas(settings.sigmas)) - 1


@functools.cache
def _count_flops(path: Path, frames: int, height: int, width: int) -> tuple[int, int, int]:
    """Count the FLOPs of a whole and a cached call of the UNet, and of decoding all frames, for a size in latents."""
    import torch

    from ...svd_core.checkpoints.build_modules import build_modules
    from ...svd_core.checkpoints.load import open_checkpoint
    from ...svd_core.models.step_cache import StepCache
    from ...svd_core.models.unet import PreparedUNet
    from ..bench.op_counter import count

    with open_checkpoint(path, "fp16") as opened, torch.inference_mode(False), torch.no_grad():
        modules: Any = build_modules(opened)
        unet, vae, clip = (module.eval().to("meta") for module in modules)  # some numbers are on the CPU
        latents, c_noise = torch.empty(frames, 4, height, width, device="meta"), torch.tensor(0.0)
        embeds, time_ids = latents.new_empty(1, 1, clip.config.projection_dim), latents.new_empty(1, 3)
        prepared = PreparedUNet(unet, embeds, latents, time_ids, c_noise[None], step_cache=StepCache(2))
        whole, cached = (count(lambda: prepared(latents, c_noise)).flops for _ in range(2))
        indicator = latents.new_zeros(1, frames)  # in one call: our decoder has the same FLOPs in many more operations
        return whole, cached, count(lambda: vae.decoder(latents, indicator, num_frames=frames)).flops


@functools.cache
def _matmul_speed(device: torch.device, dtype: torch.dtype) -> float:
    """Measure the FLOPs per second of a matrix product: the best of three, because other programs may run."""
    import torch

    from ..bench.measuring import timed

    side = 1024 if device.type == "cpu" else 4096
    factor = torch.ones(side, side, device=device, dtype=dtype)
    return 2 * side**3 / min(timed(lambda: factor @ factor, device)[0] for _ in range(4))


def describe_plan(plan: FilePlan, runtime: LocalRuntime) -> tuple[str, dict[str, Any]]:
    """Return the plan of a video as text, and as values for JSON."""
    settings = plan.video.settings
    video: Any = replace(settings, steps=_steps(settings))  # no field is None
    _, height, width, _ = plan.video.images.shape
    memory, outputs = estimate_memory(video, runtime), [str(path) for path in plan.paths]
    seconds = len(outputs) * estimate_seconds(video, runtime)
    unknown = ["loading", *["compiling"] * (video.compile != "off"), *["streaming weights"] * memory.streamed]
    first = ("model", "width", "height", "fit", "num_frames", "fps")
    unused = () if video.decode_mode == "windowed" else ("decode_chunk", "decode_context")
    others = {
        name: value for name, value in asdict(video).items() if name not in (*first, *unused) and value is not None
    }
    text = (
        f"{plan.source.name} ({width}x{height}) -> {', '.join(outputs)}\n"
        f"  {video.width}x{video.height} ({video.fit}), {counted(video.num_frames, 'frame')} at {video.fps} fps, "
        f"{video.model}\n"
        f"  {', '.join(f'{name} {value}' for name, value in others.items())}\n"
        f"  memory: {memory}\n"
        f"  time: about {format_seconds(seconds)} to sample and decode, without {' and '.join(unknown)}"
        f"{'' if memory.device == 'cpu' else '; a guess, as this was never measured on a GPU'}"
    )
    values = {"image": plan.source.name, "image_size": [width, height], "output": outputs[0], "outputs": outputs}
    return text, {**values, "settings": asdict(video), "memory": asdict(memory), "seconds": round(seconds, 1)}
