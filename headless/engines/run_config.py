"""Where and on what a headless run takes place: models, device, folders, progress."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...svd_core.checkpoints.library import ModelLibrary
from ...svd_core.media.alpha_compositing import Background
from ...svd_core.runtime.runtime import LocalRuntime, OnNote, OnOom, Reporter, ignore_note, ignore_progress

PACKAGE = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class RunConfig:
    """Where and on what to run; what the command line's common options say.

    vram        bytes to get by with
    background  what LoadImage puts transparent parts on; KEEP and None leave them as ComfyUI does, None with a note
    on_oom      strict or adapt, see `svd_core.runtime.runtime.OnOom`
    on_note     told each note of a run at once; they are in the report, too
    """

    models: Sequence[str | os.PathLike] = ()
    device: str = "auto"
    precision: str = "auto"
    input_folder: str | os.PathLike = "input"
    output_folder: str | os.PathLike = "output"
    reporter: Reporter = field(default=ignore_progress)
    vram: int | None = None
    background: Background | None = None
    on_oom: OnOom = "strict"
    on_note: OnNote = ignore_note

    def runtime(self) -> LocalRuntime:
        """The host of such a run. Touches no disk and asks no device."""
        return LocalRuntime(
            library=ModelLibrary.from_roots(self.models_roots()),
            device_name=self.device,
            precision=self.precision,
            input_folder=Path(self.input_folder),
            output_folder=Path(self.output_folder),
            reporter=self.reporter,
            vram=self.vram,
            background=self.background,
            on_oom=self.on_oom,
            on_note=self.on_note,
        )

    def models_roots(self) -> list[Path]:
        """Where models are looked for, in this order."""
        return self.named_models() or default_models_roots()

    def named_models(self) -> list[Path]:
        """The models folders that the user named: `models`, else those in `$SVD_STAGES_MODELS`."""
        return [Path(root) for root in as_list(self.models)] or _models_of_environment()


def _models_of_environment() -> list[Path]:
    return [Path(each) for each in os.environ.get("SVD_STAGES_MODELS", "").split(os.pathsep) if each]


def default_models_roots() -> list[Path]:
    """`$SVD_STAGES_MODELS` (several with the system's path separator), else the models folder of the ComfyUI that the
    package lies in, else ./models."""
    if named := _models_of_environment():
        return named
    if PACKAGE.parent.name == "custom_nodes":
        return [PACKAGE.parent.parent / "models"]
    return [Path("models")]


def as_list(one_or_more: Any) -> list[Any]:
    """A lone text or path as a list of one."""
    return [one_or_more] if isinstance(one_or_more, (str, os.PathLike)) else list(one_or_more)
