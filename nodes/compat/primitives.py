"""Values as nodes: what is typed goes out, so that several inputs can be wired to it."""

from __future__ import annotations

import sys
from typing import Any

CATEGORY = "utils/primitive"
OUTPUT_TOOLTIPS = ("The value, for any number of inputs.",)
TOOLTIP = {"tooltip": "The value to give out."}
LARGEST = sys.maxsize


class PrimitiveInt:
    """INT -> INT."""

    DESCRIPTION = "A whole number to be wired."
    CATEGORY = CATEGORY
    RETURN_TYPES = ("INT",)
    OUTPUT_TOOLTIPS = OUTPUT_TOOLTIPS
    FUNCTION = "execute"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        options = {"min": -LARGEST, "max": LARGEST, "control_after_generate": True, **TOOLTIP}
        return {"required": {"value": ("INT", options)}}

    def execute(self, value: int) -> tuple[int]:
        """The value."""
        return (value,)


class PrimitiveFloat:
    """FLOAT -> FLOAT."""

    DESCRIPTION = "A number to be wired."
    CATEGORY = CATEGORY
    RETURN_TYPES = ("FLOAT",)
    OUTPUT_TOOLTIPS = OUTPUT_TOOLTIPS
    FUNCTION = "execute"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"value": ("FLOAT", {"min": -LARGEST, "max": LARGEST, **TOOLTIP})}}

    def execute(self, value: float) -> tuple[float]:
        """The value."""
        return (value,)


class PrimitiveBoolean:
    """BOOLEAN -> BOOLEAN."""

    DESCRIPTION = "Yes or no, to be wired."
    CATEGORY = CATEGORY
    RETURN_TYPES = ("BOOLEAN",)
    OUTPUT_TOOLTIPS = OUTPUT_TOOLTIPS
    FUNCTION = "execute"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"value": ("BOOLEAN", TOOLTIP)}}

    def execute(self, value: bool) -> tuple[bool]:
        """The value."""
        return (value,)


class PrimitiveString:
    """STRING -> STRING."""

    DESCRIPTION = "A text to be wired."
    CATEGORY = CATEGORY
    RETURN_TYPES = ("STRING",)
    OUTPUT_TOOLTIPS = OUTPUT_TOOLTIPS
    FUNCTION = "execute"
    OPTIONS: dict[str, Any] = {}

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"value": ("STRING", {**cls.OPTIONS, **TOOLTIP})}}

    def execute(self, value: str) -> tuple[str]:
        """The value."""
        return (value,)


class PrimitiveStringMultiline(PrimitiveString):
    """The same for a text of several lines."""

    DESCRIPTION = "A text of several lines to be wired."
    OPTIONS = {"multiline": True}
