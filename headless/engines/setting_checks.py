"""Check the settings of a video by the declarations of the nodes that take them. Errors name the settings."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields, replace
from numbers import Number
from typing import Any

from ...svd_core.errors import SettingError, closest, printable
from ...svd_core.pipeline import VideoSettings, check_choice
from ...svd_core.utils.size_checks import check_multiple
from ..graph.check_node import Problem, check_constant
from ..graph.node_schema import Declarations, DeclaredInput
from .graphs import NODES

SETTING_INPUTS = {
    "model": ("SVDCheckpointLoader", "checkpoint"),
    "width": ("SVDResizeImage", "width"),
    "height": ("SVDResizeImage", "height"),
    "fit": ("SVDResizeImage", "fit"),
    "noise_aug_strength": ("SVDNoiseAugmentation", "noise_aug_strength"),
    "seed": ("SVDNoiseAugmentation", "seed"),
    "num_frames": ("SVDImageConditioning", "video_frames"),
    "fps": ("SVDMicroConditioning", "fps"),
    "motion_bucket_id": ("SVDMicroConditioning", "motion_bucket_id"),
    "steps": ("SVDEulerSampler", "steps"),
    "min_guidance": ("SVDEulerSampler", "min_guidance"),
    "max_guidance": ("SVDEulerSampler", "max_guidance"),
    "noise": ("SVDEulerSampler", "noise"),
    "decode_mode": ("SVDTemporalVAEDecode", "mode"),
    "decode_chunk": ("SVDTemporalVAEDecode", "chunk_size"),
    "decode_context": ("SVDTemporalVAEDecode", "context"),
}
"""Field of VideoSettings -> the node class and input that it sets. Other nodes get the value by links."""
ADDED_INPUTS = {
    "guidance_from": ("SVDGuidanceRefine", "sigma_low"),
    "guidance_to": ("SVDGuidanceRefine", "sigma_high"),
    "step_cache": ("SVDStepCache", "interval"),
}
"""The same for settings whose node is in the graph only if they are not at their default."""
SETTINGS = tuple(field.name for field in fields(VideoSettings))


def unknown_name(name: str, known: Iterable[str], refusal: str, help_of: str) -> TypeError:
    """Return the error for a name that is not known: the refusal, the name, and the nearest one or where to read."""
    near = closest(name, known)
    return TypeError(f"{refusal} {name!r}; {f'did you mean {near!r}?' if near else f'see help({help_of})'}")


def check_settings(settings: VideoSettings) -> VideoSettings:
    """Return settings with values of the declared types: "4" steps become 4.

    Raises:
        TypeError: A value is not one text or number.
        SettingError: A value is out of its range. The code is that of the same fault in a graph.
    """
    declarations = Declarations(NODES)
    values = {}
    for field in fields(settings):
        value = getattr(settings, field.name)
        if value is None and ("None" in str(field.type)):
            continue
        if field.name == "sigmas":
            values["sigmas"] = _checked_sigmas(value)
            continue
        if not isinstance(value, (str, Number)) or isinstance(value, bool):
            one = {int: "one integer", float: "one number"}.get(field.metadata["kind"], "one name")
            raise TypeError(f"`{field.name}` must be {one}, got {printable(repr(value), 60)}")
        if field.name == "model":  # it has the library's own error
            continue
        if place := {**SETTING_INPUTS, **ADDED_INPUTS}.get(field.name):
            class_type, input_name = place
            values[field.name] = _checked(field.name, value, declarations[class_type].inputs[input_name])
        else:
            check_choice(field.name, value, field.metadata["choices"])
    return replace(settings, **values)


def _checked_sigmas(value: Any) -> tuple[float, ...]:
    """Return falling noise levels. Raises SettingError."""
    from ...svd_core.diffusion.schedules import read_sigmas

    return tuple(read_sigmas(value).tolist())


def _checked(name: str, value: Any, declared: DeclaredInput) -> Any:
    """Return a value of the declared type. Raises SettingError with the name of the setting."""
    converted, fault = check_constant(declared, value)
    is_rounded = declared.kind == "INT" and isinstance(value, float) and value != converted
    if fault is None and not is_rounded:
        if declared.kind == "INT" and converted % (step := declared.options.get("step", 1)):
            check_multiple(name, converted, step)
        return converted
    expected = _expected(declared, fault)
    near = closest(str(value), map(str, declared.choices or ()))
    hint = f'. Did you mean "{near}"?' if near else ""
    is_multiple = (
        declared.kind != "INT" or not isinstance(converted, int) or converted % declared.options.get("step", 1) == 0
    )
    code = f"graph.{fault['type']}" if fault and is_multiple else "setting"
    raise SettingError(f"`{name}` must be {expected}, got {printable(value, 60)}{hint}", code=code)


def _expected(declared: DeclaredInput, fault: Problem | None) -> str:
    if declared.choices:
        return f"one of {', '.join(map(str, declared.choices))}"
    if fault is not None and fault["type"].startswith("value_"):
        return f"{declared.options['min']} to {declared.options['max']}"
    return {"INT": "an integer", "FLOAT": "a finite number"}.get(str(declared.kind), str(declared.kind))
