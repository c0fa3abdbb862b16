"""The ComfyUI engine: graphs on ComfyUI's own executor and nodes, in this process, with no server and no open port."""

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

from ....svd_core.errors import CheckpointError, GraphError, Interrupted
from ....svd_core.runtime.runtime import OnNote, RunWarning, chain_callbacks, get_runtime, ignore_note, use_runtime
from ....svd_core.utils.atomic_files import unfinished_folder
from ....svd_core.utils.user_tempdir import private_folder
from ...graph import NodeTable, OnEvent, Prompt, Validation, explain
from ...graph.validate import shape_fault
from ..embedded.memory_estimate import check_memory_budget
from ..graphs import Graph, Report, ignore_events
from ..remote.errors import node_failure, normalize_node_errors, refusal
from ..results import Fill, Results, file_inside, link_or_copy, place_inside
from ..run_config import RunConfig
from ..signals import stopping_at_signals
from . import bootstrap

logger = logging.getLogger(__name__)

GIB = 2**30
_BESIDE = "result"


@dataclass(frozen=True)
class ComfyUIEngine:
    """A `GraphEngine` on the ComfyUI in `folder`: its core nodes, ours, and the custom nodes that are named.

    Nodes write into a folder that is gone afterwards; from there complete results are put into the output folder.
    ComfyUI starts when something is first asked: SettingError and MissingExtraError as of `bootstrap.start`.
    """

    run_config: RunConfig
    folder: Path
    custom_nodes: Sequence[str] = ()

    name = "comfyui"

    @property
    def table(self) -> NodeTable:
        """ComfyUI's nodes and ours."""
        self._start()
        return NodeTable(*bootstrap.known_nodes())

    @property
    def models_folder(self) -> str:
        """The models folder that was named, else ComfyUI's own."""
        return str(next(iter(self.run_config.named_models()), self.folder / "models"))

    @property
    def input_folder(self) -> str:
        """The input folder."""
        return str(self.run_config.input_folder)

    def versions(self) -> dict[str, str]:
        """ComfyUI's own."""
        return {"comfyui": bootstrap.version()}

    def model_file(self, folder: str, name: str) -> Path | None:
        """What ComfyUI finds; a diffusers folder and the built-in model are found by us, as our nodes do."""
        found = bootstrap.model_file(folder, name)
        with contextlib.suppress(CheckpointError):
            return found or (get_runtime().library.find(name) if folder == "checkpoints" else None)
        return None

    def check(self, graph: Graph) -> Validation:
        """What ComfyUI's own validation says. See `GraphEngine.check`."""
        self._start()
        with unfinished_folder(private_folder("scratch")) as scratch, self._around(scratch, graph):
            checked = self._validated(graph, str(uuid.uuid4()))
            if checked.node_errors:
                raise refusal(None, checked.node_errors, graph.prompt, self.table)
        return checked

    def run(self, graph: Graph, on_event: OnEvent | None = None) -> Report:
        """Validate and run. See `GraphEngine.run`; SettingError when the output folder cannot be written."""
        from ....svd_core.utils.output_files import scratch_folder_beside

        self._start()
        output_folder = Path(self.run_config.output_folder)
        notes: list[RunWarning] = []
        told = chain_callbacks(notes.append, self.run_config.on_note)
        with scratch_folder_beside(output_folder / _BESIDE) as scratch, self._around(scratch, graph, told) as brought:
            prompt_id = str(uuid.uuid4())
            checked = self._validated(graph, prompt_id)
            ui, results = self._run(checked, prompt_id, graph, scratch, on_event or ignore_events)
            unsaid = replace(results, fill=filled_from(scratch, link_or_copy))  # nobody writes there any more
            for file in _files_below(scratch / "output"):  # some nodes save models and say nothing of it
                if file not in brought:
                    unsaid.keep(_as_told(file.relative_to(scratch / "output")))
            faults = ""
            if checked.node_errors:
                faults = str(refusal(None, checked.node_errors, graph.prompt, self.table))
        return Report(results.files, ui, faults, checked.node_errors, notes)

    def _run(
        self, checked: Validation, prompt_id: str, graph: Graph, scratch: Path, on_event: OnEvent
    ) -> tuple[dict[str, Any], Results]:
        from .executor import ComfyRunner

        def told(event: str, data: dict[str, Any]) -> None:
            if event == "executed":
                data = {**data, "files": results.keep(data.get("output")), "output": results.named(data.get("output"))}
            on_event(event, data)

        runtime = self.run_config.runtime()
        results = Results({"output": runtime.output_folder, "temp": runtime.folder("temp")}, filled_from(scratch))
        extra = {"extra_pnginfo": {"workflow": graph.workflow}} if graph.workflow else {}
        on_event("queued", {})
        with stopping_at_signals(ComfyRunner.interrupt):
            ran = ComfyRunner().execute(checked.prompt, prompt_id, checked.outputs, extra, told)
        if ran.event == "execution_interrupted":
            raise Interrupted("the run was stopped")
        if ran.event == "execution_error":
            raise node_failure(ran.data, graph.prompt)
        return {node: results.named(answer) for node, answer in ran.ui.items()}, results

    def _validated(self, graph: Graph, prompt_id: str) -> Validation:
        """ComfyUI's answer, with the outputs in the order of the file. Raises GraphError when nothing can run."""
        from .executor import ComfyRunner

        if fault := shape_fault(graph.prompt):
            raise GraphError(explain(fault[0], {}, {}), code=f"graph.{fault[0]['type']}")
        prompt: Prompt = {node_id: {"inputs": {}, **node} for node_id, node in copy.deepcopy(graph.prompt).items()}
        ok, error, outputs, node_errors = ComfyRunner().validate(prompt, prompt_id)
        if not ok:
            raise refusal(error or {}, node_errors, graph.prompt, self.table)
        check_memory_budget(prompt, outputs, self.run_config.runtime())
        return Validation(
            True, None, [each for each in prompt if each in outputs], normalize_node_errors(node_errors), prompt
        )

    def _start(self) -> None:
        with _quiet_stdout():
            bootstrap.start(bootstrap.Checkout(self.folder, self._flags(), tuple(self.custom_nodes)))
            for root in self.run_config.named_models():
                bootstrap.add_models(root)

    def _flags(self) -> tuple[str, ...]:
        """Our options as ComfyUI's own. Raises SettingError for a device that is not there."""
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
            logger.warning("--vram limits a graphics card's memory; ComfyUI has no such limit for this device")
            return []
        total = torch.cuda.get_device_properties(0).total_memory
        return ["--reserve-vram", f"{max(0, total - self.run_config.vram) / GIB:.3f}"]

    @contextlib.contextmanager
    def _around(self, scratch: Path, graph: Graph, on_note: OnNote = ignore_note) -> Iterator[set[Path]]:
        """ComfyUI's folders, our host and a quiet stdout inside the `with`; gives the earlier results put there."""
        from ....nodes.comfy.runtime import ComfyRuntime

        runtime = self.run_config.runtime()
        for name in ("input", "output", "temp"):
            (scratch / name).mkdir()
        brought = bring_outputs(graph.prompt, runtime.output_folder, scratch / "output")
        given = runtime.input_folder if runtime.input_folder.is_dir() else scratch / "input"
        ours = use_runtime(ComfyRuntime(self.run_config.precision, self.run_config.on_oom, on_note))
        with bootstrap.folders(given, scratch / "output", scratch / "temp"), ours, _quiet_stdout():
            yield brought


def _quiet_stdout() -> contextlib.AbstractContextManager[Any]:
    """What nodes print goes to stderr: results are all that stdout has."""
    return contextlib.redirect_stdout(sys.stderr)


def _has_accelerator() -> bool:
    """Whether torch has a device that ComfyUI would compute on."""
    import torch

    accelerator = getattr(torch, "accelerator", None)  # since torch 2.6
    if accelerator is not None:
        return accelerator.is_available()
    return torch.cuda.is_available() or torch.backends.mps.is_available()


def _files_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _as_told(file: Path) -> dict[str, Any]:
    """A file as an output node would tell of it."""
    return {"files": [{"filename": file.name, "subfolder": file.parent.as_posix(), "type": "output"}]}


def filled_from(scratch: Path, bring: Callable[[Path, Path], Any] = shutil.copyfile) -> Fill:
    """Result files from where nodes wrote them.

    bring  must copy while nodes run: one that opens its file again must not change what was kept
    """
    return lambda kind, subfolder, name, target: bring(place_inside(scratch / kind, subfolder, name), target)


def bring_outputs(prompt: Prompt, output_folder: Path, scratch: Path) -> set[Path]:
    """Copy the earlier results that a graph reads, as in "x.png [output]", to where its nodes will look for them."""
    brought = set()
    for node in prompt.values():
        inputs = node.get("inputs") if isinstance(node, dict) else None
        for value in inputs.values() if isinstance(inputs, dict) else ():
            if isinstance(value, str) and value.endswith(" [output]"):
                source = file_inside(output_folder, value.removesuffix(" [output]"))
                target = None if source is None else scratch / source.relative_to(output_folder)
                if source is not None and target is not None and target not in brought:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(source, target)
                    brought.add(target)
    return brought
