"""The base class of this package's nodes."""

from __future__ import annotations


class StageNode:
    """A stateless node that converts its inputs, calls one function of svd_core and converts the result.

    Subclasses define DESCRIPTION, INPUT_TYPES, RETURN_TYPES, RETURN_NAMES, OUTPUT_TOOLTIPS and `run`.
    """

    CATEGORY = "SVD Stages"
    FUNCTION = "run"
