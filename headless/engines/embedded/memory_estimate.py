"""Estimate the memory of a graph's heaviest stages before it runs, and refuse graphs that cannot fit.

Sizes are followed along the links from the constants that set them. A size that is known only during the run (of an
image, or a number that a node computes) is not guessed and refuses nothing. Estimates are lower bounds. They are
compared with the total memory, free or not.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ....svd_core.checkpoints.diffusers_format import read_config
from ....svd_core.checkpoints.safetensors_header import read_header
from ....svd_core.errors import CheckpointError, GraphError, counted
from ....svd_core.runtime.memory import UNET_LIVE_TENSORS, format_bytes
from ....svd_core.runtime.runtime import LocalRuntime
from ...graph import Prompt
from ...graph.check_node import problem
from ...graph.prompt import looks_like_link, name_node, run_order, sources_of, unwrap_value, with_ancestors

MAX_PIXELS = 2**35
"""Largest video in pixels, all frames together: 384 GiB as float32, whatever the machine has."""
PIXEL_BYTES = 12
"""Bytes of a pixel of IMAGE: three colors in float32."""
MIN_ITEMSIZE = 2
"""Bytes of a number in the narrowest precision of the models."""
SCALE = 8
"""Pixels per latent along each side."""


@dataclass(frozen=True)
class Clip:
    """The size of an image, a latent or a video in pixels, and its frames. None for what is unknown."""

    frames: int | None = None
    height: int | None = None
    width: int | None = None

    @property
    def pixels(self) -> int | None:
        """Return the number of pixels of all frames, None if it is unknown."""
        if self.frames is None or self.height is None or self.width is None:
            return None
        return self.frames * self.height * self.width

    def __str__(self) -> str:
        return f"{counted(self.frames or 0, 'frame')} of {self.width}x{self.height}"


@dataclass(frozen=True)
class MemoryEstimate:
    """The memory that a stage needs.

    Attributes:
        work: What the stage does, for the message.
        required_bytes: Lower bound of the memory that the stage needs.
        available_bytes: All memory that it could use.
        suggestion: The last sentence of the message.
        limit: Names `available_bytes` in the message.
    """

    node_id: str
    work: str
    required_bytes: int
    available_bytes: int
    suggestion: str = "Ask for fewer frames or a smaller size"
    limit: str = "this machine has"


def check_memory_budget(prompt: Prompt, outputs: Iterable[str], runtime: LocalRuntime) -> None:
    """Raise GraphError (`graph.too_expensive`) if a stage of a valid graph cannot fit into this machine's memory.

    Does not import torch. The memory of a graphics card is queried only if torch is imported already.

    Args:
        outputs: Ids of the output nodes to run. Nodes that they do not need are ignored.
    """
    needed = with_ancestors(outputs, {node_id: sources_of(node) for node_id, node in prompt.items()})
    for estimate in _estimates({node_id: node for node_id, node in prompt.items() if node_id in needed}, runtime):
        if estimate.required_bytes > estimate.available_bytes:
            fact = (
                f"{estimate.work} needs about "
                f"{format_bytes(estimate.required_bytes)}; {estimate.limit} {format_bytes(estimate.available_bytes)}. "
                f"{estimate.suggestion}."
            )
            message = f"{name_node(prompt, estimate.node_id)}: {fact}"
            facts = {"need": estimate.required_bytes, "room": estimate.available_bytes}
            fault = problem("too_expensive", "The stage cannot fit into memory", fact, **facts)
            class_type = prompt[estimate.node_id]["class_type"]
            errors = {estimate.node_id: {"errors": [fault], "dependent_outputs": [], "class_type": class_type}}
            raise GraphError(message, code="graph.too_expensive", node_errors=errors)


def _estimates(prompt: Prompt, runtime: LocalRuntime) -> Iterator[MemoryEstimate]:
    """Yield estimates for all stages whose sizes are known."""
    values = _follow_values(prompt)
    host, device = _host_memory(), _device_memory(runtime)
    for node_id, node in prompt.items():
        samples, decodes = node["class_type"] in SAMPLERS, node["class_type"] in DECODERS
        get, clip = _input_getter(node, values), values.get((node_id, 0))
        if not (samples or decodes) or not isinstance(clip, Clip) or clip.pixels is None:
            continue
        frames = clip.pixels * PIXEL_BYTES
        if clip.pixels > MAX_PIXELS:
            largest = MAX_PIXELS * PIXEL_BYTES
            yield MemoryEstimate(node_id, f"working on {clip}", frames, largest, limit="a video may take")
        if decodes:
            yield MemoryEstimate(node_id, f"holding {clip}", frames, host)
        if device is None:
            continue
        unet, vae = base_channels(runtime, get("model" if samples else "vae"))
        if samples:
            size = UNET_LIVE_TENSORS * unet * (clip.pixels // SCALE**2) * MIN_ITEMSIZE
            yield MemoryEstimate(node_id, f"sampling {clip}", size, device)
        if decodes and get("mode" if "mode" in node["inputs"] else "decode_mode") == "exact":
            size, work = vae * clip.pixels * MIN_ITEMSIZE, f"decoding {clip} as one clip"
            suggestion = "Use mode windowed, fewer frames or a smaller size"
            yield MemoryEstimate(node_id, work, size, max(device, host), suggestion)


Get = Callable[[str], Any]
"""Returns the value of an input by name: a constant, or what is known of a link's value. None if nothing is known."""


def _video_size(get: Get) -> Clip:
    return Clip(_size(get("video_frames")), _size(get("height")), _size(get("width")))


def _image_size(get: Get) -> Clip:
    return Clip(None, _size(get("height")), _size(get("width")))


def _conditioned_size(get: Get) -> Any:
    latent = get("image_latent")
    return Clip(_size(get("video_frames")), latent.height, latent.width) if isinstance(latent, Clip) else None


def _size(value: Any) -> int | None:
    """Return a positive integer, else None. For ImageScale 0 means that the size follows from the image."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _pass_on(name: str, slots: int = 1) -> Callable[[Get], dict[int, Any]]:
    """Return the rule of a node whose outputs equal its input `name`."""
    return lambda get: dict.fromkeys(range(slots), get(name))


SAMPLERS = ("SVDEulerSampler", "KSampler", "KSamplerAdvanced", "SamplerCustom", "SVDImageToVideo")
DECODERS = ("SVDTemporalVAEDecode", "VAEDecode", "VAEDecodeTiled", "SVDImageToVideo")
"""The nodes that need much memory. The clip that they work on is that of their first output."""

RULES: dict[str, Callable[[Get], dict[int, Any]]] = {
    "PrimitiveInt": _pass_on("value"),
    "PrimitiveString": _pass_on("value"),
    "SVDCheckpointLoader": _pass_on("checkpoint", 3),
    "ImageOnlyCheckpointLoader": _pass_on("ckpt_name", 3),
    "SVDModelOptions": _pass_on("model"),
    "SVDStepCache": _pass_on("model"),
    "VideoLinearCFGGuidance": _pass_on("model"),
    "VideoTriangleCFGGuidance": _pass_on("model"),
    "SVDResizeImage": lambda get: {0: _image_size(get), 1: get("width"), 2: get("height")},
    "ImageScale": lambda get: {0: _image_size(get)},
    "SVDNoiseAugmentation": _pass_on("image"),
    "SVDVAEEncode": _pass_on("image"),
    "VAEEncode": _pass_on("pixels"),
    "SVDImageConditioning": lambda get: {2: _conditioned_size(get)},
    "SVD_img2vid_Conditioning": lambda get: {2: _video_size(get)},
    "SVDEulerSampler": _pass_on("latent"),
    "KSampler": _pass_on("latent_image"),
    "KSamplerAdvanced": _pass_on("latent_image"),
    "SamplerCustom": _pass_on("latent_image", 2),
    "SamplerCustomAdvanced": _pass_on("latent_image", 2),
    "SVDTemporalVAEDecode": _pass_on("latent"),
    "VAEDecode": _pass_on("samples"),
    "VAEDecodeTiled": _pass_on("samples"),
    "SVDImageToVideo": lambda get: {0: _video_size(get)},
}
"""Class type -> what is known of its outputs by slot: clips, numbers, names of checkpoints."""


def _follow_values(prompt: Prompt) -> dict[tuple[str, int], Any]:
    """Return what is known of the outputs, by node id and slot."""
    values: dict[tuple[str, int], Any] = {}
    order, _ = run_order(list(prompt), {node_id: sources_of(node) for node_id, node in prompt.items()})
    for node_id in order:
        rule = RULES.get(prompt[node_id]["class_type"])
        known = rule(_input_getter(prompt[node_id], values)) if rule is not None else {}
        values.update({(node_id, slot): value for slot, value in known.items()})
    return values


def _input_getter(node: Mapping[str, Any], values: Mapping[tuple[str, int], Any]) -> Get:
    def get(name: str) -> Any:
        value = node["inputs"].get(name)
        return values.get((value[0], int(value[1]))) if looks_like_link(value) else unwrap_value(value)

    return get


_UNET_FIRST, _VAE_FIRST = "model.diffusion_model.input_blocks.0.0.weight", "first_stage_model.encoder.conv_in.weight"


def base_channels(runtime: LocalRuntime, checkpoint: Any) -> tuple[int, int]:
    """Return the base channels of a checkpoint's UNet and VAE from its header or config files, 0 if unknown."""
    with contextlib.suppress(CheckpointError, OSError, ValueError, LookupError, TypeError):
        if isinstance(checkpoint, str):
            return _read_base_channels(runtime.library.find(checkpoint))
    return 0, 0


def _read_base_channels(path: Path) -> tuple[int, int]:
    if path.is_file():
        tensors = read_header(path).tensors
        shapes = (tensors[name].shape if name in tensors else (0,) for name in (_UNET_FIRST, _VAE_FIRST))
        unet, vae = (int(shape[0]) for shape in shapes)
        return unet, vae
    configs = (read_config(path / part / "config.json") for part in ("unet", "vae"))
    unet, vae = (int(config["block_out_channels"][0]) for config in configs)
    return unet, vae


def _host_memory() -> int:
    """Return the machine's memory and swap in bytes."""
    import psutil

    return psutil.virtual_memory().total + psutil.swap_memory().total


def _device_memory(runtime: LocalRuntime) -> int | None:
    """Return the memory of the compute device in bytes, limited by `vram` on a graphics card.

    None if only torch could tell it, and torch is not imported.
    """
    if runtime.device_name == "cpu":
        return _host_memory()
    torch = sys.modules.get("torch")
    if torch is None:
        return None
    device = runtime.device()
    if device.type != "cuda":
        return _host_memory()
    total = torch.cuda.get_device_properties(device).total_memory
    return total if runtime.vram is None else min(total, runtime.vram)
