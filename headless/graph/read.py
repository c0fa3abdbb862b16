"""Read graph files: strict JSON, limits checked before parsing, and the wrappers that graphs are saved in."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Collection, Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

from ...svd_core.errors import GraphError, quoted
from ...svd_core.utils.safe_open import open_regular_file

MAX_BYTES = 32 * 1024 * 1024
MAX_NESTING = 64
MAX_STRING = 1024 * 1024
"""Characters of one string, as written in the file."""
DATA_IMAGE = "data:image/"
"""Prefix of a string that is an image (RFC 2397), as drawing nodes save it. Only MAX_BYTES limits it."""
MAX_MARKS = 2_000_000
"""Brackets, commas and colons. The memory of a parsed file depends on their number, not on its bytes."""
SURROGATE = re.compile("[\ud800-\udfff]")


def read_graph(path: str | Path, *, finite: bool = True) -> dict[str, Any]:
    """Read the JSON object in a file, without a byte order mark.

    Args:
        path: A .json file.
        finite: If true, NaN and infinities are errors.

    Raises:
        GraphError: The file cannot be read (`graph.file`).
            It is larger than 32 MB, is nested deeper than 64 levels, has a string of more than a million characters
            or more values than any graph (`graph.too_large`).
            It is not UTF-8 or holds half of a surrogate pair (`graph.encoding`).
            It is not JSON (`graph.json`). It holds NaN, Infinity or a number that overflows (`graph.non_finite`).
            An object has a key twice (`graph.duplicate_key`). The JSON is not an object (`graph.shape`).
    """
    path = Path(path)
    try:
        with open_regular_file(path) as stream:
            content = stream.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise GraphError(
            f"cannot read the graph {quoted(path)}: {reason}. Give a .json file.", code="graph.file"
        ) from error
    return parse_graph(content, quoted(path.name), finite=finite)


def parse_graph(
    content: bytes | str, name: str = "the graph", *, dropped: Collection[str] = (), finite: bool = True
) -> dict[str, Any]:
    """Parse a JSON object. Limits and errors are those of `read_graph`.

    Args:
        content: The text, or its bytes in UTF-8.
        name: Name of the content in messages.
        dropped: Keys that are left out of every object, with their values.
        finite: If true, NaN and infinities are errors.
    """
    if len(content) > MAX_BYTES:
        raise _too_large(name, f"more than {MAX_BYTES} bytes")
    text = _decode(content, name)
    _check_limits(text, name)
    graph = _parse(text, name, dropped)
    _check_leaves(graph, name, finite)
    if not isinstance(graph, dict):
        raise GraphError(
            f"{name} must hold a JSON object, got {type(graph).__name__}. Save it again with ComfyUI's Save or "
            "Export (API).",
            code="graph.shape",
        )
    return graph


def is_ui_format(graph: dict[str, Any]) -> bool:
    """Return True for UI format, which ComfyUI's page saves (nodes with positions). API format has no list of nodes."""
    return isinstance(graph.get("nodes"), list)


def unwrap(graph: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Return the graph itself, and the UI-format workflow saved with it or None.

    Accepts a bare graph in either format, the body of a POST to ComfyUI (`prompt`, `extra_data`), and what ComfyUI's
    page creates (`output`, `workflow`). For a bare UI-format graph both results are the graph.
    """
    if is_ui_format(graph):
        return graph, graph
    for key in ("prompt", "output"):
        inner = graph.get(key)
        if isinstance(inner, dict) and "class_type" not in inner:
            saved = _workflow_in(graph.get("extra_data"), "extra_pnginfo") if key == "prompt" else None
            return inner, saved or _workflow_in(graph)
    workflow = _workflow_in(graph)
    return (graph, None) if workflow is None else (workflow, workflow)


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
            f"{name} must be JSON in UTF-8, got another byte at {error.start}. Save it again as UTF-8.",
            code="graph.encoding",
        ) from error


def _check_limits(text: str, name: str) -> None:
    """Check string lengths, the number of values and the nesting before a recursive parser reads the text."""
    plain = text.replace("\\\\", "__").replace('\\"', "__")  # remove escaped quotes, keep all lengths
    if plain.count('"') > 2 * MAX_MARKS:
        raise _too_large(name, "more strings than any graph has")
    parts = plain.split('"')
    longest = max((len(part) for part in parts[1::2] if not part.startswith(DATA_IMAGE)), default=0)
    if longest > MAX_STRING:
        raise _too_large(name, f"a string of {longest} characters; {MAX_STRING} is the limit")
    outside = "".join(parts[::2])
    if sum(map(outside.count, "[]{},:")) > MAX_MARKS:
        raise _too_large(name, "more values than any graph has")
    depths = accumulate(1 if bracket in "[{" else -1 for bracket in re.findall(r"[\[\]{}]", outside))
    if max(depths, default=0) > MAX_NESTING:
        raise _too_large(name, f"more than {MAX_NESTING} levels of nesting; no graph has")


def _too_large(name: str, reason: str) -> GraphError:
    return GraphError(f"{name} has {reason}. Give a file that holds a graph.", code="graph.too_large")


def _parse(text: str, name: str, dropped: Collection[str]) -> Any:
    def without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        parsed = dict(pairs)
        if len(parsed) < len(pairs):
            duplicate = Counter(key for key, _ in pairs).most_common(1)[0][0]
            raise GraphError(
                f'{name} has the key "{duplicate}" twice in one object. Remove one of them.', code="graph.duplicate_key"
            )
        return {key: value for key, value in parsed.items() if key not in dropped} if dropped else parsed

    try:
        return json.loads(text, object_pairs_hook=without_duplicates)
    except ValueError as error:
        raise GraphError(
            f"{name} is not JSON: {error}. Save it again with ComfyUI's Save or Export (API).", code="graph.json"
        ) from error


def _check_leaves(graph: Any, name: str, finite: bool) -> None:
    """Refuse numbers that are not finite, and half of a surrogate pair, which cannot be written out again."""
    for part in _leaves(graph):
        if finite and isinstance(part, float) and not math.isfinite(part):
            raise GraphError(
                f"{name} holds {json.dumps(part)}, but numbers must be finite. Put a finite number there.",
                code="graph.non_finite",
            )
        if isinstance(part, str) and not part.isascii() and SURROGATE.search(part):
            raise GraphError(
                f"{name} holds half of a surrogate pair in {part[:60]!a}. Type the text again.",
                code="graph.encoding",
            )


def _leaves(value: Any) -> Iterator[Any]:
    """Yield every key, and every value that holds no others."""
    pending = [value]
    while pending:
        part = pending.pop()
        if isinstance(part, list):
            pending.extend(part)
        elif isinstance(part, dict):
            pending.extend(part)
            pending.extend(part.values())
        else:
            yield part
