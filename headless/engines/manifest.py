"""Write the manifest of a run: graph, seeds, models, input files, versions, and the sha256 of each file.

A manifest holds no absolute path and no secret that `redacted` recognizes, so it can be published.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ...nodes.compat.folders import annotated_file
from ...svd_core.errors import ImageError, OutputError, quoted
from ...svd_core.media.alpha_compositing import KEEP
from ...svd_core.media.hashing import file_sha256, frames_sha256
from ...svd_core.runtime.runtime import LocalRuntime, use_runtime
from ...svd_core.utils.redaction import redacted, redacted_text
from .graphs import Graph, GraphEngine, Report
from .preflight import MODEL_FOLDERS
from .run_config import RunConfig

LIBRARIES = ("torch", "diffusers", "transformers", "safetensors", "numpy", "pillow", "av")
FORMAT = 1


def make_manifest(
    graph: Graph, report: Report, run_config: RunConfig, engine: GraphEngine, seconds: float
) -> dict[str, Any]:
    """Collect what is needed to repeat a run and to compare the results. Reads every model file once.

    Args:
        engine: The engine that ran the graph. For a server, only the names of models and the versions that it reports
            are known.
        seconds: Duration of the run.

    Returns:
        format, svd_stages, engine, versions, device, precision; background (the color behind transparent parts of
        images); graph (API format, as it ran, redacted), graph_sha256, seeds ("node.input" -> number); models (node,
        input, name, files: None if they cannot be read); inputs and files (name, bytes, sha256; for results also
        frames_sha256, None without frames); notes (code, message and facts); seconds. Names are relative.

    Raises:
        OutputError: A file has disappeared.
    """
    runtime = run_config.runtime()
    prompt = redacted(graph.prompt)
    text = json.dumps(prompt, sort_keys=True, ensure_ascii=True)
    is_local = engine.name != "server"
    libraries = {name: _version(name) for name in LIBRARIES} if is_local else {}
    try:
        with use_runtime(runtime):
            return {
                "format": FORMAT,
                "svd_stages": _version("svd-stages"),
                "engine": engine.name,
                "versions": {"python": platform.python_version(), **libraries, **engine.versions()},
                "device": str(runtime.device()) if is_local else None,
                "precision": run_config.precision if is_local else None,
                "background": run_config.background or KEEP,
                "graph": prompt,
                "graph_sha256": hashlib.sha256(text.encode()).hexdigest(),
                "seeds": {
                    f"{node_id}.{name}": value
                    for node_id, name, value in _constants(graph.prompt, int)
                    if "seed" in name
                },
                "models": list(_models(graph.prompt, engine, runtime)),
                "inputs": list(_input_files(graph.prompt, runtime)),
                "files": [_result_file(path, runtime) for path in report.files],
                "notes": [redacted_text(note.as_dict(), graph.prompt) for note in report.notes],
                "seconds": round(seconds, 2),
            }
    except OSError as error:
        raise OutputError(
            f"the manifest needs to read every model, input and result: {quoted(error.filename)} "
            f"{error.strerror}. The results "
            "themselves are complete.",
            code="output.manifest",
        ) from error


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _constants(prompt: Mapping[str, Any], kind: type) -> Iterator[tuple[str, str, Any]]:
    """Yield (node id, input, value) of the inputs that hold a value of type `kind`."""
    for node_id, node in prompt.items():
        for name, value in node["inputs"].items():
            if isinstance(value, kind):
                yield node_id, name, value


def _models(prompt: Mapping[str, Any], engine: GraphEngine, runtime: LocalRuntime) -> Iterator[dict[str, Any]]:
    for node_id, name, value in _constants(prompt, str):
        if name in MODEL_FOLDERS:
            path = engine.model_file(MODEL_FOLDERS[name], value)
            files = None if path is None else _model_files(path, runtime)
            yield {"node": node_id, "input": name, "name": redacted(value), "files": files}


def _model_files(path: Path, runtime: LocalRuntime) -> list[dict[str, Any]]:
    """Hash a checkpoint's file, or all the weights of a diffusers folder, with progress in MiB over all files."""
    files = [path] if path.is_file() else sorted(path.rglob("*.safetensors"))
    total = sum(file.stat().st_size for file in files)
    entries, done = [], 0
    with runtime.progress("hashing", max(1, total // 2**20), "MiB") as advance:
        for file in files:
            entries.append(_file(file, path.parent, lambda read, done=done: advance((done + read) // 2**20)))
            done += entries[-1]["bytes"]
    return entries


def _input_files(prompt: Mapping[str, Any], runtime: LocalRuntime) -> Iterator[dict[str, Any]]:
    """Yield the files that text inputs name: in the input folder, or in another folder as in "x.png [output]"."""
    for node_id, name, value in _constants(prompt, str):
        with contextlib.suppress(ImageError):
            path = annotated_file(value)
            yield {"node": node_id, "input": name, **_file(path, runtime.input_folder.resolve())}


def _result_file(path: Path, runtime: LocalRuntime) -> dict[str, Any]:
    result = {**_file(path, runtime.output_folder), "frames_sha256": None}
    with contextlib.suppress(ImageError):
        result["frames_sha256"] = frames_sha256(path)
    return result


def _file(path: Path, folder: Path, on_bytes: Callable[[int], None] = lambda read: None) -> dict[str, Any]:
    name = path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.name
    return {"name": name, "bytes": path.stat().st_size, "sha256": file_sha256(path, on_bytes)}
