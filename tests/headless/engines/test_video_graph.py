"""Settings of sampling in the graph of a video: nodes only where they differ from the defaults, changes one by one."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from error_checks import raises
from svd_stages.headless import animate
from svd_stages.headless.engines.video_graph import make_prompt, sampling_of, with_compile, with_sampling
from svd_stages.headless.graph import with_value
from svd_stages.svd_core.checkpoints.model_metadata import VideoDefaults
from svd_stages.svd_core.errors import SettingError
from svd_stages.svd_core.pipeline import PRESETS, VideoSettings

UNSET = {"sigmas": None, "step_cache": 1}
REFERENCE = {**PRESETS["reference"], **UNSET}
BALANCED = {**PRESETS["balanced"], **UNSET}
LEVELS = (700.0, 4.25, 0.0)


def prompt(**settings) -> Mapping:
    return make_prompt(VideoSettings(**settings).with_defaults(VideoDefaults()), "a.png")


def classes(graph: Mapping) -> list[str]:
    return [node["class_type"] for node in graph.values()]


def test_the_defaults_need_no_nodes():
    assert classes(prompt()) == classes(prompt(preset="reference"))
    assert {"SVDSamplerSelect", "SVDSigmas", "ManualSigmas", "SVDGuidanceRefine", "SVDStepCache"}.isdisjoint(
        classes(prompt())
    )
    assert sampling_of(prompt()) == REFERENCE


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"sampler": "heun"}, {**BALANCED, "sampler": "heun"}),
        ({"steps": 4}, {**BALANCED, "steps": 4}),
        ({"schedule": "karras"}, {**BALANCED, "schedule": "karras"}),
        ({"sigmas": LEVELS}, {**BALANCED, "sigmas": LEVELS}),
        ({"guidance_from": 0.5}, {**BALANCED, "guidance_from": 0.5}),
        (PRESETS["fast"], {**PRESETS["fast"], **UNSET}),
        ({"step_cache": 3}, {**BALANCED, "step_cache": 3}),
        ({"sampler": "euler", "schedule": "karras", "steps": 25}, REFERENCE),
    ],
    ids=str,
)
def test_a_change_keeps_the_other_settings(changes, wanted):
    changed = with_sampling(prompt(preset="balanced"), changes)
    assert sampling_of(changed) == wanted
    assert sampling_of(with_sampling(changed, {})) == wanted
    back = with_sampling(changed, REFERENCE)
    assert classes(back) == classes(prompt()) and sampling_of(back) == REFERENCE


@pytest.mark.parametrize(
    ("node", "input_name", "value"), [("schedule", "rho", 5.0), ("refine", "eta", 0.5), ("cache", "sigma_from", 9.0)]
)
def test_other_inputs_of_the_nodes_that_were_made_stay(node, input_name, value):
    graph = with_value(prompt(preset="fast", step_cache=2), node, input_name, value)
    changed = with_sampling(graph, {"steps": 8, "step_cache": 3})
    assert changed[node]["inputs"][input_name] == value and sampling_of(changed)["step_cache"] == 3


def test_the_schedule_comes_back_when_noise_levels_go():
    changed = with_sampling(with_sampling(prompt(preset="balanced"), {"sigmas": LEVELS}), {"steps": 8})
    assert sampling_of(changed) == {**BALANCED, "steps": 8}
    assert changed["10"]["inputs"]["sigmas"] == ["schedule", 0]


@pytest.mark.parametrize(
    "changes",
    [
        {"choose": {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "heun"}}},
        {"sampler": {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "heun"}}},
    ],
    ids=str,
)
def test_a_graph_with_its_own_sampler_is_not_rewritten(changes):
    graph = {**prompt(), **changes}
    sampler = next(key for key, node in graph.items() if node["class_type"] == "SVDEulerSampler")
    graph[sampler] = {**graph[sampler], "inputs": {**graph[sampler]["inputs"], "sampler": [next(iter(changes)), 0]}}
    with raises(SettingError, "setting", "settings"):
        with_sampling(graph, {"sampler": "heun"})
    changed = with_sampling(graph, {"steps": 3})
    assert changed[sampler]["inputs"] == {**graph[sampler]["inputs"], "steps": 3}
    assert {key: node for key, node in changed.items() if key != sampler} == {
        key: node for key, node in graph.items() if key != sampler
    }


def test_the_step_cache_stands_between_the_model_and_the_sampler():
    graph = prompt(preset="balanced")
    loaded = graph["10"]["inputs"]["model"]
    cached = with_sampling(graph, {"step_cache": 3})
    assert cached["10"]["inputs"]["model"] == ["cache", 0]
    assert cached["cache"]["inputs"]["model"] == cached["schedule"]["inputs"]["model"] == loaded
    assert cached["cache"]["inputs"]["interval"] == 3 and list(cached["10"]["inputs"]) == list(graph["10"]["inputs"])
    assert with_sampling(cached, {"step_cache": 1}) == graph
    compiled = with_compile(cached, "regional")
    assert compiled["10"]["inputs"]["model"] == ["cache", 0]
    assert compiled["cache"]["inputs"]["model"] == ["options", 0]
    assert compiled["options"]["inputs"]["model"] == loaded
    plain = with_sampling(compiled, {"step_cache": 1})
    assert plain["10"]["inputs"]["model"] == ["options", 0] and "cache" not in plain


def test_a_graph_with_its_own_step_cache_is_not_rewritten():
    graph = dict(prompt())
    graph["own"] = {"class_type": "SVDStepCache", "inputs": {"model": graph["10"]["inputs"]["model"], "interval": 5}}
    graph["10"] = {**graph["10"], "inputs": {**graph["10"]["inputs"], "model": ["own", 0]}}
    with raises(SettingError, "setting", "settings"):
        with_sampling(graph, {"step_cache": 2})
    assert with_sampling(graph, {"steps": 3})["10"]["inputs"]["model"] == ["own", 0]


@pytest.mark.parametrize("changes", [{"steps": 4}, {"schedule": "exponential"}], ids=str)
def test_steps_and_schedule_replace_noise_levels(changes):
    assert sampling_of(with_sampling(prompt(sigmas=LEVELS), changes)) == {**REFERENCE, **changes}


def test_unknown_names_are_refused():
    for name, value in (("sampler", "dpmp_2m"), ("schedule", "align_your_step"), ("preset", "balance")):
        with raises(SettingError, None, f"`{name}`", value):
            animate("example_workflows/rocket.png", **{name: value})
