"""The embedded engine: graphs run on our own executor, with our nodes and the compat nodes, no ComfyUI anywhere."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ....svd_core.errors import CheckpointError
from ....svd_core.runtime.runtime import LocalRuntime, RunWarning, chain_callbacks, use_runtime
from ...graph import Engine, NodeTable, OnEvent, Prompt, Validation, explain, object_info, validate
from ..graph_errors import raise_if_faulty, raise_if_nothing_runs
from ..graphs import DISPLAY_NAMES, EMBEDDED_NODES, NODES, Graph, Report, check_place, ignore_events
from ..results import named_files
from ..run_config import RunConfig
from . import mutation_check
from .memory_estimate import check_memory_budget


@dataclass(frozen=True)
class EmbeddedEngine:
    """A `GraphEngine` that needs only this package. Results are written below the output folder."""

    run_config: RunConfig

    name = "embedded"

    @property
    def table(self) -> NodeTable:
        """Return this package's nodes and the compat nodes."""
        return EMBEDDED_NODES

    @property
    def models_folder(self) -> str:
        """Return the first models folder."""
        return str(self.run_config.models_roots()[0])

    def versions(self) -> dict[str, str]:
        """Return {}: no other program is used."""
        return {}

    def model_file(self, folder: str, name: str) -> Path | None:
        """Return the file or folder of a checkpoint. None for other models."""
        with contextlib.suppress(CheckpointError):
            return self.run_config.runtime().library.find(name) if folder == "checkpoints" else None
        return None

    def check(self, graph: Graph) -> Validation:
        """Validate a graph against the existing models and input files. See `GraphEngine.check`."""
        runtime = self.run_config.runtime()
        with use_runtime(runtime):
            validation = validate(graph.prompt, NODES)
            raise_if_faulty(validation, EMBEDDED_NODES)
            check_memory_budget(validation.prompt, validation.outputs, runtime)
        return validation

    def run(self, graph: Graph, on_event: OnEvent = ignore_events) -> Report:
        """Validate and run. See `GraphEngine.run`. Raise SettingError if the output folder is not writable."""
        notes: list[RunWarning] = []
        runtime = replace(self.run_config.runtime(), on_note=chain_callbacks(notes.append, self.run_config.on_note))

        def emit_with_files(event: str, data: dict[str, Any]) -> None:
            files = {"files": written(runtime, {"": data["output"]})} if event == "executed" else {}
            on_event(event, {**data, **files})

        class_types = [node.get("class_type") for node in graph.prompt.values() if isinstance(node, dict)]
        with use_runtime(runtime):
            if any(getattr(NODES.get(str(each)), "FOLDER", None) == "output" for each in class_types):
                check_place(runtime.output_folder / "result")
            validation = validate_and_budget(graph.prompt, runtime)
            emit_with_files("queued", {})
            result = Engine(NODES).run(
                validation.prompt,
                validation.outputs,
                extra_data=graph.extra_data,
                on_event=emit_with_files,
                node_context=inference,
                watch=mutation_check.InputCheck(validation.prompt) if mutation_check.is_enabled() else None,
            )
        faults = explain(None, validation.node_errors, validation.prompt) if validation.node_errors else ""
        return Report(written(runtime, result.ui), result.ui, faults, validation.node_errors, notes)

    def object_info(self) -> dict[str, dict[str, Any]]:
        """Describe every node of the table in the format of ComfyUI's /object_info."""
        with use_runtime(self.run_config.runtime()):
            return object_info(NODES, DISPLAY_NAMES)


def validate_and_budget(
    prompt: Prompt,
    runtime: LocalRuntime,
    precomputed: Mapping[str, Sequence[list[Any]]] | None = None,
    keep: Sequence[str] = (),
) -> Validation:
    """Validate a graph and pass its notes to the runtime. `precomputed` and `keep` are those of `Engine.run`.

    Raises:
        GraphError: No output can run, or a stage cannot fit into memory.
    """
    validation = validate(prompt, NODES, precomputed=precomputed, keep=keep)
    raise_if_nothing_runs(validation, EMBEDDED_NODES)
    check_memory_budget(validation.prompt, validation.outputs, runtime)
    for note in validation.notes:
        runtime.warn(RunWarning("graph.note", note))
    return validation


def inference() -> contextlib.AbstractContextManager:
    """Return torch.inference_mode(), in which ComfyUI runs nodes too. Imports torch when it is called."""
    import torch

    return torch.inference_mode()


def written(runtime: LocalRuntime, ui: Mapping[str, Mapping[str, Any]]) -> list[Path]:
    """Return the files in the `ui` results of output nodes, each once: equal nodes report the same files."""
    names = (each for output in ui.values() for each in named_files(output))
    return list(dict.fromkeys(runtime.folder(kind) / subfolder / name for kind, subfolder, name in names))
