"""Test that the compat nodes for core's SVD nodes compute the same as core, on one random file.

One graph runs on the node classes of both sides. ComfyUI's SVD template runs on a real server and with `run_graph`.
The file has no second conditioning encoder, because core does not read it.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from comfyui.core_svd_nodes import arrays, evaluate
from comfyui.keep_frames import KeepFrames
from PIL import Image
from svd_stages.headless import NODES, open_graph, run_graph
from svd_stages.nodes.compat.values import SCHEDULER_NAMES, Model
from svd_stages.svd_core.checkpoints.load import load_checkpoint
from svd_stages.svd_core.runtime.runtime import LocalRuntime, use_runtime

pytestmark = [pytest.mark.comfyui, pytest.mark.slow]

HERE = Path(__file__).parent
FLOAT32 = ("--cpu", "--force-fp32", "--fp32-unet", "--fp32-vae", "--fp32-text-enc", "--use-pytorch-cross-attention")
TOLERANCE = 1e-3
"""In units of the result's standard deviation. One step from sigma 700 to 0 differs by 8e-4, because core's guidance
computes x - denoised in float32. Without guidance, or at lower levels, 3e-5 comes from diffusers' group norms."""
CHECKPOINT = "without.safetensors"
WIDTH, HEIGHT, FRAMES = 64, 64, 3


def node(class_type: str, **inputs: Any) -> dict:
    return {"class_type": class_type, "inputs": inputs}


def conditioning(**changes: Any) -> dict:
    values = {"width": WIDTH, "height": HEIGHT, "video_frames": FRAMES, "motion_bucket_id": 90, "fps": 9}
    parts = {"clip_vision": ["load", 1], "init_image": ["image", 0], "vae": ["load", 2]}
    return node("SVD_img2vid_Conditioning", **{**parts, **values, "augmentation_level": 0.0, **changes})


def sides(of: str = "conditioning") -> dict:
    """Return the links to a conditioning node that a sampler needs."""
    return {"positive": [of, 0], "negative": [of, 1], "latent_image": [of, 2]}


SETTINGS = {"steps": 2, "cfg": 3.0, "sampler_name": "euler", "scheduler": "karras"}


def ksampler(model: str = "guided", **changes: Any) -> dict:
    return node("KSampler", model=[model, 0], **{**sides(), **SETTINGS, "seed": 7, "denoise": 1.0, **changes})


def advanced(**changes: Any) -> dict:
    values = {"start_at_step": 0, "end_at_step": 10000, "add_noise": "enable", "return_with_leftover_noise": "disable"}
    return node(
        "KSamplerAdvanced", model=["guided", 0], **{**sides(), **SETTINGS, "noise_seed": 5, **values, **changes}
    )


def custom(sigmas: list, **changes: Any) -> dict:
    values = {"add_noise": True, "noise_seed": 3, "cfg": 2.0, "sampler": ["euler", 0], "sigmas": sigmas}
    return node("SamplerCustom", **{"model": ["load", 0], **sides(), **values, **changes})


def custom_advanced(guider: str, noise: str, sigmas: str, latent: list) -> dict:
    links = {"noise": [noise, 0], "guider": [guider, 0], "sampler": ["euler", 0], "sigmas": [sigmas, 0]}
    return node("SamplerCustomAdvanced", **links, latent_image=latent)


def scheduled(scheduler: str, steps: int, denoise: float = 1.0) -> dict:
    return node("BasicScheduler", model=["load", 0], scheduler=scheduler, steps=steps, denoise=denoise)


RANGE = {"sigma_max": 700.0, "sigma_min": 0.002}
STEPS = (1, 2, 7, 20, 25, 30)
STILL = ["still", 0]
"""A latent that is a still video."""
PARTS = {
    "guided": node("VideoLinearCFGGuidance", model=["load", 0], min_cfg=1.5),
    "guided in a triangle": node("VideoTriangleCFGGuidance", model=["load", 0], min_cfg=1.0),
    "small": node("ImageScale", image=["image", 0], upscale_method="area", width=WIDTH, height=HEIGHT, crop="center"),
    "encoded": node("VAEEncode", pixels=["small", 0], vae=["load", 2]),
    "still": node("RepeatLatentBatch", samples=["encoded", 0], amount=FRAMES),
    "five frames of two pictures": conditioning(init_image=["pair", 0], video_frames=5),
    "one step": ksampler(steps=1),
    "one step, twice": node("RepeatLatentBatch", samples=["one step", 0], amount=2),
    "later frames": node("LatentFromBatch", samples=["conditioning", 2], batch_index=1, length=2),
    "first half": advanced(end_at_step=1, return_with_leftover_noise="enable"),
    "euler": node("KSamplerSelect", sampler_name="euler"),
    "two levels": scheduled("karras", 2),
    **{f"cut at {step}": node("SplitSigmas", sigmas=["two levels", 0], step=step) for step in (0, 1, 2)},
    "low": node("KarrasScheduler", steps=1, rho=7.0, sigma_max=1.0, sigma_min=0.002),
    "upwards": node("FlipSigmas", sigmas=["low", 0]),
    "noise": node("RandomNoise", noise_seed=11),
    "none": node("DisableNoise"),
    "guider": node(
        "CFGGuider", model=["guided", 0], cfg=2.5, positive=["conditioning", 0], negative=["conditioning", 1]
    ),
    "no guider": node("BasicGuider", model=["load", 0], conditioning=["conditioning", 0]),
}
"""Nodes whose outputs are not compared themselves."""
SIGMAS = {
    **{
        f"{scheduler} {steps} {denoise}": scheduled(scheduler, steps, denoise)
        for scheduler in SCHEDULER_NAMES
        for steps in STEPS
        for denoise in (1.0, 0.6)
        if (scheduler, steps) != ("kl_optimal", 1)  # NaN in core
    },
    **{f"KarrasScheduler {steps}": node("KarrasScheduler", steps=steps, rho=5.0, **RANGE) for steps in STEPS},
    **{f"ExponentialScheduler {steps}": node("ExponentialScheduler", steps=steps, **RANGE) for steps in STEPS},
    **{
        f"AlignYourStepsScheduler {steps} {denoise}": node(
            "AlignYourStepsScheduler", model_type="SVD", steps=steps, denoise=denoise
        )
        for steps in (1, 4, 10, 25)
        for denoise in (1.0, 0.5, 0.0)
    },
    "an empty row": scheduled("karras", 5, 0.0),
    "split": node("SplitSigmas", sigmas=["karras 7 1.0", 0], step=4),
    **{
        f"split by {share}": node("SplitSigmasDenoise", sigmas=["karras 7 1.0", 0], denoise=share)
        for share in (0.0, 0.3, 1.0)
    },
    "flipped": node("FlipSigmas", sigmas=["normal 7 1.0", 0]),
}
PICTURES = {
    "conditioning": conditioning(),
    "conditioning with noise": conditioning(augmentation_level=0.1),
    "conditioning of an odd size": conditioning(width=100, height=68),
    "conditioning of two pictures": conditioning(init_image=["pair", 0], video_frames=2),
    "second picture": node("ImageFromBatch", image=["pair", 0], batch_index=1, length=5),
    "clip center": node("CLIPVisionEncode", clip_vision=["load", 1], image=["image", 0], crop="center"),
    "clip none": node("CLIPVisionEncode", clip_vision=["load", 1], image=["image", 0], crop="none"),
    "encode an odd size": node("VAEEncode", pixels=["image", 0], vae=["load", 2]),
    "decode": node("VAEDecode", samples=STILL, vae=["load", 2]),
    "decode tiled": node(
        "VAEDecodeTiled", samples=STILL, vae=["load", 2],
        tile_size=64, overlap=16, temporal_size=64, temporal_overlap=8,
    ),
    "upscaled": node("LatentUpscaleBy", samples=STILL, upscale_method="bicubic", scale_by=1.3),
}  # fmt: skip
SAMPLED = {
    "linear": ksampler(),
    "triangle": ksampler("guided in a triangle", scheduler="normal", steps=1),
    "constant": ksampler("load", cfg=2.0, scheduler="sgm_uniform", steps=1),
    "two pictures": ksampler("load", cfg=2.0, steps=1, **sides("five frames of two pictures")),
    "no guidance": ksampler("load", cfg=1.0, sampler_name="ddim", scheduler="ddim_uniform", steps=1),
    "longer than asked": ksampler("load", cfg=1.0, scheduler="ddim_uniform", steps=6),
    "part of a video": ksampler(denoise=0.4, steps=1, latent_image=STILL),
    "no denoise": ksampler(denoise=0.0, latent_image=STILL),
    "a sampled video twice": ksampler(steps=1, denoise=0.5, latent_image=["one step, twice", 0]),
    "frames of a longer video": ksampler(latent_image=["later frames", 0], steps=1),
    "in two": advanced(start_at_step=1, add_noise="disable", latent_image=["first half", 0]),
    "cut short": advanced(end_at_step=1),
    "begun late": advanced(start_at_step=1, latent_image=STILL),
    "nothing left": advanced(start_at_step=2, latent_image=STILL),
    "custom": custom(["beta 1 1.0", 0], model=["guided", 0]),
    "custom, to be gone on with": custom(["cut at 1", 0]),
    "one level, the first": custom(["cut at 0", 0], latent_image=STILL),
    "one level, the last": custom(["cut at 2", 1], latent_image=STILL),
    "a guider": custom_advanced("guider", "noise", "AlignYourStepsScheduler 1 1.0", ["conditioning", 2]),
    "a basic guider": custom_advanced("no guider", "noise", "simple 1 1.0", ["conditioning", 2]),
    "finding noise": custom_advanced("no guider", "none", "upwards", STILL),
}
GRAPH = {**PARTS, **SIGMAS, **PICTURES, **SAMPLED}
"""One graph. Its nodes run once, when an answer needs them."""
ANSWERS = [*SIGMAS, *PICTURES, *SAMPLED]


@pytest.fixture(scope="module")
def pair() -> np.ndarray:
    """Return two images, 150x100, with an edge and noise."""
    pictures = np.random.default_rng(1).random((2, 100, 150, 3), dtype=np.float32) * 0.5
    pictures[:, :, 60:] += 0.4
    return pictures


@pytest.fixture(scope="module")
def core(comfyui, random_checkpoints, pair, tmp_path_factory) -> dict[str, np.ndarray]:
    """Return core's results: "node.slot" -> array."""
    folder = tmp_path_factory.mktemp("svd_nodes")
    questions = {"checkpoint": str(random_checkpoints / CHECKPOINT), "graph": GRAPH, "answers": ANSWERS}
    (folder / "questions.json").write_text(json.dumps(questions))
    np.save(folder / "pair.npy", pair)
    comfyui.run(HERE / "core_svd_nodes.py", folder, *FLOAT32)
    return dict(np.load(folder / "answers.npz"))


@pytest.fixture(scope="module")
def known(core, random_checkpoints, pair) -> dict[str, tuple]:
    """Return our models and the images by node id. After core, which needs the memory."""
    loaded = load_checkpoint(random_checkpoints / CHECKPOINT, "fp32", torch.device("cpu"))
    pictures = torch.from_numpy(pair)
    parts = (Model(loaded.model), loaded.clip_vision, loaded.vae)
    return {"pair": (pictures,), "image": (pictures[:1],), "load": parts}


@pytest.mark.parametrize("name", ANSWERS)
def test_a_node_gives_what_core_gives(core, known, name):
    with use_runtime(LocalRuntime(device_name="cpu")):
        ours = arrays(name, tuple(evaluate(NODES, GRAPH, known, name)))
    theirs = {key: value for key, value in core.items() if key.startswith(f"{name}.")}
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        assert ours[key].shape == value.shape, key
        if value.size:
            assert difference(ours[key], value, relative=name in SIGMAS) < (1e-6 if name in SIGMAS else TOLERANCE), key


def difference(ours: np.ndarray, core: np.ndarray, relative: bool) -> float:
    """Return the largest difference: relative to core's values, or in units of their standard deviation."""
    unit = np.abs(core) if relative else core.std() if core.size > 1 else 1.0
    return float((np.abs(ours - core) / np.where(unit == 0, 1.0, unit)).max())


# ComfyUI's own template, of a real server and without one

TEMPLATE = "/templates/image_to_video.json"
SMALLER = (
    "ImageOnlyCheckpointLoader.ckpt_name=svd.safetensors",
    "LoadImage.image=picture.png",
    f"SVD_img2vid_Conditioning.width={WIDTH}",
    f"SVD_img2vid_Conditioning.height={HEIGHT}",
    f"SVD_img2vid_Conditioning.video_frames={FRAMES}",
    "KSampler.steps=2",
)


@pytest.fixture
def base(random_checkpoints, tmp_path) -> Path:
    """Return a ComfyUI base directory with the random file, an image, and the node that writes frames."""
    for folder in ("models/checkpoints", "input", "custom_nodes"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "models" / "checkpoints" / "svd.safetensors").symlink_to(random_checkpoints / CHECKPOINT)
    shutil.copy(HERE / "keep_frames.py", tmp_path / "custom_nodes")
    Image.radial_gradient("L").convert("RGB").resize((160, 96)).save(tmp_path / "input" / "picture.png")
    return tmp_path


def with_frames_kept(prompt: dict, path: Path) -> dict:
    """Return the graph with a node that writes the frames of its VAEDecode to a file."""
    (decoder,) = [node_id for node_id, each in prompt.items() if each["class_type"] == "VAEDecode"]
    return {**prompt, "keep": node("KeepFrames", images=[decoder, 0], path=str(path))}


def test_comfyuis_own_template_gives_the_same_frames_without_comfyui(comfyui, base, monkeypatch):
    with comfyui.serve(base, *FLOAT32[1:]) as server:
        workflow = server.get(TEMPLATE)
        prompt = dict(open_graph(workflow, SMALLER).prompt)
        done = server.wait(server.queue(with_frames_kept(prompt, base / "theirs.npy")))
        assert done["status"]["status_str"] == "success", done["status"]
    monkeypatch.setitem(NODES, "KeepFrames", KeepFrames)
    report = run_graph(
        with_frames_kept(prompt, base / "ours.npy"),
        input_dir=base / "input",
        output_dir=base / "ours",
        models=[base / "models"],
        device="cpu",
        precision="fp32",
    )
    assert [path.relative_to(base / "ours").as_posix() for path in report.files] == ["video/ComfyUI_00001_.mp4"]
    theirs, ours = np.load(base / "theirs.npy"), np.load(base / "ours.npy")
    assert ours.shape == theirs.shape == (FRAMES, HEIGHT, WIDTH, 3)
    assert theirs.std() > 0.05
    assert np.abs(ours - theirs).max() < 2e-3
