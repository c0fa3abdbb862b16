"""The rewritten UNet against diffusers' own forward on the same modules, rewrite by rewrite."""

from __future__ import annotations

import copy
import functools
from dataclasses import fields

import diffusers
import pytest
import torch
from svd_stages.svd_core.diffusion.conditioning import Conditioning, MicroConditioning
from svd_stages.svd_core.diffusion.denoiser import make_denoiser
from svd_stages.svd_core.models import unet as rewriting
from svd_stages.svd_core.models.optimizations import ALL, Optimizations, unsupported_reason
from svd_stages.svd_core.models.unet import PreparedUNet
from svd_stages.svd_core.models.weight_streaming import WeightStreamer
from tiny import tiny_checkpoint

FRAMES, HEIGHT, WIDTH = 5, 16, 24
C_NOISES = torch.tensor([0.7, -0.3])
TIME_IDS = torch.tensor([[6.0, 127.0, 0.02]])
SWITCHES = [field.name for field in fields(Optimizations)]
ALONE = {name: Optimizations(**{each: each == name for each in SWITCHES}) for name in SWITCHES}
WITHOUT = {f"all but {name}": Optimizations(**{name: False}) for name in SWITCHES}
TOLERANCE = 1e-5


@pytest.fixture
def unet() -> torch.nn.Module:
    """One of this test alone: preparing changes layouts, and tests change weights."""
    return tiny_checkpoint().model.unet


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed))


def stock(unet, size=(HEIGHT, WIDTH), tokens=1, dtype=torch.float32, c_noise=C_NOISES[0]) -> torch.Tensor:
    """diffusers' answer."""
    sample = torch.cat([drawn(FRAMES, 4, *size), drawn(FRAMES, 4, *size, seed=1)], dim=1)[None].to(dtype)
    told = {"encoder_hidden_states": drawn(1, tokens, 32, seed=2).to(dtype), "added_time_ids": TIME_IDS}
    return unet(sample, c_noise, **told, return_dict=False)[0][0].float()


def rewritten(
    unet, optimizations=ALL, size=(HEIGHT, WIDTH), tokens=1, dtype=torch.float32, c_noise=C_NOISES[0], chunk_rows=None
) -> torch.Tensor:
    """Ours to the same question."""
    embeds, latents = drawn(1, tokens, 32, seed=2).to(dtype), drawn(FRAMES, 4, *size, seed=1).to(dtype)
    prepared = PreparedUNet(unet, embeds, latents, TIME_IDS, C_NOISES, optimizations, chunk_rows)
    return prepared(drawn(FRAMES, 4, *size).to(dtype), c_noise).float()


def through_denoiser(unet) -> torch.Tensor:
    """The same question put to the denoiser: v again of the clean latents it gives."""
    c_noise, x = C_NOISES[0], drawn(FRAMES, 4, HEIGHT, WIDTH)
    sigma = (4 * c_noise).exp()
    micro = MicroConditioning()
    side = Conditioning(drawn(1, 1, 32, seed=2), drawn(FRAMES, 4, HEIGHT, WIDTH, seed=1), micro)
    denoise = make_denoiser(unet, side, side, torch.ones(FRAMES), torch.device("cpu"))
    noisy = x[None] * (sigma**2 + 1) ** 0.5
    return ((noisy / (sigma**2 + 1) - denoise(noisy, sigma)) * (sigma**2 + 1) ** 0.5 / sigma)[0]


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours - theirs).norm() / theirs.norm()).item()


EACH = {**ALONE, "all": ALL, "none": Optimizations.none()}
REWRITES = [
    *(pytest.param(each, id=name) for name, each in EACH.items()),
    *(pytest.param(each, id=name, marks=pytest.mark.slow) for name, each in WITHOUT.items()),
]


@pytest.mark.parametrize("optimizations", REWRITES)
def test_each_rewrite_alone_and_all_together_give_diffusers_numbers(unet, optimizations):
    wanted = stock(copy.deepcopy(unet))
    assert difference(rewritten(unet, optimizations), wanted) < TOLERANCE


@pytest.mark.parametrize("size", [(8, 8), (9, 13), (10, 8)])
def test_sizes_that_do_not_halve_evenly(unet, size):
    try:
        wanted = stock(unet, size)
    except RuntimeError as error:
        if "Sizes" not in str(error):
            raise
        pytest.skip(f"diffusers {diffusers.__version__} itself cannot: {error}")
    assert difference(rewritten(unet, size=size), wanted) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("chunk_rows", [1, 7, 100, 10**6])
def test_pieces_of_any_size_give_the_same_numbers(unet, chunk_rows):
    wanted = stock(unet)
    assert difference(rewritten(unet, chunk_rows=chunk_rows), wanted) < TOLERANCE


def test_several_tokens_are_attended_to(unet):
    wanted = stock(unet, tokens=3)
    assert difference(rewritten(unet, tokens=3), wanted) < TOLERANCE
    assert difference(wanted, stock(unet, tokens=1)) > 0.01


def test_a_level_that_was_not_announced(unet):
    c_noise = torch.tensor(1.25)
    wanted = stock(unet, c_noise=c_noise)
    assert difference(rewritten(unet, c_noise=c_noise), wanted) < TOLERANCE


def test_one_token_gives_its_value_to_the_bit(unet):
    """What the fold leaves out has no say: other queries, keys and norms before them, the same output of diffusers."""
    wanted = stock(unet)
    for name, weight in unet.named_parameters():
        if ".attn2.to_q" in name or ".attn2.to_k" in name or (".norm2." in name and "transformer_blocks" in name):
            weight.mul_(-3.0).add_(0.1)
    assert torch.equal(stock(unet), wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_no_less_exact_than_diffusers(dtype):
    """The error to float32, summed over several random models, is at most 1.05 times diffusers' own."""
    theirs, ours = 0.0, 0.0
    for seed in range(4):
        unet = tiny_checkpoint(seed=seed).model.unet
        truth = stock(unet)
        unet.to(dtype)
        theirs += difference(stock(unet, dtype=dtype), truth)
        ours += difference(rewritten(unet, dtype=dtype), truth)
    assert ours <= 1.05 * theirs


def test_preparing_keeps_names_values_and_memory(unet):
    before = {name: weight.clone() for name, weight in unet.state_dict().items()}
    size = memory_of(unet)
    rewritten(unet)
    after = unet.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    assert memory_of(unet) == size


def memory_of(module: torch.nn.Module) -> int:
    storages = {weight.untyped_storage().data_ptr(): weight.untyped_storage() for weight in module.parameters()}
    return sum(storage.nbytes() for storage in storages.values())


def test_a_weight_that_changes_later_is_seen(unet):
    """As a LoRA that is merged into the weights: in all parts that are folded, joined or laid out."""
    rewritten(unet)
    for name, weight in unet.named_parameters():
        if name.endswith(("to_q.weight", "to_v.weight", "to_out.0.weight", "conv1.weight", "mix_factor")):
            weight.add_(0.05 * drawn(*weight.shape, seed=len(name)))
    assert difference(rewritten(unet), stock(copy.deepcopy(unet))) < TOLERANCE


def test_a_module_that_was_replaced_is_called(unet):
    """As a LoRA that stays beside the weights: a module around the projection."""

    class Adapted(torch.nn.Module):
        def __init__(self, inner: torch.nn.Linear) -> None:
            super().__init__()
            self.inner, self.down = inner, torch.nn.Parameter(0.1 * drawn(2, inner.in_features, seed=5))
            self.up = torch.nn.Parameter(drawn(inner.out_features, 2, seed=6))

        @property
        def weight(self) -> torch.Tensor:
            return self.inner.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x) + x @ self.down.T @ self.up.T

    plain = rewritten(unet)
    for module in list(unet.modules()):
        if type(module).__name__ == "Attention":
            module.to_q, module.to_v = Adapted(module.to_q), Adapted(module.to_v)
            module.to_out[0] = Adapted(module.to_out[0])
    assert unsupported_reason(unet) is not None
    assert difference(plain, stock(unet)) > 0.01
    assert difference(through_denoiser(unet), stock(unet)) < TOLERANCE


def test_a_moved_or_converted_module_is_joined_again(unet):
    rewritten(unet)
    unet.double().float()
    assert difference(rewritten(unet), stock(copy.deepcopy(unet))) < TOLERANCE


CHANGES = (
    *("hook", "hook in the middle", "hook on a layer", "forward", "padding"),
    *("processor", "class", "layer", "parametrization"),
)


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_not_known_is_not_rewritten(unet, change):
    assert unsupported_reason(unet) is None
    block = unet.down_blocks[0]
    convolution = block.resnets[0].temporal_res_block.conv1
    if change == "hook":
        block.register_forward_hook(lambda *told: None)
    elif change == "hook in the middle":
        unet.mid_block.register_forward_hook(lambda *told: None)
    elif change == "forward":  # as LoRA and caching of many libraries is put there
        block.attentions[0].transformer_blocks[0].attn1.to_q.forward = lambda x: x
    elif change == "padding":  # for pictures without seams
        block.resnets[0].spatial_res_block.conv1.padding_mode = "circular"
    elif change == "hook on a layer":
        convolution.register_forward_pre_hook(lambda *told: None)
    elif change == "layer":
        convolution.__class__ = type("Scaled", (torch.nn.Conv3d,), {"forward": lambda self, x: 2 * x})
    elif change == "parametrization":
        torch.nn.utils.parametrize.register_parametrization(convolution, "weight", torch.nn.WeightsKey())
    elif change == "processor":
        block.attentions[0].transformer_blocks[0].attn1.processor = lambda *told: None
    else:
        block.resnets[0].temporal_res_block = torch.nn.Sequential(block.resnets[0].temporal_res_block)
    assert unsupported_reason(unet) is not None


@pytest.mark.parametrize(("tokens", "ahead"), [(1, False), (3, False), (1, True)])
def test_weights_that_come_block_by_block_give_the_same_bits_and_leave_again(unet, tokens, ahead, monkeypatch):
    monkeypatch.setattr(rewriting, "WeightStreamer", functools.partial(WeightStreamer, ahead=ahead))
    embeds, latents = drawn(1, tokens, 32, seed=2), drawn(FRAMES, 4, HEIGHT, WIDTH, seed=1)
    wanted = rewritten(unet, tokens=tokens)
    before = dict(unet.named_parameters())
    prepared = PreparedUNet(unet, embeds, latents, TIME_IDS, C_NOISES, stream=True)
    for _ in range(2):  # in the first step nobody knows what follows
        assert torch.equal(prepared(drawn(FRAMES, 4, HEIGHT, WIDTH), C_NOISES[0]), wanted)
    after = dict(unet.named_parameters())
    assert all(after[name] is weight for name, weight in before.items())


def test_no_matrix_is_used_before_it_has_come(unet, monkeypatch):
    """Where they are kept all matrices are NaN; only what is fetched has numbers."""
    wanted = rewritten(unet)
    good = {}
    for weight in unet.parameters():
        if weight.ndim > 1:
            good[id(weight)] = weight.clone()
            weight.fill_(torch.nan)
    monkeypatch.setattr(WeightStreamer, "_copied", lambda self, weight: good.get(id(weight), weight).clone())
    embeds, latents = drawn(1, 1, 32, seed=2), drawn(FRAMES, 4, HEIGHT, WIDTH, seed=1)
    prepared = PreparedUNet(unet, embeds, latents, TIME_IDS, C_NOISES, stream=True)
    assert difference(prepared(drawn(FRAMES, 4, HEIGHT, WIDTH), C_NOISES[0]), wanted) < 1e-6
