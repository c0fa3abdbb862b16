"""Runs that are killed, stopped or fail leave complete files or none, and the next run is right."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import av
import pytest
import svd_stages
import torch
from faults import node
from many_runs import start
from PIL import Image, ImageSequence
from svd_stages import headless

INPUT = headless.PACKAGE / "example_workflows"
FRAMES = 3
SIDE = 192
MANY = int(os.environ.get("SVD_STAGES_MANY_STOPS", "6"))
"""How many runs are stopped one after the other; 25 takes minutes."""
SOON = 60.0
"""Seconds in which a run must end after a signal. Its step takes less than one on an idle machine."""
STATUS = {signal.SIGKILL: -9, signal.SIGINT: 130, signal.SIGTERM: 143}


def link(node_id: str, slot: int = 0) -> list[Any]:
    return [node_id, slot]


def clip_graph() -> dict[str, Any]:
    """The shortest clip of svd-nano, made larger so that writing takes a while, through every saver."""
    animation = headless.VideoSettings(width=64, height=64, num_frames=FRAMES, steps=2)
    prompt = headless.image_to_video_graph(animation, headless.RunConfig().runtime(), "rocket.png").prompt
    (decoder,) = (key for key, each in prompt.items() if each["class_type"] == "SVDTemporalVAEDecode")
    kept = {key: each for key, each in prompt.items() if each["class_type"] not in ("CreateVideo", "SaveVideo")}
    size = {"width": SIDE, "height": SIDE, "upscale_method": "bicubic", "crop": "disabled"}
    images, webp = link("large"), {"fps": 7, "lossless": True, "quality": 80, "method": "fastest"}
    return {
        **kept,
        "large": node("ImageScale", image=link(decoder), **size),
        "create": node("CreateVideo", images=images, fps=7),
        "mp4": node("SaveVideo", video=link("create"), filename_prefix="sub/mp4", format="auto", codec="auto"),
        "webp": node("SaveAnimatedWEBP", images=images, filename_prefix="webp", **webp),
        "png": node("SaveImage", images=images, filename_prefix="png"),
    }


def arguments(folder: Path, prompt: dict[str, Any]) -> list[str]:
    """Of a run of this graph whose results go to out/."""
    (folder / "graph.json").write_text(json.dumps(prompt))
    return ["run", str(folder / "graph.json"), "--input-dir", str(INPUT), "--output-dir", str(folder / "out")]


def left_in(folder: Path) -> tuple[list[Path], list[Path]]:
    """The files under final names, and those under temporary ones."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    temporary = [path for path in files if path.name.startswith(".svd-stages-") and path.suffix == ".part"]
    return [path for path in files if path not in temporary], temporary


def frames_in(path: Path) -> list[bytes]:
    """Every frame, decoded to the end. Raises for half a file."""
    if path.suffix == ".mp4":
        with av.open(str(path)) as container:
            return [frame.to_ndarray(format="rgb24").tobytes() for frame in container.decode(video=0)]
    with Image.open(path) as picture:
        return [frame.convert("RGB").tobytes() for frame in ImageSequence.Iterator(picture)]


def assert_complete(files: list[Path]) -> None:
    for path in files:
        frames = frames_in(path)
        assert len(frames) == (1 if path.suffix == ".png" else FRAMES), path
        assert {len(frame) for frame in frames} == {SIDE * SIDE * 3}


@pytest.fixture(scope="module")
def seconds(tmp_path_factory) -> float:
    """The duration of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    start("nodes", log=folder / "log").join()  # starts the fork server
    began = time.monotonic()
    run_to_its_end(folder)
    return time.monotonic() - began


def run_to_its_end(folder: Path) -> None:
    run = start(*arguments(folder, clip_graph()), log=folder / "log")
    run.join()
    assert run.exitcode == 0, (folder / "log").read_text()


def stop_somewhere(folder: Path, number: signal.Signals, after: float) -> bool:
    """Send a run a signal when it is `after` seconds old, and look at what is left; whether the run was stopped."""
    run = start(*arguments(folder, clip_graph()), log=folder / "log")
    assert run.pid
    time.sleep(after)
    if run.is_alive():
        os.kill(run.pid, number)
    asked = time.monotonic()
    run.join()
    assert time.monotonic() - asked < SOON
    assert run.exitcode in (STATUS[number], 0)
    final, temporary = left_in(folder / "out")
    assert_complete(final)
    assert number == signal.SIGKILL or temporary == []
    return run.exitcode != 0


@pytest.mark.parametrize("count", [1, pytest.param(MANY, marks=pytest.mark.slow)], ids=["once", "many times"])
@pytest.mark.parametrize("number", STATUS, ids=lambda number: number.name)
def test_runs_that_are_stopped_leave_whole_files_or_none_and_the_next_one_saves_beside_them(
    seconds, tmp_path, number, count
):
    stopped = [stop_somewhere(tmp_path, number, share * seconds) for share in stops(count)]
    # sooner if they were done before
    assert any(stopped) or any(stop_somewhere(tmp_path, number, share * seconds) for share in (0.1, 0.01))
    before, _ = left_in(tmp_path / "out")
    kept = {path: path.read_bytes() for path in before}
    run_to_its_end(tmp_path)
    after, _ = left_in(tmp_path / "out")
    assert len(after) == len(before) + FRAMES + 2 and all(path.read_bytes() == kept[path] for path in before)


def stops(count: int) -> list[float]:
    """When to stop each of many runs, as shares of a run's time."""
    return [random.uniform(0.02, 0.8) for _ in range(count)]


@pytest.mark.slow
def test_after_each_of_many_stops_the_next_run_of_the_same_process_is_right():
    """By the KeyboardInterrupt that Ctrl-C in a notebook is, at random times of a call."""
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)  # a timer's signal, for Ctrl-C's
    rocket = INPUT / "rocket.png"
    settings = {"width": 64, "height": 64, "num_frames": FRAMES, "steps": 3, "seed": 5}
    svd_stages.animate(rocket, **settings)
    began = time.monotonic()
    undisturbed = svd_stages.animate(rocket, **settings)
    seconds, stopped = time.monotonic() - began, 0
    try:
        for share in stops(MANY):
            signal.setitimer(signal.ITIMER_REAL, max(0.001, share * seconds))
            try:
                svd_stages.animate(rocket, **settings)
            except KeyboardInterrupt:
                stopped += 1
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            assert torch.equal(svd_stages.animate(rocket, **settings), undisturbed)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert stopped


def picture_graph(**more: Any) -> dict[str, Any]:
    """A picture through a saver, which runs first as it stands first, and more."""
    return {
        "load": node("LoadImage", image="rocket.png"),
        "first": node("SaveImage", images=link("load"), filename_prefix="first"),
        **more,
    }


TOO_LONG = "a" * 300
BREAKS: dict[str, tuple[int, dict[str, Any]]] = {
    "a name that the disk refuses": (4, {"last": node("SaveImage", images=link("load"), filename_prefix=TOO_LONG)}),
    "a place outside": (2, {"last": node("SaveImage", images=link("load"), filename_prefix="../../out")}),
    "a size that leaves nothing": (
        2,
        {
            "cut": node("ImageScale", image=link("load"), upscale_method="area", width=16384, height=1, crop="center"),
            "last": node("SaveImage", images=link("cut"), filename_prefix="last"),
        },
    ),
    "a checkpoint that is none": (
        3,
        {
            "name": node("SVDCheckpointLoader", checkpoint="none.safetensors", precision="auto"),
            "encode": node("SVDVAEEncode", vae=link("name", 2), image=link("load")),
            "decode": node("SVDTemporalVAEDecode", vae=link("name", 2), latent=link("encode")),
            "last": node("SaveImage", images=link("decode"), filename_prefix="last"),
        },
    ),
}


@pytest.mark.parametrize("case", BREAKS)
def test_a_node_that_fails_leaves_what_was_saved_before_and_nothing_else(tmp_path, monkeypatch, case):
    from svd_stages.headless.cli.main import main

    (tmp_path / "none.safetensors").write_text("a page that says to log in")
    monkeypatch.setenv("SVD_STAGES_MODELS", str(tmp_path))
    status, more = BREAKS[case]
    assert main(arguments(tmp_path, picture_graph(**more))) == status
    final, temporary = left_in(tmp_path / "out")
    assert ([path.name for path in final], temporary) == (["first_00001_.png"], [])
    assert len(frames_in(final[0])) == 1
