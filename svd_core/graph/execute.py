"""Running a validated graph without ComfyUI, to ComfyUI's rules.

What runs: `outputs`, `keep` and their ancestors; of nodes that would give the same only the first. Order: sources
first, and of the nodes that are ready the one that stands first in the file. A value is let go as soon as no node that
is still to run reads its slot. The first failure stops everything.

Not here yet: node expansion, ExecutionBlocker, async functions and the V3 node API, which are refused by name. Inputs
declared lazy are always computed, and check_lazy_status is not asked.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from ..errors import Interrupted, NodeError, SVDStagesError
from .call import Outcome, UnsupportedFeature, call_mapped, input_lists, merge_results
from .declared import Declarations
from .plan import Plan, Slot, make_plan
from .prompt import Prompt, name_node, one_line

Emit = Callable[[str, dict[str, Any]], None]
"""Called with ComfyUI's event names and data. What it raises stops the run."""


@dataclass(frozen=True, eq=False)
class RunResult:
    """What a run gave: `ui` by node id, and for the ids in `keep` a list of values per output slot."""

    ui: dict[str, dict[str, list[Any]]]
    values: dict[str, list[list[Any]]]


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

    prompt        from `Validation.prompt`: constants converted, defaults filled in. It is not changed
    extra_data    `extra_pnginfo` in it is what the hidden input EXTRA_PNGINFO gets
    emit          told ComfyUI's events, with `prompt_id` in each
    given         outputs of nodes that do not run, one value per slot; they need be neither nodes nor known classes
    node_context  makes a context manager around each node, such as torch.inference_mode

    Raises NodeError from what a node raised; KeyboardInterrupt and Interrupted as they are; GraphError for an id that
    is not in the graph, a cycle, or a feature that is not there yet (`graph.unsupported`).
    """
    given = given or {}
    declarations = Declarations(nodes)
    plan = make_plan(prompt, declarations, [*outputs, *keep], given, keep)
    run = _Run(
        prompt=prompt,
        declarations=declarations,
        plan=plan,
        hidden=_hidden_values(prompt, extra_data or {}),
        tell=_teller(emit, prompt_id),
        node_context=node_context,
        held={(node_id, slot): [value] for node_id, row in given.items() for slot, value in enumerate(row)},
        slot_counts={node_id: len(row) for node_id, row in given.items()},
        readers_left=dict(plan.readers),
    )
    run.tell("execution_start")
    run.tell("execution_cached", nodes=[node_id for node_id, twin in plan.twin_of.items() if node_id != twin])
    for node_id in plan.order:
        run.run_guarded(node_id)
    run.tell("execution_success")
    return RunResult(run.ui, {node_id: run.kept_values(node_id) for node_id in keep})


def _teller(emit: Emit | None, prompt_id: str) -> Callable[..., None]:
    def tell(event: str, **about: Any) -> None:
        if emit is not None:
            emit(event, {**about, "prompt_id": prompt_id})

    return tell


@dataclass(frozen=True)
class DynamicPrompt:
    """What the hidden input DYNPROMPT is: the graph, by ComfyUI's method names. Nothing is added to it here."""

    original_prompt: Prompt

    def get_original_prompt(self) -> Prompt:
        """The whole graph."""
        return self.original_prompt

    def get_node(self, node_id: str) -> dict[str, Any]:
        """One node. Raises KeyError when it is not there."""
        return self.original_prompt[node_id]

    def has_node(self, node_id: str) -> bool:
        """Whether the graph has it."""
        return node_id in self.original_prompt

    def all_node_ids(self) -> set[str]:
        """All ids."""
        return set(self.original_prompt)

    def get_real_node_id(self, node_id: str) -> str:
        """The node itself: there are no expanded nodes."""
        return node_id

    def get_display_node_id(self, node_id: str) -> str:
        """The node itself: there are no expanded nodes."""
        return node_id

    def get_parent_node_id(self, node_id: str) -> str | None:
        """None: there are no expanded nodes."""
        return None


def _hidden_values(prompt: Prompt, extra_data: Mapping[str, Any]) -> dict[str, Any]:
    """Hidden inputs by their kind; UNIQUE_ID is added for each node."""
    return {
        "PROMPT": prompt,
        "DYNPROMPT": DynamicPrompt(prompt),
        "EXTRA_PNGINFO": extra_data.get("extra_pnginfo"),
        "AUTH_TOKEN_COMFY_ORG": extra_data.get("auth_token_comfy_org"),
        "API_KEY_COMFY_ORG": extra_data.get("api_key_comfy_org"),
    }


@dataclass(eq=False)
class _Run:
    """The state of one run: the values that are still needed, and what has been shown."""

    prompt: Prompt
    declarations: Declarations
    plan: Plan
    hidden: dict[str, Any]
    tell: Callable[..., None]
    node_context: Callable[[], AbstractContextManager[Any]]
    held: dict[Slot, list[Any]]
    slot_counts: dict[str, int]
    readers_left: dict[Slot, int]
    executed: list[str] = field(default_factory=list)
    ui: dict[str, dict[str, list[Any]]] = field(default_factory=dict)

    def run_guarded(self, node_id: str) -> None:
        """Run one node, and tell how it ended when it fails or is stopped."""
        try:
            self.run_one(node_id)
        except (KeyboardInterrupt, Interrupted):
            self.tell("execution_interrupted", **self.place(node_id))
            raise
        except SVDStagesError as error:
            self.tell("execution_error", **self.place(node_id), **_about_error(error.__cause__ or error))
            raise

    def place(self, node_id: str) -> dict[str, Any]:
        """Where the run is, as ComfyUI's events say it."""
        class_type = self.prompt[node_id]["class_type"]
        return {"node_id": node_id, "node_type": class_type, "executed": list(self.executed)}

    def run_one(self, node_id: str) -> None:
        """Run one node, hold what is read from it, let go of what nobody reads any more."""
        self.tell("executing", node=node_id, display_node=node_id)
        outcome = self.call(node_id)
        self.slot_counts[node_id] = len(outcome.slots)
        for slot, values in enumerate(outcome.slots):
            if node_id in self.plan.kept or (node_id, slot) in self.readers_left:
                self.held[node_id, slot] = values
        for slot in self.plan.reads[node_id]:
            self.release(slot)
        for twin in self.plan.twins[node_id]:
            self.executed.append(twin)
            if outcome.ui:
                self.ui[twin] = outcome.ui
                self.tell("executed", node=twin, display_node=twin, output=outcome.ui)

    def call(self, node_id: str) -> Outcome:
        """Make the instance and call it. Raises NodeError from whatever it raises, except to stop."""
        node = self.prompt[node_id]
        declaration = self.declarations[node["class_type"]]
        node_class: Any = declaration.node_class
        lists = input_lists(node, declaration, {**self.hidden, "UNIQUE_ID": node_id}, self.linked)
        try:
            with self.node_context():
                function = getattr(node_class(), node_class.FUNCTION)
                results = call_mapped(function, lists, getattr(node_class, "INPUT_IS_LIST", False))
            outcome = merge_results(results, node_class, name_node(self.prompt, node_id))
            self.check_slots(node_id, outcome)
            return outcome
        except (Interrupted, UnsupportedFeature):
            raise
        except Exception as error:
            raise self.failed(node_id, error) from error

    def linked(self, source: str, slot: int) -> list[Any]:
        """The values that a link brings."""
        return self.held[self.plan.twin_of.get(source, source), slot]

    def check_slots(self, node_id: str, outcome: Outcome) -> None:
        """A node that gives fewer outputs than are read from it is at fault itself, not its readers."""
        needed = self.plan.slots_needed.get(node_id, 0)
        if len(outcome.slots) < needed:
            raise SVDStagesError(
                f"the node's function gave {len(outcome.slots)} values, but slot {needed - 1} is read from it; "
                "it must return a value for each of its RETURN_TYPES.",
                code="node.result",
            )

    def release(self, slot: Slot) -> None:
        """One reader of `slot` is done; the last one lets it go."""
        self.readers_left[slot] -= 1
        if self.readers_left[slot] == 0 and slot[0] not in self.plan.kept:
            del self.held[slot]

    def kept_values(self, node_id: str) -> list[list[Any]]:
        """What a node in `keep` gave, by slot."""
        twin = self.plan.twin_of.get(node_id, node_id)
        return [self.held[twin, slot] for slot in range(self.slot_counts[twin])]

    def failed(self, node_id: str, cause: Exception) -> NodeError:
        """The error for a node that raised."""
        text = one_line(str(cause))
        if not isinstance(cause, SVDStagesError):
            text = f"{type(cause).__name__}: {text}" if text else type(cause).__name__
        return NodeError(
            f"{name_node(self.prompt, node_id)} failed: {text}",
            node_id=node_id,
            class_type=self.prompt[node_id]["class_type"],
            cause=cause,
        )


def _about_error(cause: BaseException) -> dict[str, Any]:
    """ComfyUI's account of an exception. Inputs are left out: they can hold keys and whole images."""
    kind = type(cause)
    module = "" if kind.__module__ == "builtins" else kind.__module__ + "."
    return {
        "exception_message": str(cause),
        "exception_type": module + kind.__qualname__,
        "traceback": traceback.format_tb(cause.__traceback__),
        "current_inputs": {},
        "current_outputs": [],
    }
