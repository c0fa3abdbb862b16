"""One run of a validated graph without ComfyUI; nothing is kept after it. See `engine`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from .engine import Emit, Engine, RunResult
from .prompt import Prompt


def execute(
    prompt: Prompt,
    nodes: Mapping[str, type],
    outputs: Collection[str],
    *,
    extra_data: Mapping[str, Any] | None = None,
    emit: Emit | None = None,
    given: Mapping[str, Sequence[Any]] | None = None,
    keep: Collection[str] = (),
    node_context: Callable[[], AbstractContextManager[Any]] = nullcontext,
    prompt_id: str = "",
) -> RunResult:
    """Run the nodes that `outputs` and `keep` need, and return what they show and hold.

    A value is let go as soon as no node that is still to run reads its slot.

    prompt        from `Validation.prompt`: constants converted, defaults filled in. It is not changed
    extra_data    `extra_pnginfo` in it is what the hidden input EXTRA_PNGINFO gets
    emit          told ComfyUI's events, with `prompt_id` in each
    given         outputs of nodes that do not run, one value per slot; they need be neither nodes nor known classes
    node_context  makes a context manager around each node, such as torch.inference_mode

    Raises NodeError from what a node raised; KeyboardInterrupt and Interrupted as they are; GraphError for an id that
    is not in the graph, a cycle, or a feature that is not there yet (`graph.unsupported`).
    """
    return Engine(nodes, keep="once").run(
        prompt,
        outputs,
        extra_data=extra_data,
        emit=emit,
        given=given,
        keep=keep,
        node_context=node_context,
        prompt_id=prompt_id,
    )
