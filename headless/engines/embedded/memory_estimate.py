"""What a graph would take at its heaviest, from the sizes that it names, so that what cannot fit is refused at once.

Sizes are followed along the links from the literals that set them. What cannot be known before a run (the size of a
picture, a number that a node computes) is not guessed: it refuses nothing. So does all that may fit: every figure is
the least that the stage takes, held against all the memory there is, free or not.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ....svd_core.checkpoints.diffusers_format import read_config
from ....svd_core.checkpoints.safetensors_header import read_header
from ....svd_core.errors import CheckpointError, GraphError
from ....svd_core.runtime.memory import UNET_LIVE_TENSORS, format_bytes
from ....svd_core.runtime.runtime import LocalRuntime
from ...graph import Prompt
from ...graph.check_node import problem
from ...graph.prompt import looks_like_link, name_node, run_order, sources_of, unwrap_value, with_ancestors

MAX_PIXELS = 2**35
"""Of one video, all frames together: 384 GiB as float32. Nobody wants that, whatever the machine has."""
PIXEL_BYTES = 12
"""Three colours in float32, as IMAGE has them."""
LEAST_ITEMSIZE = 2
"""Bytes of a number in the narrowest precision that is computed in."""
SCALE = 8


@dataclass(frozen=True)
class Clip:
    """What is known of a picture, a latent or a video: its size in pixels, and its frames; None for what is not."""

    frames: int | None = None
    height: int | None = None
    width: int | None = None

    @property
    def pixels(self) -> int | None:
        """Of all frames."""
        if self.frames is None or self.height is None or self.width is None:
            return None
        return self.frames * self.height * self.width

    def __str__(self) -> str:
        return f"{self.frames} frames of {self.width}x{self.height}"


@dataclass(frozen=True)
class Cost:
    """A stage's need. `room` is what there could be for it, `whose` words for that; `suggestion` ends the message."""

    node_id: str
    what: str
    need: int
    room: int
    suggestion: str
    whose: str = "this machine has"


def check_memory_budget(prompt: Prompt, outputs: Iterable[str], runtime: LocalRuntime) -> None:
    """Raise GraphError (`graph.too_expensive`) when a stage of a valid graph surely cannot fit into this machine.

    outputs  the nodes that it is to run for; what they do not need is not looked at

    Needs no torch; what a graphics card has is asked only where torch is loaded already.
    """
    needed = with_ancestors(outputs, {node_id: sources_of(node) for node_id, node in prompt.items()})
    for cost in _costs({node_id: node for node_id, node in prompt.items() if node_id in needed}, runtime):
        if cost.need > cost.room:
            message = (
                f"{name_node(prompt, cost.node_id)} {cost.what} needs about {format_bytes(cost.need)}; "
                f"{cost.whose} {format_bytes(cost.room)}. {cost.suggestion}."
            )
            class_type = prompt[cost.node_id]["class_type"]
            told = {"need": cost.need, "room": cost.room}
            fault = problem("too_expensive", "The stage cannot fit into memory", message, **told)
            errors = {cost.node_id: {"errors": [fault], "dependent_outputs": [], "class_type": class_type}}
            raise GraphError(message, code="graph.too_expensive", node_errors=errors)


def _costs(prompt: Prompt, runtime: LocalRuntime) -> Iterator[Cost]:
    """The costs of all stages whose sizes are known."""
    found = _follow(prompt)
    widths, device = _Widths(runtime), _device_memory(runtime)
    for node_id, node in prompt.items():
        get = found.inputs_of(node)
        stage = STAGES.get(node["class_type"])
        clip = stage.clip(get) if stage is not None else None
        if stage is None or not isinstance(clip, Clip) or clip.pixels is None:
            continue
        smaller, frames = "Ask for fewer frames or a smaller size", clip.pixels * PIXEL_BYTES
        if clip.pixels > MAX_PIXELS:
            most = MAX_PIXELS * PIXEL_BYTES
            yield Cost(node_id, f"works on {clip}, which", frames, most, smaller, "a video may take")
        if stage.decodes:
            yield Cost(node_id, f"is to make {clip}, which", frames, _host_memory(), smaller)
        if device is None:
            continue
        unet, vae = widths.of(get("model" if stage.samples else "vae"))
        if stage.samples and unet:
            numbers = UNET_LIVE_TENSORS * unet * (clip.pixels // SCALE**2)
            yield Cost(node_id, f"samples {clip}, which", numbers * LEAST_ITEMSIZE, device, smaller)
        if stage.decodes and vae and get("mode" if "mode" in node["inputs"] else "decode_mode") == "exact":
            room = max(device, _host_memory())
            numbers = vae * clip.pixels
            suggestion = "Use mode windowed, fewer frames or a smaller size"
            yield Cost(node_id, f"decodes {clip} as one clip, which", numbers * LEAST_ITEMSIZE, room, suggestion)


Get = Callable[[str], Any]
"""The value of an input by name: a literal, or what is known of what a link brings; None when nothing is."""


@dataclass(frozen=True)
class Stage:
    """A node that does heavy work. `clip` tells what it works on."""

    clip: Callable[[Get], Any]
    samples: bool = False
    decodes: bool = False


def _whole(get: Get) -> Clip:
    return Clip(_number(get("video_frames")), _number(get("height")), _number(get("width")))


def _picture(get: Get) -> Clip:
    return Clip(None, _number(get("height")), _number(get("width")))


def _conditioned(get: Get) -> Any:
    latent = get("image_latent")
    return Clip(_number(get("video_frames")), latent.height, latent.width) if isinstance(latent, Clip) else None


def _same(name: str, slots: int = 1) -> Callable[[Get], dict[int, Any]]:
    """A node that gives on what it gets."""
    return lambda get: dict.fromkeys(range(slots), get(name))


STAGES: dict[str, Stage] = {
    "SVDEulerSampler": Stage(lambda get: get("latent"), samples=True),
    "KSampler": Stage(lambda get: get("latent_image"), samples=True),
    "KSamplerAdvanced": Stage(lambda get: get("latent_image"), samples=True),
    "SamplerCustom": Stage(lambda get: get("latent_image"), samples=True),
    "SVDTemporalVAEDecode": Stage(lambda get: get("latent"), decodes=True),
    "VAEDecode": Stage(lambda get: get("samples"), decodes=True),
    "VAEDecodeTiled": Stage(lambda get: get("samples"), decodes=True),
    "SVDImageToVideo": Stage(_whole, samples=True, decodes=True),
}

RULES: dict[str, Callable[[Get], dict[int, Any]]] = {
    "PrimitiveInt": _same("value"),
    "PrimitiveString": _same("value"),
    "SVDCheckpointLoader": _same("checkpoint", 3),
    "ImageOnlyCheckpointLoader": _same("ckpt_name", 3),
    "SVDModelOptions": _same("model"),
    "VideoLinearCFGGuidance": _same("model"),
    "VideoTriangleCFGGuidance": _same("model"),
    "SVDResizeImage": lambda get: {0: _picture(get), 1: get("width"), 2: get("height")},
    "ImageScale": lambda get: {0: _picture(get)},
    "SVDNoiseAugmentation": _same("image"),
    "SVDVAEEncode": _same("image"),
    "VAEEncode": _same("pixels"),
    "SVDImageConditioning": lambda get: {2: _conditioned(get)},
    "SVD_img2vid_Conditioning": lambda get: {2: _whole(get)},
    "SVDEulerSampler": _same("latent"),
    "KSampler": _same("latent_image"),
    "KSamplerAdvanced": _same("latent_image"),
    "SamplerCustom": _same("latent_image", 2),
    "SamplerCustomAdvanced": _same("latent_image", 2),
}
"""Class type -> what is known of its outputs by slot: clips, numbers, names of checkpoints."""


def _number(value: Any) -> int | None:
    """A size; 0 means "as it comes" to ImageScale."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


@dataclass(frozen=True)
class _Found:
    """What is known of outputs, by node and slot."""

    values: dict[tuple[str, int], Any] = field(default_factory=dict)

    def inputs_of(self, node: Mapping[str, Any]) -> Get:
        """The inputs of a node."""

        def get(name: str) -> Any:
            value = node["inputs"].get(name)
            return self.values.get((value[0], int(value[1]))) if looks_like_link(value) else unwrap_value(value)

        return get


def _follow(prompt: Prompt) -> _Found:
    """Go through a graph with the sources first."""
    found = _Found()
    order, _ = run_order(list(prompt), {node_id: sources_of(node) for node_id, node in prompt.items()})
    for node_id in order:
        rule = RULES.get(prompt[node_id]["class_type"])
        known = rule(found.inputs_of(prompt[node_id])) if rule is not None else {}
        found.values.update({(node_id, slot): value for slot, value in known.items()})
    return found


@dataclass(frozen=True)
class _Widths:
    """The first widths of a checkpoint's UNet and VAE, from its header or config files."""

    runtime: LocalRuntime
    known: dict[str, tuple[int, int]] = field(default_factory=dict)

    def of(self, checkpoint: Any) -> tuple[int, int]:
        """(UNet, VAE); 0 for what is not known."""
        if not isinstance(checkpoint, str):
            return 0, 0
        if checkpoint not in self.known:
            self.known[checkpoint] = 0, 0
            with contextlib.suppress(CheckpointError, OSError, ValueError, LookupError, TypeError):
                self.known[checkpoint] = _read_widths(self.runtime.library.find(checkpoint))
        return self.known[checkpoint]


_UNET_FIRST, _VAE_FIRST = "model.diffusion_model.input_blocks.0.0.weight", "first_stage_model.encoder.conv_in.weight"


def _read_widths(path: Path) -> tuple[int, int]:
    if path.is_file():
        tensors = read_header(path).tensors
        shapes = (tensors[name].shape if name in tensors else (0,) for name in (_UNET_FIRST, _VAE_FIRST))
        unet, vae = (int(shape[0]) for shape in shapes)
        return unet, vae
    configs = (read_config(path / part / "config.json") for part in ("unet", "vae"))
    unet, vae = (int(config["block_out_channels"][0]) for config in configs)
    return unet, vae


def _host_memory() -> int:
    """All that the machine has, with what it may swap."""
    import psutil

    return psutil.virtual_memory().total + psutil.swap_memory().total


def _device_memory(runtime: LocalRuntime) -> int | None:
    """All that the compute device has, of a graphics card not more than `--vram`; None when only torch could say."""
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
