"""Compare the three engines: equal events, exit statuses and frames for one command.

The embedded and the ComfyUI engine run in ComfyUI's Python, each in one process. The remote engine runs in this Python.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comfyui.test_inside_comfyui import make_base, nano_graph, node, saved_graph
from PIL import Image, ImageSequence
from svd_stages.headless import Graph, RunConfig
from svd_stages.headless.engines.remote.engine import RemoteEngine

pytestmark = [pytest.mark.comfyui, pytest.mark.slow]

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
ENGINES = ("embedded", "comfyui", "remote")
FRAMES, STEPS = 3, 2

PICTURE = node("LoadImage", image="picture.png")
SAVE = node("SaveImage", images=["1", 0], filename_prefix="kept")
SIGMAS = {"steps": 3, "schedule": "karras", "sigma_min": 0.002, "sigma_max": 700.0, "rho": 7.0}


def saving(**changes: dict) -> dict:
    """Return a graph that saves an image, with nodes changed or added."""
    return {"1": PICTURE, "2": SAVE, **{key.removeprefix("n"): value for key, value in changes.items()}}


def loading(checkpoint: str) -> dict:
    """Return a graph that uses a checkpoint."""
    graph = nano_graph(steps=1)
    graph["load"]["inputs"]["checkpoint"] = checkpoint
    return graph


def sampling(**sigmas: Any) -> dict:
    """Return a graph with SVDSigmas."""
    graph = nano_graph(steps=1)
    graph["sigmas"] = node("SVDSigmas", **{**SIGMAS, **sigmas})
    graph["sample"]["inputs"]["sigmas"] = ["sigmas", 0]
    return graph


FAULTS: dict[str, tuple[Any, list[str], int]] = {
    "nothing": (saving(), [], 0),
    "unknown class": (saving(n2=node("SaveImages", images=["1", 0], filename_prefix="x")), [], 2),
    "no class": (saving(n3={"inputs": {}}), [], 2),
    "a node that is a list": (saving(n3=[]), [], 2),
    "no outputs": ({"1": PICTURE}, [], 2),
    "a link to nowhere": (saving(n1=node("ImageScale", image=["99", 0], upscale_method="area", width=8, height=8,
                                         crop="disabled")), [], 2),
    "a circle": (saving(n1=node("ImageScale", image=["1", 0], upscale_method="area", width=8, height=8,
                                crop="disabled")), [], 2),
    "a slot that is not there": (saving(n2=node("SaveImage", images=["1", 7], filename_prefix="x")), [], 2),
    "another type": (saving(n2=node("SaveImage", images=["1", 1], filename_prefix="x")), [], 2),
    "a value out of range": (nano_graph(steps=0), [], 2),
    "a value that is no choice": (sampling(schedule="linear"), [], 2),
    "a missing input": (saving(n2=node("SaveImage", filename_prefix="x")), [], 2),
    "a missing picture": (saving(n1=node("LoadImage", image="gone.png")), [], 3),
    "a missing checkpoint": (loading("gone.safetensors"), [], 3),
    "a missing checkpoint and a value out of range": (
        {**loading("gone.safetensors"), "clip": nano_graph()["clip"], "sample": nano_graph(steps=0)["sample"]}, [], 2),
    "a setting of no input": (saving(), ["--set", "SaveImage.prefix=x"], 2),
    "a setting of no node": (saving(), ["--set", "SaveVideo.format=mp4"], 2),
    "no JSON": ("{", [], 2),
    "a file that is no picture": (saving(n1=node("LoadImage", image="text.png")), [], 3),
    "a node that refuses its values": (sampling(sigma_min=5.0, sigma_max=1.0), [], 2),
    "a checkpoint that is damaged": (loading("cut.safetensors"), [], 3),
    "a name that is too long": (saving(n2=node("SaveImage", images=["1", 0], filename_prefix="x" * 300)), [], 4),
    "an output folder that is a file": (saving(), ["--output-dir", "text.png"], 2),
    "half of it": (saving(n3=node("SaveImage", images=["99", 0], filename_prefix="x")), [], 2),
}  # fmt: skip
"""Fault -> graph, additional arguments, exit status."""
RESULTS = {"nothing": ["kept_N_.png"], "half of it": ["kept_N_.png"]}


@dataclass(frozen=True)
class Workspace:
    """The ComfyUI base directory of the server, whose folders the other engines use too."""

    base: Path
    python: str
    comfyui: Path
    url: str = ""

    def command(self, engine: str, graph: Path, *more: str) -> list[str]:
        """Return a `run` command for an engine."""
        common = ["run", str(graph), "--input-dir", str(self.base / "input"), "--json"]
        models = ["--models", str(self.base / "models"), "--device", "cpu"]
        options = {
            "embedded": models,
            "comfyui": [*models, "--comfyui", str(self.comfyui)],
            "remote": ["--server", self.url],
        }
        return [*common, *options[engine], *more]

    def environment(self, folder: Path) -> dict[str, str]:
        """Return the environment of a process that imports the package."""
        if not (folder / "svd_stages").exists():
            (folder / "svd_stages").symlink_to(REPOSITORY, target_is_directory=True)
        return {**os.environ, "PYTHONPATH": str(folder)}

    def run(self, commands: list[list[str]], folder: Path, python: str | None = None) -> list[dict[str, Any]]:
        """Run all commands in one process in `folder` and return their outcomes."""
        commands_file = folder / "commands.json"
        commands_file.write_text(json.dumps(commands))
        done = subprocess.run(
            [python or self.python, HERE / "run_commands.py", commands_file],
            cwd=folder, env=self.environment(folder), capture_output=True, text=True, timeout=600,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-4000:]
        return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def workspace(comfyui, tmp_path_factory) -> Iterator[Workspace]:
    base = make_base(tmp_path_factory.mktemp("engines"), "SVD-Stages")
    (base / "input" / "text.png").write_text("this is no picture")
    (base / "models" / "checkpoints").mkdir(parents=True)
    nano = REPOSITORY / "svd_core" / "checkpoints" / "svd_nano" / "svd_nano.safetensors"
    (base / "models" / "checkpoints" / "cut.safetensors").write_bytes(nano.read_bytes()[:100_000])
    with comfyui.serve(base) as server:
        yield Workspace(base, comfyui.python, comfyui.folder, server.url)


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def outcomes(workspace, tmp_path_factory) -> dict[str, dict[str, dict[str, Any]]]:
    """Return the outcome of each fault on each engine, with the result files."""
    by_engine = {}
    for engine in ENGINES:
        folder = tmp_path_factory.mktemp(engine)
        commands = []
        (folder / "text.png").write_text("in the way")
        for index, (graph, more, _) in enumerate(FAULTS.values()):
            file = folder / f"{index}.json"
            file.write_text(graph if isinstance(graph, str) else json.dumps(graph))
            commands.append(workspace.command(engine, file, "--output-dir", str(folder / f"out{index}"), *more))
        python = sys.executable if engine == "remote" else None
        by_engine[engine] = dict(zip(FAULTS, workspace.run(commands, folder, python), strict=True))
        for index, outcome in enumerate(by_engine[engine].values()):
            outcome["files"] = files(folder / f"out{index}")
    return by_engine


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("case", FAULTS)
def test_a_fault_has_one_exit_status(outcomes, engine, case):
    outcome = outcomes[engine][case]
    assert outcome["status"] == FAULTS[case][2], outcome
    assert list(map(without_number, outcome["files"])) == RESULTS.get(case, [])
    assert "Traceback" not in outcome["err"]
    if outcome["status"]:
        error = outcome["lines"][-1]
        assert error["event"] == "error" and error["exit_status"] == outcome["status"]
        assert len(error["message"]) < 1500


@pytest.mark.parametrize("case", FAULTS)
def test_engines_tell_the_same_events(outcomes, case):
    lines = {engine: outcomes[engine][case]["lines"] for engine in ENGINES}
    expected = [comparable(line) for line in lines["embedded"]]
    failed_in_a_node = FAULTS[case][2] > 0 and any(line["event"] == "executing" for line in lines["embedded"])
    for engine in ("comfyui", "remote"):
        events = [comparable(line) for line in lines[engine]]
        if failed_in_a_node and case != "half of it":  # engines may have run other nodes before the failed one
            assert (events[:2], events[-1]) == (expected[:2], expected[-1])
        else:
            first, second = ([each for each in some if each[0] != "executing"] for some in (events, expected))
            assert first == second
            assert nodes_run(lines[engine]) == nodes_run(lines["embedded"])


def comparable(line: dict[str, Any]) -> tuple:
    """Return the values of an event that must be equal."""
    values = {
        "error": lambda: (line["exit_status"], line.get("node_id"), sorted(line.get("node_errors", []))),
        "executing": lambda: (line["node"], line["class_type"], line["title"]),
        "executed": lambda: (line["node"], line["class_type"], [without_number(file) for file in line["files"]]),
        "result": lambda: [without_number(file) for file in line["files"]],
    }.get(line["event"], lambda: ())()
    return (line["event"], values)


def nodes_run(lines: list[dict[str, Any]]) -> list[str]:
    """Return the nodes that ran, or whose results were cached."""
    cached = [node_id for line in lines if line["event"] == "cached" for node_id in line["nodes"]]
    return sorted({*cached, *(line["node"] for line in lines if line["event"] == "executing")})


def without_number(file: str) -> str:
    """Return a result's name without its number: a server counts its own files."""
    return re.sub(r"\d+", "N", Path(file).name)


def test_comfyuis_engine_opens_no_port(outcomes):
    assert {outcome["ports"] for outcome in outcomes["comfyui"].values()} == {0}


# The same frames


@pytest.fixture(scope="module")
def clips(workspace, tmp_path_factory) -> dict[str, tuple[list[dict[str, Any]], Path]]:
    """Return each engine's events for one run of our nodes, and its output folder."""
    by_engine = {}
    for engine in ENGINES:
        folder = tmp_path_factory.mktemp(f"clip_{engine}")
        (folder / "graph.json").write_text(json.dumps(nano_graph(steps=STEPS)))
        command = workspace.command(engine, folder / "graph.json", "--output-dir", str(folder / "out"))
        (done,) = workspace.run([command], folder, sys.executable if engine == "remote" else None)
        assert done["status"] == 0, done
        by_engine[engine] = (done["lines"], folder / "out")
    return by_engine


def frames_of(animation: Path) -> np.ndarray:
    """Return the frames (F, H, W, 3) from 0 to 255."""
    with Image.open(animation) as opened:
        return np.stack([np.asarray(frame.convert("RGB"), dtype=int) for frame in ImageSequence.Iterator(opened)])


def test_our_nodes_give_the_same_frames_on_all_engines(clips, workspace):
    webp = {engine: folder / "nano_00001_.webp" for engine, (_, folder) in clips.items()}
    assert frames_of(webp["embedded"]).shape == (FRAMES, 64, 64, 3)
    assert np.array_equal(frames_of(webp["comfyui"]), frames_of(webp["remote"]))
    assert np.abs(frames_of(webp["embedded"]) - frames_of(webp["comfyui"])).max() <= 1
    for name in ("nano_00001_.webp", "video/nano_00001_.mp4"):
        assert (clips["remote"][1] / name).read_bytes() == (workspace.base / "output" / name).read_bytes()
    assert {engine: files(folder) for engine, (_, folder) in clips.items()} == {
        engine: ["nano_00001_.webp", "video/nano_00001_.mp4"] for engine in ENGINES
    }


def test_progress_of_the_sampler_is_told_step_by_step_with_its_node(clips):
    for engine, (lines, _) in clips.items():
        steps = [line for line in lines if line["event"] == "progress" and line.get("node") == "sample"]
        assert [line["done"] for line in steps] == list(range(STEPS + 1)), engine
        assert {line["total"] for line in steps} == {STEPS}
        assert all(line["stage"] and line["unit"] for line in steps)


def test_core_s_svd_graph_gives_exactly_the_server_s_frames(workspace, random_checkpoints, tmp_path):
    checkpoints = workspace.base / "models" / "checkpoints"
    (checkpoints / "random.safetensors").symlink_to(random_checkpoints / "with_conditioning_encoder.safetensors")
    (tmp_path / "graph.json").write_text(json.dumps(saved_graph("core_graph")))
    names = [f"core/frame_{number:05}_.png" for number in range(1, FRAMES + 1)]
    for engine, python in (("remote", sys.executable), ("comfyui", workspace.python)):
        command = workspace.command(engine, tmp_path / "graph.json", "--output-dir", str(tmp_path / engine))
        (done,) = workspace.run([command], tmp_path, python)
        assert done["status"] == 0, done
        assert files(tmp_path / engine) == names
    pixels = [np.asarray(Image.open(tmp_path / "comfyui" / name)) for name in names]
    for name, frame in zip(names, pixels, strict=True):
        assert frame.shape == (64, 64, 3) and frame.std() > 1
        assert np.array_equal(frame, np.asarray(Image.open(workspace.base / "output" / name)))
        assert (tmp_path / "remote" / name).read_bytes() == (workspace.base / "output" / name).read_bytes()
    assert not np.array_equal(pixels[0], pixels[1])


# Stopped runs


@pytest.mark.parametrize(
    ("engine", "number"),
    [
        *((engine, signal.SIGINT) for engine in ENGINES),
        *(("comfyui", number) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGKILL)),
        ("remote", signal.SIGKILL),
    ],
    ids=lambda each: getattr(each, "name", each),
)
def test_a_run_that_is_stopped_leaves_no_result(workspace, tmp_path, engine, number):
    before = files(workspace.base / "output")
    (tmp_path / "graph.json").write_text(json.dumps(nano_graph(steps=5000, seed=number)))
    command = workspace.command(engine, tmp_path / "graph.json", "--output-dir", str(tmp_path / "out"))
    process = subprocess.Popen(
        [sys.executable if engine == "remote" else workspace.python, "-m", "svd_stages", *command],
        cwd=tmp_path, env=workspace.environment(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # a shell lets what it starts in the background ignore the signal, and the tests may be started so
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL) if number != signal.SIGKILL else None,
    )  # fmt: skip
    for line in process.stdout:
        event = json.loads(line)
        if event["event"] == "progress" and event.get("node") == "sample" and event["done"] >= 2:
            process.send_signal(number)
            break
    events = [json.loads(line) for line in process.stdout]
    stderr = process.stderr.read()
    status = process.wait(timeout=60)
    assert [name for name in files(tmp_path / "out") if "/." not in f"/{name}"] == []
    if number != signal.SIGKILL:
        assert status == 128 + number, stderr
        assert ("stop" in stderr) == (engine == "comfyui")
        assert events[-1]["code"] == "interrupted" and "Traceback" not in stderr
        assert not (tmp_path / "out").exists()
    if engine == "remote":
        interrupt_server(workspace.url)
    assert files(workspace.base / "output") == before


def interrupt_server(url: str) -> None:
    """Stop the run of a client that was killed. A client that was interrupted has stopped its run."""
    request = urllib.request.Request(f"{url}/interrupt", b"{}", method="POST")
    urllib.request.urlopen(request, timeout=30).close()
    for _ in range(300):
        with urllib.request.urlopen(f"{url}/queue", timeout=30) as answer:
            if not json.load(answer)["queue_running"]:
                return
        time.sleep(0.1)
    raise AssertionError("the server does not stop")


def test_an_interrupted_run_is_stopped_on_the_server(workspace, tmp_path):
    def stop(event: str, data: dict[str, Any]) -> None:
        if event == "progress" and data["node"] == "sample":
            raise KeyboardInterrupt

    run_config = RunConfig(input_folder=workspace.base / "input", output_folder=tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        RemoteEngine(run_config, workspace.url).run(Graph(nano_graph(steps=5000, seed=99)), stop)
    with urllib.request.urlopen(f"{workspace.url}/queue", timeout=30) as answer:
        assert json.load(answer) == {"queue_running": [], "queue_pending": []}


# Custom nodes


ECHO = """
from pathlib import Path
import folder_paths
from server import PromptServer
PromptServer.instance.routes  # as many packs do
print("pack-prints")
class Echo:
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"image": ("IMAGE",)}}
    RETURN_TYPES, FUNCTION = ("IMAGE",), "echo"
    def echo(self, image):
        print("node-prints")
        (Path(folder_paths.get_output_directory()) / "unreported.txt").write_text("not in its ui result")
        return (1 - image,)
NODE_CLASS_MAPPINGS = {"Echo": Echo}
"""


def test_chosen_custom_nodes_run_and_no_others(workspace, tmp_path):
    checkout = tmp_path / "ComfyUI"
    not_copied = {".git", "custom_nodes", "models", "input", "output", "temp", "user"}
    source = workspace.comfyui
    shutil.copytree(source, checkout, ignore=lambda folder, _: not_copied if Path(folder) == source else ())
    for name, text in {"Echo": ECHO, "Broken": "import module_that_is_not_there\n"}.items():
        (checkout / "custom_nodes" / name).mkdir(parents=True)
        (checkout / "custom_nodes" / name / "__init__.py").write_text(text)
    (checkout / "custom_nodes" / "SVD").symlink_to(REPOSITORY, target_is_directory=True)
    graph = saving(n2=node("SaveImage", images=["3", 0], filename_prefix="echo"), n3=node("Echo", image=["1", 0]))
    (tmp_path / "graph.json").write_text(json.dumps(graph))
    common = ["run", "graph.json", "--comfyui", str(checkout), "--input-dir", str(workspace.base / "input"), "--json"]
    chosen = [[], ["Nope"], ["Broken"], ["Echo"], ["SVD", "Echo"]]
    commands = [[*common, *(word for name in names for word in ("--custom-node", name))] for names in chosen]
    commands.append([*common, "--custom-node", "Echo", "--set", "LoadImage.image=echo_00001_.png [output]"])
    commands.append([*common, "--custom-node", "Echo", "--set", "LoadImage.image=../graph.json [output]"])
    outcomes = Workspace(workspace.base, workspace.python, checkout).run(commands, tmp_path)
    assert [each["status"] for each in outcomes] == [2, 2, 2, 0, 0, 0, 3]
    without, missing, broken, echo, twice, *_ = outcomes
    assert "Echo" in without["err"] and "Broken" in missing["err"] and "module_that_is_not_there" in broken["err"]
    assert "pack-prints" in echo["err"] and "node-prints" in echo["err"]
    assert '"SVD"' in twice["err"] and '"SVD"' not in echo["err"]
    kept = np.asarray(Image.open(tmp_path / "output" / "echo_00001_.png"), dtype=int)
    picture = np.asarray(Image.open(workspace.base / "input" / "picture.png").convert("RGB"), dtype=int)
    assert np.abs(kept - (255 - picture)).max() <= 1
    again = np.asarray(Image.open(tmp_path / "output" / "echo_00003_.png"), dtype=int)  # of the first, as [output]
    assert np.abs(again - picture).max() <= 1
    unreported = [f"unreported{number}.txt" for number in ("", "_00002", "_00003")]
    assert files(tmp_path / "output") == [*(f"echo_0000{number}_.png" for number in (1, 2, 3)), *unreported]
    assert files(checkout / "custom_nodes" / "Echo")[0] == "__init__.py" and not (checkout / "user").exists()


def test_validation_is_comfyuis_own(workspace, tmp_path):
    good, bad = nano_graph(), nano_graph(steps=0)
    for name, graph in (("good.json", good), ("bad.json", bad)):
        (tmp_path / name).write_text(json.dumps(graph))
    more = ["--comfyui", str(workspace.comfyui), "--input-dir", str(workspace.base / "input"), "--json"]
    commands = [["validate", name, *more] for name in ("good.json", "bad.json")]
    fine, wrong = workspace.run(commands, tmp_path)
    assert fine["status"] == 0 and fine["lines"][-1]["outputs"] == ["webp", "mp4"]
    assert wrong["status"] == 2 and list(wrong["lines"][-1]["node_errors"]) == ["sample"]
    assert files(tmp_path) == ["bad.json", "commands.json", "good.json"]
