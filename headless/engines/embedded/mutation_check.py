"""Warn when a node modifies its inputs in place, which corrupts them for the nodes that read them later.

Tensors made under inference mode have no version counter, so their content is hashed before and after each call. That
costs a pass over every input and a copy of those on a graphics card. Set `SVD_STAGES_CHECK_INPUTS=1` to enable it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import zlib
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ...graph import Prompt
from ...graph.prompt import name_node

logger = logging.getLogger(__name__)

VARIABLE = "SVD_STAGES_CHECK_INPUTS"
MAX_DEPTH = 8


def is_enabled() -> bool:
    """Return True if the environment variable enables the check."""
    return os.environ.get(VARIABLE, "") not in ("", "0")


@dataclass(frozen=True)
class InputCheck:
    """A `watch` for `Engine.run` that logs a warning for each input that a node modified."""

    prompt: Prompt

    @contextlib.contextmanager
    def __call__(self, node_id: str, node: Mapping[str, Any], linked: Mapping[str, list[Any]]) -> Iterator[None]:
        """Compare the linked inputs before and after one call of a node.

        Args:
            linked: Input name -> the values that its link brings.
        """
        before = {name: content_checksum(values) for name, values in linked.items()}
        try:
            yield
        finally:
            for name, values in linked.items():
                if content_checksum(values) != before[name]:
                    source, slot = node["inputs"][name]
                    logger.warning(
                        '%s modified its input "%s" in place, which is output %s of %s. Nodes that read it later get '
                        "the modified value. The node must work on a copy.",
                        name_node({**self.prompt, node_id: node}, node_id),
                        name,
                        slot,
                        name_node(self.prompt, source),
                    )


def content_checksum(value: Any, depth: int = 0) -> Hashable:
    """Return equal checksums for equal content: numbers of tensors and arrays, items of lists, dicts and objects.

    Weights of networks are skipped. Unknown values, and values deeper than eight levels, are compared by identity.
    """
    if isinstance(value, (str, bytes, int, float, bool, type(None))):
        return repr(value)
    if depth == MAX_DEPTH:
        return id(value)
    if isinstance(value, Mapping):
        return tuple((str(key), content_checksum(each, depth + 1)) for key, each in value.items())
    if isinstance(value, (list, tuple)):
        return tuple(content_checksum(each, depth + 1) for each in value)
    torch, numpy = sys.modules.get("torch"), sys.modules.get("numpy")
    if torch is not None and isinstance(value, torch.Tensor):
        if value.layout != torch.strided or value.is_quantized or value.device.type == "meta":
            return id(value)
        flat = value.detach().reshape(-1).cpu().contiguous()
        return str(value.dtype), tuple(value.shape), zlib.crc32(flat.view(torch.uint8).numpy())
    if numpy is not None and isinstance(value, numpy.ndarray):
        return str(value.dtype), value.shape, zlib.crc32(numpy.ascontiguousarray(value).view(numpy.uint8))
    if hasattr(value, "__dict__") and not isinstance(value, type) and not hasattr(value, "state_dict"):
        return type(value).__name__, content_checksum(vars(value), depth + 1)
    return id(value)
