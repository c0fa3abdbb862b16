"""torch.compile on the pieces and on a whole step: the same numbers, few programs, none where no compiler is."""

from __future__ import annotations

import logging

import pytest
import torch
from svd_stages.svd_core.fuse import compiling, layers
from svd_stages.svd_core.fuse import unet as rewriting
from svd_stages.svd_core.fuse.compiling import Compiler, Whole
from svd_stages.svd_core.fuse.unet import PreparedUNet
from svd_stages.svd_core.options import ModelOptions
from tiny import tiny_checkpoint
from torch._dynamo.utils import counters

C_NOISES = torch.tensor([0.7, -0.3])
TIME_IDS = torch.tensor([[6.0, 127.0, 0.02]])


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed))


@pytest.fixture(scope="module")
def unet() -> torch.nn.Module:
    return tiny_checkpoint().model.unet


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """No programs of other tests; an eager backend where a test asks for one."""
    torch._dynamo.reset()
    counters.clear()
    monkeypatch.setattr(rewriting, "COMPILERS", {"cpu": Compiler(layers.COMPILED)})
    monkeypatch.setattr(rewriting, "STEPS", {})


@pytest.fixture
def traced_only(monkeypatch):
    """Programs are traced and run by Python: what is compiled, how often, and not by what."""
    compile_with = torch.compile
    monkeypatch.setattr(
        compiling.torch, "compile", lambda function, **told: compile_with(function, backend="eager", fullgraph=True)
    )


def answer(unet, compile_mode: str, size: tuple[int, int, int] = (5, 16, 24), seed: int = 0, level: int = 0):
    frames, height, width = size
    embeds, latents = drawn(1, 1, 32, seed=seed + 2), drawn(frames, 4, height, width, seed=seed + 1)
    options = ModelOptions(compile=compile_mode)
    prepared = PreparedUNet(unet, embeds, latents, TIME_IDS, C_NOISES, options=options)
    return prepared(drawn(frames, 4, height, width), C_NOISES[level])


def programs() -> int:
    return counters["stats"]["unique_graphs"]


@pytest.mark.slow
def test_compiled_pieces_give_the_same_numbers(unet):
    wanted, found = answer(unet, "off"), answer(unet, "regional")
    assert programs() > 0 and not rewriting.COMPILERS["cpu"]._broken
    assert (found - wanted).norm() <= 1e-5 * wanted.norm()


@pytest.mark.parametrize("mode", ["regional", pytest.param("full", marks=pytest.mark.slow)])
def test_steps_sides_and_videos_share_their_programs_and_sizes_need_few(unet, traced_only, mode):
    wanted, found = answer(unet, "off"), answer(unet, mode)
    assert (found - wanted).norm() <= 1e-5 * wanted.norm()
    first = programs()
    assert 0 < first <= (12 if mode == "regional" else 1)
    for seed, level in ((0, 1), (7, 0), (9, 1)):
        wanted, found = answer(unet, "off", seed=seed, level=level), answer(unet, mode, seed=seed, level=level)
        assert (found - wanted).norm() <= 1e-5 * wanted.norm()
    assert programs() == first
    sizes = [(3, 24, 24), (7, 8, 32), (2, 40, 16)] if mode == "regional" else [(3, 8, 8)]
    for size in sizes:
        wanted, found = answer(unet, "off", size), answer(unet, mode, size)
        assert (found - wanted).norm() <= 1e-5 * wanted.norm()
    assert programs() <= first + (6 if mode == "regional" else len(sizes))


def test_a_weight_that_changes_is_seen_by_the_program(traced_only):
    unet = tiny_checkpoint().model.unet
    before = answer(unet, "regional")
    for name, weight in unet.named_parameters():
        if name.endswith(("to_q.weight", "ff.net.2.weight")):
            weight.add_(0.05 * drawn(*weight.shape, seed=len(name)))
    found, wanted = answer(unet, "regional"), answer(unet, "off")
    assert (found - wanted).norm() <= 1e-5 * wanted.norm() < 1e-3 * (before - wanted).norm()


@pytest.mark.parametrize("mode", ["regional", pytest.param("full", marks=pytest.mark.slow)])
def test_where_there_is_no_compiler_the_network_runs_as_it_is_and_says_so(unet, monkeypatch, mode, caplog):
    def refuse(graph, inputs):
        raise RuntimeError("no C++ compiler was found")

    compile_with = torch.compile
    monkeypatch.setattr(
        compiling.torch, "compile", lambda function, **told: compile_with(function, backend=refuse, fullgraph=True)
    )
    with caplog.at_level(logging.WARNING, logger=compiling.logger.name):
        assert torch.equal(answer(unet, mode), answer(unet, "off"))
    (record,) = caplog.records
    assert "no C++ compiler was found" in record.message and "compile = off" in record.message


def test_an_error_of_the_work_itself_is_not_taken_for_the_compilers(traced_only):
    def fail(rows):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Compiler({layers.geglu_: -1})(fail, torch.ones(2, 3))
    with pytest.raises(IndexError):
        Whole(lambda rows: rows[5])(torch.ones(2, 3))
