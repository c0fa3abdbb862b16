"""Large images in tiles of rows: the results of diffusers' modules on the whole image, in bounded memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from svd_stages.headless.bench.models import SIZES, build_vae, empty_model
from svd_stages.headless.bench.op_counter import count
from svd_stages.svd_core.autoencoder.encode import encode_images
from svd_stages.svd_core.models import tiled_layers, vae_decoder, vae_encoder
from svd_stages.svd_core.models.components import SVDVae
from svd_stages.svd_core.runtime.memory import decode_bytes, encode_bytes
from tiny import randn, tiny_checkpoint

CPU, META = torch.device("cpu"), torch.device("meta")


@pytest.fixture(scope="module")
def vae() -> Any:
    return tiny_checkpoint().vae.vae


@pytest.fixture
def small_tiles(monkeypatch):
    """Tile every feature map, with few rows per tile."""
    monkeypatch.setattr(tiled_layers, "TILING_THRESHOLD", 0)
    monkeypatch.setattr(tiled_layers, "TILE_NUMEL", 4_000)


def random_image(channels: int, height: int, width: int, layout: torch.memory_format) -> torch.Tensor:
    return randn(1, channels, height, width, seed=height).contiguous(memory_format=layout)


def difference(ours: torch.Tensor, truth: torch.Tensor) -> float:
    return ((ours - truth).abs().max() / truth.std()).item()


@pytest.mark.parametrize(("height", "width"), [(2, 2), (16, 16), (17, 9), (50, 30)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["rows", "channels"])
def test_each_tiled_layer_computes_what_diffusers_layer_does(vae, small_tiles, layout, height, width):
    encoder, decoder = vae.encoder, vae.decoder
    same, other = encoder.down_blocks[0].resnets[0], encoder.down_blocks[1].resnets[0]
    assert same.conv_shortcut is None and other.conv_shortcut is not None
    for block in (same, other):
        x = random_image(block.conv1.in_channels, height, width, layout)
        expected = block(x.clone(), None)
        assert difference(tiled_layers.resnet_block(x, block, CPU), expected) < 1e-4
    down, up = encoder.down_blocks[0].downsamplers[0], decoder.up_blocks[0].upsamplers[0]
    x = random_image(down.conv.in_channels, height, width, layout)
    assert difference(tiled_layers.downsample(x, down.conv, CPU), down(x)) < 1e-5
    x = random_image(up.conv.in_channels, height, width, layout)
    assert difference(tiled_layers.upsample(x, up.conv, CPU), up(x)) < 1e-5


@pytest.mark.parametrize(("height", "width"), [(64, 64), (72, 136)])
def test_the_tiled_encoder_computes_what_diffusers_encoder_does(vae, small_tiles, height, width):
    pixels = random_image(3, height, width, torch.contiguous_format)
    expected = vae.encoder.double()(pixels.double())
    vae.encoder.float()
    assert difference(vae_encoder.encode(vae.encoder, pixels), expected) < 1e-4


@pytest.mark.parametrize(("frames", "height", "width"), [(1, 8, 8), (5, 9, 13)])
def test_the_decoder_with_tiled_frames_computes_what_diffusers_does(
    vae, small_tiles, monkeypatch, frames, height, width
):
    monkeypatch.setattr(vae_decoder, "CPU_TILE_NUMEL", 20_000)
    latents = randn(frames, 4, height, width, seed=3) / 0.18215
    progress: list[float] = []
    pixels = vae_decoder.decode(vae.decoder, latents, on_progress=progress.append)
    expected = vae.decoder.double()(latents.double(), num_frames=frames, image_only_indicator=torch.zeros(1, frames))
    vae.decoder.float()
    assert difference(pixels, expected) < 1e-4
    assert progress == sorted(progress) and progress[-1] == pytest.approx(1.0)


def test_a_large_image_is_encoded_in_tiles(vae, request):
    images = torch.rand((1, 64, 96, 3), generator=torch.Generator("cpu").manual_seed(1))
    expected = encode_images(SVDVae(vae), images, CPU)
    request.getfixturevalue("small_tiles")
    tiled = encode_images(SVDVae(vae), images, CPU)
    assert difference(tiled, expected) < 1e-4 and not torch.equal(tiled, expected)


def test_a_modified_encoder_is_not_tiled():
    encoder = tiny_checkpoint().vae.vae.encoder
    assert vae_encoder.can_stream(encoder)
    encoder.down_blocks[0].resnets[0].register_forward_hook(lambda *arguments: None)
    assert not vae_encoder.can_stream(encoder)


@pytest.fixture(scope="module")
def published() -> Any:
    return empty_model(build_vae, SIZES["full"]).float()


@pytest.mark.parametrize(("height", "width"), [(576, 1024), (1152, 2048), (2160, 3840)])
def test_encoding_needs_at_most_the_estimate_and_less_memory_than_diffusers(published, height, width):
    pixels = torch.empty((1, 3, height, width), device=META)
    ours = count(lambda: vae_encoder.encode(published.encoder, pixels)).peak
    stock = count(lambda: published.encoder(pixels)).peak
    assert ours <= encode_bytes(SVDVae(published), height, width)
    assert ours <= (0.75 if height > 576 else 1.01) * stock


def test_decoding_large_frames_needs_at_most_the_estimate(published):
    decoder = published.decoder.half()
    latents = torch.empty((2, 4, 270, 480), dtype=torch.float16, device=META)
    ours = count(lambda: vae_decoder.decode(decoder, latents)).peak
    estimate = decode_bytes(SVDVae(published), 2, 2160, 3840)
    published.decoder.float()
    assert ours <= estimate
