"""Read a graph from a JSON file, a video, an image or a dict, and check which node classes it names."""

from __future__ import annotations

import fnmatch
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...svd_core.errors import GraphError, quoted
from ...svd_core.utils.safe_open import open_regular_file
from ..graph import is_ui_format, parse_graph, read_graph, unwrap
from ..graph.convert import VIRTUAL
from ..graph.prompt import one_line
from ..graph.ui_graph import read_ui_graph
from ..graph.validate import shape_fault
from .results import file_inside

logger = logging.getLogger(__name__)

Source = str | os.PathLike | Mapping[str, Any]

GRAPH_NAMES = ("prompt", "workflow")
"""The metadata keys of the API graph and the UI graph in ComfyUI's files."""

COMPUTED = ("is_changed",)
"""Keys that ComfyUI adds to a prompt while it runs. Their values may be NaN."""

MEDIA_HEADS = (b"\x89PNG", b"RIFF", b"\x1aE\xdf\xa3")
"""First bytes of a PNG, a WebP and a WebM. An mp4 has "ftyp" four bytes later."""


def read_source(source: Source, allowed: Sequence[str] = ()) -> dict[str, Any]:
    """Read the graph in a file as it was saved, or copy a dict. Check its node classes if some are `allowed`.

    From an mp4, WebM, PNG or WebP this reads the graph that SaveVideo, SaveWEBM, SaveImage or SaveAnimatedWEBP
    embedded. An unreadable workflow beside a readable prompt is dropped with a warning.

    Raises:
        GraphError: The file is unreadable (`graph.file`), no graph is embedded (`graph.not_inside`), or the graph is
            invalid as in `read_graph`, or it has classes that are not allowed (`graph.not_allowed`).
        ImageError: The video or image is damaged.
    """
    if isinstance(source, Mapping):
        graph = dict(source)
    elif isinstance(source, (str, os.PathLike)):
        path = Path(source)
        graph = _read_embedded(path) if _is_media(path) else _read_json(path)
        inner, _ = unwrap(dict(graph))
        fault = None if is_ui_format(inner) else shape_fault(inner)
        if fault is not None:
            raise GraphError(
                f"{quoted(path.name)} holds no graph that can run: {fault['message']} ({fault['details']}). "
                "Save it again with ComfyUI's Save or Export (API).",
                code=f"graph.{fault['type']}",
            )
    else:
        raise GraphError(f"a graph must be a file or a dict, got {type(source).__name__}", code="graph.shape")
    if allowed:
        check_allowed_nodes(graph, allowed)
    return graph


def find_input_folder(source: Source, graph: Mapping[str, Any], folder: Path) -> Path:
    """Return the folder of the input images of a graph: `folder`, or that of the video that holds the graph.

    The latter, with a warning, if all its images lie beside the video and one is not in `folder`.
    """
    prompt = graph.get("output")
    if isinstance(source, Mapping) or not isinstance(prompt, Mapping):
        return folder
    nodes = [node for node in prompt.values() if isinstance(node, Mapping) and node.get("class_type") == "LoadImage"]
    names = [name for node in nodes if isinstance(name := (node.get("inputs") or {}).get("image"), str)]
    beside = Path(source).parent
    if all(file_inside(folder, name) for name in names) or not all(file_inside(beside, name) for name in names):
        return folder
    logger.warning("%s is not in %s; the one beside %s is used", quoted(names[0]), quoted(folder), quoted(source))
    return beside


def _is_media(path: Path) -> bool:
    try:
        with open_regular_file(path) as stream:
            head = stream.read(8)
    except (OSError, ValueError):
        return False  # read_graph raises an error that gives the reason
    return head.startswith(MEDIA_HEADS) or head[4:8] == b"ftyp"


def read_embedded_graphs(path: str | os.PathLike, names: Sequence[str] = GRAPH_NAMES) -> dict[str, Any]:
    """Return the graphs inside an mp4, webm, png or webp: those of `names` that it holds, parsed.

    Raises:
        ImageError: The file is missing, unreadable or of another kind.
        GraphError: A graph is refused, as `graph.read.parse_graph` refuses it.
    """
    from ...svd_core.media.metadata import read_metadata

    texts = read_metadata(path, names)
    return {
        name: parse_graph(text, f'the "{name}" inside {Path(path).name}', dropped=COMPUTED)
        for name, text in texts.items()
    }


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return read_graph(path)
    except GraphError as error:
        if error.code != "graph.encoding" or path.suffix.lower() == ".json":
            raise
        raise GraphError(
            f"{quoted(path.name)} holds no graph. A graph is in a .json file in UTF-8, or in an mp4, WebM, PNG or WebP "
            "that was made with it. Give one of those.",
            code="graph.not_inside",
        ) from error


def _read_embedded(path: Path) -> dict[str, Any]:
    graphs = read_embedded_graphs(path, ["prompt"])
    try:
        graphs |= read_embedded_graphs(path, ["workflow"])
    except GraphError as error:
        if not graphs:
            raise
        logger.warning("%s The workflow is dropped.", error)
    if not graphs:
        raise GraphError(
            f"{quoted(path.name)} holds no graph: it was saved without one, or another program has "
            "removed it. Give the .json "
            "file of the graph.",
            code="graph.not_inside",
        )
    if "prompt" not in graphs:
        return graphs["workflow"]
    return {"output": graphs["prompt"], "workflow": graphs.get("workflow")}


def class_types(graph: Mapping[str, Any]) -> set[str]:
    """Return the node classes of a graph in either format, with those in subgraphs, without virtual nodes."""
    inner, _ = unwrap(dict(graph))
    if not is_ui_format(inner):
        return {str(node.get("class_type")) for node in inner.values() if isinstance(node, Mapping)}
    ui_graph = read_ui_graph(inner)
    graphs = (ui_graph.root, *ui_graph.subgraphs.values())
    return {node.type for each in graphs for node in each.nodes.values()} - {*VIRTUAL, *ui_graph.subgraphs}


def check_allowed_nodes(graph: Mapping[str, Any], allowed: Sequence[str]) -> None:
    """Raise GraphError (`graph.not_allowed`) if a graph names a class that no pattern in `allowed` matches.

    `read_source` and `open_graph` both call it: for the file, before anything is imported, and for the converted graph,
    because a node pack may have a class with the name of a virtual node. Nodes that a node adds while it runs are not
    checked.

    Args:
        allowed: Class types or shell patterns: SVD*, Save*.
    """
    refused = sorted(
        name for name in class_types(graph) if not any(fnmatch.fnmatchcase(name, pattern) for pattern in allowed)
    )
    if refused:
        names = ", ".join(f'"{one_line(name, 100)}"' for name in refused[:20]) + (", ..." if len(refused) > 20 else "")
        raise GraphError(
            f"only these nodes are allowed: {', '.join(allowed)}; the graph has {names}. Allow them, or remove them "
            "from the graph.",
            code="graph.not_allowed",
        )
