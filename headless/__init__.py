"""Runs graphs outside ComfyUI's page: on our executor, on a ComfyUI in this process, or on a server.

The command line, the Python calls and anything else that renders outside ComfyUI come through here.
"""

from .animation import Animation, animate, animate_file, animation_graph
from .batching import Ask, batch_status, plan_batch, retry_batch, run_batch
from .described import check_described
from .embedded import EmbeddedEngine
from .engines import choose_engine, run_graph
from .events import Narrator
from .graphs import (
    DISPLAY_NAMES,
    EMBEDDED_NODES,
    NODES,
    Graph,
    GraphEngine,
    Report,
    check_place,
    describe_file,
    open_graph,
    write_text,
)
from .manifest import make_manifest
from .preflight import Missing, find_missing
from .sources import read_source, refuse_others
from .surroundings import PACKAGE, Surroundings, default_models_roots
from .workers import Workers

__all__ = [
    "DISPLAY_NAMES",
    "EMBEDDED_NODES",
    "NODES",
    "PACKAGE",
    "Animation",
    "Ask",
    "EmbeddedEngine",
    "Graph",
    "GraphEngine",
    "Missing",
    "Narrator",
    "Report",
    "Surroundings",
    "Workers",
    "animate",
    "animate_file",
    "animation_graph",
    "batch_status",
    "check_described",
    "check_place",
    "choose_engine",
    "default_models_roots",
    "describe_file",
    "find_missing",
    "make_manifest",
    "open_graph",
    "plan_batch",
    "read_source",
    "refuse_others",
    "retry_batch",
    "run_batch",
    "run_graph",
    "write_text",
]
