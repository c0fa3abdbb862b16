"""From an opened checkpoint to modules: built on the meta device, checked name by name, filled by assignment."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

from ..errors import CheckpointError
from ..utils.nan_checks import is_finite
from .config_validation import validated_config, wrong_configuration
from .lazy_tensors import LazyTensor, torch_dtypes
from .reader import Component, OpenCheckpoint

if TYPE_CHECKING:
    import torch
    from torch import nn

SHOWN = 10
"""How many names an error lists."""
LONGEST = 200
"""How many characters of a name it shows."""
POSITIONS = "position_ids"
"""A buffer that old versions of transformers wrote: a row of numbers that the CLIP tower makes itself."""


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

    def build(settings: dict[str, Any]) -> nn.Module:
        return CLIPVisionModelWithProjection(CLIPVisionConfig(**settings))

    return _empty(opened, opened.clip, build)


def _empty(opened: OpenCheckpoint, component: Component, build: Any) -> nn.Module:
    import torch
    from huggingface_hub.errors import StrictDataclassError

    wrong_values = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError, AssertionError)
    settings = validated_config(opened, component)
    try:
        with torch.device("meta"):
            return build(settings)
    except (*wrong_values, StrictDataclassError) as error:
        raise wrong_configuration(opened, component, str(error).split("\n")[0][:300]) from error


def check(opened: OpenCheckpoint, component: Component, module: nn.Module) -> None:
    """Raise CheckpointError unless `component` has the tensors of `module`, each in its shape and a type of weights.

    Every one of them and no other: a tensor without a place is a sign of another model, or of one that is deeper.
    """
    needed = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    lacking = [name for name in needed if name not in component.tensors]
    if lacking:
        missing = list(dict.fromkeys(component.shown(name) for name in lacking))  # one of the file may be three here
        raise CheckpointError(
            f"the {component.title} of {opened.name} lacks {len(lacking)} of its {len(needed)} tensors: "
            f"{listed(missing)}. The checkpoint is not complete; download it again, or the published one.",
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
            f"{listed(wrong, '; ')}. The checkpoint is of another model, or damaged; download the published one.",
            code="checkpoint.shape",
        )
    _check_dtypes(opened, component, present)
    unmapped_keys = [name for name in left_over(component, module) if not name.endswith(POSITIONS)]
    if unmapped_keys:
        raise CheckpointError(
            f"{len(unmapped_keys)} tensors of the {component.title} of {opened.name} have no place in the model: "
            f"{listed(unmapped_keys)}. The checkpoint is of another model, or was changed; download the published one.",
            code="checkpoint.unused_tensors",
        )


def _check_dtypes(opened: OpenCheckpoint, component: Component, present: dict[str, LazyTensor]) -> None:
    known = torch_dtypes()
    other = [f"{component.shown(name)} ({each.dtype})" for name, each in present.items() if each.dtype not in known]
    if other:
        raise CheckpointError(
            f"{len(other)} tensors of the {component.title} of {opened.name} are of a type that is not read here: "
            f"{listed(other)}. Needed are {', '.join(known)}; use the fp16 or fp32 file of the same model.",
            code="checkpoint.dtype",
        )


def listed(names: list[str], separator: str = ", ") -> str:
    """The first ten of `names`, and how many more there are."""
    rest = len(names) - SHOWN
    return separator.join(map(readable, names[:SHOWN])) + (f"{separator}and {rest} more" if rest > 0 else "")


def readable(name: str) -> str:
    """`name` fit for one line of text, whatever a file calls its tensors."""
    return ascii(name)[1:-1] if len(name) <= LONGEST else f"{ascii(name[:LONGEST])[1:-1]}..."


def left_over(component: Component, module: nn.Module) -> list[str]:
    """The tensors of `component`, by their names in the file, that `module` has no place for."""
    needed = module.state_dict().keys()
    return [*component.unmapped_keys, *(component.shown(name) for name in component.tensors if name not in needed)]


def fill(component: Component, module: nn.Module, dtype_of: Callable[[str], torch.dtype]) -> None:
    """Give `module` the tensors of `component` one by one, each cast to `dtype_of` its name, in memory of its own.

    The module comes out on the CPU, frozen and in evaluation mode. Raises CheckpointError when a number is not finite,
    and with code "checkpoint.range" when one is too large for its new type.
    """
    state = {name: read_as(component, name, dtype_of(name)) for name in module.state_dict()}
    module.load_state_dict(state, strict=True, assign=True)
    _rebuild_buffers(module)
    module.eval().requires_grad_(False)


def read_as(component: Component, name: str, dtype: torch.dtype) -> torch.Tensor:
    """The tensor of a checkpoint that was opened from disk, in `dtype` and in memory of its own.

    Raises CheckpointError when a number is not finite in that type.
    """
    stored = component.tensors[name].read()
    tensor = stored.to(dtype).contiguous()
    if tensor.untyped_storage().nbytes() > tensor.nbytes:  # a third of what was read: the rest would stay, too
        tensor = tensor.clone()
    if not is_finite(tensor):
        _refuse_numbers(component.shown(name), stored, dtype)
    return tensor


def _refuse_numbers(name: str, stored: torch.Tensor, dtype: torch.dtype) -> NoReturn:
    """Raise CheckpointError for a tensor that is not finite in `dtype`: because it never was, or is too large."""
    import torch

    if not is_finite(stored):
        raise CheckpointError(
            f'"{name}" holds numbers that are not finite (NaN or infinity). The checkpoint is damaged, or its training '
            "failed; download it again, or the published one.",
            code="checkpoint.not_finite",
        )
    raise CheckpointError(
        f'"{name}" holds numbers that are too large for {str(dtype).removeprefix("torch.")} (its largest is '
        f"{torch.finfo(dtype).max:g}). Choose precision bf16 or fp32 for this checkpoint.",
        code="checkpoint.range",
    )


def _rebuild_buffers(module: nn.Module) -> None:
    """Make the buffers that files do not hold: the CLIP tower's row of position numbers is the only one."""
    import torch

    for part in module.modules():
        for name, buffer in list(part.named_buffers(recurse=False)):
            if name == POSITIONS and buffer.is_meta:
                part.register_buffer(POSITIONS, torch.arange(buffer.shape[-1])[None], persistent=False)
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        assert not tensor.is_meta, name
