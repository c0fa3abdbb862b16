"""Large pictures in slabs of rows: the numbers of diffusers' modules on the whole picture, in bounded memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from svd_stages.headless.bench.op_counter import count
from svd_stages.svd_core.autoencoder.encode import encode_images
from svd_stages.svd_core.models import tiled_layers
from svd_stages.svd_core.models import vae_decoder as decoding
from svd_stages.svd_core.models import vae_encoder as encoding
from svd_stages.svd_core.models.components import SVDVae
from svd_stages.svd_core.runtime.memory import decode_bytes, encode_bytes
from tiny import tiny_checkpoint

CPU, META = torch.device("cpu"), torch.device("meta")
GIB = 2**30


@pytest.fixture(scope="module")
def vae() -> Any:
    return tiny_checkpoint().vae.vae


@pytest.fixture
def small_slabs(monkeypatch):
    """Everything is large, and a slab holds few rows."""
    monkeypatch.setattr(tiled_layers, "TILING_THRESHOLD", 0)
    monkeypatch.setattr(tiled_layers, "TILE_NUMEL", 4_000)


def picture(channels: int, height: int, width: int, layout: torch.memory_format) -> torch.Tensor:
    generator = torch.Generator("cpu").manual_seed(height)
    return torch.randn((1, channels, height, width), generator=generator).contiguous(memory_format=layout)


def difference(ours: torch.Tensor, truth: torch.Tensor) -> float:
    return ((ours - truth).abs().max() / truth.std()).item()


SIZES = pytest.mark.parametrize(("height", "width"), [(2, 2), (16, 16), (17, 9), (50, 30)])
LAYOUTS = pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["rows", "channels"])


@SIZES
@LAYOUTS
def test_each_layer_in_slabs_is_diffusers_layer(vae, small_slabs, layout, height, width):
    encoder, decoder = vae.encoder, vae.decoder
    same, other = encoder.down_blocks[0].resnets[0], encoder.down_blocks[1].resnets[0]
    assert same.conv_shortcut is None and other.conv_shortcut is not None
    for block in (same, other):
        x = picture(block.conv1.in_channels, height, width, layout)
        wanted = block(x.clone(), None)
        assert difference(tiled_layers.residual(x, block, CPU), wanted) < 1e-4
    down, up = encoder.down_blocks[0].downsamplers[0], decoder.up_blocks[0].upsamplers[0]
    x = picture(down.conv.in_channels, height, width, layout)
    assert difference(tiled_layers.downsampled(x, down.conv, CPU), down(x)) < 1e-5
    x = picture(up.conv.in_channels, height, width, layout)
    assert difference(tiled_layers.upsampled(x, up.conv, CPU), up(x)) < 1e-5


@pytest.mark.parametrize(("height", "width"), [(64, 64), (72, 136)])
def test_the_encoder_in_slabs_is_diffusers_encoder(vae, small_slabs, height, width):
    pixels = picture(3, height, width, torch.contiguous_format)
    wanted = vae.encoder.double()(pixels.double())
    vae.encoder.float()
    assert difference(encoding.encode(vae.encoder, pixels, CPU), wanted) < 1e-4


@pytest.mark.parametrize(("frames", "height", "width"), [(1, 8, 8), (5, 9, 13)])
def test_the_decoder_with_large_frames_is_the_decoder(vae, small_slabs, monkeypatch, frames, height, width):
    monkeypatch.setattr(decoding, "TILE_NUMEL", 20_000)
    latents = torch.randn((frames, 4, height, width), generator=torch.Generator("cpu").manual_seed(3)) / 0.18215
    told: list[float] = []
    found = decoding.decode(vae.decoder, latents, CPU, on_progress=told.append)
    wanted = vae.decoder.double()(latents.double(), num_frames=frames, image_only_indicator=torch.zeros(1, frames))
    vae.decoder.float()
    assert difference(found, wanted) < 1e-4
    assert told == sorted(told) and told[-1] == pytest.approx(1.0)


def test_a_large_image_is_encoded_to_what_a_small_slab_gives(vae, monkeypatch):
    images = torch.rand((1, 64, 96, 3), generator=torch.Generator("cpu").manual_seed(1))
    wanted = encode_images(SVDVae(vae), images, CPU)
    monkeypatch.setattr(tiled_layers, "TILING_THRESHOLD", 0)
    monkeypatch.setattr(tiled_layers, "TILE_NUMEL", 4_000)
    found = encode_images(SVDVae(vae), images, CPU)
    assert difference(found, wanted) < 1e-4 and not torch.equal(found, wanted)


def test_a_changed_encoder_is_called_as_it_is(vae):
    encoder = tiny_checkpoint().vae.vae.encoder
    assert encoding.can_stream(encoder)
    encoder.down_blocks[0].resnets[0].register_forward_hook(lambda *told: None)
    assert not encoding.can_stream(encoder)


@pytest.fixture(scope="module")
def published() -> Any:
    from diffusers import AutoencoderKLTemporalDecoder

    with META:
        module = AutoencoderKLTemporalDecoder(
            down_block_types=("DownEncoderBlock2D",) * 4, block_out_channels=(128, 256, 512, 512), layers_per_block=2
        )
    return module.to(META).eval().requires_grad_(False)


@pytest.mark.parametrize(("height", "width"), [(576, 1024), (1152, 2048), (2160, 3840)])
def test_encoding_takes_less_memory_than_diffusers_and_what_is_foretold(published, height, width):
    pixels = torch.empty((1, 3, height, width), device=META)
    ours = count(lambda: encoding.encode(published.encoder, pixels, META)).peak
    stock = count(lambda: published.encoder(pixels)).peak
    assert ours <= encode_bytes(SVDVae(published), height, width)
    assert ours <= (0.75 if height > 576 else 1.01) * stock


def test_decoding_large_frames_takes_what_is_foretold(published):
    decoder = published.decoder.half()
    latents = torch.empty((2, 4, 270, 480), dtype=torch.float16, device=META)
    ours = count(lambda: decoding.decode(decoder, latents, META)).peak
    foretold = decode_bytes(SVDVae(published), 2, 2160, 3840)
    published.decoder.float()
    assert ours <= foretold
