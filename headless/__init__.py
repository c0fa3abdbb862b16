"""Runs graphs outside ComfyUI's page: on our executor, on a ComfyUI in this process, or on a server.

The command line, the Python calls and anything else that renders outside ComfyUI come through here.
"""

from .batch.graph_batching import BatchRequest, batch_status, plan_batch, retry_batch, run_batch
from .batch.graph_workers import Workers
from .cli.animate import VideoSettings, animate, animate_file, image_to_video_graph
from .engines.choose import choose_engine, run_graph
from .engines.embedded.engine import EmbeddedEngine
from .engines.events import EventTranslator
from .engines.graph_errors import check_described
from .engines.graph_loading import check_allowed_nodes, read_source
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
from .engines.run_config import PACKAGE, RunConfig, default_models_roots

__all__ = [
    "DISPLAY_NAMES",
    "EMBEDDED_NODES",
    "NODES",
    "PACKAGE",
    "BatchRequest",
    "EmbeddedEngine",
    "EventTranslator",
    "Graph",
    "GraphEngine",
    "Missing",
    "Report",
    "RunConfig",
    "VideoSettings",
    "Workers",
    "animate",
    "animate_file",
    "batch_status",
    "check_allowed_nodes",
    "check_described",
    "check_place",
    "choose_engine",
    "default_models_roots",
    "describe_file",
    "find_missing",
    "image_to_video_graph",
    "make_manifest",
    "open_graph",
    "plan_batch",
    "read_source",
    "retry_batch",
    "run_batch",
    "run_graph",
    "write_text",
]
