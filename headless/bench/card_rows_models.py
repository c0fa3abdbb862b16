"""Rows of `svd-stages bench --card` that run whole models: steps, decoding, streamed weights, memory, a profile."""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch

from ...svd_core import execution
from ...svd_core.diffusion.guidance import GuidanceCurve
from ...svd_core.models import layers
from ...svd_core.models import unet as unet_module
from ...svd_core.models.compile import RegionalCompiler
from ...svd_core.models.components import SVDVae
from ...svd_core.models.options import Activations, ModelOptions
from ...svd_core.models.weight_streaming import PRECOMPUTED_MODULES, iter_parameters, pin_weights
from ...svd_core.runtime.memory import parse_bytes
from ...svd_core.runtime.runtime import LocalRuntime
from .card_models import Card, fail_if_broken
from .inputs import SCALING, stock_decode
from .measuring import timed
from .models import make_model

AUTOTUNED = "max-autotune-no-cudagraphs"
SIGMAS = torch.tensor([2.0, 1.0, 0.0])
"""The noise levels of the two steps whose memory is measured. Weights are prefetched from the second step on."""
PLANNERS = ("runtime.memory", "runtime.runtime", "autoencoder.decode", "execution", "models.weight_streaming")
"""Loggers of svd_core that say the plan of a stage."""
PROFILED = 15
"""Lines of a profile."""


def step_stock(card: Card) -> dict[str, Any]:
    """Time a step of diffusers."""
    return card.time(card.stock_step(card.use_one("stock UNet")), card.step_flops)


def step_stock_channels_last(card: Card) -> dict[str, Any]:
    """Time a step of diffusers with weights in channels-last memory format."""
    stock = card.use_one("stock UNet")
    converted = copy.deepcopy(stock)
    layers.to_channels_last(converted)
    return card.compare(card.stock_step(stock), card.stock_step(converted), card.step_flops)


def step_ours(card: Card, options: ModelOptions) -> dict[str, Any]:
    """Time a step of this package."""
    stock, unet = card.use("stock UNet", "UNet")
    fields = card.compare(card.stock_step(stock), card.our_step(unet, options=options), card.step_flops)
    if options.compile == "regional":
        fail_if_broken(card.device)
    return fields


def step_autotuned(card: Card) -> dict[str, Any]:
    """Time a step of this package whose compiled blocks are tuned for the size of the video."""
    channel_dims = layers.COMPILABLE_OFF_CPU if card.is_cuda else layers.COMPILABLE
    compiler = RegionalCompiler(channel_dims, mode=AUTOTUNED)
    with _replaced_item(unet_module.COMPILERS, card.device.type == "cpu", compiler):
        return step_ours(card, ModelOptions(compile="regional"))


def step_stock_compiled(card: Card) -> dict[str, Any]:
    """Time a step of diffusers, compiled as a whole by torch.compile."""
    stock = card.use_one("stock UNet")
    try:
        return card.compare(card.stock_step(stock), card.stock_step(torch.compile(stock)), card.step_flops)
    finally:
        torch._dynamo.reset()


def step_with_other_format(card: Card) -> dict[str, Any]:
    """Time a step in channels-last memory format beside the other one."""
    usual, unet = card.use_one("UNet"), card.new_model("UNet")
    is_used = layers.uses_channels_last(card.device)
    other = card.our_step(unet, options=ModelOptions(channels_last="off" if is_used else "on"))
    pair = (other, card.our_step(usual)) if is_used else (card.our_step(usual), other)
    return card.compare(*pair, name="without")


def step_option(card: Card, option: str, off: str) -> dict[str, Any]:
    """Time a step beside one without an option of the model."""
    unet = card.use_one("UNet")
    without = card.our_step(unet, options=ModelOptions(**{option: off}))
    return card.compare(without, card.our_step(unet), name="without")


def decode_stock(card: Card) -> dict[str, Any]:
    """Time diffusers' decoder on the clip, in one call."""
    vae, latents = card.use_one("stock VAE"), card.inputs.latents
    return card.time(lambda: stock_decode(vae, latents), card.decode_flops)


def decode_stock_channels_last(card: Card) -> dict[str, Any]:
    """Time diffusers' decoder with weights in channels-last memory format."""
    stock, latents = card.use_one("stock VAE"), card.inputs.latents
    converted = copy.deepcopy(stock)
    layers.to_channels_last(converted)
    variants = (lambda: stock_decode(stock, latents)), (lambda: stock_decode(converted, latents))
    return card.compare(*variants, card.decode_flops)


def decode_stock_compiled(card: Card) -> dict[str, Any]:
    """Time diffusers' decoder, compiled as a whole by torch.compile."""
    stock, latents = card.use_one("stock VAE"), card.inputs.latents
    compiled = torch.compile(stock.decoder)
    weight = next(stock.parameters())
    indicator = torch.zeros((1, len(latents)), device=weight.device, dtype=weight.dtype)

    def decode() -> torch.Tensor:
        return compiled(latents.to(weight), num_frames=len(latents), image_only_indicator=indicator)

    try:
        return card.compare(lambda: stock_decode(stock, latents), decode, card.decode_flops)
    finally:
        torch._dynamo.reset()


def decode_ours(card: Card) -> dict[str, Any]:
    """Time this package's decoder, as the plan for all of the card's memory runs it."""
    stock, vae = card.use("stock VAE", "VAE")
    ours, latents = SVDVae(vae), card.inputs.latents
    return card.compare(
        lambda: stock_decode(stock, latents), lambda: ours.decode_clip(latents, card.activations), card.decode_flops
    )


def decode_activations(card: Card, activations: Activations) -> dict[str, Any]:
    """Time this package's decoder with its activations in one of the places."""
    vae, latents = SVDVae(card.use_one("VAE")), card.inputs.latents
    return card.time(lambda: vae.decode_clip(latents, activations), card.decode_flops)


def with_cudnn_benchmark(measure: Callable[[Card], dict[str, Any]], card: Card) -> dict[str, Any]:
    """Measure a row while cuDNN tries its kernels and takes the fastest."""
    with _replaced(torch.backends.cudnn, "benchmark", True):
        return measure(card)


def step_alone(card: Card) -> dict[str, Any]:
    """Time a step of this package."""
    return card.time(card.our_step(card.use_one("UNet")), card.step_flops)


def step_streamed(card: Card, pinned: bool) -> dict[str, Any]:
    """Time a step whose weights are copied block by block, and the rate of the copies in it."""
    unet = card.on_cpu("UNet")
    step = card.our_step(unet, stream=True)
    _set_pinned(unet, pinned)
    copied = 2 * sum(weight.nbytes for *_, weight in iter_parameters(unet, PRECOMPUTED_MODULES))
    step()  # the order of the blocks is known from here on
    try:
        return card.time(step, card.step_flops, copied)
    finally:
        card.forget_models()  # page-locked memory


def copy_weights(card: Card, pinned: bool) -> dict[str, Any]:
    """Time the copy of all weights of the UNet to the device, without a computation beside it."""
    unet = card.on_cpu("UNet")
    _set_pinned(unet, pinned)
    weights = list(unet.parameters())
    moved = sum(weight.nbytes for weight in weights)
    try:
        return card.time(lambda: [each.to(card.device, non_blocking=True, copy=True) for each in weights], moved=moved)
    finally:
        card.forget_models()


def _set_pinned(unet: Any, pinned: bool) -> None:
    """Move weights to page-locked memory, or out of it."""
    if pinned:
        pin_weights(unet)
        return
    for owner, name, weight in iter_parameters(unet):
        if weight.is_pinned():
            layers.set_weight(owner, weight.detach().clone(), name)


def sample_within(card: Card, vram: str) -> dict[str, Any]:
    """Sample two steps with a limit of memory: the plan in words, and the peaks."""
    model, inputs = make_model(card.on_cpu("UNet"), SCALING, card.size), card.inputs

    def run(runtime: LocalRuntime) -> None:
        execution.sample(runtime, model, [inputs.sides], inputs.x.cpu(), GuidanceCurve(), SIGMAS)

    return _within(card, vram, run)


def decode_within(card: Card, vram: str) -> dict[str, Any]:
    """Decode the clip with a limit of memory: the plan in words, and the peaks."""
    vae, latents = SVDVae(card.on_cpu("VAE")), card.inputs.latents[None].cpu()
    return _within(card, vram, lambda runtime: execution.decode(runtime, vae, latents, "exact", 1, 0))


def _within(card: Card, vram: str, run: Callable[[LocalRuntime], object]) -> dict[str, Any]:
    runtime = LocalRuntime(device_name=str(card.device), vram=parse_bytes("vram", vram))
    card.free_cache()
    if card.is_cuda:
        torch.cuda.reset_peak_memory_stats(card.device)
    before = _used(card)
    try:
        with _plan_lines() as lines:
            seconds, _ = timed(lambda: run(runtime), card.device)
        peaks = {"limit": runtime.vram, "seconds": seconds, "plan": "; ".join(dict.fromkeys(lines)), **_peaks(card)}
        return peaks | {"driver_before": before}
    finally:
        runtime.release()
        if card.is_cuda:
            torch.cuda.set_per_process_memory_fraction(1.0, card.device)
        card.forget_models()


def _peaks(card: Card) -> dict[str, int | None]:
    """Return the most bytes of tensors and of torch's pools, and those that the driver has given away now."""
    if not card.is_cuda:
        return {"allocated": None, "reserved": None, "driver": None}
    allocated, reserved = (
        read(card.device) for read in (torch.cuda.max_memory_allocated, torch.cuda.max_memory_reserved)
    )
    return {"allocated": allocated, "reserved": reserved, "driver": _used(card)}


def _used(card: Card) -> int | None:
    """Return the bytes of the card that are in use, by all programs."""
    if not card.is_cuda:
        return None
    free, total = torch.cuda.mem_get_info(card.device)
    return total - free


@contextlib.contextmanager
def _plan_lines() -> Iterator[list[str]]:
    """Collect the words of the plan that are logged inside the `with`."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    package = execution.__name__.rpartition(".")[0]
    loggers = [logging.getLogger(f"{package}.{each}") for each in PLANNERS]
    before = [(each.level, each.propagate) for each in loggers]
    for each in loggers:
        each.addHandler(handler)
        each.setLevel(logging.INFO)
        each.propagate = False
    try:
        yield lines
    finally:
        for each, (level, propagate) in zip(loggers, before, strict=True):
            each.removeHandler(handler)
            each.setLevel(level)
            each.propagate = propagate


def profile_step(card: Card) -> dict[str, Any]:
    """Profile a step of this package."""
    return _profile(card, card.our_step(card.use_one("UNet")))


def profile_decode(card: Card) -> dict[str, Any]:
    """Profile this package's decoder."""
    vae, latents = SVDVae(card.use_one("VAE")), card.inputs.latents
    return _profile(card, lambda: vae.decode_clip(latents, card.activations))


def _profile(card: Card, run: Callable[[], object]) -> dict[str, Any]:
    """Return the operations that take most time: as a table, and as values."""
    from torch.profiler import ProfilerActivity, profile

    run()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if card.is_cuda else [])]
    with profile(activities=activities) as profiler:
        seconds, _ = timed(run, card.device)
    averages: Any = profiler.key_averages()
    kind = "self_device_time_total" if card.is_cuda else "self_cpu_time_total"
    largest = sorted(averages, key=lambda each: -getattr(each, kind))[:PROFILED]
    top = [{"name": each.key[:100], "seconds": getattr(each, kind) / 1e6, "calls": each.count} for each in largest]
    table = averages.table(sort_by=kind, row_limit=PROFILED, max_name_column_width=70)
    return {"seconds": seconds, "operations": top, "text": table}


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Set an attribute inside the `with`."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextlib.contextmanager
def _replaced_item(table: dict[Any, Any], key: Any, value: Any) -> Iterator[None]:
    """Set an entry of a dictionary inside the `with`."""
    before = table[key]
    table[key] = value
    try:
        yield
    finally:
        table[key] = before
