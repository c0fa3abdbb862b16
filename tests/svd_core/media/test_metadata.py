"""Embedded graphs are read from results as strict JSON, or refused with an error that names the file."""

from __future__ import annotations

import random

import pytest
import torch
from error_checks import raises
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from svd_stages.headless.engines.graph_loading import read_embedded_graphs
from svd_stages.svd_core.errors import GraphError, ImageError
from svd_stages.svd_core.media import video_io

FRAMES = torch.zeros(2, 16, 16, 3)


def png_with(path, **texts: str):
    info = PngInfo()
    for name, text in texts.items():
        info.add_text(name, text)
    Image.new("RGB", (4, 4)).save(path, pnginfo=info)
    return path


def test_only_graphs_are_read(tmp_path):
    path = png_with(tmp_path / "a.png", prompt='{"1": {}}', parameters="steps: 20", other="{")
    assert read_embedded_graphs(path) == {"prompt": {"1": {}}}


def test_the_format_is_detected_from_the_content(tmp_path):
    video_io.encode_mp4(tmp_path / "a.png", FRAMES, 7, {"prompt": {"1": 2}})
    assert read_embedded_graphs(tmp_path / "a.png") == {"prompt": {"1": 2}}


@pytest.mark.parametrize(
    ("text", "code"),
    [("", "json"), ("{", "json"), ("{'a': 1}", "json"), ('{"a": NaN}', "non_finite"),
     ('{"a": -Infinity}', "non_finite"), ('{"a": 1, "a": 2}', "duplicate_key"), ("[" * 100_000, "too_large")],
    ids=range(7),
)  # fmt: skip
def test_text_that_is_not_strict_json_is_refused(tmp_path, text, code):
    with raises(GraphError, f"graph.{code}", "workflow", "a.png"):
        read_embedded_graphs(png_with(tmp_path / "a.png", prompt="{}", workflow=text))


@pytest.mark.parametrize("content", [b"", b"hello", b"\xff\xd8\xff\xe0 jpeg", b"GIF89a"])
def test_other_formats_are_refused(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    with raises(ImageError, "image.unsupported", tmp_path / "a.png", "mp4", "webm", "png", "webp"):
        read_embedded_graphs(tmp_path / "a.png")


def test_missing_files_and_folders_are_refused(tmp_path):
    with raises(ImageError, "image.missing", tmp_path / "a.png"):
        read_embedded_graphs(tmp_path / "a.png")
    with raises(ImageError, "image.unreadable", tmp_path):
        read_embedded_graphs(tmp_path)


@pytest.mark.parametrize("ending", ["mp4", "webp", "png"])
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damaged_files_give_graphs_or_typed_errors(tmp_path, ending):
    graphs = {"prompt": {"1": {"class_type": "LoadImage"}}, "workflow": {"nodes": []}}
    path = tmp_path / f"a.{ending}"
    if ending == "mp4":
        video_io.encode_mp4(path, FRAMES, 7, graphs)
    elif ending == "webp":
        video_io.encode_webp(path, FRAMES, 7, metadata=graphs)
    else:
        video_io.encode_png(path, FRAMES[0], graphs)
    content = path.read_bytes()
    rng = random.Random(1)
    refused = 0
    for attempt in range(150):
        damaged = bytearray(content[: rng.randrange(13, len(content))] if attempt % 2 else content)
        for _ in range(4):
            damaged[rng.randrange(12, len(damaged))] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            read_embedded_graphs(path)
        except (ImageError, GraphError):
            refused += 1
    assert refused > 20
