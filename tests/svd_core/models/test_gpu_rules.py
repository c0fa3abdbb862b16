"""What the models do differently on GPUs, as far as a CPU can tell: limits, layouts, formulas, choices."""

from __future__ import annotations

import pytest
import torch
from svd_stages.svd_core.models import attention_backend, group_norm, layers, vae_decoder
from svd_stages.svd_core.models.options import ModelOptions
from svd_stages.svd_core.models.unet import PreparedUNet, spatial_attention_shapes
from tiny import randn, tiny_checkpoint
from torch.utils._python_dispatch import TorchDispatchMode

CUDA, MPS = torch.device("cuda"), torch.device("mps")
C_NOISE = torch.tensor(0.7)


@pytest.fixture
def checkpoint():
    return tiny_checkpoint()


def prepared(unet, height: int = 16, width: int = 24, **arguments) -> PreparedUNet:
    time_ids = torch.tensor([[6.0, 127.0, 0.02]])
    return PreparedUNet(unet, randn(1, 1, 32), randn(3, 4, height, width), time_ids, C_NOISE[None], **arguments)


def test_attention_stays_below_the_limits_of_grids_and_of_mps():
    assert layers._attention_batch(10**6, 5, 14, CUDA) == 65535
    assert layers._attention_batch(14, 5, 9216, CUDA) == 14
    assert layers._attention_batch(14, 5, 9216, MPS) * 5 * 9216**2 <= 2**30 < 3 * 5 * 9216**2
    assert layers._attention_batch(14, 5, 10**6, MPS) == layers._attention_batch(0, 5, 9216, CUDA) == 1


def test_attention_over_more_pixels_than_a_grid_has_gives_the_same_result(checkpoint, monkeypatch):
    x = randn(3, 4, 16, 24, seed=4)
    expected = prepared(checkpoint.model.unet)(x, C_NOISE)
    monkeypatch.setattr(layers, "MAX_BATCH", 7)
    assert torch.allclose(prepared(checkpoint.model.unet)(x, C_NOISE), expected, atol=1e-6)


@pytest.mark.parametrize("channels_last", ["on", "off"])
def test_blocks_keep_the_memory_format_of_their_input(checkpoint, monkeypatch, channels_last):
    seen = []
    original = PreparedUNet._attention

    def watch(self, block, index, x):
        result = original(self, block, index, x)
        seen.append((x.stride(), result.stride()))
        return result

    monkeypatch.setattr(PreparedUNet, "_attention", watch)
    options = ModelOptions(channels_last=channels_last)
    prepared(checkpoint.model.unet, options=options)(randn(3, 4, 16, 24, seed=4), C_NOISE)
    assert len(seen) > 4 and all(before == after for before, after in seen)


class LayoutChanges(TorchDispatchMode):
    """Collects the feature maps that are copied, and the results that are not channels-last."""

    def __init__(self) -> None:
        super().__init__()
        self.copies: list[torch.Size] = []
        self.results: list[torch.Size] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = function._schema.name.removeprefix("aten::")
        if name in ("clone", "copy_", "_to_copy", "contiguous") and result.ndim == 4:
            self.copies.append(result.shape)
        elif name in ("convolution", "native_group_norm", "cat", "add", "add_", "silu_", "upsample_nearest2d"):
            computed = result[0] if isinstance(result, tuple) else result
            if computed.ndim == 4 and not layers.is_channels_last(computed):
                self.results.append(computed.shape)
        return result


def test_a_step_has_one_memory_format(checkpoint):
    model = prepared(checkpoint.model.unet)
    with LayoutChanges() as changes:
        model(randn(3, 4, 16, 24, seed=4), C_NOISE)
    assert changes.copies == [(3, 8, 16, 24)]  # the noisy latents
    assert changes.results == [(3, 8, 16, 24)]  # the latents and the image


def test_decoding_has_one_memory_format(checkpoint, monkeypatch):
    """Tiles are copied into the frames of the clip and out of them. Each frame is one group, of several tiles."""
    decoder, latents = checkpoint.vae.vae.decoder, randn(4, 4, 8, 8)
    monkeypatch.setattr(vae_decoder, "CPU_TILE_NUMEL", 20_000)
    vae_decoder.decode(decoder, latents)  # converts the weights
    with LayoutChanges() as changes:
        vae_decoder.decode(decoder, latents)
    assert changes.copies and {shape[1] for shape in changes.copies} == {4, 3}  # latents, pixels
    assert changes.results == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_moments_of_channels_give_those_of_groups(dtype):
    x, eps = (3 * randn(1, 32, 7, 11) + randn(1, 32, 1, 1, seed=1)).to(dtype), 1e-5
    variance, mean = torch.var_mean(x.float(), dim=(0, 2, 3), correction=0)  # as batch_norm_stats: one pass, float32
    ours = group_norm._moments_of_groups(mean, (variance + eps).rsqrt(), 8, eps)
    exact = torch.var_mean(x.double()[0].unflatten(0, (8, -1)), dim=(1, 2, 3), correction=0)
    assert torch.allclose(ours[0].double(), exact[1], atol=1e-5) and torch.allclose(ours[1].double(), exact[0], 1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_normalizing_by_hand_is_as_exact_as_batch_norm(dtype):
    x = (3 * randn(1, 32, 7, 11)).to(dtype)
    mean, variance, weight, bias = (randn(32, seed=seed) for seed in range(4))
    values = (mean, variance.square() + 0.1, weight, bias)
    exact = torch.nn.functional.batch_norm(x.double(), *(each.double() for each in values), eps=1e-5)
    errors = [
        (normed.double() - exact).norm()
        for normed in (
            group_norm.normalize_wide(x, *values, 1e-5),
            torch.nn.functional.batch_norm(x, *values, eps=1e-5),
        )
    ]
    assert errors[0] <= 1.05 * errors[1]


def test_the_largest_hidden_activations_are_computed_once_where_they_may_be_kept(checkpoint, monkeypatch):
    calls = []
    original = layers.temporal_conv
    monkeypatch.setattr(vae_decoder.layers, "temporal_conv", lambda *call: calls.append(1) or original(*call))
    decoder, latents = checkpoint.vae.vae.decoder, randn(4, 4, 8, 8)
    results, counts = [], []
    for activations in ("recompute", "keep"):
        calls.clear()
        results.append(vae_decoder.decode(decoder, latents, activations))
        counts.append(len(calls))
    assert torch.equal(*results) and counts[1] < counts[0]
    assert counts[1] == 2 * sum(hasattr(each, "time_mixer") for each in decoder.modules()) + 1


def test_decoding_and_a_step_never_wait_for_a_number_of_the_device(checkpoint, monkeypatch):
    model = prepared(checkpoint.model.unet)

    def wait(tensor):
        raise AssertionError("a read waits for the device")

    step = C_NOISE.item()
    monkeypatch.setattr(torch.Tensor, "item", lambda tensor: step if tensor is C_NOISE else wait(tensor))
    vae_decoder.decode(checkpoint.vae.vae.decoder, randn(4, 4, 8, 8))
    model(randn(3, 4, 16, 24), C_NOISE)


def test_the_shapes_of_attention_are_those_of_a_step(checkpoint, monkeypatch):
    seen = set()
    original = layers.F.scaled_dot_product_attention

    def watch(query, key, value):
        if query.shape[2] > 3:  # not over the 3 frames
            seen.add((query.shape[1], query.shape[2], query.shape[3]))
        return original(query, key, value)

    monkeypatch.setattr(layers.F, "scaled_dot_product_attention", watch)
    prepared(checkpoint.model.unet, 16, 24)(randn(3, 4, 16, 24), C_NOISE)
    assert set(spatial_attention_shapes(checkpoint.model.unet, 16, 24)) == seen


@pytest.mark.parametrize(
    ("capability", "fails", "cudnn_first"), [((9, 0), 0, True), ((9, 0), 9, False), ((8, 9), 0, False)]
)
def test_cudnn_comes_first_only_where_it_computes(monkeypatch, capability, fails, cudnn_first):
    tried = []

    def attention(query, key, value):
        tried.append(query.shape[2])
        if query.shape[2] == fails:
            raise RuntimeError("cuDNN Frontend error: [cudnn_frontend] Error: No execution plans support the graph.")

    monkeypatch.setattr(attention_backend.F, "scaled_dot_product_attention", attention)
    monkeypatch.setattr(attention_backend.torch.cuda, "get_device_capability", lambda device: capability)
    zeros = torch.zeros
    monkeypatch.setattr(attention_backend.torch, "zeros", lambda shape, **_: zeros(shape))
    attention_backend._computes.cache_clear()
    for _ in range(2):
        chosen = attention_backend.choose_sdpa(CUDA, torch.float16, [(1, 4, 8), (1, 9, 8)])
        assert (chosen is attention_backend.prefer_hopper_sdpa) is cudnn_first
    assert tried == ([4, 9] if capability >= (9, 0) else [])
    attention_backend._computes.cache_clear()
