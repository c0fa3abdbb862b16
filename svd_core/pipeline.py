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
    plan_windows,
    spares,
)
from .autoencoder.encode import ImageEmbedding, embed_images, encode_images
from .autoencoder.tiled_decode import decode_in_tiles
from .checkpoints.library import EMBEDDED
from .diffusion.conditioning import Conditioning
from .diffusion.denoiser import make_denoiser
from .diffusion.guidance import GuidanceCurve
from .diffusion.noise_augmentation import seed_of
from .diffusion.sampling import Step, sample_euler, starting_noise, starting_point
from .diffusion.schedules import check_walk, make_sigmas
from .errors import MemoryBudgetError, SettingError
from .media.image_ops import check_images
from .models.components import Checkpoint, ClipVision, SVDModel, Vae
from .models.optimizations import why_not
from .runtime.device_errors import guarded
from .runtime.memory import Placement, decode_bytes, denoise_bytes, encode_bytes, in_words, place_weights
from .runtime.runtime import Advance, Host, Note
from .utils.nan_checks import check_input

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Start:
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


def load(host: Host, name: str, precision: str) -> Checkpoint:
    """Load the checkpoint called `name`. Weights are on the CPU.

    precision is auto, fp16, bf16 or fp32; `auto` gives way to what the user said for the whole run.
    Raises CheckpointError for an unknown name or a file that is not what it should be. Like all stages, raises
    MemoryBudgetError when memory runs out and DeviceLostError when the device breaks down.
    """
    wanted = host.precision if precision == "auto" else precision
    if name == EMBEDDED:
        logger.warning(
            "%s is small and knows only drawn rockets, balls and fish; for photographs name a real SVD checkpoint.",
            name,
        )
    from .checkpoints.load import load_checkpoint

    def work() -> Checkpoint:
        with host.progress("loading", 1, "checkpoint") as advance:
            checkpoint = load_checkpoint(host.library.find(name), wanted, host.device(), lean=True)
            advance(1)
        return checkpoint

    return guarded(host, work, lambda: f"{name} does not fit; close other programs, or load it in fp16")


def embed(host: Host, clip_vision: ClipVision, images: torch.Tensor, preprocess: str) -> ImageEmbedding:
    """`embed_images` of images (N, H, W, 3) in [0, 1], on the host's device."""
    images = check_images(images)

    def work() -> ImageEmbedding:
        with (
            host.progress("embedding", images.shape[0], "image") as advance,
            host.on_device(clip_vision) as device,
        ):
            return embed_images(clip_vision, images, preprocess, device, advance)

    return guarded(host, work, lambda: "the CLIP encoder does not fit; close other programs, or load it in fp16")


def encode(host: Host, vae: Vae, images: torch.Tensor) -> torch.Tensor:
    """`encode_images` of images (N, H, W, 3): unscaled image latents (N, 4, h, w), on the host's device."""
    images = check_images(images)
    _, height, width, _ = images.shape
    need = encode_bytes(vae, height, width)

    def work() -> torch.Tensor:
        with host.progress("encoding", images.shape[0], "image") as advance, host.on_device(vae, need) as device:
            return encode_images(vae, images, device, advance, _spares_encoder(host, vae, height, width, device))

    return guarded(host, work, lambda: f"encoding {width}x{height} takes about {in_words(need)}; use a smaller size")


def _spares_encoder(host: Host, vae: Vae, height: int, width: int, device: torch.device) -> bool:
    """Whether activations must lie on the CPU for the encoder to fit. Says so."""
    need, free = encode_bytes(vae, height, width), host.free_memory(device)
    spare = device.type != "cpu" and vae.cuts_pictures and need > free
    logger.info("encoding: takes about %s, %s are free", in_words(need), in_words(free))
    if spare:
        least = encode_bytes(vae, height, width, spare=True)
        logger.info("encoding: activations lie on the CPU, which leaves about %s on the device", in_words(least))
    return spare


def sample(
    host: Host,
    model: SVDModel,
    sides: Sequence[tuple[Conditioning, Conditioning]],
    start: Start,
    curve: GuidanceCurve,
    sigmas: torch.Tensor,
    on_step: Callable[[int, Step], None] = lambda video, step: None,
) -> torch.Tensor:
    """Sample N videos one after the other, each as in its single run: (N, F, 4, h, w) float32 CPU unscaled latents.

    sides    (positive, negative) conditioning of each video
    sigmas   (steps + 1,) falling noise levels, or rising ones, which find the noise of a video
    on_step  called with the video's number and each of its steps; what it raises stops the work

    Raises SettingError for values that do not fit together, NonFiniteError for NaN or infinity in what it is given or
    makes, and what the host raises when it is stopped.
    """
    levels = check_walk(sigmas)
    check_input(start.latents, "the latent to sample")
    if start.batch_index is not None and len(sides) > 1:
        raise SettingError("a latent with batch_index must hold one video; sample the videos of the batch on their own")
    for positive, negative in sides:
        _check_latent_size(start.latents, positive.image_latent, "positive")
        _check_latent_size(start.latents, negative.image_latent, "negative")
        _check_embeds(model, positive.embeds, negative.embeds)
        for name, side in (("positive", positive), ("negative", negative)):
            check_input(side.embeds, f"the {name} conditioning", "numbers.conditioning")
            check_input(side.image_latent, f"the image latent of the {name} conditioning", "numbers.conditioning")
    if why_not(model.unet) is not None or any(side.embeds.shape[1] != 1 for pair in sides for side in pair):
        model.complete()
    size = _size_of(start.latents)
    need = denoise_bytes(model, *size)
    capacity = host.capacity(model)
    placement = place_weights(model, need, host.device(), capacity)

    def told() -> str:
        weights = sum(weight.nbytes for weight in model.module.parameters())
        return (
            f"sampling {size[0]} frames of {SCALE * size[2]}x{SCALE * size[1]} takes about "
            f"{in_words(placement.beside)} beside weights of {in_words(weights)}, and {in_words(capacity)} were there. "
            "Use fewer frames, a smaller size, or SVDModelOptions with memory = stream"
        )

    return guarded(host, lambda: _sampled(host, model, sides, start, curve, levels, placement, on_step), told)


def _sampled(
    host: Host,
    model: SVDModel,
    sides: Sequence[tuple[Conditioning, Conditioning]],
    start: Start,
    curve: GuidanceCurve,
    levels: torch.Tensor,
    placement: Placement,
    on_step: Callable[[int, Step], None],
) -> torch.Tensor:
    """`sample` of what fits together, with the weights where `placement` has them."""
    per_video = len(levels) - 1
    with (
        host.progress("sampling", per_video * len(sides), "step") as advance,
        (
            host.beside(model, placement.beside)
            if placement.stream
            else host.on_device(model, placement.beside, placement.after)
        ) as device,
    ):
        weights = curve.weights(start.latents.shape[1])
        videos = []
        for index, (positive, negative) in enumerate(sides):
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
            x = sample_euler(denoise, x, levels, _watcher(host, advance, index, per_video, on_step))
            videos.append(x.cpu() / model.scaling_factor)
    return torch.cat(videos)


def noised(model: SVDModel, start: Start, sigma: torch.Tensor) -> torch.Tensor:
    """What `sample` would start from at noise level sigma (): (N, F, 4, h, w) float32 CPU unscaled latents."""
    videos = [_starting_video(model, start, index, sigma) for index in range(len(start.latents))]
    return torch.cat(videos) / model.scaling_factor


def model_sigmas(model: SVDModel, steps: int) -> torch.Tensor:
    """The Karras schedule over the model's own noise range, (steps + 1,) float32."""
    return make_sigmas("karras", steps, model.sigma_min, model.sigma_max)


def decode(host: Host, vae: Vae, latents: torch.Tensor, mode: str, chunk_size: int, context: int) -> list[torch.Tensor]:
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
    may_shrink = mode == "windowed" and host.on_oom == "adapt"
    while True:
        windows = plan_windows(frames, chunk, around)
        work = functools.partial(_decoded, host, vae, latents, windows)
        told = functools.partial(decoding_needs, host, vae, windows, SCALE * height, SCALE * width)
        try:
            videos = guarded(host, work, told)
        except MemoryBudgetError:
            if not may_shrink or chunk == 1:
                raise
            chunk = max(1, min(chunk, frames) // 2)
            continue
        if may_shrink and chunk != chunk_size:
            host.note(
                Note(
                    "memory.smaller_windows",
                    f"memory ran out: decoded {chunk} frames at a time and not {chunk_size}, which gives other pixels",
                    {"chunk_size": chunk, "asked": chunk_size, "context": context},
                )
            )
        return videos


def decode_tiled(host: Host, vae: Vae, latents: torch.Tensor, tile: int, overlap: int) -> torch.Tensor:
    """`decode_in_tiles` of frames (F, 4, h, w), on the host's device: images (F, 8h, 8w, 3) float32 CPU in [0, 1].

    Frames with NaN or infinity in 16 bits are decoded once more in float32, which is noted. Raises as `decode` does.
    """
    check_input(latents, "the latent to decode")
    frames, _, height, width = latents.shape
    size = (1, SCALE * min(height, 2 * tile), SCALE * min(width, 2 * tile))
    need = decode_bytes(vae, *size)

    def work() -> torch.Tensor:
        lost: list[int] = []
        with host.progress("decoding", frames, "frame") as advance, host.on_device(vae, need) as device:
            on_lost = lost.append if vae.itemsize < 4 else None
            images = decode_in_tiles(vae, latents, tile, overlap, device, advance, on_lost)
        if lost:
            with _in_float32(host, vae, decode_bytes(vae, *size, itemsize=4), len(lost)) as (device, advance):
                images[lost] = decode_in_tiles(vae, latents[lost], tile, overlap, device, advance)
            _note_float32(host, [(0, Window(index, index + 1, index, index + 1)) for index in lost])
        return images

    return guarded(host, work, lambda: f"a tile takes about {in_words(need)}; use smaller tiles")


def _decoded(host: Host, vae: Vae, latents: torch.Tensor, windows: list[Window]) -> list[torch.Tensor]:
    """The images of N clips, those windows in float32 that the decoder's own precision cannot hold."""
    frames, height, width = _size_of(latents)
    need = decode_bytes(vae, largest(windows), SCALE * height, SCALE * width)
    lost: dict[tuple[int, Window], None] = {}
    videos = []
    with (
        host.progress("decoding", frames * len(latents), "frame") as advance,
        host.on_device(vae, need) as device,
    ):
        spare = spares(vae, windows, height, width, device, host.free_memory(device))
        is_short = vae.itemsize < 4
        for index, clip in enumerate(latents):

            def on_frames(done: int, before: int = index * frames) -> None:
                advance(before + done)

            def on_lost(window: Window, video: int = index) -> None:
                lost[video, window] = None

            call = functools.partial(
                decode_windows, vae, clip, windows, device, on_frames, on_lost=on_lost if is_short else None
            )
            videos.append(_with_less_memory(host, vae, call, spare))
    if lost:
        _decode_again(host, vae, latents, windows, list(lost), videos)
    return videos


def _with_less_memory(host: Host, vae: Vae, call: Callable[..., torch.Tensor], spare: bool) -> torch.Tensor:
    """One clip's images. When the device's memory does not suffice after all: again with less of it, the same bits."""
    try:
        return call(spare=spare)
    except torch.cuda.OutOfMemoryError:
        if spare or not vae.streams:
            raise
    logger.warning("the device's memory did not suffice for decoding: once more, with activations on the CPU")
    host.release()
    return call(spare=True)


def _decode_again(
    host: Host,
    vae: Vae,
    latents: torch.Tensor,
    windows: list[Window],
    lost: list[tuple[int, Window]],
    videos: list[torch.Tensor],
) -> None:
    """Decode windows (number of the video, window) in float32, and put their frames into the videos."""
    _, height, width = _size_of(latents)
    need = decode_bytes(vae, largest(windows), SCALE * height, SCALE * width, itemsize=4)
    with _in_float32(host, vae, need, sum(window.stop - window.start for _, window in lost)) as (device, advance):
        spare = spares(vae, windows, height, width, device, host.free_memory(device))
        done = 0
        for video, window in lost:
            count = window.stop - window.start

            def on_share(share: float, before: int = done, count: int = count) -> None:
                advance(before + int(share * count))

            images = decode_window(vae, latents[video], window, device, on_share, spare)
            videos[video][window.start : window.stop] = images
            done += count
            advance(done)
    _note_float32(host, lost)


@contextlib.contextmanager
def _in_float32(host: Host, vae: Vae, need: int, frames: int) -> Iterator[tuple[torch.device, Advance]]:
    """The device and its progress for decoding `frames` frames once more, with the decoder in float32."""
    logger.info("%d frames hold NaN or infinity in the decoder's precision: once more in float32", frames)
    with (
        host.progress("decoding", frames, "frame") as advance,
        host.on_device(vae, need + vae.float32_bytes) as device,
        vae.in_float32(),
    ):
        yield device, advance


def _note_float32(host: Host, lost: list[tuple[int, Window]]) -> None:
    frames = sum(window.stop - window.start for _, window in lost)
    host.note(
        Note(
            "numbers.float32",
            f"{frames} frames held NaN or infinity and were decoded once more in float32; with precision fp32 they are "
            "right at once",
            {"windows": [{"video": video, "frames": [window.start, window.stop]} for video, window in lost]},
        )
    )


def _watcher(
    host: Host, advance: Advance, index: int, per_video: int, on_step: Callable[[int, Step], None]
) -> Callable[[Step], None]:
    """Tells the host, and who asked for it, of each step of video `index`; the videos before it are done."""

    def watch(step: Step) -> None:
        advance(index * per_video + step.done)
        host.show(step.clean[0])
        on_step(index, step)

    return watch


def _size_of(latents: torch.Tensor) -> tuple[int, int, int]:
    """(F, h, w) of (N, F, 4, h, w)."""
    _, frames, _, height, width = latents.shape
    return frames, height, width


def _starting_video(model: SVDModel, start: Start, index: int, sigma: torch.Tensor) -> torch.Tensor:
    """Video `index` of the run at noise level sigma: (1, F, 4, h, w) float32 scaled latents."""
    latents = start.latents[index]
    frames, _, height, width = latents.shape
    noise = starting_noise(start.noise, seed_of(start.seed, index), frames, height, width, start.batch_index)
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
