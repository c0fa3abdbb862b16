"""Nodes that output a typed-in value, so that it can be linked to several inputs."""

from __future__ import annotations

import sys
from typing import Any

from ..base import Node

LARGEST = sys.maxsize


class _Primitive(Node):
    """A node with one widget and one output of the type RETURN_TYPES[0]."""

    CATEGORY = "utils/primitive"
    RETURN_TYPES = ("STRING",)
    OUTPUT_TOOLTIPS = ("The value, for any number of inputs.",)
    OPTIONS: dict[str, Any] = {}

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"value": (cls.RETURN_TYPES[0], {**cls.OPTIONS, "tooltip": "The value to give out."})}}

    def run(self, value: Any) -> tuple[Any]:
        """Return the value."""
        return (value,)


class PrimitiveInt(_Primitive):
    """An INT."""

    DESCRIPTION = "A whole number to be wired."
    RETURN_TYPES = ("INT",)
    OPTIONS = {"min": -LARGEST, "max": LARGEST, "control_after_generate": True}


class PrimitiveFloat(_Primitive):
    """A FLOAT."""

    DESCRIPTION = "A number to be wired."
    RETURN_TYPES = ("FLOAT",)
    OPTIONS = {"min": -LARGEST, "max": LARGEST}


class PrimitiveBoolean(_Primitive):
    """A BOOLEAN."""

    DESCRIPTION = "Yes or no, to be wired."
    RETURN_TYPES = ("BOOLEAN",)


class PrimitiveString(_Primitive):
    """A STRING of one line."""

    DESCRIPTION = "A text to be wired."


class PrimitiveStringMultiline(_Primitive):
    """A STRING of several lines."""

    DESCRIPTION = "A text of several lines to be wired."
    OPTIONS = {"multiline": True}
