"""Runs that are killed, stopped or fail leave complete files or none; and what a run makes is always the same."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import pytest
import svd_stages
import torch
from many_runs import Runner, runner
from PIL import Image, ImageSequence
from svd_stages import headless

INPUT = headless.PACKAGE / "example_workflows"
FRAMES = 3
SIDE = 192
SAVERS = {"mp4": "SaveVideo", "webp": "SaveAnimatedWEBP", "png": "SaveImage"}
MANY = int(os.environ.get("SVD_STAGES_MANY_STOPS", "6"))
"""How many runs are stopped one after the other; 25 takes minutes."""
SOON = 60.0
"""Seconds in which a run must end after a signal. Its step takes less than one on an idle machine."""
STATUS = {signal.SIGKILL: -9, signal.SIGINT: 130, signal.SIGTERM: 143}


def link(node: str, slot: int = 0) -> list[Any]:
    return [node, slot]


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def savers(images: list[Any]) -> dict[str, Any]:
    """Every saver."""
    webp = {"fps": 7, "lossless": True, "quality": 80, "method": "fastest"}
    return {
        "create": node("CreateVideo", images=images, fps=7),
        "mp4": node("SaveVideo", video=link("create"), filename_prefix="sub/mp4", format="auto", codec="auto"),
        "webp": node("SaveAnimatedWEBP", images=images, filename_prefix="webp", **webp),
        "png": node("SaveImage", images=images, filename_prefix="png"),
    }


def clip_graph() -> dict[str, Any]:
    """The shortest clip of svd-nano, made larger so that writing takes a while, through every saver."""
    animation = headless.VideoSettings(width=64, height=64, num_frames=FRAMES, steps=2)
    prompt = headless.image_to_video_graph(animation, headless.RunConfig().runtime(), "rocket.png").prompt
    (decoder,) = (key for key, each in prompt.items() if each["class_type"] == "SVDTemporalVAEDecode")
    kept = {key: each for key, each in prompt.items() if each["class_type"] not in ("CreateVideo", "SaveVideo")}
    size = {"width": SIDE, "height": SIDE, "upscale_method": "bicubic", "crop": "disabled"}
    return {**kept, "large": node("ImageScale", image=link(decoder), **size), **savers(link("large"))}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Iterator[Runner]:
    with runner(tmp_path_factory.mktemp("runs") / "said") as started:
        yield started


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


def digests(folder: Path) -> dict[str, str]:
    """Name -> sha256 of the decoded frames."""
    final, temporary = left_in(folder)
    assert temporary == []
    return {path.name: hashlib.sha256(b"".join(frames_in(path))).hexdigest() for path in final}


@pytest.fixture(scope="module")
def whole(runs, tmp_path_factory) -> tuple[dict[str, str], float]:
    """The results of an uninterrupted run, and its duration in seconds."""
    folder = tmp_path_factory.mktemp("whole")
    began = time.monotonic()
    assert runs.run(*arguments(folder, clip_graph())) == 0
    return digests(folder / "out"), time.monotonic() - began


def test_the_same_graph_gives_the_same_frames_in_every_format(runs, whole, tmp_path):
    assert runs.run(*arguments(tmp_path, clip_graph())) == 0
    assert digests(tmp_path / "out") == whole[0]
    assert sorted(whole[0]) == [
        "mp4_00001_.mp4",
        *(f"png_{number:05}_.png" for number in (1, 2, 3)),
        "webp_00001_.webp",
    ]
    assert len(set(whole[0].values())) == len(whole[0])


def stop_somewhere(runs: Runner, folder: Path, number: signal.Signals, after: float) -> bool:
    """Send a run a signal when it is `after` seconds old, and look at what is left; whether the run was stopped."""
    run = runs.start(*arguments(folder, clip_graph()))
    time.sleep(after)
    with contextlib.suppress(ProcessLookupError):  # it was done before
        os.kill(run.pid, number)
    asked = time.monotonic()
    status = run.wait()
    assert time.monotonic() - asked < SOON
    assert status in (STATUS[number], 0)
    final, temporary = left_in(folder / "out")
    assert_complete(final)
    assert number == signal.SIGKILL or temporary == []
    return status != 0


@pytest.mark.parametrize("number", STATUS, ids=lambda number: number.name)
def test_a_run_that_is_stopped_leaves_whole_files_or_none(runs, whole, tmp_path, number):
    shares = (random.uniform(0.2, 0.9), 0.1, 0.01)  # sooner when it was done before
    assert any(stop_somewhere(runs, tmp_path, number, share * whole[1]) for share in shares)


@pytest.mark.slow
@pytest.mark.parametrize("number", STATUS, ids=lambda number: number.name)
def test_nor_do_many_one_after_the_other_and_the_next_run_saves_beside_them(runs, whole, tmp_path, number):
    stopped = [stop_somewhere(runs, tmp_path, number, share * whole[1]) for share in stops()]
    assert any(stopped)
    before, _ = left_in(tmp_path / "out")
    kept = {path: path.read_bytes() for path in before}
    assert runs.run(*arguments(tmp_path, clip_graph())) == 0
    after, _ = left_in(tmp_path / "out")
    assert len(after) == len(before) + FRAMES + 2 and all(path.read_bytes() == kept[path] for path in before)


def stops() -> list[float]:
    """When to stop each of many runs, as shares of a run's time."""
    return [random.uniform(0.02, 0.7) for _ in range(MANY)]


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
        for share in stops():
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


@pytest.mark.parametrize("extension", SAVERS)
def test_a_disk_that_fills_while_a_file_is_written_leaves_none(runs, tmp_path, extension):
    """A limit on the size of files, as a full disk says the same to whoever writes."""
    graph = {"load": node("LoadImage", image="rocket.png"), **savers(link("load"))}
    kept = {key: each for key, each in graph.items() if each["class_type"] in ("LoadImage", "CreateVideo")}
    assert runs.run(*arguments(tmp_path, {**kept, extension: graph[extension]}), file_limit=2000) == 4
    assert left_in(tmp_path / "out") == ([], [])
