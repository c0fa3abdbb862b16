"""Every number of a file is read, in little memory, and those that are none are told by name."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from error_checks import check_facts, raises
from safetensors.torch import load_file, save_file
from svd_stages.headless.cli.main import main
from svd_stages.svd_core.checkpoints import verify as verifying
from svd_stages.svd_core.checkpoints.verify import verify
from svd_stages.svd_core.errors import CheckpointError

LAST = "model.diffusion_model.time_embed.2.weight"


def test_a_checkpoint_of_finite_numbers_is_said_to_be_one_in_both_forms(one_file, folder):
    in_file, in_folder = verify(one_file), verify(folder)
    assert in_file.tensors == len(load_file(one_file))
    assert (in_file.files, in_folder.files) == (1, 3)
    assert in_file.bytes == sum(tensor.nbytes for tensor in load_file(one_file).values())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e5m2])
def test_one_number_that_is_not_finite_is_found_in_any_type_wherever_it_is(value, dtype, tmp_path, monkeypatch):
    monkeypatch.setattr(verifying, "AT_ONCE", 64)
    for place in (0, 63, 64, 999):
        wrong = torch.ones(1000)
        wrong[place] = value
        path = tmp_path / "x.safetensors"
        save_file(
            {"a": torch.ones(10).to(dtype), "wrong": wrong.to(dtype), "z": torch.ones(3, dtype=torch.int64)}, path
        )
        with raises(CheckpointError, "checkpoint.not_finite", 1, 2, "wrong") as raised:
            verify(path)
        assert raised.value.exit_status == 3


def test_nan_is_found_in_the_8_bit_type_that_has_no_infinity(tmp_path):
    numbers = torch.tensor([1.0, float("nan")]).to(torch.float8_e4m3fn)
    save_file({"wrong": numbers}, tmp_path / "x.safetensors")
    with raises(CheckpointError, "checkpoint.not_finite", "wrong"):
        verify(tmp_path / "x.safetensors")


def test_many_are_counted_and_ten_are_named(tmp_path):
    nothing = {f"n{number:02}": torch.full((3,), float("nan")) for number in range(25)}
    save_file({**nothing, "right": torch.ones(2)}, tmp_path / "x.safetensors")
    with raises(CheckpointError, "checkpoint.not_finite", 25, 26, "n09", 15) as raised:
        verify(tmp_path / "x.safetensors")
    assert "n10" not in str(raised.value)


def test_a_tensor_of_a_folder_is_named_with_its_part(folder, tmp_path):
    copied = Path(shutil.copytree(folder, tmp_path / "copied"))
    weights = copied / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    tensors["quant_conv.bias"][3] = float("nan")
    save_file(tensors, weights)
    with raises(CheckpointError, "checkpoint.not_finite", "vae/quant_conv.bias"):
        verify(copied)


def test_progress_is_told_in_bytes_and_can_stop_it(one_file):
    told: list[int] = []

    class Shown:
        def __init__(self, stage, total, unit):
            self.total = total
            assert (one_file.name in stage, unit) == (True, "byte")

        def __enter__(self):
            return told.append

        def __exit__(self, *error):
            assert error[0] is not None or told[-1] == self.total

    verify(one_file, Shown)
    assert told == sorted(told) and len(told) > 100

    class Stopped(Shown):
        def __enter__(self):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        verify(one_file, Stopped)


def test_the_command_says_so_or_ends_with_status_3(one_file, tmp_path, capsys):
    assert main(["inspect", str(one_file), "--verify"]) == 0
    check_facts(capsys.readouterr().out, len(load_file(one_file)))
    assert main(["inspect", str(one_file), "--verify", "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["family"] == "SVD" and result["verified"]["tensors"] == len(load_file(one_file))
    broken = tmp_path / "broken.safetensors"
    shutil.copyfile(one_file, broken)
    with broken.open("r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"\xff\xff\xff\xff")
    assert main(["inspect", str(broken)]) == 0
    capsys.readouterr()
    assert main(["inspect", str(broken), "--verify"]) == 3
    check_facts(capsys.readouterr().err, LAST)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc to measure memory")
def test_a_tensor_of_256_megabytes_takes_a_small_part_of_them(header_only, tmp_path):
    path = header_only(tmp_path / "large.safetensors", {"large": ("F16", (128, 1_000_000))})
    program = (
        "import sys, torch\n"
        "from peak_memory import peak_mb\n"
        "from svd_stages.svd_core.checkpoints.verify import verify\n"
        "import svd_stages.svd_core.checkpoints.build_modules\n"
        "torch.aminmax(torch.ones(4_194_304).half())\n"
        "before = peak_mb()\n"
        "verify(sys.argv[1])\n"
        "print(peak_mb() - before)\n"
    )
    command, tests = [sys.executable, "-c", program, str(path)], Path(__file__).parents[2]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=tests)
    assert 0 <= float(done.stdout) < 50  # MB
