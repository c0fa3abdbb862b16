"""The graph while it runs: what the file says, and the nodes that other nodes have put into it since."""

from __future__ import annotations

from typing import Any

from ...svd_core.errors import SVDStagesError
from .prompt import Prompt


class DynamicPrompt:
    """What the hidden input DYNPROMPT is, by ComfyUI's method names."""

    def __init__(self, original_prompt: Prompt):
        self.original_prompt = original_prompt
        self.ephemeral_prompt: Prompt = {}
        self.ephemeral_parents: dict[str, str] = {}
        self.ephemeral_display: dict[str, str] = {}

    def get_original_prompt(self) -> Prompt:
        """The graph as it came."""
        return self.original_prompt

    def get_node(self, node_id: str) -> dict[str, Any]:
        """One node. Raises SVDStagesError (`graph.missing_node`) when it is not there."""
        node = self.ephemeral_prompt.get(node_id) or self.original_prompt.get(node_id)
        if node is None:
            raise SVDStagesError(f'there is no node "{node_id}" in the graph', code="graph.missing_node")
        return node

    def has_node(self, node_id: str) -> bool:
        """Whether the graph has it."""
        return node_id in self.original_prompt or node_id in self.ephemeral_prompt

    def add_ephemeral_node(self, node_id: str, node_info: dict[str, Any], parent_id: str, display_id: str) -> None:
        """Put a node in that `parent_id` made; `display_id` is the one that a page shows for it."""
        self.ephemeral_prompt[node_id] = node_info
        self.ephemeral_parents[node_id] = parent_id
        self.ephemeral_display[node_id] = display_id

    def get_real_node_id(self, node_id: str) -> str:
        """The node of the file that a node comes from, however many made it."""
        while node_id in self.ephemeral_parents:
            node_id = self.ephemeral_parents[node_id]
        return node_id

    def get_parent_node_id(self, node_id: str) -> str | None:
        """The node that made it; None for one of the file."""
        return self.ephemeral_parents.get(node_id)

    def get_display_node_id(self, node_id: str) -> str:
        """The node that a page shows for it."""
        while node_id in self.ephemeral_display:
            node_id = self.ephemeral_display[node_id]
        return node_id

    def all_node_ids(self) -> set[str]:
        """All ids."""
        return {*self.original_prompt, *self.ephemeral_prompt}
