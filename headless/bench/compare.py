"""The comparisons of `svd-stages bench`: a UNet step with guidance, decoding a clip, and both together."""

from __future__ import annotations

import contextlib
import copy
import functools
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ...svd_core.diffusion.conditioning import Conditioning, MicroConditioning
from ...svd_core.diffusion.denoiser import denoised_from_v, make_denoiser, precondition
from ...svd_core.diffusion.sampling import sample_euler
from ...svd_core.diffusion.schedules import make_sigmas
from ...svd_core.models import vae_decoder
from ...svd_core.models.components import SVDVae
from ...svd_core.models.options import ModelOptions
from ...svd_core.models.unet import COMPILED_STEP, COMPILERS, PreparedUNet
from .measuring import Result, Variant, measure
from .models import SIZES, build_unet, build_vae, empty_model, randomize
from .op_counter import Cost, count

logger = logging.getLogger(__name__)

STOCK, OURS = "diffusers", "ours"
STOCK_COMPILED, OURS_REGIONAL, OURS_COMPILED = "diffusers, compiled", "ours, pieces compiled", "ours, compiled"
SCALING = 0.18215
STEPS = 3
"""Steps of the short video. A usual video has 25, which are a larger part of its time."""


@dataclass(frozen=True)
class Bench:
    """Settings of the benchmark.

    Attributes:
        size: A key of `SIZES`: small or full.
        device: The computing device.
        dtype: The dtype of the weights.
        turns: Timed calls per variant.
        compiled: Also measure whole steps compiled by torch.compile, diffusers' and this package's.
        on_call: Called after each call of a variant.
    """

    size: str
    device: torch.device
    dtype: torch.dtype
    turns: int = 7
    compiled: bool = False
    on_call: Callable[[], None] = lambda: None

    def calls(self) -> int:
        """Return the number of calls of `on_call`."""
        return (1 + self.turns) * (7 + (2 if self.compiled else 0))


@torch.inference_mode()
def compare(bench: Bench) -> dict[str, dict[str, Result]]:
    """Run all comparisons: comparison -> variant -> result."""
    models = _Models(bench)
    comparisons = {
        "UNet, one step with guidance": models.step,
        "decoding the clip": models.decode,
        f"{STEPS} steps and decoding": models.video,
    }
    results = {}
    for name, run in comparisons.items():
        try:
            results[name] = run()
        except torch.cuda.OutOfMemoryError:
            logger.warning("%s: the reference does not fit into the device's memory", name)
    return results


class _Models:
    """A random UNet and VAE, each twice on the device, and random inputs. References are diffusers' in float32."""

    def __init__(self, bench: Bench) -> None:
        self._size, self._bench = SIZES[bench.size], bench
        self._unet, self._vae = randomize(build_unet(self._size), seed=0), randomize(build_vae(self._size), seed=1)
        self._stock_unet, self._our_unet = (copy.deepcopy(self._unet).to(bench.device, bench.dtype) for _ in range(2))
        self._stock_vae, self._our_vae = (copy.deepcopy(self._vae).to(bench.device, bench.dtype) for _ in range(2))
        size, generator = self._size, torch.Generator("cpu").manual_seed(2)
        shapes = ((1, size.frames, 4, size.height, size.width), (1, 4, size.height, size.width))
        self._x, image_latents, embeds = (
            torch.randn(shape, generator=generator) for shape in (*shapes, (1, 1, size.embedding_width))
        )
        positive = Conditioning(embeds, image_latents, MicroConditioning())
        negative = Conditioning(torch.zeros_like(embeds), torch.zeros_like(image_latents), positive.micro)
        self._sides = (positive, negative)
        self._guidance = torch.linspace(1.0, 3.0, size.frames)
        self._latents = self._x[0] / SCALING

    def _stock_denoiser(self, unet: Any) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        """Create a denoiser with both sides of guidance in one batch, as in diffusers' pipeline."""
        weight = next(unet.parameters())
        positive, negative = self._sides
        batch = (negative, positive)
        embeds = torch.cat([side.embeds for side in batch]).to(weight)
        image_latents = torch.cat([side.per_frame(self._size.frames) for side in batch]).to(weight)
        time_ids = torch.cat([side.micro.time_ids() for side in batch]).to(weight.device)
        guidance = self._guidance.to(weight.device).view(1, -1, 1, 1, 1)
        conditioning = {"encoder_hidden_states": embeds, "added_time_ids": time_ids, "return_dict": False}

        def denoise(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            scaled, c_noise = precondition(x, sigma)
            sample = torch.cat([scaled.to(weight).expand(2, -1, -1, -1, -1), image_latents], dim=2)
            v_negative, v_positive = unet(sample, c_noise.to(weight.device), **conditioning)[0].to(x.dtype).chunk(2)
            return denoised_from_v(x, v_negative + guidance * (v_positive - v_negative), sigma)

        return denoise

    def step(self) -> dict[str, Result]:
        sigma = torch.tensor(2.0)
        x = self._x.to(self._bench.device)

        def ours(compiled: str) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
            device, options = self._bench.device, ModelOptions(compile=compiled)
            return make_denoiser(self._our_unet, *self._sides, self._guidance, device, sigma[None], options=options)

        denoisers = {STOCK: self._stock_denoiser(self._stock_unet), OURS: ours("off"), OURS_REGIONAL: ours("regional")}
        if self._bench.compiled:
            denoisers[STOCK_COMPILED] = self._stock_denoiser(torch.compile(copy.deepcopy(self._stock_unet)))
            denoisers[OURS_COMPILED] = ours("full")
        variants = {name: functools.partial(denoise, x, sigma) for name, denoise in denoisers.items()}
        with _full_precision():
            reference = self._stock_denoiser(self._in_float32(self._unet))(x.float(), sigma)
        results = self._measure(variants, reference)
        regional = COMPILERS[self._bench.device.type == "cpu"]
        for name, compiler in ((OURS_REGIONAL, regional), (OURS_COMPILED, COMPILED_STEP)):
            if compiler.broken:
                results.pop(name, None)
        return results

    def decode(self) -> dict[str, Result]:
        latents = self._latents.to(self._bench.device)
        variants = {
            STOCK: lambda: _stock_decode(self._stock_vae, latents),
            OURS: lambda: SVDVae(self._our_vae).decode_clip(latents),
        }
        with _full_precision():
            reference = _stock_decode(self._in_float32(self._vae), latents)
        return self._measure(variants, reference)

    def video(self) -> dict[str, Result]:
        device, sigmas = self._bench.device, make_sigmas("karras", STEPS)
        noise = self._x.to(device) * sigmas[0]

        def stock(unet: Any, vae: Any, x: torch.Tensor) -> torch.Tensor:
            x = sample_euler(self._stock_denoiser(unet), x, sigmas)
            return _stock_decode(vae, x[0] / SCALING)

        def ours() -> torch.Tensor:
            denoise = make_denoiser(self._our_unet, *self._sides, self._guidance, device, sigmas[:-1])
            return SVDVae(self._our_vae).decode_clip(sample_euler(denoise, noise, sigmas)[0] / SCALING)

        with _full_precision():
            reference = stock(self._in_float32(self._unet), self._in_float32(self._vae), noise.float())
        return self._measure({STOCK: lambda: stock(self._stock_unet, self._stock_vae, noise), OURS: ours}, reference)

    def _in_float32(self, module: Any) -> Any:
        return copy.deepcopy(module).to(self._bench.device, torch.float32)

    def _measure(self, variants: dict[str, Variant], reference: torch.Tensor) -> dict[str, Result]:
        bench = self._bench
        return measure(variants, reference.double().cpu(), bench.device, bench.turns, bench.on_call)


@contextlib.contextmanager
def _full_precision() -> Iterator[None]:
    """Disable TF32, which rounds the factors of float32 products to 10 bits on NVIDIA GPUs."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def _stock_decode(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """Decode all frames in one call of diffusers' decoder."""
    weight = next(vae.decoder.parameters())
    indicator = torch.zeros((1, len(latents)), device=weight.device, dtype=weight.dtype)
    return vae.decoder(latents.to(weight), num_frames=len(latents), image_only_indicator=indicator)


def full_size_costs() -> dict[str, dict[str, Cost]]:
    """Count the costs of SVD-XT at 1024x576 in float16 from shapes: comparison -> variant -> cost. Needs no GPU."""
    size = SIZES["full"]
    unet, vae = (empty_model(build, size) for build in (build_unet, build_vae))
    empty = functools.partial(torch.empty, dtype=torch.float16, device="meta")
    latents, c_noise = empty(size.frames, 4, size.height, size.width), torch.tensor(0.0)
    embeds, time_ids = empty(1, 1, size.embedding_width), empty(1, 3)
    conditioning = {"encoder_hidden_states": embeds, "added_time_ids": time_ids, "return_dict": False}
    prepared = PreparedUNet(unet, embeds, latents, time_ids, c_noise[None])
    return {
        "UNet, one side of guidance": {
            STOCK: count(lambda: unet(torch.cat([latents, latents], dim=1)[None], empty(()), **conditioning)),
            OURS: count(lambda: prepared(latents, c_noise)),
        },
        "decoding the clip": {
            STOCK: count(lambda: _stock_decode(vae, latents)),
            OURS: count(lambda: vae_decoder.decode(vae.decoder, latents)),
        },
    }
