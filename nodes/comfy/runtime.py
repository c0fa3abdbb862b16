"""The runtime inside ComfyUI: its devices, memory, model and result folders, progress bar and Cancel button.

ComfyUI's modules are imported at each call, because it rebinds some of their names while it starts.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...svd_core.checkpoints.library import ModelLibrary
from ...svd_core.runtime.residency import After
from ...svd_core.runtime.runtime import Advance, Folder, OnNote, OnOom, RunWarning, ignore_note

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ComfyRuntime:
    """Implements `svd_core.runtime.runtime.Runtime` with the running ComfyUI. Has no state of its own.

    Attributes:
        requested_precision: Precision of a headless run. "auto" means that of ComfyUI's own flags.
        on_oom: Handling of memory shortage in a headless run.
        on_note: Receives the warnings of a headless run, in addition to the log.
    """

    requested_precision: str = "auto"
    on_oom: OnOom = "strict"
    owns_process = False
    on_note: OnNote = ignore_note

    @property
    def library(self) -> ModelLibrary:
        """Models in ComfyUI's `checkpoints` and `diffusers` folders, including those of extra_model_paths.yaml."""
        import folder_paths

        return ModelLibrary(
            checkpoint_folders=tuple(Path(folder) for folder in folder_paths.get_folder_paths("checkpoints")),
            diffusers_folders=tuple(Path(folder) for folder in folder_paths.get_folder_paths("diffusers")),
        )

    @property
    def background(self) -> None:
        """None: ComfyUI's own LoadImage loads images and keeps the color of transparent pixels."""
        return None

    @property
    def precision(self) -> str:
        """The requested precision, else fp32 or fp16 if ComfyUI runs with --force-fp32 or --force-fp16, else auto."""
        if self.requested_precision != "auto":
            return self.requested_precision
        from comfy.cli_args import args

        if args.force_fp32:
            return "fp32"
        return "fp16" if args.force_fp16 else "auto"

    def device(self) -> torch.device:
        """Return the device ComfyUI computes on."""
        return _management().get_torch_device()

    @contextlib.contextmanager
    def on_device(self, component: Any, need: int = 0, after: After = "default") -> Iterator[torch.device]:
        """Have ComfyUI load a component and free `need` more bytes. Other models are evicted as necessary.

        Afterwards ComfyUI keeps the component on the device until it needs the memory, unless `after` is "offload". If
        memory runs out all models are unloaded, as ComfyUI does itself.
        """
        from ...svd_core.runtime.device_errors import is_memory_error
        from . import model_patchers, parts

        is_core = isinstance(component, (parts.CoreVae, parts.CoreClipVision))
        patcher = component.patcher if is_core else model_patchers.patcher_of(component)
        model_patchers.load_all(patcher, need)
        try:
            yield patcher.load_device
        except (MemoryError, RuntimeError) as error:
            if is_memory_error(error):
                _management().unload_all_models()
            raise
        finally:
            if after == "offload":
                model_patchers.evict(patcher)

    @contextlib.contextmanager
    def reserve_memory(self, component: Any, need: int) -> Iterator[torch.device]:
        """Yield the device after ComfyUI moved `component` off it and freed `need` bytes in addition to its reserve."""
        from . import model_patchers

        device, need = self.device(), need + _management().extra_reserved_memory()
        model_patchers.evict(model_patchers.patcher_of(component))
        _management().free_memory(need, device)
        yield device

    def capacity(self, component: Any) -> int:
        """Return free bytes and those of evictable models, without ComfyUI's reserve."""
        management, device = _management(), self.device()
        loaded = [each for each in management.current_loaded_models if each.device == device]
        evictable = sum(each.model_loaded_memory() for each in loaded)
        return int(management.get_free_memory(device) + evictable - management.extra_reserved_memory())

    def free_memory(self, device: torch.device) -> int:
        """Return free bytes on the device, including torch's unused cache."""
        return int(_management().get_free_memory(device))

    @contextlib.contextmanager
    def progress(self, stage: str, total: int, unit: str) -> Iterator[Advance]:
        """Show ComfyUI's progress bar on the running node. Each call raises ComfyUI's exception after Cancel.

        The names of stage and unit are not shown: the page shows the node.
        """
        import comfy.utils

        bar = comfy.utils.ProgressBar(total)
        last = 0

        def advance(done: int) -> None:
            nonlocal last
            _management().throw_exception_if_processing_interrupted()
            if done != last:
                bar.update_absolute(done, total)
            last = done

        yield advance

    def show(self, denoised: torch.Tensor) -> None:
        """Show all frames on the node as a preview."""
        from . import preview

        preview.send(denoised)

    def warn(self, warning: RunWarning) -> None:
        """Log the warning and pass it on."""
        logger.warning("%s", warning.text)
        self.on_note(warning)

    def release(self) -> None:
        """Empty torch's caches as ComfyUI does."""
        _management().soft_empty_cache()

    def folder(self, kind: Folder) -> Path:
        """Return ComfyUI's input, output or temp folder."""
        import folder_paths

        folders = {
            "input": folder_paths.get_input_directory,
            "output": folder_paths.get_output_directory,
            "temp": folder_paths.get_temp_directory,
        }
        return Path(folders[kind]())


def _management() -> Any:
    import comfy.model_management

    return comfy.model_management
