"""The graph during a run: the original nodes, and those that nodes added (expansion)."""

from __future__ import annotations

from typing import Any

from ...svd_core.errors import SVDStagesError
from .prompt import Prompt


class DynamicPrompt:
    """The value of the hidden input DYNPROMPT. Method names are ComfyUI's."""

    def __init__(self, original_prompt: Prompt):
        self.original_prompt = original_prompt
        self.ephemeral_prompt: Prompt = {}
        self.ephemeral_parents: dict[str, str] = {}
        self.ephemeral_display: dict[str, str] = {}

    def get_original_prompt(self) -> Prompt:
        """Return the graph without added nodes."""
        return self.original_prompt

    def get_node(self, node_id: str) -> dict[str, Any]:
        """Return one node.

        Raises:
            SVDStagesError: The graph has no such node (`graph.missing_node`).
        """
        node = self.ephemeral_prompt.get(node_id) or self.original_prompt.get(node_id)
        if node is None:
            raise SVDStagesError(f'there is no node "{node_id}" in the graph', code="graph.missing_node")
        return node

    def has_node(self, node_id: str) -> bool:
        """Return True if the graph has the node."""
        return node_id in self.original_prompt or node_id in self.ephemeral_prompt

    def add_ephemeral_node(self, node_id: str, node_info: dict[str, Any], parent_id: str, display_id: str) -> None:
        """Add a node that `parent_id` created. A page shows it as `display_id`."""
        self.ephemeral_prompt[node_id] = node_info
        self.ephemeral_parents[node_id] = parent_id
        self.ephemeral_display[node_id] = display_id

    def get_real_node_id(self, node_id: str) -> str:
        """Return the node of the original graph that created a node, directly or indirectly."""
        while node_id in self.ephemeral_parents:
            node_id = self.ephemeral_parents[node_id]
        return node_id

    def get_parent_node_id(self, node_id: str) -> str | None:
        """Return the node that created a node. None for a node of the original graph."""
        return self.ephemeral_parents.get(node_id)

    def get_display_node_id(self, node_id: str) -> str:
        """Return the node that a page shows instead of a node."""
        while node_id in self.ephemeral_display:
            node_id = self.ephemeral_display[node_id]
        return node_id

    def all_node_ids(self) -> set[str]:
        """Return the ids of all nodes."""
        return {*self.original_prompt, *self.ephemeral_prompt}
