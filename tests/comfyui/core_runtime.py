"""Use the package's runtime inside ComfyUI: `python core_runtime.py PACKAGE BASE [flags]` prints JSON.

Runs in ComfyUI's Python with its checkout on PYTHONPATH. PACKAGE is the folder, imported as ComfyUI imports it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from typing import Any


def import_folder(folder: str):
    """Import a folder under its path, as ComfyUI does with custom nodes."""
    spec = importlib.util.spec_from_file_location(folder, os.path.join(folder, "__init__.py"))
    assert spec is not None and spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules[folder] = package
    spec.loader.exec_module(package)
    return package


def stopped_at(runtime) -> list[int]:
    """Return the units reported before Cancel raised. -1 at the end if it did not raise."""
    import comfy.model_management as management

    units = []
    try:
        with runtime.progress("sampling", 3, "step") as advance:
            for done in (1, 2, 3):
                if done == 2:
                    management.interrupt_current_processing()
                advance(done)
                units.append(done)
    except management.InterruptProcessingException:
        return units
    return [*units, -1]


class Part:
    """A model part for a runtime to load."""

    def __init__(self, module, identity=None):
        self.module, self.identity = module, identity or self


def kept_of(runtime) -> dict[str, int]:
    """Count the models that ComfyUI keeps loaded during and after each use of two parts, one of them with a copy."""
    import comfy.model_management as management
    import torch

    part, other = Part(torch.nn.Linear(64, 64)), Part(torch.nn.Linear(8, 8))
    copy, kept = Part(part.module, part.identity), {}
    before = len(management.current_loaded_models)

    def count(when: str) -> None:
        kept[when] = len(management.current_loaded_models) - before

    for each in (part, other):
        with runtime.on_device(each):
            pass
    count("both used")
    with runtime.on_device(copy, 10, "offload"):
        count("a copy in use")
    count("a copy gone")
    with runtime.on_device(part, 10, "keep"):
        pass
    count("used to stay")
    with runtime.beside(copy, 100):
        count("beside")
    return kept


def answers(runtime) -> dict[str, Any]:
    """Call every method of the runtime once."""
    import torch

    part = Part(torch.nn.Linear(2, 2))
    with runtime.on_device(part) as device:
        inside = str(device)
    return {
        "class": type(runtime).__name__,
        "precision": runtime.precision,
        "device": str(runtime.device()),
        "inside": inside,
        "names": runtime.library.names(),
        "free": runtime.free_memory(device),
        "folders": {kind: str(runtime.folder(kind)) for kind in ("input", "output", "temp")},
        "kept": kept_of(runtime),
        "stopped_at": stopped_at(runtime),
    }


def main() -> None:
    folder, base, *flags = sys.argv[1:]
    sys.argv[1:] = ["--cpu", "--base-directory", base, *flags]
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.model_management  # its presence tells the package where it is

    import_folder(folder)
    runtime = sys.modules[f"{folder}.svd_core.runtime.runtime"].get_runtime()
    sys.stdout.write(json.dumps(answers(runtime)))


if __name__ == "__main__":
    main()
