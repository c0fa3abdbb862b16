"""Runs graphs outside ComfyUI's page: on our executor, on a ComfyUI in this process, or on a server.

The command line, the Python calls and anything else that renders outside ComfyUI come through here.
"""

from .batch.graph_batching import Ask, batch_status, plan_batch, retry_batch, run_batch
from .batch.graph_workers import Workers
from .cli.animate import Animation, animate, animate_file, animation_graph
from .engines.choose import choose_engine, run_graph
from .engines.embedded.engine import EmbeddedEngine
from .engines.events import Narrator
from .engines.graph_loading import read_source, refuse_others
from .engines.graphs import (
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
from .engines.manifest import make_manifest
from .engines.preflight import Missing, find_missing
from .engines.run_config import PACKAGE, Surroundings, default_models_roots
from .engines.schema_validation import check_described

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
