"""Substitute text as the page does when it queues a graph: %...% in file names, {a|b} in prompts.

Source of the rules: ComfyUI_frontend 1.58, searchAndReplace.ts and formatUtil.ts.
"""

from __future__ import annotations

import logging
import random
import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from .node_schema import DeclaredInput
from .prompt import one_line
from .ui_graph import UINode

logger = logging.getLogger(__name__)

SAVERS = {
    "CLIPSave", "LoraSave", "ModelSave", "Save3DAdvanced", "SaveAnimatedPNG", "SaveAnimatedWEBP", "SaveAudio",
    "SaveAudioAdvanced", "SaveAudioMP3", "SaveAudioOpus", "SaveGLB", "SaveGaussianSplat", "SaveImage",
    "SaveImageAdvanced", "SaveLatent", "SavePointCloud", "SaveSVGNode", "SaveVideo", "SaveWEBM", "VAESave",
}  # fmt: skip
"""The nodes whose `filename_prefix` the page fills in."""

NO_FILE_NAME = re.compile(r'[/?<>\\:*|"\x00-\x1f\x7f]')
DATE_PARTS = re.compile(r"dd?|MM?|hh?|mm?|ss?|yyy?y?")
COMMENTS = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)
ESCAPED = re.compile(r"\\([{}|])")
MAX_NESTING = 32


class Replacements:
    """Fills in `%Node.widget%` and `%date:yyyy-MM-dd%` in the `filename_prefix` of savers.

    `Node` is a node's "Node name for S&R", else its title. If several nodes have the name, the first is used.

    Args:
        nodes: Each node with its title and its widget values.
        now: The date to write. None: the current date.
    """

    def __init__(self, nodes: Iterable[tuple[UINode, str, Mapping[str, Any]]], now: datetime | None = None):
        self.by_name: dict[str, Mapping[str, Any]] = {}
        self.by_title: dict[str, Mapping[str, Any]] = {}
        self.now = now or datetime.now()
        for node, title, values in nodes:
            name = node.properties.get("Node name for S&R", None if node.type in SAVERS else node.type)
            if isinstance(name, str):
                self.by_name.setdefault(name, values)
            self.by_title.setdefault(title, values)

    def fill_prefix(self, class_type: str, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the widget values of a node. If it is a saver, its prefix is filled in."""
        prefix = values.get("filename_prefix")
        if class_type not in SAVERS or not isinstance(prefix, str):
            return dict(values)
        return {**values, "filename_prefix": re.sub(r"%([^%]+)%", self._replace, prefix)}

    def _replace(self, match: re.Match[str]) -> str:
        parts = match[1].split(".")
        if len(parts) != 2:
            return self._date(parts[0][5:]) if parts[0].startswith("date:") else match[0]
        values = self.by_name.get(parts[0], self.by_title.get(parts[0]))
        if values is None or parts[1] not in values:
            return match[0]
        return NO_FILE_NAME.sub("_", _as_javascript(values[parts[1]]))

    def _date(self, pattern: str) -> str:
        now = self.now
        numbers = {"d": now.day, "M": now.month, "h": now.hour, "m": now.minute, "s": now.second}

        def part(match: re.Match[str]) -> str:
            text = match[0]
            if text[0] == "y":
                return {"yy": f"{now.year}"[2:], "yyyy": f"{now.year}"}.get(text, text)
            return f"{numbers[text[0]]:0{len(text)}d}"

        return DATE_PARTS.sub(part, pattern)


def _as_javascript(value: Any) -> str:
    """Convert a widget value to text as JavaScript does."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return str(int(value)) if isinstance(value, float) and value.is_integer() and abs(value) < 1e21 else str(value)


def choose_alternatives(inputs: Iterable[DeclaredInput], values: Mapping[str, Any], node_id: str) -> dict[str, Any]:
    """Choose one of "{a|b}" and remove comments, in the values that are declared as dynamic prompts.

    The page chooses at random. Here the choice depends only on the node id and the text, and it is logged.
    """
    chosen = dict(values)
    for declared in inputs:
        text = chosen.get(declared.name)
        if declared.options.get("dynamicPrompts") and isinstance(text, str):
            result = _choose(text, random.Random(f"{node_id}.{declared.name}:{text}"))
            chosen[declared.name] = result
            if "{" in text:
                logger.warning('node %s: "%s" became "%s"', node_id, declared.name, one_line(result, 200))
    return chosen


def _choose(text: str, rng: random.Random, depth: int = 0) -> str:
    text = COMMENTS.sub("", text)
    output, index = [], 0
    while index < len(text):
        if text[index] == "\\":
            output.append(text[index : index + 2])
            index += 2
        elif text[index] == "{" and depth < MAX_NESTING:
            options, index = _parse_options(text, index + 1)
            output.append(_choose(rng.choice(options), rng, depth + 1))
        else:
            output.append(text[index])
            index += 1
    return ESCAPED.sub(r"\1", "".join(output))


def _parse_options(text: str, index: int) -> tuple[list[str], int]:
    """Return the alternatives after the opening brace before `index`, and the index after the closing brace."""
    options, start, depth = [], index, 0
    while index < len(text):
        char = text[index]
        if char == "\\":
            index += 2
            continue
        if char == "}" and depth == 0:
            return [*options, text[start:index]], index + 1
        if char == "|" and depth == 0:
            options.append(text[start:index])
            start = index + 1
        depth += {"{": 1, "}": -1}.get(char, 0)
        index += 1
    return [*options, text[start:]], index
