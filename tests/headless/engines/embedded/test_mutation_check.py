"""Test the warnings about nodes that modify their inputs in place."""

from __future__ import annotations

import asyncio
import logging
import shutil
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from error_checks import check_facts
from svd_stages import headless
from svd_stages.headless.engines.embedded.mutation_check import VARIABLE, InputCheck, content_checksum
from svd_stages.headless.graph import Engine


class Gives:
    RETURN_TYPES, FUNCTION = ("LATENT", "IMAGE"), "run"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {}}

    def run(self):
        return {"samples": torch.zeros(2, 3)}, torch.zeros(1, 2)


class Reads:
    RETURN_TYPES, FUNCTION, OUTPUT_NODE = ("LATENT",), "run", True
    change = staticmethod(lambda latent, image: None)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"latent": ("LATENT",), "image": ("IMAGE",)}}

    def run(self, latent, image):
        self.change(latent, image)
        return (latent,)


class ReadsSlowly(Reads):
    async def run(self, latent, image):
        await asyncio.sleep(0)
        self.change(latent, image)
        return (latent,)


LINKS = {"latent": ["3", 0], "image": ["3", 1]}
PROMPT = {
    "3": {"class_type": "Gives", "inputs": {}},
    "5": {"class_type": "Reads", "inputs": LINKS, "_meta": {"title": "Mine"}},
}
CHANGES = {
    "a tensor is multiplied": (lambda latent, image: latent["samples"].add_(1), ["latent"]),
    "one number": (lambda latent, image: image[0].__setitem__(1, 5.0), ["image"]),
    "a key is put in": (lambda latent, image: latent.__setitem__("noise_mask", None), ["latent"]),
    "a key is taken out": (lambda latent, image: latent.pop("samples"), ["latent"]),
    "both": (lambda latent, image: (latent.clear(), image.add_(1)), ["latent", "image"]),
    "nothing": (lambda latent, image: latent["samples"] + image.sum(), []),
}


@pytest.mark.parametrize("reader", [Reads, ReadsSlowly])
@pytest.mark.parametrize("case", CHANGES)
def test_the_warning_names_the_node_and_the_source_of_the_input(case, reader, caplog):
    change, names = CHANGES[case]
    nodes = {"Gives": Gives, "Reads": type("Reads", (reader,), {"change": staticmethod(change)})}
    with caplog.at_level(logging.WARNING):
        Engine(nodes).run(PROMPT, ["5"], node_context=torch.inference_mode, watch=InputCheck(PROMPT))
    assert len(caplog.records) == len(names)
    for record, name in zip(caplog.records, names, strict=True):
        check_facts(record.getMessage(), 5, "Reads", "Mine", f'"{name}"', 3, "Gives")


@dataclass
class Embedding:
    image_embeds: Any


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.zeros(3, dtype=torch.bfloat16),
        lambda: torch.tensor(0.0),
        lambda: torch.zeros(2, 2).t(),
        lambda: torch.zeros(3, dtype=torch.int64)[::2],
        lambda: np.zeros(3)[::2],
        lambda: [[torch.zeros(1), {"a": (torch.zeros(2),)}]],
        lambda: Embedding(torch.zeros(3)),
    ],
    ids=range(7),
)
def test_the_checksum_depends_on_the_content(make):
    value = make()
    before = content_checksum(value)
    assert before == content_checksum(value) == content_checksum(make())
    array = value
    while not isinstance(array, (torch.Tensor, np.ndarray)):
        array = array.image_embeds if isinstance(array, Embedding) else array[0]
    array += 1
    assert content_checksum(value) != before


def test_our_nodes_modify_nothing_and_the_environment_enables_the_check(tmp_path, monkeypatch, caplog):
    shutil.copy(headless.PACKAGE / "example_workflows" / "rocket.png", tmp_path)
    quick = ["SVDResizeImage.width=64", "SVDResizeImage.height=64", "SVDEulerSampler.steps=1"]
    calls = []
    check = InputCheck.__call__
    monkeypatch.setattr(InputCheck, "__call__", lambda self, *call: calls.append(call[0]) or check(self, *call))
    for value, is_enabled in (("0", False), ("1", True)):
        monkeypatch.setenv(VARIABLE, value)
        template = headless.PACKAGE / "example_workflows" / "quickstart_nano.json"
        headless.run_graph(template, quick, input_dir=tmp_path, output_dir=tmp_path / "out")
        assert (len(calls) > 8) is is_enabled
    assert [record for record in caplog.records if record.name == InputCheck.__module__] == []
