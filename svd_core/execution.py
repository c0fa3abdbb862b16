"""Run each stage on a runtime: place the component, compute, report progress, handle a memory shortage.

The mathematics is in the modules that these functions call. All of them raise MemoryBudgetError when memory runs out,
DeviceLostError when the device fails, and what the runtime raises when the user stops the run.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
from collections.abc import Callable, Iterator, Sequence

import torch

from .autoencoder.decode import (
    MODES,
    Window,
    decode_window,
    decode_windows,
    describe_memory_need,
    largest,
    place_activations,
    plan_windows,
)
from .autoencoder.encode import ImageEmbedding, embed_images, encode_images
from .autoencoder.tiled_decode import decode_in_tiles
from .checkpoints.library import EMBEDDED
from .diffusion.conditioning import Conditioning
from .diffusion.denoiser import Denoiser, make_denoiser
from .diffusion.guidance import GuidanceCurve
from .diffusion.sampling import SCALE, SOLVERS, SamplerStep, Solve, starting_point
from .diffusion.schedule_fitting import FitOptions, FitRow, OnRow, VideoStart
from .diffusion.schedule_fitting import fit_sigmas as fit_diffusion_sigmas
from .diffusion.schedules import make_sigmas, validate_sigmas
from .errors import MemoryBudgetError, SettingError, counted
from .models.components import Checkpoint, ClipVision, SVDModel, Vae
from .models.optimizations import unsupported_reason
from .models.options import Activations
from .runtime.device_errors import is_memory_error, translate_device_errors
from .runtime.memory import Placement, decode_bytes, denoise_bytes, encode_bytes, format_bytes, place_weights
from .runtime.runtime import Advance, Runtime, RunWarning
from .utils.cpu_threads import divided_threads
from .utils.nan_checks import check_input
from .utils.tensor_checks import check_images

logger = logging.getLogger(__name__)

SMALL_NUMEL = 2**20
"""Elements of the UNet's largest activation up to which both sides of guidance are computed at once on a CPU, in twice
the memory. svd-nano has 2**18."""

FEW_STEPS = 15
"""Karras steps from which on DPM-Solver++(2M) is more exact than Euler: on svd-nano at 25 steps, but not at 12."""

OnStep = Callable[[int, SamplerStep], torch.Tensor | None]
"""Called with the index of the video and each step."""


def load(runtime: Runtime, name: str, precision: str) -> Checkpoint:
    """Load the checkpoint called `name`, with its weights on the CPU.

    Args:
        precision: auto, fp16, bf16 or fp32. `auto` is replaced by the runtime's precision.

    Raises:
        CheckpointError: The name is unknown, or the file is damaged or of another kind.
    """
    wanted = runtime.precision if precision == "auto" else precision
    if name == EMBEDDED:
        _say_what_embedded_knows()
    from .checkpoints.load import load_checkpoint

    def run() -> Checkpoint:
        with runtime.progress("loading", 1, "checkpoint") as advance:
            checkpoint = load_checkpoint(runtime.library.find(name), wanted, runtime.device(), defer_unused=True)
            advance(1)
        return checkpoint

    return translate_device_errors(
        runtime, run, lambda: f"{name} does not fit; close other programs, or load it in fp16"
    )


@functools.cache
def _say_what_embedded_knows() -> None:
    """Log a notice, once in a process."""
    logger.warning(
        "%s is small and knows only drawn rockets, balls and fish; for photographs name a real SVD checkpoint.",
        EMBEDDED,
    )


def embed(runtime: Runtime, clip_vision: ClipVision, images: Sequence[torch.Tensor], preprocess: str) -> ImageEmbedding:
    """Run `embed_images` on batches of images (b, H, W, 3) in [0, 1], each of any size."""
    images = [check_images(each) for each in images]

    def run() -> ImageEmbedding:
        with (
            runtime.progress("embedding", sum(map(len, images)), "image") as advance,
            runtime.on_device(clip_vision) as device,
        ):
            return embed_images(clip_vision, images, preprocess, device, advance)

    return translate_device_errors(
        runtime, run, lambda: "the CLIP encoder does not fit; close other programs, or load it in fp16"
    )


def encode(runtime: Runtime, vae: Vae, images: torch.Tensor) -> torch.Tensor:
    """Run `encode_images` on images (N, H, W, 3): unscaled image latents (N, 4, h, w)."""
    images = check_images(images)
    _, height, width, _ = images.shape
    need = encode_bytes(vae, height, width)

    def run() -> torch.Tensor:
        with runtime.progress("encoding", images.shape[0], "image") as advance, runtime.on_device(vae, need) as device:
            return encode_images(vae, images, device, advance, _offloads_encoder(runtime, vae, height, width, device))

    return translate_device_errors(
        runtime, run, lambda: f"encoding {width}x{height} takes about {format_bytes(need)}; use a smaller size"
    )


def _offloads_encoder(runtime: Runtime, vae: Vae, height: int, width: int, device: torch.device) -> bool:
    """Return True if the encoder fits only with its activations on the CPU. Log the plan."""
    need, free = encode_bytes(vae, height, width), runtime.free_memory(device)
    offload_activations = device.type != "cpu" and vae.tiles_input and need > free
    logger.info("encoding: takes about %s, %s are free", format_bytes(need), format_bytes(free))
    if offload_activations:
        least = encode_bytes(vae, height, width, offload_activations=True)
        logger.info("encoding: activations are kept on the CPU, about %s on the device", format_bytes(least))
    return offload_activations


def sample(
    runtime: Runtime,
    model: SVDModel,
    conditioning_pairs: Sequence[tuple[Conditioning, Conditioning]],
    start: torch.Tensor,
    curve: GuidanceCurve,
    sigmas: torch.Tensor,
    on_step: OnStep = lambda video, step: None,
    solver: Solve = SOLVERS["euler"],
    seeds: Sequence[int] | None = None,
) -> torch.Tensor:
    """Sample N videos one after the other, each as in its single run.

    Args:
        conditioning_pairs: (positive, negative) conditioning of each video.
        start: (N, F, 4, h, w) scaled latents at noise level sigmas[0], see `noisy_latents`.
        sigmas: (steps + 1,) falling noise levels, or rising ones, which invert a video to its noise.
        on_step: Called with the index of the video and each step. A tensor that it returns replaces the step's x. What
            it raises stops the work.
        solver: See `diffusion.sampling.SOLVERS`.
        seeds: Of the noise that `solver` adds, one for each video. None: 0, 1, 2 and so on.

    Returns:
        (N, F, 4, h, w) float32 CPU unscaled latents.

    Raises:
        SettingError: Shapes do not fit together.
        NonFiniteError: NaN or infinity in the inputs or the results.
    """
    sigmas = validate_sigmas(sigmas)
    check_input(start, "the latent to sample")
    for pair in conditioning_pairs:
        _check_conditioning(model, start, *pair)
    _warn_of_long_steps(runtime, model, solver, sigmas)
    placement, describe_need = _plan_sampling(runtime, model, conditioning_pairs, start)
    run = functools.partial(
        _sample_videos, runtime, model, conditioning_pairs, start, curve, sigmas, solver, seeds or range(len(start))
    )
    counted_steps = _CountedSteps(on_step)
    try:
        return translate_device_errors(runtime, functools.partial(run, placement, counted_steps), describe_need)
    except MemoryBudgetError:
        spare = _spare_placement(placement, counted_steps.done)  # no step may be reported twice
        if spare is None:
            raise
    return translate_device_errors(runtime, functools.partial(run, spare, on_step), describe_need)


def _spare_placement(placement: Placement, reported: int) -> Placement | None:
    """Return the placement to sample again with after a memory shortage. None: results were reported, or none helps."""
    if placement.if_short is None or reported:
        return None
    logger.warning("out of device memory while sampling: sampling again with streamed weights")
    return placement.if_short


def _warn_of_long_steps(runtime: Runtime, model: SVDModel, solver: Solve, sigmas: torch.Tensor) -> None:
    """Warn if dpmpp_2m follows few karras levels: there Euler is more exact (docs/development/svd-nano.md)."""
    steps = len(sigmas) - 1
    if solver == SOLVERS["dpmpp_2m"] and 1 < steps < FEW_STEPS and torch.equal(sigmas, model_sigmas(model, steps)):
        runtime.warn(
            RunWarning(
                "sampling.few_karras_steps",
                "with svd-nano, dpmpp_2m is less exact than euler on 12 karras steps, and more exact on 25. For "
                f"{steps} steps use the schedule align_your_steps, or euler.",
                {"sampler": "dpmpp_2m", "steps": steps},
            )
        )


class _CountedSteps:
    """An OnStep that counts its calls."""

    def __init__(self, on_step: OnStep) -> None:
        self._on_step, self.done = on_step, 0

    def __call__(self, video: int, step: SamplerStep) -> torch.Tensor | None:
        self.done += 1
        return self._on_step(video, step)


def fit_sigmas(
    runtime: Runtime,
    model: SVDModel,
    conditioning_pairs: Sequence[tuple[Conditioning, Conditioning]],
    noises: Sequence[torch.Tensor],
    curve: GuidanceCurve,
    options: FitOptions,
    on_row: OnRow = lambda row: None,
) -> FitRow:
    """Fit a schedule to N videos, see `diffusion.schedule_fitting.fit_sigmas`.

    Args:
        conditioning_pairs: (positive, negative) conditioning of each video.
        noises: Unit Gaussian noise (1, F, 4, h, w) of each video. Sizes may differ.
        on_row: Called with each schedule when its error is known. What it raises stops the work.

    Raises:
        SettingError: Shapes do not fit together.
        NonFiniteError: NaN or infinity in the inputs or the results.
    """
    sigma_max = model_sigmas(model, options.steps)[0]
    starts = [noisy_latents(model, torch.zeros_like(noise), noise, sigma_max) for noise in noises]
    for start, pair in zip(starts, conditioning_pairs, strict=True):
        check_input(start, "the latent to sample")
        _check_conditioning(model, start, *pair)
    largest_start = max(starts, key=torch.Tensor.numel)
    placement, describe_need = _plan_sampling(runtime, model, conditioning_pairs, largest_start)

    rows: list[FitRow] = []

    def report(row: FitRow) -> None:
        rows.append(row)
        on_row(row)

    def run(placement: Placement) -> FitRow:
        most = options.most_calls(len(starts))
        with (
            runtime.progress("fitting", most, "step") as advance,
            _denoiser_maker(runtime, model, largest_start, curve, placement, None) as (device, make),
        ):
            videos = [
                VideoStart(make(*pair, curve.weights(start.shape[1])), start.to(device))
                for pair, start in zip(conditioning_pairs, starts, strict=True)
            ]
            steps = itertools.count(1)
            row = fit_diffusion_sigmas(
                videos, options, model.sigma_min, model.sigma_max, lambda: advance(next(steps)), report
            )
            advance(most)
        return row

    try:
        return translate_device_errors(runtime, functools.partial(run, placement), describe_need)
    except MemoryBudgetError:
        spare = _spare_placement(placement, len(rows))
        if spare is None:
            raise
    return translate_device_errors(runtime, functools.partial(run, spare), describe_need)


def _plan_sampling(
    runtime: Runtime,
    model: SVDModel,
    conditioning_pairs: Sequence[tuple[Conditioning, Conditioning]],
    start: torch.Tensor,
) -> tuple[Placement, Callable[[], str]]:
    """Return where weights and activations are, and a function that describes the need of memory."""
    if unsupported_reason(model.unet) is not None or any(
        side.embeds.shape[1] != 1 for pair in conditioning_pairs for side in pair
    ):
        model.load_deferred()
    size = _size_of(start)
    capacity = runtime.capacity(model)
    placement = place_weights(model, denoise_bytes(model, *size), runtime.device(), capacity)
    return placement, functools.partial(_describe_sampling_need, model, size, placement, capacity)


def _describe_sampling_need(model: SVDModel, size: tuple[int, int, int], placement: Placement, capacity: int) -> str:
    frames, height, width = size
    weights = sum(weight.nbytes for weight in model.module.parameters())
    return (
        f"sampling {frames} frames of {SCALE * width}x{SCALE * height} needs about "
        f"{format_bytes(placement.activation_bytes)} and weights of {format_bytes(weights)}, "
        f"{format_bytes(capacity)} were available. Use fewer frames, a smaller size, or the model option "
        "memory = stream"
    )


def _sample_videos(
    runtime: Runtime,
    model: SVDModel,
    conditioning_pairs: Sequence[tuple[Conditioning, Conditioning]],
    start: torch.Tensor,
    curve: GuidanceCurve,
    sigmas: torch.Tensor,
    solver: Solve,
    seeds: Sequence[int],
    placement: Placement,
    on_step: OnStep,
) -> torch.Tensor:
    """Sample validated inputs, with the weights where `placement` says."""
    per_video = len(sigmas) - 1
    with (
        runtime.progress("sampling", per_video * len(conditioning_pairs), "step") as advance,
        _denoiser_maker(runtime, model, start, curve, placement, sigmas[:-1]) as (device, make),
    ):
        weights = curve.weights(start.shape[1])
        videos = []
        for index, (positive, negative) in enumerate(conditioning_pairs):
            x = start[index : index + 1].to(device)
            denoise = make(positive, negative, weights)
            report = _step_callback(runtime, advance, index, per_video, on_step)
            x = solver(denoise, x, sigmas, report, seeds[index])
            videos.append(x.cpu() / model.scaling_factor)
    return torch.cat(videos)


@contextlib.contextmanager
def _denoiser_maker(
    runtime: Runtime,
    model: SVDModel,
    start: torch.Tensor,
    curve: GuidanceCurve,
    placement: Placement,
    sigmas: torch.Tensor | None,
) -> Iterator[tuple[torch.device, Callable[[Conditioning, Conditioning, torch.Tensor], Denoiser]]]:
    """Place the weights. Yield the device, and `make_denoiser` of (positive, negative, weights).

    Args:
        start: (N, F, 4, h, w), the largest of the latents.
        sigmas: The noise levels of all calls, if they are known.
    """
    with (
        (
            runtime.reserve_memory(model, placement.activation_bytes)
            if placement.stream
            else runtime.on_device(model, placement.activation_bytes, placement.after)
        ) as device,
        divided_threads(2 if runtime.owns_process and _is_small(model, start, device) else 1) as run_all,
    ):
        yield (
            device,
            functools.partial(
                make_denoiser,
                model.unet,
                device=device,
                sigmas=sigmas,
                stream=placement.stream,
                options=model.options,
                run_all=run_all,
                refinement=curve.refinement,
                step_cache=model.step_cache,
            ),
        )


def _is_small(model: SVDModel, latents: torch.Tensor, device: torch.device) -> bool:
    """Return True if both sides of guidance can be computed at once: a small model on a CPU."""
    frames, height, width = _size_of(latents)
    return (
        device.type == "cpu"
        and frames * height * width * model.base_channels <= SMALL_NUMEL
        and model.options.compile == "off"
        and unsupported_reason(model.unet) is None
    )


def noisy_latents(model: SVDModel, latents: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Add noise to unscaled latents: scaled latents of the same shape, from which `sample` starts.

    Args:
        latents: (N, F, 4, h, w) float32. Zeros for a new video.
        noise: Unit Gaussian noise of the same shape, see `diffusion.sampling.draw_noise`.
        sigma: () float32 noise level.
    """
    return starting_point(latents * model.scaling_factor, noise, sigma, model.sigma_max)


def model_sigmas(model: SVDModel, steps: int, schedule: str = "karras") -> torch.Tensor:
    """Return a schedule over the model's noise range, see `diffusion.schedules.make_sigmas`: (steps + 1,) float32."""
    return make_sigmas(schedule, steps, model.sigma_min, model.sigma_max)


def decode(
    runtime: Runtime, vae: Vae, latents: torch.Tensor, mode: str, chunk_size: int, context: int
) -> list[torch.Tensor]:
    """Decode N clips (N, F, 4, h, w) of unscaled latents: N times images (F, 8h, 8w, 3) float32 CPU in [0, 1].

    A window never spans two videos. Frames that overflow to NaN or infinity in 16 bits are decoded again in float32,
    with a warning. If memory runs out and `runtime.on_oom` is adapt, chunk_size is halved until the work fits, with a
    warning; the result equals that of the smaller chunk_size.

    Args:
        mode: exact: all frames as one clip; windowed: `chunk_size` frames at a time.
        chunk_size: Frames that a window keeps.
        context: Frames that a window also decodes on each side.

    Raises:
        SettingError: Unknown mode.
        NonFiniteError: NaN or infinity in float32 or in the latents.
    """
    if mode not in MODES:
        raise SettingError(f'mode must be one of {", ".join(MODES)}, got "{mode}"')
    check_input(latents, "the latent to decode")
    frames, height, width = _size_of(latents)
    chunk, margin = (frames, 0) if mode == "exact" else (chunk_size, context)
    may_shrink = mode == "windowed" and runtime.on_oom == "adapt"
    while True:
        windows = plan_windows(frames, chunk, margin)

        def describe_need(windows: list[Window] = windows) -> str:
            device = runtime.device()
            free = runtime.free_memory(device)
            return describe_memory_need(vae, windows, vae.scale * height, vae.scale * width, device, free)

        run = functools.partial(_decode_clips, runtime, vae, latents, windows)
        try:
            videos = translate_device_errors(runtime, run, describe_need)
        except MemoryBudgetError:
            if not may_shrink or chunk == 1:
                raise
            chunk = max(1, min(chunk, frames) // 2)
            continue
        if may_shrink and chunk != chunk_size:
            runtime.warn(
                RunWarning(
                    "memory.smaller_windows",
                    f"memory ran out: decoded {counted(chunk, 'frame')} at a time, not {chunk_size}, which gives "
                    "other pixels",
                    {"chunk_size": chunk, "asked": chunk_size, "context": context},
                )
            )
        return videos


def decode_tiled(runtime: Runtime, vae: Vae, latents: torch.Tensor, tile: int, overlap: int) -> torch.Tensor:
    """Run `decode_in_tiles` on frames (F, 4, h, w): images (F, 8h, 8w, 3) float32 CPU in [0, 1].

    Frames that overflow in 16 bits are decoded again in float32, with a warning. Raises as `decode` does.
    """
    check_input(latents, "the latent to decode")
    frames, _, height, width = latents.shape
    size = (1, vae.scale * min(height, 2 * tile), vae.scale * min(width, 2 * tile))
    need = decode_bytes(vae, *size)

    def run() -> torch.Tensor:
        nonfinite: list[int] = []
        with runtime.progress("decoding", frames, "frame") as advance, runtime.on_device(vae, need) as device:
            on_nonfinite = nonfinite.append if vae.itemsize < 4 else None
            images = decode_in_tiles(vae, latents, tile, overlap, device, advance, on_nonfinite)
        if nonfinite:
            with _in_float32(runtime, vae, decode_bytes(vae, *size, itemsize=4), len(nonfinite)) as (device, advance):
                images[nonfinite] = decode_in_tiles(vae, latents[nonfinite], tile, overlap, device, advance)
            _warn_float32(runtime, [(0, Window(index, index + 1, index, index + 1)) for index in nonfinite])
        return images

    return translate_device_errors(runtime, run, lambda: f"a tile takes about {format_bytes(need)}; use smaller tiles")


def _decode_clips(runtime: Runtime, vae: Vae, latents: torch.Tensor, windows: list[Window]) -> list[torch.Tensor]:
    """Decode N clips, and again in float32 the windows that overflow in the decoder's precision."""
    frames, height, width = _size_of(latents)
    need = decode_bytes(vae, largest(windows), vae.scale * height, vae.scale * width)
    nonfinite: dict[tuple[int, Window], None] = {}
    videos = []
    with (
        runtime.progress("decoding", frames * len(latents), "frame") as advance,
        runtime.on_device(vae, need) as device,
    ):
        activations = place_activations(vae, windows, height, width, device, runtime.free_memory(device))
        is_16_bit = vae.itemsize < 4
        for index, clip in enumerate(latents):

            def on_frames(done: int, before: int = index * frames) -> None:
                advance(before + done)

            def on_nonfinite(window: Window, video: int = index) -> None:
                nonfinite[video, window] = None

            call = functools.partial(
                decode_windows, vae, clip, windows, device, on_frames, on_nonfinite=on_nonfinite if is_16_bit else None
            )
            videos.append(_decode_or_offload(runtime, vae, call, activations))
    if nonfinite:
        _decode_again(runtime, vae, latents, windows, list(nonfinite), videos)
    return videos


def _decode_or_offload(
    runtime: Runtime, vae: Vae, call: Callable[..., torch.Tensor], activations: Activations
) -> torch.Tensor:
    """Decode one clip. If the device runs out of memory, decode again with activations on the CPU: the same bits."""
    try:
        return call(activations=activations)
    except (MemoryError, RuntimeError) as error:
        may_offload = activations != "offload" and vae.streams and runtime.device().type != "cpu"
        if not (is_memory_error(error) and may_offload):
            raise
    logger.warning("out of device memory while decoding: decoding again with activations on the CPU")
    runtime.release()
    return call(activations="offload")


def _decode_again(
    runtime: Runtime,
    vae: Vae,
    latents: torch.Tensor,
    windows: list[Window],
    nonfinite: list[tuple[int, Window]],
    videos: list[torch.Tensor],
) -> None:
    """Decode windows (index of the video, window) in float32, and write their frames into `videos`."""
    _, height, width = _size_of(latents)
    need = decode_bytes(vae, largest(windows), vae.scale * height, vae.scale * width, itemsize=4)
    with _in_float32(runtime, vae, need, sum(window.stop - window.start for _, window in nonfinite)) as (
        device,
        advance,
    ):
        activations = place_activations(vae, windows, height, width, device, runtime.free_memory(device))
        done = 0
        for video, window in nonfinite:
            count = window.stop - window.start

            def on_progress(share: float, before: int = done, count: int = count) -> None:
                advance(before + int(share * count))

            images = decode_window(vae, latents[video], window, device, on_progress, activations)
            videos[video][window.start : window.stop] = images
            done += count
            advance(done)
    _warn_float32(runtime, nonfinite)


@contextlib.contextmanager
def _in_float32(runtime: Runtime, vae: Vae, need: int, frames: int) -> Iterator[tuple[torch.device, Advance]]:
    """Give the device and a progress callback for decoding `frames` frames with the decoder in float32."""
    logger.info("%d frames hold NaN or infinity in the decoder's precision: decoding them again in float32", frames)
    with (
        runtime.progress("decoding", frames, "frame") as advance,
        runtime.on_device(vae, need + vae.float32_bytes) as device,
        vae.in_float32(),
    ):
        yield device, advance


def _warn_float32(runtime: Runtime, nonfinite: list[tuple[int, Window]]) -> None:
    frames = sum(window.stop - window.start for _, window in nonfinite)
    runtime.warn(
        RunWarning(
            "numbers.float32",
            f"{counted(frames, 'frame')} held NaN or infinity, decoded again in float32. Precision fp32 avoids the "
            "second pass.",
            {"windows": [{"video": video, "frames": [window.start, window.stop]} for video, window in nonfinite]},
        )
    )


def _step_callback(
    runtime: Runtime, advance: Advance, index: int, per_video: int, on_step: OnStep
) -> Callable[[SamplerStep], torch.Tensor | None]:
    """Return a callback that reports each step of video `index`. The videos before it are done."""

    def report(step: SamplerStep) -> torch.Tensor | None:
        advance(index * per_video + step.done)
        runtime.show(step.denoised[0])
        return on_step(index, step)

    return report


def _size_of(latents: torch.Tensor) -> tuple[int, int, int]:
    """Return (F, h, w) of (N, F, 4, h, w)."""
    _, frames, _, height, width = latents.shape
    return frames, height, width


def _check_conditioning(model: SVDModel, start: torch.Tensor, positive: Conditioning, negative: Conditioning) -> None:
    _check_latent_size(start, positive.image_latent, "positive")
    _check_latent_size(start, negative.image_latent, "negative")
    _check_embeds(model, positive.embeds, negative.embeds)
    for name, side in (("positive", positive), ("negative", negative)):
        check_input(side.embeds, f"the {name} conditioning", "numbers.conditioning")
        check_input(side.image_latent, f"the image latent of the {name} conditioning", "numbers.conditioning")


def _check_embeds(model: SVDModel, positive: torch.Tensor, negative: torch.Tensor) -> None:
    if positive.shape != negative.shape or positive.shape[-1] != model.embedding_width:
        raise SettingError(
            f"the model attends to embeddings {model.embedding_width} wide; the positive conditioning's are "
            f"{tuple(positive.shape)} and the negative's {tuple(negative.shape)}. Take clip_vision and model from one "
            f"checkpoint, and both sides of the conditioning from one node"
        )


def _check_latent_size(latents: torch.Tensor, image_latent: torch.Tensor, side: str) -> None:
    if latents.shape[-2:] != image_latent.shape[-2:]:
        (height, width), (image_height, image_width) = latents.shape[-2:], image_latent.shape[-2:]
        raise SettingError(
            f"the latent is {SCALE * width}x{SCALE * height} pixels and the {side} conditioning's image "
            f"{SCALE * image_width}x{SCALE * image_height}; resize and encode the image at the video's size"
        )
