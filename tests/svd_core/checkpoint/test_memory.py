"""How much memory loading takes, measured in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from svd_stages.svd_core.checkpoint.opened import open_in_memory
from svd_stages.svd_core.checkpoint.parts import Checkpoint, SVDModel
from svd_stages.svd_core.checkpoint.single_file import single_file_tensors
from tiny import UNET_CONFIG

WIDE = {**UNET_CONFIG, "block_out_channels": (64, 128, 256, 256), "num_attention_heads": (1, 2, 4, 4)}
PROGRAM = """
import sys, threading, time
from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
from transformers import CLIPVisionModelWithProjection
from svd_stages.svd_core.checkpoint.load import load_checkpoint

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
checkpoint = load_checkpoint(sys.argv[1], sys.argv[2])
done.set()
watcher.join()
modules = checkpoint.model.unet, checkpoint.vae.vae, checkpoint.clip_vision.encoder
sizes = [each.numel() * each.element_size() for module in modules for each in module.parameters()]
print(max(peaks[0], anonymous()) - before, sum(sizes), max(sizes))
"""


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
    return header_only(path, described, {"svd_stages": '{"clip_heads": 4}'})


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc to measure anonymous memory")
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_loading_takes_little_more_memory_than_the_model(wide_file, precision):
    command = [sys.executable, "-c", PROGRAM, str(wide_file), precision]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    taken, size, largest = (int(number) for number in printed.split())
    assert size > 100e6
    assert taken <= 1.15 * size + largest, (taken, size, largest)
