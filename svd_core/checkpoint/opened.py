"""A checkpoint whose tensors are named and described as the modules want them, and not read yet.

Both forms on disk become this, and so does a checkpoint in memory: the loader and the converters see no difference.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .facts import Facts
from .parts import Checkpoint
from .tensors import Tensors, module_tensors


def unchanged() -> None:
    """For a checkpoint in memory: nobody else writes there."""


def same_name(name: str) -> str:
    """The name as it is: for files that use the module's names."""
    return name


@dataclass(frozen=True, eq=False)
class Component:
    """One of the three modules: what errors call it, its configuration, and its tensors under the module's names.

    `shown` gives the name that a tensor has in the file, for messages. `homeless` are the names in the file that belong
    to this module, by their prefix, and that no table has a place for.
    """

    title: str
    config: dict[str, Any]
    tensors: Tensors
    shown: Callable[[str], str] = same_name
    homeless: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class OpenCheckpoint:
    """`name` is what messages call it. `ignored` are the names in the file that no module uses.

    `check_unchanged` raises CheckpointError when somebody changed its files since they were opened. It is called when
    they are closed, too; who writes a result calls it before the result has its name.
    """

    name: str
    facts: Facts
    unet: Component
    vae: Component
    clip: Component
    ignored: tuple[str, ...] = ()
    check_unchanged: Callable[[], None] = unchanged

    def components(self) -> tuple[Component, Component, Component]:
        """UNet, VAE, CLIP tower."""
        return self.unet, self.vae, self.clip

    def stored_dtypes(self) -> set[str]:
        """The types that the tensors have on disk, by safetensors' names."""
        return {tensor.dtype for component in self.components() for tensor in component.tensors.values()}


def open_in_memory(checkpoint: Checkpoint) -> OpenCheckpoint:
    """A loaded checkpoint, as if it were opened from disk; complete."""
    checkpoint.model.complete()
    unet, vae, clip = checkpoint.model.unet, checkpoint.vae.vae, checkpoint.clip_vision.encoder
    defaults = checkpoint.model.defaults
    facts = Facts(
        num_frames=defaults.num_frames,
        width=defaults.width,
        height=defaults.height,
        min_guidance=defaults.min_guidance,
        max_guidance=defaults.max_guidance,
        clip_heads=clip.config.num_attention_heads,
        scaling_factor=checkpoint.model.scaling_factor,
        sigma_min=checkpoint.model.sigma_min,
        sigma_max=checkpoint.model.sigma_max,
        force_upcast=bool(vae.config["force_upcast"]),
        image_mean=checkpoint.clip_vision.image_mean,
        image_std=checkpoint.clip_vision.image_std,
    )
    return OpenCheckpoint(
        name="the loaded model",
        facts=facts,
        unet=Component("UNet", {**unet.config, "num_frames": defaults.num_frames}, module_tensors(unet)),
        vae=Component("VAE", dict(vae.config), module_tensors(vae)),
        clip=Component("CLIP tower", clip.config.to_dict(), module_tensors(clip)),
    )
