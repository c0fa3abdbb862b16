"""How rows of a batch become values of a graph: its image, its seeds, the inputs that columns name, its models."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ...svd_core.errors import GraphError, SVDStagesError
from ...svd_core.runtime.runtime import LocalRuntime
from ..engines.graphs import NODES
from ..engines.preflight import MODEL_FOLDERS
from ..graph import Prompt, Target, explain, find_target, read_value, with_value
from ..graph.check_node import check_value
from ..graph.node_schema import Declarations
from ..graph.prompt import looks_like_link, sources_of, with_ancestors
from ..graph.suggestions import Hints
from .graph_rendering import cut_before_savers
from .model_hashes import model_sha256

REMEMBERED = 10_000
"""Values of rows that are kept as they were read."""


def image_input(graph: Prompt) -> tuple[str, str]:
    """The one input that takes a picture's name."""
    found = [(node_id, "image") for node_id, node in graph.items() if node.get("class_type") == "LoadImage"]
    if len(found) != 1:
        raise GraphError(
            f"a batch puts each image into the graph's LoadImage, of which there must be one; there are {len(found)}.",
            code="graph.images",
        )
    return found[0]


def seed_inputs(graph: Prompt) -> list[str]:
    """All constants that are seeds, as "NODE.INPUT"."""
    found = []
    declarations = Declarations(NODES)
    for node_id, node in graph.items():
        for name, declared in declarations[str(node["class_type"])].inputs.items():
            linked = looks_like_link(node["inputs"].get(name))
            is_seed = name in ("seed", "noise_seed") and declared.options.get("control_after_generate")
            if is_seed and not linked:
                found.append(f"{node_id}.{name}")
    return found


def canonical_graph(graph: Prompt) -> Prompt:
    """What makes the clips: class and inputs of the savers and of what they need, and no titles or bystanders."""
    sources = {key: sources_of(node) for key, node in graph.items()}
    needed = with_ancestors(cut_before_savers(graph).savers, sources)
    return {
        key: {name: node[name] for name in ("class_type", "inputs")} for key, node in graph.items() if key in needed
    }


def without(graph: Prompt, inputs: Iterable[Sequence[str]]) -> Prompt:
    """The graph with nothing in these inputs: what is in them before a row comes makes no other clips."""
    for node_id, name in inputs:
        graph = with_value(graph, node_id, name, None)
    return graph


class ModelHashes:
    """Checkpoints that a graph and its rows name, hashed once each."""

    def __init__(self, graph: Prompt, runtime: LocalRuntime):
        self._graph, self._here = graph, runtime
        self.sums: dict[str, str] = {}

    def of_graph(self) -> dict[str, str]:
        """ "NODE.INPUT" -> sha256. Raises CheckpointError."""
        return self.of_values(
            {
                f"{node_id}.{name}": value
                for node_id, node in self._graph.items()
                for name, value in node["inputs"].items()
            }
        )

    def of_values(self, values: Mapping[str, Any]) -> dict[str, str]:
        """The same of values by "NODE.INPUT"; those that name no model are left out. Raises CheckpointError."""
        return {name: self.sum_of(value) for name, value in values.items() if _names_model(name) and type(value) is str}

    def sum_of(self, name: str) -> str:
        """The sha256 of a checkpoint. Raises CheckpointError."""
        if name not in self.sums:
            self.sums[name] = model_sha256(self._here.library.find(name))
        return self.sums[name]


def _names_model(name: str) -> bool:
    """Whether the input called "NODE.INPUT" takes a checkpoint's name."""
    return MODEL_FOLDERS.get(name.rpartition(".")[2]) == "checkpoints"


class Values:
    """What the columns of a row mean for a graph. Called with a row's values; equal ones are looked at once."""

    def __init__(self, graph: Prompt, models: ModelHashes, image: str):
        self._graph, self._models, self._image = graph, models, image
        self._targets: dict[str, Target | SVDStagesError] = {}
        self._read: dict[tuple[str, str], Any] = {}

    def __call__(self, columns: Mapping[str, Any]) -> dict[str, Any]:
        """Convert a row's columns to values of node inputs."""
        values = {}
        for column, value in columns.items():
            target = _once(self._targets, column, lambda column=column: self._target(column))
            text = _text(value, target)
            if len(self._read) > REMEMBERED:
                self._read.clear()
            found = _once(self._read, (column, text), lambda target=target, text=text: self._value(target, text))
            if target.name in values and values[target.name] != found:
                raise GraphError(
                    f"{target.where} is given two values for {target.declared.name}.", code="graph.setting"
                )
            values[target.name] = found
        return values

    def _target(self, column: str) -> Target:
        target = find_target(self._graph, column, NODES)
        if target.name == self._image:
            raise GraphError(f'"{column}" is the image, which has a column of its own: image.', code="graph.setting")
        if looks_like_link(self._graph[target.node_id]["inputs"].get(target.declared.name)):
            raise GraphError(
                f'"{column}" is linked in the graph; name the input where the value comes from.', code="graph.setting"
            )
        return target

    def _value(self, target: Target, text: str) -> Any:
        value = read_value(target, text)
        if _names_model(target.name):
            self._models.sum_of(value)
            return value
        found = check_value(target.declared, value, Hints())
        if found is not None:
            node = self._graph[target.node_id]
            faults = {target.node_id: {"errors": [found], "class_type": node["class_type"], "dependent_outputs": []}}
            raise GraphError(explain(None, faults, self._graph), code=f"graph.{found['type']}")
        return value


def _once(known: dict[Any, Any], key: Any, find: Callable[[], Any]) -> Any:
    """What `find` gave for this key before, or gives now; what it raised is raised again."""
    if key not in known:
        try:
            known[key] = find()
        except SVDStagesError as error:
            known[key] = error
    if isinstance(known[key], SVDStagesError):
        raise known[key].with_traceback(None)
    return known[key]


def _text(value: Any, target: Target) -> str:
    """A value of JSON or Parquet as a cell has it. 7.0 is 7 where whole numbers are taken: tables with gaps have it."""
    if isinstance(value, str):
        return value
    if isinstance(value, float) and value.is_integer() and target.declared.kind == "INT":
        return str(int(value))
    try:
        return json.dumps(value)
    except (TypeError, ValueError) as error:
        told = f'input "{target.declared.name}" of {target.where} takes what JSON can hold: {error}.'
        raise GraphError(told, code="graph.setting") from error
