"""Runs graphs with no ComfyUI: builds a runner from the nodes and svd_core, above both.

The command line, the Python calls and anything else that renders outside ComfyUI come through here.
"""

from .animation import Animation, animate, animate_file, animation_graph
from .embedded import EmbeddedEngine, run_graph
from .graphs import (
    DISPLAY_NAMES,
    EMBEDDED_NODES,
    NODES,
    Graph,
    GraphEngine,
    Report,
    describe_file,
    open_graph,
    write_text,
)
from .surroundings import PACKAGE, Surroundings, default_models_roots

__all__ = [
    "DISPLAY_NAMES",
    "EMBEDDED_NODES",
    "NODES",
    "PACKAGE",
    "Animation",
    "EmbeddedEngine",
    "Graph",
    "GraphEngine",
    "Report",
    "Surroundings",
    "animate",
    "animate_file",
    "animation_graph",
    "default_models_roots",
    "describe_file",
    "open_graph",
    "run_graph",
    "write_text",
]
