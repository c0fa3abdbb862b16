"""The package as people get it: a wheel with every file that is not a test, and a folder under custom_nodes."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
NOT_SHIPPED = (
    "tests/",
    "training/",
    "docs/",
    "CHANGELOG.md",
    ".ci/",
    ".gitignore",
    "pyproject.toml",
    "requirements.txt",
    "requirements-dev.lock",
)


def tracked_files() -> set[str]:
    """The files of the repository, or of the checkout when it has no history."""
    if not (ROOT / ".git").exists():
        pytest.skip("the file list needs a git checkout")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(listed.stdout.splitlines())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    """A wheel of the tracked files, built away from the checkout."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in tracked_files():
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(target), "."]
    built = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = target.glob("*.whl")
    return zipfile.ZipFile(path)


def test_the_wheel_holds_every_tracked_file_but_tests_and_build_files(wheel):
    packed = {name.removeprefix("svd_stages/") for name in wheel.namelist() if name.startswith("svd_stages/")}
    wanted = {name for name in tracked_files() if not name.startswith(NOT_SHIPPED)}
    assert packed == wanted


def test_the_wheel_offers_the_command_and_one_top_level_name(wheel):
    (entry_points,) = [name for name in wheel.namelist() if name.endswith("entry_points.txt")]
    assert "svd-stages = svd_stages.__main__:main" in wheel.read(entry_points).decode()
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"svd_stages"}


def test_the_unpacked_wheel_works_on_its_own(wheel, tmp_path):
    wheel.extractall(tmp_path)
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); import svd_stages; "
        "assert svd_stages.__file__.startswith(sys.argv[1]), svd_stages.__file__; "
        "from svd_stages.__main__ import main; sys.exit(main(['nodes']))"
    )
    ran = subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0 and "SVDEulerSampler" in ran.stdout, ran.stderr


def test_the_editable_or_installed_package_is_this_checkout():
    import svd_stages

    assert Path(svd_stages.__file__).resolve().parent == ROOT.resolve()


@pytest.mark.parametrize("folder", ["ComfyUI-SVD-Stages", "svd stages (1)", "svd.stages-main"])
def test_the_folder_works_under_custom_nodes_as_comfyui_imports_it(folder, tmp_path):
    """ComfyUI imports by path, under a name made of the path, with no sys.path: only relative imports work."""
    home = tmp_path / "custom_nodes" / folder
    shutil.copytree(ROOT, home, ignore=shutil.ignore_patterns(".git", "tests", "*.egg-info", "build", "__pycache__"))
    script = """
import importlib.util, sys
home = sys.argv[1]
name = home.replace(".", "_x_")
spec = importlib.util.spec_from_file_location(name, home + "/__init__.py")
module = importlib.util.module_from_spec(spec)
sys.modules[name] = module
spec.loader.exec_module(module)
assert set(module.NODE_CLASS_MAPPINGS) == set(module.NODE_DISPLAY_NAME_MAPPINGS)
assert module.NODE_CLASS_MAPPINGS["SVDSigmas"]().run(3, "karras", 0.002, 700.0, 7.0)[0].shape == (4,)
assert module.WEB_DIRECTORY == "./web"
"""
    ran = subprocess.run([sys.executable, "-I", "-c", script, str(home)], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def test_metadata_follows_the_registrys_rules():
    if sys.version_info < (3, 11):
        pytest.skip("tomllib came with Python 3.11")
    import tomllib

    metadata = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project, comfy = metadata["project"], metadata["tool"]["comfy"]
    assert re.fullmatch(r"[a-z][a-z0-9._-]{0,99}", project["name"]) and "comfyui" not in project["name"].lower()
    assert re.fullmatch(r"\d+\.\d+\.\d+", project["version"])
    assert project["urls"]["Repository"] and comfy["PublisherId"] and comfy["DisplayName"]
    assert "web" not in comfy  # WEB_DIRECTORY says it; both would load every script twice
    import svd_stages

    assert svd_stages.__version__ == project["version"]


def test_the_registrys_icon_is_a_small_square_in_the_repository():
    if sys.version_info < (3, 11):
        pytest.skip("tomllib came with Python 3.11")
    import tomllib

    metadata = tomllib.loads((ROOT / "pyproject.toml").read_text())
    repository = metadata["project"]["urls"]["Repository"].replace("github.com", "raw.githubusercontent.com")
    place = metadata["tool"]["comfy"]["Icon"].removeprefix(f"{repository}/main/")
    with Image.open(ROOT / place) as icon:
        assert icon.width == icon.height <= 400


def test_nothing_we_install_pins_or_replaces_torch():
    requirements = [line.split("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()]
    names = {re.split(r"[<>=!~\[ ]", line)[0].lower() for line in requirements if line}
    assert names == {"diffusers", "transformers", "accelerate", "websockets"}
    assert not any("==" in line or "<" in line for line in requirements)


def test_every_declared_dependency_is_importable():
    for name in (
        "torch",
        "diffusers",
        "transformers",
        "accelerate",
        "safetensors",
        "numpy",
        "PIL",
        "av",
        "tqdm",
        "psutil",
        "websockets",
    ):
        assert importlib.util.find_spec(name), name
