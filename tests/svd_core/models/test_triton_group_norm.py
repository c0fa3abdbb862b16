"""The Triton group norm: its kernels in Triton's interpreter, and the operators in networks, on a CPU."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from svd_stages.svd_core.models import layers, triton_group_norm, vae_decoder
from svd_stages.svd_core.models.unet import PreparedUNet
from tiny import randn, tiny_checkpoint

CUDA, CPU = torch.device("cuda"), torch.device("cpu")
KERNELS = "svd_stages.svd_core.models.triton_kernels"
C_NOISE = torch.tensor(0.7)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_interpreted_kernels_are_no_less_exact_than_pytorch():
    """Against float64, in sizes that fill no block. Triton reads the variable that interprets them once per process."""
    script = Path(__file__).with_name("interpreted_group_norm.py")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    errors = {tuple(case): errors for case, *errors in map(json.loads, run.stdout.splitlines())}
    assert len(errors) == 19
    assert errors.pop(("small variance",))[0] < 2e-3  # the mean of 1000, rounded to float32, is wrong by that
    assert {case: each for case, each in errors.items() if not each[0] <= 1.05 * each[1]} == {}


@pytest.fixture
def on_cpu(monkeypatch):
    """Let the CPU stand for a GPU on which the kernels work. Yields the calls of both operators.

    PyTorch computes in float64 what the kernels compute.
    """
    calls = []

    def compute_moments(x, groups, before):
        assert layers.is_channels_last(x)
        calls.append(("moments", x.shape))
        grouped = x.double().unflatten(1, (groups, -1)).flatten(2)
        variance, mean = torch.var_mean(grouped, dim=2, correction=0)
        count = torch.full_like(mean, grouped.shape[2])
        if before is not None:
            earlier, earlier_mean, squares = before.double().unbind(1)
            total = count + earlier
            variance = (variance * count + squares + (mean - earlier_mean) ** 2 * count * earlier / total) / total
            mean, count = (mean * count + earlier_mean * earlier) / total, total
        return torch.stack([count, mean, variance * count], dim=1).float()

    def normalize(x, moments, weight, bias, eps, silu):
        assert layers.is_channels_last(x)
        calls.append(("normalize", x.shape))
        each = moments.double().repeat_interleave(x.shape[1] // moments.shape[2], dim=2)[..., None, None]
        count, mean, squares = each.unbind(1)
        normed = (x.double() - mean) * (squares / count + eps).rsqrt() * weight[:, None, None] + bias[:, None, None]
        return (torch.nn.functional.silu(normed) if silu else normed).to(x)

    monkeypatch.setitem(sys.modules, KERNELS, SimpleNamespace(compute_moments=compute_moments, normalize=normalize))
    monkeypatch.setattr(triton_group_norm, "_available", {CPU: True})
    return calls


def group_norms(network: torch.nn.Module) -> int:
    return sum(isinstance(each, torch.nn.GroupNorm) for each in network.modules())


def test_every_group_norm_of_a_step_is_one_of_the_kernels(on_cpu):
    unet = tiny_checkpoint().model.unet
    x, image, embeds = randn(3, 4, 16, 24), randn(3, 4, 16, 24, seed=1), randn(1, 1, 32)
    time_ids = torch.tensor([[6.0, 127.0, 0.02]])
    sample = torch.cat([x, image], dim=1)[None]
    expected = unet(sample, C_NOISE, encoder_hidden_states=embeds, added_time_ids=time_ids, return_dict=False)[0][0]
    ours = PreparedUNet(unet, embeds, image, time_ids, C_NOISE[None])(x, C_NOISE)
    assert (ours - expected).norm() <= 1e-5 * expected.norm()
    assert [name for name, _ in on_cpu] == ["moments", "normalize"] * group_norms(unet)


@pytest.mark.parametrize("threshold", [2**29, 2**10], ids=["frames", "tiles of frames"])
def test_group_norms_of_the_decoder_are_those_of_the_kernels(on_cpu, monkeypatch, threshold):
    decoder, latents = tiny_checkpoint().vae.vae.decoder, randn(3, 4, 8, 8) / 0.18215
    expected = decoder(latents, num_frames=3, image_only_indicator=torch.zeros(1, 3))
    monkeypatch.setattr(vae_decoder, "CPU_TILE_NUMEL", 20_000)
    monkeypatch.setattr(vae_decoder.tiled_layers, "TILING_THRESHOLD", threshold)
    monkeypatch.setattr(vae_decoder.tiled_layers, "TILE_NUMEL", 2_000)
    ours = vae_decoder.decode(decoder, latents)
    assert (ours - expected).norm() <= 1e-5 * expected.norm()
    assert len(on_cpu) > 2 * group_norms(decoder) and {name for name, _ in on_cpu} == {"moments", "normalize"}


def test_tensors_in_another_format_dtype_or_device_are_not_served(on_cpu):
    x = randn(2, 8, 5, 7).contiguous(memory_format=torch.channels_last)
    assert triton_group_norm.serves(x) and triton_group_norm.serves(layers.to_video(x))
    assert not any(map(triton_group_norm.serves, (x.contiguous(), x.double(), x[:, :4])))
    triton_group_norm._available.clear()
    assert not triton_group_norm.serves(x) and triton_group_norm.serves(x.to("meta"))


@pytest.mark.parametrize("error", [0.0, 1.0, float("nan"), ImportError("no module"), RuntimeError("no compiler")])
def test_a_device_is_tried_once_and_a_failure_is_logged(monkeypatch, caplog, error):
    probes = []

    def probe(device, dtype):
        probes.append(dtype)
        if isinstance(error, Exception):
            raise error
        return error

    monkeypatch.setattr(triton_group_norm, "_probe", probe)
    monkeypatch.setattr(triton_group_norm, "_available", {})
    with caplog.at_level(logging.INFO, logger=triton_group_norm.logger.name):
        for _ in range(2):
            assert layers.uses_channels_last(CUDA) is (error == 0)
    assert len(caplog.records) == (0 if error == 0 else 1)
    assert len(probes) == (3 if error == 0 else 1)
    assert layers.uses_channels_last(CUDA, "on") and not layers.uses_channels_last(CUDA, "off")


def test_a_shortage_of_memory_is_no_failure_of_the_kernels(monkeypatch):
    def probe(device, dtype):
        raise torch.cuda.OutOfMemoryError

    monkeypatch.setattr(triton_group_norm, "_probe", probe)
    monkeypatch.setattr(triton_group_norm, "_available", {})
    with pytest.raises(torch.cuda.OutOfMemoryError):
        triton_group_norm.is_available(CUDA)
    assert not triton_group_norm._available


def test_only_cuda_devices_are_tried(monkeypatch):
    monkeypatch.setattr(triton_group_norm, "_available", {})
    formats = {name: layers.uses_channels_last(torch.device(name)) for name in ("cpu", "meta", "mps", "xpu")}
    assert formats == {"cpu": True, "meta": True, "mps": False, "xpu": False}


@pytest.mark.parametrize("dtype", triton_group_norm.DTYPES)
def test_the_probe_finds_wrong_results_and_no_rounding(on_cpu, monkeypatch, dtype):
    unit = torch.finfo(dtype).eps
    assert triton_group_norm._probe(CPU, dtype) <= max(triton_group_norm.TOLERANCE, 1.5 * unit)
    kernels = sys.modules[KERNELS]
    for wrong in (
        lambda x, moments, *rest: torch.zeros_like(x),
        lambda x, moments, *rest: kernels.normalize(x, moments.flip(0), *rest),  # the moments of the other image
    ):
        monkeypatch.setitem(sys.modules, KERNELS, SimpleNamespace(**{**vars(kernels), "normalize": wrong}))
        assert triton_group_norm._probe(CPU, dtype) > 2 * unit


def test_compiled_graphs_contain_the_operators(on_cpu):
    """torch.compile knows their results' shapes and formats and does not look into them."""
    graphs = []

    def record(graph, inputs):
        graphs.append(graph)
        return graph.forward

    norm, x = torch.nn.GroupNorm(4, 8), randn(2, 8, 5, 7).contiguous(memory_format=torch.channels_last)
    torch._dynamo.reset()
    with torch.no_grad():
        result = torch.compile(lambda x: layers.norm_silu(x, norm) + 1, backend=record, fullgraph=True)(x)
    assert torch.allclose(result, layers.group_norm_silu(x, norm.weight, norm.bias, 4, norm.eps) + 1, atol=1e-6)
    (graph,) = graphs
    names = [str(node.target) for node in graph.graph.nodes if triton_group_norm.NAMESPACE in str(node.target)]
    assert [name.split(".")[1] for name in names] == ["moments", "normalize"]
    torch._dynamo.reset()
