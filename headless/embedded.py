"""The embedded engine: graphs run on our own executor, with our nodes and the stand-ins, no ComfyUI anywhere."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..svd_core import host
from ..svd_core.errors import CheckpointError, GraphError
from ..svd_core.graph import (
    Emit,
    Engine,
    NodeTable,
    RunResult,
    Validation,
    explain,
    object_info,
    raise_if_invalid,
    validate,
)
from .graphs import DISPLAY_NAMES, EMBEDDED_NODES, NODES, Graph, Report, open_graph
from .surroundings import Surroundings


@dataclass(frozen=True)
class EmbeddedEngine:
    """A `GraphEngine` that needs nothing but this package. Results are written below the output folder."""

    surroundings: Surroundings

    @property
    def table(self) -> NodeTable:
        """Our nodes and the stand-ins."""
        return EMBEDDED_NODES

    def check(self, graph: Graph) -> Validation:
        """Validate with the models and input files of the surroundings. See `GraphEngine.check`."""
        with host.using(self.surroundings.host()):
            validation = validate(graph.prompt, NODES)
        _raise_faults(validation)
        if validation.node_errors:
            words = explain(None, validation.node_errors, validation.prompt)
            raise _marked(GraphError(words, code="graph.some_outputs", node_errors=validation.node_errors))
        return validation

    def run(self, graph: Graph, emit: Emit | None = None) -> Report:
        """Validate and run. See `GraphEngine.run`; SettingError when a saver could not write its result."""
        here = self.surroundings.host()
        with host.using(here):
            _check_output_folder(graph, here)
            validation, result = validate_and_execute(graph, emit=emit)
        faults = explain(None, validation.node_errors, validation.prompt) if validation.node_errors else ""
        return Report(written(here, result.ui), result.ui, faults, validation.node_errors)

    def object_info(self) -> dict[str, dict[str, Any]]:
        """Every node of the table, in the shape of ComfyUI's /object_info."""
        with host.using(self.surroundings.host()):
            return object_info(NODES, DISPLAY_NAMES)


def run_graph(
    graph: str | os.PathLike | Mapping[str, Any],
    settings: Sequence[str] = (),
    *,
    input_dir: str | os.PathLike = "input",
    output_dir: str | os.PathLike = "output",
    models: Sequence[str | os.PathLike] = (),
    device: str = "auto",
    precision: str = "auto",
    vram: int | None = None,
    on_progress: host.Reporter = host.ignore_progress,
) -> Report:
    """Run a saved graph (a file or a dict, API or UI format) without ComfyUI; what `svd-stages run` does.

    settings     "NODE.INPUT=VALUE" each
    vram         bytes of the device's memory to get by with; None: all that is free
    on_progress  called with (stage, done, total, unit)

    Raises svd_core.errors: GraphError, CheckpointError, ImageError, NodeError and their kin.
    """
    surroundings = Surroundings(models, device, precision, input_dir, output_dir, on_progress, vram)
    return EmbeddedEngine(surroundings).run(open_graph(graph, settings))


def _check_output_folder(graph: Graph, here: host.HeadlessHost) -> None:
    """Raise SettingError now rather than after the video has been computed."""
    from ..svd_core.outputs import scratch_folder_beside

    class_types = [node.get("class_type") for node in graph.prompt.values() if isinstance(node, dict)]
    if any(getattr(NODES.get(str(each)), "FOLDER", None) == "output" for each in class_types):
        with scratch_folder_beside(here.output_folder / "result"):
            pass


def validate_and_execute(
    graph: Graph,
    emit: Emit | None = None,
    given: Mapping[str, Sequence[Any]] | None = None,
    keep: Sequence[str] = (),
) -> tuple[Validation, RunResult]:
    validation = validate(graph.prompt, NODES, given=given, keep=keep)
    _raise_faults(validation)
    result = Engine(NODES).run(
        validation.prompt,
        [output for output in validation.outputs if output not in keep],
        extra_data={"extra_pnginfo": {"workflow": graph.workflow}} if graph.workflow else None,
        emit=emit,
        given=given,
        keep=keep,
        node_context=_inference,
    )
    return validation, result


def _raise_faults(validation: Validation) -> None:
    """Raise GraphError when nothing can run, with the exit status of a missing file when nothing else is wrong."""
    try:
        raise_if_invalid(validation)
    except GraphError as error:
        raise _marked(error) from None


def _marked(error: GraphError) -> GraphError:
    if _only_files_are_missing(error.node_errors):
        error.exit_status = CheckpointError.exit_status
    return error


def _only_files_are_missing(node_errors: Mapping[str, Any]) -> bool:
    """Whether every fault is about an input that names a model or a picture (the class's FILE_INPUTS)."""
    faults = [(entry["class_type"], fault) for entry in node_errors.values() for fault in entry["errors"]]
    return bool(faults) and all(
        fault["extra_info"].get("input_name") in getattr(NODES.get(class_type), "FILE_INPUTS", ())
        and fault["type"] in ("custom_validation_failed", "value_not_in_list")
        for class_type, fault in faults
    )


def _inference() -> contextlib.AbstractContextManager:
    """Nodes run as in ComfyUI: no gradients are kept."""
    import torch

    return torch.inference_mode()


def written(here: host.HeadlessHost, ui: Mapping[str, Mapping[str, Any]]) -> list[Path]:
    """The files that output nodes say they wrote, each once: equal nodes run once and answer alike."""
    return list(dict.fromkeys(_named(here, ui)))


def _named(here: host.HeadlessHost, ui: Mapping[str, Mapping[str, Any]]) -> Iterator[Path]:
    for answer in ui.values():
        for entries in answer.values():
            for entry in entries:
                if isinstance(entry, dict) and "filename" in entry:
                    yield here.folder(entry["type"]) / entry.get("subfolder", "") / entry["filename"]
