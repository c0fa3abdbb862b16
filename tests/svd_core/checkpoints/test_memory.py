"""Peak memory of loading and conversion, measured in a separate process."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from svd_stages.svd_core.checkpoints.convert import open_in_memory
from svd_stages.svd_core.checkpoints.single_file import open_single_file, single_file_tensors
from svd_stages.svd_core.models.components import Checkpoint, SVDModel
from tiny import UNET_CONFIG

pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs /proc to measure memory")

OVERHEAD = 32 * 2**20
"""Bytes of modules, headers and the allocator. 12 to 20 MB were measured, for 130 MB of weights as for 250 MB."""
WIDE = {**UNET_CONFIG, "block_out_channels": (64, 128, 256, 256), "num_attention_heads": (1, 2, 4, 4)}
PROGRAM = """
import sys
from pathlib import Path
import torch
from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
from transformers import CLIPVisionModelWithProjection
from peak_memory import peak_mb
from svd_stages.svd_core.checkpoints.convert import convert_checkpoint
from svd_stages.svd_core.checkpoints.inspect import verify
from svd_stages.svd_core.checkpoints.load import load_checkpoint

torch.aminmax(torch.ones(4_194_304).half())
Path("/proc/self/clear_refs").write_text("5")  # resets the peak
before = peak_mb()
kept = {call}
print((peak_mb() - before) * 1024**2)
"""


def peak_of(call: str, *arguments: object) -> float:
    """Return the peak memory in bytes of a separate process for `call`, a Python expression."""
    command = [sys.executable, "-c", PROGRAM.replace("{call}", call), *map(str, arguments)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    return float(done.stdout)


@pytest.fixture(scope="module")
def wide_file(tiny: Checkpoint, header_only, tmp_path_factory) -> Path:
    """A single-file checkpoint of about 250 MB, of zeros that take no space on disk."""
    from diffusers import UNetSpatioTemporalConditionModel

    with torch.device("meta"):
        unet = UNetSpatioTemporalConditionModel(**WIDE)
    model = SVDModel(unet, 0.18215, 0.002, 700.0, tiny.model.defaults)
    tensors = single_file_tensors(open_in_memory(replace(tiny, model=model)))
    described = {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
    path = tmp_path_factory.mktemp("wide") / "wide.safetensors"
    return header_only(path, described, {"svd_stages": '{"clip_heads": 4, "clip_layers": 2}'})


def model_size(path: Path, precision: str) -> tuple[int, int]:
    """Return the bytes of the model at `path` in that precision (its encoder in fp32), and of its largest tensor."""
    width = {"fp32": 4, "fp16": 2}[precision]
    with open_single_file(path) as opened:
        counts = {
            (component.title, name): math.prod(tensor.shape)
            for component in opened.components()
            for name, tensor in component.tensors.items()
        }
    sizes = [
        count * (4 if title == "VAE" and name.startswith(("encoder.", "quant_conv.")) else width)
        for (title, name), count in counts.items()
    ]
    return sum(sizes), max(sizes)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_loading_takes_little_more_memory_than_the_model(wide_file, precision):
    size, largest = model_size(wide_file, precision)
    assert size > 100e6
    taken = peak_of("load_checkpoint(sys.argv[1], sys.argv[2])", wide_file, precision)
    assert size < taken <= size + largest + OVERHEAD, (taken, size, largest)


def test_converting_takes_a_small_part_of_the_models_memory(wide_file, tmp_path):
    size, largest = model_size(wide_file, "fp32")
    taken = peak_of("convert_checkpoint(sys.argv[1], sys.argv[2])", wide_file, tmp_path / "out")
    assert taken <= 0.15 * size + largest, (taken, size, largest)


def test_verifying_a_tensor_of_256_megabytes_takes_a_small_part_of_them(header_only, tmp_path):
    path = header_only(tmp_path / "large.safetensors", {"large": ("F16", (128, 1_000_000))})
    assert 0 < peak_of("verify(sys.argv[1])", path) < 50e6
