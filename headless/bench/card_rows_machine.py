"""Rows of `svd-stages bench --card` about the machine, and checks of results on the device."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import subprocess
from typing import Any

import torch

from ...svd_core.models import vae_decoder
from ...svd_core.models.options import DEFAULT, ModelOptions
from ...svd_core.models.unet import PreparedUNet
from .card_models import Card, NotMeasured, fail_if_broken
from .inputs import SCALING, stock_decode
from .measuring import relative_difference
from .models import Size, build_unet, build_vae, random_model

VERSIONS = ("diffusers", "transformers", "triton", "safetensors")
NVIDIA_SMI = (
    "name,driver_version,memory.total,memory.used,clocks.sm,clocks.max.sm,clocks.mem,clocks.max.mem,power.draw,"
    "power.limit,temperature.gpu,pstate,clocks_throttle_reasons.active"
)
"""What nvidia-smi is asked for."""
CHECKED = Size((64, 128, 128, 128), (1, 2, 2, 2), 64, (32, 64, 64, 64), 4, 8, 16)
"""The size of the checks. Heads have 64 channels, as those of the published UNet."""
C_NOISE = torch.tensor(0.7)
EXACT = 1e-5
"""A difference that is rounding of float32."""


def versions(card: Card) -> dict[str, Any]:
    """Return the versions of libraries."""
    cudnn = torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None
    found = {name: _version(name) for name in VERSIONS}
    return {
        "values": {
            "torch": torch.__version__,
            "CUDA": torch.version.cuda,
            "ROCm": torch.version.hip,
            "cuDNN": cudnn,
            **found,
            "python": platform.python_version(),
            "system": platform.platform(),
        }
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def properties(card: Card) -> dict[str, Any]:
    """Return what torch knows of the card."""
    device = torch.cuda.get_device_properties(card.device)
    free, total = torch.cuda.mem_get_info(card.device)
    return {
        "values": {
            "name": device.name,
            "compute capability": f"{device.major}.{device.minor}",
            "multiprocessors": device.multi_processor_count,
            "memory": total,
            "free": free,
            "TF32 products": torch.backends.cuda.matmul.allow_tf32,
            "TF32 convolutions": torch.backends.cudnn.allow_tf32,
        }
    }


def clocks(card: Card) -> dict[str, Any]:
    """Return driver, clocks, power and temperature, as nvidia-smi reports them."""
    program = shutil.which("nvidia-smi")
    if program is None:
        raise NotMeasured("there is no nvidia-smi: driver, clocks and power are not known")
    uuid = getattr(torch.cuda.get_device_properties(card.device), "uuid", None)
    only = [f"--id=GPU-{uuid}"] if uuid else []
    command = [program, f"--query-gpu={NVIDIA_SMI}", "--format=csv,noheader", *only]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)  # noqa: S603
    lines = answer.stdout.strip().splitlines()
    if answer.returncode or not lines:
        raise NotMeasured(f"nvidia-smi failed: {(answer.stderr or answer.stdout).strip()[:200]}")
    return {"values": dict(zip(NVIDIA_SMI.split(","), map(str.strip, lines[0].split(",")), strict=False))}


def check_unet(card: Card, options: ModelOptions = DEFAULT) -> dict[str, Any]:
    """Compare a small UNet on the device with diffusers' in float64 on the CPU. It may err by 1.05 of diffusers'."""
    unet = _small(build_unet, torch.float64)
    truth = _stock_v(unet, *_unet_inputs(torch.device("cpu"), torch.float64))
    unet.to(card.device, card.dtype)
    inputs = _unet_inputs(card.device, card.dtype)
    stock = relative_difference(_stock_v(unet, *inputs), truth)
    ours = relative_difference(_our_v(unet, *inputs, options=options), truth)
    fail_if_broken(card.device)
    return {"passed": ours <= max(1.05 * stock, EXACT), "difference": ours, "stock_difference": stock}


def check_streamed_unet(card: Card) -> dict[str, Any]:
    """Check that streamed weights give the same bits as resident ones."""
    unet = _small(build_unet, card.dtype).to(card.device)
    inputs = _unet_inputs(card.device, card.dtype)
    expected = _our_v(unet, *inputs)
    unet.to("cpu")
    prepared = _prepare(unet, *inputs, stream=True)
    results = [prepared(inputs[0], C_NOISE) for _ in range(3)]  # weights are prefetched from the second step on
    return {"passed": all(torch.equal(each, expected) for each in results)}


def check_decoder(card: Card) -> dict[str, Any]:
    """Compare a small decoder on the device with diffusers' in float64 on the CPU. It may err by 1.05 of diffusers'."""
    vae, latents = _small(build_vae, torch.float64), _latents()
    truth = stock_decode(vae, latents)
    vae.to(card.device, card.dtype)
    stock = relative_difference(stock_decode(vae, latents), truth)
    ours = relative_difference(vae_decoder.decode(vae.decoder, latents.to(card.device, card.dtype)), truth)
    return {"passed": ours <= max(1.05 * stock, EXACT), "difference": ours, "stock_difference": stock}


def check_activations(card: Card) -> dict[str, Any]:
    """Check that a decoder gives the same bits wherever its activations are."""
    decoder, latents = _small(build_vae, card.dtype).to(card.device).decoder, _latents().to(card.device, card.dtype)
    expected = vae_decoder.decode(decoder, latents).cpu()
    kept, offloaded = (vae_decoder.decode(decoder, latents, each).cpu() for each in ("keep", "offload"))
    return {"passed": torch.equal(kept, expected) and torch.equal(offloaded, expected)}


def _small(build: Any, dtype: torch.dtype) -> Any:
    return random_model(build, CHECKED, 0, torch.device("cpu"), dtype)


def _latents() -> torch.Tensor:
    shape = (CHECKED.frames, 4, CHECKED.height, CHECKED.width)
    return torch.randn(shape, generator=torch.Generator().manual_seed(3)).double() / SCALING


def _unet_inputs(device: torch.device, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Return x, image latents, embedding and time ids, the same numbers in each dtype."""
    generator = torch.Generator().manual_seed(4)
    shape = (CHECKED.frames, 4, CHECKED.height, CHECKED.width)
    tensors = [torch.randn(each, generator=generator) for each in (shape, shape, (1, 1, CHECKED.embedding_width))]
    return *(each.half().to(device, dtype) for each in tensors), torch.tensor([[6.0, 127.0, 0.02]], device=device)


def _stock_v(unet: Any, x: Any, latents: Any, embeds: Any, time_ids: Any) -> torch.Tensor:
    inputs = {"encoder_hidden_states": embeds, "added_time_ids": time_ids, "return_dict": False}
    return unet(torch.cat([x, latents], dim=1)[None], C_NOISE.to(x.device), **inputs)[0][0]


def _our_v(unet: Any, x: Any, latents: Any, embeds: Any, time_ids: Any, **how: Any) -> torch.Tensor:
    return _prepare(unet, x, latents, embeds, time_ids, **how)(x, C_NOISE)


def _prepare(unet: Any, x: Any, latents: Any, embeds: Any, time_ids: Any, **how: Any) -> PreparedUNet:
    return PreparedUNet(unet, embeds, latents, time_ids, C_NOISE[None], **how)
