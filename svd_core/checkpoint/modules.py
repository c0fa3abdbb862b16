"""From an opened checkpoint to modules: built on the meta device, checked name by name, filled by assignment."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError
from .opened import Component, OpenCheckpoint
from .tensors import LazyTensor, torch_dtypes

if TYPE_CHECKING:
    import torch
    from torch import nn

SHOWN = 10
"""How many names an error lists."""
CLIP_SETTINGS = (
    "hidden_size",
    "intermediate_size",
    "projection_dim",
    "num_hidden_layers",
    "num_attention_heads",
    "num_channels",
    "image_size",
    "patch_size",
    "hidden_act",
    "layer_norm_eps",
)
"""What is taken from a CLIP tower's config.json: what shapes the numbers. Others could name code to fetch and run."""


def empty_unet(opened: OpenCheckpoint) -> nn.Module:
    """The UNet on the meta device: names and shapes without memory."""
    from diffusers import UNetSpatioTemporalConditionModel

    return _empty(opened, opened.unet, UNetSpatioTemporalConditionModel.from_config)


def empty_vae(opened: OpenCheckpoint) -> nn.Module:
    """The temporal VAE on the meta device."""
    from diffusers import AutoencoderKLTemporalDecoder

    return _empty(opened, opened.vae, AutoencoderKLTemporalDecoder.from_config)


def empty_clip(opened: OpenCheckpoint) -> nn.Module:
    """The CLIP image tower on the meta device."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    def build(config: dict[str, Any]) -> nn.Module:
        settings = {key: config[key] for key in CLIP_SETTINGS if key in config}
        return CLIPVisionModelWithProjection(CLIPVisionConfig(**settings))

    return _empty(opened, opened.clip, build)


def _empty(opened: OpenCheckpoint, component: Component, build: Any) -> nn.Module:
    import torch

    try:
        with torch.device("meta"):
            return build(component.config)
    except Exception as error:  # what a configuration can upset differs with the library and its version
        reason = str(error).split("\n")[0][:300]
        raise CheckpointError(
            f"the {component.title} of {opened.name} cannot be built from its configuration: {reason}. Download the "
            "checkpoint again, or the published one of the same model.",
            code="checkpoint.config",
        ) from error


def check(opened: OpenCheckpoint, component: Component, module: nn.Module) -> None:
    """Raise CheckpointError unless `component` has every tensor of `module`, in its shape and a type of weights."""
    needed = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    missing = [component.shown(name) for name in needed if name not in component.tensors]
    if missing:
        raise CheckpointError(
            f"the {component.title} of {opened.name} lacks {len(missing)} of its {len(needed)} tensors: "
            f"{_listed(missing)}. The checkpoint is not complete; download it again, or the published one.",
            code="checkpoint.missing_tensors",
        )
    present = {name: component.tensors[name] for name in needed}
    wrong = [
        f"{component.shown(name)} is {list(tensor.shape)} and must be {list(needed[name])}"
        for name, tensor in present.items()
        if tensor.shape != needed[name]
    ]
    if wrong:
        raise CheckpointError(
            f"{len(wrong)} tensors of the {component.title} of {opened.name} have the wrong shape: "
            f"{_listed(wrong, '; ')}. The checkpoint is of another model, or damaged; download the published one.",
            code="checkpoint.shape",
        )
    _check_dtypes(opened, component, present)


def _check_dtypes(opened: OpenCheckpoint, component: Component, present: dict[str, LazyTensor]) -> None:
    known = torch_dtypes()
    other = [f"{component.shown(name)} ({each.dtype})" for name, each in present.items() if each.dtype not in known]
    if other:
        raise CheckpointError(
            f"{len(other)} tensors of the {component.title} of {opened.name} are of a type that is not read here: "
            f"{_listed(other)}. Needed are {', '.join(known)}; use the fp16 or fp32 file of the same model.",
            code="checkpoint.dtype",
        )


def _listed(names: list[str], separator: str = ", ") -> str:
    rest = len(names) - SHOWN
    return separator.join(names[:SHOWN]) + (f"{separator}and {rest} more" if rest > 0 else "")


def left_over(opened: OpenCheckpoint, component: Component, module: nn.Module) -> list[str]:
    """The tensors of `component`, by their names in the file, that `module` has no place for."""
    needed = module.state_dict().keys()
    return [component.shown(name) for name in component.tensors if name not in needed]


def fill(component: Component, module: nn.Module, dtype_of: Callable[[str], torch.dtype]) -> None:
    """Give `module` the tensors of `component` one by one, each cast to `dtype_of` its name, in memory of its own.

    The module comes out on the CPU, frozen and in evaluation mode. Raises CheckpointError when a number is too large
    for fp16.
    """
    state = {name: _cast(component, name, dtype_of(name)) for name in module.state_dict()}
    module.load_state_dict(state, strict=True, assign=True)
    _rebuild_buffers(module)
    module.eval().requires_grad_(False)


def _cast(component: Component, name: str, dtype: torch.dtype) -> torch.Tensor:
    """A copy of the tensor in `dtype`: what is read may be the pages of the file, which others may write to."""
    import torch

    tensor = component.tensors[name].read()
    copied = tensor.to(dtype=dtype, copy=True, memory_format=torch.contiguous_format)
    if dtype is torch.float16 and tensor.dtype is not dtype and copied.numel():
        low, high = torch.aminmax(copied)
        if torch.isinf(low) or torch.isinf(high):
            raise CheckpointError(
                f'"{component.shown(name)}" holds numbers that fp16 cannot (its largest is 65504). Choose precision '
                "bf16 or fp32 for this checkpoint.",
                code="checkpoint.range",
            )
    return copied


def _rebuild_buffers(module: nn.Module) -> None:
    """Make the buffers that files do not hold: the CLIP tower's row of position numbers is the only one."""
    import torch

    for part in module.modules():
        positions = getattr(part, "position_ids", None)
        if isinstance(positions, torch.Tensor) and positions.is_meta:
            part.register_buffer("position_ids", torch.arange(positions.shape[-1])[None], persistent=False)
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        assert not tensor.is_meta, name
