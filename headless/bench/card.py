"""`svd-stages bench --card`: everything about one card in one run, each row written as soon as it is measured.

A row is a function of a `Card` that returns values. Its errors are rows, too. See docs/reference/bench-card.md.
"""

from __future__ import annotations

import functools
import json
import os
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...svd_core.errors import OutputError, quoted
from ...svd_core.models.options import ModelOptions
from ...svd_core.runtime.device_errors import is_device_lost, is_memory_error
from ...svd_core.utils.progress import Progress
from . import card_rows_machine as machine
from . import card_rows_models as models
from . import card_rows_parts as parts
from .card_models import Card, NotMeasured
from .measuring import first_line

NEEDS_CUDA = "needs CUDA"


@dataclass(frozen=True)
class Row:
    """A row of a group.

    Attributes:
        name: Unique in the group.
        measure: Returns the row's values. Its errors become the row.
        cuda: It cannot exist without CUDA.
    """

    name: str
    measure: Callable[[Card], dict[str, Any]]
    cuda: bool = False


def _row(name: str, measure: Callable[..., dict[str, Any]], *values: Any, cuda: bool = False) -> Row:
    return Row(name, lambda card: measure(card, *values), cuda)


STEP = [
    _row("diffusers", models.step_stock),
    _row("diffusers, channels-last", models.step_stock_channels_last),
    _row("ours", models.step_ours, ModelOptions()),
    _row("ours, regional", models.step_ours, ModelOptions(compile="regional")),
]
DECODE = [
    _row("diffusers", models.decode_stock),
    _row("diffusers, channels-last", models.decode_stock_channels_last),
    _row("ours", models.decode_ours),
]
COMPILED = [
    _row("step: ours, regional, max-autotune", models.step_autotuned, cuda=True),
    _row("decode: diffusers, compiled", models.decode_stock_compiled, cuda=True),
    _row("step: diffusers, compiled", models.step_stock_compiled, cuda=True),
]
REWRITES = [
    _row("step: attention auto", models.step_option, "attention", "sdpa"),
    _row("step: forward_chunking auto", models.step_option, "forward_chunking", "off"),
    _row("step: channels-last", models.step_with_other_format),
    _row("group norm, SiLU", parts.norm_silu, False),
    _row("group norm, SiLU, channels-last", parts.norm_silu, True),
    _row("group norm of a clip in parts", parts.clip_norm_silu),
    _row("convolution, channels-last", parts.convolution_format),
    _row("temporal convolution as 2D", parts.temporal_convolution, False),
    _row("temporal convolution as 2D, channels-last", parts.temporal_convolution, True),
    _row("joined projections, spatial", parts.joined_projections, True),
    _row("joined projections, temporal", parts.joined_projections, False),
    _row("constant cross-attention", parts.constant_cross_attention),
    _row("feed-forward in chunks, in place", parts.feed_forward),
    _row("blend as a weighted sum", parts.blend),
]
BACKENDS = {
    "torch's choice": (None, False),
    "math": ("MATH", False),
    "efficient": ("EFFICIENT_ATTENTION", True),
    "flash": ("FLASH_ATTENTION", False),
    "cudnn": ("CUDNN_ATTENTION", True),
}
"""Name -> SDPBackend, and whether it needs CUDA."""
ATTENTION = [
    *(
        _row(f"{kind}, level {level}: {name}", parts.attention, kind, level, backend, cuda=cuda)
        for kind in ("spatial", "temporal")
        for level in range(parts.LEVELS)
        for name, (backend, cuda) in BACKENDS.items()
    ),
    *(
        _row(f"decoder: {name}", parts.decoder_attention, backend, cuda=cuda)
        for name, (backend, cuda) in BACKENDS.items()
    ),
    _row("decoder: two products and a softmax", parts.decoder_attention_by_products),
]
COMPUTE = [
    _row("matrix product", parts.matrix_product),
    _row("convolution", parts.convolution, False),
    _row("convolution, channels-last", parts.convolution, True),
    _row("copy on the device", parts.copy_on_device),
]
TRANSFERS = [
    *(
        _row(f"clip {way} the device, {kind}", parts.copy_clip, way == "to", kind == "pinned", cuda=True)
        for way in ("to", "from")
        for kind in ("pageable", "pinned")
    ),
    _row("images, converted on the device", parts.convert_images, True),
    _row("images, converted on the CPU", parts.convert_images, False, cuda=True),
    *(
        _row(f"{name} {way} the device", parts.move, name, way == "to", cuda=True)
        for name in ("UNet", "VAE")
        for way in ("to", "from")
    ),
]
WEIGHTS = [
    _row("all weights, pageable", models.copy_weights, False),
    _row("all weights, pinned", models.copy_weights, True, cuda=True),
    _row("step: resident", models.step_alone),
    _row("step: streamed, pageable", models.step_streamed, False),
    _row("step: streamed, pinned", models.step_streamed, True, cuda=True),
]
CUDNN = [
    _row(f"{name}: benchmark {state}", *([models.with_cudnn_benchmark, run] if state == "on" else [run]), cuda=True)
    for name, run in (
        ("step", models.step_alone),
        ("decode", functools.partial(models.decode_activations, activations="keep")),
    )
    for state in ("off", "on")
]
GROUPS: dict[str, list[Row]] = {
    "machine": [
        _row("versions", machine.versions),
        _row("card", machine.properties, cuda=True),
        _row("driver, clocks, power", machine.clocks, cuda=True),
    ],
    "checks": [
        _row("UNet", machine.check_unet),
        _row("UNet, compiled blocks", machine.check_unet, ModelOptions(compile="regional")),
        _row("UNet, streamed", machine.check_streamed_unet),
        _row("decoder", machine.check_decoder),
        _row("decoder, activations anywhere", machine.check_activations),
    ],
    "step": STEP,
    "decode": DECODE,
    "activations": [
        _row(f"decode: {each}", models.decode_activations, each) for each in ("recompute", "keep", "offload")
    ],
    "compute": COMPUTE,
    "attention": ATTENTION,
    "rewrites": REWRITES,
    "weights": WEIGHTS,
    "transfers": TRANSFERS,
    "memory": [
        _row(f"{stage} within {vram}", within, vram)
        for stage, within in (("two steps", models.sample_within), ("decode", models.decode_within))
        for vram in ("4G", "6G", "8G")
    ],
    "cudnn": CUDNN,
    "profile": [_row("step", models.profile_step), _row("decode", models.profile_decode)],
    "compiled": COMPILED,
}
"""Group -> rows, in order: what is wanted first comes first, what compiles for minutes comes last."""


@dataclass(frozen=True)
class CardBench:
    """Settings of the benchmark of a card.

    Attributes:
        card: The device and its models.
        groups: Keys of `GROUPS`.
        seconds: Rows that would begin later are skipped.
        progress: Shows the rows.
    """

    card: Card
    groups: Collection[str]
    seconds: float
    progress: Progress


@torch.inference_mode()
def measure_card(bench: CardBench, clock: Callable[[], float] = time.monotonic) -> Iterator[dict[str, Any]]:
    """Measure the rows one after the other and yield each: group, row, status, its values or the reason.

    Status is ok, failed (a check), error, or skipped: with the `reason`.
    """
    began, lost = clock(), None
    rows = [(group, row) for group in GROUPS if group in bench.groups for row in GROUPS[group]]
    with bench.progress("card", len(rows), "row") as advance:
        for index, (group, row) in enumerate(rows):
            late = clock() - began > bench.seconds
            values: dict[str, Any]
            if lost is not None:
                values = {"status": "skipped", "reason": f"the device broke down before: {lost}"}
            elif row.cuda and not bench.card.is_cuda:
                values = {"status": "skipped", "reason": NEEDS_CUDA}
            elif late:
                values = {"status": "skipped", "reason": f"{bench.seconds / 60:g} minutes were over"}
            else:
                values = _measure(row, bench.card)
                lost = values.pop("lost", None)
            yield {"group": group, "row": row.name, **values, "at": round(clock() - began, 1)}
            advance(index + 1)


def _measure(row: Row, card: Card) -> dict[str, Any]:
    try:
        values = row.measure(card)
        return {"status": "ok" if values.get("passed", True) else "failed", **values}
    except NotMeasured as error:
        return {"status": "skipped", "reason": str(error)}
    except Exception as error:
        reason = first_line(error)
        if is_memory_error(error):
            failure = {"status": "skipped", "reason": f"does not fit into memory: {reason}"}
        else:
            failure = {"status": "error", "reason": reason}
            if is_device_lost(error):
                failure["lost"] = reason
    card.forget_models()  # what the error left is not known
    return failure


class RowFile:
    """A JSON Lines file to which rows are appended. Each is on the disk before the next one is measured.

    Raises:
        OutputError: The file cannot be written (code `output.failed`).
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.add()  # before anything is measured

    def add(self, *rows: dict[str, Any]) -> None:
        """Append rows."""
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(row, default=str) + "\n" for row in rows)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OutputError(
                f"{quoted(self._path)} cannot be written: {error.strerror}", code="output.failed"
            ) from error
