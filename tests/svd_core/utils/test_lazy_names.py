"""Packages list the names that they import when they are used, and import nothing for that."""

from __future__ import annotations

import subprocess
import sys

import pytest
import svd_stages
from svd_stages import headless, svd_core

PACKAGES = (svd_stages, headless, svd_core)


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_a_package_lists_its_public_names(package):
    assert set(package.__all__) <= set(dir(package)) == set(package.__dir__())
    assert all(getattr(package, name) is not None for name in package.__all__)


@pytest.mark.parametrize(
    ("package", "name", "nearest"),
    [
        (svd_stages, "anmiate", "animate"),
        (svd_stages, "StableVideoDiffusionPipline", "StableVideoDiffusionPipeline"),
        (headless, "BatchRequst", "BatchRequest"),
        (svd_core, "image_to_vidoe", "image_to_video"),
    ],
)
def test_a_misspelled_name_gets_the_nearest_one(package, name, nearest, capsys):
    with pytest.raises(AttributeError) as caught:
        getattr(package, name)
    sys.__excepthook__(caught.type, caught.value, None)
    assert f"'{nearest}'" in capsys.readouterr().err


def test_names_are_listed_before_a_library_is_loaded():
    code = (
        "import sys, svd_stages; from svd_stages import headless, svd_core; "
        "names = dir(svd_stages) + dir(headless) + dir(svd_core); "
        "print({'animate', 'run_batch', 'sample_euler'} <= set(names), {'torch', 'diffusers'} & set(sys.modules))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=200)
    assert ended.stdout.split() == ["True", "set()"]
