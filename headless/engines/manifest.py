"""What a result was made from: graph, seeds, models, pictures, versions, and a fingerprint of each file.

It has no absolute path and no secret that is known as one, see `redacted`, so that it can be handed on.
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
from ...svd_core.errors import ImageError, OutputError
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
    """All that is needed to make a result again, and to know whether it is the same. Reads every model file once.

    engine  the one that the graph ran on. A server's models, device and libraries are its own: of them only names are
            known, and the versions that it tells

    Keys: format, svd_stages, engine, versions, device, precision, background (what transparent parts of pictures were
    put on), graph (API format, as it ran), graph_sha256, seeds
    ("node.input" -> number), models (node, input, name, files: None where they cannot be looked at), inputs and files
    (name, bytes, sha256; frames_sha256 of results, None for what shows nothing), notes (code, message and facts of what
    was ignored, filled in or made otherwise than was asked). The graph is without secrets and absolute paths; names are
    below their folders. Raises OutputError for a file that is gone.
    """
    runtime = run_config.runtime()
    shown = redacted(graph.prompt)
    text = json.dumps(shown, sort_keys=True, ensure_ascii=True)
    is_local = engine.name != "server"
    own = {name: _version(name) for name in LIBRARIES} if is_local else {}
    try:
        with use_runtime(runtime):
            return {
                "format": FORMAT,
                "svd_stages": _version("svd-stages"),
                "engine": engine.name,
                "versions": {"python": platform.python_version(), **own, **engine.versions()},
                "device": str(runtime.device()) if is_local else None,
                "precision": run_config.precision if is_local else None,
                "background": run_config.background or KEEP,
                "graph": shown,
                "graph_sha256": hashlib.sha256(text.encode()).hexdigest(),
                "seeds": dict(_seeds(graph.prompt)),
                "models": list(_models(graph.prompt, engine, runtime)),
                "inputs": list(_pictures(graph.prompt, runtime)),
                "files": [
                    {**_file(path, runtime.output_folder), "frames_sha256": _shown(path)} for path in report.files
                ],
                "notes": [redacted_text(note.as_dict(), graph.prompt) for note in report.notes],
                "seconds": round(seconds, 2),
            }
    except OSError as error:
        raise OutputError(
            f"the manifest cannot be made: {error.filename} {error.strerror}. The results themselves are there.",
            code="output.manifest",
        ) from error


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


def _models(prompt: Mapping[str, Any], engine: GraphEngine, runtime: LocalRuntime) -> Iterator[dict[str, Any]]:
    for node_id, name, value in _texts(prompt):
        if name in MODEL_FOLDERS:
            path = engine.model_file(MODEL_FOLDERS[name], value)
            files = None if path is None else _hashed(path, runtime)
            yield {"node": node_id, "input": name, "name": redacted(value), "files": files}


def _hashed(path: Path, runtime: LocalRuntime) -> list[dict[str, Any]]:
    """A checkpoint's file, or all the weights of a diffusers folder."""
    files = [path] if path.is_file() else sorted(path.rglob("*.safetensors"))
    total = sum(file.stat().st_size for file in files)
    with runtime.progress("hashing", max(1, total // 2**20), "MiB") as advance:
        return [_file(file, path.parent, _counted(advance, files[:number])) for number, file in enumerate(files)]


def _counted(advance: Callable[[int], None], before: list[Path]) -> Callable[[int], None]:
    """Progress in MiB over all files, of which `before` are done."""
    done = sum(file.stat().st_size for file in before)
    return lambda read: advance((done + read) // 2**20)


def _pictures(prompt: Mapping[str, Any], runtime: LocalRuntime) -> Iterator[dict[str, Any]]:
    """Texts that are the name of a file in the input folder, or in another that they say ("x.png [output]")."""
    for node_id, name, value in _texts(prompt):
        with contextlib.suppress(ImageError):
            path = annotated_file(value)
            yield {"node": node_id, "input": name, **_file(path, runtime.input_folder.resolve())}


def _shown(path: Path) -> str | None:
    with contextlib.suppress(ImageError):
        return frames_sha256(path)
    return None


def _file(path: Path, folder: Path, on_bytes: Callable[[int], None] = lambda read: None) -> dict[str, Any]:
    name = path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.name
    return {"name": name, "bytes": path.stat().st_size, "sha256": file_sha256(path, on_bytes)}
