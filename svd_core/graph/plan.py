"""Who runs, in which order, and who reads which value: settled before the first node runs."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import GraphError
from .call import UnsupportedFeature
from .declared import Declarations, unsupported_feature
from .prompt import Prompt, is_link, name_node, run_order, sources_of, with_ancestors
from .signature import find_twins

Slot = tuple[str, int]
"""A node id and the number of one of its outputs."""


@dataclass(frozen=True)
class Plan:
    """A run, settled. Ids are those of first twins, except the keys of `twin_of` and the values of `twins`.

    order         the nodes that run, in order
    twin_of       every needed node -> the one that runs for it, mostly itself
    twins         every node that runs -> the nodes that it runs for, itself first
    reads         every node that runs -> the slots that it reads, each once
    readers       slot -> how many nodes read it
    slots_needed  node -> how many outputs it must have for its readers
    kept          nodes whose values the caller wants
    """

    order: list[str]
    twin_of: Mapping[str, str]
    twins: Mapping[str, list[str]]
    reads: Mapping[str, list[Slot]]
    readers: Mapping[Slot, int]
    slots_needed: Mapping[str, int]
    kept: frozenset[str]


def make_plan(
    prompt: Prompt,
    declarations: Declarations,
    wanted: Collection[str],
    given: Mapping[str, Sequence[Any]],
    keep: Collection[str],
) -> Plan:
    """Settle how `wanted` and their ancestors run. Asks IS_CHANGED of the classes that have it.

    Raises GraphError for an id that is nowhere, a cycle, a slot that `given` lacks, or an unsupported feature.
    """
    order = _order(prompt, wanted, given)
    _refuse_unknown(prompt, order, declarations)
    twin_of = find_twins(prompt, order, declarations)
    twins = defaultdict(list)
    for node_id in order:
        twins[twin_of[node_id]].append(node_id)
    reads = {node_id: _slots_read(prompt[node_id], twin_of) for node_id in twins}
    readers = Counter(slot for slots in reads.values() for slot in slots)
    slots_needed: dict[str, int] = {}
    for source, slot in readers:
        slots_needed[source] = max(slots_needed.get(source, 0), slot + 1)
    for node_id, values in given.items():
        if len(values) < slots_needed.get(node_id, 0):
            raise GraphError(
                f'node "{node_id}" is given with {len(values)} outputs, but slot {slots_needed[node_id] - 1} of it is '
                "read; give one value for each slot.",
                code="graph.bad_slot",
            )
    kept = frozenset(twin_of.get(node_id, node_id) for node_id in keep)
    return Plan(list(twins), twin_of, dict(twins), reads, readers, slots_needed, kept)


def _order(prompt: Prompt, wanted: Collection[str], given: Collection[str]) -> list[str]:
    sources = {node_id: [] if node_id in given else sources_of(node) for node_id, node in prompt.items()}
    needed = with_ancestors(wanted, sources)
    lost = sorted(node_id for node_id in needed if node_id not in prompt and node_id not in given)
    if lost:
        raise GraphError(f'node "{lost[0]}" is needed, but it is not in the graph.', code="graph.missing_node")
    order, cycles = run_order([node for node in prompt if node in needed and node not in given], sources)
    if cycles:
        raise GraphError(
            f"the links go round in a circle, each node needs the next: {' -> '.join(cycles[0])}; cut one of them.",
            code="graph.dependency_cycle",
        )
    return order


def _refuse_unknown(prompt: Prompt, order: Sequence[str], declarations: Declarations) -> None:
    for node_id in order:
        class_type = prompt[node_id]["class_type"]
        if class_type not in declarations.nodes:
            raise GraphError(
                f"{name_node(prompt, node_id)} is of a type that is not known here; validate the graph first.",
                code="graph.missing_node_type",
            )
        feature = unsupported_feature(declarations[class_type])
        if feature is not None:
            raise UnsupportedFeature(name_node(prompt, node_id), feature)


def _slots_read(node: Mapping[str, Any], twin_of: Mapping[str, str]) -> list[Slot]:
    links = [value for value in node["inputs"].values() if is_link(value)]
    return list(dict.fromkeys((twin_of.get(source, source), slot) for source, slot in links))
