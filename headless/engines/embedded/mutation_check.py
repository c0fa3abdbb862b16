"""A debugging aid: which node changes in place what another node gave, and so spoils it for whoever reads it next.

Tensors that are made under inference mode, as all are in a run, have no version counter, so their content is summed
before and after each call. That costs a pass over every input, and a copy of those on a graphics card: it is asked for
(`SVD_STAGES_CHECK_INPUTS=1`), never on by itself.
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
DEEPEST = 8


def is_enabled() -> bool:
    """Whether the environment asks for it."""
    return os.environ.get(VARIABLE, "") not in ("", "0")


@dataclass(frozen=True)
class InputCheck:
    """Warns of changes in place; for `Engine.run`. It changes no run but its speed."""

    prompt: Prompt

    @contextlib.contextmanager
    def __call__(self, node_id: str, node: Mapping[str, Any], given: Mapping[str, list[Any]]) -> Iterator[None]:
        """Around one call of a node. `given`: what its links bring, by input."""
        before = {name: content_checksum(values) for name, values in given.items()}
        try:
            yield
        finally:
            for name, values in given.items():
                if content_checksum(values) != before[name]:
                    source, slot = node["inputs"][name]
                    logger.warning(
                        '%s changed its input "%s" in place, which is output %s of %s: whoever reads it later gets the '
                        "changed one. The node must work on a copy.",
                        name_node({**self.prompt, node_id: node}, node_id),
                        name,
                        slot,
                        name_node(self.prompt, source),
                    )


def content_checksum(value: Any, depth: int = 0) -> Hashable:
    """Equal for equal content: of tensors and arrays their numbers, of lists, dicts and plain objects what is in them.

    A network's weights are not looked at, and of what is deeper than eight levels, or unknown, only which object it is.
    """
    if isinstance(value, (str, bytes, int, float, bool, type(None))):
        return repr(value)
    if depth == DEEPEST:
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
