"""The optimized models on a CUDA device: errors beside diffusers' own, bit-equal results wherever weights are."""

from __future__ import annotations

import gc
from types import SimpleNamespace

import pytest
import torch
from svd_stages.headless.bench import models
from svd_stages.svd_core.models import layers, tiled_layers, triton_group_norm, vae_decoder, vae_encoder
from svd_stages.svd_core.models import unet as unet_module
from svd_stages.svd_core.models.options import ModelOptions
from svd_stages.svd_core.models.unet import PreparedUNet
from svd_stages.svd_core.runtime.memory import decode_bytes
from tiny import randn

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

SIZE = models.Size((64, 128, 256, 256), (1, 2, 4, 4), 128, (64, 64, 128, 128), 6, 16, 24)
CUDA, CPU = torch.device("cuda"), torch.device("cpu")
C_NOISE = torch.tensor(0.7)


@pytest.fixture(scope="module")
def unet():
    return models.randomize(models.build_unet(SIZE), seed=0)


@pytest.fixture(scope="module")
def decoder():
    return models.randomize(models.build_vae(SIZE), seed=1).decoder


def difference(result: torch.Tensor, truth: torch.Tensor) -> float:
    return ((result.float().cpu() - truth).norm() / truth.norm()).item()


def inputs(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Return x, image latents, embedding and time ids."""
    shape = (SIZE.frames, 4, SIZE.height, SIZE.width)
    tensors = (randn(*shape), randn(*shape, seed=1), randn(1, 1, 128))
    return *(each.to(CUDA, dtype) for each in tensors), torch.tensor([[6.0, 127.0, 0.02]], device=CUDA)


def stock_v(unet, dtype: torch.dtype) -> torch.Tensor:
    x, latents, embeds, time_ids = inputs(dtype)
    sample = torch.cat([x, latents], dim=1)[None]
    conditioning = {"encoder_hidden_states": embeds, "added_time_ids": time_ids}
    return unet(sample, C_NOISE.to(CUDA), **conditioning, return_dict=False)[0][0]


def prepare(unet, dtype: torch.dtype, **arguments) -> PreparedUNet:
    _, latents, embeds, time_ids = inputs(dtype)
    return PreparedUNet(unet, embeds, latents, time_ids, C_NOISE[None], **arguments)


def our_v(unet, dtype: torch.dtype, **arguments) -> torch.Tensor:
    return prepare(unet, dtype, **arguments)(inputs(dtype)[0], C_NOISE)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_unet_is_no_less_exact_than_diffusers(unet, dtype):
    truth = stock_v(unet.to(CUDA, torch.float64), torch.float64).float().cpu()
    unet.to(dtype)
    assert difference(our_v(unet, dtype), truth) <= 1.05 * difference(stock_v(unet, dtype), truth)
    unet.to(CPU, torch.float32)


def test_streamed_weights_give_bit_equal_results_and_stay_on_the_cpu(unet):
    expected = our_v(unet.to(CUDA, torch.float16), torch.float16)
    unet.to(CPU)
    assert torch.equal(our_v(unet, torch.float16, stream=True), expected)
    assert {weight.device.type for weight in unet.parameters()} == {"cpu"}
    unet.float()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_decoder_is_no_less_exact_than_diffusers_wherever_activations_are(decoder, monkeypatch, dtype):
    latents = randn(SIZE.frames, 4, SIZE.height, SIZE.width) / 0.18215
    indicator = torch.zeros((1, SIZE.frames), device=CUDA)

    def stock(dtype: torch.dtype) -> torch.Tensor:
        decoder.to(CUDA, dtype)
        return decoder(latents.to(CUDA, dtype), num_frames=SIZE.frames, image_only_indicator=indicator.to(dtype))

    truth = stock(torch.float64).float().cpu()
    theirs = difference(stock(dtype), truth)
    monkeypatch.setattr(vae_decoder, "TILE_NUMEL", 2**20)
    on_device, kept, offloaded = (
        vae_decoder.decode(decoder, latents.to(CUDA, dtype), each).cpu() for each in ("recompute", "keep", "offload")
    )
    assert torch.equal(on_device, kept) and torch.equal(on_device, offloaded)
    assert difference(on_device, truth) <= max(1.05 * theirs, 1e-5)
    decoder.to(CPU, torch.float32)


def test_decoding_needs_at_most_the_estimate(decoder):
    latents = (randn(8, 4, 40, 64) / 0.18215).to(CUDA, torch.float16)
    decoder.to(CUDA, torch.float16)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    vae_decoder.decode(decoder, latents)
    peak = torch.cuda.max_memory_allocated() - before
    assert peak <= 1.1 * decode_bytes(SimpleNamespace(base_channels=64, itemsize=2, streams=True), 8, 320, 512)
    decoder.to(CPU, torch.float32)


@pytest.mark.parametrize(
    "options",
    [
        {"compile": "regional"},
        {"compile": "full"},
        {"attention": "sdpa"},
        {"channels_last": "on"},
        {"channels_last": "off"},
        {"channels_last": "off", "compile": "regional"},
    ],
)
def test_options_leave_the_unet_no_less_exact(unet, options):
    truth = stock_v(unet.to(CUDA, torch.float64), torch.float64).float().cpu()
    unet.half()
    theirs = difference(stock_v(unet, torch.float16), truth)
    assert difference(our_v(unet, torch.float16, options=ModelOptions(**options)), truth) <= 1.05 * theirs
    assert not unet_module.COMPILERS[False].broken and not unet_module.COMPILED_STEP.broken
    unet.to(CPU, torch.float32)


def test_streamed_steps_are_bit_equal_and_need_less_memory(unet):
    """From the second step on weights are prefetched, on a CUDA stream of their own."""

    def run(stream: bool) -> tuple[int, list[torch.Tensor]]:
        unet.to(CPU if stream else CUDA, torch.float16)
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        prepared, x = prepare(unet, torch.float16, stream=stream), inputs(torch.float16)[0]
        results = [prepared(x, C_NOISE) for _ in range(4)]
        return torch.cuda.max_memory_reserved(), results

    resident_bytes, expected = run(stream=False)
    streamed_bytes, results = run(stream=True)
    assert all(torch.equal(one, other) for one, other in zip(results, expected, strict=True))
    weights = sum(weight.nbytes for weight in unet.parameters())
    assert streamed_bytes < resident_bytes - weights / 2  # the CPU does not run ahead of the GPU
    unet.float()


def test_a_large_image_is_encoded_in_tiles_wherever_activations_are(monkeypatch):
    encoder = models.randomize(models.build_vae(SIZE), seed=2).encoder.to(CUDA)
    pixels = randn(1, 3, 128, 192).to(CUDA)
    expected = encoder.double()(pixels.double()).float().cpu()
    encoder.float()
    monkeypatch.setattr(tiled_layers, "TILING_THRESHOLD", 0)
    monkeypatch.setattr(tiled_layers, "TILE_NUMEL", 2**16)
    on_device, offloaded = (vae_encoder.encode(encoder, pixels, offload) for offload in (False, True))
    assert torch.equal(on_device, offloaded)
    assert difference(on_device, expected) < 1e-3  # a GPU's float32 products may have 10 bits (TF32)


def group_norm_case(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[torch.Tensor, torch.nn.GroupNorm]:
    x = (3 * randn(*shape) + 2 * randn(1, shape[1], 1, 1, seed=1)).to(CUDA, dtype)
    norm = torch.nn.GroupNorm(32, shape[1], device=CUDA, dtype=dtype)
    norm.weight.data, norm.bias.data = ((randn(shape[1], seed=seed)).to(norm.weight) for seed in (2, 3))
    return x.contiguous(memory_format=torch.channels_last), norm


@pytest.mark.parametrize("dtype", triton_group_norm.DTYPES)
@pytest.mark.parametrize("shape", [(25, 320, 72, 128), (1, 320, 25, 9216), (3, 96, 13, 7), (1, 1920, 14, 63)])
def test_the_triton_group_norm_is_no_less_exact_than_pytorchs(shape, dtype):
    """Where Triton is installed, as with torch's own packages for CUDA on Linux, the kernels work."""
    pytest.importorskip("triton")
    (x, norm), device = group_norm_case(shape, dtype), torch.empty(0, device=CUDA).device
    assert triton_group_norm.is_available(device) and triton_group_norm.serves(x)
    ours, theirs = layers.norm_silu(x, norm), layers.group_norm_silu(x, norm.weight, norm.bias, 32, norm.eps)
    assert layers.is_channels_last(ours)
    x, norm = x.double(), norm.double()
    truth = layers.group_norm_silu(x, norm.weight, norm.bias, 32, norm.eps).float().cpu()
    assert difference(ours, truth) <= 1.05 * difference(theirs, truth)


def test_a_step_on_a_gpu_has_one_memory_format(unet, monkeypatch):
    pytest.importorskip("triton")
    formats = []
    original = PreparedUNet._resnet

    def watch(self, x, *arguments):
        result = original(self, x, *arguments)
        formats.append((layers.is_channels_last(x), layers.is_channels_last(result)))
        return result

    monkeypatch.setattr(PreparedUNet, "_resnet", watch)
    our_v(unet.to(CUDA, torch.float16), torch.float16)
    assert len(formats) > 10 and set(formats) == {(True, True)}
    unet.to(CPU, torch.float32)
