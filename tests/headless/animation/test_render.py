"""Several images and seeds: each video is its single run, one load serves all, a failure loses no other."""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import svd_stages
import torch
from error_checks import check_facts, raises
from PIL import Image
from svd_stages import headless
from svd_stages.headless.animation.estimate import VideoEstimate, estimate_memory, estimate_seconds
from svd_stages.headless.animation.render import FailedImage
from svd_stages.headless.cli.main import main
from svd_stages.svd_core import execution
from svd_stages.svd_core.checkpoints.model_metadata import VideoDefaults
from svd_stages.svd_core.errors import SettingError
from svd_stages.svd_core.pipeline import image_to_video
from svd_stages.svd_core.runtime.memory import decode_bytes, denoise_bytes
from svd_stages.svd_core.runtime.runtime import LocalRuntime

QUICK = {"num_frames": 2, "steps": 1, "height": 64}
OPTIONS = ["--frames", "2", "--steps", "1", "--height", "64"]
EXAMPLES = headless.PACKAGE / "example_workflows"


@pytest.fixture
def images(tmp_path, monkeypatch) -> Path:
    """Return a folder with a landscape, a square and a portrait."""
    picture = Image.open(EXAMPLES / "rocket.png").convert("RGB")
    for name, size in (("1.jpg", (128, 64)), ("2.png", (64, 64)), ("3.png", (64, 128))):
        picture.resize(size).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def loads(monkeypatch) -> list[str]:
    names, load = [], execution.load

    def count(runtime, name, precision):
        names.append(name)
        return load(runtime, name, precision)

    monkeypatch.setattr(execution, "load", count)
    return names


def test_each_video_of_images_and_seeds_is_its_single_run(images, loads):
    videos = svd_stages.animate(["1.jpg", images / "2.png"], seeds=range(2), output_type="pil", **QUICK)
    assert [video[0].size for video in videos] == [(128, 64), (128, 64), (64, 64), (64, 64)]
    assert loads == ["svd-nano"]
    for index, (name, seed) in enumerate([("1.jpg", 0), ("1.jpg", 1), ("2.png", 0), ("2.png", 1)]):
        (alone,) = svd_stages.animate(name, seed=seed, output_type="pil", **QUICK)
        assert all(np.array_equal(*pair) for pair in zip(alone, videos[index], strict=True))


def test_tensors_need_videos_of_one_size(images):
    with raises(SettingError, "setting", "128x64", "64x64", "pil"):
        svd_stages.animate(".", **QUICK)
    assert svd_stages.animate(".", width=64, **QUICK).shape == (3, 2, 64, 64, 3)


def test_a_failing_image_loses_no_other(images, loads, capsys):
    Path("2.png").write_text("no image")
    assert main(["animate", "*.*", "gone.png", "-o", "videos", "--seeds", "3-4", "--json", *OPTIONS]) == 4
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    failed = [(each["image"], each["code"]) for each in events if each["event"] == "failed"]
    assert failed == [("2.png", "image.unsupported"), ("gone.png", "image")]
    assert [each["event"] for each in events[-2:]] == ["result", "error"]
    made = [f"videos/{name}_seed{seed}.mp4" for name in (1, 3) for seed in (3, 4)]
    assert events[-2]["files"] == made and all(map(Path, made))
    assert events[-1]["code"] == "output.images_failed" and loads == ["svd-nano"]
    check_facts(events[-1]["message"], "4 of 8")
    assert sorted(path.as_posix() for path in Path("videos").iterdir()) == made


def test_a_failing_stage_loses_no_other(images, monkeypatch, capsys):
    encode, calls = execution.encode, []

    def fail_once(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise SettingError("broken")
        return encode(*arguments)

    monkeypatch.setattr(execution, "encode", fail_once)
    assert main(["animate", ".", *OPTIONS]) == 4
    assert sorted(path.name for path in images.glob("*.mp4")) == ["1.mp4", "3.mp4"]
    assert "2.png" in capsys.readouterr().err


def test_images_of_one_name_never_replace_each_other(images):
    Path("other").mkdir()
    for name in ("2.gif", "other/2.gif"):
        first, second = (Image.open(each).resize((64, 64)).convert("RGB") for each in ("2.png", "3.png"))
        first.save(name, save_all=True, append_images=[second])
    names = ["2.mp4", "2_00002.mp4", "2_00003.mp4", "2_00004.mp4"]
    for force in ([], ["--force"]):
        assert main(["animate", "2.gif", "other/2.gif", *OPTIONS, *force]) == 0
        assert sorted(path.name for path in images.glob("*.mp4")) == names


def test_each_report_has_the_notes_of_its_image(images):
    Image.new("RGBA", (64, 64), (9, 9, 9, 9)).save("2.png")
    damaged = Image.new("RGBA", (64, 64), (9, 9, 9, 9))
    damaged.save("1.gif", save_all=True, append_images=[damaged])
    Path("1.gif").write_bytes(Path("1.gif").read_bytes()[:-40])
    request = headless.FileRequest.make(["1.gif", "2.png", "3.png"], None, headless.VideoSettings(**QUICK), [1, 2])
    results = list(headless.animate_files(request, headless.RunConfig()))
    notes = [[note.code for note in result.notes] for result in results[1:]]
    assert isinstance(results[0], FailedImage)
    assert ["image.transparent" in codes for codes in notes] == [True, True, False, False]
    assert notes[0] == notes[1] and notes[2] == notes[3]


def test_each_video_is_named_in_the_progress_and_as_soon_as_it_is_written(images, monkeypatch, capsys):
    encode, calls = execution.encode, []

    def stop_at_third(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode(*arguments)

    monkeypatch.setattr(execution, "encode", stop_at_third)
    assert main(["animate", ".", *OPTIONS]) == 130
    said = capsys.readouterr()
    assert [line.split(":")[0] for line in said.out.splitlines()] == ["wrote 1.mp4", "wrote 2.mp4"]
    stages = [line.split(":")[0] for line in said.err.splitlines() if "sampling" in line]
    assert stages == ["1/3 1.jpg sampling", "2/3 2.png sampling"]


def test_a_wrong_setting_ends_the_run_at_once(images, loads):
    assert main(["animate", ".", "--fps", "0", *OPTIONS]) == 2
    assert loads == [] and not list(images.glob("*.mp4"))


def test_a_stopped_run_leaves_what_is_complete(images):
    request = headless.FileRequest.make(".", None, headless.VideoSettings(**QUICK))
    with contextlib.closing(headless.animate_files(request, headless.RunConfig())) as results:
        assert next(results).files == [Path("1.mp4")]
    assert sorted(path.name for path in images.iterdir()) == ["1.jpg", "1.mp4", "2.png", "3.png"]


@pytest.mark.parametrize("suffix", [".webm", ".webp", ".png"])
def test_the_graph_of_every_format_makes_the_same_frames(images, suffix):
    assert main(["animate", "1.jpg", "-o", f"clip{suffix}", *OPTIONS]) == 0
    report = headless.run_graph(f"clip{suffix}", input_dir=".", output_dir="again")
    headless.animate_file(Path("1.jpg"), Path("direct.mp4"), headless.VideoSettings(**QUICK), headless.RunConfig())
    assert report.files[0].read_bytes() == Path("direct.mp4").read_bytes()


def test_a_batch_of_images_in_memory_uses_the_next_seeds():
    batch = torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    both = svd_stages.animate(batch, seeds=[5], **QUICK)
    assert torch.equal(both[1:], svd_stages.animate(batch[1:], seed=6, **QUICK))


def test_a_dry_run_prints_each_video_and_writes_nothing(images, loads, capsys):
    before = sorted(images.rglob("*"))
    assert main(["animate", ".", "-o", "new/", "--seeds", "1,2", "--dry-run", "--json", *OPTIONS]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    plans = [each for each in events if each["event"] == "plan"]
    assert [each["output"] for each in plans] == [f"new/{name}_seed{seed}.mp4" for name in (1, 2, 3) for seed in (1, 2)]
    assert all(plan["seconds"] > 0 for plan in plans)
    assert plans[0]["image_size"] == [128, 64] and plans[0]["settings"]["width"] == 128
    assert plans[4]["settings"] | {"height": 64, "width": 64, "seed": 1, "num_frames": 2} == plans[4]["settings"]
    assert events[-1]["event"] == "result" and events[-1]["files"] == [] and loads == []
    assert main(["animate", "1.jpg", "--dry-run", *OPTIONS]) == 0
    check_facts(capsys.readouterr().out, "1.jpg", "128x64", "1.mp4", "memory", "MiB", "time", "s to sample")
    assert sorted(images.rglob("*")) == before


@pytest.mark.parametrize("size", [{}, {"width": 128, "height": 192, "num_frames": 5}])
def test_the_estimate_is_that_of_the_loaded_model(size):
    runtime = headless.RunConfig(device="cpu").runtime()
    checkpoint = execution.load(runtime, "svd-nano", "auto")
    video = headless.VideoSettings(**size).with_defaults(checkpoint.model.defaults)
    estimate = estimate_memory(video, runtime)
    frames, height, width = video.num_frames, video.height, video.width
    assert estimate.sampling == denoise_bytes(checkpoint.model, frames, height // 8, width // 8)
    assert estimate.decoding == decode_bytes(checkpoint.vae, frames, height, width)
    assert estimate.weights == pytest.approx(sum(each.nbytes for each in checkpoint.model.unet.parameters()), rel=0.05)


def test_the_estimate_says_the_choices_for_a_card(monkeypatch):
    monkeypatch.setattr(LocalRuntime, "device", lambda self: torch.device("cuda"))
    video = headless.VideoSettings(width=128, height=128, num_frames=8).with_defaults(VideoDefaults())

    def estimate(free: int) -> VideoEstimate:
        monkeypatch.setattr(LocalRuntime, "free_memory", lambda self, device: free)
        return estimate_memory(video, LocalRuntime(precision="fp16"))

    large, small = estimate(2**33), estimate(2**18)
    medium = estimate(large.decoding - 1)
    assert [each.activations for each in (large, medium, small)] == ["keep", "offload", None]
    assert (large.streamed, small.streamed) == (False, True)
    check_facts(str(large), "512 MiB", "131072", "keep", "on the device")
    check_facts(str(small), "512 MiB", "131072", "page-locked")


@pytest.mark.parametrize("form", [{}, {"decode_mode": "windowed", "decode_chunk": 1}], ids=str)
def test_the_time_of_a_video_is_estimated_within_a_factor(form):
    """Twice on an idle machine; here other programs may run."""
    runtime = headless.RunConfig(device="cpu").runtime()
    checkpoint = execution.load(runtime, "svd-nano", "auto")
    video = headless.VideoSettings(num_frames=4, steps=4, **form).with_defaults(checkpoint.model.defaults)
    estimate = estimate_seconds(video, runtime)
    began = time.perf_counter()
    image_to_video(checkpoint, torch.rand(1, 128, 128, 3), video, runtime)
    assert 1 / 3 < estimate / (time.perf_counter() - began) < 3


def test_the_estimate_counts_what_the_settings_ask_for():
    runtime = headless.RunConfig(device="cpu").runtime()
    video = headless.VideoSettings(width=128, height=128, num_frames=4).with_defaults(VideoDefaults())
    one, once, more = (estimate_seconds(replace(video, steps=steps), runtime) for steps in (1, 2, 4))
    video, step = replace(video, steps=2), once - one
    assert more - once == pytest.approx(2 * step)
    assert estimate_seconds(replace(video, sampler="heun"), runtime) - once == pytest.approx(step)
    assert once - estimate_seconds(replace(video, guidance_from=800.0), runtime) == pytest.approx(step)
    cached = estimate_seconds(replace(video, step_cache=2), runtime)
    assert step / 10 < once - cached < step  # the second of 2 steps is cached: its first and last blocks remain
    decoding = one - step
    assert estimate_seconds(replace(video, sigmas="7,1,0"), runtime) == pytest.approx(once)
    windowed = replace(video, decode_mode="windowed", decode_chunk=2, decode_context=1)
    assert estimate_seconds(windowed, runtime) - once == pytest.approx(decoding / 2)  # 2 of 4 frames decoded again


def test_sigmas_take_the_place_of_those_of_the_steps(images):
    levels = execution.model_sigmas(execution.load(headless.RunConfig().runtime(), "svd-nano", "auto").model, 2)
    expected = svd_stages.animate("1.jpg", **{**QUICK, "steps": 2, "preset": "reference"})
    for sigmas in (levels.tolist(), levels, ", ".join(map(repr, levels.tolist()))):
        assert torch.equal(svd_stages.animate("1.jpg", sigmas=sigmas, preset="reference", **QUICK), expected)
    text = ",".join(map(repr, levels[1:].tolist()))
    assert main(["animate", "1.jpg", "-o", "clip.mp4", "--sigmas", text, *OPTIONS]) == 0
    report = headless.run_graph("clip.mp4", input_dir=".", output_dir="again")
    assert report.files[0].read_bytes() == Path("clip.mp4").read_bytes()


def test_the_step_cache_is_in_the_graph_of_the_video(images):
    options = {**QUICK, "steps": 3}
    assert not torch.equal(svd_stages.animate("1.jpg", step_cache=2, **options), svd_stages.animate("1.jpg", **options))
    assert main(["animate", "1.jpg", "-o", "cached.mp4", *OPTIONS, "--steps", "3", "--step-cache", "2"]) == 0
    report = headless.run_graph("cached.mp4", input_dir=".", output_dir="again")
    assert report.files[0].read_bytes() == Path("cached.mp4").read_bytes()
    plain = headless.run_graph("cached.mp4", ["SVDStepCache.interval=1"], input_dir=".", output_dir="again")
    assert plain.files[0].read_bytes() != report.files[0].read_bytes()


@pytest.mark.parametrize("sigmas", ["", "1", "1,2", "7,a", [1.0, 1.0], [float("nan"), 0], 3])
def test_sigmas_that_do_not_fall_are_refused(images, loads, sigmas):
    with raises(SettingError, "setting", "sigmas"):
        svd_stages.animate("1.jpg", sigmas=sigmas, **QUICK)
    assert loads == []


def test_each_image_of_a_file_gets_frames_of_its_own(images):
    first, second = (Image.open(name).resize((64, 64)).convert("RGB") for name in ("2.png", "3.png"))
    first.save("two.gif", save_all=True, append_images=[second])
    for force in ([], ["--force"]):
        assert main(["animate", "two.gif", *OPTIONS, "-o", "frames/%03d.png", *force]) == 0
        names = sorted(path.name for path in Path("frames").iterdir())
        assert names == ["001.png", "001_00002.png", "002.png", "002_00002.png"]
