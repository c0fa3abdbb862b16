"""Where a graph comes from: a JSON file, a video or picture that it made, or a dict; and which classes it names."""

from __future__ import annotations

import fnmatch
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...svd_core.errors import GraphError
from ...svd_core.utils.safe_open import open_regular_file
from ..graph import is_ui_format, parse_graph, read_graph, unwrap
from ..graph.convert import VIRTUAL
from ..graph.prompt import one_line
from ..graph.ui_graph import read_ui_graph

logger = logging.getLogger(__name__)

Source = str | os.PathLike | Mapping[str, Any]

GRAPH_NAMES = ("prompt", "workflow")
"""The names under which ComfyUI embeds the API graph and the UI graph."""

COMPUTED = ("is_changed",)
"""Keys that ComfyUI adds to a prompt while it runs, with NaN values among them."""

MEDIA_HEADS = (b"\x89PNG", b"RIFF", b"\x1aE\xdf\xa3")
"""First bytes of a PNG, a WebP and a WebM; an mp4 has "ftyp" four bytes later."""


def read_source(source: Source) -> dict[str, Any]:
    """The graph in a file, as it was saved, or a copy of the dict.

    An mp4, WebM, PNG or WebP gives the graph inside it, as SaveVideo, SaveWEBM, SaveImage and SaveAnimatedWEBP write
    it; a workflow beside it that cannot be read is left out, with a warning. Raises GraphError: `graph.file`,
    `graph.not_inside` for a video or picture without one, and what `read_graph` raises; ImageError for a damaged one.
    """
    if isinstance(source, Mapping):
        return dict(source)
    if not isinstance(source, (str, os.PathLike)):
        raise GraphError(f"a graph is a file or a dict, got {type(source).__name__}", code="graph.shape")
    path = Path(source)
    return _read_inside(path) if _is_media(path) else read_graph(path)


def _is_media(path: Path) -> bool:
    try:
        with open_regular_file(path) as stream:
            head = stream.read(8)
    except (OSError, ValueError):
        return False  # read_graph says why
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


def _read_inside(path: Path) -> dict[str, Any]:
    found = read_embedded_graphs(path, ["prompt"])
    try:
        found |= read_embedded_graphs(path, ["workflow"])
    except GraphError as error:
        if not found:
            raise
        logger.warning("%s It is not handed on.", error)
    if not found:
        raise GraphError(
            f"{path.name} holds no graph: its program did not put one in, or another program has taken it out. "
            "Give the .json file of the graph.",
            code="graph.not_inside",
        )
    return {"output": found["prompt"], "workflow": found.get("workflow")} if "prompt" in found else found["workflow"]


def class_types(graph: Mapping[str, Any]) -> set[str]:
    """Every node class that a graph names, in either format, subgraphs too; boxes of the page alone are none."""
    inner, _ = unwrap(dict(graph))
    if not is_ui_format(inner):
        return {str(node.get("class_type")) for node in inner.values() if isinstance(node, Mapping)}
    read = read_ui_graph(inner)
    graphs = (read.root, *read.subgraphs.values())
    return {node.type for one in graphs for node in one.nodes.values()} - {*VIRTUAL, *read.subgraphs}


def check_allowed_nodes(graph: Mapping[str, Any], allowed: Sequence[str]) -> None:
    """Raise GraphError (`graph.not_allowed`) when a graph names a class that no pattern of `allowed` fits.

    allowed  class types, or patterns as in a shell: SVD*, Save*. Nothing of the graph is imported or asked for this.
             A node that brings nodes while it runs is answered for by its own class

    Asked twice: of the file before anything is imported, and of what it was converted to, because a pack may have a
    class with the name of a box of the page alone.
    """
    others = sorted(
        name for name in class_types(graph) if not any(fnmatch.fnmatchcase(name, pattern) for pattern in allowed)
    )
    if others:
        names = ", ".join(f'"{one_line(name, 100)}"' for name in others[:20]) + (", ..." if len(others) > 20 else "")
        raise GraphError(
            f"the graph has nodes that are not allowed: {names}. Allowed are {', '.join(allowed)}; allow these, "
            "too, or take them out.",
            code="graph.not_allowed",
        )
