"""Mistakes at the shell: each gets the right exit status and one short sentence with what was typed and the fix."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from error_checks import check_facts
from PIL import Image
from svd_stages import headless
from svd_stages.headless.cli.main import main

EXAMPLES = headless.PACKAGE / "example_workflows"
LONGEST = 200

USAGE = "usage"
SMALL, BIG = "graph.value_smaller_than_min", "graph.value_bigger_than_max"
MISTAKES = [
    # the command
    ("animat rocket.png", 2, USAGE, "animat", "animate"),
    ("bach run", 2, USAGE, "bach", "batch"),
    ("batch runn photos", 2, USAGE, "runn", "batch run"),
    ("photo.jpg", 2, USAGE, '"photo.jpg"', "svd-stages animate"),
    ("rocket.png", 2, USAGE, '"rocket.png"', "svd-stages animate"),
    ("photos/", 2, USAGE, '"photos/"', "batch run photos/ --run"),
    ("graph.json", 2, USAGE, '"graph.json"', "svd-stages run"),
    ("rows.csv", 2, USAGE, '"rows.csv"', "svd-stages batch run"),
    ("x" * 300, 2, USAGE, "x" * 30, "animate"),
    (f"{'x' * 400}.png", 2, USAGE, "x" * 30, "svd-stages animate PATH"),
    ("frobnicate", 2, USAGE, "frobnicate", "animate"),
    ("batch", 2, USAGE, "batch --help", "status"),
    # an option
    ("animate rocket.png --widht 128", 2, USAGE, "--widht", "--width"),
    ("animate rocket.png --num-frames 14", 2, USAGE, "--num-frames", "--frames"),
    ("animate rocket.png -steps 3", 2, USAGE, '"-steps"', "--steps"),
    ("animate rocket.png -f", 2, USAGE, '"-f"', "--help"),
    ("animate rocket.png -s 5", 2, USAGE, '"-s"', "--help"),
    ("animate rocket.png -output a.mp4", 2, USAGE, '"-output"', "--output"),
    ("animate rocket.png -widht 128", 2, USAGE, '"-widht"', "--width"),
    ("-verson", 2, USAGE, '"-verson"', "--version"),
    ("--json animate rocket.png", 2, USAGE, "--json", "COMMAND"),
    ("nodes --device cpu", 2, USAGE, "--device", "--help"),
    ("animate", 2, USAGE, "IMAGE", "svd-stages animate"),
    ("batch run photos", 2, USAGE, "--run", "--run DIR"),
    ("batch run photos --run", 2, USAGE, "--run", "argument"),
    ("animate rocket.png --fit streched", 2, USAGE, "streched", "stretch"),
    ("animate rocket.png --precision fp8", 2, USAGE, "--precision", "fp16"),
    ("animate rocket.png --steps many", 2, USAGE, "--steps", "integer"),
    ("animate rocket.png --fps 7.5", 2, USAGE, "--fps", "integer"),
    ("animate rocket.png --min-guidance x", 2, USAGE, "--min-guidance", "number"),
    ("animate rocket.png --vram 4X", 2, USAGE, "--vram", "6G"),
    ("animate rocket.png --vram 6", 2, USAGE, "--vram", "6G"),
    ("run graph.json --vram 6000", 2, USAGE, "--vram", "6000M"),
    ("animate rocket.png --seeds a", 2, USAGE, "--seeds must be", '"a"'),
    ("animate rocket.png -o {nme}.mp4", 2, "setting", "{nme}", "{name}"),
    ("animate rocket.png -o {sed}/{name}.mp4", 2, "setting", "{sed}", "{seed}"),
    ("animate rocket.png --background pinkish", 2, USAGE, "--background", "white"),
    ("batch run photos --run r --workers 0", 2, USAGE, "--workers", 1),
    ("batch run photos --run r --seeds x", 2, "manifest.seed", "--seeds", "0-3"),
    ("batch run photos --run r --shard 3", 2, "batch.shard", "--shard", "i/N"),
    ("run graph.json --custom-node x", 2, "setting", "--custom-node", "--comfyui"),
    ("compare-samplers", 2, USAGE, "IMAGE", "svd-stages compare-samplers"),
    ("compare-samplers rocket.png --candidate fats", 2, USAGE, '"fats"', '"fast"'),
    ("compare-samplers rocket.png --candidate euler:karras", 2, USAGE, "--candidate must", "SAMPLER:SCHEDULE:STEPS"),
    ("compare-samplers rocket.png --candidate lcm:karras:4", 2, USAGE, "lcm", "euler"),
    ("compare-samplers rocket.png --candidate euler:karras:0", 2, USAGE, "--candidate", "1 or more"),
    ("compare-samplers rocket.png --steps 0", 2, USAGE, "--steps", 1),
    ("compare-samplers rocket.png --preset fast", 2, USAGE, "--preset", "--help"),
    # a value
    ("animate rocket.png --steps 0", 2, SMALL, "--steps", "1 to 10000"),
    ("animate rocket.png --frames 1000000", 2, BIG, "--frames", 4096),
    ("animate rocket.png --motion-bucket-id 9999", 2, BIG, "--motion-bucket-id", "1 to 1023"),
    ("animate rocket.png --seed -1", 2, SMALL, "--seed", "0 to"),
    ("animate rocket.png --step-cache 0", 2, SMALL, "--step-cache", "1 to 100"),
    ("animate rocket.png --fps 0", 2, SMALL, "--fps", "1 to"),
    ("animate rocket.png --noise-aug-strength -1", 2, SMALL, "--noise-aug-strength", "0.0 to 10.0"),
    ("animate rocket.png --decode-chunk 0", 2, SMALL, "--decode-chunk", "1 to"),
    ("animate rocket.png --width 100", 2, "setting", "--width", "64 or 128"),
    ("compare-samplers rocket.png --steps 100000", 2, BIG, "--steps", "1 to 10000"),
    ("compare-samplers rocket.png --frames 0", 2, SMALL, "--frames", "1 to"),
    ("compare-samplers rocket.png -o a.mp4", 2, "setting", "--output must", '"a.mp4"'),
    ("animate rocket.png --device gpu", 2, "setting", '"gpu"', "cuda"),
    # a model
    ("animate rocket.png --model svd-xt", 3, "checkpoint.not_found", '"svd-xt"', "svd-stages download svd-xt"),
    (
        "animate rocket.png --model svd_xt.safetensors",
        3,
        "checkpoint.not_found",
        "svd_xt.safetensors",
        "download svd-xt",
    ),
    ("animate rocket.png --model svdxt", 3, "checkpoint.not_found", '"svdxt"', "svd-stages download svd-xt"),
    ("batch run photos --run r --model svd-xt11", 3, "checkpoint.not_found", '"svd-xt11"', "download svd-xt-1-1"),
    ("animate rocket.png --model svd-nana", 3, "checkpoint.not_found", '"svd-nana"', "svd-nano"),
    ("animate rocket.png --model old.pth", 3, "checkpoint.pickle", "old.pth", ".safetensors"),
    ("download svd-xl", 3, "checkpoint.not_found", '"svd-xl"', "svd-xt"),
    ("inspect svd-xt", 3, "checkpoint.not_found", '"svd-xt"', "download svd-xt"),
    ("inspect notes.txt", 3, "checkpoint.damaged", '"notes.txt"', "safetensors"),
    ("inspect nowhere", 3, "checkpoint.unreadable", '"nowhere"', "path"),
    ("compare-samplers rocket.png --model svd-nana", 3, "checkpoint.not_found", '"svd-nana"', "svd-nano"),
    # a file
    ("compare-samplers missing.png", 3, "image.missing", '"missing.png"', "path"),
    ("compare-samplers rocket.png -o rocket.png", 2, "setting", "--output must", "folder"),
    ("animate missing.png", 3, "image", '"missing.png"', "path"),
    ("animate text.png", 3, "image.unsupported", '"text.png"', "PNG"),
    ("animate rocket.png -o rocket.png/a.mp4", 2, "output.not_writable", '"rocket.png"', "another folder"),
    ("run missing.json", 2, "graph.file", '"missing.json"', ".json"),
    ("run notes.txt", 2, "graph.json", '"notes.txt"', "Export"),
    ("run other.json", 2, "graph.invalid_prompt", '"other.json"', "Export"),
    ("run list.json", 2, "graph.shape", '"list.json"', "Export"),
    ("run rocket.png", 2, "graph.not_inside", '"rocket.png"', ".json"),
    ("run photo.gif", 2, "graph.not_inside", '"photo.gif"', ".json"),
    ("animate graph.json", 3, "image.unsupported", '"graph.json"', "svd-stages run graph.json"),
    ("run graph.json", 3, "graph.custom_validation_failed", '"rocket.png"', "--input-dir"),
    ("run xt.json --input-dir .", 3, "graph.custom_validation_failed", "svd_xt.safetensors", "download svd-xt"),
    ("batch run nofolder --run r", 2, "manifest.file", '"nofolder"', "path"),
    ("batch run empty --run r", 2, "manifest.empty", '"empty"', ".png"),
    ("batch run rows.csv --run r", 2, "manifest.columns", '"seeed"', "seed"),
    ("batch status --run nowhere", 2, "batch.no_plan", '"nowhere"', "batch run"),
    # a setting of a graph
    ("run graph.json --set SVDEulerSampler.step=3", 2, "graph.setting", '"step"', '"steps"'),
    ("run graph.json --set SVDEulerSamplr.steps=3", 2, "graph.setting", '"SVDEulerSamplr"', '"SVDEulerSampler"'),
    ("run graph.json --set SVDEulerSampler.steps=many", 2, "graph.setting", "many", "integer"),
    ("run graph.json --set steps=3", 2, "graph.setting", "steps", "NODE.INPUT=VALUE"),
    ("run graph.json --input-dir . --set SVDEulerSampler.steps=0", 2, SMALL, '"steps"', "1 to 10000"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("mistakes")
    shutil.copy(EXAMPLES / "rocket.png", folder)
    shutil.copy(EXAMPLES / "quickstart_nano.json", folder / "graph.json")
    shutil.copy(EXAMPLES / "image_to_video.json", folder / "xt.json")
    for name in ("photos", "empty", "models/checkpoints"):
        (folder / name).mkdir(parents=True)
    shutil.copy(EXAMPLES / "rocket.png", folder / "photos")
    Image.new("RGB", (64, 64), "red").save(folder / "photo.gif")
    torch.save({"weight": torch.zeros(1)}, folder / "models" / "checkpoints" / "old.pth")
    for name, text in {
        "notes.txt": "no graph", "text.png": "no image", "list.json": "[1]", "other.json": '{"a": 1}',
        "rows.csv": "image,seeed\nphotos/rocket.png,3\n",
    }.items():  # fmt: skip
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def here(folder, monkeypatch) -> Path:
    monkeypatch.chdir(folder)
    monkeypatch.delenv("SVD_STAGES_MODELS", raising=False)
    return folder


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(("arguments", "status", "code", "typed", "fix"), MISTAKES, ids=lambda value: str(value)[:60])
def test_a_mistake_gets_one_short_sentence_with_what_was_typed_and_the_fix(arguments, status, code, typed, fix, capsys):
    assert main([*arguments.split(), "--json"] if code != USAGE else arguments.split()) == status
    said = capsys.readouterr()
    start, sentence = said.err.split(": ", 1)
    assert start == "svd-stages"
    sentence = " ".join(sentence.split())
    check_facts(sentence, typed, fix)
    assert len(sentence) <= LONGEST, len(sentence)
    assert "Traceback" not in sentence and "usage:" not in sentence and "`" not in sentence
    if code != USAGE:
        assert json.loads(said.out.splitlines()[-1])["code"] == code


@pytest.mark.usefixtures("here")
def test_a_mistake_of_usage_is_an_event_too(capsys):
    assert main(["animate", "rocket.png", "--widht", "3", "--json"]) == 2
    event = json.loads(capsys.readouterr().out)
    assert (event["event"], event["code"], event["exit_status"]) == ("error", USAGE, 2)


def test_options_before_the_command_are_checked_in_a_process_too():
    command = [sys.executable, "-m", "svd_stages", "--verson"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    check_facts(ended.stderr, "--verson", "--version")


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("arguments", [["my photos"], ["batch", "status", "--run", "my photos"]], ids=str)
def test_a_command_to_copy_quotes_its_paths(arguments, folder, capsys):
    (folder / "my photos").mkdir(exist_ok=True)
    assert main(arguments) == 2
    check_facts(" ".join(capsys.readouterr().err.split()), "'my photos'")


@pytest.mark.usefixtures("here")
def test_validate_names_each_missing_thing_once(capsys):
    assert main(["validate", "xt.json"]) == 3
    *missing, error = capsys.readouterr().err.splitlines()
    assert len(missing) == 2 and all(line.startswith("missing ") for line in missing)
    check_facts(error, '"xt.json"', "svd_xt.safetensors", "rocket.png")
    assert main(["validate", "xt.json", "--set", "SVDEulerSampler.steps=0"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    check_facts(said, "steps", "10000")
    assert said.count("put it into") == 2 and "download" not in said


def test_a_video_finds_its_image_beside_it(here, monkeypatch, capsys, caplog):
    Image.new("RGB", (64, 64), "red").save(here / "photos" / "red.png")
    quick = ["--steps", "1", "--width", "64", "--height", "64", "--frames", "1"]
    assert main(["animate", "photos/red.png", "-o", "photos/red.mp4", *quick]) == 0
    assert main(["run", "photos/red.mp4", "--output-dir", "again"]) == 0
    check_facts(caplog.text, '"red.png"', '"photos/red.mp4"')
    assert len(list((here / "again").rglob("*.mp4"))) == 1
    shutil.copy(here / "photos" / "red.mp4", here / "empty")
    assert main(["run", "empty/red.mp4"]) == 3
    check_facts(capsys.readouterr().err, '"red.png"', "--input-dir")
    assert main(["animate", "empty/red.mp4"]) == 3
    check_facts(" ".join(capsys.readouterr().err.split()), '"empty/red.mp4"', "svd-stages run empty/red.mp4")
    (here / "empty" / "red.mp4").unlink()
