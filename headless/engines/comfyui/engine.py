"""Run graphs on ComfyUI's executor and nodes in this process, without a server and without an open port."""

from __future__ import annotations

import contextlib
import copy
import logging
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ....svd_core.errors import CheckpointError, Interrupted
from ....svd_core.runtime.runtime import OnNote, RunWarning, chain_callbacks, get_runtime, ignore_note, use_runtime
from ....svd_core.utils.atomic_files import unfinished_folder
from ....svd_core.utils.output_files import scratch_folder_beside
from ....svd_core.utils.user_tempdir import private_folder
from ...graph import NodeTable, OnEvent, Prompt, Validation
from ...graph.validate import raise_if_misshapen
from ..embedded.memory_estimate import check_memory_budget
from ..graph_errors import graph_error, node_error, normalize_node_errors
from ..graphs import Graph, Report, ignore_events
from ..results import Fill, Results, file_inside, link_or_copy, place_inside
from ..run_config import RunConfig
from ..signals import stopping_at_signals
from . import bootstrap

logger = logging.getLogger(__name__)

GIB = 2**30


@dataclass(frozen=True)
class ComfyUIEngine:
    """A `GraphEngine` on the ComfyUI in `folder`: its core nodes, this package's nodes and the named custom nodes.

    Nodes write into a temporary folder. Complete results are then stored in the output folder. ComfyUI starts at the
    first use, which raises SettingError and MissingExtraError as `bootstrap.start` does.
    """

    run_config: RunConfig
    folder: Path
    custom_nodes: Sequence[str] = ()

    name = "comfyui"

    @property
    def table(self) -> NodeTable:
        """Return ComfyUI's nodes and this package's."""
        self._start()
        return NodeTable(*bootstrap.known_nodes())

    @property
    def models_folder(self) -> str:
        """Return the first named models folder, else ComfyUI's own."""
        return str(next(iter(self.run_config.named_models()), self.folder / "models"))

    def versions(self) -> dict[str, str]:
        """Return ComfyUI's version."""
        return {"comfyui": bootstrap.version()}

    def model_file(self, folder: str, name: str) -> Path | None:
        """Return the file that ComfyUI finds. Diffusers folders and the embedded model are found by this package."""
        path = bootstrap.model_file(folder, name)
        with contextlib.suppress(CheckpointError):
            return path or (get_runtime().library.find(name) if folder == "checkpoints" else None)
        return None

    def check(self, graph: Graph) -> Validation:
        """Validate a graph with ComfyUI's own validation. See `GraphEngine.check`."""
        self._start()
        with unfinished_folder(private_folder("scratch")) as scratch, self._comfyui_in(scratch, graph):
            validation = self._validate(graph, str(uuid.uuid4()))
            if validation.node_errors:
                raise graph_error(None, validation.node_errors, graph.prompt, self.table)
        return validation

    def run(self, graph: Graph, on_event: OnEvent = ignore_events) -> Report:
        """Validate and run. See `GraphEngine.run`. Raise SettingError if the output folder is not writable."""
        self._start()
        result = Path(self.run_config.output_folder) / "result"
        notes: list[RunWarning] = []
        on_note = chain_callbacks(notes.append, self.run_config.on_note)
        with scratch_folder_beside(result) as scratch, self._comfyui_in(scratch, graph, on_note) as copied:
            prompt_id = str(uuid.uuid4())
            validation = self._validate(graph, prompt_id)
            ui, results = self._run(validation, prompt_id, graph, scratch, on_event)
            unreported = replace(results, fill=filled_from(scratch, link_or_copy))  # nodes no longer write there
            output = scratch / "output"
            for file in sorted(path for path in output.rglob("*") if path.is_file()):  # such as models
                if file not in copied:
                    unreported.store_file("output", file.parent.relative_to(output).as_posix(), file.name)
            node_errors = validation.node_errors
            faults = str(graph_error(None, node_errors, graph.prompt, self.table)) if node_errors else ""
        return Report(results.files, ui, faults, node_errors, notes)

    def _run(
        self, validation: Validation, prompt_id: str, graph: Graph, scratch: Path, on_event: OnEvent
    ) -> tuple[dict[str, Any], Results]:
        from .executor import ComfyRunner

        def emit_with_files(event: str, data: dict[str, Any]) -> None:
            on_event(event, results.with_files(data) if event == "executed" else data)

        results = Results.of_run(self.run_config.runtime(), filled_from(scratch))
        on_event("queued", {})
        with stopping_at_signals(ComfyRunner.interrupt):
            outcome = ComfyRunner().execute(
                validation.prompt, prompt_id, validation.outputs, graph.extra_data, emit_with_files
            )
        if outcome.event == "execution_interrupted":
            raise Interrupted("the run was stopped")
        if outcome.event == "execution_error":
            raise node_error(outcome.data, graph.prompt)
        return {node: results.renamed(ui) for node, ui in outcome.ui.items()}, results

    def _validate(self, graph: Graph, prompt_id: str) -> Validation:
        """Validate with ComfyUI. Outputs have the order of the file. Raise GraphError if nothing can run."""
        from .executor import ComfyRunner

        raise_if_misshapen(graph.prompt)
        prompt: Prompt = {node_id: {"inputs": {}, **node} for node_id, node in copy.deepcopy(graph.prompt).items()}
        ok, error, outputs, node_errors = ComfyRunner().validate(prompt, prompt_id)
        if not ok:
            raise graph_error(error or {}, node_errors, graph.prompt, self.table)
        check_memory_budget(prompt, outputs, self.run_config.runtime())
        ordered = [node_id for node_id in prompt if node_id in outputs]
        return Validation(True, None, ordered, normalize_node_errors(node_errors), prompt)

    def _start(self) -> None:
        flags = self._flags()
        self._select_gpu()
        with _quiet_stdout():
            bootstrap.start(bootstrap.Checkout(self.folder, flags, tuple(self.custom_nodes)))
            for root in self.run_config.named_models():
                bootstrap.add_models(root)

    def _select_gpu(self) -> None:
        """Make a named GPU the current one of this thread, on which ComfyUI computes. Only main.py reads its flag."""
        if self.run_config.device.startswith("cuda:"):
            import torch

            torch.cuda.set_device(torch.device(self.run_config.device))

    def _flags(self) -> tuple[str, ...]:
        """Return the settings as ComfyUI's command-line flags. Raise SettingError for a missing device."""
        bootstrap.find(self.folder)
        device, flags = self.run_config.device, []
        if device != "auto":
            self.run_config.runtime().device()
        if device == "cpu" or (device == "auto" and not _has_accelerator()):
            flags.append("--cpu")
        elif device.startswith("cuda:"):
            flags += ["--cuda-device", device.removeprefix("cuda:")]
        flags += {
            "fp32": ["--force-fp32"],
            "fp16": ["--force-fp16"],
            "bf16": ["--bf16-unet", "--bf16-vae"],
        }.get(self.run_config.precision, [])
        return (*flags, *self._memory_flags("--cpu" in flags))

    def _memory_flags(self, on_cpu: bool) -> list[str]:
        if self.run_config.vram is None:
            return []
        import torch

        if on_cpu or not torch.cuda.is_available():
            logger.warning("`vram` has no effect here: ComfyUI can limit only the memory of a graphics card")
            return []
        total = torch.cuda.get_device_properties(self.run_config.runtime().device()).total_memory
        return ["--reserve-vram", f"{max(0, total - self.run_config.vram) / GIB:.3f}"]

    @contextlib.contextmanager
    def _comfyui_in(self, scratch: Path, graph: Graph, on_note: OnNote = ignore_note) -> Iterator[set[Path]]:
        """Set ComfyUI's folders and the runtime inside the `with`. Yield the earlier results copied to `scratch`."""
        from ....nodes.comfy.runtime import ComfyRuntime

        runtime = self.run_config.runtime()
        self._select_gpu()
        for name in ("input", "output", "temp"):
            (scratch / name).mkdir()
        copied = bring_outputs(graph.prompt, runtime.output_folder, scratch / "output")
        input_folder = runtime.input_folder if runtime.input_folder.is_dir() else scratch / "input"
        comfy_runtime = use_runtime(ComfyRuntime(self.run_config.precision, self.run_config.on_oom, on_note))
        with bootstrap.folders(input_folder, scratch / "output", scratch / "temp"), comfy_runtime, _quiet_stdout():
            yield copied


def _quiet_stdout() -> contextlib.AbstractContextManager[Any]:
    """Redirect to stderr what nodes print: stdout is for results."""
    return contextlib.redirect_stdout(sys.stderr)


def _has_accelerator() -> bool:
    """Return True if torch has a device besides the CPU that ComfyUI would use."""
    import torch

    accelerator = getattr(torch, "accelerator", None)  # since torch 2.6
    if accelerator is not None:
        return accelerator.is_available()
    return torch.cuda.is_available() or torch.backends.mps.is_available()


def filled_from(scratch: Path, transfer: Callable[[Path, Path], Any] = shutil.copyfile) -> Fill:
    """Return a `Fill` that takes files from the folder where nodes wrote them.

    Args:
        transfer: Must copy while nodes run: a node that reopens its file must not change a stored result.
    """
    return lambda kind, subfolder, name, target: transfer(place_inside(scratch / kind, subfolder, name), target)


def bring_outputs(prompt: Prompt, output_folder: Path, scratch: Path) -> set[Path]:
    """Copy the earlier results that a graph reads, as in "x.png [output]", to the folder where nodes look for them."""
    copied = set()
    inputs = [node.get("inputs") for node in prompt.values() if isinstance(node, dict)]
    values = [value for each in inputs if isinstance(each, dict) for value in each.values()]
    for value in values:
        if isinstance(value, str) and value.endswith(" [output]"):
            source = file_inside(output_folder, value.removesuffix(" [output]"))
            if source is not None:
                target = scratch / source.relative_to(output_folder)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)
                copied.add(target)
    return copied
