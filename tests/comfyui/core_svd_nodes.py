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


def evaluate(classes: Mapping[str, Any], graph: Mapping[str, dict], given: Mapping[str, tuple], wanted: str) -> tuple:
    """The outputs of node `wanted` of an API-format graph. `given` holds outputs that are there, and gets the rest."""
    import torch

    if wanted not in given:
        node = graph[wanted]
        inputs = {
            name: evaluate(classes, graph, given, value[0])[value[1]] if isinstance(value, list) else value
            for name, value in node["inputs"].items()
        }
        torch.manual_seed(0)
        kind = classes[node["class_type"]]
        if hasattr(kind, "GET_SCHEMA"):
            given[wanted] = kind.execute(**inputs).args  # pyright: ignore[reportIndexIssue]
        else:
            given[wanted] = getattr(kind(), kind.FUNCTION)(**inputs)  # pyright: ignore[reportIndexIssue]
    return given[wanted]


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
    from core_standins import core_nodes  # pyright: ignore[reportMissingImports]

    classes, _ = core_nodes()
    asked = json.loads((folder / "questions.json").read_text())
    loaded = comfy.sd.load_checkpoint_guess_config(asked["checkpoint"], output_clip=False, output_clipvision=True)
    pair = torch.from_numpy(np.load(folder / "pair.npy"))
    answers = {}
    with torch.inference_mode():
        given = {"pair": (pair,), "image": (pair[:1],), "load": (loaded[0], loaded[3], loaded[2])}
        for name, graph in asked["graphs"].items():
            answers |= arrays(name, tuple(evaluate(classes, graph, dict(given), "answer")))
    np.savez(folder / "answers.npz", **answers)


if __name__ == "__main__":
    folder, *flags = sys.argv[1:]
    sys.argv[1:] = flags
    import comfy.options

    comfy.options.enable_args_parsing()
    main(Path(folder))
