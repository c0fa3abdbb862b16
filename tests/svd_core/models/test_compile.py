"""torch.compile on the pieces and on a whole step: the same numbers, few programs, none where no compiler is."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch
from error_checks import check_facts
from svd_stages.svd_core.models import attention_backend, compile, layers
from svd_stages.svd_core.models import unet as rewriting
from svd_stages.svd_core.models.compile import CompiledStep, RegionalCompiler
from svd_stages.svd_core.models.optimizations import ALL, Optimizations
from svd_stages.svd_core.models.options import ModelOptions
from svd_stages.svd_core.models.unet import PreparedUNet
from tiny import tiny_checkpoint
from torch._dynamo.exc import FailOnRecompileLimitHit
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
    compilers = {True: RegionalCompiler(layers.COMPILABLE), False: RegionalCompiler(layers.COMPILABLE_OFF_CPU)}
    monkeypatch.setattr(rewriting, "COMPILERS", compilers)
    monkeypatch.setattr(rewriting, "COMPILED_STEP", CompiledStep(PreparedUNet._network))


@pytest.fixture
def traced_only(monkeypatch):
    """Programs are traced and run by Python: what is compiled, how often, and not by what."""
    compile_with = torch.compile
    monkeypatch.setattr(
        compile.torch, "compile", lambda function, **told: compile_with(function, **{**told, "backend": "eager"})
    )


def answer(
    unet, compile_mode: str, size=(5, 16, 24), seed: int = 0, level: int = 0, optimizations: Optimizations = ALL
):
    frames, height, width = size
    embeds, latents = drawn(1, 1, 32, seed=seed + 2), drawn(frames, 4, height, width, seed=seed + 1)
    options = ModelOptions(compile=compile_mode)
    prepared = PreparedUNet(unet, embeds, latents, TIME_IDS, C_NOISES, optimizations, options=options)
    return prepared(drawn(frames, 4, height, width), C_NOISES[level])


def broken(mode: str) -> bool:
    return rewriting.COMPILERS[True].broken if mode == "regional" else rewriting.COMPILED_STEP.broken


def programs() -> int:
    return counters["stats"]["unique_graphs"]


@pytest.mark.slow
def test_compiled_pieces_give_the_same_numbers(unet):
    wanted, found = answer(unet, "off"), answer(unet, "regional")
    assert programs() > 0 and not broken("regional")
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
    assert not broken(mode)


@pytest.mark.parametrize("channels_last", [True, False])
def test_what_is_compiled_off_the_cpu_takes_every_size_too(unet, traced_only, monkeypatch, channels_last):
    """Also one frame, and a level of one pixel; the layouts of either kind of device."""
    monkeypatch.setitem(rewriting.COMPILERS, True, rewriting.COMPILERS[False])
    optimizations = replace(ALL, channels_last=channels_last)
    for size in ((5, 16, 24), (5, 8, 8), (1, 16, 24), (1, 8, 8), (2, 9, 13), (14, 16, 16)):
        wanted, found = (answer(unet, mode, size, optimizations=optimizations) for mode in ("off", "regional"))
        assert (found - wanted).norm() <= 1e-5 * wanted.norm()
    assert not broken("regional")
    programs_by_piece = rewriting.COMPILERS[True]._programs._programs.values()
    assert all(program not in layers.COMPILABLE_OFF_CPU for program in programs_by_piece)  # none met torch's limit


def test_kernels_that_are_asked_for_later_are_taken(traced_only):
    """They are chosen while a program is made, so each choice has its own."""
    run = RegionalCompiler({layers.attention_: -1})
    for context in (
        attention_backend.default_sdpa,
        attention_backend.prefer_hopper_sdpa,
        attention_backend.default_sdpa,
    ):
        arguments = (torch.ones(8), torch.zeros(8), 1e-5, (drawn(24, 8),), (None,), drawn(8, 8), None, 2, context)
        rows = drawn(2, 5, 8)
        wanted = layers.attention_(rows.clone(), *arguments)
        assert torch.allclose(run(layers.attention_, rows, *arguments), wanted, atol=1e-6)
    assert len(run._programs._programs) == 2 and not run.broken


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
        raise RuntimeError("g++")

    compile_with = torch.compile
    monkeypatch.setattr(
        compile.torch, "compile", lambda function, **told: compile_with(function, **{**told, "backend": refuse})
    )
    with caplog.at_level(logging.WARNING, logger=compile.logger.name):
        assert torch.equal(answer(unet, mode), answer(unet, "off"))
    (record,) = caplog.records
    check_facts(record.message, "g++", "compile", "off")


def test_an_error_of_the_work_itself_is_not_taken_for_the_compilers(traced_only):
    def sixth(rows):
        return rows[5]

    run = RegionalCompiler({sixth: -1})
    with pytest.raises(IndexError):
        run(sixth, torch.ones(2, 3))
    assert not run.broken
    assert run(sixth, torch.ones(6, 3)).shape == (3,)


def test_a_piece_that_met_too_many_kinds_of_tensors_runs_as_it_is_and_no_other_does(monkeypatch):
    def refuse(function, **told):
        if "limited" not in function.__name__:
            return function

        def limit(*arguments):
            raise FailOnRecompileLimitHit("too many")

        return limit

    def limited(rows):
        return rows + 1

    def other(rows):
        return rows + 2

    monkeypatch.setattr(compile.torch, "compile", refuse)
    run = RegionalCompiler({limited: -1, other: -1})
    for _ in range(2):
        assert run(limited, torch.ones(1, 2))[0, 0] == 2
        assert run(other, torch.ones(1, 2))[0, 0] == 3
    assert not run.broken


def test_a_system_without_a_compiler_at_all_is_said_once(monkeypatch, caplog):
    def refuse(function, **told):
        raise RuntimeError("Dynamo is not supported on Python 3.99+")

    def more(rows):
        return rows + 1

    monkeypatch.setattr(compile.torch, "compile", refuse)
    run = RegionalCompiler({more: -1})
    assert run(more, torch.ones(1, 2))[0, 0] == 2 and run(more, torch.ones(1, 2))[0, 0] == 2
    assert run.broken and [record.levelname for record in caplog.records] == ["WARNING"]
