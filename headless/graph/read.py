"""Graph files: strict JSON with limits checked before parsing, and the wrappers that graphs are saved in."""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from collections.abc import Collection, Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

from ...svd_core.errors import GraphError
from ...svd_core.utils.safe_open import open_regular_file

MAX_BYTES = 32 * 1024 * 1024
MAX_NESTING = 64
MAX_STRING = 1024 * 1024
"""Characters of one string, as it is written."""
PICTURE_INSIDE = "data:image/"
"""How a string begins that is a picture (RFC 2397), as drawing nodes keep it; the file's own size limits it."""
MAX_MARKS = 2_000_000
"""Brackets, commas and colons: what a file becomes in memory goes by them, not by its bytes."""


def read_graph(path: str | Path, *, finite: bool = True) -> dict[str, Any]:
    """The JSON object in a file, with nothing in it that JSON does not have (but numbers that are not `finite`).

    Raises GraphError: the file is not there (`graph.file`), larger than 32 MB, nested deeper than 64, has a string of
    more than a million characters or far more values than any graph (`graph.too_large`), is not UTF-8
    (`graph.encoding`), not JSON (`graph.json`), holds NaN, Infinity or a number that overflows (`graph.non_finite`), a
    key twice (`graph.duplicate_key`), half of a surrogate pair (`graph.encoding`), or is not an object
    (`graph.shape`). A byte order mark is dropped.
    """
    path = Path(path)
    try:
        with open_regular_file(path) as stream:
            size = os.fstat(stream.fileno()).st_size
            if size > MAX_BYTES:
                raise _too_large(path.name, f"{size} bytes; a graph may have {MAX_BYTES}")
            content = stream.read(MAX_BYTES + 1)  # it may have grown
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise GraphError(f"cannot read the graph {path}: {reason}. Give a .json file.", code="graph.file") from error
    return parse_graph(content, path.name, finite=finite)


def parse_graph(
    content: bytes | str, name: str = "the graph", *, dropped: Collection[str] = (), finite: bool = True
) -> dict[str, Any]:
    """As `read_graph`, from text.

    name     what messages call it
    dropped  keys that are left out wherever they stand, with all that they hold
    finite   whether NaN and infinities are refused
    """
    if len(content) > MAX_BYTES:
        raise GraphError(f"{name} has {len(content)} bytes; a graph may have {MAX_BYTES}.", code="graph.too_large")
    text = _decode(content, name)
    _check_limits(text, name)
    graph = _parse(text, name, dropped, finite)
    _check_surrogates(graph, text, name)
    if not isinstance(graph, dict):
        raise GraphError(
            f"{name} holds a JSON {type(graph).__name__} at the top; a graph is an object. Save it again with "
            "ComfyUI's Save or Export (API).",
            code="graph.shape",
        )
    return graph


def is_ui_format(graph: dict[str, Any]) -> bool:
    """Whether this is what ComfyUI's page saves (nodes with positions), and not the API format that runs."""
    return isinstance(graph.get("nodes"), list)


def unwrap(graph: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The graph itself, and the UI-format workflow saved with it if there is one.

    Understood are a bare graph in either format, the body that is posted to ComfyUI (`prompt`, `extra_data`), and
    what its page makes (`output`, `workflow`). For a bare UI-format graph both results are the graph.
    """
    if is_ui_format(graph):
        return graph, graph
    inner = graph.get("prompt")
    if isinstance(inner, dict) and "class_type" not in inner:
        return inner, _workflow_in(graph.get("extra_data"), "extra_pnginfo") or _workflow_in(graph)
    inner = graph.get("output")
    if isinstance(inner, dict) and "class_type" not in inner:
        return inner, _workflow_in(graph)
    workflow = _workflow_in(graph)
    if workflow is not None:
        return workflow, workflow
    return graph, None


def _workflow_in(holder: Any, *path: str) -> dict[str, Any] | None:
    for key in (*path, "workflow"):
        holder = holder.get(key) if isinstance(holder, dict) else None
    return holder if isinstance(holder, dict) and is_ui_format(holder) else None


def _decode(content: bytes | str, name: str) -> str:
    if isinstance(content, str):
        return content.removeprefix("\ufeff")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise GraphError(
            f"{name} is not UTF-8 text (byte {error.start}); a graph is JSON in UTF-8. Save it again as UTF-8.",
            code="graph.encoding",
        ) from error


def _check_limits(text: str, name: str) -> None:
    """Look at strings, and at what stands between them, before a parser makes anything of it or recurses over it."""
    plain = text.replace("\\\\", "__").replace('\\"', "__")  # what ends no string; every length stays
    if plain.count('"') > 2 * MAX_MARKS:
        raise _too_large(name, "more strings than any graph has")
    parts = plain.split('"')
    longest = max((len(part) for part in parts[1::2] if not part.startswith(PICTURE_INSIDE)), default=0)
    if longest > MAX_STRING:
        raise _too_large(name, f"a string of {longest} characters; {MAX_STRING} is the limit")
    outside = "".join(parts[::2])
    if sum(map(outside.count, "[]{},:")) > MAX_MARKS:
        raise _too_large(name, "more values than any graph has")
    depths = accumulate(1 if bracket in "[{" else -1 for bracket in re.findall(r"[\[\]{}]", outside))
    if max(depths, default=0) > MAX_NESTING:
        raise GraphError(f"{name} is nested deeper than {MAX_NESTING}; no graph is.", code="graph.too_large")


def _too_large(name: str, what: str) -> GraphError:
    return GraphError(f"{name} has {what}. Is it a graph?", code="graph.too_large")


class _NotFinite:
    """Stands for NaN, an infinity or a number that overflows, until it is known whether it is left out."""

    def __init__(self, word: str):
        self.word = word


def _parse(text: str, name: str, dropped: Collection[str], finite: bool) -> Any:
    odd: list[_NotFinite] = []

    def constant(word: str) -> Any:
        if not finite:
            return float(word)
        odd.append(_NotFinite(word))
        return odd[-1]

    def number(digits: str) -> Any:
        value = float(digits)
        return value if math.isfinite(value) else constant(digits)

    def without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) < len(pairs):
            twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
            raise GraphError(
                f'{name} has the key "{twice}" twice in one object, so one of the two would be lost; remove one.',
                code="graph.duplicate_key",
            )
        return {key: value for key, value in made.items() if key not in dropped} if dropped else made

    try:
        graph = json.loads(text, parse_constant=constant, parse_float=number, object_pairs_hook=without_duplicates)
    except ValueError as error:
        raise GraphError(
            f"{name} is not JSON: {error}. Save it again with ComfyUI's Save or Export (API).", code="graph.json"
        ) from error
    left = next((each for each in _parts(graph) if isinstance(each, _NotFinite)), None) if odd else None
    if left is not None:
        raise GraphError(
            f"{name} holds {left.word}, which is not JSON and no value for a node; put a finite number there.",
            code="graph.non_finite",
        )
    return graph


def _check_surrogates(graph: Any, text: str, name: str) -> None:
    """Half of a surrogate pair cannot be written out again. It can only come from a \\u escape, or a Python string."""
    if re.search(r"\\u[dD][89a-fA-F]", text) is None and text.isascii():
        return
    for part in _strings(graph):
        try:
            part.encode("utf-8")
        except UnicodeEncodeError as error:
            raise GraphError(
                f"{name} holds half of a surrogate pair in {part[:60]!a}, which is no text; type it again.",
                code="graph.encoding",
            ) from error


def _strings(value: Any) -> Iterator[str]:
    return (part for part in _parts(value) if isinstance(part, str))


def _parts(value: Any) -> Iterator[Any]:
    """Every value in a parsed file that holds no others, and the keys."""
    waiting = [value]
    while waiting:
        part = waiting.pop()
        if isinstance(part, list):
            waiting.extend(part)
        elif isinstance(part, dict):
            waiting.extend(part)
            waiting.extend(part.values())
        else:
            yield part
