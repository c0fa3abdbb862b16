"""Load pictures from paths and addresses, and write videos, with the arguments of diffusers' helpers."""

from __future__ import annotations

import threading
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from error_checks import raises
from http_serving import send, serving
from PIL import Image
from svd_stages.svd_core.diffusers_pipeline.inputs import load_image
from svd_stages.svd_core.diffusers_pipeline.outputs import export_to_video
from svd_stages.svd_core.errors import ImageError, SettingError
from svd_stages.svd_core.media import image_download
from svd_stages.svd_core.media.hashing import read_frames


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 4), np.uint8)).save(path)
    return path


def test_a_path_an_address_and_an_image_give_the_same_rgb_image(photo):
    from diffusers.utils import load_image as stock

    expected = np.asarray(stock(str(photo)))
    with serving(send(photo.read_bytes())) as address:
        for source in (str(photo), address, Image.open(photo)):
            loaded = load_image(source)
            assert loaded.mode == "RGB"
            assert np.array_equal(np.asarray(loaded), expected)


def test_a_convert_method_takes_the_place_of_rgb(photo):
    assert load_image(str(photo), lambda image: image.convert("L")).mode == "L"


def test_an_address_that_fails_is_an_error_that_names_it():
    with serving(send(b"", 404)) as address, raises(ImageError, "image.download", address, 404):
        load_image(address)


def test_a_download_is_bounded(photo, monkeypatch):
    monkeypatch.setattr(image_download, "MAX_FILE_BYTES", 1000)
    with serving(send(b"x" * 5000)) as address, raises(ImageError, "image.too_large", 1000):
        load_image(address)


def test_a_slow_download_is_given_up(monkeypatch):
    stopped = threading.Event()

    def drip(handler):
        handler.send_response(200)
        handler.end_headers()
        while not stopped.wait(0.05):
            handler.wfile.write(b"x")

    monkeypatch.setattr(image_download, "TIMEOUT", 0.5)
    with serving(drip) as address, raises(ImageError, "image.download", address):
        load_image(address)
    stopped.set()


def test_slow_headers_are_given_up(monkeypatch):
    stopped = threading.Event()
    monkeypatch.setattr(image_download, "TIMEOUT", 0.5)

    def drip(handler):
        handler.wfile.write(b"HTTP/1.0 200 OK\r\nX: ")
        while not stopped.wait(0.05):
            handler.wfile.write(b"x")

    with serving(drip) as address, raises(ImageError, "image.download", address):
        load_image(address)
    stopped.set()


def redirect(handler):
    handler.send_response(302)
    handler.send_header("Location", "ftp://127.0.0.1/a.png")
    handler.end_headers()


def incomplete(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", "100")
    handler.end_headers()
    handler.wfile.write(b"123")


@pytest.mark.parametrize("answer", [redirect, incomplete, lambda handler: handler.wfile.write(b"no HTTP\r\n\r\n")])
def test_an_answer_that_is_not_an_image_over_http_is_an_error(answer):
    with serving(answer) as address, raises(ImageError, "image.download", address):
        load_image(address)


@pytest.mark.parametrize("address", ["http://127.0.0.1:abc/a.png", "http://127.0.0.1:9/a b.png"])
def test_an_invalid_address_is_an_error(address):
    with raises(ImageError, "image.download", address):
        load_image(address)


def test_what_is_no_image_is_refused(tmp_path):
    with raises(ImageError, "image.missing"):
        load_image(str(tmp_path / "gone.png"))
    with pytest.raises(TypeError):
        load_image(3)


def moving(count: int = 5) -> torch.Tensor:
    """Frames (F, 3, H, W) in [0, 1]: a smooth ramp that moves."""
    ramp = torch.linspace(0, 1, 48).expand(3, 32, 48)
    return torch.stack([ramp.roll(4 * index, -1) for index in range(count)])


def forms(frames: torch.Tensor) -> dict:
    arrays = frames.movedim(1, -1).numpy()
    pixels = (arrays * 255).round().astype(np.uint8)
    return {
        "tensor": frames,
        "tensor of animate": frames.movedim(1, -1),
        "arrays": list(arrays),
        "array": arrays,
        "pil": [Image.fromarray(each) for each in pixels],
    }


@pytest.mark.parametrize("form", ["tensor", "tensor of animate", "arrays", "array", "pil"])
def test_every_form_of_frames_gives_the_same_mp4(tmp_path, form):
    frames = moving()
    expected, path = tmp_path / "expected.mp4", tmp_path / "video.mp4"
    export_to_video(forms(frames)["pil"], expected, fps=7)
    assert export_to_video(forms(frames)[form], str(path), fps=7) == str(path)
    assert np.array_equal(np.stack(list(read_frames(path))), np.stack(list(read_frames(expected))))


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".webp", ".gif", ".png"])
def test_the_suffix_chooses_the_format_and_the_rate_is_kept(tmp_path, suffix):
    path = tmp_path / f"video{suffix}"
    export_to_video(moving(8), path, fps=8)
    if suffix in (".mp4", ".webm"):
        import av

        with av.open(str(path)) as file:
            assert file.streams.video[0].average_rate == Fraction(8)
            assert sum(1 for _ in file.decode(video=0)) == 8
        return
    with Image.open(path) as image:
        assert image.n_frames == 8
        durations = []
        for index in range(8):
            image.seek(index)
            image.load()
            durations.append(image.info["duration"])
    assert sum(durations) == pytest.approx(1000, abs=10)


def test_without_a_path_there_is_a_new_mp4():
    path = export_to_video(moving())
    assert path.endswith(".mp4") and len(list(read_frames(Path(path)))) == 5


def test_bad_videos_are_refused(tmp_path):
    with raises(SettingError, "output.suffix", "video.avi"):
        export_to_video(moving(), tmp_path / "video.avi")
    with raises(SettingError, "video.frames"):
        export_to_video([], tmp_path / "video.mp4")
    for several in ([forms(moving())["pil"]], moving()[None], moving()[None].numpy(), [moving()]):
        with raises(SettingError, "video.frames", "frames[0]"):
            export_to_video(several, tmp_path / "video.mp4")
    with raises(SettingError, "video.fps"):
        export_to_video(moving(), tmp_path / "video.mp4", fps=0)
    assert list(tmp_path.iterdir()) == []
