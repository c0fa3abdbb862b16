"""`verify` reads every number of a file and names the tensors with NaN or infinity."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from error_checks import check_facts, raises
from safetensors.torch import load_file, save_file
from svd_stages.headless.cli.main import main
from svd_stages.svd_core.checkpoints import inspect as inspecting
from svd_stages.svd_core.checkpoints.inspect import verify
from svd_stages.svd_core.errors import CheckpointError


def test_the_result_counts_files_tensors_and_bytes_of_both_formats(one_file, folder):
    result, tensors = verify(one_file), load_file(one_file)
    assert (result.tensors, result.bytes) == (len(tensors), sum(tensor.nbytes for tensor in tensors.values()))
    assert (result.files, verify(folder).files) == (1, 3)


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        *(
            (dtype, float(value))
            for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e5m2)
            for value in ("nan", "inf", "-inf")
        ),
        (torch.float8_e4m3fn, float("nan")),  # it has no infinity
    ],
)
def test_one_number_that_is_not_finite_is_found_in_any_dtype_at_any_position(dtype, value, tmp_path, monkeypatch):
    monkeypatch.setattr(inspecting, "CHUNK_BYTES", 64)
    path = tmp_path / "x.safetensors"
    for position in (0, 63, 64, 999):
        wrong = torch.ones(1000)
        wrong[position] = value
        tensors = {"a": torch.ones(10).to(dtype), "wrong": wrong.to(dtype), "z": torch.ones(3, dtype=torch.int64)}
        save_file(tensors, path)
        with raises(CheckpointError, "checkpoint.not_finite", 1, 2, "wrong") as raised:
            verify(path)
        assert raised.value.exit_status == 3


def test_many_are_counted_and_ten_are_named(tmp_path):
    invalid = {f"n{number:02}": torch.full((3,), float("nan")) for number in range(25)}
    save_file({**invalid, "right": torch.ones(2)}, tmp_path / "x.safetensors")
    with raises(CheckpointError, "checkpoint.not_finite", 25, 26, "n09", 15) as raised:
        verify(tmp_path / "x.safetensors")
    assert "n10" not in str(raised.value)


def test_a_tensor_of_a_folder_is_named_with_its_component(copied, edit_tensors):
    def spoil(tensors):
        return {**tensors, "quant_conv.bias": tensors["quant_conv.bias"] * float("nan")}

    edit_tensors(copied / "vae" / "diffusion_pytorch_model.safetensors", change=spoil)
    with raises(CheckpointError, "checkpoint.not_finite", "vae/quant_conv.bias"):
        verify(copied)


def test_progress_is_in_bytes_and_can_stop_it(one_file, recorder):
    progress, calls = recorder
    result = verify(one_file, progress)
    assert calls == sorted(calls) and len(calls) > 100
    assert calls[-1] == (f"reading {one_file.name}", result.bytes, "byte", result.bytes)

    def stop(stage, total, unit):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        verify(one_file, stop)


def test_the_command_prints_the_result_or_exits_with_status_3(one_file, tmp_path, capsys):
    assert main(["inspect", str(one_file), "--verify"]) == 0
    check_facts(capsys.readouterr().out, len(load_file(one_file)))
    assert main(["inspect", str(one_file), "--verify", "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["family"] == "SVD" and result["verified"]["tensors"] == len(load_file(one_file))
    broken = Path(shutil.copyfile(one_file, tmp_path / "broken.safetensors"))
    with broken.open("r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"\xff\xff\xff\xff")
    assert main(["inspect", str(broken)]) == 0
    capsys.readouterr()
    assert main(["inspect", str(broken), "--verify"]) == 3
    check_facts(capsys.readouterr().err, "model.diffusion_model.time_embed.2.weight")  # the last tensor
