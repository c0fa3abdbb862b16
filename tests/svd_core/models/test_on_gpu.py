"""What the rewrites do on a CUDA device: errors beside diffusers' own, the same bits whatever is kept where."""

from __future__ import annotations

import pytest
import torch
from svd_stages.headless.bench import models
from svd_stages.svd_core.models import tiled_layers
from svd_stages.svd_core.models import unet as rewriting
from svd_stages.svd_core.models import vae_decoder as streaming
from svd_stages.svd_core.models import vae_encoder as encoding
from svd_stages.svd_core.models.options import DEFAULT, ModelOptions
from svd_stages.svd_core.models.unet import PreparedUNet

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

SIZE = models.Size((64, 128, 256, 256), (1, 2, 4, 4), 128, (64, 64, 128, 128), 6, 16, 24)
CUDA, CPU = torch.device("cuda"), torch.device("cpu")


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed))


@pytest.fixture(scope="module")
def unet():
    return models.drawn(models.build_unet(SIZE), seed=0)


@pytest.fixture(scope="module")
def decoder():
    return models.drawn(models.build_vae(SIZE), seed=1).decoder


def difference(found: torch.Tensor, truth: torch.Tensor) -> float:
    return ((found.float().cpu() - truth).norm() / truth.norm()).item()


def asked(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """x, image latents, embedding."""
    shape = (SIZE.frames, 4, SIZE.height, SIZE.width)
    return normal(*shape).to(CUDA, dtype), normal(*shape, seed=1).to(CUDA, dtype), normal(1, 1, 128).to(CUDA, dtype)


def stock_v(unet, dtype: torch.dtype) -> torch.Tensor:
    x, latents, embeds = asked(dtype)
    told = {"encoder_hidden_states": embeds, "added_time_ids": torch.tensor([[6.0, 127.0, 0.02]], device=CUDA)}
    return unet(torch.cat([x, latents], dim=1)[None], torch.tensor(0.7, device=CUDA), **told, return_dict=False)[0][0]


def our_v(unet, dtype: torch.dtype, stream: bool = False, options: ModelOptions = DEFAULT) -> torch.Tensor:
    x, latents, embeds = asked(dtype)
    level, time_ids = torch.tensor(0.7), torch.tensor([[6.0, 127.0, 0.02]], device=CUDA)
    return PreparedUNet(unet, embeds, latents, time_ids, level[None], stream=stream, options=options)(x, level)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_network_is_no_less_exact_than_diffusers(unet, dtype):
    truth = stock_v(unet.to(CUDA, torch.float64), torch.float64).float().cpu()
    unet.to(dtype)
    assert difference(our_v(unet, dtype), truth) <= 1.05 * difference(stock_v(unet, dtype), truth)
    unet.to(CPU, torch.float32)


def test_streamed_weights_give_the_same_bits_and_stay_on_the_cpu(unet):
    wanted = our_v(unet.to(CUDA, torch.float16), torch.float16)
    unet.to(CPU)
    assert torch.equal(our_v(unet, torch.float16, stream=True), wanted)
    assert {weight.device.type for weight in unet.parameters()} == {"cpu"}
    unet.float()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_decoder_is_no_less_exact_than_diffusers_and_the_store_has_no_say(decoder, monkeypatch, dtype):
    latents = normal(SIZE.frames, 4, SIZE.height, SIZE.width) / 0.18215
    indicator = torch.zeros((1, SIZE.frames), device=CUDA)

    def stock(kind: torch.dtype) -> torch.Tensor:
        decoder.to(CUDA, kind)
        return decoder(latents.to(CUDA, kind), num_frames=SIZE.frames, image_only_indicator=indicator.to(kind))

    truth = stock(torch.float64).float().cpu()
    theirs = difference(stock(dtype), truth)
    monkeypatch.setattr(streaming, "TILE_NUMEL", 2**20)
    kept, spared = (streaming.decode(decoder, latents.to(CUDA, dtype), store) for store in (CUDA, CPU))
    assert torch.equal(kept.cpu(), spared)
    assert difference(kept, truth) <= max(1.05 * theirs, 1e-5)
    decoder.to(CPU, torch.float32)


def test_the_peak_of_decoding_is_what_was_foretold(decoder):
    from types import SimpleNamespace

    from svd_stages.svd_core.runtime.memory import decode_bytes

    latents = (normal(8, 4, 40, 64) / 0.18215).to(CUDA, torch.float16)
    decoder.to(CUDA, torch.float16)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    streaming.decode(decoder, latents, CUDA)
    peak = torch.cuda.max_memory_allocated() - before
    foretold = decode_bytes(SimpleNamespace(base_channels=64, itemsize=2, streams=True), 8, 320, 512)
    assert peak <= 1.1 * foretold
    decoder.to(CPU, torch.float32)


@pytest.mark.parametrize("options", [{"compile": "regional"}, {"compile": "full"}, {"attention": "sdpa"}])
def test_options_leave_the_network_no_less_exact(unet, options):
    truth = stock_v(unet.to(CUDA, torch.float64), torch.float64).float().cpu()
    unet.half()
    theirs = difference(stock_v(unet, torch.float16), truth)
    assert difference(our_v(unet, torch.float16, options=ModelOptions(**options)), truth) <= 1.05 * theirs
    assert not rewriting.COMPILERS[False].broken and not rewriting.COMPILED_STEP.broken
    unet.to(CPU, torch.float32)


def test_streamed_steps_repeat_to_the_bit(unet):
    """From the second step on weights come ahead, on a stream of their own."""
    x, latents, embeds = asked(torch.float16)
    level, time_ids = torch.tensor(0.7), torch.tensor([[6.0, 127.0, 0.02]], device=CUDA)

    def reserved(stream: bool) -> tuple[int, list[torch.Tensor]]:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        unet.to(CPU if stream else CUDA, torch.float16)
        prepared = PreparedUNet(unet, embeds, latents, time_ids, level[None], stream=stream)
        answers = [prepared(x, level) for _ in range(4)]
        return torch.cuda.max_memory_reserved(), answers

    there, wanted = reserved(stream=False)
    coming, found = reserved(stream=True)
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))
    weights = sum(weight.nbytes for weight in unet.parameters())
    assert coming < there - weights / 2  # the host does not run ahead of the card
    unet.float()


def test_a_large_picture_is_encoded_in_slabs_wherever_it_lies(monkeypatch):
    encoder = models.drawn(models.build_vae(SIZE), seed=2).encoder.to(CUDA)
    pixels = normal(1, 3, 128, 192).to(CUDA)
    wanted = encoder.double()(pixels.double()).float().cpu()
    encoder.float()
    monkeypatch.setattr(tiled_layers, "TILING_THRESHOLD", 0)
    monkeypatch.setattr(tiled_layers, "TILE_NUMEL", 2**16)
    kept, spared = (encoding.encode(encoder, pixels, store) for store in (CUDA, CPU))
    assert torch.equal(kept, spared)
    assert difference(kept, wanted) < 1e-3  # float32 products of a card may have ten bits
