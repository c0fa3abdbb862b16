"""Check the arguments of loading and calling a pipeline, before anything is read or computed."""

from __future__ import annotations

import logging
import math
import operator
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

import torch

from ..autoencoder.decode import MODES
from ..diffusion.noise_augmentation import make_generator
from ..errors import SettingError, printable

logger = logging.getLogger(__name__)

COMPONENT_NAMES = ("vae", "image_encoder", "unet", "scheduler", "feature_extractor")
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "revision", "token")
KNOWN = (*COMPONENT_NAMES, "torch_dtype", "dtype", "device_map", "use_safetensors")
"""Arguments of both loading functions."""
REFUSED = {
    "custom_pipeline": "it would run a program of somebody else",
    "custom_revision": "it would run a program of somebody else",
    "trust_remote_code": "it would run a program from the checkpoint's folder",
    "quantization_config": "the weights are loaded as they are stored",
    "config": "the settings of a single file are read from its tensors",
    "original_config": "the settings of a single file are read from its tensors",
    "proxies": "set HTTPS_PROXY in the environment instead",
    "use_flashpack": "the weights are loaded from .safetensors",
    "use_onnx": "the weights are loaded from .safetensors",
}
"""Arguments of diffusers' loading functions -> why they are refused."""
NO_EFFECT = {
    "low_cpu_mem_usage": "the weights are always read one tensor at a time",
    "disable_mmap": "the files are always read, never mapped",
    "max_memory": "call enable_model_cpu_offload, or pass vram to the call",
    "offload_folder": "nothing is offloaded to a disk",
    "offload_state_dict": "nothing is offloaded to a disk",
}
"""Arguments that change no result -> what happens instead."""
OTHER_PIPELINES = {
    **dict.fromkeys(
        (
            *("prompt", "prompt_2", "prompt_3", "prompt_embeds", "prompt_attention_mask", "pooled_prompt_embeds"),
            *("negative_prompt", "negative_prompt_2", "negative_prompt_3", "negative_prompt_embeds"),
            *("negative_prompt_attention_mask", "negative_pooled_prompt_embeds", "clip_skip", "max_sequence_length"),
        ),
        "SVD takes no text prompt: it animates image=..., and motion_bucket_id sets the amount of motion",
    ),
    **dict.fromkeys(
        ("mask", "mask_image", "masked_image_latents", "padding_mask_crop"),
        "SVD takes no mask: it animates the whole image. Leave it out",
    ),
    **dict.fromkeys(
        (
            *("control_image", "conditioning_frames", "controlnet_conditioning_scale", "control_guidance_start"),
            *("control_guidance_end", "guess_mode", "controlnet"),
        ),
        "SVD has no ControlNet here. Leave it out",
    ),
    **dict.fromkeys(
        ("ip_adapter_image", "ip_adapter_image_embeds", "image_embeds", "image_encoder_hidden_states"),
        "SVD sees the image itself. Give it as image=...",
    ),
    **dict.fromkeys(
        ("video", "last_image", "end_image", "last_frame"),
        "SVD animates one image, its first frame. Give it as image=...",
    ),
    **dict.fromkeys(
        ("cross_attention_kwargs", "joint_attention_kwargs", "attention_kwargs"),
        "Attention processors are set with pipe.unet.set_attn_processor",
    ),
    **dict.fromkeys(("eta", "timesteps"), "sampler=... chooses how a step is made, sigmas=[...] its noise levels"),
    "strength": "Every frame is sampled from noise; noise_aug_strength sets the noise added to the image",
    **dict.fromkeys(
        ("safety_checker", "requires_safety_checker", "tokenizer", "text_encoder"), "SVD has none. Leave it out"
    ),
}
"""Arguments of other pipelines of diffusers that SVD has nothing for -> what to do."""
RENAMED = {
    **dict.fromkeys(("num_images_per_prompt", "num_samples", "batch_size"), ("num_videos_per_prompt",)),
    **dict.fromkeys(("n_frames", "video_length", "video_frames", "length"), ("num_frames",)),
    **dict.fromkeys(
        ("cfg", "cfg_scale", "guidance", "true_cfg_scale", "image_guidance_scale", "guidance_rescale"),
        ("min_guidance_scale", "max_guidance_scale"),
    ),
    **dict.fromkeys(("cond_aug", "augmentation_level"), ("noise_aug_strength",)),
    **dict.fromkeys(("fps_id", "frame_rate", "conditioning_fps"), ("fps",)),
    **dict.fromkeys(("decoding_t", "vae_batch_size"), ("decode_chunk_size",)),
    **dict.fromkeys(("callback", "callback_steps"), ("callback_on_step_end",)),
    "size": ("height", "width"),
}
"""Arguments of other programs -> those of SVD in diffusers that mean the same."""
DEVICES = ("cpu", "cuda", "mps", "xpu")
PRECISIONS = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
CHUNK_SIZE = 8
"""Frames of a window if decode is "windowed" and decode_chunk_size is not given."""

Generators = torch.Generator | list[torch.Generator] | None
Dtype = torch.dtype | Mapping[str, torch.dtype] | None
"""dtype of all modules, or one for each name, with "default" for the others. None: float32."""


def check_loading(function: str, arguments: Mapping[str, Any], more: Iterable[str] = (), local: bool = False) -> None:
    """Check the arguments of from_pretrained or from_single_file. Log those that have no effect.

    Args:
        function: Its name.
        more: Names of its own arguments.
        local: It downloads nothing: arguments for the hub have no effect.

    Raises:
        SettingError: An argument is set that is not supported (code `pipeline.unsupported`).
        TypeError: An argument is unknown.
    """
    no_effect = {**NO_EFFECT, **dict.fromkeys(HUB_ARGUMENTS if local else (), "it opens a file of this machine")}
    refuse_unknown(function, arguments, [*KNOWN, *REFUSED, *no_effect, *more])
    for name, reason in REFUSED.items():
        if arguments.get(name):
            _refuse(f"{name} is not supported: {reason}. Leave it out.")
    placement = arguments.get("device_map")
    if placement is not None and (isinstance(placement, Mapping) or str(placement).split(":")[0] not in DEVICES):
        _refuse(
            f"device_map must be one device, got {printable(repr(placement), 40)}; call to, enable_model_cpu_offload "
            "or enable_sequential_cpu_offload on the pipeline"
        )
    if arguments.get("use_safetensors") is False:
        _refuse("use_safetensors=False is not supported: a pickle can run any program. Leave it out.")
    for name, instead in no_effect.items():
        if arguments.get(name) is not None:
            logger.warning("%s: %s has no effect: %s", function, name, instead)


def _refuse(message: str) -> None:
    raise SettingError(message, code="pipeline.unsupported")


def refuse_unknown(function: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Raise TypeError for the first of `names` that is not known, with what to do instead."""
    known = list(known)
    for name in names:
        if name not in known:
            raise TypeError(f'{function} has no argument "{printable(name, 60)}". {_instead_of(name, known)}.')


def _instead_of(name: str, known: list[str]) -> str:
    """Return what to do instead of giving an unknown argument: that of another pipeline, or a misspelled one."""
    if name in OTHER_PIPELINES:
        return OTHER_PIPELINES[name]
    same = [each for each in RENAMED.get(name, ()) if each in known]
    similar = same or [each for each in known if name in each] or get_close_matches(name, known, 1)
    return f"Use {' or '.join(similar[:2])}" if similar else "Leave it out"


def requested_dtype(arguments: Mapping[str, Any]) -> Dtype:
    """Return the argument `dtype`, or `torch_dtype`. Raises SettingError unless it is a `Dtype` of `PRECISIONS`."""
    name = "torch_dtype" if arguments.get("dtype") is None else "dtype"
    dtype = arguments.get(name)
    for each in dtype.values() if isinstance(dtype, Mapping) else (dtype,):
        if each is not None and each not in PRECISIONS:
            got = printable(repr(each), 60)
            raise SettingError(f"{name} must be torch.float32, torch.float16 or torch.bfloat16, got {got}")
    return dtype


def check_integer(name: str, value: Any, usual: int, lowest: int = 1) -> int:
    """Return an integer argument.

    Args:
        usual: A usual value, for messages.

    Raises:
        TypeError: It is not an integer.
        SettingError: It is below `lowest`.
    """
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer such as {usual}, got {printable(repr(value), 60)}") from None
    if number < lowest:
        raise SettingError(f"{name} must be {lowest} or more, got {number}. Use {usual}.")
    return number


def check_number(name: str, value: Any, usual: float) -> float:
    """Return an argument that is a number.

    Raises:
        TypeError: It is none.
        SettingError: It is not finite.
    """
    if isinstance(value, str) or not hasattr(value, "__float__"):
        raise TypeError(f"{name} must be a number such as {usual}, got {printable(repr(value), 60)}")
    if not math.isfinite(value):
        raise SettingError(f"{name} must be finite, got {value}. Use {usual}.")
    return float(value)


def check_choice(name: str, value: Any, choices: Iterable[str]) -> None:
    """Raise SettingError unless a value is one of `choices`."""
    if value not in choices:
        got = printable(repr(value), 60)
        raise SettingError(f"{name} must be {' or '.join(map(repr, choices))}, got {got}")


def plan_decoding(decode: str | None, chunk_size: int | None, context: int, frames: int) -> tuple[str, int]:
    """Return the mode of `execution.decode` and its chunk size.

    Raises:
        SettingError: A value is out of range, or `decode` is "exact" and there are settings of windows.
        TypeError: A number is not an integer.
    """
    windowed = chunk_size is not None or context != 0
    mode = decode or ("windowed" if windowed else "exact")
    check_choice("decode", mode, MODES)
    check_integer("decode_context", context, 0, lowest=0)
    if mode == "exact" and windowed:
        raise SettingError(
            'decode="exact" decodes all frames as one clip; leave decode_chunk_size and decode_context out, or use '
            'decode="windowed"'
        )
    default = CHUNK_SIZE if mode == "windowed" else frames
    return mode, check_integer("decode_chunk_size", default if chunk_size is None else chunk_size, CHUNK_SIZE)


def choose_generator(generator: Generators, seed: int | None, videos: int) -> Generators:
    """Return the source of all noise: the argument `generator`, or one made from `seed`.

    Raises:
        TypeError: `generator` holds anything but torch.Generator, or the seed is not an integer.
        SettingError: Both are given, the seed is out of range, or a list has another length than there are videos.
    """
    if seed is not None:
        if generator is not None:
            raise SettingError("seed and generator cannot both be given; leave seed out")
        return make_generator(check_integer("seed", seed, 42, lowest=0))
    for each in generator if isinstance(generator, list) else [generator]:
        if not (each is None or isinstance(each, torch.Generator)):
            got = printable(repr(each), 60)
            raise TypeError(
                f"generator must be a torch.Generator or a list of those, got {got}; torch.manual_seed(42) is one"
            )
    if isinstance(generator, list) and len(generator) != videos:
        raise SettingError(f"generator must hold one for each video, {videos} in all, got {len(generator)}")
    return generator
