"""Validation by descriptions of nodes (/object_info), for nodes whose classes are elsewhere."""

from __future__ import annotations

from dataclasses import replace

from ..graph import NodeTable, Prompt, Validation, validate
from .remote.errors import raise_if_faulty


def check_described(prompt: Prompt, table: NodeTable, who_decides: str) -> Validation:
    """Our validation by the descriptions in `table`. See `GraphEngine.check`.

    What nodes check by themselves (VALIDATE_INPUTS) is not in a description; a note says that `who_decides` does that.
    """
    checked = validate(prompt, table.classes)
    raise_if_faulty(checked, table)
    note = f"what nodes check by themselves, {who_decides} decides when the graph is run"
    return replace(checked, notes=[*checked.notes, note])
