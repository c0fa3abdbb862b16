"""How much memory loading takes, measured in a process of its own."""

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

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="needs /proc to measure anonymous memory"
)

WIDE = {**UNET_CONFIG, "block_out_channels": (64, 128, 256, 256), "num_attention_heads": (1, 2, 4, 4)}
WATCH = """
import sys, threading, time
from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
from transformers import CLIPVisionModelWithProjection
from svd_stages.svd_core.checkpoints.convert import convert_checkpoint
from svd_stages.svd_core.checkpoints.load import load_checkpoint

def anonymous():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))

def watch():
    while not done.is_set():
        peaks[0] = max(peaks[0], anonymous())
        time.sleep(0.001)

done, before = threading.Event(), anonymous()
peaks = [before]
watcher = threading.Thread(target=watch)
watcher.start()
kept = {job}
done.set()
watcher.join()
print(max(peaks[0], anonymous()) - before)
"""


def memory_taken(job: str, *arguments: object) -> int:
    """The most anonymous memory that a process took for `job`, a Python expression, in bytes."""
    command = [sys.executable, "-c", WATCH.replace("{job}", job), *map(str, arguments)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.fixture(scope="module")
def wide_file(tiny: Checkpoint, header_only, tmp_path_factory) -> Path:
    """A one-file checkpoint of about 250 MB, of zeros that take no room on the disk."""
    from diffusers import UNetSpatioTemporalConditionModel

    with torch.device("meta"):
        unet = UNetSpatioTemporalConditionModel(**WIDE)
    model = SVDModel(unet, 0.18215, 0.002, 700.0, tiny.model.defaults)
    tensors = single_file_tensors(open_in_memory(replace(tiny, model=model)))
    described = {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
    path = tmp_path_factory.mktemp("wide") / "wide.safetensors"
    return header_only(path, described, {"svd_stages": '{"clip_heads": 4, "clip_layers": 2}'})


def model_size(path: Path, precision: str) -> tuple[int, int]:
    """Bytes of the model in `path` in that precision (its encoder in fp32), and of its largest tensor."""
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
    taken = memory_taken("load_checkpoint(sys.argv[1], sys.argv[2])", wide_file, precision)
    assert taken <= 1.15 * size + largest, (taken, size, largest)


def test_converting_takes_a_small_part_of_the_models_memory(wide_file, tmp_path):
    size, largest = model_size(wide_file, "fp32")
    taken = memory_taken("convert_checkpoint(sys.argv[1], sys.argv[2])", wide_file, tmp_path / "out")
    assert taken <= 0.15 * size + largest, (taken, size, largest)
