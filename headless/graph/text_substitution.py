"""What the page does to texts when it queues a graph: values and dates in file names, alternatives in prompts.

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
    """Fills `%Node.widget%` and `%date:yyyy-MM-dd%` in the `filename_prefix` of savers.

    A node is meant by its "Node name for S&R", else by its title; of several the first.
    """

    def __init__(self, boxes: Iterable[tuple[UINode, str, Mapping[str, Any]]], now: datetime | None = None):
        """boxes: each node with its title and the values of its widgets. now: the date to write; the present."""
        self.by_name: dict[str, Mapping[str, Any]] = {}
        self.by_title: dict[str, Mapping[str, Any]] = {}
        self.now = now or datetime.now()
        for node, title, values in boxes:
            named = node.properties.get("Node name for S&R", None if node.type in SAVERS else node.type)
            if isinstance(named, str):
                self.by_name.setdefault(named, values)
            self.by_title.setdefault(title, values)

    def applied(self, class_type: str, values: Mapping[str, Any]) -> dict[str, Any]:
        """The values of a node of that type, with its prefix filled in if it is a saver."""
        prefix = values.get("filename_prefix")
        if class_type not in SAVERS or not isinstance(prefix, str):
            return dict(values)
        return {**values, "filename_prefix": re.sub(r"%([^%]+)%", self._replace, prefix)}

    def _replace(self, found: re.Match[str]) -> str:
        parts = found[1].split(".")
        if len(parts) != 2:
            return self._date(parts[0][5:]) if parts[0].startswith("date:") else found[0]
        values = self.by_name.get(parts[0], self.by_title.get(parts[0]))
        if values is None or parts[1] not in values:
            return found[0]
        return NO_FILE_NAME.sub("_", _as_javascript_writes(values[parts[1]]))

    def _date(self, pattern: str) -> str:
        now = self.now
        numbers = {"d": now.day, "M": now.month, "h": now.hour, "m": now.minute, "s": now.second}

        def part(found: re.Match[str]) -> str:
            text = found[0]
            if text[0] == "y":
                return {"yy": f"{now.year}"[2:], "yyyy": f"{now.year}"}.get(text, text)
            return f"{numbers[text[0]]:0{len(text)}d}"

        return DATE_PARTS.sub(part, pattern)


def _as_javascript_writes(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return str(int(value)) if isinstance(value, float) and value.is_integer() and abs(value) < 1e21 else str(value)


def choose_alternatives(inputs: Iterable[DeclaredInput], values: Mapping[str, Any], node_id: str) -> dict[str, Any]:
    """The values with "{a|b}" decided and comments dropped in the texts that are declared as dynamic prompts.

    The page draws at random; here the draw depends on the node and the text alone, and the log says what came out.
    """
    decided = dict(values)
    for declared in inputs:
        text = decided.get(declared.name)
        if declared.options.get("dynamicPrompts") and isinstance(text, str):
            chosen = _decided(text, random.Random(f"{node_id}.{declared.name}:{text}"))
            decided[declared.name] = chosen
            if "{" in text:
                logger.warning('node %s: "%s" became "%s"', node_id, declared.name, one_line(chosen, 200))
    return decided


def _decided(text: str, draw: random.Random, depth: int = 0) -> str:
    text = COMMENTS.sub("", text)
    made, place = [], 0
    while place < len(text):
        if text[place] == "\\":
            made.append(text[place : place + 2])
            place += 2
        elif text[place] == "{" and depth < MAX_NESTING:
            options, place = _options(text, place + 1)
            made.append(_decided(draw.choice(options), draw, depth + 1))
        else:
            made.append(text[place])
            place += 1
    return ESCAPED.sub(r"\1", "".join(made))


def _options(text: str, place: int) -> tuple[list[str], int]:
    """The alternatives that start at `place`, behind a brace, and the place behind the closing one."""
    options, start, depth = [], place, 0
    while place < len(text):
        letter = text[place]
        if letter == "\\":
            place += 2
            continue
        if letter == "}" and depth == 0:
            return [*options, text[start:place]], place + 1
        if letter == "|" and depth == 0:
            options.append(text[start:place])
            start = place + 1
        depth += {"{": 1, "}": -1}.get(letter, 0)
        place += 1
    return [*options, text[start:]], place
