"""The embedded engine: graphs run on our own executor, with our nodes and the stand-ins, no ComfyUI anywhere."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ....svd_core.errors import CheckpointError
from ....svd_core.runtime import runtime
from ...graph import Emit, Engine, NodeTable, RunResult, Validation, explain, object_info, validate
from ..graphs import DISPLAY_NAMES, EMBEDDED_NODES, NODES, Graph, Report, ignore_events
from ..remote.errors import raise_if_faulty, raise_if_refused
from ..run_config import Surroundings
from . import mutation_check
from .memory_estimate import refuse_too_expensive


@dataclass(frozen=True)
class EmbeddedEngine:
    """A `GraphEngine` that needs nothing but this package. Results are written below the output folder."""

    surroundings: Surroundings

    name = "embedded"

    @property
    def table(self) -> NodeTable:
        """Our nodes and the stand-ins."""
        return EMBEDDED_NODES

    @property
    def models_folder(self) -> str:
        """The first of the models folders."""
        return str(self.surroundings.models_roots()[0])

    @property
    def input_folder(self) -> str:
        """The input folder."""
        return str(self.surroundings.input_folder)

    def versions(self) -> dict[str, str]:
        """Nothing else."""
        return {}

    def model_file(self, folder: str, name: str) -> Path | None:
        """A checkpoint's file or folder; there are no other models."""
        with contextlib.suppress(CheckpointError):
            return self.surroundings.host().library.find(name) if folder == "checkpoints" else None
        return None

    def check(self, graph: Graph) -> Validation:
        """Validate with the models and input files of the surroundings. See `GraphEngine.check`."""
        here = self.surroundings.host()
        with runtime.using(here):
            validation = validate(graph.prompt, NODES)
            raise_if_faulty(validation, EMBEDDED_NODES)
            refuse_too_expensive(validation.prompt, validation.outputs, here)
        return validation

    def run(self, graph: Graph, emit: Emit | None = None) -> Report:
        """Validate and run. See `GraphEngine.run`; SettingError when a saver could not write its result."""
        notes: list[runtime.Note] = []
        here = replace(self.surroundings.host(), on_note=runtime.both(notes.append, self.surroundings.on_note))
        told = emit or ignore_events

        def with_files(event: str, data: dict[str, Any]) -> None:
            files = {"files": written(here, {"": data["output"]})} if event == "executed" else {}
            told(event, {**data, **files})

        with runtime.using(here):
            _check_output_folder(graph, here)
            validation, result = validate_and_execute(graph, here, emit=with_files)
        faults = explain(None, validation.node_errors, validation.prompt) if validation.node_errors else ""
        return Report(written(here, result.ui), result.ui, faults, validation.node_errors, notes)

    def object_info(self) -> dict[str, dict[str, Any]]:
        """Every node of the table, in the shape of ComfyUI's /object_info."""
        with runtime.using(self.surroundings.host()):
            return object_info(NODES, DISPLAY_NAMES)


def _check_output_folder(graph: Graph, here: runtime.HeadlessHost) -> None:
    """Raise SettingError now rather than after the video has been computed."""
    from ....svd_core.utils.output_files import scratch_folder_beside

    class_types = [node.get("class_type") for node in graph.prompt.values() if isinstance(node, dict)]
    if any(getattr(NODES.get(str(each)), "FOLDER", None) == "output" for each in class_types):
        with scratch_folder_beside(here.output_folder / "result"):
            pass


def validate_and_execute(
    graph: Graph,
    here: runtime.HeadlessHost,
    emit: Emit | None = None,
    given: Mapping[str, Sequence[list[Any]]] | None = None,
    keep: Sequence[str] = (),
) -> tuple[Validation, RunResult]:
    validation = validate(graph.prompt, NODES, given=given, keep=keep)
    raise_if_refused(validation, EMBEDDED_NODES)
    refuse_too_expensive(validation.prompt, validation.outputs, here)
    for note in validation.notes:
        here.note(runtime.Note("graph.note", note))
    if emit is not None:
        emit("queued", {})
    result = Engine(NODES).run(
        validation.prompt,
        [output for output in validation.outputs if output not in keep],
        extra_data={"extra_pnginfo": {"workflow": graph.workflow}} if graph.workflow else None,
        emit=emit,
        given=given,
        keep=keep,
        node_context=inference,
        watch=mutation_check.InputCheck(validation.prompt) if mutation_check.is_asked_for() else None,
    )
    return validation, result


def inference() -> contextlib.AbstractContextManager:
    """Nodes run as in ComfyUI: no gradients are kept."""
    import torch

    return torch.inference_mode()


def written(here: runtime.HeadlessHost, ui: Mapping[str, Mapping[str, Any]]) -> list[Path]:
    """The files that output nodes say they wrote, each once: equal nodes run once and answer alike."""
    return list(dict.fromkeys(_named(here, ui)))


def _named(here: runtime.HeadlessHost, ui: Mapping[str, Mapping[str, Any]]) -> Iterator[Path]:
    for answer in ui.values():
        for entries in answer.values():
            for entry in entries:
                if isinstance(entry, dict) and "filename" in entry:
                    yield here.folder(entry["type"]) / entry.get("subfolder", "") / entry["filename"]
