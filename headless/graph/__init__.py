"""Run ComfyUI graphs without ComfyUI: read, convert from UI format, edit, validate, execute.

Every function gets the node classes as an argument. No module imports a node, ComfyUI or torch.
"""

from .convert import to_api
from .edit import Target, apply_settings, find_target, read_value, set_value, with_value
from .executor import Engine, OnEvent, RunResult
from .explain import explain
from .object_info import NodeTable, described_nodes, object_info
from .prompt import Prompt
from .read import is_ui_format, parse_graph, read_graph, unwrap
from .validate import Validation, raise_if_invalid, validate

__all__ = [
    "Engine",
    "NodeTable",
    "OnEvent",
    "Prompt",
    "RunResult",
    "Target",
    "Validation",
    "apply_settings",
    "described_nodes",
    "explain",
    "find_target",
    "is_ui_format",
    "object_info",
    "parse_graph",
    "raise_if_invalid",
    "read_graph",
    "read_value",
    "set_value",
    "to_api",
    "unwrap",
    "validate",
    "with_value",
]
