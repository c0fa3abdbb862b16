"""Test the ComfyUI engine without a ComfyUI, and the choice of an engine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import svd_stages
import torch
from error_checks import check_facts, raises
from svd_stages import headless
from svd_stages.headless.cli.main import main
from svd_stages.headless.engines.comfyui import bootstrap
from svd_stages.headless.engines.comfyui.bootstrap import MARKS
from svd_stages.headless.engines.comfyui.engine import ComfyUIEngine, bring_outputs, filled_from
from svd_stages.headless.engines.results import Results
from svd_stages.svd_core.errors import MissingExtraError, SettingError
from svd_stages.svd_core.runtime.runtime import LocalRuntime

GRAPH = {"1": {"class_type": "LoadImage", "inputs": {"image": "gone.png"}}}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "graph.json").write_text(json.dumps(GRAPH))
    return tmp_path


@pytest.fixture
def checkout(folder) -> Path:
    return make_checkout(folder / "ComfyUI")


def make_checkout(folder: Path) -> Path:
    """Make a folder that looks like a ComfyUI, with a requirement that is never installed."""
    for mark in MARKS:
        (folder / mark).parent.mkdir(parents=True, exist_ok=True)
        (folder / mark).write_text("raise AssertionError('nothing of it may be imported')")
    (folder / "requirements.txt").write_text(
        "comfyui-frontend-package==1\ntorch\na-package-that-nobody-has>=2\n\n#non essential ones:\nanother-one\n"
    )
    return folder


@pytest.mark.parametrize("command", ["run", "validate"])
@pytest.mark.parametrize("name", ["nowhere", "empty", "graph.json", "portable"])
def test_a_folder_that_is_not_a_comfyui_is_bad_usage(folder, capsys, command, name):
    (folder / "empty").mkdir()
    make_checkout(folder / "portable" / "ComfyUI")
    assert main([command, "graph.json", "--comfyui", name, "--json"]) == 2
    error = json.loads(capsys.readouterr().out)
    assert error["code"] == "comfyui.not_found"
    check_facts(error["message"], f'"{name}"', "main.py")
    assert (f'"{name}/ComfyUI"' in error["message"]) == (name == "portable")


def test_missing_requirements_of_comfyui_are_named(checkout):
    facts = ("a-package-that-nobody-has", sys.executable, "requirements.txt")
    with raises(MissingExtraError, "comfyui.requirements", *facts) as error:
        svd_stages.run_graph(GRAPH, comfyui=checkout, device="cpu")
    text = str(error.value)
    assert error.value.exit_status == 2
    assert "torch" not in text and "frontend" not in text and "another-one" not in text
    assert str(checkout) not in sys.path


def test_a_process_with_modules_of_the_same_names_is_refused(checkout, monkeypatch):
    monkeypatch.setitem(sys.modules, "folder_paths", ModuleType("folder_paths"))
    with raises(SettingError, "comfyui.modules", "folder_paths"):
        svd_stages.run_graph(GRAPH, comfyui=checkout, device="cpu")


def test_a_missing_device_is_refused_before_comfyui_starts(checkout):
    with raises(SettingError, "setting", "abacus"):
        svd_stages.run_graph(GRAPH, comfyui=checkout, device="abacus")


@pytest.mark.parametrize("options", ["--comfyui a --server b", "--custom-node a", "--server b --custom-node a"])
def test_engines_exclude_each_other(options):
    try:
        status = main(["run", "graph.json", *options.split()])
    except SystemExit as stop:
        status = stop.code
    assert status == 2
    with raises(SettingError, "setting", "ComfyUI", "server"):
        svd_stages.run_graph(GRAPH, comfyui="a", server="b")


@pytest.mark.parametrize("models", [[], ["mine", "more"]], ids=["default", "named"])
def test_each_engine_names_the_folder_for_missing_models(monkeypatch, models):
    monkeypatch.delenv("SVD_STAGES_MODELS", raising=False)
    run_config = headless.RunConfig(models=models)
    embedded, comfyui = headless.choose_engine(run_config), headless.choose_engine(run_config, comfyui="ComfyUI")
    default = str(run_config.models_roots()[0])
    assert (embedded.models_folder, comfyui.models_folder) == (default, "mine" if models else "ComfyUI/models")
    assert "server" in headless.choose_engine(headless.RunConfig(), server="localhost").models_folder


def test_a_node_that_rewrites_its_result_does_not_change_the_stored_file(folder):
    (folder / "scratch" / "output").mkdir(parents=True)
    written = folder / "scratch" / "output" / "a.gif"
    written.write_text("whole")
    results = Results({"output": folder / "out"}, filled_from(folder / "scratch"))
    (stored,) = results.store({"images": [{"filename": "a.gif", "subfolder": "", "type": "output"}]})
    written.write_text("ha")
    assert stored.read_text() == "whole"


def test_a_node_cannot_modify_an_earlier_result_that_it_reads(folder):
    (folder / "old.png").write_text("of an earlier run")
    graph = {"1": {"class_type": "LoadImage", "inputs": {"image": "old.png [output]"}}}
    (copied,) = bring_outputs(graph, folder, folder / "scratch")
    assert copied.read_text() == "of an earlier run"
    copied.write_text("ha")
    assert (folder / "old.png").read_text() == "of an earlier run"


def test_a_comfyui_that_does_not_start_is_an_error_with_its_reason(folder, checkout):
    (checkout / "requirements.txt").write_text("torch\n")
    texts = {
        "comfy/options.py": "def enable_args_parsing(): pass",
        "comfy/cli_args.py": "import pathlib, sys; pathlib.Path('argv.txt').write_text(' '.join(sys.argv))",
        "folder_paths.py": "",
        "utils/extra_config.py": "",
        "server.py": "raise OSError('libtorchaudio.so: undefined symbol')",
    }
    for name, text in texts.items():
        (checkout / name).parent.mkdir(exist_ok=True)
        (checkout / name).write_text(text)
    command = [sys.executable, "-m", "svd_stages", "validate", "graph.json", "--comfyui", "ComfyUI", "--device", "cpu"]
    process = subprocess.run(command, capture_output=True, text=True, timeout=120)
    stderr = " ".join(process.stderr.split())
    assert process.returncode == 2 and "Traceback" not in stderr and process.stdout == ""
    check_facts(stderr, "OSError", "libtorchaudio.so", sys.executable)
    assert (folder / "argv.txt").read_text() == "main.py --disable-all-custom-nodes --cpu"


@pytest.mark.parametrize(
    ("options", "flags"),
    [
        ({"device": "cpu"}, ("--cpu",)),
        ({"device": "cpu", "precision": "fp32"}, ("--cpu", "--force-fp32")),
        ({"device": "cpu", "precision": "fp16"}, ("--cpu", "--force-fp16")),
        ({"device": "cpu", "precision": "bf16"}, ("--cpu", "--bf16-unet", "--bf16-vae")),
        ({"device": "cpu", "vram": 2**30}, ("--cpu",)),
    ],
)
def test_settings_become_comfyuis_flags(checkout, options, flags):
    engine = headless.choose_engine(headless.RunConfig(**options), checkout)
    assert isinstance(engine, ComfyUIEngine) and engine._flags() == flags


def test_a_named_gpu_is_the_one_that_comfyui_computes_on(checkout, monkeypatch):
    """ComfyUI computes on CUDA's current device. Its main.py, which reads --cuda-device, is not run."""
    selected, memory = [], {torch.device("cuda:1"): 24 * 2**30}
    monkeypatch.setattr(LocalRuntime, "device", lambda self: torch.device(self.device_name))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    properties = lambda device: SimpleNamespace(total_memory=memory[device])  # noqa: E731
    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    monkeypatch.setattr(torch.cuda, "set_device", selected.append)
    monkeypatch.setattr(bootstrap, "start", lambda checkout: selected.append(checkout.flags))
    engine = headless.choose_engine(headless.RunConfig(device="cuda:1", vram="16G"), checkout)
    engine._start()
    assert selected == [torch.device("cuda:1"), ("--cuda-device", "1", "--reserve-vram", "8.000")]
