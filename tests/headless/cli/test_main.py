"""The commands as a user types them: results on disk, words on stderr, exit statuses, nothing left behind."""

from __future__ import annotations

import importlib
import json
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import pytest
from error_checks import check_facts, raises
from faults import node
from PIL import Image
from svd_stages import headless
from svd_stages.headless.cli.main import main, make_parser
from svd_stages.svd_core.errors import UsageError
from tiny import save_tiny_folder, tiny_checkpoint

ROOT = Path(__file__).parents[3]
ROCKET = ROOT / "example_workflows" / "rocket.png"
QUICK = ["--width", "64", "--height", "64", "--frames", "2", "--steps", "1"]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    """An empty working folder with the picture in it, and no models but the built-in one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SVD_STAGES_MODELS", raising=False)
    shutil.copy(ROCKET, tmp_path / "rocket.png")
    return tmp_path


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """A models folder in ComfyUI's layout with the tiny checkpoint in both forms, and files that are none."""
    from safetensors.torch import save_file
    from svd_stages.svd_core.checkpoints.convert import save_single_file

    root = tmp_path_factory.mktemp("models")
    (root / "checkpoints" / "video").mkdir(parents=True)
    checkpoint = tiny_checkpoint()
    save_tiny_folder(root / "diffusers" / "tiny-folder", checkpoint)
    save_single_file(checkpoint, root / "checkpoints" / "video" / "tiny.safetensors")
    whole = (root / "checkpoints" / "video" / "tiny.safetensors").read_bytes()
    (root / "checkpoints" / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    (root / "checkpoints" / "pickled.safetensors").write_bytes(pickle.dumps({"weight": 1}))
    import torch

    sd15 = {
        "model.diffusion_model.input_blocks.0.0.weight": torch.zeros(320, 4, 3, 3),
        "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": torch.zeros(320, 768),
        "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.zeros(1, 77),
    }
    save_file(sd15, root / "checkpoints" / "sd15.safetensors")
    return root


def files_in(folder: Path) -> list[str]:
    """Everything below `folder`, empty folders too."""
    return sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() or not any(path.iterdir())
    )


def opened(path: Path) -> tuple[int, int, int, float]:
    """Frames, width, height and fps, counted by decoding."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = sum(1 for _ in container.decode(stream))
        return frames, stream.width, stream.height, float(stream.average_rate)


def frames_of(path: Path) -> list[bytes]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24").tobytes() for frame in container.decode(video=0)]


def test_animate_writes_an_mp4_of_what_was_asked(here, capsys):
    assert main(["animate", "rocket.png", "-o", "made/clip.mp4", "--fps", "12", *QUICK]) == 0
    assert opened(here / "made" / "clip.mp4") == (2, 64, 64, 12.0)
    assert files_in(here / "made") == ["clip.mp4"]
    check_facts(capsys.readouterr().out, "clip.mp4", 2, "64x64", 12)


def test_a_linked_picture_and_a_name_that_looks_annotated_are_animated(here):
    (here / "link.png").symlink_to(here / "rocket.png")
    shutil.copy(ROCKET, here / "a [output].png")
    shutil.copy(ROCKET, here / "b [output]")
    for name in ("link.png", "a [output].png", "b [output]"):
        assert main(["animate", name, "-o", "clip.mp4", "--force", *QUICK]) == 0


def test_an_animated_picture_makes_a_video_of_each_of_its_pictures(here):
    frames = [Image.new("RGB", (64, 64), (90 * index, 40, 200)) for index in range(2)]
    frames[0].save(here / "two.gif", save_all=True, append_images=frames[1:])
    (here / "clip_00002.mp4").write_bytes(b"mine")
    assert main(["animate", "two.gif", "-o", "clip.mp4", *QUICK]) == 0
    assert (here / "clip_00002.mp4").read_bytes() == b"mine"
    clips = [here / "clip.mp4", here / "clip_00003.mp4"]
    assert [opened(clip)[0] for clip in clips] == [2, 2]
    assert main(["run", "clip.mp4", "--input-dir", "."]) == 0
    assert [path.read_bytes() for path in sorted((here / "output").iterdir())] == [clip.read_bytes() for clip in clips]


def test_a_dry_run_names_the_files_that_the_run_writes(here, capsys):
    frames = [Image.new("RGB", (64, 64), (90 * index, 40, 200)) for index in range(2)]
    frames[0].save(here / "two.gif", save_all=True, append_images=frames[1:])
    for existing in ("two.mp4", "rocket.mp4", "rocket_00002.mp4"):
        (here / existing).touch()
    command = ["animate", "two.gif", "rocket.png", "--json", *QUICK]
    assert main([*command, "--dry-run"]) == 0
    plans = [json.loads(line) for line in capsys.readouterr().out.splitlines() if '"plan"' in line]
    assert main(command) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    named = [plan["outputs"] for plan in plans]
    assert named == [["two_00002.mp4", "two_00003.mp4"], ["rocket_00003.mp4"]]
    assert [event["files"] for event in events if event["event"] == "wrote"] == named
    assert [event["event"] for event in events if event["event"] in ("wrote", "progress")][-1] == "wrote"


def test_a_reader_that_goes_away_does_not_end_the_run(here):
    command = f"{sys.executable} -m svd_stages animate rocket.png --json {' '.join(QUICK)} 2>said | head -1"
    subprocess.run(command, shell=True, check=True, stdout=subprocess.DEVNULL)
    assert opened(here / "rocket.mp4")[0] == 2 and "Traceback" not in (here / "said").read_text()


def test_a_second_run_keeps_the_first_video_unless_told_where_to_write(here):
    (here / "rocket.mp4").write_bytes(b"mine")
    assert main(["animate", "rocket.png", *QUICK]) == 0
    assert (here / "rocket.mp4").read_bytes() == b"mine" and opened(here / "rocket_00002.mp4")[0] == 2
    (here / "rocket.mp4").write_bytes(b"mine")
    assert main(["animate", "rocket.png", "-o", "rocket.mp4", *QUICK]) == 2
    assert (here / "rocket.mp4").read_bytes() == b"mine"
    assert main(["animate", "rocket.png", "-o", "rocket.mp4", "--force", *QUICK]) == 0
    assert opened(here / "rocket.mp4")[0] == 2


def test_animate_uses_what_the_checkpoint_is_for(here, models):
    assert main(["animate", "rocket.png", "--model", "tiny-folder", "--models", str(models), "--steps", "1"]) == 0
    assert opened(here / "rocket.mp4") == (14, 64, 64, 7.0)


def test_both_forms_either_separator_and_the_environment_variable_give_the_same_video(here, models, monkeypatch):
    monkeypatch.setenv("SVD_STAGES_MODELS", str(models))
    clips = []
    for model in ("tiny-folder", "video/tiny.safetensors", "video\\tiny.safetensors"):
        assert main(["animate", "rocket.png", "--model", model, "-o", "clip.mp4", "--force", *QUICK]) == 0
        clips.append(frames_of(here / "clip.mp4"))
    assert clips[0] == clips[1] == clips[2]


def test_animate_reports_progress_and_result_as_json_lines(here, capsys):
    assert main(["animate", "rocket.png", "--json", *QUICK]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    pipeline = [line["stage"] for line in lines if line["event"] == "progress" and line["done"] == 0]
    assert pipeline == ["loading", "embedding", "encoding", "sampling", "decoding"]
    assert lines[-1]["event"] == "result" and lines[-1]["files"] == ["rocket.mp4"]


def test_progress_and_files_of_animate_name_image_and_seed(here, capsys):
    Image.new("RGBA", (64, 64), (9, 9, 9, 9)).save("b.png")
    assert main(["animate", "rocket.png", "b.png", "--seeds", "1-2", "--json", *QUICK]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    expected = [(image, seed) for image in ("rocket.png", "b.png") for seed in (1, 2)]
    notes = [line for line in lines if line["event"] == "note"]
    assert [(note["code"], note["image"]) for note in notes] == [("image.transparent", "b.png")]
    for event in ("progress", "wrote"):
        named = [(line["image"], line["seed"]) for line in lines if line["event"] == event]
        assert list(dict.fromkeys(named)) == expected


def test_a_dry_run_prints_the_steps_that_will_run(here, capsys):
    assert main(["animate", "rocket.png", "--sigmas", "700,4,0.2,0", "--frames", "2", "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "steps 3," in text and "steps 25" not in text and "decode_chunk" not in text
    assert main(["animate", "rocket.png", "--sigmas", "700,4,0.2,0", "--frames", "2", "--dry-run", "--json"]) == 0
    (plan,) = [json.loads(line) for line in capsys.readouterr().out.splitlines() if '"plan"' in line]
    assert plan["settings"]["steps"] == 3


def test_run_takes_both_formats_and_settings(here):
    (here / "input").mkdir()
    shutil.move(here / "rocket.png", here / "input")
    template = str(ROOT / "example_workflows" / "quickstart_nano.json")
    settings = ["--set", "SVDResizeImage.width=64", "--set", "SVDResizeImage.height=64"]
    settings += ["--set", "SVDImageConditioning.video_frames=2", "--set", "SVDEulerSampler.steps=1"]
    assert main(["convert", template, "-o", "api.json"]) == 0
    assert main(["validate", "api.json"]) == 0
    assert main(["run", template, *settings]) == 0
    assert main(["run", "api.json", *settings, "--output-dir", "second"]) == 0
    assert files_in(here / "output") == files_in(here / "second")
    clip = here / "second" / "video" / "svd-nano_00001_.mp4"
    assert opened(clip)[:3] == (2, 64, 64)


def test_nodes_lists_every_node_in_comfyuis_shape(capsys):
    assert main(["nodes", "--json"]) == 0
    info = json.loads(capsys.readouterr().out)
    assert {"SVDEulerSampler", "LoadImage", "SaveVideo"} <= set(info)
    assert info["SVDGuidance"]["output"] == ["SVD_GUIDANCE"]
    assert main(["nodes"]) == 0
    assert "SVDEulerSampler" in capsys.readouterr().out


def test_inspect_and_convert_checkpoint_go_both_ways(here, models, capsys):
    single, folder = models / "checkpoints" / "video" / "tiny.safetensors", models / "diffusers" / "tiny-folder"
    for path in (single, folder):
        assert main(["inspect", str(path), "--json"]) == 0
        assert json.loads(capsys.readouterr().out.splitlines()[-1])["family"].lower().startswith("svd")
    assert main(["convert-checkpoint", str(single), "folder"]) == 0
    assert main(["convert-checkpoint", "folder", "again.safetensors"]) == 0
    assert main(["animate", "rocket.png", "--models", ".", "--model", "again.safetensors", *QUICK]) == 0


def test_the_built_in_model_is_inspected_and_written_as_a_folder_by_its_name(here, capsys):
    assert main(["inspect", "svd-nano"]) == 0
    check_facts(capsys.readouterr().out.splitlines()[-1], 14)
    assert main(["convert-checkpoint", "svd-nano", "folder"]) == 0
    assert main(["animate", "rocket.png", "-o", "built-in.mp4", *QUICK]) == 0
    assert main(["animate", "rocket.png", "-o", "folder.mp4", "--models", ".", "--model", "folder", *QUICK]) == 0
    assert frames_of(here / "folder.mp4") == frames_of(here / "built-in.mp4")


def test_convert_checkpoint_writes_the_frames_down_that_it_is_told(here, models, capsys):
    single = str(models / "checkpoints" / "video" / "tiny.safetensors")
    assert main(["convert-checkpoint", single, "folder", "--frames", "6"]) == 0
    assert main(["inspect", "folder"]) == 0
    check_facts(capsys.readouterr().out.splitlines()[-1], 6)


BAD = {
    "image missing": ("animate nope.png", 3, "image", "nope.png"),
    "image unreadable": ("animate text.png", 3, "image.unsupported", "text.png"),
    "image truncated": ("animate half.png", 3, "image.damaged", "half.png"),
    "image of one pixel": ("animate one.png", 3, "image.too_small", 16, "1x1"),
    "width": ("animate rocket.png --width 1000", 2, "setting", "width", 1000, 960, 1024),
    "height": ("animate rocket.png --height 10", 2, "setting", "height", 10, 64),
    "no frames": ("animate rocket.png --frames 0", 2, "graph.value_smaller_than_min", "--frames", 0, 1, 4096),
    "no steps": ("animate rocket.png --steps 0", 2, "graph.value_smaller_than_min", "steps", 0, 1, 10000),
    "strength nan": (
        "animate rocket.png --noise-aug-strength nan",
        2,
        "graph.invalid_input_type",
        "--noise-aug-strength",
    ),
    "guidance inf": ("animate rocket.png --max-guidance inf", 2, "graph.invalid_input_type", "--max-guidance", "inf"),
    "bucket": (
        "animate rocket.png --motion-bucket-id 5000",
        2,
        "graph.value_bigger_than_max",
        "--motion-bucket-id",
        1023,
    ),
    "fps": ("animate rocket.png --fps 0", 2, "graph.value_smaller_than_min", "fps", 0, 1, 1024),
    "seed below": ("animate rocket.png --seed -1", 2, "graph.value_smaller_than_min", "seed", "-1", 0),
    "seed above": (f"animate rocket.png --seed {2**64}", 2, "graph.value_bigger_than_max", "seed", 2**64, 2**64 - 1),
    "model": (
        "animate rocket.png --model video/tinny",
        3,
        "checkpoint.not_found",
        "video/tiny.safetensors",
        "svd-nano",
    ),
    "cut model": ("animate rocket.png --model cut.safetensors", 3, "checkpoint.truncated", "cut.safetensors"),
    "sd15 model": ("animate rocket.png --model sd15.safetensors", 3, "checkpoint.family", "sd15.safetensors", "SVD"),
    "pickle": ("animate rocket.png --model pickled.safetensors", 3, "checkpoint.pickle", "pickled.safetensors"),
    "inspect a ckpt": ("inspect model.ckpt", 3, "checkpoint.pickle", "model.ckpt"),
    "inspect nothing": ("inspect gone.safetensors", 3, "checkpoint.unreadable", "gone.safetensors"),
    "device": ("animate rocket.png --device abacus", 2, "setting", "abacus", "cpu", "cuda"),
    "output folder": ("animate rocket.png -o rocket.png/out.mp4", 2, "output.not_writable", "rocket.png"),
    "new folders": ("animate rocket.png -o new/deep/out.mp4 --model gone", 3, "checkpoint.not_found", "gone"),
    "output format": ("animate rocket.png -o out.avi", 2, "setting", ".mp4", ".webm", "out.avi"),
    "frames of a video": ("animate rocket.png -o %05d.mp4", 2, "setting", ".png", "%05d.mp4"),
    "output exists": ("animate rocket.png -o one.png", 2, "output.exists", "one.png", "--force"),
    "one name for two": ("animate rocket.png one.png -o out.mp4", 2, "setting", 2, "{name}_out.mp4"),
    "one name for two seeds": ("animate rocket.png --seeds 1,2 -o out.mp4", 2, "setting", 2, "{seed}_out.mp4"),
    "no match": ("animate *.jpeg", 3, "image.missing", "*.jpeg"),
    "folder without images": ("animate empty", 3, "image.missing", "empty", ".png"),
    "network": ("animate http://127.0.0.1:9/a.png --no-network", 3, "image.download", "http://127.0.0.1:9/a.png"),
    "run's output folder": ("run save.json --input-dir . --output-dir one.png", 2, "output.not_writable", "one.png"),
    "graph missing": ("run gone.json", 2, "graph.file", "gone.json"),
    "graph no json": ("run text.png", 2, "graph.json", "text.png"),
    "unknown node": ("run unknown.json", 2, "graph.missing_node_type", "SVDEulerSamplr", "SVDEulerSampler"),
    "missing link": ("run dangling.json", 2, "graph.bad_linked_input", "images", 99),
    "wrong type": ("run mismatch.json", 2, "graph.return_type_mismatch", "images", "IMAGE", "SIGMAS"),
    "unknown setting": ("run fine.json --set SVDSigmas.stops=3", 2, "graph.setting", "stops", "steps"),
    "folder to a folder": ("convert-checkpoint . other", 2, "setting", "convert-checkpoint", "other.safetensors"),
    "frames of a checkpoint": ("convert-checkpoint . a.safetensors --frames 0", 2, "setting", "frames", 0, 1, 4096),
    "download": ("download svd-xxl", 3, "checkpoint.not_found", "svd-xxl", "svd-xt"),
}

SIGMAS = node("SVDSigmas", steps=3, schedule="karras", sigma_min=0.002, sigma_max=700.0, rho=7.0)
LOAD = node("LoadImage", image="rocket.png")
GRAPHS = {
    "unknown.json": {"1": node("SVDEulerSamplr")},
    "save.json": {"1": LOAD, "2": node("SaveImage", images=["1", 0], filename_prefix="x")},
    "dangling.json": {"1": node("PreviewImage", images=["99", 0])},
    "mismatch.json": {"1": SIGMAS, "2": node("PreviewImage", images=["1", 0])},
    "fine.json": {"1": SIGMAS, "2": node("PreviewImage", images=["3", 0]), "3": LOAD},
}


@pytest.fixture
def bad_files(here) -> None:
    (here / "text.png").write_text("this is no picture")
    (here / "half.png").write_bytes(ROCKET.read_bytes()[:20000])
    (here / "model.ckpt").write_bytes(pickle.dumps({"weight": 1}))
    Image.new("RGB", (1, 1)).save(here / "one.png")
    (here / "empty").mkdir()
    for name, graph in GRAPHS.items():
        (here / name).write_text(json.dumps(graph))


@pytest.mark.usefixtures("bad_files")
@pytest.mark.parametrize("case", BAD, ids=str)
def test_bad_input_is_one_paragraph_with_the_way_out(case, here, models, capsys, monkeypatch):
    monkeypatch.setenv("SVD_STAGES_MODELS", str(models))
    arguments, status, code, *facts = BAD[case]
    before = files_in(here)
    assert main([*arguments.split(), "--json"]) == status
    said = capsys.readouterr()
    paragraph = " ".join(said.err.split("svd-stages: ")[-1].split())
    line = json.loads(said.out)
    assert (line["event"], line["code"], line["exit_status"]) == ("error", code, status)
    check_facts(paragraph, *facts)
    assert "Traceback" not in said.err
    assert len(paragraph) < 1200
    assert files_in(here) == before


def test_half_a_graph_writes_its_half_and_says_what_is_missing(here, capsys):
    good, bad = (node("SaveImage", images=[key, 0], filename_prefix="good") for key in ("1", "99"))
    (here / "half.json").write_text(json.dumps({"1": LOAD, "2": good, "3": bad}))
    assert main(["run", "half.json", "--input-dir", ".", "--json"]) == 2
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["event"] for line in said[-4:]] == ["executed", "wrote", "result", "error"]
    assert said[-2]["files"] == ["output/good_00001_.png"] and list(said[-1]["node_errors"]) == ["3"]
    assert files_in(here / "output") == ["good_00001_.png"]


def test_an_error_without_json_leaves_stdout_empty(here, capsys):
    assert main(["animate", "nope.png"]) == 3
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "arguments",
    ["a.png --force b.png", "--force a.png -o x/ b.png", "a.png b.png --force", "a.png --force -- b.png"],
    ids=str,
)
def test_images_may_stand_on_both_sides_of_options(arguments):
    parsed = make_parser().parse_args(["animate", *arguments.split()])
    assert (parsed.image, parsed.force) == (["a.png", "b.png"], True)


def test_bad_usage_is_status_2():
    for arguments in ([], ["animate"], ["animate", "rocket.png", "--steps", "many"], ["frobnicate"]):
        assert main(arguments) == 2


def test_a_stop_while_a_library_is_imported_waits_for_the_end_of_the_import(here, monkeypatch):
    from svd_stages.headless.cli.main import _StopSignal

    (here / "heavy_library.py").write_text("import signal\nsignal.raise_signal(signal.SIGUSR1)\nwhole = True\n")
    monkeypatch.syspath_prepend(here)
    stop = _StopSignal()
    before = signal.signal(signal.SIGUSR1, stop)
    try:
        with pytest.raises(KeyboardInterrupt):
            assert importlib.import_module("heavy_library").whole
            time.sleep(20)
    finally:
        signal.signal(signal.SIGUSR1, before)
        del sys.modules["heavy_library"]
    assert stop.asked


def test_commands_that_do_not_compute_load_no_torch(here, models):
    """torch costs 1.6 s, diffusers' classes 3.5 s more: inspect, validate, convert and nodes need neither."""
    huge = ["SVDImageToVideo.width=16384", "SVDImageToVideo.height=16384", "SVDImageToVideo.video_frames=4096"]
    huge = [part for each in ("SVDCheckpointLoader.checkpoint=svd-nano", *huge) for part in ("--set", each)]
    (here / "fine.json").write_text(json.dumps(GRAPHS["fine.json"]))
    template = str(ROOT / "example_workflows" / "quickstart_nano.json")
    file = str(models / "checkpoints" / "video" / "tiny.safetensors")
    script = (
        "import sys; from svd_stages.__main__ import main; assert main({arguments!r}) == {status}; "
        "heavy = {{'torch', 'diffusers', 'transformers'}} & set(sys.modules); assert not heavy, heavy"
    )
    for status, arguments in (
        (0, ["inspect", file]),
        (0, ["validate", "fine.json", "--input-dir", "."]),
        (2, ["validate", str(ROOT / "example_workflows" / "one_node.json"), "--input-dir", ".", *huge]),
        (0, ["convert", template, "-o", "api.json"]),
        (0, ["nodes", "--json"]),
    ):
        command = [sys.executable, "-c", script.format(arguments=arguments, status=status)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize(
    ("text", "size"), [("6G", 6 * 2**30), ("2.5 GiB", 5 * 2**29), ("512m", 2**29), ("7700000", 7700000)]
)
def test_a_size_as_a_person_writes_it(text, size):
    assert make_parser().parse_args(["animate", "x.png", "--vram", text]).vram == size


@pytest.mark.parametrize("text", ["much", "0", "6", "-3G", "6T", ""])
def test_what_is_no_size_is_refused(text):
    with raises(UsageError, "usage", "--vram", "6G"):
        make_parser().parse_args(["animate", "x.png", f"--vram={text}"])


def test_a_budget_says_its_plan_and_a_clip_that_cannot_fit_is_refused_with_the_way_out(here, capsys, caplog):
    assert main(["animate", "rocket.png", "--vram", "1G", *QUICK]) == 0
    assert {"sampling", "decoding"} <= {record.getMessage().split(":")[0] for record in caplog.records}
    assert main(["animate", "rocket.png", "--vram", "1M", *QUICK]) == 4
    assert "windowed" in capsys.readouterr().err


def test_compile_puts_the_options_before_the_sampler():
    animation = headless.VideoSettings(compile="regional")
    prompt = headless.image_to_video_graph(animation, headless.RunConfig().runtime(), "picture.png").prompt
    (sampler,) = [each for each in prompt.values() if each["class_type"] == "SVDEulerSampler"]
    options = prompt[sampler["inputs"]["model"][0]]
    assert options["class_type"] == "SVDModelOptions" and options["inputs"]["compile"] == "regional"
    assert prompt[options["inputs"]["model"][0]]["class_type"] == "SVDCheckpointLoader"


@pytest.mark.usefixtures("signal_handlers")
@pytest.mark.parametrize("form", [(), ("--json",)])
def test_a_stop_that_python_loses_ends_the_run_at_its_next_report(here, monkeypatch, form):
    """Python drops exceptions that are raised in a finalizer."""

    class Unlucky:
        def __del__(self):
            signal.raise_signal(signal.SIGTERM)

    from svd_stages.svd_core import execution

    encode = execution.encode

    def encode_unluckily(*arguments):
        unlucky = Unlucky()
        del unlucky
        return encode(*arguments)

    monkeypatch.setattr(execution, "encode", encode_unluckily)
    monkeypatch.setattr(sys, "unraisablehook", lambda dropped: None)
    assert main(["animate", "rocket.png", *form]) == 143
    assert files_in(here) == ["rocket.png"]


def test_quiet_prints_only_the_result(here, capsys, caplog):
    assert main(["animate", "rocket.png", "-q", "-o", "a.mp4", *QUICK]) == 0
    said = capsys.readouterr()
    assert said.err == "" and said.out.startswith("wrote a.mp4") and len(said.out.splitlines()) == 1
    assert main(["animate", "rocket.png", "--quiet", "--json", "-o", "b.mp4", *QUICK]) == 0
    assert [json.loads(line)["event"] for line in capsys.readouterr().out.splitlines()] == ["wrote", "result"]
    assert main(["run", "b.mp4", "-q", "--input-dir", ".", "--vram", "1G"]) == 0
    said = capsys.readouterr()
    assert said.err == "" and [line.split()[0] for line in said.out.splitlines()] == ["wrote"]


def test_a_quiet_run_names_each_image_that_failed(here, capsys):
    for name in ("one.png", "two.png"):
        (here / name).write_bytes(b"no image")
    assert main(["animate", "one.png", "two.png", "rocket.png", "-q", *QUICK]) == 4
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 1 and all(said.err.count(name) >= 2 for name in ("one.png", "two.png"))
    assert main(["animate", "one.png", "rocket.png", "-q", "--json", *QUICK]) == 4
    events = [json.loads(line)["event"] for line in capsys.readouterr().out.splitlines()]
    assert events == ["failed", "wrote", "result", "error"]


def test_run_prints_each_file_when_its_node_is_done_and_only_once(here, capsys, monkeypatch):
    assert main(["animate", "rocket.png", "-o", "a.mp4", *QUICK]) == 0
    graph = json.loads(json.dumps(headless.open_graph(here / "a.mp4").prompt))
    (saver,) = [key for key, node in graph.items() if node["class_type"] == "SaveVideo"]
    graph |= {"twin": graph[saver], "late": {"class_type": "SaveVideo", "inputs": dict(graph[saver]["inputs"])}}
    graph["late"]["inputs"]["filename_prefix"] = "late"
    (here / "two.json").write_text(json.dumps(graph))
    capsys.readouterr()
    assert main(["run", "two.json", "--input-dir", ".", "--json"]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    written = [file for event in events if event["event"] == "wrote" for file in event["files"]]
    assert written == events[-1]["files"] and len(set(written)) == len(written)
    names = [event["event"] for event in events if event["event"] in ("executed", "wrote")]
    assert len(written) > 1 and names[:2] == ["executed", "wrote"] and "executed" in names[2:]
