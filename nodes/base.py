"""What all nodes share."""

from __future__ import annotations


class StageNode:
    """A node of ours: it declares its inputs, converts, calls one core function, converts back, and keeps nothing.

    Subclasses give DESCRIPTION, INPUT_TYPES, RETURN_TYPES, RETURN_NAMES, OUTPUT_TOOLTIPS and `run`.
    """

    CATEGORY = "SVD Stages"
    FUNCTION = "run"
