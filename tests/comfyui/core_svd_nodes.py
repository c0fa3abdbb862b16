"""What ComfyUI's own nodes make of small graphs with an SVD checkpoint: `python core_svd_nodes.py FOLDER [flags]`.

Runs in ComfyUI's Python with its checkout on PYTHONPATH, and knows nothing of the package. FOLDER has questions.json
({"checkpoint": file, "graphs": {name: graph}}) and pair.npy, two pictures; answers.npz is written into it. In a graph
the id "pair" stands for both pictures, "image" for the first, "load" for the checkpoint's three parts; the output of
"answer" is told. Flags are ComfyUI's own. Before each node torch's global generator gets the seed 0, which core's
augmentation noise comes from.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


def evaluate(classes: Mapping[str, Any], graph: Mapping[str, dict], known: dict[str, tuple], wanted: str) -> tuple:
    """The outputs of node `wanted` of an API-format graph.

    `known` holds outputs by node id, and is given those that are computed here by what their nodes say, so that other
    graphs with the same nodes find them, as in ComfyUI's cache.
    """
    import torch

    key = wanted if wanted in known else json.dumps(written_out(graph, known, wanted))
    if key not in known:
        node = graph[wanted]
        inputs = {
            name: evaluate(classes, graph, known, value[0])[value[1]] if isinstance(value, list) else value
            for name, value in node["inputs"].items()
        }
        torch.manual_seed(0)
        kind = classes[node["class_type"]]
        known[key] = kind.execute(**inputs).args if hasattr(kind, "GET_SCHEMA") else run(kind, inputs)
    return known[key]


def run(kind: Any, inputs: dict[str, Any]) -> tuple:
    """A node in the older form."""
    return getattr(kind(), kind.FUNCTION)(**inputs)


def written_out(graph: Mapping[str, dict], known: Mapping[str, tuple], node_id: str) -> list:
    """The node with all that it depends on, without ids but those that are known."""
    node = graph[node_id]
    inputs = {
        name: value
        if not isinstance(value, list) or value[0] in known
        else [written_out(graph, known, value[0]), value[1]]
        for name, value in node["inputs"].items()
    }
    return [node["class_type"], inputs]


def arrays(name: str, value: Any) -> dict[str, np.ndarray]:
    """An output of any wire that is compared, as arrays by name."""
    if isinstance(value, tuple):
        return {key: array for slot, each in enumerate(value) for key, array in arrays(f"{name}.{slot}", each).items()}
    if isinstance(value, dict):
        places = value.get("batch_index")
        samples = {f"{name}.samples": value["samples"].numpy()}
        return samples | ({} if places is None else {f"{name}.batch_index": np.array(places)})
    if isinstance(value, list):
        [[embeds, keys]] = value
        named = ("motion_bucket_id", "fps", "augmentation_level")
        told = {f"{name}.{key}": np.array(float(keys[key])) for key in named}
        return told | {f"{name}.embeds": embeds.numpy(), f"{name}.image": keys["concat_latent_image"].numpy()}
    if hasattr(value, "image_embeds"):
        return {f"{name}.{key}": value[key].numpy() for key in ("image_embeds", "penultimate_hidden_states")}
    return {name: value.numpy()}


def main(folder: Path) -> None:
    import comfy.sd
    import torch
    from core_compat import core_nodes  # pyright: ignore[reportMissingImports]

    classes, _ = core_nodes()
    asked = json.loads((folder / "questions.json").read_text())
    loaded = comfy.sd.load_checkpoint_guess_config(asked["checkpoint"], output_clip=False, output_clipvision=True)
    pair = torch.from_numpy(np.load(folder / "pair.npy"))
    answers = {}
    with torch.inference_mode():
        known = {"pair": (pair,), "image": (pair[:1],), "load": (loaded[0], loaded[3], loaded[2])}
        for name, graph in asked["graphs"].items():
            answers |= arrays(name, tuple(evaluate(classes, graph, known, "answer")))
    np.savez(folder / "answers.npz", **answers)


if __name__ == "__main__":
    folder, *flags = sys.argv[1:]
    sys.argv[1:] = flags
    import comfy.options

    comfy.options.enable_args_parsing()
    main(Path(folder))
