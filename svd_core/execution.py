"""The stages with the host around them: where the module lives meanwhile, progress, being stopped.

The mathematics is in the modules these call; here is only who owns memory and who is told how far it is.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from .autoencoder.decode import (
    MODES,
    SCALE,
    Window,
    decode_window,
    decode_windows,
    decoding_needs,
    largest,
    needs_activation_offload,
    plan_windows,
)
from .autoencoder.encode import ImageEmbedding, embed_images, encode_images
from .autoencoder.tiled_decode import decode_in_tiles
from .checkpoints.library import EMBEDDED
from .diffusion.conditioning import Conditioning
from .diffusion.denoiser import make_denoiser
from .diffusion.guidance import GuidanceCurve
from .diffusion.noise_augmentation import seed_for_index
from .diffusion.sampling import SamplerStep, sample_euler, starting_noise, starting_point
from .diffusion.schedules import make_sigmas, validate_sigmas
from .errors import MemoryBudgetError, SettingError
from .models.components import Checkpoint, ClipVision, SVDModel, Vae
from .models.optimizations import unsupported_reason
from .runtime.device_errors import translate_device_errors
from .runtime.memory import Placement, decode_bytes, denoise_bytes, encode_bytes, format_bytes, place_weights
from .runtime.runtime import Advance, Runtime, RunWarning
from .utils.nan_checks import check_input
from .utils.tensor_checks import check_images

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class SamplerInputs:
    """What the videos of one run start from.

    latents      (N, F, 4, h, w) float32 unscaled latents under the noise; zeros for a new video
    noise        comfyui, diffusers or none
    seed         of video 0; video i uses seed + i
    batch_index  core's frame numbers of a cut latent, for a single video
    """

    latents: torch.Tensor
    noise: str
    seed: int
    batch_index: Sequence[int] | None = None


def load(runtime: Runtime, name: str, precision: str) -> Checkpoint:
    """Load the checkpoint called `name`. Weights are on the CPU.

    precision is auto, fp16, bf16 or fp32; `auto` gives way to what the user said for the whole run.
    Raises CheckpointError for an unknown name or a file that is not what it should be. Like all stages, raises
    MemoryBudgetError when memory runs out and DeviceLostError when the device breaks down.
    """
    wanted = runtime.precision if precision == "auto" else precision
    if name == EMBEDDED:
        logger.warning(
            "%s is small and knows only drawn rockets, balls and fish; for photographs name a real SVD checkpoint.",
            name,
        )
    from .checkpoints.load import load_checkpoint

    def work() -> Checkpoint:
        with runtime.progress("loading", 1, "checkpoint") as advance:
            checkpoint = load_checkpoint(runtime.library.find(name), wanted, runtime.device(), defer_unused=True)
            advance(1)
        return checkpoint

    return translate_device_errors(
        runtime, work, lambda: f"{name} does not fit; close other programs, or load it in fp16"
    )


def embed(runtime: Runtime, clip_vision: ClipVision, images: torch.Tensor, preprocess: str) -> ImageEmbedding:
    """`embed_images` of images (N, H, W, 3) in [0, 1], on the host's device."""
    images = check_images(images)

    def work() -> ImageEmbedding:
        with (
            runtime.progress("embedding", images.shape[0], "image") as advance,
            runtime.on_device(clip_vision) as device,
        ):
            return embed_images(clip_vision, images, preprocess, device, advance)

    return translate_device_errors(
        runtime, work, lambda: "the CLIP encoder does not fit; close other programs, or load it in fp16"
    )


def encode(runtime: Runtime, vae: Vae, images: torch.Tensor) -> torch.Tensor:
    """`encode_images` of images (N, H, W, 3): unscaled image latents (N, 4, h, w), on the host's device."""
    images = check_images(images)
    _, height, width, _ = images.shape
    need = encode_bytes(vae, height, width)

    def work() -> torch.Tensor:
        with runtime.progress("encoding", images.shape[0], "image") as advance, runtime.on_device(vae, need) as device:
            return encode_images(vae, images, device, advance, _spares_encoder(runtime, vae, height, width, device))

    return translate_device_errors(
        runtime, work, lambda: f"encoding {width}x{height} takes about {format_bytes(need)}; use a smaller size"
    )


def _spares_encoder(runtime: Runtime, vae: Vae, height: int, width: int, device: torch.device) -> bool:
    """Whether activations must lie on the CPU for the encoder to fit. Says so."""
    need, free = encode_bytes(vae, height, width), runtime.free_memory(device)
    offload_activations = device.type != "cpu" and vae.tiles_input and need > free
    logger.info("encoding: takes about %s, %s are free", format_bytes(need), format_bytes(free))
    if offload_activations:
        least = encode_bytes(vae, height, width, offload_activations=True)
        logger.info("encoding: activations lie on the CPU, which leaves about %s on the device", format_bytes(least))
    return offload_activations


def sample(
    runtime: Runtime,
    model: SVDModel,
    conditioning_pairs: Sequence[tuple[Conditioning, Conditioning]],
    start: SamplerInputs,
    curve: GuidanceCurve,
    sigmas: torch.Tensor,
    on_step: Callable[[int, SamplerStep], None] = lambda video, step: None,
) -> torch.Tensor:
    """Sample N videos one after the other, each as in its single run: (N, F, 4, h, w) float32 CPU unscaled latents.

    conditioning_pairs    (positive, negative) conditioning of each video
    sigmas   (steps + 1,) falling noise levels, or rising ones, which find the noise of a video
    on_step  called with the video's number and each of its steps; what it raises stops the work

    Raises SettingError for values that do not fit together, NonFiniteError for NaN or infinity in what it is given or
    makes, and what the host raises when it is stopped.
    """
    levels = validate_sigmas(sigmas)
    check_input(start.latents, "the latent to sample")
    if start.batch_index is not None and len(conditioning_pairs) > 1:
        raise SettingError("a latent with batch_index must hold one video; sample the videos of the batch on their own")
    for positive, negative in conditioning_pairs:
        _check_latent_size(start.latents, positive.image_latent, "positive")
        _check_latent_size(start.latents, negative.image_latent, "negative")
        _check_embeds(model, positive.embeds, negative.embeds)
        for name, side in (("positive", positive), ("negative", negative)):
            check_input(side.embeds, f"the {name} conditioning", "numbers.conditioning")
            check_input(side.image_latent, f"the image latent of the {name} conditioning", "numbers.conditioning")
    if unsupported_reason(model.unet) is not None or any(
        side.embeds.shape[1] != 1 for pair in conditioning_pairs for side in pair
    ):
        model.load_deferred()
    size = _size_of(start.latents)
    need = denoise_bytes(model, *size)
    capacity = runtime.capacity(model)
    placement = place_weights(model, need, runtime.device(), capacity)

    def told() -> str:
        weights = sum(weight.nbytes for weight in model.module.parameters())
        return (
            f"sampling {size[0]} frames of {SCALE * size[2]}x{SCALE * size[1]} takes about "
            f"{format_bytes(placement.beside)} beside weights of {format_bytes(weights)}, and {format_bytes(capacity)} "
            "were there. "
            "Use fewer frames, a smaller size, or SVDModelOptions with memory = stream"
        )

    return translate_device_errors(
        runtime, lambda: _sampled(runtime, model, conditioning_pairs, start, curve, levels, placement, on_step), told
    )


def _sampled(
    runtime: Runtime,
    model: SVDModel,
    conditioning_pairs: Sequence[tuple[Conditioning, Conditioning]],
    start: SamplerInputs,
    curve: GuidanceCurve,
    levels: torch.Tensor,
    placement: Placement,
    on_step: Callable[[int, SamplerStep], None],
) -> torch.Tensor:
    """`sample` of what fits together, with the weights where `placement` has them."""
    per_video = len(levels) - 1
    with (
        runtime.progress("sampling", per_video * len(conditioning_pairs), "step") as advance,
        (
            runtime.beside(model, placement.beside)
            if placement.stream
            else runtime.on_device(model, placement.beside, placement.after)
        ) as device,
    ):
        weights = curve.weights(start.latents.shape[1])
        videos = []
        for index, (positive, negative) in enumerate(conditioning_pairs):
            x = _starting_video(model, start, index, levels[0]).to(device)
            denoise = make_denoiser(
                model.unet,
                positive,
                negative,
                weights,
                device,
                levels[:-1],
                stream=placement.stream,
                options=model.options,
            )
            x = sample_euler(denoise, x, levels, _watcher(runtime, advance, index, per_video, on_step))
            videos.append(x.cpu() / model.scaling_factor)
    return torch.cat(videos)


def add_noise(model: SVDModel, start: SamplerInputs, sigma: torch.Tensor) -> torch.Tensor:
    """What `sample` would start from at noise level sigma (): (N, F, 4, h, w) float32 CPU unscaled latents."""
    videos = [_starting_video(model, start, index, sigma) for index in range(len(start.latents))]
    return torch.cat(videos) / model.scaling_factor


def model_sigmas(model: SVDModel, steps: int) -> torch.Tensor:
    """The Karras schedule over the model's own noise range, (steps + 1,) float32."""
    return make_sigmas("karras", steps, model.sigma_min, model.sigma_max)


def decode(
    runtime: Runtime, vae: Vae, latents: torch.Tensor, mode: str, chunk_size: int, context: int
) -> list[torch.Tensor]:
    """Decode N clips (N, F, 4, h, w) of unscaled latents: N times images (F, 8h, 8w, 3) float32 CPU in [0, 1].

    mode is exact (all frames as one clip) or windowed (chunk_size frames kept, `context` more seen on each side). A
    window never spans two videos. Frames with NaN or infinity in 16 bits are decoded once more in float32, which is
    noted. When memory runs out and the user wants windows to adapt (`host.on_oom`), chunk_size is halved until it
    suffices: noted, and the same as decoding with that chunk_size.

    Raises MemoryBudgetError when memory does not suffice, NonFiniteError for NaN or infinity in float32 or in the
    latents, SettingError for an unknown mode.
    """
    if mode not in MODES:
        raise SettingError(f'mode must be one of {", ".join(MODES)}, got "{mode}"')
    check_input(latents, "the latent to decode")
    frames, height, width = _size_of(latents)
    chunk, around = (frames, 0) if mode == "exact" else (chunk_size, context)
    may_shrink = mode == "windowed" and runtime.on_oom == "adapt"
    while True:
        windows = plan_windows(frames, chunk, around)
        work = functools.partial(_decoded, runtime, vae, latents, windows)
        told = functools.partial(decoding_needs, runtime, vae, windows, SCALE * height, SCALE * width)
        try:
            videos = translate_device_errors(runtime, work, told)
        except MemoryBudgetError:
            if not may_shrink or chunk == 1:
                raise
            chunk = max(1, min(chunk, frames) // 2)
            continue
        if may_shrink and chunk != chunk_size:
            runtime.warn(
                RunWarning(
                    "memory.smaller_windows",
                    f"memory ran out: decoded {chunk} frames at a time and not {chunk_size}, which gives other pixels",
                    {"chunk_size": chunk, "asked": chunk_size, "context": context},
                )
            )
        return videos


def decode_tiled(runtime: Runtime, vae: Vae, latents: torch.Tensor, tile: int, overlap: int) -> torch.Tensor:
    """`decode_in_tiles` of frames (F, 4, h, w), on the host's device: images (F, 8h, 8w, 3) float32 CPU in [0, 1].

    Frames with NaN or infinity in 16 bits are decoded once more in float32, which is noted. Raises as `decode` does.
    """
    check_input(latents, "the latent to decode")
    frames, _, height, width = latents.shape
    size = (1, SCALE * min(height, 2 * tile), SCALE * min(width, 2 * tile))
    need = decode_bytes(vae, *size)

    def work() -> torch.Tensor:
        lost: list[int] = []
        with runtime.progress("decoding", frames, "frame") as advance, runtime.on_device(vae, need) as device:
            on_nonfinite = lost.append if vae.itemsize < 4 else None
            images = decode_in_tiles(vae, latents, tile, overlap, device, advance, on_nonfinite)
        if lost:
            with _in_float32(runtime, vae, decode_bytes(vae, *size, itemsize=4), len(lost)) as (device, advance):
                images[lost] = decode_in_tiles(vae, latents[lost], tile, overlap, device, advance)
            _note_float32(runtime, [(0, Window(index, index + 1, index, index + 1)) for index in lost])
        return images

    return translate_device_errors(runtime, work, lambda: f"a tile takes about {format_bytes(need)}; use smaller tiles")


def _decoded(runtime: Runtime, vae: Vae, latents: torch.Tensor, windows: list[Window]) -> list[torch.Tensor]:
    """The images of N clips, those windows in float32 that the decoder's own precision cannot hold."""
    frames, height, width = _size_of(latents)
    need = decode_bytes(vae, largest(windows), SCALE * height, SCALE * width)
    lost: dict[tuple[int, Window], None] = {}
    videos = []
    with (
        runtime.progress("decoding", frames * len(latents), "frame") as advance,
        runtime.on_device(vae, need) as device,
    ):
        offload_activations = needs_activation_offload(vae, windows, height, width, device, runtime.free_memory(device))
        is_short = vae.itemsize < 4
        for index, clip in enumerate(latents):

            def on_frames(done: int, before: int = index * frames) -> None:
                advance(before + done)

            def on_nonfinite(window: Window, video: int = index) -> None:
                lost[video, window] = None

            call = functools.partial(
                decode_windows, vae, clip, windows, device, on_frames, on_nonfinite=on_nonfinite if is_short else None
            )
            videos.append(_with_less_memory(runtime, vae, call, offload_activations))
    if lost:
        _decode_again(runtime, vae, latents, windows, list(lost), videos)
    return videos


def _with_less_memory(
    runtime: Runtime, vae: Vae, call: Callable[..., torch.Tensor], offload_activations: bool
) -> torch.Tensor:
    """One clip's images. When the device's memory does not suffice after all: again with less of it, the same bits."""
    try:
        return call(offload_activations=offload_activations)
    except torch.cuda.OutOfMemoryError:
        if offload_activations or not vae.streams:
            raise
    logger.warning("the device's memory did not suffice for decoding: once more, with activations on the CPU")
    runtime.release()
    return call(offload_activations=True)


def _decode_again(
    runtime: Runtime,
    vae: Vae,
    latents: torch.Tensor,
    windows: list[Window],
    lost: list[tuple[int, Window]],
    videos: list[torch.Tensor],
) -> None:
    """Decode windows (number of the video, window) in float32, and put their frames into the videos."""
    _, height, width = _size_of(latents)
    need = decode_bytes(vae, largest(windows), SCALE * height, SCALE * width, itemsize=4)
    with _in_float32(runtime, vae, need, sum(window.stop - window.start for _, window in lost)) as (device, advance):
        offload_activations = needs_activation_offload(vae, windows, height, width, device, runtime.free_memory(device))
        done = 0
        for video, window in lost:
            count = window.stop - window.start

            def on_progress(share: float, before: int = done, count: int = count) -> None:
                advance(before + int(share * count))

            images = decode_window(vae, latents[video], window, device, on_progress, offload_activations)
            videos[video][window.start : window.stop] = images
            done += count
            advance(done)
    _note_float32(runtime, lost)


@contextlib.contextmanager
def _in_float32(runtime: Runtime, vae: Vae, need: int, frames: int) -> Iterator[tuple[torch.device, Advance]]:
    """The device and its progress for decoding `frames` frames once more, with the decoder in float32."""
    logger.info("%d frames hold NaN or infinity in the decoder's precision: once more in float32", frames)
    with (
        runtime.progress("decoding", frames, "frame") as advance,
        runtime.on_device(vae, need + vae.float32_bytes) as device,
        vae.in_float32(),
    ):
        yield device, advance


def _note_float32(runtime: Runtime, lost: list[tuple[int, Window]]) -> None:
    frames = sum(window.stop - window.start for _, window in lost)
    runtime.warn(
        RunWarning(
            "numbers.float32",
            f"{frames} frames held NaN or infinity and were decoded once more in float32; with precision fp32 they are "
            "right at once",
            {"windows": [{"video": video, "frames": [window.start, window.stop]} for video, window in lost]},
        )
    )


def _watcher(
    runtime: Runtime, advance: Advance, index: int, per_video: int, on_step: Callable[[int, SamplerStep], None]
) -> Callable[[SamplerStep], None]:
    """Tells the host, and who asked for it, of each step of video `index`; the videos before it are done."""

    def watch(step: SamplerStep) -> None:
        advance(index * per_video + step.done)
        runtime.show(step.denoised[0])
        on_step(index, step)

    return watch


def _size_of(latents: torch.Tensor) -> tuple[int, int, int]:
    """(F, h, w) of (N, F, 4, h, w)."""
    _, frames, _, height, width = latents.shape
    return frames, height, width


def _starting_video(model: SVDModel, start: SamplerInputs, index: int, sigma: torch.Tensor) -> torch.Tensor:
    """Video `index` of the run at noise level sigma: (1, F, 4, h, w) float32 scaled latents."""
    latents = start.latents[index]
    frames, _, height, width = latents.shape
    noise = starting_noise(start.noise, seed_for_index(start.seed, index), frames, height, width, start.batch_index)
    return starting_point(latents * model.scaling_factor, noise, sigma, model.sigma_max)[None]


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
            f"the latent is {width * 8}x{height * 8} pixels and the {side} conditioning's image "
            f"{image_width * 8}x{image_height * 8}; resize and encode the image at the video's size"
        )
