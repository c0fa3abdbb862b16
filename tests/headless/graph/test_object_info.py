"""Describe node classes in the shape of ComfyUI's /object_info."""

from __future__ import annotations

import json
import math

from svd_stages.headless.graph import object_info

from .toys import TOYS


def test_a_class_is_described_as_comfyui_describes_it():
    info = object_info(TOYS, {"Described": "The circle's number"}, "toys")
    assert info["Described"] == {
        "input": {"required": {"x": ["FLOAT", {"default": math.pi}]}},
        "input_order": {"required": ["x"]},
        "output": ["FLOAT"],
        "output_is_list": [False],
        "output_name": ["pi"],
        "name": "Described",
        "display_name": "The circle's number",
        "description": "What it is for.",
        "python_module": "toys",
        "category": "toys",
        "output_node": False,
        "output_tooltips": ["The number."],
        "search_aliases": ["circle"],
        "deprecated": True,
        "experimental": True,
    }


def test_missing_attributes_have_comfyuis_defaults():
    info = object_info(TOYS, {})["ShowAndPass"]
    assert info["display_name"] == "ShowAndPass" and info["output_name"] == ["INT"] and info["output_node"]
    assert info["description"] == "" and info["search_aliases"] == []
    assert not {"deprecated", "experimental", "output_tooltips"} & info.keys()
    assert object_info(TOYS, {})["CountAndLast"]["output_is_list"] == [True, False]
    assert object_info(TOYS, {})["ShowHidden"]["input_order"]["hidden"] == ["prompt", "info", "me", "dynamic"]


def test_the_list_is_json_and_keeps_the_order_of_the_classes():
    info = object_info(TOYS, {})
    assert json.loads(json.dumps(info)) == info
    assert list(info) == list(TOYS)
