"""torch.compile on functions and on a whole step: equal results, few compilations, eager without a compiler."""

from __future__ import annotations

import logging

import pytest
import torch
from error_checks import check_facts
from svd_stages.svd_core.models import attention_backend, compile, layers
from svd_stages.svd_core.models import unet as unet_module
from svd_stages.svd_core.models.compile import CompiledStep, RegionalCompiler
from svd_stages.svd_core.models.options import ModelOptions
from svd_stages.svd_core.models.unet import PreparedUNet
from tiny import randn, tiny_checkpoint
from torch._dynamo.exc import FailOnRecompileLimitHit
from torch._dynamo.utils import counters

C_NOISES = torch.tensor([0.7, -0.3])
TIME_IDS = torch.tensor([[6.0, 127.0, 0.02]])
MODES = ["regional", pytest.param("full", marks=pytest.mark.slow)]


@pytest.fixture(scope="module")
def unet() -> torch.nn.Module:
    return tiny_checkpoint().model.unet


@pytest.fixture(autouse=True)
def _empty_caches(monkeypatch):
    """Drop the compiled functions of other tests."""
    torch._dynamo.reset()
    counters.clear()
    compilers = {True: RegionalCompiler(layers.COMPILABLE), False: RegionalCompiler(layers.COMPILABLE_OFF_CPU)}
    monkeypatch.setattr(unet_module, "COMPILERS", compilers)
    monkeypatch.setattr(unet_module, "COMPILED_STEP", CompiledStep(PreparedUNet._forward))


def use_backend(monkeypatch, backend) -> None:
    """Make torch.compile use `backend`."""
    original = torch.compile
    monkeypatch.setattr(
        compile.torch, "compile", lambda function, **options: original(function, **{**options, "backend": backend})
    )


@pytest.fixture
def traced_only(monkeypatch):
    """Trace functions and run the graphs in Python, without code generation."""
    use_backend(monkeypatch, "eager")


def predict(unet, mode: str, size=(5, 16, 24), seed: int = 0, level: int = 0, channels_last="auto"):
    frames, height, width = size
    embeds, latents = randn(1, 1, 32, seed=seed + 2), randn(frames, 4, height, width, seed=seed + 1)
    options = ModelOptions(compile=mode, channels_last=channels_last)
    prepared = PreparedUNet(unet, embeds, latents, TIME_IDS, C_NOISES, options=options)
    return prepared(randn(frames, 4, height, width), C_NOISES[level])


def check_equal(unet, mode: str, *arguments, **options) -> None:
    """Compare a compiled prediction with the eager one."""
    eager, compiled = (predict(unet, each, *arguments, **options) for each in ("off", mode))
    assert (compiled - eager).norm() <= 1e-5 * eager.norm()


def broken(mode: str) -> bool:
    return unet_module.COMPILERS[True].broken if mode == "regional" else unet_module.COMPILED_STEP.broken


def compiled_graphs() -> int:
    return counters["stats"]["unique_graphs"]


@pytest.mark.slow
def test_compiled_functions_give_the_same_result(unet):
    check_equal(unet, "regional")
    assert compiled_graphs() > 0 and not broken("regional")


@pytest.mark.parametrize("mode", MODES)
def test_steps_sides_and_videos_share_compiled_graphs_and_sizes_need_few(unet, traced_only, mode):
    check_equal(unet, mode)
    first = compiled_graphs()
    assert 0 < first <= (12 if mode == "regional" else 1)
    for seed, level in ((0, 1), (7, 0), (9, 1)):
        check_equal(unet, mode, seed=seed, level=level)
    assert compiled_graphs() == first
    sizes = [(3, 24, 24), (7, 8, 32), (2, 40, 16)] if mode == "regional" else [(3, 8, 8)]
    for size in sizes:
        check_equal(unet, mode, size)
    assert compiled_graphs() <= first + (6 if mode == "regional" else len(sizes))
    assert not broken(mode)


@pytest.mark.parametrize("channels_last", ["on", "off"])
def test_functions_compiled_off_the_cpu_take_every_size(unet, traced_only, monkeypatch, channels_last):
    """Sizes include one frame and a level of one pixel; the memory format is that of either kind of device."""
    compiler = unet_module.COMPILERS[False]
    monkeypatch.setitem(unet_module.COMPILERS, True, compiler)
    for size in ((5, 16, 24), (5, 8, 8), (1, 16, 24), (1, 8, 8), (2, 9, 13), (14, 16, 16)):
        check_equal(unet, "regional", size, channels_last=channels_last)
    assert not compiler.broken
    # a function that met torch's recompile limit would be cached itself
    assert all(compiled not in layers.COMPILABLE_OFF_CPU for compiled in compiler._compiled.values())


def test_each_sdpa_context_is_compiled_by_itself(traced_only):
    """The backends are chosen during compilation."""
    run = RegionalCompiler({layers.attention_: -1})
    default, hopper = attention_backend.default_sdpa, attention_backend.prefer_hopper_sdpa
    for context in (default, hopper, default):
        norm = (torch.ones(8), torch.zeros(8), 1e-5)
        arguments = (norm, ((randn(24, 8), None),), (randn(8, 8), None), 2, context)
        rows = randn(2, 5, 8)
        expected = layers.attention_(rows.clone(), *arguments)
        assert torch.allclose(run(layers.attention_, rows, *arguments), expected, atol=1e-6)
    assert len(run._compiled) == 2 and not run.broken


def test_a_changed_weight_takes_effect_in_compiled_functions(traced_only):
    unet = tiny_checkpoint().model.unet
    before = predict(unet, "regional")
    for name, weight in unet.named_parameters():
        if name.endswith(("to_q.weight", "ff.net.2.weight")):
            weight.add_(0.05 * randn(*weight.shape, seed=len(name)))
    compiled, eager = predict(unet, "regional"), predict(unet, "off")
    assert (compiled - eager).norm() <= 1e-5 * eager.norm() < 1e-3 * (before - eager).norm()


@pytest.mark.parametrize("mode", MODES)
def test_without_a_compiler_the_network_runs_eagerly_with_a_warning(unet, monkeypatch, mode, caplog):
    def refuse(graph, inputs):
        raise RuntimeError("g++")

    use_backend(monkeypatch, refuse)
    with caplog.at_level(logging.WARNING, logger=compile.logger.name):
        assert torch.equal(predict(unet, mode), predict(unet, "off"))
    (record,) = caplog.records
    check_facts(record.message, "g++", "compile", "off")


def test_an_error_of_the_function_is_not_a_compile_error(traced_only):
    def sixth(rows):
        return rows[5]

    run = RegionalCompiler({sixth: -1})
    with pytest.raises(IndexError):
        run(sixth, torch.ones(2, 3))
    assert not run.broken
    assert run(sixth, torch.ones(6, 3)).shape == (3,)


class TritonError(Exception):
    __module__ = "triton.runtime.errors"


LAUNCHES = (
    TritonError("out of resource: shared memory, Required: 264192, Hardware limit: 232448."),
    RuntimeError("Triton Error [CUDA]: invalid argument"),
    AssertionError("expected size 4==4, stride 16==1 at dim=1"),
)


@pytest.mark.parametrize("error", LAUNCHES)
def test_a_compiled_function_that_cannot_be_launched_runs_eagerly(monkeypatch, caplog, error):
    def add_one(rows):
        return rows + 1

    def fail(*arguments):
        raise error

    monkeypatch.setattr(compile.torch, "compile", lambda function, **options: fail)
    run = RegionalCompiler({add_one: -1})
    assert [run(add_one, torch.ones(1, 2))[0, 0] for _ in range(2)] == [2, 2]
    assert run.broken and [record.levelname for record in caplog.records] == ["WARNING"]


def test_a_shortage_of_memory_in_compiled_code_is_not_a_compile_error(monkeypatch):
    def fail(*arguments):
        raise RuntimeError("Triton Error [CUDA]: out of memory")

    monkeypatch.setattr(compile.torch, "compile", lambda function, **options: fail)

    def add_one(rows):
        return rows + 1

    run = RegionalCompiler({add_one: -1})
    with pytest.raises(RuntimeError):
        run(add_one, torch.ones(1, 2))
    assert not run.broken


def test_a_function_at_the_recompile_limit_runs_eagerly_and_no_other_does(monkeypatch):
    def limited(rows):
        return rows + 1

    def other(rows):
        return rows + 2

    def fail(*arguments):
        raise FailOnRecompileLimitHit("too many")

    monkeypatch.setattr(
        compile.torch, "compile", lambda function, **options: fail if "limited" in function.__name__ else function
    )
    run = RegionalCompiler({limited: -1, other: -1})
    for _ in range(2):
        assert run(limited, torch.ones(1, 2))[0, 0] == 2
        assert run(other, torch.ones(1, 2))[0, 0] == 3
    assert not run.broken


def test_a_system_without_torch_compile_gives_one_warning(monkeypatch, caplog):
    def refuse(function, **options):
        raise RuntimeError("Dynamo is not supported on Python 3.99+")

    def add_one(rows):
        return rows + 1

    monkeypatch.setattr(compile.torch, "compile", refuse)
    run = RegionalCompiler({add_one: -1})
    assert run(add_one, torch.ones(1, 2))[0, 0] == 2 and run(add_one, torch.ones(1, 2))[0, 0] == 2
    assert run.broken and [record.levelname for record in caplog.records] == ["WARNING"]


def test_a_mode_compiles_each_shape_once_and_statically(monkeypatch):
    calls = []

    def fake_compile(function, **options):
        calls.append(options)
        return function

    monkeypatch.setattr(compile.torch, "compile", fake_compile)
    compiler = RegionalCompiler({layers.group_norm_silu: 1}, mode="max-autotune-no-cudagraphs")
    weight, bias = torch.ones(32), torch.zeros(32)
    for shape in ((2, 32, 4, 4), (2, 32, 4, 4), (2, 32, 8, 4)):
        compiler(layers.group_norm_silu, randn(*shape), weight, bias, 32, 1e-5)
    assert [(each["mode"], each["dynamic"]) for each in calls] == [("max-autotune-no-cudagraphs", False)] * 2
