"""What a result was made from: graph, seeds, models, pictures, versions, and a fingerprint of each file.

It holds names and never absolute paths, so that it can be handed on.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..svd_core import host
from ..svd_core.errors import SVDStagesError
from ..svd_core.fingerprint import file_sha256, frames_sha256
from .graphs import Graph, Report
from .preflight import MODEL_FOLDERS
from .surroundings import Surroundings

LIBRARIES = ("torch", "diffusers", "transformers", "safetensors", "numpy", "pillow", "av")
FORMAT = 1


def make_manifest(
    graph: Graph, report: Report, surroundings: Surroundings, engine: str, seconds: float
) -> dict[str, Any]:
    """All that is needed to make a result again, and to know whether it is the same. Reads every model file once.

    engine  embedded, comfyui or server. A server's models, pictures, device and versions are its own; of them only
            the names are known

    Keys: format, svd_stages, engine, versions, device, precision, graph (API format, as it ran), graph_sha256, seeds
    ("node.input" -> number), models and inputs (node, input, name, bytes, sha256), files (name, bytes, sha256,
    frames_sha256), seconds. Raises OSError for a file that can no longer be read.
    """
    here = surroundings.host()
    text = json.dumps(graph.prompt, sort_keys=True, ensure_ascii=True)
    is_local = engine != "server"
    return {
        "format": FORMAT,
        "svd_stages": _version("svd-stages"),
        "engine": engine,
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in LIBRARIES}},
        "device": str(here.device()) if is_local else None,
        "precision": surroundings.precision if is_local else None,
        "graph": graph.prompt,
        "graph_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "seeds": dict(_seeds(graph.prompt)),
        "models": [
            {"node": node_id, "input": name, "name": value, "files": _model_files(here, value) if is_local else None}
            for node_id, name, value in _texts(graph.prompt)
            if name in MODEL_FOLDERS
        ],
        "inputs": [
            {"node": node_id, "input": name, **_file(path, here.input_folder)}
            for node_id, name, path in _pictures(graph.prompt, here.input_folder)
        ],
        "files": [{**_file(path, here.output_folder), "frames_sha256": frames_sha256(path)} for path in report.files],
        "seconds": round(seconds, 2),
    }


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _constants(prompt: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    for node_id, node in prompt.items():
        for name, value in node["inputs"].items():
            if not isinstance(value, (list, dict)):
                yield node_id, name, value


def _seeds(prompt: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    for node_id, name, value in _constants(prompt):
        if "seed" in name and isinstance(value, int):
            yield f"{node_id}.{name}", value


def _texts(prompt: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    return (each for each in _constants(prompt) if isinstance(each[2], str))


def _model_files(here: host.HeadlessHost, name: str) -> list[dict[str, Any]] | None:
    """The files of a checkpoint; None for a model that is none of ours, as a VAE by itself."""
    try:
        path = here.library.find(name)
    except SVDStagesError:
        return None
    files = [path] if path.is_file() else sorted(path.rglob("*.safetensors"))
    total = sum(file.stat().st_size for file in files)
    with here.progress("hashing", max(1, total // 2**20), "MiB") as advance:
        return [_file(file, path.parent, _counted(advance, files[:number])) for number, file in enumerate(files)]


def _counted(advance: Callable[[int], None], before: list[Path]) -> Callable[[int], None]:
    """Progress in MiB over all files, of which `before` are done."""
    done = sum(file.stat().st_size for file in before)
    return lambda read: advance((done + read) // 2**20)


def _pictures(prompt: Mapping[str, Any], folder: Path) -> Iterator[tuple[str, str, Path]]:
    """Constants that are the name of a file in the input folder."""
    root = folder.resolve()
    for node_id, name, value in _texts(prompt):
        path = folder / value if 0 < len(value) < 500 and "\0" not in value else folder
        if path.is_file() and path.resolve().is_relative_to(root):
            yield node_id, name, path


def _file(path: Path, folder: Path, on_bytes: Callable[[int], None] = lambda read: None) -> dict[str, Any]:
    name = path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.name
    return {"name": name, "bytes": path.stat().st_size, "sha256": file_sha256(path, on_bytes)}
