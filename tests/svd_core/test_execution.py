"""The stages with a host around them: many videos, memory, being stopped, precision given back."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import pytest
import torch
from chain import Settings, call, conditioned, decoded, sampled
from error_checks import check_facts, raises
from svd_stages.svd_core import execution
from svd_stages.svd_core.autoencoder.encode import encode_images
from svd_stages.svd_core.diffusion.conditioning import Conditioning, MicroConditioning
from svd_stages.svd_core.diffusion.guidance import GuidanceCurve
from svd_stages.svd_core.diffusion.sampling import SamplerStep
from svd_stages.svd_core.diffusion.schedules import make_sigmas
from svd_stages.svd_core.errors import Interrupted, MemoryBudgetError, SettingError
from svd_stages.svd_core.models.components import SVDVae
from svd_stages.svd_core.models.options import ModelOptions
from svd_stages.svd_core.models.weight_streaming import streamed_bytes
from svd_stages.svd_core.runtime import memory
from svd_stages.svd_core.runtime.memory import place_weights
from svd_stages.svd_core.runtime.runtime import LocalRuntime, use_runtime
from tiny import randn, tiny_checkpoint

CPU = torch.device("cpu")


class StoppingRuntime(LocalRuntime):
    """Stops after a number of progress calls, as a user does."""

    @contextmanager
    def progress(self, stage, total, unit):
        def advance(done):
            if done >= 2:
                raise Interrupted("stopped")

        yield advance


class SmallRuntime(LocalRuntime):
    """A machine with next to no memory."""

    def free_memory(self, device) -> int:
        return 2**20


def euler(model, positive, negative, latent, steps: int = 1, **more) -> dict:
    """Return the LATENT of SVDEulerSampler."""
    settings = {"seed": 1, "steps": steps, "min_guidance": 1.0, "max_guidance": 3.0, "noise": "comfyui", **more}
    (sampled,) = call("SVDEulerSampler", model=model, positive=positive, negative=negative, latent=latent, **settings)
    return sampled


@pytest.fixture(scope="module")
def two_images() -> torch.Tensor:
    return torch.rand((2, 80, 96, 3), generator=torch.Generator("cpu").manual_seed(5))


def test_many_images_make_videos_that_equal_their_single_runs(tiny, two_images):
    settings = Settings(frames=3, seed=2**64 - 1)
    together = sampled(tiny, two_images, settings)
    assert together["samples"].shape == (6, 4, 8, 8) and together["svd"] == {"frames": 3}
    videos = decoded(tiny, together, "windowed", chunk_size=2, context=1)
    assert [tuple(video.shape) for video in videos] == [(3, 64, 64, 3)] * 2
    for index, seed in enumerate([2**64 - 1, 0]):
        alone = sampled(tiny, two_images[index : index + 1], Settings(frames=3, seed=seed))
        assert torch.equal(together["samples"][3 * index : 3 * index + 3], alone["samples"])
        assert torch.equal(videos[index], decoded(tiny, alone, "windowed", chunk_size=2, context=1)[0])


def test_a_widget_run_equals_a_run_with_wired_sigmas_and_guidance(tiny, images):
    settings = Settings(frames=2, steps=3)
    (sigmas,) = call("SVDSigmas", steps=3, schedule="karras", sigma_min=0.002, sigma_max=700.0, rho=7.0)
    (curve,) = call("SVDGuidance", shape="linear", min_guidance=1.0, max_guidance=3.0)
    plain = sampled(tiny, images, settings)["samples"]
    wired = sampled(tiny, images, Settings(frames=2, steps=9, min_guidance=9.0), sigmas=sigmas, guidance=curve)
    assert torch.equal(plain, wired["samples"])


def test_two_halves_of_a_schedule_equal_the_whole(tiny, images):
    settings = Settings(frames=2)
    (sigmas,) = call("SVDSigmas", steps=6, schedule="karras", sigma_min=0.002, sigma_max=700.0, rho=7.0)
    positive, negative, empty = conditioned(tiny, images, settings)
    whole = euler(tiny.model, positive, negative, empty, sigmas=sigmas)
    first = euler(tiny.model, positive, negative, empty, sigmas=sigmas[:4])
    second = euler(tiny.model, positive, negative, first, noise="none", sigmas=sigmas[3:])
    assert torch.allclose(second["samples"], whole["samples"], rtol=1e-4, atol=1e-4)


def test_little_memory_changes_the_calls_and_not_the_video(tiny, images):
    settings = Settings(frames=3)
    plain = sampled(tiny, images, settings)["samples"]
    with use_runtime(SmallRuntime()):
        small = sampled(tiny, images, settings)["samples"]
    assert (small - plain).abs().max() <= 1e-5 * plain.abs().max()


def test_exact_decoding_refuses_where_windowed_works(tiny, images):
    latent = sampled(tiny, images, Settings(frames=3, steps=1))
    with use_runtime(SmallRuntime()):
        with raises(MemoryBudgetError, "memory", 3, "64x64", "MiB", "windowed", "chunk_size"):
            decoded(tiny, latent, "exact")
        assert decoded(tiny, latent, "windowed", chunk_size=2)[0].shape == (3, 64, 64, 3)


def test_a_stop_takes_effect_within_a_step_and_a_window(tiny, images):
    positive, negative, empty = conditioned(tiny, images, Settings(frames=4))
    latent = sampled(tiny, images, Settings(frames=4, steps=1))
    with use_runtime(StoppingRuntime()):
        with pytest.raises(Interrupted):
            euler(tiny.model, positive, negative, empty, steps=1000)
        with pytest.raises(Interrupted):
            decoded(tiny, latent, "windowed", chunk_size=1)


def test_a_latent_of_another_size_than_the_image_is_refused(tiny, images):
    positive, negative, _ = conditioned(tiny, images, Settings(frames=2))
    with raises(SettingError, "setting", "128x64", "64x64"):
        euler(tiny.model, positive, negative, {"samples": torch.zeros((2, 4, 8, 16))})


def test_what_arrives_on_a_wire_is_not_changed(tiny, images):
    positive, negative, empty = conditioned(tiny, images, Settings(frames=2))
    before = copy.deepcopy((positive, negative, empty))
    euler(tiny.model, positive, negative, empty)
    call(
        "SVDMicroConditioning", positive=positive, negative=negative, fps=9, motion_bucket_id=1, noise_aug_strength=1.0
    )
    for now, then in zip((positive, negative), before[:2], strict=True):
        assert torch.equal(now[0][0], then[0][0])
        assert {key: value for key, value in now[0][1].items() if key != "concat_latent_image"} == {
            key: value for key, value in then[0][1].items() if key != "concat_latent_image"
        }
    assert torch.equal(empty["samples"], before[2]["samples"])


def test_the_encoder_computes_in_float32_and_gets_its_precision_back(tiny, images):
    half = SVDVae(copy.deepcopy(tiny.vae.vae).to(torch.float16))
    resized, _, _ = call("SVDResizeImage", image=images, width=64, height=64, fit="stretch")
    latents = encode_images(half, resized, CPU)
    assert {parameter.dtype for parameter in half.vae.parameters()} == {torch.float16}
    wanted = encode_images(tiny.vae, resized, CPU)
    assert (latents - wanted).abs().max() <= 2e-3 * wanted.abs().max()  # fp16 weights, float32 arithmetic


class SmallCard(LocalRuntime):
    """A device that says it is a card and has little memory; the tensors are on the CPU all the same."""

    def __init__(self, capacity: int) -> None:
        super().__init__(device_name="cpu")
        object.__setattr__(self, "_capacity", capacity)
        object.__setattr__(self, "loaded", [])

    def capacity(self, part) -> int:
        return self._capacity

    @contextmanager
    def on_device(self, part, need=0, after="default"):
        self.loaded.append((part, after))
        with super().on_device(part, need, after) as device:
            yield device


ENOUGH, LITTLE = 2**40, 2**24


@pytest.fixture
def plans(monkeypatch, caplog) -> list[memory.Placement]:
    """Record the placements, planned as for a card. The log is on, so a bad format string fails."""
    caplog.set_level("INFO")
    made = []

    def place(model, need, device, room):
        made.append(place_weights(model, need, torch.device("cuda"), room))
        return made[-1]

    monkeypatch.setattr(execution, "place_weights", place)
    return made


def sampled_with(tiny, capacity: int, **options: str) -> tuple[torch.Tensor, list[str]]:
    """The latents, and for each time that the model was loaded where it was to be afterwards."""
    model = replace(tiny.model, options=ModelOptions(**options))
    host = SmallCard(capacity)
    with use_runtime(host):
        video = sampled(replace(tiny, model=model), IMAGE, Settings(frames=3, steps=2))["samples"]
    return video, [after for part, after in host.loaded if part is model]


IMAGE = torch.rand((1, 64, 64, 3), generator=torch.Generator().manual_seed(3))


def test_weights_stream_where_they_do_not_fit_and_the_video_is_the_same(tiny, plans, caplog):
    video, loaded = sampled_with(tiny, ENOUGH)
    again, loaded_again = sampled_with(tiny, LITTLE)
    assert torch.equal(video, again)
    assert (loaded, loaded_again) == (["default"], [])
    assert [plan.stream for plan in plans] == [False, True]
    said = [record.getMessage() for record in caplog.records if record.getMessage().startswith("sampling:")]
    assert [("on the device" in each, "page-locked" in each) for each in said] == [(True, False), (False, True)]
    for each in said:
        check_facts(each, "131072")


@pytest.mark.parametrize(("option", "loaded"), [("resident", ["keep"]), ("offload", ["offload"]), ("stream", [])])
def test_where_the_weights_are_can_be_said_and_changes_nothing(tiny, plans, option, loaded):
    video, after = sampled_with(tiny, ENOUGH, memory=option)
    assert torch.equal(video, sampled_with(tiny, ENOUGH)[0])
    assert after == loaded


@pytest.mark.parametrize("option", ["resident", "offload", "stream"])
def test_what_does_not_fit_as_it_was_said_is_refused_with_the_way_out(tiny, plans, option):
    room, facts = (2**10, [0]) if option == "stream" else (LITTLE, [16, option, "auto", "stream"])
    with raises(MemoryBudgetError, "memory", "MiB", *facts):
        sampled_with(tiny, room, memory=option)


def test_rows_all_at_once_give_the_same_numbers_and_need_more(tiny):
    whole = replace(tiny.model, options=ModelOptions(forward_chunking="off"))
    size = (25, 72, 128)
    assert memory.denoise_bytes(whole, *size) > 1.3 * memory.denoise_bytes(tiny.model, *size)
    video, _ = sampled_with(tiny, ENOUGH, forward_chunking="off")
    wanted, _ = sampled_with(tiny, ENOUGH)
    assert (video - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def test_a_budget_is_what_is_free_at_most(tiny):
    host = LocalRuntime(device_name="cpu", vram=2**30)
    assert host.free_memory(CPU) == host.capacity(tiny.model) == 2**30
    assert LocalRuntime(device_name="cpu").free_memory(CPU) > 2**30


def options_of(model, **said: str):
    widgets = {"memory": "auto", "forward_chunking": "auto", "compile": "off", "attention": "auto", **said}
    (model,) = call("SVDModelOptions", model=model, **widgets)
    return model


def test_options_add_up_in_any_order_and_leave_the_model_as_it_was(tiny):
    one = options_of(options_of(tiny.model, compile="regional"), memory="stream")
    other = options_of(options_of(tiny.model, memory="stream"), compile="regional")
    assert one.options == other.options == ModelOptions(memory="stream", compile="regional")
    assert tiny.model.options == ModelOptions()
    assert one.unet is tiny.model.unet and one.identity is tiny.model.identity
    assert options_of(one, memory="offload").options == ModelOptions(memory="offload", compile="regional")


def test_other_words_and_other_parts_are_refused(tiny):
    with raises(SettingError, "setting", "memory", "auto", "resident", "offload", "stream", "disk"):
        ModelOptions(memory="disk")
    with raises(SettingError, "setting", "model", "SVDVae"):
        options_of(tiny.vae)


def test_the_work_gets_the_room_that_the_plan_asks_for(tiny, plans, monkeypatch):
    asked = []
    monkeypatch.setattr(
        SmallCard, "reserve_memory", lambda self, component, need: asked.append(need) or nullcontext(CPU)
    )
    sampled_with(tiny, ENOUGH, memory="stream")
    need = memory.denoise_bytes(tiny.model, 3, 8, 8)
    assert asked == [need + streamed_bytes(tiny.model.unet)]


@torch.inference_mode(False)
@torch.no_grad()
def test_the_notice_of_the_built_in_model_comes_once_in_a_process(caplog):
    execution._say_what_embedded_knows.cache_clear()
    for _ in range(2):
        execution.load(LocalRuntime(), "svd-nano", "auto")
    assert [record.args[0] for record in caplog.records] == ["svd-nano"]


def test_both_sides_at_once_give_the_video_of_one_after_the_other():
    """A small model computes both sides of guidance at once, each with half of the threads, also if it is trainable."""
    before = torch.get_num_threads()
    model = tiny_checkpoint().model
    model.unet.requires_grad_(True)
    sides = [
        Conditioning(randn(1, 1, 32, seed=seed), randn(1, 4, 8, 8, seed=seed), MicroConditioning()) for seed in (1, 2)
    ]
    arguments = (model, [tuple(sides)], randn(1, 3, 4, 8, 8), GuidanceCurve(), make_sigmas("karras", 3))
    threads = []

    def on_step(video: int, step: SamplerStep) -> None:
        threads.append(thread_count_of_another_thread())

    torch.set_num_threads(2)
    try:
        at_once = execution.sample(LocalRuntime(owns_process=True), *arguments)
        assert torch.get_num_threads() == 2
        in_order = execution.sample(LocalRuntime(), *arguments, on_step)
    finally:
        torch.set_num_threads(before)
    assert set(threads) == {2}, "the threads of a program that is not ours were changed"
    assert (at_once - in_order).abs().max() <= 1e-5 * in_order.abs().max()


def thread_count_of_another_thread() -> int:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(torch.get_num_threads).result()
