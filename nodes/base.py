"""The base classes of all nodes: declared inputs, no state."""

from __future__ import annotations

from typing import Any

from .sockets import Input


class Node:
    """A stateless node that converts its inputs, calls one function of svd_core and converts the result.

    Subclasses define DESCRIPTION, CATEGORY, RETURN_TYPES, OUTPUT_TOOLTIPS, the inputs and `run`. A node whose inputs
    depend on the files of this machine overrides INPUT_TYPES.
    """

    FUNCTION = "run"
    INPUTS: dict[str, Input] = {}
    OPTIONAL_INPUTS: dict[str, Input] = {}
    HIDDEN_INPUTS: dict[str, str] = {}
    REPLACED_INPUTS: dict[str, str] = {}
    """Inputs that have no effect while another one is linked -> that one."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Return the declared inputs by group: required, optional, hidden. The last two are left out if empty."""
        groups = {"required": cls.INPUTS, "optional": cls.OPTIONAL_INPUTS, "hidden": cls.HIDDEN_INPUTS}
        return {group: dict(declared) for group, declared in groups.items() if declared or group == "required"}


class StageNode(Node):
    """A node of this package. Subclasses also define RETURN_NAMES."""

    CATEGORY = "SVD Stages"
