"""The ComfyUI engine where there is no ComfyUI, and the choice between engines."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import svd_stages
from error_checks import check_facts, raises
from svd_stages import headless
from svd_stages.headless.cli.main import main
from svd_stages.headless.engines.comfyui.bootstrap import MARKS
from svd_stages.headless.engines.comfyui.engine import ComfyUIEngine, bring_outputs, filled_from
from svd_stages.headless.engines.results import Results
from svd_stages.svd_core.errors import MissingExtraError, SettingError

GRAPH = {"1": {"class_type": "LoadImage", "inputs": {"image": "gone.png"}}}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "graph.json").write_text(json.dumps(GRAPH))
    return tmp_path


def make_checkout(folder: Path) -> Path:
    """What looks like a ComfyUI, with a requirement that nobody has."""
    for mark in MARKS:
        (folder / mark).parent.mkdir(parents=True, exist_ok=True)
        (folder / mark).write_text("raise AssertionError('nothing of it may be imported')")
    (folder / "requirements.txt").write_text(
        "comfyui-frontend-package==1\ntorch\na-package-that-nobody-has>=2\n\n#non essential ones:\nanother-one\n"
    )
    return folder


@pytest.mark.parametrize("command", ["run", "validate"])
@pytest.mark.parametrize("name", ["nowhere", "empty", "graph.json", "portable"])
def test_a_folder_that_is_no_comfyui_is_bad_usage(here, capsys, command, name):
    (here / "empty").mkdir()
    make_checkout(here / "portable" / "ComfyUI")
    assert main([command, "graph.json", "--comfyui", name, "--json"]) == 2
    error = json.loads(capsys.readouterr().out)
    assert error["code"] == "comfyui.not_found"
    check_facts(error["message"], f'"{name}"', "main.py")
    assert (f'"{name}/ComfyUI"' in error["message"]) == (name == "portable")


def test_a_python_without_comfyuis_requirements_is_told_what_is_missing(here):
    facts = ("a-package-that-nobody-has", sys.executable, "requirements.txt")
    with raises(MissingExtraError, "comfyui.requirements", *facts) as error:
        svd_stages.run_graph(GRAPH, comfyui=make_checkout(here / "ComfyUI"), device="cpu")
    text = str(error.value)
    assert error.value.exit_status == 2
    assert "torch" not in text and "frontend" not in text and "another-one" not in text
    assert str(here / "ComfyUI") not in sys.path


def test_a_process_that_has_such_modules_is_told_so(here, monkeypatch):
    monkeypatch.setitem(sys.modules, "folder_paths", ModuleType("folder_paths"))
    with pytest.raises(SettingError) as error:
        svd_stages.run_graph(GRAPH, comfyui=make_checkout(here / "ComfyUI"), device="cpu")
    assert error.value.code == "comfyui.modules" and "folder_paths" in str(error.value)


def test_a_device_that_is_not_there_is_told_before_anything_is_started(here):
    with raises(SettingError, "setting", "abacus"):
        svd_stages.run_graph(GRAPH, comfyui=make_checkout(here / "ComfyUI"), device="abacus")


def test_engines_exclude_each_other(here, capsys):
    for more in (["--comfyui", "a", "--server", "b"], ["--custom-node", "a"], ["--server", "b", "--custom-node", "a"]):
        try:
            status = main(["run", "graph.json", *more])
        except SystemExit as stop:
            status = stop.code
        assert status == 2
    with raises(SettingError, "setting", "ComfyUI", "server"):
        svd_stages.run_graph(GRAPH, comfyui="a", server="b")


@pytest.mark.parametrize("named", [[], ["mine", "more"]], ids=["default", "named"])
def test_each_engine_says_where_missing_files_belong(monkeypatch, named):
    monkeypatch.delenv("SVD_STAGES_MODELS", raising=False)
    here = headless.RunConfig(models=named, input_folder="pictures")
    own = {"embedded": here.models_roots()[0], "comfyui": Path("ComfyUI/models")}
    for name, engine in {
        "embedded": headless.choose_engine(here),
        "comfyui": headless.choose_engine(here, comfyui="ComfyUI"),
    }.items():
        assert engine.models_folder == ("mine" if named else str(own[name]))
    server = headless.choose_engine(headless.RunConfig(), server="localhost")
    assert "server" in server.models_folder


def test_a_node_that_writes_a_result_again_does_not_change_what_was_kept(here):
    (here / "scratch" / "output").mkdir(parents=True)
    written = here / "scratch" / "output" / "a.gif"
    written.write_text("whole")
    results = Results({"output": here / "out"}, filled_from(here / "scratch"))
    (kept,) = results.store({"images": [{"filename": "a.gif", "subfolder": "", "type": "output"}]})
    written.write_text("ha")
    assert kept.read_text() == "whole"


def test_a_node_cannot_write_into_an_earlier_result_that_it_reads(here):
    (here / "old.png").write_text("of an earlier run")
    graph = {"1": {"class_type": "LoadImage", "inputs": {"image": "old.png [output]"}}}
    (brought,) = bring_outputs(graph, here, here / "scratch")
    assert brought.read_text() == "of an earlier run"
    brought.write_text("ha")
    assert (here / "old.png").read_text() == "of an earlier run"


def test_a_comfyui_that_does_not_start_says_why_and_got_its_own_command_line(here):
    checkout = make_checkout(here / "ComfyUI")
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
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    said = " ".join(done.stderr.split())
    assert done.returncode == 2 and "Traceback" not in said and done.stdout == ""
    check_facts(said, "OSError", "libtorchaudio.so", sys.executable)
    assert (here / "argv.txt").read_text() == "main.py --disable-all-custom-nodes --cpu"


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
def test_our_options_are_said_as_comfyuis(here, options, flags):
    engine = headless.choose_engine(headless.RunConfig(**options), make_checkout(here / "ComfyUI"))
    assert isinstance(engine, ComfyUIEngine) and engine._flags() == flags
