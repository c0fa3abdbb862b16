"""Run graphs and animate images outside ComfyUI's page. Names are imported when they are first used."""

import warnings
from typing import Any

from ..svd_core.utils.lazy_names import lazy_names

_NAMES = {
    "DISPLAY_NAMES": "engines.graphs",
    "EMBEDDED_NODES": "engines.graphs",
    "NODES": "engines.graphs",
    "PACKAGE": "engines.run_config",
    "BatchRequest": "batch.graph_batching",
    "EmbeddedEngine": "engines.embedded.engine",
    "EventTranslator": "engines.events",
    "FailedImage": "animation.render",
    "FileRequest": "animation.render",
    "Graph": "engines.graphs",
    "GraphEngine": "engines.graphs",
    "Missing": "engines.preflight",
    "Report": "engines.graphs",
    "RunConfig": "engines.run_config",
    "VideoSettings": "animation.render",
    "Workers": "batch.graph_workers",
    "animate": "animation.render",
    "animate_file": "animation.render",
    "animate_files": "animation.render",
    "batch_status": "batch.graph_batching",
    "check_allowed_nodes": "engines.graph_loading",
    "check_described": "engines.graph_errors",
    "check_place": "engines.graphs",
    "choose_engine": "engines.choose",
    "default_models_roots": "engines.run_config",
    "describe_file": "engines.graphs",
    "find_missing": "engines.preflight",
    "image_to_video_graph": "engines.video_graph",
    "make_manifest": "engines.manifest",
    "open_graph": "engines.graphs",
    "plan_batch": "batch.graph_batching",
    "read_source": "engines.graph_loading",
    "retry_batch": "batch.graph_batching",
    "run_batch": "batch.graph_batching",
    "run_graph": "engines.choose",
    "write_text": "engines.graphs",
}
"""Public name -> the module that it is imported from."""

_DEPRECATED = {
    "Animation": "VideoSettings",
    "Ask": "BatchRequest",
    "Narrator": "EventTranslator",
    "Surroundings": "RunConfig",
    "animation_graph": "image_to_video_graph",
    "refuse_others": "check_allowed_nodes",
}
"""Name of version 0.1 -> its name today."""

__all__ = list(_NAMES)  # pyright: ignore[reportUnsupportedDunderAll]

_get, __dir__ = lazy_names(__name__, _NAMES)


def __getattr__(name: str) -> Any:
    """Import a public name. A name of version 0.1 gives a DeprecationWarning."""
    if name in _DEPRECATED:
        warnings.warn(f"headless.{name} is now headless.{_DEPRECATED[name]}", DeprecationWarning, stacklevel=2)
        name = _DEPRECATED[name]
    return _get(name)
