"""Run graphs in ComfyUI itself, if the environment names a checkout, and in ours for comparison."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from svd_stages.headless.graph import Validation

HERE = Path(__file__).parent
HAS_COMFYUI = bool(os.environ.get("COMFYUI_PATH") and os.environ.get("COMFYUI_PYTHON"))
needs_comfyui = pytest.mark.skipif(
    not HAS_COMFYUI, reason="COMFYUI_PATH and COMFYUI_PYTHON do not name a ComfyUI checkout and its Python"
)


def ask_comfyui(folder: Path, cases: Sequence[dict[str, Any]], *package_and_input: Path) -> list[dict[str, Any]]:
    """Run comfy_peer.py in ComfyUI, which documents its input and output. Files are exchanged in `folder`."""
    (folder / "cases.json").write_text(json.dumps(cases), "utf-8")
    command = [os.environ["COMFYUI_PYTHON"], HERE / "comfy_peer.py", HERE / "toys.py"]
    done = subprocess.run(
        [*map(str, [*command, folder / "cases.json", folder / "answers.json", *package_and_input])],
        cwd=os.environ["COMFYUI_PATH"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads((folder / "answers.json").read_text("utf-8"))


def as_answer(checked: Validation, **run: Any) -> dict[str, Any]:
    """Return our result in the form of comfy_peer.py's answers."""
    fields = ("ok", "error", "outputs", "node_errors")
    answer = {name: getattr(checked, name) for name in fields} | run
    return json.loads(json.dumps(answer, default=str))
