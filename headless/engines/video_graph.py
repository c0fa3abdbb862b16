"""Make the graph of a video from its settings: the template image_to_video with their values.

It is embedded in the mp4 files of `animate`, and batches run it. Running it gives the frames of
`pipeline.image_to_video`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from decimal import Decimal
from typing import Any

from ...nodes.loading import SVDStepCache
from ...nodes.sampling import SVDGuidanceRefine, SVDSigmas
from ...svd_core.checkpoints.inspect import read_defaults
from ...svd_core.errors import SettingError
from ...svd_core.media.video_size import Size
from ...svd_core.models.options import DEFAULT, ModelOptions
from ...svd_core.pipeline import ALL_LEVELS, VideoSettings
from ...svd_core.runtime.runtime import Runtime
from ..graph import Prompt, with_value
from .graphs import Graph, open_graph
from .run_config import PACKAGE
from .setting_checks import SETTING_INPUTS, check_settings

TEMPLATE = PACKAGE / "example_workflows" / "image_to_video.json"

STAGE_NODES = {
    "load": "SVDCheckpointLoader",
    "resize": "SVDResizeImage",
    "embed": "SVDCLIPVisionEncode",
    "augment": "SVDNoiseAugmentation",
    "encode": "SVDVAEEncode",
    "condition": "SVDImageConditioning",
    "sample": "SVDEulerSampler",
    "decode": "SVDTemporalVAEDecode",
    "save": "SaveVideo",
}
"""The node of each stage of `animate`."""


def image_to_video_graph(
    settings: VideoSettings, runtime: Runtime, image_name: str, image_size: Size | None = None
) -> Graph:
    """Return the graph of a video of the image file `image_name`, which has the width and height `image_size`.

    Without `image_size` the video has the size that the checkpoint was trained for.

    Raises:
        CheckpointError: There is no checkpoint `settings.model`.
        SettingError, TypeError: A setting is out of its range, or of another type.
    """
    settings = check_settings(settings)
    defaults = read_defaults(runtime.library.find(settings.model))
    return Graph(make_prompt(settings.with_defaults(defaults, image_size), image_name))


def make_prompt(settings: VideoSettings, image_name: str) -> Prompt:
    """Return the template's graph with settings without None, in API format.

    Node ids and the order of inputs stay those of the template: batches of today are named by them.
    """
    prompt = open_graph(TEMPLATE).prompt
    _inputs_of(prompt, "LoadImage")["image"] = image_name
    _inputs_of(prompt, "SaveVideo")["filename_prefix"] = "video"
    for name, (class_type, input_name) in SETTING_INPUTS.items():
        _inputs_of(prompt, class_type)[input_name] = getattr(settings, name)
    return with_sampling(with_compile(prompt, settings.compile), {name: getattr(settings, name) for name in SAMPLING})


def with_compile(prompt: Prompt, compile: str) -> Prompt:
    """Return the graph with the option compile of its UNet. The default needs no node. Raises SettingError."""
    model_options = asdict(ModelOptions(compile=compile))
    if nodes := _nodes_of_class(prompt, "SVDModelOptions"):
        return with_value(prompt, nodes[0], "compile", compile)
    if compile == DEFAULT.compile:
        return prompt
    follower = CACHE_ID if _is_own(prompt, CACHE_ID) else node_of_class(prompt, "SVDEulerSampler")
    node = {"class_type": "SVDModelOptions", "inputs": {"model": prompt[follower]["inputs"]["model"], **model_options}}
    return with_value({**prompt, "options": node}, follower, "model", ["options", 0])


SAMPLING = ("sampler", "schedule", "steps", "sigmas", *ALL_LEVELS, "step_cache")
"""The settings that `with_sampling` writes into a graph."""
SAMPLING_LINKS = {
    "sampler": {"sampler"},
    "sigmas": {"schedule", "steps", "sigmas"},
    "guidance": set(ALL_LEVELS),
}
"""Input of SVDEulerSampler -> the settings that its link stands for."""
CACHE_ID = "cache"
SAMPLING_NODES = {
    "sampler": "SVDSamplerSelect", "sigmas": "ManualSigmas", "schedule": "SVDSigmas", "refine": "SVDGuidanceRefine",
    CACHE_ID: "SVDStepCache",
}  # fmt: skip
"""Ids and classes of the nodes that `with_sampling` makes."""
SCHEDULE_INPUTS, REFINE_INPUTS, CACHE_INPUTS = (
    {name: options["default"] for name, (_, options) in node.INPUTS.items() if "default" in options}
    for node in (SVDSigmas, SVDGuidanceRefine, SVDStepCache)
)


def with_sampling(prompt: Prompt, changes: Mapping[str, Any]) -> Prompt:
    """Return the graph with changed settings of SAMPLING. Defaults need no node.

    The noise levels are those of `sigmas`, which a change of `schedule` or `steps` takes away, else of the schedule.
    The node of a schedule stays beside `sigmas`, so that it is known when they go.

    Raises:
        SettingError: Nodes that were not made here choose what changes.
    """
    values, foreign = sampling_of(prompt), _foreign_links(prompt)
    own_cache = [CACHE_ID] if _is_own(prompt, CACHE_ID) else []
    has_foreign_cache = _nodes_of_class(prompt, SAMPLING_NODES[CACHE_ID]) != own_cache
    if any(not SAMPLING_LINKS[name].isdisjoint(changes) for name in foreign) or (
        has_foreign_cache and "step_cache" in changes
    ):
        raise _refused()
    if "sigmas" not in changes and not {"schedule", "steps"}.isdisjoint(changes):
        values["sigmas"] = None
    values.update(changes)
    sampler_id = node_of_class(prompt, "SVDEulerSampler")
    sampler = prompt[sampler_id]["inputs"]
    model = prompt[CACHE_ID]["inputs"]["model"] if own_cache else sampler["model"]
    before = {key: prompt[key]["inputs"] for key in SAMPLING_NODES if _is_own(prompt, key)}
    nodes = _sampling_nodes(values, model, before)
    if any(key in prompt and prompt[key].get("class_type") != node["class_type"] for key, node in nodes.items()):
        raise _refused()
    links = {"sampler": "sampler", "sigmas": "sigmas" if "sigmas" in nodes else "schedule", "guidance": "refine"}
    own = {name: [key, 0] for name, key in links.items() if key in nodes and name not in foreign}
    kept = {name: value for name, value in sampler.items() if name not in SAMPLING_LINKS or name in foreign}
    rest = {key: node for key, node in prompt.items() if node.get("class_type") != SAMPLING_NODES.get(key)}
    inputs = {**kept, "model": [CACHE_ID, 0] if CACHE_ID in nodes else model, "steps": values["steps"], **own}
    return {**rest, sampler_id: {**prompt[sampler_id], "inputs": inputs}, **nodes}


def _sampling_nodes(values: Mapping[str, Any], model: Any, before: Mapping[str, Any]) -> dict[str, Any]:
    """Return the nodes of settings that are not at their default, by ids of SAMPLING_NODES.

    `before`: the inputs of those that are in the graph. Their other inputs stay.
    """
    inputs: dict[str, Any] = {}
    if values["sampler"] != "euler":
        inputs["sampler"] = {"sampler_name": values["sampler"]}
    if values["schedule"] != "karras":
        chosen = {"steps": values["steps"], "schedule": values["schedule"], "model": model}
        inputs["schedule"] = {**SCHEDULE_INPUTS, **before.get("schedule", {}), **chosen}
    if values["sigmas"] is not None:
        inputs["sigmas"] = {"sigmas": ", ".join(format(Decimal(each), "f") for each in values["sigmas"])}
    if any(values[name] != level for name, level in ALL_LEVELS.items()):
        interval = {"sigma_low": values["guidance_from"], "sigma_high": values["guidance_to"]}
        inputs["refine"] = {**REFINE_INPUTS, **before.get("refine", {}), **interval}
    if values["step_cache"] != 1:
        chosen = {"model": model, "interval": values["step_cache"]}
        inputs[CACHE_ID] = {**CACHE_INPUTS, **before.get(CACHE_ID, {}), **chosen}
    return {key: {"class_type": SAMPLING_NODES[key], "inputs": each} for key, each in inputs.items()}


def sampling_of(prompt: Prompt) -> dict[str, Any]:
    """Return the settings of SAMPLING of a graph made here. Nodes of others count as the defaults."""
    steps = _inputs_of(prompt, "SVDEulerSampler")["steps"]
    defaults = {"sampler": "euler", "schedule": "karras", "sigmas": None, **ALL_LEVELS, "step_cache": 1}
    values = {**defaults, "steps": steps}
    made = {key: prompt[key]["inputs"] for key in SAMPLING_NODES if _is_own(prompt, key)}
    if "sampler" in made:
        values["sampler"] = made["sampler"]["sampler_name"]
    if "schedule" in made:
        values["schedule"] = made["schedule"]["schedule"]
    if "sigmas" in made:
        values["sigmas"] = tuple(float(each) for each in made["sigmas"]["sigmas"].split(","))
    if "refine" in made:
        values.update(guidance_from=made["refine"]["sigma_low"], guidance_to=made["refine"]["sigma_high"])
    if CACHE_ID in made:
        values["step_cache"] = made[CACHE_ID]["interval"]
    return values


def _foreign_links(prompt: Prompt) -> set[str]:
    """Return the inputs of SAMPLING_LINKS that lead to nodes which were not made here."""
    inputs = _inputs_of(prompt, "SVDEulerSampler")
    own = [[key, 0] for key in SAMPLING_NODES if _is_own(prompt, key)]
    return {name for name in SAMPLING_LINKS if name in inputs and inputs[name] not in own}


def _is_own(prompt: Prompt, key: str) -> bool:
    """Return True if a node of SAMPLING_NODES was made here."""
    return prompt.get(key, {}).get("class_type") == SAMPLING_NODES[key]


def _refused() -> SettingError:
    return SettingError(
        "the run's graph chooses its sampler, noise levels, guidance or step cache by nodes of its own. Set their "
        "inputs with `settings`."
    )


def takes_settings(prompt: Prompt) -> bool:
    """Return True if a graph has one node for each setting of a video, as the template has."""
    return all(len(_nodes_of_class(prompt, class_type)) == 1 for class_type, _ in SETTING_INPUTS.values())


def settings_of(prompt: Prompt, settings: VideoSettings) -> VideoSettings:
    """Return the settings with the values of a validated graph, in which "4" steps have become 4."""
    values = {name: _inputs_of(prompt, kind)[input_name] for name, (kind, input_name) in SETTING_INPUTS.items()}
    sampling = {name: value for name, value in sampling_of(prompt).items() if name not in ("steps", "sigmas")}
    return replace(settings, **values, **sampling)


def _inputs_of(prompt: Prompt, class_type: str) -> dict[str, Any]:
    return prompt[node_of_class(prompt, class_type)]["inputs"]


def node_of_class(prompt: Prompt, class_type: str) -> str:
    """Return the id of the only node of a class in a graph made here."""
    (node_id,) = _nodes_of_class(prompt, class_type)
    return node_id


def _nodes_of_class(prompt: Prompt, class_type: str) -> list[str]:
    return [key for key, node in prompt.items() if node.get("class_type") == class_type]
