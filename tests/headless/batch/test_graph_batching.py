"""Batches of real graphs: each video equals that of the same graph run alone, whichever worker renders it."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from error_checks import check_facts
from PIL import Image
from svd_stages import headless
from svd_stages.headless.batch import graph_batching
from svd_stages.headless.batch.folder import RunFolder
from svd_stages.headless.batch.graph_binding import ImageSizes, size_inputs
from svd_stages.headless.batch.lock import Shard, run_lock
from svd_stages.headless.batch.worker import Setup, Worker
from svd_stages.headless.batch.worker_pool import Answer
from svd_stages.headless.cli.main import main
from svd_stages.headless.engines.video_graph import make_prompt
from svd_stages.svd_core.checkpoints.model_metadata import VideoDefaults
from svd_stages.svd_core.media.hashing import frames_sha256

SMALLEST = {"SVDEulerSampler.steps": 1, "SVDImageConditioning.video_frames": 1}
ROCKET = headless.PACKAGE / "example_workflows" / "rocket.png"


class HerePool:
    """One worker in this process, because loading the libraries again takes seconds."""

    name = "1 worker in this process"
    workers = (0,)

    def __init__(self, setup: Setup):
        self._worker = Worker(setup)
        self._answers: list[Answer] = []

    def ask(self, worker: int, call: str, *arguments: Any) -> None:
        sent = json.loads(json.dumps(arguments))
        self._answers.append(Answer(worker, json.loads(json.dumps(getattr(self._worker, call)(*sent)))))

    def answers(self, timeout: float) -> list[Answer]:
        answers, self._answers = self._answers, []
        return answers

    def end(self, worker: int) -> None:
        raise AssertionError("a test that hangs")

    def close(self) -> None:
        """It ends with this process."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Use one thread, as a worker does."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def work_dir(tmp_path, monkeypatch) -> Path:
    """Return an empty working folder. Batches have one worker, in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SVD_STAGES_MODELS", raising=False)
    monkeypatch.setattr(graph_batching, "make_pool", lambda setup, *_: HerePool(setup))
    return tmp_path


@pytest.fixture
def photos(tmp_path) -> Path:
    """Return a folder with three images, one of them in a subfolder."""
    rocket = Image.open(ROCKET).convert("RGB")
    (tmp_path / "photos" / "more").mkdir(parents=True)
    for number, name in enumerate(("a.png", "b.png", "more/c.png")):
        rocket.rotate(90 * number).save(tmp_path / "photos" / name)
    return tmp_path / "photos"


@pytest.fixture
def graph(tmp_path) -> Path:
    """Return the shipped graph with its smallest settings."""
    video = headless.VideoSettings(width=64, height=64, num_frames=2, steps=1)
    prompt = headless.image_to_video_graph(video, headless.RunConfig().runtime(), "any.png").prompt
    path = tmp_path / "graph.json"
    path.write_text(json.dumps(prompt))
    return path


def records(run: Path) -> dict[str, dict[str, Any]]:
    """Return "image seed" -> record of all videos of a run."""
    folder = RunFolder(run)
    done = map(folder.read_record, folder.scan().done)
    return {f"{record['image']['name']} {record['seed']}": record for record in done if record}


def frame_hashes(run: Path) -> dict[str, str]:
    return {name: record["files"][0]["frames_sha256"] for name, record in records(run).items()}


def batch(*arguments: str | Path) -> int:
    return main(["batch", *map(str, arguments)])


SMALLER = "graph.value_smaller_than_min"


def check_refused(capsys: Any, arguments: list[Any], code: str, *facts: object, status: int = 2) -> None:
    """Check the exit status of a command and its JSON error."""
    assert batch(*arguments, "--json") == status
    error = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (error["event"], error["code"]) == ("error", code)
    check_facts(error["message"], *facts)


def test_each_video_equals_that_of_the_graph_run_alone(work_dir, photos, graph):
    manifest = work_dir / "rows.csv"
    manifest.write_text(
        "image,seed,SVDMicroConditioning.motion_bucket_id\nphotos/a.png,5,40\nphotos/more/c.png,6,200\n"
    )
    assert batch("run", manifest, "--run", "run", "--graph", graph) == 0
    for image, seed, bucket in (("a.png", 5, 40), ("more/c.png", 6, 200)):
        settings = [
            f"LoadImage.image={image}",
            f"SVDNoiseAugmentation.seed={seed}",
            f"SVDMicroConditioning.motion_bucket_id={bucket}",
        ]
        report = headless.run_graph(graph, settings, input_dir=photos, output_dir=work_dir / "alone")
        assert frame_hashes(work_dir / "run")[f"photos/{image} {seed}"] == frames_sha256(report.files[0])


def test_a_video_contains_the_graph_that_renders_it_again(work_dir, photos, graph):
    assert batch("run", photos, "--run", "run", "--graph", graph, "--limit", "1") == 0
    (record,) = records(work_dir / "run").values()
    (clip,) = RunFolder(work_dir / "run").media_files(record)
    report = headless.run_graph(clip, input_dir=photos, output_dir=work_dir / "again")
    assert frames_sha256(report.files[0]) == record["files"][0]["frames_sha256"]


def values_by_image(run: Path) -> dict[str, dict[str, Any]]:
    """Return image -> the values of its row, by input, from the plan of a run."""
    rows = (json.loads(line) for line in (run / "plan.jsonl").read_text().splitlines()[1:])
    tasks = [row["task"] for row in rows]
    return {task["image"]: {name.rpartition(".")[2]: value for name, value in task["values"].items()} for task in tasks}


def test_each_video_of_a_new_run_has_the_shape_of_its_image(work_dir, photos):
    Image.open(ROCKET).rotate(90, expand=True).save(photos / "portrait.png")
    settings = [f"{each}={value}" for each, value in SMALLEST.items()]
    arguments = [word for setting in settings for word in ("--set", setting)]
    arguments += ["--sigmas", "9,0"]
    assert batch("run", photos, "--run", "run", "--set", "SVDResizeImage.height=128", *arguments) == 0
    values = values_by_image(work_dir / "run")
    assert (values["a.png"]["width"], values["portrait.png"]["width"]) == (256, 64)
    for record in records(work_dir / "run").values():
        (clip,) = RunFolder(work_dir / "run").media_files(record)
        name = record["image"]["name"]
        alone = work_dir / "alone.mp4"
        video = headless.VideoSettings(height=128, num_frames=1, sigmas="9,0", seed=record["seed"])
        headless.animate_file(photos / name, alone, video, headless.RunConfig())
        assert frames_sha256(clip) == frames_sha256(alone)


@pytest.mark.parametrize("shape", [(1600, 900), (900, 1600), (1000, 1000), (1000, 50)])
def test_the_size_is_that_of_animate_and_a_row_can_choose_a_side(tmp_path, shape):
    video = headless.VideoSettings().with_defaults(VideoDefaults())
    graph = make_prompt(video, "any.png")
    Image.new("RGB", shape).save(tmp_path / "any.png")
    width, height = size_inputs(graph)
    chosen = ImageSizes(graph, tmp_path, [width, height])
    expected = headless.VideoSettings().with_defaults(VideoDefaults(), shape)
    assert chosen("any.png", {}) == {width: expected.width, height: expected.height}
    expected = headless.VideoSettings(width=640).with_defaults(VideoDefaults(), shape)
    assert chosen("any.png", {width: 640}) == {width: 640, height: expected.height}
    assert ImageSizes(graph, tmp_path, [])("any.png", {}) == {}
    assert chosen("missing.png", {}) == {}


def test_a_run_of_before_keeps_its_size_and_renders_nothing_again(work_dir, photos, capsys):
    arguments = [word for each, value in SMALLEST.items() for word in ("--set", f"{each}={value}")]
    fixed = [
        "--set",
        "SVDResizeImage.width=64",
        "--set",
        "SVDResizeImage.height=64",
        "--set",
        "SVDResizeImage.fit=stretch",
    ]
    assert batch("run", photos, "--run", "run", *arguments, *fixed) == 0
    path = work_dir / "run" / "run.json"
    settings = json.loads(path.read_text())
    assert settings.pop("sizes") == []
    path.write_text(json.dumps(settings))  # as version 0.1 wrote it
    ids = set(records(work_dir / "run"))
    for again in ([], ["--model", "svd-nano"]):
        capsys.readouterr()
        assert batch("run", photos, "--run", "run", *again, "--json") == 0
        assert json.loads(capsys.readouterr().out.splitlines()[-1])["rendered"] == 0
        assert set(records(work_dir / "run")) == ids
        assert json.loads(path.read_text())["sizes"] == []
    assert batch("run", photos, "--run", "run", "--steps", "2", "--limit", "1", "--json") == 0
    events = {each["event"]: each for each in map(json.loads, capsys.readouterr().out.splitlines())}
    assert list(events)[:2] == ["note", "batch"]
    assert (events["note"]["changed"], events["note"]["videos"]) == ({"steps": [1, 2]}, 3)


def test_a_second_run_renders_nothing(work_dir, photos, graph, capsys):
    assert batch("run", photos, "--run", "run", "--graph", graph, "--seeds", "0-1", "--json") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    result = lines[-1]
    assert (result["event"], result["rows"], result["done"], result["rendered"]) == ("result", 6, 6, 6)
    clips = [line for line in lines if line["event"] == "clip"]
    assert len(clips) == 6 and clips[-1]["seconds_left"] == 0 and all(line["rate"] > 0 for line in clips)
    assert len(set(frame_hashes(work_dir / "run").values())) == 6
    assert batch("run", "--run", "run", "--json") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["rendered"] == 0
    with Image.open(work_dir / "run" / "contact_sheet.jpg") as sheet:
        assert sheet.width > 3 * 2 * 160


def test_an_animated_image_is_refused_and_the_other_rows_are_rendered(work_dir, photos, graph):
    frames = [Image.open(photos / name) for name in ("a.png", "b.png")]
    frames[0].save(photos / "two.webp", save_all=True, append_images=frames[1:], lossless=True, duration=100)
    for name in ("b.png", "more/c.png"):
        (photos / name).unlink()
    assert batch("run", photos, "--run", "run", "--graph", graph) == 4
    (record,) = records(work_dir / "run").values()
    assert record["image"]["name"] == "a.png"
    (failed,) = (work_dir / "run" / "failed").iterdir()
    assert "image.animated" in failed.read_text()


def test_each_saver_of_a_graph_writes_its_files(work_dir, photos, graph):
    prompt = json.loads(graph.read_text())
    (decoder,) = [key for key, node in prompt.items() if node["class_type"] == "SVDTemporalVAEDecode"]
    prompt["png"] = {"class_type": "SaveImage", "inputs": {"images": [decoder, 0], "filename_prefix": "sub/x"}}
    prompt["look"] = {"class_type": "PreviewImage", "inputs": {"images": [decoder, 0]}}
    graph.write_text(json.dumps(prompt))
    assert batch("run", photos, "--run", "run", "--graph", graph, "--limit", "1") == 0
    (record,) = records(work_dir / "run").values()
    assert [Path(each["name"]).suffix for each in record["files"]] == [".mp4", ".png", ".png"]
    report = headless.run_graph(
        graph,
        [f"LoadImage.image={record['image']['name']}", f"SVDNoiseAugmentation.seed={record['seed']}"],
        input_dir=photos,
        output_dir=work_dir / "alone",
    )
    alone = sorted(frames_sha256(path) or "" for path in report.files if (work_dir / "alone") in path.parents)
    assert sorted(each["frames_sha256"] for each in record["files"]) == alone


def test_faulty_rows_are_reported_and_rendered_after_they_are_corrected(work_dir, photos, graph, capsys):
    content = (photos / "b.png").read_bytes()
    (photos / "b.png").write_bytes(content[:2000])
    manifest = work_dir / "rows.jsonl"
    rows = [{"image": "photos/a.png"}, {"image": "photos/b.png"}, {"image": "photos/gone.png"}]
    rows.append({"image": "photos/a.png", "SVDEulerSampler.steps": 0})
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert batch("run", manifest, "--run", "run", "--graph", graph) == 4
    output = capsys.readouterr()
    check_facts(output.err, 0, 1, 2, "run")
    assert "image.damaged" in output.out and "image.missing" in output.out
    (line,) = [each for each in output.out.splitlines() if "graph.value_smaller_than_min" in each]
    check_facts(line, 4)
    shutil.copy(photos / "a.png", photos / "gone.png")
    (photos / "b.png").write_bytes(content)
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows[:3]))
    assert batch("retry", "--run", "run", "--code", "image.*") == 0
    assert batch("run", manifest, "--run", "run") == 0
    assert set(name.split()[0] for name in records(work_dir / "run")) == {"photos/a.png", "photos/b.png"}
    assert headless.batch_status(work_dir / "run").duplicates == 1


def test_an_image_that_was_changed_since_the_plan_fails(work_dir, photos, graph):
    assert batch("plan", photos, "--run", "run", "--graph", graph) == 0
    shutil.copy(photos / "b.png", photos / "a.png")
    assert batch("run", "--run", "run") == 4
    assert headless.batch_status(work_dir / "run").reasons[0].code == "image.changed"
    assert len(records(work_dir / "run")) == 2


def test_nan_fails_its_row_and_writes_nothing(work_dir, photos, graph, monkeypatch):
    from svd_stages.nodes.decoding import SVDTemporalVAEDecode

    decode = SVDTemporalVAEDecode.run

    def broken(self, *arguments, **named):
        return ([frames * float("nan") for frames in decode(self, *arguments, **named)[0]],)

    monkeypatch.setattr(graph_batching.GraphRenderer, "probe", lambda self: {"device": "this", "probe": "00"})
    monkeypatch.setattr(SVDTemporalVAEDecode, "run", broken)
    assert batch("run", photos, "--run", "run", "--graph", graph, "--limit", "1") == 4
    assert [reason.code for reason in headless.batch_status(work_dir / "run").reasons] == ["output.not_finite"]
    assert not list((work_dir / "run" / "out").rglob("*.mp4"))


def test_videos_are_exported_and_verified(work_dir, photos, graph):
    assert batch("run", photos, "--run", "run", "--graph", graph) == 0
    assert batch("export", "--run", "run", "named") == 0
    table = list(csv.DictReader((work_dir / "named" / "clips.csv").open()))
    assert [row["file"] for row in table] == ["a.mp4", "b.mp4", "more/c.mp4"]
    assert batch("status", "--run", "run", "--verify") == 0
    (work_dir / "named" / "a.mp4").write_bytes(b"changed")  # a second name of the same file
    assert batch("status", "--run", "run", "--verify") == 4


def test_options_that_change_the_plan_need_the_manifest(work_dir, photos, graph, capsys):
    assert batch("plan", photos, "--run", "run", "--graph", graph) == 0
    for option in (["--graph", graph], ["--set", "SVDEulerSampler.steps=3"], ["--seeds", "1"], ["--precision", "bf16"]):
        check_refused(capsys, ["run", "--run", "run", *option], "batch.no_source", option[0])
    seeds = ["--set", "SVDNoiseAugmentation.seed=7", "--seeds", "1-2"]
    check_refused(capsys, ["plan", photos, "--run", "run", *seeds], "batch.seeds", "--seeds")
    assert batch("plan", photos, "--run", "run", "--set", "SVDNoiseAugmentation.seed=7") == 0
    assert {row.task.seed for row in graph_batching.read_plan(work_dir / "run" / "plan.jsonl") if row.task} == {None}


def test_settings_of_animate_are_values_of_the_shipped_graph(work_dir, photos, graph, capsys):
    def planned() -> tuple[dict[str, Any], set[str]]:
        prompt = json.loads((work_dir / "run" / "run.json").read_text())["graph"]
        inputs = {
            f"{node['class_type']}.{name}": each for node in prompt.values() for name, each in node["inputs"].items()
        }
        rows = graph_batching.read_plan(work_dir / "run" / "plan.jsonl")
        return inputs, {row.task.id for row in rows if row.task}

    options = ["--steps", "3", "--motion-bucket-id", "40", "--width", "128", "--frames", "2", "--compile", "regional"]
    options += ["--step-cache", "2"]
    assert batch("plan", photos, "--run", "run", *options) == 0
    inputs, tasks = planned()
    assert (inputs["SVDEulerSampler.steps"], inputs["SVDMicroConditioning.motion_bucket_id"]) == (3, 40)
    assert (inputs["SVDResizeImage.width"], inputs["SVDImageConditioning.video_frames"]) == (128, 2)
    assert (inputs["SVDModelOptions.compile"], inputs["SVDStepCache.interval"]) == ("regional", 2)
    assert batch("plan", photos, "--run", "run", *options) == 0
    assert planned() == (inputs, tasks)
    assert batch("plan", photos, "--run", "run") == 0
    assert planned() == (inputs, tasks)
    check_refused(capsys, ["run", "--run", "run", "--steps", "4"], "batch.no_source", "--steps")
    assert batch("plan", photos, "--run", "run", "--compile", "full") == 0
    assert planned()[0] == {**inputs, "SVDModelOptions.compile": "full"}
    check_refused(
        capsys, ["plan", photos, "--run", "b", "--graph", graph, "--steps", "3"], "setting", "--steps", "--set"
    )
    check_refused(capsys, ["plan", photos, "--run", "b", "--steps", "0"], SMALLER, "--steps", "1 to 10000")


def test_an_interrupted_plan_is_not_run(work_dir, photos, graph, capsys):
    assert batch("plan", photos, "--run", "run", "--graph", graph) == 0
    before = (work_dir / "run" / "run.json").read_text()
    assert batch("plan", photos, "--run", "run", "--graph", graph, "--set", "SVDEulerSampler.steps=2") == 0
    (work_dir / "run" / "run.json").write_text(before)
    check_refused(capsys, ["run", "--run", "run"], "batch.plan", "plan.jsonl")
    assert not records(work_dir / "run")
    assert batch("plan", photos, "--run", "run", "--graph", graph) == 0


def test_measuring_a_row_that_fails_reports_why(work_dir, photos, graph, capsys):
    for name in ("a.png", "b.png", "more/c.png"):
        content = (photos / name).read_bytes()
        (photos / name).write_bytes(content[: len(content) // 2])
    arguments = ["plan", photos, "--run", "run", "--graph", graph, "--measure"]
    check_refused(capsys, arguments, "batch.rows_failed", "image.damaged", status=4)
    assert headless.batch_status(work_dir / "run").counts["failed"] == 1


def test_concurrent_shards_plan_once(work_dir, photos, graph):
    arguments = ("run", photos, "--run", "run", "--graph", graph, "--limit", "1", "--seeds", "0-7")
    assert batch(*arguments, "--shard", "1/2") == 0
    planned = (work_dir / "run" / "plan.jsonl").stat().st_mtime_ns
    with run_lock(work_dir / "run", Shard(1, 2)):  # it is still at work
        assert batch(*arguments, "--shard", "2/2") == 0
    assert (work_dir / "run" / "plan.jsonl").stat().st_mtime_ns == planned
    assert len(records(work_dir / "run")) == 2
    assert {path.name for path in (work_dir / "run").glob("summary*")} == {"summary-1-of-2.json", "summary-2-of-2.json"}
    shutil.copy(photos / "a.png", photos / "d.png")
    assert batch(*arguments, "--shard", "2/2") == 0
    assert (work_dir / "run" / "plan.jsonl").stat().st_mtime_ns != planned


def test_a_plan_loads_neither_torch_nor_a_model(photos, tmp_path):
    import subprocess
    import sys

    arguments = ["batch", "plan", str(photos), "--run", str(tmp_path / "run")]
    code = (
        f"import sys; from svd_stages.__main__ import main; status = main({arguments!r}); "
        "print(status, sorted({'torch', 'diffusers', 'transformers', 'ray'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=500)
    assert result.stdout.splitlines()[-1] == "0 []"


@pytest.mark.slow
def test_one_process_two_and_a_cluster_of_two_nodes_make_the_same_frames(tmp_path, photos, graph, monkeypatch):
    monkeypatch.delenv("SVD_STAGES_MODELS", raising=False)
    cluster = pytest.importorskip("ray.cluster_utils", reason='needs Ray: pip install "svd-stages[ray]"').Cluster
    assert batch("run", photos, "--run", tmp_path / "1", "--graph", graph, "--seeds", "0-1", "--workers", "1") == 0
    assert batch("run", photos, "--run", tmp_path / "2", "--graph", graph, "--seeds", "0-1", "--workers", "2") == 0
    node = {"num_cpus": 1, "object_store_memory": 80 * 1024 * 1024}
    nodes = cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    try:
        nodes.add_node(**node)
        assert batch("run", photos, "--run", tmp_path / "ray", "--graph", graph, "--seeds", "0-1", "--ray",
                     nodes.address) == 0  # fmt: skip
    finally:
        nodes.shutdown()
    one = frame_hashes(tmp_path / "1")
    assert len(one) == 6 and len(set(one.values())) == 6
    assert one == frame_hashes(tmp_path / "2") == frame_hashes(tmp_path / "ray")
