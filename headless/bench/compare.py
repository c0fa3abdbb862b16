"""The comparisons of `svd-stages bench`: a step of the UNet with guidance, decoding a clip, and the two together."""

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
from ...svd_core.models import vae_decoder as streaming
from ...svd_core.models.components import SVDVae
from ...svd_core.models.optimizations import ALL
from ...svd_core.models.options import ModelOptions
from ...svd_core.models.unet import COMPILED_STEP, COMPILERS, PreparedUNet
from .measuring import Result, measure
from .models import SIZES, Size, build_unet, build_vae, drawn, empty_model, size_of
from .op_counter import Cost, count

logger = logging.getLogger(__name__)

STOCK, OURS = "diffusers", "ours"
STOCK_WHOLE, OURS_REGIONAL, OURS_WHOLE = "diffusers, compiled", "ours, pieces compiled", "ours, compiled"
SCALING = 0.18215
STEPS = 3
"""Of the short video; a whole one has 25 and spends a larger part of its time in them."""


@dataclass(frozen=True)
class Bench:
    """What to measure.

    size       small or full
    dtype      what the weights are in
    turns      how often each way is timed
    compiled   whether whole steps through torch.compile take part, diffusers' and ours
    on_call    called after each call of anything
    """

    size: str
    device: torch.device
    dtype: torch.dtype
    turns: int = 7
    compiled: bool = False
    on_call: Callable[[], None] = lambda: None

    def calls(self) -> int:
        """How often `on_call` will be called."""
        return (1 + self.turns) * (7 + (2 if self.compiled else 0))


@torch.inference_mode()
def compare(bench: Bench) -> dict[str, dict[str, Result]]:
    """Comparison -> way -> result."""
    size = size_of(bench.size)
    problem = _Problem(size, bench)
    comparisons = {
        "UNet, one step with guidance": problem.step,
        "decoding the clip": problem.decode,
        f"{STEPS} steps and decoding": problem.video,
    }
    measured = {}
    for name, measure_it in comparisons.items():
        try:
            measured[name] = measure_it()
        except torch.cuda.OutOfMemoryError:
            logger.warning("%s: the reference does not fit into the device's memory", name)
    return measured


class _Problem:
    """One random model in two copies, stock's and ours, and a random question. References are diffusers' in float32."""

    def __init__(self, size: Size, bench: Bench) -> None:
        self._size, self._bench = size, bench
        self._unet, self._vae = drawn(build_unet(size), seed=0), drawn(build_vae(size), seed=1)
        where: dict[str, Any] = {"device": bench.device, "dtype": bench.dtype}
        self._their_unet, self._our_unet = (copy.deepcopy(self._unet).to(**where) for _ in range(2))
        self._their_vae, self._our_vae = (copy.deepcopy(self._vae).to(**where) for _ in range(2))
        generator = torch.Generator("cpu").manual_seed(2)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator)

        self._x = normal(1, size.frames, 4, size.height, size.width)
        picture = normal(1, 4, size.height, size.width)
        positive = Conditioning(normal(1, 1, size.context_width), picture, MicroConditioning())
        negative = Conditioning(torch.zeros_like(positive.embeds), torch.zeros_like(picture), positive.micro)
        self._sides = (positive, negative)
        self._weights = torch.linspace(1.0, 3.0, size.frames)
        self._latents = self._x[0] / SCALING

    def _stock_denoiser(self, unet: Any) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        """Both sides in one call, as diffusers' pipeline does it."""
        weight = next(unet.parameters())
        positive, negative = self._sides
        frames, pair = self._size.frames, (negative, positive)
        embeds = torch.cat([side.embeds for side in pair]).to(weight)
        pictures = torch.cat([side.per_frame(frames) for side in pair]).to(weight)
        time_ids = torch.cat([side.micro.time_ids() for side in pair]).to(weight.device)
        weights = self._weights.to(weight.device).view(1, -1, 1, 1, 1)

        def denoise(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            scaled, c_noise = precondition(x, sigma)
            sample = torch.cat([scaled.to(weight).expand(2, -1, -1, -1, -1), pictures], dim=2)
            told = {"encoder_hidden_states": embeds, "added_time_ids": time_ids, "return_dict": False}
            v_negative, v_positive = unet(sample, c_noise.to(weight.device), **told)[0].to(x.dtype).chunk(2)
            return denoised_from_v(x, v_negative + weights * (v_positive - v_negative), sigma)

        return denoise

    def step(self) -> dict[str, Result]:
        sigma = torch.tensor(2.0)
        x = self._x.to(self._bench.device)
        stock = self._stock_denoiser(self._their_unet)

        def ours(compiled: str) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
            device, options = self._bench.device, ModelOptions(compile=compiled)
            return make_denoiser(self._our_unet, *self._sides, self._weights, device, sigma[None], options=options)

        denoisers = {STOCK: stock, OURS: ours("off"), OURS_REGIONAL: ours("regional")}
        if self._bench.compiled:
            denoisers[STOCK_WHOLE] = self._stock_denoiser(torch.compile(copy.deepcopy(self._their_unet)))
            denoisers[OURS_WHOLE] = ours("full")
        ways = {name: functools.partial(denoise, x, sigma) for name, denoise in denoisers.items()}
        with _full_precision():
            truth = self._stock_denoiser(self._in_float32(self._unet))(x.float(), sigma)
        measured = self._measure(ways, truth)
        for name, program in (
            (OURS_REGIONAL, COMPILERS[self._bench.device.type == "cpu"]),
            (OURS_WHOLE, COMPILED_STEP),
        ):
            if program.broken:
                measured.pop(name, None)
        return measured

    def decode(self) -> dict[str, Result]:
        latents = self._latents.to(self._bench.device)
        ways = {
            STOCK: lambda: _stock_decode(self._their_vae, latents),
            OURS: lambda: SVDVae(self._our_vae).decode_clip(latents),
        }
        with _full_precision():
            truth = _stock_decode(self._in_float32(self._vae), latents)
        return self._measure(ways, truth)

    def video(self) -> dict[str, Result]:
        device, sigmas = self._bench.device, make_sigmas("karras", STEPS)
        noise = self._x.to(device) * sigmas[0]

        def stock(unet: Any, vae: Any, x: torch.Tensor) -> torch.Tensor:
            x = sample_euler(self._stock_denoiser(unet), x, sigmas)
            return _stock_decode(vae, x[0] / SCALING)

        def ours() -> torch.Tensor:
            denoise = make_denoiser(self._our_unet, *self._sides, self._weights, device, sigmas[:-1])
            return SVDVae(self._our_vae).decode_clip(sample_euler(denoise, noise, sigmas)[0] / SCALING)

        with _full_precision():
            truth = stock(self._in_float32(self._unet), self._in_float32(self._vae), noise.float())
        return self._measure({STOCK: lambda: stock(self._their_unet, self._their_vae, noise), OURS: ours}, truth)

    def _in_float32(self, module: Any) -> Any:
        return copy.deepcopy(module).to(self._bench.device, torch.float32)

    def _measure(self, ways: dict[str, Callable[[], torch.Tensor]], truth: torch.Tensor) -> dict[str, Result]:
        bench = self._bench
        return measure(ways, truth.double().cpu(), bench.device, bench.turns, bench.on_call)


@contextlib.contextmanager
def _full_precision() -> Iterator[None]:
    """Within, float32 is float32: cards would round products to ten bits, as fp16 has."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def _stock_decode(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """All frames in one call of diffusers' decoder."""
    weight = next(vae.decoder.parameters())
    indicator = torch.zeros((1, len(latents)), device=weight.device, dtype=weight.dtype)
    return vae.decoder(latents.to(weight), num_frames=len(latents), image_only_indicator=indicator)


def full_size_costs() -> dict[str, dict[str, Cost]]:
    """What SVD-XT at 1024x576 costs by its shapes, fp16: comparison -> way -> cost. Needs no GPU and no memory."""
    size, meta = SIZES["full"], torch.device("meta")
    unet, vae = (empty_model(build, size) for build in (build_unet, build_vae))

    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.float16, device=meta)

    clip, level = empty(size.frames, 4, size.height, size.width), torch.tensor(0.0)
    embeds, time_ids = empty(1, 1, size.context_width), empty(1, 3)
    told = {"encoder_hidden_states": embeds, "added_time_ids": time_ids, "return_dict": False}
    prepared = PreparedUNet(unet, embeds, clip, time_ids, level[None], ALL)
    return {
        "UNet, one side of guidance": {
            STOCK: count(lambda: unet(torch.cat([clip, clip], dim=1)[None], empty(), **told)),
            OURS: count(lambda: prepared(clip, level)),
        },
        "decoding the clip": {
            STOCK: count(lambda: _stock_decode(vae, clip)),
            OURS: count(lambda: streaming.decode(vae.decoder, clip, meta)),
        },
    }
