"""The comparisons of `svd-stages bench`: a UNet step with guidance, decoding a clip, a video."""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools
import logging
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from ...svd_core.diffusion.denoiser import Denoiser
from ...svd_core.models import vae_decoder
from ...svd_core.models.components import SVDVae
from ...svd_core.models.options import ModelOptions
from ...svd_core.models.step_cache import StepCache
from ...svd_core.models.unet import COMPILED_STEP, COMPILERS, PreparedUNet
from ...svd_core.pipeline import VideoSettings, image_to_video
from ...svd_core.runtime.device_errors import is_memory_error
from ...svd_core.runtime.runtime import LocalRuntime
from ...svd_core.utils.progress import Progress
from .inputs import SIGMA, Inputs, stock_decode
from .measuring import FAILURES, Result, Variant, first_line, measure
from .models import (
    SIZES,
    Size,
    build_clip,
    build_unet,
    build_vae,
    empty_model,
    make_checkpoint,
    randomize,
    stock_pipeline,
)
from .op_counter import Cost, count

logger = logging.getLogger(__name__)

STOCK, OURS = "diffusers", "ours"
STOCK_COMPILED, OURS_REGIONAL, OURS_COMPILED = "diffusers, compiled", "ours, pieces compiled", "ours, compiled"
INTERVAL = 3
CACHED = f"ours, step cache {INTERVAL}"
STEPS = 3
"""Steps of the short video. A usual video has 25, which are a larger part of its time."""
COMPARISONS = {
    "step": "UNet, one step with guidance",
    "cache": f"UNet, {INTERVAL} steps with guidance",
    "decode": "decoding the clip",
    "video": f"image to video, {STEPS} steps",
}
"""Part -> title."""


@dataclass(frozen=True)
class Bench:
    """Settings of the benchmark.

    Attributes:
        size: A key of `SIZES`: small or full.
        device: The computing device.
        dtype: The dtype of the weights.
        turns: Most timed calls per variant.
        compiled: Also measure whole steps compiled by torch.compile, diffusers' and this package's.
        parts: Keys of COMPARISONS, and counted.
        progress: Shows the calls of a comparison.
    """

    size: str
    device: torch.device
    dtype: torch.dtype
    turns: int
    compiled: bool
    parts: Collection[str]
    progress: Progress


Comparison = tuple[str, dict[str, Result]]
"""A title, and the results of the variants."""


@torch.inference_mode()
def compare(bench: Bench) -> Iterator[Comparison]:
    """Run the comparisons one after the other."""
    parts = [part for part in COMPARISONS if part in bench.parts]
    models = _Models(bench) if parts else None
    for part in parts:
        try:
            yield COMPARISONS[part], getattr(models, part)()
        except FAILURES as error:
            logger.warning("%s was not measured: %s", COMPARISONS[part], first_line(error))


class _Models:
    """Random models, each twice on the device, and random inputs. References are diffusers' in float32."""

    def __init__(self, bench: Bench) -> None:
        self._size, self._bench = SIZES[bench.size], bench
        modules = [randomize(build(self._size), seed) for seed, build in enumerate((build_unet, build_vae, build_clip))]
        self._modules = self._unet, self._vae, _ = modules
        self._stock = self._stock_unet, self._stock_vae, _ = self._copy_all(bench.dtype)
        self._ours = self._our_unet, self._our_vae, _ = self._copy_all(bench.dtype)
        self._inputs = Inputs(self._size, bench.device)

    def _copy_all(self, dtype: torch.dtype) -> list[Any]:
        return [copy.deepcopy(each).to(self._bench.device, dtype) for each in self._modules]

    def _reference(self, stock: Variant, ours: Variant) -> torch.Tensor:
        """Compute the reference by diffusers in float32, or if that does not fit, by this package in less memory."""
        with _full_precision():
            try:
                return stock()
            except (MemoryError, RuntimeError) as error:
                if not is_memory_error(error):
                    raise
            logger.warning("diffusers' float32 does not fit: errors are measured against this package's float32")
            if self._bench.device.type == "cuda":
                torch.cuda.empty_cache()
            return ours()

    def step(self) -> dict[str, Result]:
        x, inputs = self._inputs.x, self._inputs

        def ours(compiled: str) -> Denoiser:
            return inputs.our_denoiser(self._our_unet, ModelOptions(compile=compiled))

        stock = inputs.stock_denoiser(self._stock_unet)
        denoisers = {STOCK: stock, OURS: ours("off"), OURS_REGIONAL: ours("regional")}
        if self._bench.compiled:
            denoisers[STOCK_COMPILED] = inputs.stock_denoiser(torch.compile(copy.deepcopy(self._stock_unet)))
            denoisers[OURS_COMPILED] = ours("full")
        variants = {name: functools.partial(denoise, x, SIGMA) for name, denoise in denoisers.items()}
        reference = self._reference(
            lambda: inputs.stock_denoiser(self._in_float32(self._unet))(x, SIGMA),
            lambda: inputs.our_denoiser(self._unet, stream=True)(x, SIGMA),
        )
        results = self._measure("step", variants, reference)
        regional = COMPILERS[self._bench.device.type == "cpu"]
        for name, compiler in ((OURS_REGIONAL, regional), (OURS_COMPILED, COMPILED_STEP)):
            if compiler.broken:
                results.pop(name, None)
        return results

    def cache(self) -> dict[str, Result]:
        """Make INTERVAL steps, all of them whole or only the first. The input is the same, and so is the result."""
        x, caches = self._inputs.x, {OURS: None, CACHED: StepCache(INTERVAL)}
        denoisers = {name: self._inputs.our_denoiser(self._our_unet, step_cache=each) for name, each in caches.items()}
        variants = {name: functools.partial(_last_of_calls, denoise, x) for name, denoise in denoisers.items()}
        return self._measure("cache", variants, self._inputs.our_denoiser(self._our_unet)(x, SIGMA))

    def decode(self) -> dict[str, Result]:
        latents = self._inputs.latents
        variants = {
            STOCK: lambda: stock_decode(self._stock_vae, latents),
            OURS: lambda: SVDVae(self._our_vae).decode_clip(latents),
        }
        reference = self._reference(
            lambda: stock_decode(self._in_float32(self._vae), latents),
            lambda: SVDVae(self._in_float32(self._vae)).decode_clip(latents, "offload"),
        )
        return self._measure("decode", variants, reference)

    def video(self) -> dict[str, Result]:
        """Make a video from an image by diffusers' pipeline, and by this package's."""
        width, height = 8 * self._size.width, 8 * self._size.height
        settings = VideoSettings(width=width, height=height, steps=STEPS, fit="stretch")
        runtime = LocalRuntime(device_name=str(self._bench.device))

        def stock(modules: Any) -> torch.Tensor:
            size = {"width": width, "height": height, "num_frames": self._size.frames}
            calls = {"num_inference_steps": STEPS, "decode_chunk_size": self._size.frames, "output_type": "pt"}
            generator = torch.Generator("cpu").manual_seed(settings.seed)
            image = Image.fromarray(self._inputs.image.numpy())
            return stock_pipeline(*modules)(image, **size, **calls, generator=generator).frames[0].permute(0, 2, 3, 1)

        def ours(modules: Any) -> torch.Tensor:
            checkpoint = make_checkpoint(*modules, size=self._size)
            return image_to_video(checkpoint, self._inputs.image[None] / 255, settings, runtime)[0]

        reference = self._reference(
            lambda: stock(self._copy_all(torch.float32)), lambda: ours(copy.deepcopy(self._modules))
        )
        return self._measure("video", {STOCK: lambda: stock(self._stock), OURS: lambda: ours(self._ours)}, reference)

    def _in_float32(self, module: Any) -> Any:
        return copy.deepcopy(module).to(self._bench.device, torch.float32)

    def _measure(self, part: str, variants: dict[str, Variant], reference: torch.Tensor) -> dict[str, Result]:
        bench, calls = self._bench, itertools.count(1)
        total = (1 + bench.turns) * len(variants)
        with bench.progress(part, total, "call") as advance:
            exact = reference.double().cpu()
            results = measure(variants, exact, bench.device, bench.turns, lambda: advance(next(calls)))
            advance(total)
        return results


def _last_of_calls(denoise: Denoiser, x: torch.Tensor) -> torch.Tensor:
    return [denoise(x, SIGMA) for _ in range(INTERVAL)][-1]


@contextlib.contextmanager
def _full_precision() -> Iterator[None]:
    """Disable TF32, which rounds the factors of float32 products to 10 bits on NVIDIA GPUs."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def count_full_size(bench: Bench) -> Iterator[tuple[str, dict[str, Cost]]]:
    """Count costs in float16 from shapes, if `counted` is a part: title, variant -> cost.

    They are those of SVD-XT at 1024x576, and, for calls with the step cache, of the size that is measured.
    """
    if "counted" not in bench.parts:
        return
    size = SIZES["full"]
    unet, vae = (empty_model(build, size) for build in (build_unet, build_vae))
    latents, embeds, time_ids, c_noise = _empty_inputs(size)
    conditioning = {"encoder_hidden_states": embeds, "added_time_ids": time_ids, "return_dict": False}
    timestep, prepared = latents.new_empty(()), PreparedUNet(unet, embeds, latents, time_ids, c_noise[None])
    yield (
        "UNet, one side of guidance",
        {
            STOCK: count(lambda: unet(torch.cat([latents, latents], dim=1)[None], timestep, **conditioning)),
            OURS: count(lambda: prepared(latents, c_noise)),
        },
    )
    yield (
        COMPARISONS["decode"],
        {
            STOCK: count(lambda: stock_decode(vae, latents)),
            OURS: count(lambda: vae_decoder.decode(vae.decoder, latents)),
        },
    )
    yield f"{INTERVAL} UNet calls, one side of guidance, the measured size", _count_cached(SIZES[bench.size])


def _empty_inputs(size: Size) -> tuple[torch.Tensor, ...]:
    """Return latents, embeds and time_ids on the meta device, and a c_noise."""
    empty = functools.partial(torch.empty, dtype=torch.float16, device="meta")
    latents, embeds = empty(size.frames, 4, size.height, size.width), empty(1, 1, size.embedding_width)
    return latents, embeds, empty(1, 3), torch.tensor(0.0)


def _count_cached(size: Size) -> dict[str, Cost]:
    """Count INTERVAL calls, all of them whole or only the first."""
    unet = empty_model(build_unet, size)
    latents, embeds, time_ids, c_noise = _empty_inputs(size)

    def cost(step_cache: StepCache | None) -> Cost:
        prepared = PreparedUNet(unet, embeds, latents, time_ids, c_noise[None], step_cache=step_cache)
        return count(lambda: [prepared(latents, c_noise) for _ in range(INTERVAL)])

    return {OURS: cost(None), CACHED: cost(StepCache(INTERVAL))}
