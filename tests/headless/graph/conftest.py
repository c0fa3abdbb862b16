"""Fixtures for tests that run whole graph files through the engine."""

from __future__ import annotations

import shutil

import pytest
from svd_stages import headless

from .toys import TOYS


@pytest.fixture(scope="module")
def run_config(tmp_path_factory) -> headless.RunConfig:
    """Folders of their own, with rocket.png in the input folder."""
    folder = tmp_path_factory.mktemp("graphs")
    (folder / "input").mkdir()
    shutil.copy(headless.PACKAGE / "example_workflows" / "rocket.png", folder / "input")
    return headless.RunConfig([folder / "models"], "cpu", input_folder=folder / "input", output_folder=folder / "out")


@pytest.fixture
def calls(monkeypatch) -> list[str]:
    """Replace the function of every node by one that records its name."""
    names: list[str] = []
    for name, node_class in {**headless.NODES, **TOYS}.items():
        monkeypatch.setattr(node_class, node_class.FUNCTION, lambda *_, name=name, **__: names.append(name))
    return names
