"""The optimized UNet against diffusers' own forward on the same modules."""

from __future__ import annotations

import copy
import functools

import diffusers
import pytest
import torch
from svd_stages.svd_core.diffusion.conditioning import Conditioning, MicroConditioning
from svd_stages.svd_core.diffusion.denoiser import make_denoiser
from svd_stages.svd_core.models import layers
from svd_stages.svd_core.models import unet as unet_module
from svd_stages.svd_core.models.optimizations import unsupported_reason
from svd_stages.svd_core.models.options import ModelOptions
from svd_stages.svd_core.models.unet import PreparedUNet
from svd_stages.svd_core.models.weight_streaming import WeightStreamer
from tiny import randn, tiny_checkpoint

FRAMES, HEIGHT, WIDTH = 5, 16, 24
C_NOISES = torch.tensor([0.7, -0.3])
TIME_IDS = torch.tensor([[6.0, 127.0, 0.02]])
TOLERANCE = 1e-5


@pytest.fixture
def unet() -> torch.nn.Module:
    """A UNet for one test: preparing changes memory formats, and tests change weights."""
    return tiny_checkpoint().model.unet


def stock(unet, size=(HEIGHT, WIDTH), tokens=1, dtype=torch.float32, c_noise=C_NOISES[0]) -> torch.Tensor:
    """Compute v with diffusers."""
    sample = torch.cat([randn(FRAMES, 4, *size), randn(FRAMES, 4, *size, seed=1)], dim=1)[None].to(dtype)
    embeds = randn(1, tokens, 32, seed=2).to(dtype)
    return unet(sample, c_noise, encoder_hidden_states=embeds, added_time_ids=TIME_IDS, return_dict=False)[0][0].float()


def prepare(unet, size=(HEIGHT, WIDTH), tokens=1, dtype=torch.float32, **arguments) -> PreparedUNet:
    embeds, latents = randn(1, tokens, 32, seed=2).to(dtype), randn(FRAMES, 4, *size, seed=1).to(dtype)
    return PreparedUNet(unet, embeds, latents, TIME_IDS, C_NOISES, **arguments)


def optimized(unet, size=(HEIGHT, WIDTH), dtype=torch.float32, c_noise=C_NOISES[0], **arguments) -> torch.Tensor:
    """Compute v of the same input with this package."""
    return prepare(unet, size, dtype=dtype, **arguments)(randn(FRAMES, 4, *size).to(dtype), c_noise).float()


def through_denoiser(unet) -> torch.Tensor:
    """Compute v of the same input through the denoiser, from the denoised latents that it returns."""
    c_noise, x = C_NOISES[0], randn(FRAMES, 4, HEIGHT, WIDTH)
    sigma = (4 * c_noise).exp()
    side = Conditioning(randn(1, 1, 32, seed=2), randn(FRAMES, 4, HEIGHT, WIDTH, seed=1), MicroConditioning())
    denoise = make_denoiser(unet, side, side, torch.ones(FRAMES), torch.device("cpu"))
    noisy = x[None] * (sigma**2 + 1) ** 0.5
    return ((noisy / (sigma**2 + 1) - denoise(noisy, sigma)) * (sigma**2 + 1) ** 0.5 / sigma)[0]


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours - theirs).norm() / theirs.norm()).item()


@pytest.mark.parametrize("channels_last", ["on", "off"])
def test_the_result_is_diffusers_in_each_memory_format(unet, channels_last):
    expected = stock(copy.deepcopy(unet))
    assert difference(optimized(unet, options=ModelOptions(channels_last=channels_last)), expected) < TOLERANCE


def test_another_memory_format_is_that_of_the_next_video(unet):
    """With weights in another format than their input, convolutions would return the former."""
    results = [optimized(unet, options=ModelOptions(channels_last=each)) for each in ("off", "on", "off")]
    assert torch.equal(results[0], results[2]) and layers.is_channels_last(unet.conv_in.weight) is False


@pytest.mark.parametrize("size", [(8, 8), (9, 13), (10, 8)])
def test_sizes_that_do_not_halve_evenly(unet, size):
    try:
        expected = stock(unet, size)
    except RuntimeError as error:
        if "Sizes" not in str(error):
            raise
        pytest.skip(f"diffusers {diffusers.__version__} does not support this size: {error}")
    assert difference(optimized(unet, size=size), expected) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("chunk_rows", [1, 7, 100, 10**6])
def test_chunks_of_any_size_give_the_same_result(unet, chunk_rows, monkeypatch):
    monkeypatch.setattr(unet_module, "CPU_CHUNK_ROWS", chunk_rows)
    assert difference(optimized(unet), stock(unet)) < TOLERANCE


def test_several_context_tokens_are_attended_to(unet):
    expected = stock(unet, tokens=3)
    assert difference(optimized(unet, tokens=3), expected) < TOLERANCE
    assert difference(expected, stock(unet, tokens=1)) > 0.01


def test_a_noise_level_that_is_not_in_the_schedule(unet):
    c_noise = torch.tensor(1.25)
    assert difference(optimized(unet, c_noise=c_noise), stock(unet, c_noise=c_noise)) < TOLERANCE


def test_cross_attention_to_one_token_ignores_queries_and_keys(unet):
    """The weights that constant cross-attention leaves out have no influence in diffusers, to the bit."""
    expected = stock(unet)
    for name, weight in unet.named_parameters():
        if ".attn2.to_q" in name or ".attn2.to_k" in name or (".norm2." in name and "transformer_blocks" in name):
            weight.mul_(-3.0).add_(0.1)
    assert torch.equal(stock(unet), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_no_less_exact_than_diffusers(dtype):
    """The error against float32, summed over several random models, is at most 1.05 times diffusers'."""
    theirs, ours = 0.0, 0.0
    for seed in range(4):
        unet = tiny_checkpoint(seed=seed).model.unet
        truth = stock(unet)
        unet.to(dtype)
        theirs += difference(stock(unet, dtype=dtype), truth)
        ours += difference(optimized(unet, dtype=dtype), truth)
    assert ours <= 1.05 * theirs


def test_preparing_keeps_names_values_and_memory(unet):
    def memory() -> int:
        storages = {weight.untyped_storage().data_ptr(): weight.untyped_storage() for weight in unet.parameters()}
        return sum(storage.nbytes() for storage in storages.values())

    before = {name: weight.clone() for name, weight in unet.state_dict().items()}
    bytes_before = memory()
    optimized(unet)
    after = unet.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    assert memory() == bytes_before


def test_a_later_change_of_a_weight_takes_effect(unet):
    """A LoRA that is merged into the weights changes precomputed, fused and channels-last weights."""
    optimized(unet)
    for name, weight in unet.named_parameters():
        if name.endswith(("to_q.weight", "to_v.weight", "to_out.0.weight", "conv1.weight", "mix_factor")):
            weight.add_(0.05 * randn(*weight.shape, seed=len(name)))
    assert difference(optimized(unet), stock(copy.deepcopy(unet))) < TOLERANCE


def test_a_replaced_module_is_called(unet):
    """A LoRA that is not merged replaces the projections by modules of its own."""

    class Lora(torch.nn.Module):
        def __init__(self, inner: torch.nn.Linear) -> None:
            super().__init__()
            self.inner, self.down = inner, torch.nn.Parameter(0.1 * randn(2, inner.in_features, seed=5))
            self.up = torch.nn.Parameter(randn(inner.out_features, 2, seed=6))
            self.weight = inner.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x) + x @ self.down.T @ self.up.T

    without = optimized(unet)
    for module in list(unet.modules()):
        if type(module).__name__ == "Attention":
            module.to_q, module.to_v = Lora(module.to_q), Lora(module.to_v)
            module.to_out[0] = Lora(module.to_out[0])
    assert unsupported_reason(unet) is not None
    assert difference(without, stock(unet)) > 0.01
    assert difference(through_denoiser(unet), stock(unet)) < TOLERANCE


def test_weights_are_fused_again_after_a_conversion(unet):
    optimized(unet)
    unet.double().float()
    assert difference(optimized(unet), stock(copy.deepcopy(unet))) < TOLERANCE


def _resnet(unet):
    return unet.down_blocks[0].resnets[0]


def _temporal_conv(unet):
    return _resnet(unet).temporal_res_block.conv1


def _attention(unet):
    return unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1


MODIFICATIONS = {
    "hook": lambda unet: unet.down_blocks[0].register_forward_hook(lambda *arguments: None),
    "hook in the middle": lambda unet: unet.mid_block.register_forward_hook(lambda *arguments: None),
    "hook on a layer": lambda unet: _temporal_conv(unet).register_forward_pre_hook(lambda *arguments: None),
    "forward": lambda unet: setattr(_attention(unet).to_q, "forward", lambda x: x),  # LoRA, caching
    "padding": lambda unet: setattr(_resnet(unet).spatial_res_block.conv1, "padding_mode", "circular"),  # seamless
    "processor": lambda unet: setattr(_attention(unet), "processor", lambda *arguments: None),
    "class": lambda unet: setattr(
        _resnet(unet), "temporal_res_block", torch.nn.Sequential(_resnet(unet).temporal_res_block)
    ),
    "layer": lambda unet: setattr(
        _temporal_conv(unet), "__class__", type("Scaled", (torch.nn.Conv3d,), {"forward": lambda self, x: 2 * x})
    ),
    "parametrization": lambda unet: torch.nn.utils.parametrize.register_parametrization(
        _temporal_conv(unet), "weight", torch.nn.Identity()
    ),
}


@pytest.mark.parametrize("modification", MODIFICATIONS)
def test_a_modified_unet_is_not_supported(unet, modification):
    assert unsupported_reason(unet) is None
    MODIFICATIONS[modification](unet)
    assert unsupported_reason(unet) is not None


@pytest.mark.parametrize(("tokens", "prefetch"), [(1, False), (3, False), (1, True)])
def test_streamed_weights_give_bit_equal_results_and_are_restored(unet, tokens, prefetch, monkeypatch):
    monkeypatch.setattr(unet_module, "WeightStreamer", functools.partial(WeightStreamer, prefetch=prefetch))
    expected = optimized(unet, tokens=tokens)
    before = dict(unet.named_parameters())
    prepared = prepare(unet, tokens=tokens, stream=True)
    for _ in range(2):  # prefetching starts in the second step
        assert torch.equal(prepared(randn(FRAMES, 4, HEIGHT, WIDTH), C_NOISES[0]), expected)
    after = dict(unet.named_parameters())
    assert all(after[name] is weight for name, weight in before.items())


def test_no_matrix_is_used_without_being_copied(unet, monkeypatch):
    """All matrices are NaN where they are stored; only their copies have values."""
    expected = optimized(unet)
    values = {}
    for weight in unet.parameters():
        if weight.ndim > 1:
            values[id(weight)] = weight.clone()
            weight.fill_(torch.nan)
    monkeypatch.setattr(WeightStreamer, "_copy", lambda self, weight: values.get(id(weight), weight).clone())
    assert difference(optimized(unet, stream=True), expected) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(14, 4, 64), (1, 64), (0, 64)])
def test_a_linear_layer_is_exact_for_views_and_each_dtype(shape, dtype):
    weight, bias = randn(48, 64, seed=1).to(dtype), randn(48, seed=2).to(dtype)
    x = randn(*shape).to(dtype)
    for view in (x, x.transpose(0, -2)):
        for each in (bias, bias.repeat_interleave(2)[::2], bias[:1].expand(48), None):
            exact = torch.nn.functional.linear(view.double(), weight.double(), None if each is None else each.double())
            result = layers.linear(view, weight, each)
            assert result.dtype == dtype and result.shape == exact.shape
            assert torch.allclose(result.double(), exact, rtol=0.01, atol=0.1 if dtype == torch.bfloat16 else 1e-4)
