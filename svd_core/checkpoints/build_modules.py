"""Build modules for an open checkpoint: validate the configuration, build on the meta device, check and fill weights.

The libraries build whatever is in a configuration: a billion layers until memory is exhausted, or code that it names.
Therefore only the settings in `RULES` are passed on, each within its range.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

from ..errors import CheckpointError, printable
from ..utils.nan_checks import is_finite
from .model_metadata import MAX_FRAMES
from .reader import Component, LazyTensor, OpenCheckpoint, torch_dtypes
from .safe_json import BOOLEAN, Rule, either, integer, list_of, number, one_of

if TYPE_CHECKING:
    import torch
    from torch import nn

MAX_LISTED = 10
"""Names that an error lists."""
MAX_NAME = 200
"""Characters of a name that an error shows."""
POSITIONS = "position_ids"
"""A buffer of the CLIP image encoder that old versions of transformers saved. It is rebuilt, not read."""
LAYERS = integer(1, 8)
SIZE = integer(1, 1_000_000)


def _per_level(rule: Rule) -> Rule:
    return list_of(rule, most=8)


def _one_or_per_level(rule: Rule) -> Rule:
    return either(rule, _per_level(rule))


RULES: dict[str, dict[str, Rule]] = {
    "UNet": {
        "sample_size": SIZE,
        "in_channels": SIZE,
        "out_channels": SIZE,
        "down_block_types": _per_level(one_of("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal")),
        "up_block_types": _per_level(one_of("CrossAttnUpBlockSpatioTemporal", "UpBlockSpatioTemporal")),
        "block_out_channels": _per_level(SIZE),
        "addition_time_embed_dim": SIZE,
        "projection_class_embeddings_input_dim": SIZE,
        "layers_per_block": _one_or_per_level(LAYERS),
        "cross_attention_dim": _one_or_per_level(SIZE),
        "transformer_layers_per_block": _one_or_per_level(integer(1, 16)),
        "num_attention_heads": _one_or_per_level(SIZE),
        "num_frames": integer(1, MAX_FRAMES),
    },
    "VAE": {
        "in_channels": SIZE,
        "out_channels": SIZE,
        "down_block_types": _per_level(one_of("DownEncoderBlock2D")),
        "block_out_channels": _per_level(SIZE),
        "layers_per_block": LAYERS,
        "latent_channels": SIZE,
        "sample_size": SIZE,
        "scaling_factor": number(-1e9, 1e9),
        "force_upcast": BOOLEAN,
    },
    "CLIP tower": {
        "hidden_size": SIZE,
        "intermediate_size": SIZE,
        "projection_dim": SIZE,
        "num_hidden_layers": integer(1, 64),
        "num_attention_heads": SIZE,
        "num_channels": SIZE,
        "image_size": SIZE,
        "patch_size": SIZE,
        "hidden_act": one_of("gelu", "quick_gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "relu", "silu"),
        "layer_norm_eps": number(0, 1),
    },
}
"""Component -> setting -> allowed values. A setting that is absent or null has the library's default."""


def build_modules(opened: OpenCheckpoint) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Build the UNet, VAE and CLIP image encoder on the meta device, and check that the checkpoint has their tensors.

    Raises:
        CheckpointError: A setting is out of range, or tensors are missing, unknown, or of another shape or dtype.
    """
    from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel

    for component in opened.components():  # before any is built
        validated_config(opened, component)
    unet = _build_empty(opened, opened.unet, UNetSpatioTemporalConditionModel.from_config)
    vae = _build_empty(opened, opened.vae, AutoencoderKLTemporalDecoder.from_config)
    modules = unet, vae, build_clip(opened)
    for component, module in zip(opened.components(), modules, strict=True):
        check_tensors(opened, component, module)
    return modules


def build_clip(opened: OpenCheckpoint) -> nn.Module:
    """Build the CLIP image encoder on the meta device, without weights."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    return _build_empty(opened, opened.clip, lambda config: CLIPVisionModelWithProjection(CLIPVisionConfig(**config)))


def _build_empty(opened: OpenCheckpoint, component: Component, build: Callable[[dict[str, Any]], Any]) -> nn.Module:
    import torch
    from huggingface_hub.errors import StrictDataclassError

    config_errors = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError, AssertionError)
    config = validated_config(opened, component)
    try:
        with torch.device("meta"):
            return build(config)
    except (*config_errors, StrictDataclassError) as error:
        raise _invalid_config(opened, component, str(error).split("\n")[0][:300]) from error


def validated_config(opened: OpenCheckpoint, component: Component) -> dict[str, Any]:
    """Return the settings of `component` to build its module from.

    Raises:
        CheckpointError: A setting is out of range, or there are too few tensors for the layers: building a module costs
            time and memory per layer, even without weights.
    """
    rules = RULES[component.title]
    config = {key: component.config[key] for key in rules if component.config.get(key) is not None}
    for key, value in config.items():
        if not rules[key].accepts(value):
            raise _invalid_config(opened, component, f"{key} {rules[key].need}, got {ascii(value)[:100]}")
    least = _least_tensors(component.title, config)
    if least > len(component.tensors):
        raise CheckpointError(
            f"the {component.title} of {printable(opened.name)} is configured with layers of at least {least} tensors, "
            f"and has {len(component.tensors)}. The checkpoint is not complete; download it again, or the published "
            "one.",
            code="checkpoint.missing_tensors",
        )
    return config


def _least_tensors(title: str, config: dict[str, Any]) -> int:
    """Return a lower bound of a module's tensors: those of its layers' norms."""
    if title == "CLIP tower":
        return 2 * config.get("num_hidden_layers", 1)
    levels = len(config.get("block_out_channels", (1,)))
    layers = _minimum(config.get("layers_per_block", 1))
    resnets = 2 * levels * layers
    if title == "VAE":
        return 2 * resnets
    attentions = layers * sum("Attn" in kind for kind in config.get("down_block_types", ()))
    return 4 * resnets + 6 * attentions * _minimum(config.get("transformer_layers_per_block", 1))


def _minimum(numbers: int | list[int]) -> int:
    return numbers if isinstance(numbers, int) else min(numbers)


def _invalid_config(opened: OpenCheckpoint, component: Component, reason: str) -> CheckpointError:
    return CheckpointError(
        f"the {component.title} of {printable(opened.name)} cannot be built from its configuration: {reason}. Download "
        "the checkpoint again, or the published one of the same model.",
        code="checkpoint.config",
    )


def check_tensors(opened: OpenCheckpoint, component: Component, module: nn.Module) -> None:
    """Raise CheckpointError unless `component` has exactly the tensors of `module`, with their shapes and valid dtypes.

    An additional tensor is an error too: it belongs to another model, or to a deeper one.
    """
    owner = f"the {component.title} of {opened.name}"
    needed = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    absent = [name for name in needed if name not in component.tensors]
    if absent:
        keys = list(dict.fromkeys(map(component.file_key, absent)))  # one tensor of the file may be three of the module
        raise CheckpointError(
            f"{owner} lacks {len(absent)} of its {len(needed)} tensors: {list_names(keys)}. The checkpoint is not "
            "complete; download it again, or the published one.",
            code="checkpoint.missing_tensors",
        )
    present = {name: component.tensors[name] for name in needed}
    misshapen = [
        f"{component.file_key(name)} must be {list(needed[name])}, got {list(tensor.shape)}"
        for name, tensor in present.items()
        if tensor.shape != needed[name]
    ]
    if misshapen:
        raise CheckpointError(
            f"{len(misshapen)} tensors of {owner} have the wrong shape: {list_names(misshapen, '; ')}. The checkpoint "
            "is of another model, or damaged; download the published one.",
            code="checkpoint.shape",
        )
    _check_dtypes(owner, component, present)
    unused = [name for name in unused_keys(component, module) if not name.endswith(POSITIONS)]
    if unused:
        raise CheckpointError(
            f"{len(unused)} tensors of {owner} are not part of the model: {list_names(unused)}. The checkpoint is of "
            "another model, or was changed; download the published one.",
            code="checkpoint.unused_tensors",
        )


def _check_dtypes(owner: str, component: Component, present: dict[str, LazyTensor]) -> None:
    known = torch_dtypes()
    wrong = [f"{component.file_key(name)} ({each.dtype})" for name, each in present.items() if each.dtype not in known]
    if wrong:
        raise CheckpointError(
            f"{len(wrong)} tensors of {owner} must be {', '.join(known)}, got {list_names(wrong)}. Use the fp16 or "
            "fp32 file of the same model.",
            code="checkpoint.dtype",
        )


def list_names(names: list[str], separator: str = ", ") -> str:
    """Join the first ten names, printable, and the number of the others."""
    rest = len(names) - MAX_LISTED
    more = [f"and {rest} more"] if rest > 0 else []
    return separator.join([*(printable(name, MAX_NAME) for name in names[:MAX_LISTED]), *more])


def unused_keys(component: Component, module: nn.Module) -> list[str]:
    """Return the tensors of `component`, by their names in the file, that `module` does not have."""
    needed = module.state_dict().keys()
    return [*component.unmapped_keys, *(component.file_key(name) for name in component.tensors if name not in needed)]


def fill(component: Component, module: nn.Module, dtype_of: Callable[[str], torch.dtype]) -> None:
    """Read the weights of `component` into `module`, each in the dtype that `dtype_of` returns for its name.

    The module is then on the CPU, frozen, in evaluation mode, with memory of its own.

    Raises:
        CheckpointError: A number is not finite, or (code `checkpoint.range`) too large for its new dtype.
    """
    state = {name: read_as(component, name, dtype_of(name)) for name in module.state_dict()}
    module.load_state_dict(state, strict=True, assign=True)
    _rebuild_buffers(module)
    module.eval().requires_grad_(False)


def read_as(component: Component, name: str, dtype: torch.dtype) -> torch.Tensor:
    """Read one tensor of a checkpoint on disk in `dtype`, in memory of its own.

    Raises:
        CheckpointError: A number is not finite in that dtype.
    """
    stored = component.tensors[name].read()
    tensor = stored.to(dtype).contiguous()
    if tensor.untyped_storage().nbytes() > tensor.nbytes:  # a view, such as a third of a joint projection
        tensor = tensor.clone()
    if not is_finite(tensor):
        _raise_not_finite(component.file_key(name), stored, dtype)
    return tensor


def _raise_not_finite(name: str, stored: torch.Tensor, dtype: torch.dtype) -> NoReturn:
    """Raise CheckpointError for a tensor that is not finite in `dtype`: damaged, or too large for it."""
    import torch

    if not is_finite(stored):
        raise CheckpointError(
            f'"{name}" holds numbers that are not finite (NaN or infinity). The checkpoint is damaged, or its training '
            "failed; download it again, or the published one.",
            code="checkpoint.not_finite",
        )
    raise CheckpointError(
        f'"{name}" holds numbers that are too large for {str(dtype).removeprefix("torch.")}, whose largest is '
        f"{torch.finfo(dtype).max:g}. Choose precision bf16 or fp32 for this checkpoint.",
        code="checkpoint.range",
    )


def _rebuild_buffers(module: nn.Module) -> None:
    """Create the buffers that files do not hold: the position ids of the CLIP image encoder."""
    import torch

    for submodule in module.modules():
        for name, buffer in list(submodule.named_buffers(recurse=False)):
            if name == POSITIONS and buffer.is_meta:
                submodule.register_buffer(POSITIONS, torch.arange(buffer.shape[-1])[None], persistent=False)
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        assert not tensor.is_meta, name
