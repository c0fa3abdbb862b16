"""Test transparent images: `animate`, `run` and `batch` give the same video on the requested background."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import svd_stages
import torch
from error_checks import check_facts, raises
from PIL import Image
from svd_stages import headless
from svd_stages.headless.animation.render import VideoSettings, image_to_video_graph
from svd_stages.headless.batch.graph_rendering import GraphRenderer, RenderSettings
from svd_stages.headless.batch.images import file_sha256
from svd_stages.headless.batch.tasks import Task
from svd_stages.headless.cli.main import main
from svd_stages.svd_core.errors import ImageError, SettingError
from svd_stages.svd_core.media.alpha_compositing import read_background
from svd_stages.svd_core.runtime.runtime import use_runtime

QUICK = VideoSettings(width=64, height=64, num_frames=1, steps=1)
QUICK_OPTIONS = ["--width", "64", "--height", "64", "--frames", "1", "--steps", "1"]
GREY = (0.5, 0.5, 0.5)


@pytest.fixture
def logo(tmp_path, monkeypatch) -> Path:
    """Return an image whose right half is transparent, with random hidden colours."""
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(2).integers(0, 256, (64, 64, 4), dtype=np.uint8)
    pixels[:, :32, 3] = 255
    pixels[:, 32:, 3] = 0
    Image.fromarray(pixels).save(tmp_path / "logo.png")
    return tmp_path / "logo.png"


def animated(image, **options) -> torch.Tensor:
    return svd_stages.animate(image, width=64, height=64, num_frames=1, steps=1, **options)[0]


def composite(logo: Path, color: str) -> Image.Image:
    """Composite the image with Pillow."""
    image = Image.open(logo)
    return Image.alpha_composite(Image.new("RGBA", image.size, color), image).convert("RGB")


def rendered(logo: Path, background, image: str = "logo.png") -> torch.Tensor:
    """Render the default graph in a batch worker."""
    runtime = headless.RunConfig(input_folder=logo.parent).runtime()
    with use_runtime(runtime):
        graph = image_to_video_graph(QUICK, runtime, "logo.png").prompt
    loader = next(key for key, node in graph.items() if node["class_type"] == "LoadImage")
    settings = RenderSettings(graph, [loader, "image"], {"input_folder": str(logo.parent), "background": background})
    renderer = GraphRenderer(json.loads(json.dumps(vars(settings))))
    task = Task("t", image, file_sha256(logo.parent / image), {})
    (array,) = renderer.render(task, renderer.prepare(task)).arrays.values()
    return torch.from_numpy(array)


def test_animate_composites_on_grey_or_the_requested_colour(logo):
    grey = np.array(composite(logo, "white"), np.float32) / 255
    grey[:, 32:] = 0.5
    assert torch.equal(animated(logo), animated(grey))
    assert torch.equal(animated(logo, background="white"), animated(composite(logo, "white")))
    assert torch.equal(animated(logo, background="keep"), animated(Image.open(logo).convert("RGB")))
    assert not torch.equal(animated(logo), animated(logo, background="keep"))


@pytest.mark.parametrize("background", [GREY, "keep", (1, 1, 1)])
def test_a_batch_renders_the_frames_of_animate(logo, background):
    alone = animated(logo, background=background)
    assert torch.equal(rendered(logo, background), (alone * 255 + 0.5).to(torch.uint8))


def test_the_command_names_the_background(logo, caplog):
    for option, color in (([], "0.5"), (["--background", "#336699"], "#336699")):
        caplog.clear()
        assert main(["animate", str(logo), *QUICK_OPTIONS, *option]) == 0
        check_facts(caplog.text, "logo.png", color)
    caplog.clear()
    assert main(["animate", str(logo), *QUICK_OPTIONS, "--background", "keep"]) == 0
    assert "logo.png" not in caplog.text


def test_a_graph_keeps_hidden_colours_with_a_note_or_uses_the_background(logo, caplog):
    graph = logo.parent / "g.json"
    prompt = {"1": {"class_type": "LoadImage", "inputs": {"image": "logo.png"}},
              "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "a"}}}  # fmt: skip
    graph.write_text(json.dumps(prompt))
    common = ["run", str(graph), "--input-dir", str(logo.parent), "--output-dir", str(logo.parent / "out")]
    assert main(common) == 0
    check_facts(caplog.text, "logo.png", "`background`")
    assert main([*common, "--background", "white", "--manifest", "m.json"]) == 0
    hidden, white = sorted((logo.parent / "out").iterdir())
    assert np.array_equal(Image.open(hidden), Image.open(logo).convert("RGB"))
    assert np.array_equal(Image.open(white), composite(logo, "white"))
    assert json.loads(Path("m.json").read_text())["background"] == [1.0, 1.0, 1.0]
    report = svd_stages.run_graph(prompt, input_dir=logo.parent, output_dir=logo.parent / "out", background="white")
    assert np.array_equal(Image.open(report.files[0]), Image.open(white))


def test_a_background_is_refused_if_comfyui_loads_the_images(logo):
    with raises(SettingError, "setting.background", "ImageCompositeMasked"):
        headless.choose_engine(headless.RunConfig(background=GREY), server="http://localhost:1")


@pytest.mark.parametrize("color", ["no-colour", "2", "", "keep it"])
def test_an_invalid_colour_is_bad_usage(logo, color, capsys):
    assert main(["animate", str(logo), "--background", color]) == 2
    check_facts(capsys.readouterr().err, "--background", "#336699")


def test_a_batch_task_refuses_a_file_with_several_images(logo):
    frames = [Image.new("RGB", (64, 64), (80 * number,) * 3) for number in range(3)]
    frames[0].save(logo.parent / "a.gif", save_all=True, append_images=frames[1:])
    with raises(ImageError, "image.animated", "a.gif", 3):
        rendered(logo, GREY, "a.gif")


def test_a_plan_stores_the_background_as_part_of_its_identity(logo):
    (logo.parent / "photos").mkdir()
    logo.rename(logo.parent / "photos" / "logo.png")
    plan = ["batch", "plan", "photos", "--run"]
    for name, option in (("r", []), ("s", ["--background", "white"])):
        assert main([*plan, name, *option]) == 0
    settings = [json.loads(Path(name, "run.json").read_text()) for name in ("r", "s")]
    assert [each["background"] for each in settings] == [[0.5, 0.5, 0.5], [1.0, 1.0, 1.0]]
    assert settings[0]["plan"] != settings[1]["plan"]
    assert main(["batch", "run", "--run", "r", "--background", "white"]) == 2
    assert main([*plan, "s"]) == 0
    again = json.loads(Path("s", "run.json").read_text())
    assert (again["background"], again["plan"]) == (settings[1]["background"], settings[1]["plan"])


@pytest.mark.parametrize("name", [b"caf\xe9.png", "🚀 é.png".encode(), b"x" * 251 + b".png"], ids=ascii)
def test_animate_accepts_any_file_name(logo, name, capsys):
    path = logo.rename(logo.parent / os.fsdecode(name))
    assert main(["animate", str(path), *QUICK_OPTIONS, "--json"]) == 0
    (video,) = Path().glob("*.mp4")
    assert video.stem == path.stem
    output = capsys.readouterr()
    (output.out + output.err).encode("utf-8")


@pytest.mark.parametrize("value", ["rgb(300,0,0)", True, [True, True, True], "1.5", "nan", [0.1, 0.2]])
def test_an_invalid_background_is_refused(value):
    with pytest.raises(SettingError):
        read_background(value)
