"""The package as people get it: a wheel, a folder under custom_nodes, and packages of others, known by their hashes."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from PIL import Image

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT, COMFY = PYPROJECT["project"], PYPROJECT["tool"]["comfy"]
LOCKS = ("requirements-dev.lock", ".ci/audit.lock")
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
    import svd_stages

    assert re.fullmatch(r"[a-z][a-z0-9._-]{0,99}", PROJECT["name"]) and "comfyui" not in PROJECT["name"].lower()
    assert re.fullmatch(r"\d+\.\d+\.\d+", PROJECT["version"]) and svd_stages.__version__ == PROJECT["version"]
    assert PROJECT["urls"]["Repository"] and COMFY["PublisherId"] and COMFY["DisplayName"]
    assert "web" not in COMFY  # WEB_DIRECTORY says it; both would load every script twice


def test_the_registrys_icon_is_a_small_square_in_the_repository():
    repository = PROJECT["urls"]["Repository"].replace("github.com", "raw.githubusercontent.com")
    with Image.open(ROOT / COMFY["Icon"].removeprefix(f"{repository}/main/")) as icon:
        assert icon.width == icon.height <= 400


def test_requirements_txt_asks_for_declared_packages_and_pins_or_replaces_no_torch():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    wanted = [Requirement(line) for line in lines if line and not line.startswith("#")]
    assert {each.name for each in wanted} == {"diffusers", "transformers", "accelerate", "websockets"}
    assert all(str(each) in map(str, map(Requirement, PROJECT["dependencies"])) for each in wanted)
    assert not any("==" in str(each.specifier) or "<" in str(each.specifier) for each in wanted)


def test_every_declared_dependency_is_installed_in_a_version_that_it_allows():
    for each in map(Requirement, PROJECT["dependencies"]):
        assert each.specifier.contains(importlib.metadata.version(each.name), prereleases=True), str(each)


def locked(lock: str) -> dict[str, list[tuple[Requirement, int]]]:
    """Name -> its requirements (one for each kind of machine or Python) with the number of hashes."""
    found: dict[str, list[tuple[Requirement, int]]] = {}
    lines = [line for line in (ROOT / lock).read_text().splitlines() if not line.startswith("#")]
    for entry in re.split(r"(?m)^(?=\S)", "\n".join(lines)):
        if entry.strip():
            text, *hashes = re.split(r"\\?\s+--hash=", entry.strip())
            requirement = Requirement(text.strip())
            assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", each.rstrip(" \\")) for each in hashes), text
            found.setdefault(canonicalize_name(requirement.name), []).append((requirement, len(hashes)))
    return found


@pytest.mark.parametrize("lock", LOCKS)
def test_every_locked_package_is_one_version_known_by_its_hashes_and_comes_from_no_named_place(lock):
    for name, entries in locked(lock).items():
        for requirement, hashes in entries:
            (specifier,) = requirement.specifier
            assert specifier.operator == "==" and hashes and requirement.url is None, name
    assert not re.search(r"https?://|--index|--find-links|--extra", (ROOT / lock).read_text())


def test_what_the_project_needs_is_locked_in_a_version_that_it_allows_and_torch_is_left_to_the_machine():
    found = locked("requirements-dev.lock")
    wanted = sum(PROJECT["optional-dependencies"].values(), PROJECT["dependencies"])
    for each in map(Requirement, wanted):
        name = canonicalize_name(each.name)
        if name == "torch":
            assert name not in found
            continue
        versions = [next(iter(entry.specifier)).version for entry, _ in found[name]]
        assert all(each.specifier.contains(Version(version)) for version in versions), (str(each), versions)
    assert not [name for name in found if name.startswith(("nvidia", "cuda", "triton"))]
