"""The code of diffusers' guide runs, with the import lines changed, and gives diffusers' frames.

A random checkpoint in the published layout takes the place of the hub's, an address of this machine that of the
picture, and the CPU that of CUDA. With its own 1024x576 pixels and 25 steps a block takes minutes here, so the imported
class has a smaller default size and fewer steps.
"""

from __future__ import annotations

import re
from pathlib import Path

import diffusers
import numpy as np
import pytest
import svd_stages
import torch
from http_serving import send, serving
from svd_stages.svd_core.media.hashing import read_frames
from tiny import mini_checkpoint, tiny_pipeline

GUIDE = (Path(__file__).parents[2] / "data/diffusers_guide.txt").read_text()
ROCKET = Path(svd_stages.__file__).parent / "example_workflows/rocket.png"
OFFLOAD = "pipe.enable_model_cpu_offload()\n"
SMALLER = {"height": 64, "width": 64, "num_inference_steps": 8}  # with fewer steps, rounding at sigma 700 shows


def changed(program: str, change: str) -> str:
    """Change a program by a block with - and + lines.

    A - line is replaced by the + lines that follow the one that begins like it; by all of them if none does.
    """
    old, new = ([line[2:] for line in change.splitlines() if line[0] == sign] for sign in "-+")
    starts = [next((index for index, line in enumerate(new) if line[:6] == each[:6]), 0) for each in old]
    for each, start, stop in zip(old, starts, [*starts[1:], len(new)], strict=True):
        assert f"\n{each}\n" in program
        program = program.replace(f"\n{each}\n", "\n" + "\n".join(new[start:stop]) + "\n")
    return program


def programs() -> dict[str, str]:
    blocks = re.findall(r"```(?:python|diff)\n(.*?)```", GUIDE, re.DOTALL)
    first, compiled, less_memory, more_motion = blocks
    return {
        "first": first,
        "compiled": changed(first, compiled),
        "less memory": changed(first, less_memory),
        "more motion": more_motion,
    }


PROGRAMS = programs()


def test_the_blocks_are_applied_to_the_first_one():
    assert 'pipe.to("cuda")\npipe.unet = torch.compile(' in PROGRAMS["compiled"] and OFFLOAD not in PROGRAMS["compiled"]
    assert f"{OFFLOAD}pipe.unet.enable_forward_chunking()\n" in PROGRAMS["less memory"]
    assert PROGRAMS["less memory"].count("frames = pipe(image, decode_chunk_size=2") == 1
    assert "decode_chunk_size=8" not in PROGRAMS["less memory"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder in the published layout whose weights are of the variant fp16. Its UNet makes 10 frames."""
    path = tmp_path_factory.mktemp("hub") / "stable-video-diffusion-img2vid-xt"
    pipeline = tiny_pipeline(mini_checkpoint(torch.float16))
    pipeline.unet.register_to_config(num_frames=10)
    pipeline.save_pretrained(path, variant="fp16")
    return path


@pytest.fixture
def run(folder, tmp_path, monkeypatch):
    """A function that runs a program with the names of a library, and returns its variables."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    stock_compile = torch.compile
    monkeypatch.setattr(  # the graphs of the network, without minutes for their machine code
        torch, "compile", lambda model, mode, fullgraph: stock_compile(model, backend="eager", fullgraph=fullgraph)
    )

    def run(program: str, library, export) -> dict:
        class StableVideoDiffusionPipeline(library.StableVideoDiffusionPipeline):
            def __call__(self, *arguments, **more):
                return super().__call__(*arguments, **{**SMALLER, **more})

        program = re.sub(r"^from diffusers.*\n", "", program, flags=re.MULTILINE)
        program = program.replace("stabilityai/stable-video-diffusion-img2vid-xt", str(folder)).replace(
            '"cuda"', '"cpu"'
        )
        with serving(send(ROCKET.read_bytes())) as address:
            program = re.sub(r"https://\S+rocket\.png", address, program)
            names = {
                "StableVideoDiffusionPipeline": StableVideoDiffusionPipeline,
                "load_image": svd_stages.load_image,
                "export_to_video": export,
            }
            with torch.inference_mode(False):
                exec(compile(program, "guide.py", "exec"), names)  # the guide's own code
        return names

    return run


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_block_runs_in_its_dtype_and_in_float32_gives_diffusers_frames(run, name, caplog):
    program = PROGRAMS[name]
    half = run(program, svd_stages, svd_stages.export_to_video)
    assert {half["pipe"].vae.dtype, half["pipe"].unet.dtype, half["pipe"].image_encoder.dtype} == {torch.float16}
    logged = [record.getMessage() for record in caplog.records if record.name.startswith("svd_stages")]
    assert (OFFLOAD in program) == any("accelerator" in text for text in logged)
    count = 25 if "num_frames=25" in program else 10
    assert len(half["frames"]) == len(list(read_frames(Path("generated.mp4")))) == count

    program = program.replace("torch.float16", "torch.float32").replace(
        "generator=generator", 'generator=generator, output_type="np"'
    )
    ours = run(program, svd_stages, svd_stages.export_to_video)["frames"]
    theirs = run(program.replace(OFFLOAD, ""), diffusers, svd_stages.export_to_video)["frames"]
    assert ours.shape == theirs.shape == (count, SMALLER["height"], SMALLER["width"], 3)
    assert np.abs(ours - theirs).max() <= 2e-5
