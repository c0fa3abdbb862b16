"""The stages with the host around them: where the module lives meanwhile, progress, being stopped.

The mathematics is in the modules these call; here is only who owns memory and who is told how far it is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from .augment import seed_of
from .checkpoint.library import EMBEDDED
from .checkpoint.parts import Checkpoint, ClipVision, SVDModel, Vae
from .conditioning import Conditioning
from .decode import MODES, SCALE, Window, decode_windows, largest, plan_windows, spares
from .denoise import make_denoiser
from .encode import ImageEmbedding, embed_images, encode_images
from .errors import SettingError
from .fuse.rewrites import why_not
from .guidance import GuidanceCurve
from .host import Advance, Host
from .images import check_images
from .memory import decode_bytes, denoise_bytes, encode_bytes, in_words, place_weights
from .sample import Step, sample_euler, starting_noise, starting_point
from .schedule import check_walk, make_sigmas
from .tiles import decode_in_tiles

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
    Raises CheckpointError for an unknown name or a file that is not what it should be.
    """
    wanted = host.precision if precision == "auto" else precision
    if name == EMBEDDED:
        logger.warning(
            "%s is small and knows only drawn rockets, balls and fish; for photographs name a real SVD checkpoint.",
            name,
        )
    from .checkpoint.load import load_checkpoint

    with host.progress("loading", 1, "checkpoint") as advance:
        checkpoint = load_checkpoint(host.library.find(name), wanted, host.device(), lean=True)
        advance(1)
    return checkpoint


def embed(host: Host, clip_vision: ClipVision, images: torch.Tensor, preprocess: str) -> ImageEmbedding:
    """`embed_images` of images (N, H, W, 3) in [0, 1], on the host's device."""
    images = check_images(images)
    with (
        host.progress("embedding", images.shape[0], "image") as advance,
        host.on_device(clip_vision) as device,
    ):
        return embed_images(clip_vision, images, preprocess, device, advance)


def encode(host: Host, vae: Vae, images: torch.Tensor) -> torch.Tensor:
    """`encode_images` of images (N, H, W, 3): unscaled image latents (N, 4, h, w), on the host's device."""
    images = check_images(images)
    _, height, width, _ = images.shape
    need = encode_bytes(vae, height, width)
    with host.progress("encoding", images.shape[0], "image") as advance, host.on_device(vae, need) as device:
        free = host.free_memory(device)
        spare = device.type != "cpu" and vae.cuts_pictures and need > free
        logger.info("encoding: takes about %s, %s are free", in_words(need), in_words(free))
        if spare:
            least = encode_bytes(vae, height, width, spare=True)
            logger.info("encoding: activations lie on the CPU, which leaves about %s on the device", in_words(least))
        return encode_images(vae, images, device, advance, spare)


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

    Raises SettingError for values that do not fit together, and what the host raises when it is stopped.
    """
    levels = check_walk(sigmas)
    if start.batch_index is not None and len(sides) > 1:
        raise SettingError("a latent with batch_index must hold one video; sample the videos of the batch on their own")
    for positive, negative in sides:
        _check_latent_size(start.latents, positive.image_latent, "positive")
        _check_latent_size(start.latents, negative.image_latent, "negative")
        _check_embeds(model, positive.embeds, negative.embeds)
    if why_not(model.unet) is not None or any(side.embeds.shape[1] != 1 for pair in sides for side in pair):
        model.complete()
    per_video = len(levels) - 1
    need = denoise_bytes(model, *_size_of(start.latents))
    placement = place_weights(model, need, host.device(), host.capacity(model))
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
    window never spans two videos. Raises MemoryBudgetError when exact does not fit, SettingError for an unknown mode.
    """
    if mode not in MODES:
        raise SettingError(f'mode must be one of {", ".join(MODES)}, got "{mode}"')
    frames, height, width = _size_of(latents)
    windows = plan_windows(frames, frames, 0) if mode == "exact" else plan_windows(frames, chunk_size, context)
    need = decode_bytes(vae, largest(windows), SCALE * height, SCALE * width)
    videos = []
    with (
        host.progress("decoding", frames * len(latents), "frame") as advance,
        host.on_device(vae, need) as device,
    ):
        spare = spares(vae, windows, height, width, device, host.free_memory(device))
        for index, clip in enumerate(latents):

            def on_frames(done: int, before: int = index * frames) -> None:
                advance(before + done)

            videos.append(_decoded(vae, clip, windows, device, on_frames, spare))
    return videos


def decode_tiled(host: Host, vae: Vae, latents: torch.Tensor, tile: int, overlap: int) -> torch.Tensor:
    """`decode_in_tiles` of frames (F, 4, h, w), on the host's device: images (F, 8h, 8w, 3) float32 CPU in [0, 1]."""
    frames, _, height, width = latents.shape
    need = decode_bytes(vae, 1, SCALE * min(height, 2 * tile), SCALE * min(width, 2 * tile))
    with host.progress("decoding", frames, "frame") as advance, host.on_device(vae, need) as device:
        return decode_in_tiles(vae, latents, tile, overlap, device, advance)


def _decoded(
    vae: Vae,
    clip: torch.Tensor,
    windows: list[Window],
    device: torch.device,
    on_frames: Callable[[int], None],
    spare: bool,
) -> torch.Tensor:
    """One clip's images. When the device's memory does not suffice after all: again with less of it, the same bits."""
    try:
        return decode_windows(vae, clip, windows, device, on_frames, spare)
    except torch.cuda.OutOfMemoryError:
        if spare or not vae.streams:
            raise
    logger.warning("the device's memory did not suffice for decoding: once more, with activations on the CPU")
    torch.cuda.empty_cache()
    return decode_windows(vae, clip, windows, device, on_frames, spare=True)


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
