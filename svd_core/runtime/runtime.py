"""The interface to the surrounding program: device, memory, progress, warnings, folders, list of models.

A runtime is passed to each stage. One process default remains, because ComfyUI runs nodes on its own threads, which
inherit no context: an entry point sets it, and a run or a test overrides it with `use_runtime`.
"""

from __future__ import annotations

import contextlib
import logging
import math
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
from . import residency
from .memory import format_bytes
from .residency import After

if TYPE_CHECKING:
    import torch

    from ..models.components import ModelComponent

logger = logging.getLogger(__name__)

Folder = Literal["input", "output", "temp"]
OnOom = Literal["strict", "adapt"]
"""If memory runs out in windowed decoding. strict: raise an error; adapt: use smaller windows, which give other pixels,
and warn."""
WORKSPACE_BYTES = 512 * 2**20
"""Reserve on a GPU: workspaces of cuBLAS and cuDNN, and memory that is free in pieces too small to use."""

OnNote = Callable[[RunWarning], None]


def ignore_note(note: RunWarning) -> None:
    """Do nothing."""


def chain_callbacks(first: OnNote, second: OnNote) -> OnNote:
    """Return a callback that calls both."""

    def call_both(note: RunWarning) -> None:
        first(note)
        second(note)

    return call_both


class Runtime(Protocol):
    """The surrounding program: device, memory, progress, warnings, folders, list of models.

    `LocalRuntime` is the one without ComfyUI, `nodes.comfy.runtime.ComfyRuntime` the one inside it.
    """

    @property
    def library(self) -> ModelLibrary:
        """The user's checkpoints."""
        ...

    @property
    def precision(self) -> str:
        """The precision that `auto` stands for in this run: auto, fp16, bf16 or fp32."""
        ...

    @property
    def background(self) -> Background | None:
        """Color behind transparent parts of images that our nodes load. None: not set."""
        ...

    def device(self) -> torch.device:
        """Return the device on which stages compute."""
        ...

    def on_device(
        self, component: Any, need: int = 0, after: After = "default"
    ) -> contextlib.AbstractContextManager[torch.device]:
        """Keep a component on the compute device inside the `with`.

        Args:
            component: One of models/components.py, or the surrounding program's own.
            need: Bytes that the work needs in addition to the weights. The runtime frees them.
            after: Where the weights are afterwards.
        """
        ...

    def reserve_memory(self, component: Any, need: int) -> contextlib.AbstractContextManager[torch.device]:
        """Keep a component off the compute device inside the `with`, and `need` bytes free: for streamed weights."""
        ...

    def free_memory(self, device: torch.device) -> int:
        """Return the bytes that are free on a device now."""
        ...

    def capacity(self, component: Any) -> int:
        """Return the bytes that a stage could use on the compute device, those of the component's weights included."""
        ...

    def progress(self, stage: str, total: int, unit: str) -> contextlib.AbstractContextManager[Advance]:
        """Show the progress of a stage of `total` units. Inside the `with`, call the result with the units done."""
        ...

    def show(self, denoised: torch.Tensor) -> None:
        """Show a preview of the video being sampled, (F, 4, h, w) scaled latents, if the program can."""
        ...

    def warn(self, warning: RunWarning) -> None:
        """Show a warning to the user, and record it."""
        ...

    @property
    def on_oom(self) -> OnOom:
        """The user's choice for a memory shortage in windowed decoding."""
        ...

    @property
    def owns_process(self) -> bool:
        """True if this process does nothing else, so that torch's number of threads may be changed for a while."""
        ...

    def release(self) -> None:
        """Free cached memory that nothing uses."""
        ...

    def folder(self, kind: Folder) -> Path:
        """Return the folder for input files, results or previews. It may not exist yet."""
        ...


Reporter = Callable[[str, int, int, str], None]
"""Called with (stage, units done, units in all, name of the unit); first with 0 done."""


def ignore_progress(stage: str, done: int, total: int, unit: str) -> None:
    """Report nothing."""


@dataclass(frozen=True)
class LocalRuntime:
    """The runtime without ComfyUI: torch's devices, plain folders, a reporter for progress.

    Attributes:
        library: The user's checkpoints.
        device_name: auto, cpu, cuda, cuda:1 or mps.
        precision: auto, fp16, bf16 or fp32.
        temp_folder: None: a private folder below the system's, made when it is needed.
        vram: Bytes of the device's memory to use. None: all that is free.
        background: Color behind transparent parts of images, see `image_io.load_image`.
        on_note: Called with each warning, which is also logged.
        owns_process: See `Runtime.owns_process`.

    Raises:
        SettingError: `on_oom` is neither strict nor adapt.
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
    owns_process: bool = False

    def __post_init__(self) -> None:
        if self.on_oom not in ("strict", "adapt"):
            raise SettingError(f'`on_oom` must be strict or adapt, got "{self.on_oom}"')

    def device(self) -> torch.device:
        """Return the device of `device_name`; for `auto` the first of CUDA, MPS and CPU that exists.

        Raises:
            SettingError: torch does not know the name, or the device does not exist.
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
                f'`device` "{self.device_name}" cannot be used: {reason}. Use auto, cpu, cuda, cuda:1 or mps.'
            ) from error
        if device.type == "meta":
            raise SettingError('`device` "meta" holds no numbers; use auto, cpu, cuda, cuda:1 or mps.')
        return device

    @contextlib.contextmanager
    def on_device(self, component: ModelComponent, need: int = 0, after: After = "default") -> Iterator[torch.device]:
        """Move a component to the device. On CUDA it stays until others need the memory, elsewhere only with `keep`.

        It leaves after an error and with `after` offload. Others that stayed leave as far as it and `need` require it.
        """
        module, device, stays = component.module, self.device(), False
        weights = sum(weight.nbytes for weight in module.parameters()) - residency.weight_bytes(module, device)
        self.make_room(module, device, need + weights)
        try:
            module.to(device)
            yield device
            stays = after == "keep" or (after == "default" and device.type == "cuda")
        finally:
            if not stays:
                module.to("cpu")
            elif device.type == "cuda":
                residency.keep(module)

    @contextlib.contextmanager
    def reserve_memory(self, component: ModelComponent, need: int) -> Iterator[torch.device]:
        """Move a component to the CPU, and others as far as `need` requires it, and return the device."""
        device = self.device()
        component.module.to("cpu")
        self.make_room(component.module, device, need)
        yield device

    def make_room(self, module: torch.nn.Module, device: torch.device, need: float) -> None:
        """On CUDA, enforce `vram`, and free `need` bytes by moving modules that stayed to the CPU, but not `module`."""
        import torch

        if device.type != "cuda":
            return
        index = torch.cuda.current_device() if device.index is None else device.index
        total = torch.cuda.get_device_properties(index).total_memory
        limit = min(total, self.vram or total)
        logger.info(
            "memory: at most %s of %s are used, of which %s are left for workspaces",
            *map(format_bytes, (limit, total, WORKSPACE_BYTES)),
        )
        torch.cuda.set_per_process_memory_fraction(limit / total, index)
        residency.take(module)
        residency.make_room(device, need, lambda: self.free_memory(device))

    def free_memory(self, device: torch.device) -> int:
        """Return the free bytes of the GPU without a reserve, or the available ones of the CPU. `vram` limits them."""
        import psutil
        import torch

        if device.type == "cuda":
            allocated = torch.cuda.memory_allocated(device)
            cached = torch.cuda.memory_reserved(device) - allocated
            free = torch.cuda.mem_get_info(device)[0] + cached
            return max(0, (free if self.vram is None else min(free, self.vram - allocated)) - WORKSPACE_BYTES)
        free = psutil.virtual_memory().available
        return free if self.vram is None else min(free, self.vram)

    def capacity(self, component: ModelComponent) -> int:
        """Return the free bytes, those of the component's weights on the device, and those that others can leave."""
        device, module = self.device(), component.module
        if device.type == "cpu":
            return self.free_memory(device)
        weights = 0 if residency.is_idle(module) else residency.weight_bytes(module, device)
        return self.free_memory(device) + residency.idle_bytes(device) + weights

    @contextlib.contextmanager
    def progress(self, stage: str, total: int, unit: str) -> Iterator[Advance]:
        """Report progress. A stop is Python's KeyboardInterrupt here."""
        self.reporter(stage, 0, total, unit)
        last = 0

        def advance(done: int) -> None:
            nonlocal last
            if done != last:
                self.reporter(stage, done, total, unit)
            last = done

        yield advance

    def show(self, denoised: torch.Tensor) -> None:
        """Do nothing: there is no page."""

    def warn(self, warning: RunWarning) -> None:
        """Log a warning and pass it to `on_note`."""
        logger.warning("%s", warning.text)
        self.on_note(warning)

    def release(self) -> None:
        """Move components that are not in use to the CPU, and empty the cache of torch's allocator."""
        import torch

        device = self.device()
        residency.make_room(device, math.inf, lambda: 0)
        if device.type == "cuda":
            torch.cuda.empty_cache()
        elif device.type == "mps":
            torch.mps.empty_cache()

    def folder(self, kind: Folder) -> Path:
        """Return one of the configured folders."""
        if kind == "temp":
            return self.temp_folder or temp_folder()
        return {"input": self.input_folder, "output": self.output_folder}[kind]


_default: Runtime = LocalRuntime()

_override: ContextVar[Any] = ContextVar("svd_stages_runtime", default=None)


def set_runtime(runtime: Runtime) -> None:
    """Set the default runtime of the process, as the package's `__init__` and the start of ComfyUI do."""
    global _default
    _default = runtime


def get_runtime() -> Runtime:
    """Return the runtime of this run."""
    return _override.get() or _default


def forward_warnings(runtime: Runtime, run_warnings: Iterable[RunWarning]) -> None:
    """Pass warnings that a function returned to a runtime."""
    for warning in run_warnings:
        runtime.warn(warning)


@contextlib.contextmanager
def use_runtime(runtime: Runtime) -> Iterator[Runtime]:
    """Use a runtime inside the `with`, in this thread and task."""
    token = _override.set(runtime)
    try:
        yield runtime
    finally:
        _override.reset(token)
