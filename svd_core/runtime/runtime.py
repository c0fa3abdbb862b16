"""What a stage needs from the program it runs in: a device, memory, progress, folders, the list of models.

A door (`__init__.py` inside ComfyUI, `headless/` elsewhere) sets the process's default once; a run or a test may put
another over it with `use_runtime`. ComfyUI runs nodes on another thread, which inherits no context: the default is a
plain
global, and only the override is a ContextVar.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from ..checkpoints.library import ModelLibrary
from ..errors import SettingError
from ..media.alpha_compositing import Background
from ..utils.progress import Advance
from ..utils.user_tempdir import temp_folder
from ..utils.warnings import RunWarning

if TYPE_CHECKING:
    import torch

    from ..models.components import ModelComponent

logger = logging.getLogger(__name__)

Folder = Literal["input", "output", "temp"]
OnOom = Literal["strict", "adapt"]
"""When memory runs out where windows are decoded. strict: that is an error; adapt: smaller windows, which are other
pixels, and the run's record says so."""
After = Literal["default", "keep", "offload"]
"""Where a part's weights are when the work is done: as is the host's custom, still on the device, or off it."""


OnNote = Callable[[RunWarning], None]


def ignore_note(note: RunWarning) -> None:
    """Keeps nothing."""


def chain_callbacks(first: OnNote, second: OnNote) -> OnNote:
    """Tells two."""

    def tell(note: RunWarning) -> None:
        first(note)
        second(note)

    return tell


class Runtime(Protocol):
    """The program around the stages. `LocalRuntime` is ours; `nodes/comfy/runtime.py` has ComfyUI's."""

    @property
    def library(self) -> ModelLibrary:
        """The checkpoints that the user has."""
        ...

    @property
    def precision(self) -> str:
        """What precision `auto` means when the user said so for the whole run: auto, fp16, bf16 or fp32."""
        ...

    @property
    def background(self) -> Background | None:
        """What transparent parts of pictures are put on, where the program loads them by our nodes; None: not said."""
        ...

    def device(self) -> torch.device:
        """Where stages compute."""
        ...

    def on_device(
        self, part: Any, need: int = 0, after: After = "default"
    ) -> contextlib.AbstractContextManager[torch.device]:
        """Have `part` on the compute device inside the `with`.

        part   of ours (checkpoint/parts.py), or of the program's own
        need   bytes that the work will take beside the weights, to make room for
        after  where it lives afterwards
        """
        ...

    def beside(self, part: Any, need: int) -> contextlib.AbstractContextManager[torch.device]:
        """The compute device with `need` bytes free and `part` off it: for work that brings the weights itself."""
        ...

    def free_memory(self, device: torch.device) -> int:
        """Bytes that are free on `device` now."""
        ...

    def capacity(self, part: Any) -> int:
        """Bytes that the compute device could give a stage with `part`, whose weights are to be counted among them."""
        ...

    def progress(self, stage: str, total: int, unit: str) -> contextlib.AbstractContextManager[Advance]:
        """Show `total` units of `stage` going by. Inside the `with`, call what it gives with the units done."""
        ...

    def show(self, denoised: torch.Tensor) -> None:
        """Let the user see the video that is being sampled, (F, 4, h, w) scaled latents, if the program can."""
        ...

    def warn(self, warning: RunWarning) -> None:
        """Tell the user, and whoever keeps the record of the run."""
        ...

    @property
    def on_oom(self) -> OnOom:
        """What the user chose for when memory runs out."""
        ...

    def release(self) -> None:
        """Give back memory that is kept for reuse and that nothing uses."""
        ...

    def folder(self, kind: Folder) -> Path:
        """The folder for input files, results, or previews. It may not exist yet."""
        ...


Reporter = Callable[[str, int, int, str], None]
"""Called with (stage, units done, units in all, name of the unit); first with 0 done."""


def ignore_progress(stage: str, done: int, total: int, unit: str) -> None:
    """A reporter that shows nothing."""


@dataclass(frozen=True)
class LocalRuntime:
    """No ComfyUI: torch's devices, plain folders, a reporter for progress.

    temp_folder  None: a folder of ours where the system keeps temporary files, looked up when it is needed
    vram         bytes of the device's memory to get by with; None: all that is free
    background   what transparent parts of pictures are put on, see `image_io.load_image`
    on_note      keeps the notes of a run, which are logged as well

    Raises SettingError for another `on_oom` than strict and adapt.
    """

    library: ModelLibrary = field(default_factory=ModelLibrary)
    device_name: str = "auto"
    precision: str = "auto"
    input_folder: Path = Path("input")
    output_folder: Path = Path("output")
    temp_folder: Path | None = None
    reporter: Reporter = ignore_progress
    vram: int | None = None
    background: Background | None = None
    on_oom: OnOom = "strict"
    on_note: OnNote = ignore_note

    def __post_init__(self) -> None:
        if self.on_oom not in ("strict", "adapt"):
            raise SettingError(f'on_oom must be strict or adapt, got "{self.on_oom}"')

    def device(self) -> torch.device:
        """`device_name`, or for `auto` the first of CUDA, MPS and CPU that is there.

        Raises SettingError for a name that torch does not know or a device that is not there.
        """
        import torch

        if self.device_name == "auto":
            if torch.cuda.is_available():
                return torch.device("cuda")
            return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
        try:
            device = torch.device(self.device_name)
            torch.empty(1, device=device)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            first_line = str(error).split("\n")[0].rstrip(".")
            reason = "torch knows no such device" if "Expected one of" in first_line else first_line[:120]
            raise SettingError(
                f'device "{self.device_name}" cannot be used: {reason}. Use auto, cpu, cuda, cuda:1 or mps.'
            ) from error
        if device.type == "meta":
            raise SettingError('device "meta" holds no numbers; use auto, cpu, cuda, cuda:1 or mps.')
        return device

    @contextlib.contextmanager
    def on_device(self, part: ModelComponent, need: int = 0, after: After = "default") -> Iterator[torch.device]:
        """Move the part to the device, and back to the CPU afterwards, unless it is to stay and the work succeeded."""
        device, stays = self.device(), False
        try:
            part.module.to(device)
            yield device
            stays = after == "keep"
        finally:
            if not stays:
                part.module.to("cpu")

    @contextlib.contextmanager
    def beside(self, part: ModelComponent, need: int) -> Iterator[torch.device]:
        """The device, with the part on the CPU."""
        part.module.to("cpu")
        yield self.device()

    def free_memory(self, device: torch.device) -> int:
        """Free bytes on the card, or what the operating system calls available for the CPU; `vram` limits it."""
        import psutil
        import torch

        if device.type == "cuda":
            allocated = torch.cuda.memory_allocated(device)
            cached = torch.cuda.memory_reserved(device) - allocated
            free = torch.cuda.mem_get_info(device)[0] + cached
        else:
            free, allocated = psutil.virtual_memory().available, 0
        return free if self.vram is None else max(0, min(free, self.vram - allocated))

    def capacity(self, part: ModelComponent) -> int:
        """What is free, and what the part takes if it stayed on the device."""
        device = self.device()
        taken = 0
        if device.type != "cpu":
            taken = sum(weight.nbytes for weight in part.module.parameters() if weight.device.type == device.type)
        return self.free_memory(device) + taken

    @contextlib.contextmanager
    def progress(self, stage: str, total: int, unit: str) -> Iterator[Advance]:
        """Tell the reporter. Stopping is Python's KeyboardInterrupt here."""
        self.reporter(stage, 0, total, unit)
        told = 0

        def advance(done: int) -> None:
            nonlocal told
            if done != told:
                self.reporter(stage, done, total, unit)
            told = done

        yield advance

    def show(self, denoised: torch.Tensor) -> None:
        """There is no page to show it on."""

    def warn(self, warning: RunWarning) -> None:
        """Log it, and hand it on."""
        logger.warning("%s", warning.text)
        self.on_note(warning)

    def release(self) -> None:
        """Empty the cache of torch's allocator on the device."""
        import torch

        device = self.device()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        elif device.type == "mps":
            torch.mps.empty_cache()

    def folder(self, kind: Folder) -> Path:
        """The folder given at construction."""
        if kind == "temp":
            return self.temp_folder or temp_folder()
        return {"input": self.input_folder, "output": self.output_folder}[kind]


_default: Runtime = LocalRuntime()

_override: ContextVar[Any] = ContextVar("svd_stages_host", default=None)


def set_runtime(runtime: Runtime) -> None:
    """Choose the process's host. Called once, by a door."""
    global _default
    _default = runtime


def get_runtime() -> Runtime:
    """The host of this run."""
    return _override.get() or _default


def warn(code: str, text: str) -> None:
    """Tell the host of this run what its user should know and its record should keep."""
    get_runtime().warn(RunWarning(code, text))


def forward_warnings(runtime: Runtime, run_warnings: Iterable[RunWarning]) -> None:
    """Pass warnings that a function returned to a runtime."""
    for warning in run_warnings:
        runtime.warn(warning)


@contextlib.contextmanager
def use_runtime(runtime: Runtime) -> Iterator[Runtime]:
    """Put `host` over the default inside the `with`, for this thread and task."""
    token = _override.set(runtime)
    try:
        yield runtime
    finally:
        _override.reset(token)
