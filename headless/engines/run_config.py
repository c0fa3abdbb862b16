"""Settings of a headless run: models, device, folders, progress."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...svd_core.checkpoints.library import ModelLibrary, default_models_roots, models_of_environment
from ...svd_core.media.alpha_compositing import Background
from ...svd_core.runtime.memory import parse_bytes
from ...svd_core.runtime.runtime import LocalRuntime, OnNote, OnOom, Reporter, ignore_note, ignore_progress

PACKAGE = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class RunConfig:
    """Settings of a run, as in the common options of the command line.

    Attributes:
        models: Models folders in ComfyUI's layout. Empty: the default folders.
        reporter: Called with (stage, done, total, unit).
        vram: Limit of device memory, in bytes or as 6G. None: all free memory.
        background: The color behind transparent parts of images that LoadImage reads. KEEP and None keep the hidden
            colors, as in ComfyUI. None adds a note.
        on_oom: strict or adapt, see `svd_core.runtime.runtime.OnOom`.
        on_note: Called with each note when it occurs. The report lists the notes too.

    Raises:
        SettingError: `vram` is no size.
    """

    models: Sequence[str | os.PathLike] = ()
    device: str = "auto"
    precision: str = "auto"
    input_folder: str | os.PathLike = "input"
    output_folder: str | os.PathLike = "output"
    reporter: Reporter = field(default=ignore_progress)
    vram: int | str | None = None
    background: Background | None = None
    on_oom: OnOom = "strict"
    on_note: OnNote = ignore_note
    owns_process: bool = False

    def __post_init__(self) -> None:
        if self.vram is not None:
            object.__setattr__(self, "vram", parse_bytes("vram", self.vram))

    def runtime(self) -> LocalRuntime:
        """Return the runtime with these settings. Reads no file and queries no device. Raises SettingError."""
        return LocalRuntime(
            library=ModelLibrary.from_roots(self.models_roots()),
            device_name=self.device,
            precision=self.precision,
            input_folder=Path(self.input_folder),
            output_folder=Path(self.output_folder),
            reporter=self.reporter,
            vram=None if self.vram is None else int(self.vram),
            background=self.background,
            on_oom=self.on_oom,
            on_note=self.on_note,
            owns_process=self.owns_process,
        )

    def models_roots(self) -> list[Path]:
        """Return the models folders in search order."""
        return self.named_models() or default_models_roots()

    def named_models(self) -> list[Path]:
        """Return the models folders that the user named: `models`, else those in `$SVD_STAGES_MODELS`."""
        return [Path(root) for root in as_list(self.models)] or models_of_environment()


def as_list(one_or_more: Any) -> list[Any]:
    """Return a list. A single text or path becomes a list of one."""
    return [one_or_more] if isinstance(one_or_more, (str, os.PathLike)) else list(one_or_more)
