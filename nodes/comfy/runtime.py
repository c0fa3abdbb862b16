"""ComfyUI as the host: its devices and memory, its model and result folders, its progress bar and Cancel button.

ComfyUI's modules are looked up at each call: the program rebinds some of their names while it starts, and this file
must be importable by tests that only read it.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...svd_core.checkpoints.library import ModelLibrary
from ...svd_core.runtime.runtime import Advance, After, Folder, OnNote, OnOom, RunWarning, ignore_note

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ComfyRuntime:
    """What a stage needs, from the running ComfyUI. Has no state: every answer is ComfyUI's answer of that moment.

    asked_precision  what the user asked of a headless run; "auto": what ComfyUI was started with
    on_oom           likewise
    on_note          keeps the notes of a headless run, which are logged as well
    """

    asked_precision: str = "auto"
    on_oom: OnOom = "strict"
    on_note: OnNote = ignore_note

    @property
    def library(self) -> ModelLibrary:
        """ComfyUI's `checkpoints` and `diffusers` folders, those of extra_model_paths.yaml included."""
        import folder_paths

        return ModelLibrary(
            checkpoint_folders=tuple(Path(folder) for folder in folder_paths.get_folder_paths("checkpoints")),
            diffusers_folders=tuple(Path(folder) for folder in folder_paths.get_folder_paths("diffusers")),
        )

    @property
    def background(self) -> None:
        """ComfyUI's own LoadImage reads pictures, and leaves what is under their transparency."""
        return None

    @property
    def precision(self) -> str:
        """What was asked; fp32 or fp16 when ComfyUI was started with --force-fp32 or --force-fp16, else auto."""
        if self.asked_precision != "auto":
            return self.asked_precision
        from comfy.cli_args import args

        if args.force_fp32:
            return "fp32"
        return "fp16" if args.force_fp16 else "auto"

    def device(self) -> torch.device:
        """The device ComfyUI computes on."""
        return _management().get_torch_device()

    @contextlib.contextmanager
    def on_device(self, part: Any, need: int = 0, after: After = "default") -> Iterator[torch.device]:
        """Have ComfyUI load `part`, ours or its own, with `need` bytes free beside it.

        Other models leave the card as far as that asks for. Afterwards `part` is one of the models that ComfyUI keeps
        on the card until it needs the room, unless it is to leave. When memory runs out all of them leave, as they do
        where ComfyUI itself meets that.
        """
        from ...svd_core.runtime.device_errors import is_memory_error
        from . import model_patchers, parts

        own = isinstance(part, (parts.CoreVae, parts.CoreClipVision))
        patcher = part.patcher if own else model_patchers.patcher_of(part)
        model_patchers.load_whole(patcher, need)
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
    def reserve_memory(self, part: Any, need: int) -> Iterator[torch.device]:
        """The device, after ComfyUI has taken `part` off it and made `need` bytes free beside what it holds back."""
        from . import model_patchers

        device, need = self.device(), need + _management().extra_reserved_memory()
        model_patchers.evict(model_patchers.patcher_of(part))
        _management().free_memory(need, device)
        yield device

    def capacity(self, part: Any) -> int:
        """What is free and what ComfyUI's models take, which leave when the room is wanted, but what it holds back."""
        management, device = _management(), self.device()
        loaded = [each for each in management.current_loaded_models if each.device == device]
        taken = sum(each.model_loaded_memory() for each in loaded)
        return int(management.get_free_memory(device) + taken - management.extra_reserved_memory())

    def free_memory(self, device: torch.device) -> int:
        """Bytes that are free on the device, torch's own unused cache included."""
        return int(_management().get_free_memory(device))

    @contextlib.contextmanager
    def progress(self, stage: str, total: int, unit: str) -> Iterator[Advance]:
        """ComfyUI's green bar on the running node. Each call raises ComfyUI's own exception after Cancel.

        The bar has no place for the names of stage and unit: the page shows the node.
        """
        import comfy.utils

        bar = comfy.utils.ProgressBar(total)
        shown = 0

        def advance(done: int) -> None:
            nonlocal shown
            _management().throw_exception_if_processing_interrupted()
            if done != shown:
                bar.update_absolute(done, total)
            shown = done

        yield advance

    def show(self, denoised: torch.Tensor) -> None:
        """All frames on the node, as the page's preview module plays them."""
        from . import preview

        preview.send(denoised)

    def warn(self, warning: RunWarning) -> None:
        """Log the warning and pass it on."""
        logger.warning("%s", warning.text)
        self.on_note(warning)

    def release(self) -> None:
        """Empty the caches as ComfyUI does."""
        _management().soft_empty_cache()

    def folder(self, kind: Folder) -> Path:
        """ComfyUI's input, output or temp folder."""
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
