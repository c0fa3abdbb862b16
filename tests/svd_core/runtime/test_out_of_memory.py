"""Memory that runs out, and devices that break: told with the way out, nothing kept, and the next run is right."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from chain import Settings, call, conditioned, decoded, sampled
from error_checks import check_error, check_facts, raises
from faults import NamedCuda, change, fail, node, raising, stage_graph, wrap
from svd_stages import headless
from svd_stages.headless.batch.graph_rendering import GraphRenderer
from svd_stages.headless.batch.worker import error_chain, explain_error
from svd_stages.headless.graph import Engine, validate
from svd_stages.svd_core import execution
from svd_stages.svd_core.errors import DeviceLostError, MemoryBudgetError, NodeError, SettingError, SVDStagesError
from svd_stages.svd_core.models.components import Checkpoint
from svd_stages.svd_core.models.options import ModelOptions
from svd_stages.svd_core.runtime import device_errors
from svd_stages.svd_core.runtime.runtime import LocalRuntime, RunWarning, use_runtime
from tiny import mini_checkpoint

CPU_SAYS = "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried 9 B."
SHORTAGES = {
    "a device": lambda: torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "Python": lambda: MemoryError(),
    "torch on Linux": lambda: RuntimeError(CPU_SAYS),
    "torch on Windows": lambda: RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
    "CUDA beside its allocator": lambda: accelerator_error("CUDA error: out of memory"),
    "cuBLAS": lambda: accelerator_error("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "cuBLAS at its start": lambda: RuntimeError(
        "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate`"
    ),
    "cuDNN": lambda: RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    "MPS": lambda: RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"),
}


def accelerator_error(text: str) -> RuntimeError:
    """Make the error that torch raises for a device; since 2.8 it has its own class."""
    kind = getattr(torch, "AcceleratorError", RuntimeError)
    return kind(text)


@pytest.fixture(scope="module")
def mini() -> Checkpoint:
    return mini_checkpoint()


@pytest.fixture(scope="module")
def latent() -> dict:
    return {"samples": torch.randn((9, 4, 8, 8), generator=torch.Generator().manual_seed(4))}


IMAGE = torch.rand((1, 64, 64, 3), generator=torch.Generator().manual_seed(3))


class SmallMemory:
    """A decoder's memory that holds so many frames. What the decoder had made by then is watched."""

    def __init__(self, patch: pytest.MonkeyPatch, frames: int, error=SHORTAGES["a device"]) -> None:
        self.seen: list[int] = []
        self.made: list[weakref.ref] = []

        def wrapper(decode):
            def call(vae, latents, *options):
                self.seen.append(len(latents))
                if len(latents) > frames:
                    activations = latents.repeat(1, 64, 1, 1)
                    self.made.append(weakref.ref(activations))
                    raise error()
                return decode(vae, latents, *options)

            return call

        wrap(patch, "decoder", wrapper)


@pytest.mark.parametrize("shortage", SHORTAGES)
@pytest.mark.parametrize("mode", ["exact", "windowed"])
def test_decoding_that_runs_out_of_memory_says_which_chunk_would_fit(mini, latent, monkeypatch, mode, shortage):
    small = SmallMemory(monkeypatch, 3, SHORTAGES[shortage])
    gc.disable()  # what is let go must be gone without it
    try:
        with raises(MemoryBudgetError, "memory.exhausted", "64x64", "MiB", "chunk_size", 4) as raised:
            decoded(mini, latent, mode, chunk_size=8, context=0)
        assert small.made and [each() for each in small.made] == [None] * len(small.made)
    finally:
        gc.enable()
    assert raised.value.exit_status == 4
    assert raised.value.__cause__ is None and raised.value.__context__ is None
    assert explain_error(raised.value)["why"] == "memory"
    assert {each.device.type for each in mini.vae.module.parameters()} == {"cpu"}
    monkeypatch.undo()
    assert decoded(mini, latent, mode, chunk_size=8, context=0)[0].isfinite().all()


def test_windows_adapt_where_the_user_wants_it_and_the_run_says_so(mini, latent, monkeypatch):
    wanted = decoded(mini, latent, "windowed", chunk_size=2, context=0)[0]
    small, notes = SmallMemory(monkeypatch, 3, SHORTAGES["torch on Linux"]), []
    with use_runtime(LocalRuntime(device_name="cpu", on_oom="adapt", on_note=notes.append)):
        found = decoded(mini, latent, "windowed", chunk_size=8, context=0)[0]
    assert small.seen == [8, 4, 2, 2, 2, 2, 1]
    assert torch.equal(found, wanted)
    facts = {"chunk_size": 2, "asked": 8, "context": 0}
    assert [(note.code, note.facts) for note in notes] == [("memory.smaller_windows", facts)]


@pytest.mark.parametrize("shortage", ["a device", "MPS", "cuBLAS", "cuDNN"])
def test_a_device_is_spared_before_windows_are_made_smaller(mini, latent, monkeypatch, caplog, shortage):
    wanted = decoded(mini, latent, "windowed", chunk_size=8, context=0)[0]
    tried: list[str] = []

    def wrapper(decode):
        def call(vae, latents, activations, on_part):
            tried.append(activations)
            if activations != "offload":
                raise SHORTAGES[shortage]()
            return decode(vae, latents, activations, on_part)

        return call

    wrap(monkeypatch, "decoder", wrapper)
    notes: list[RunWarning] = []
    with use_runtime(NamedCuda(on_oom="adapt", on_note=notes.append)):
        assert torch.equal(decoded(mini, latent, "windowed", chunk_size=8, context=0)[0], wanted)
    assert tried == ["recompute", "offload", "offload"] and notes == []
    assert [each.levelname for each in caplog.records] == ["WARNING"]
    check_facts(caplog.text, "CPU")


@pytest.mark.parametrize(
    ("shortage", "name"),
    [
        ("a device", "euler"),
        ("MPS", "euler"),
        ("cuBLAS", "euler"),
        ("a device", "euler_ancestral"),
        ("a device", "dpmpp_2s_ancestral"),
        ("a device", "uni_pc"),
    ],
)
def test_sampling_that_runs_out_is_tried_with_streamed_weights(mini, monkeypatch, caplog, shortage, name):
    (sampler,) = call("SVDSamplerSelect", sampler_name=name)
    wanted, calls = sampled(mini, IMAGE, Settings(frames=2), sampler=sampler)["samples"], []

    def wrapper(call):
        def fails_in_its_second_call(network, *arguments):
            calls.append(network)
            if len(calls) == 2:
                raise SHORTAGES[shortage]()
            return call(network, *arguments)

        return fails_in_its_second_call

    wrap(monkeypatch, "network", wrapper)
    with use_runtime(NamedCuda()):
        assert torch.equal(sampled(mini, IMAGE, Settings(frames=2), sampler=sampler)["samples"], wanted)
    assert [each.levelname for each in caplog.records] == ["WARNING"]
    streamed, first = (type(network._weights).__name__ for network in (calls[-1], calls[0]))
    assert (first, streamed) == ("function", "WeightStreamer")


def test_no_step_is_reported_twice(mini, monkeypatch):
    calls = []

    def wrapper(call):
        def fails_in_the_second_step(network, *arguments):
            calls.append(network)
            if len(calls) > 2:  # both sides of guidance in each step
                raise SHORTAGES["a device"]()
            return call(network, *arguments)

        return fails_in_the_second_step

    wrap(monkeypatch, "network", wrapper)
    with use_runtime(NamedCuda()), raises(MemoryBudgetError, "memory.exhausted"):
        sampled(mini, IMAGE, Settings(frames=2, steps=3))
    assert len(calls) == 3


def test_sampling_with_weights_where_the_user_put_them_is_not_tried_again(mini, monkeypatch):
    fail(monkeypatch, "network", SHORTAGES["a device"])
    resident = replace(mini, model=replace(mini.model, options=ModelOptions(memory="resident")))
    with use_runtime(NamedCuda()), raises(MemoryBudgetError, "memory.exhausted"):
        sampled(resident, IMAGE, Settings(frames=2))


@pytest.mark.parametrize(("mode", "on_oom"), [("exact", "adapt"), ("windowed", "strict")])
def test_other_pixels_are_never_made_unasked(mini, latent, monkeypatch, mode, on_oom):
    small = SmallMemory(monkeypatch, 3, SHORTAGES["Python"])
    with use_runtime(LocalRuntime(device_name="cpu", on_oom=on_oom)), pytest.raises(MemoryBudgetError):
        decoded(mini, latent, mode, chunk_size=8, context=0)
    assert len(small.seen) == 1


def test_windows_of_one_frame_that_do_not_fit_are_an_error(mini, latent, monkeypatch):
    small = SmallMemory(monkeypatch, 0, SHORTAGES["Python"])
    with use_runtime(LocalRuntime(device_name="cpu", on_oom="adapt")), pytest.raises(MemoryBudgetError) as raised:
        decoded(mini, latent, "windowed", chunk_size=4, context=0)
    assert small.seen == [4, 2, 1] and "chunk_size" not in str(raised.value)
    check_error(raised.value, "memory.exhausted", 1, "64x64")


def test_another_word_for_it_is_refused():
    with raises(SettingError, "setting", "on_oom", "strict", "adapt", "perhaps"):
        LocalRuntime(on_oom="perhaps")  # pyright: ignore[reportArgumentType]


def test_sampling_that_runs_out_says_what_it_takes_and_the_next_prompt_uses_what_was_computed(monkeypatch):
    prompt = {
        "file": node("LoadImage", image="rocket.png"),
        "load": node("SVDResizeImage", image=["file", 0], width=64, height=64),
        "ckpt": node("SVDCheckpointLoader", checkpoint="svd-nano", precision="fp32"),
        **stage_graph({"seed": 1, "steps": 1}),
    }
    engine, ran = Engine(headless.NODES, "classic"), []

    def run(engine: Engine) -> torch.Tensor:
        ran.clear()

        def tell(event: str, data: dict) -> None:
            if event == "executing":
                ran.append(data["node"])

        with use_runtime(LocalRuntime(device_name="cpu", input_folder=headless.PACKAGE / "example_workflows")):
            checked = validate(prompt, headless.NODES, keep=["decode"])
            return engine.run(checked.prompt, [], keep=["decode"], on_event=tell).values["decode"][0][0]

    with monkeypatch.context() as patch:
        fail(patch, "network", SHORTAGES["a device"])
        with raises(NodeError, "memory.exhausted", 2, "64x64", "memory", "stream") as raised:
            run(engine)
    assert raised.value.node_id == "sample"
    found = run(engine)
    assert ran == ["sample", "decode"]
    assert torch.equal(found, run(Engine(headless.NODES)))


@pytest.mark.parametrize("shortage", SHORTAGES)
@pytest.mark.parametrize(("stage", "fact"), [("clip", "CLIP"), ("encoder", "64x64")])
def test_images_that_do_not_fit_are_an_error(mini, monkeypatch, stage, fact, shortage):
    fail(monkeypatch, stage, SHORTAGES[shortage])
    with raises(MemoryBudgetError, "memory.exhausted", fact):
        conditioned(mini, IMAGE, Settings(frames=2))


def test_a_checkpoint_that_does_not_fit_is_told(monkeypatch):
    from svd_stages.svd_core.checkpoints import load

    monkeypatch.setattr(load, "load_checkpoint", raising(SHORTAGES["torch on Linux"]))
    with raises(MemoryBudgetError, "memory.exhausted", "svd-nano"):
        execution.load(LocalRuntime(device_name="cpu"), "svd-nano", "fp32")


LOST = ("CUDA error: an illegal memory access was encountered", "CUDA error: unspecified launch failure")


@pytest.mark.parametrize("text", LOST)
def test_a_device_that_breaks_is_an_error_of_its_own_and_ends_a_workers_process(mini, monkeypatch, text):
    given = {"load": [[IMAGE]], "ckpt": [[mini.model], [mini.clip_vision], [mini.vae]]}
    fail(monkeypatch, "network", lambda: accelerator_error(text))
    checked = validate(stage_graph({"seed": 1, "steps": 1}), headless.NODES, precomputed=given, keep=["decode"])
    with raises(NodeError, "device.lost", "sample") as raised:
        Engine(headless.NODES).run(checked.prompt, [], precomputed=given, keep=["decode"])
    assert text in str(raised.value) and raised.value.exit_status == 4
    is_lost = partial(GraphRenderer.is_lost, SimpleNamespace())  # pyright: ignore[reportArgumentType]
    assert any(map(is_lost, error_chain(raised.value)))


def test_what_is_a_shortage_is_no_loss_and_nothing_else_is_either():
    for name, error in SHORTAGES.items():
        assert device_errors.is_memory_error(error()) and not device_errors.is_device_lost(error()), name
    for text in LOST:
        assert device_errors.is_device_lost(accelerator_error(text)) and not device_errors.is_memory_error(
            accelerator_error(text)
        )
    others = (
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("out of memory"), OSError(12, "ENOMEM"),
        accelerator_error("CUDA error: no kernel image is available for execution on the device"),
    )  # fmt: skip
    for error in others:
        assert not device_errors.is_memory_error(error) and not device_errors.is_device_lost(error), error


def test_an_error_of_one_call_is_no_loss_while_the_device_computes(monkeypatch):
    texts = ("invalid configuration argument", "CUBLAS_STATUS_NOT_SUPPORTED when calling `cublasGemmEx(...)`")
    monkeypatch.setattr(device_errors, "_devices_compute", lambda: True)
    assert not any(device_errors.is_device_lost(accelerator_error(f"CUDA error: {text}")) for text in (*texts, *LOST))
    monkeypatch.setattr(device_errors, "_devices_compute", lambda: False)
    assert all(device_errors.is_device_lost(accelerator_error(f"CUDA error: {text}")) for text in texts)


@pytest.mark.parametrize(("error", "computes"), [(LOST[0], False), ("CUDA error: out of memory", True), ("", True)])
def test_devices_with_memory_of_this_process_are_probed(monkeypatch, error, computes):
    asked = []

    def synchronize(index):
        asked.append(index)
        if error:
            raise accelerator_error(error)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda index: index)
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    monkeypatch.setattr(torch, "ones", lambda *_, device: torch.zeros(1))
    assert device_errors._devices_compute() is computes
    assert asked == ([1] if error else [1, 2])


def test_other_errors_go_through_as_they_are():
    host = LocalRuntime(device_name="cpu")
    for error in (RuntimeError("shapes"), SettingError("wrong"), KeyboardInterrupt(), SVDStagesError("ours")):
        with pytest.raises(type(error)) as raised:
            device_errors.translate_device_errors(host, raising(lambda error=error: error), lambda: "never asked")
        assert raised.value is error
    assert issubclass(DeviceLostError, SVDStagesError)


def test_float32_is_tried_in_the_memory_that_it_takes(latent, monkeypatch):
    """The host is asked for float32's activations and weights; the weights are the decoder's own again afterwards."""
    mini, asked = mini_checkpoint(torch.float16), []

    class Asked(LocalRuntime):
        def on_device(self, part, need=0, after="default"):
            asked.append(need)
            return super().on_device(part, need, after)

    decoded(mini, latent, "windowed", chunk_size=4, context=0)  # which lays out its convolutions, once
    change(monkeypatch, "decoder", lambda pixels: pixels if pixels.dtype == torch.float32 else pixels * float("inf"))
    before = {name: weight for name, weight in mini.vae.module.named_parameters()}
    pointers = {name: weight.data_ptr() for name, weight in before.items()}
    with use_runtime(Asked(device_name="cpu")):
        decoded(mini, latent, "windowed", chunk_size=4, context=0)
    weights = 4 * sum(each.numel() for each in mini.vae.vae.decoder.parameters())
    assert len(asked) == 2 and asked[1] == 2 * asked[0] + weights
    after = dict(mini.vae.module.named_parameters())
    assert all(after[name] is weight for name, weight in before.items())
    assert {name: weight.data_ptr() for name, weight in after.items()} == pointers
