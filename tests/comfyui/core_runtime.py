"""What the package's host answers inside ComfyUI: `python core_runtime.py PACKAGE BASE [flags]` prints JSON.

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


def stopped_at(host) -> list[int]:
    """The units told before the exception that Cancel raises."""
    import comfy.model_management as management

    told = []
    try:
        with host.progress("sampling", 3, "step") as advance:
            for done in (1, 2, 3):
                if done == 2:
                    management.interrupt_current_processing()
                advance(done)
                told.append(done)
    except management.InterruptProcessingException:
        return told
    return [*told, -1]


class Part:
    """What a host is given to load."""

    def __init__(self, module, identity=None):
        self.module, self.identity = module, identity or self


def kept_of(host) -> dict[str, int]:
    """How many models ComfyUI keeps loaded after and in each use of two parts, one of them with a copy."""
    import comfy.model_management as management
    import torch

    part, other = Part(torch.nn.Linear(64, 64)), Part(torch.nn.Linear(8, 8))
    copy, kept = Part(part.module, part.identity), {}
    before = len(management.current_loaded_models)

    def count(when: str) -> None:
        kept[when] = len(management.current_loaded_models) - before

    for each in (part, other):
        with host.on_device(each):
            pass
    count("both used")
    with host.on_device(copy, 10, "offload"):
        count("a copy in use")
    count("a copy gone")
    with host.on_device(part, 10, "keep"):
        pass
    count("used to stay")
    with host.beside(copy, 100):
        count("beside")
    return kept


def answers(host) -> dict[str, Any]:
    """Every method of the host once."""
    import torch

    part = Part(torch.nn.Linear(2, 2))
    with host.on_device(part) as device:
        inside = str(device)
    return {
        "class": type(host).__name__,
        "precision": host.precision,
        "device": str(host.device()),
        "inside": inside,
        "names": host.library.names(),
        "free": host.free_memory(device),
        "folders": {kind: str(host.folder(kind)) for kind in ("input", "output", "temp")},
        "kept": kept_of(host),
        "stopped_at": stopped_at(host),
    }


def main() -> None:
    folder, base, *flags = sys.argv[1:]
    sys.argv[1:] = ["--cpu", "--base-directory", base, *flags]
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.model_management  # its presence tells the package where it is

    import_folder(folder)
    host = sys.modules[f"{folder}.svd_core.runtime.runtime"].current()
    sys.stdout.write(json.dumps(answers(host)))


if __name__ == "__main__":
    main()
