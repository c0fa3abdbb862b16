"""The models, inputs and timings that the rows of `svd-stages bench --card` share."""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch

from ...svd_core.models.options import Activations
from ...svd_core.models.unet import COMPILERS
from ...svd_core.runtime.device_errors import is_memory_error
from .compare import STOCK
from .inputs import SIGMA, Inputs, stock_decode
from .measuring import Variant, measure, repeat
from .models import SIZES, Size, build_unet, build_vae, empty_model, random_model
from .op_counter import count

BUILDERS: dict[str, tuple[Callable[[Size], Any], int]] = {
    "stock UNet": (build_unet, 0),
    "UNet": (build_unet, 0),
    "stock VAE": (build_vae, 1),
    "VAE": (build_vae, 1),
}
"""Model -> how it is built, and the seed of its weights. This package changes the memory order of weights: diffusers'
models have their own."""


class NotMeasured(Exception):
    """A row has nothing to measure on this machine. The text says why."""


COMPARED = ("faster", "faster_least", "faster_most", "difference")
"""Values of a row that another computation was measured for."""


class Card:
    """A device, and random models that are on it while a row needs them.

    Args:
        device: The computing device.
        dtype: The dtype of the models.
        size: A key of `SIZES`.
        turns: Most timed turns of a row.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype, size: str, turns: int) -> None:
        self.device, self.dtype, self.size, self.turns = device, dtype, SIZES[size], turns
        self._models: dict[str, Any] = {}

    @property
    def is_cuda(self) -> bool:
        """True on an NVIDIA or AMD GPU."""
        return self.device.type == "cuda"

    @functools.cached_property
    def inputs(self) -> Inputs:
        """Random inputs of the size."""
        return Inputs(self.size, self.device)

    def use(self, *names: str) -> tuple[Any, ...]:
        """Return these models on the device, after all others were moved to the CPU."""
        for name, model in self._models.items():
            if name not in names:
                model.to("cpu")
        self.free_cache()
        for name in names:
            if name not in self._models:
                self._models[name] = self.new_model(name)
        return tuple(self._models[name].to(self.device) for name in names)

    def use_one(self, name: str) -> Any:
        """Return one model on the device, after all others were moved to the CPU."""
        (model,) = self.use(name)
        return model

    def new_model(self, name: str) -> Any:
        """Create a model that no other row uses, on the device."""
        build, seed = BUILDERS[name]
        return random_model(build, self.size, seed, self.device, self.dtype)

    def on_cpu(self, name: str) -> Any:
        """Return one model on the CPU, after all models were moved there."""
        model = self.use_one(name).to("cpu")
        self.free_cache()
        return model

    def forget_models(self) -> None:
        """Drop all models. Rows that follow create them again."""
        self._models.clear()
        self.free_cache()

    def free_cache(self) -> None:
        """Free memory that nothing uses."""
        gc.collect()
        if self.is_cuda:
            torch.cuda.empty_cache()

    @property
    def activations(self) -> Activations:
        """The place of the decoder's activations if all memory of the device may be used."""
        return "recompute" if self.device.type == "cpu" else "keep"

    def stock_step(self, unet: Any) -> Variant:
        """Return a step of diffusers with guidance."""
        return functools.partial(self.inputs.stock_denoiser(unet), self.inputs.x, SIGMA)

    def our_step(self, unet: Any, **options: Any) -> Variant:
        """Return a step of this package with guidance. `options`: those of `Inputs.our_denoiser`."""
        return functools.partial(self.inputs.our_denoiser(unet, **options), self.inputs.x, SIGMA)

    @functools.cached_property
    def step_flops(self) -> int:
        """FLOPs of a step of diffusers: both sides of guidance."""
        size = self.size
        unet, empty = empty_model(build_unet, size), functools.partial(torch.empty, dtype=torch.half, device="meta")
        sample, embeds = empty(1, size.frames, 8, size.height, size.width), empty(1, 1, size.embedding_width)
        inputs = {"encoder_hidden_states": embeds, "added_time_ids": empty(1, 3), "return_dict": False}
        return 2 * count(lambda: unet(sample, empty(()), **inputs)).flops

    @functools.cached_property
    def decode_flops(self) -> int:
        """FLOPs of diffusers' decoder on the clip."""
        size, vae = self.size, empty_model(build_vae, self.size)
        latents = torch.empty((size.frames, 4, size.height, size.width), dtype=torch.half, device="meta")
        return count(lambda: stock_decode(vae, latents)).flops

    def time(self, variant: Callable[[], object], flops: int = 0, moved: int = 0) -> dict[str, Any]:
        """Time a computation of `flops` that moves so many bytes: the fields of `Timing`, and the rates."""
        fields: dict[str, Any] = asdict(repeat(variant, self.device, self.turns))
        return fields | rates(fields["seconds"], flops, moved)

    def compare(
        self, stock: Variant, variant: Variant, flops: int = 0, name: str = STOCK, calls: int = 1
    ) -> dict[str, Any]:
        """Time a variant in turns with another one, diffusers' by default: the fields of `Result`, and `difference`.

        Each turn has so many `calls`: short computations need several.
        If the other one does not fit into memory, the variant is timed alone.
        """
        notes: list[str] = []

        def note(failed: str, error: Exception) -> None:
            if failed == "variant" or not is_memory_error(error):
                raise error
            notes.append(f"{name} does not fit into memory")

        variants = {"reference": _repeated(stock, calls), "variant": _repeated(variant, calls)}
        fields: dict[str, Any] = asdict(measure(variants, None, self.device, self.turns, on_failure=note)["variant"])
        fields |= {each: fields[each] / calls for each in ("seconds", "first")}
        fields |= {"calls": calls, "difference": fields.pop("error")}
        if notes:
            fields = {each: value for each, value in fields.items() if each not in COMPARED} | {"note": notes[0]}
        return fields | rates(fields["seconds"], flops)


def _repeated(variant: Variant, calls: int) -> Variant:
    def repeated() -> torch.Tensor:
        for _ in range(calls - 1):
            variant()
        return variant()

    return repeated


def fail_if_broken(device: torch.device) -> None:
    """Raise RuntimeError if torch.compile failed: what was called compiled ran eagerly."""
    if COMPILERS[device.type == "cpu"].broken:
        raise RuntimeError("torch.compile failed, see the warning")


def rates(seconds: float, flops: int = 0, moved: int = 0) -> dict[str, float]:
    """Return TFLOP/s and GB/s, those that are known."""
    known = {"tflop_per_s": flops / seconds / 1e12, "gb_per_s": moved / seconds / 1e9}
    return {name: rate for name, rate in known.items() if rate}
