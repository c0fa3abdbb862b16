"""Validation by descriptions of nodes (/object_info), for nodes whose classes are elsewhere."""

from __future__ import annotations

from dataclasses import replace

from ..svd_core.errors import GraphError
from ..svd_core.graph import NodeTable, Prompt, Validation, raise_if_invalid, validate
from .refusals import marked, refusal


def check_described(prompt: Prompt, table: NodeTable, who_decides: str) -> Validation:
    """Our validation by the descriptions in `table`. See `GraphEngine.check`.

    What nodes check by themselves (VALIDATE_INPUTS) is not in a description; a note says that `who_decides` does that.
    """
    checked = validate(prompt, table.classes)
    try:
        raise_if_invalid(checked)
    except GraphError as error:
        raise marked(error, table) from None
    if checked.node_errors:
        raise refusal(None, checked.node_errors, prompt, table)
    note = f"what nodes check by themselves, {who_decides} decides when the graph is run"
    return replace(checked, notes=[*checked.notes, note])
