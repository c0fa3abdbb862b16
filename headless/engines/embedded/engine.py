"""The embedded engine: graphs run on our own executor, with our nodes and the stand-ins, no ComfyUI anywhere."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ....svd_core.errors import CheckpointError
from ....svd_core.runtime.runtime import LocalRuntime, RunWarning, chain_callbacks, use_runtime
from ...graph import Engine, NodeTable, OnEvent, RunResult, Validation, explain, object_info, validate
from ..graphs import DISPLAY_NAMES, EMBEDDED_NODES, NODES, Graph, Report, ignore_events
from ..remote.errors import raise_if_faulty, raise_if_refused
from ..run_config import RunConfig
from . import mutation_check
from .memory_estimate import check_memory_budget


@dataclass(frozen=True)
class EmbeddedEngine:
    """A `GraphEngine` that needs nothing but this package. Results are written below the output folder."""

    run_config: RunConfig

    name = "embedded"

    @property
    def table(self) -> NodeTable:
        """Our nodes and the stand-ins."""
        return EMBEDDED_NODES

    @property
    def models_folder(self) -> str:
        """The first of the models folders."""
        return str(self.run_config.models_roots()[0])

    @property
    def input_folder(self) -> str:
        """The input folder."""
        return str(self.run_config.input_folder)

    def versions(self) -> dict[str, str]:
        """Nothing else."""
        return {}

    def model_file(self, folder: str, name: str) -> Path | None:
        """A checkpoint's file or folder; there are no other models."""
        with contextlib.suppress(CheckpointError):
            return self.run_config.runtime().library.find(name) if folder == "checkpoints" else None
        return None

    def check(self, graph: Graph) -> Validation:
        """Validate with the models and input files of the surroundings. See `GraphEngine.check`."""
        runtime = self.run_config.runtime()
        with use_runtime(runtime):
            validation = validate(graph.prompt, NODES)
            raise_if_faulty(validation, EMBEDDED_NODES)
            check_memory_budget(validation.prompt, validation.outputs, runtime)
        return validation

    def run(self, graph: Graph, on_event: OnEvent | None = None) -> Report:
        """Validate and run. See `GraphEngine.run`; SettingError when a saver could not write its result."""
        notes: list[RunWarning] = []
        runtime = replace(self.run_config.runtime(), on_note=chain_callbacks(notes.append, self.run_config.on_note))
        told = on_event or ignore_events

        def with_files(event: str, data: dict[str, Any]) -> None:
            files = {"files": written(runtime, {"": data["output"]})} if event == "executed" else {}
            told(event, {**data, **files})

        with use_runtime(runtime):
            _check_output_folder(graph, runtime)
            validation, result = validate_and_execute(graph, runtime, on_event=with_files)
        faults = explain(None, validation.node_errors, validation.prompt) if validation.node_errors else ""
        return Report(written(runtime, result.ui), result.ui, faults, validation.node_errors, notes)

    def object_info(self) -> dict[str, dict[str, Any]]:
        """Every node of the table, in the shape of ComfyUI's /object_info."""
        with use_runtime(self.run_config.runtime()):
            return object_info(NODES, DISPLAY_NAMES)


def _check_output_folder(graph: Graph, runtime: LocalRuntime) -> None:
    """Raise SettingError now rather than after the video has been computed."""
    from ....svd_core.utils.output_files import scratch_folder_beside

    class_types = [node.get("class_type") for node in graph.prompt.values() if isinstance(node, dict)]
    if any(getattr(NODES.get(str(each)), "FOLDER", None) == "output" for each in class_types):
        with scratch_folder_beside(runtime.output_folder / "result"):
            pass


def validate_and_execute(
    graph: Graph,
    runtime: LocalRuntime,
    on_event: OnEvent | None = None,
    given: Mapping[str, Sequence[list[Any]]] | None = None,
    keep: Sequence[str] = (),
) -> tuple[Validation, RunResult]:
    validation = validate(graph.prompt, NODES, precomputed=given, keep=keep)
    raise_if_refused(validation, EMBEDDED_NODES)
    check_memory_budget(validation.prompt, validation.outputs, runtime)
    for note in validation.notes:
        runtime.warn(RunWarning("graph.note", note))
    if on_event is not None:
        on_event("queued", {})
    result = Engine(NODES).run(
        validation.prompt,
        [output for output in validation.outputs if output not in keep],
        extra_data={"extra_pnginfo": {"workflow": graph.workflow}} if graph.workflow else None,
        on_event=on_event,
        precomputed=given,
        keep=keep,
        node_context=inference,
        watch=mutation_check.InputCheck(validation.prompt) if mutation_check.is_enabled() else None,
    )
    return validation, result


def inference() -> contextlib.AbstractContextManager:
    """Nodes run as in ComfyUI: no gradients are kept."""
    import torch

    return torch.inference_mode()


def written(runtime: LocalRuntime, ui: Mapping[str, Mapping[str, Any]]) -> list[Path]:
    """The files that output nodes say they wrote, each once: equal nodes run once and answer alike."""
    return list(dict.fromkeys(_named(runtime, ui)))


def _named(runtime: LocalRuntime, ui: Mapping[str, Mapping[str, Any]]) -> Iterator[Path]:
    for answer in ui.values():
        for entries in answer.values():
            for entry in entries:
                if isinstance(entry, dict) and "filename" in entry:
                    yield runtime.folder(entry["type"]) / entry.get("subfolder", "") / entry["filename"]
