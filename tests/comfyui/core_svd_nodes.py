"""Run a graph of SVD nodes on ComfyUI's own node classes: `python core_svd_nodes.py FOLDER [flags]`.

Runs in ComfyUI's Python with its checkout on PYTHONPATH, without the package. FOLDER has questions.json ({"checkpoint":
file, "graph": graph, "answers": node ids}) and pair.npy, two images. The script writes the outputs of the nodes in
"answers" to answers.npz. In the graph, the id "pair" means both images, "image" the first one, "load" the checkpoint's
three models. Flags are ComfyUI's own. Before each node torch's global generator, the source of core's augmentation
noise, gets the seed 0.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


def evaluate(classes: Mapping[str, Any], graph: Mapping[str, dict], known: dict[str, tuple], node_id: str) -> tuple:
    """Return the outputs of node `node_id` of an API-format graph. `known` holds outputs by node id, and gets more."""
    import torch

    if node_id not in known:
        node = graph[node_id]
        inputs = {
            name: evaluate(classes, graph, known, value[0])[value[1]] if isinstance(value, list) else value
            for name, value in node["inputs"].items()
        }
        torch.manual_seed(0)
        kind = classes[node["class_type"]]
        known[node_id] = kind.execute(**inputs).args if hasattr(kind, "GET_SCHEMA") else run(kind, inputs)
    return known[node_id]


def run(kind: Any, inputs: dict[str, Any]) -> tuple:
    """Run a node of the V1 API."""
    return getattr(kind(), kind.FUNCTION)(**inputs)


def arrays(name: str, value: Any) -> dict[str, np.ndarray]:
    """Return the arrays of an output of any compared socket, by name."""
    if isinstance(value, tuple):
        return {key: array for slot, each in enumerate(value) for key, array in arrays(f"{name}.{slot}", each).items()}
    if isinstance(value, dict):
        indices = value.get("batch_index")
        samples = {f"{name}.samples": value["samples"].numpy()}
        return samples | ({} if indices is None else {f"{name}.batch_index": np.array(indices)})
    if isinstance(value, list):
        [[embeds, keys]] = value
        micro = ("motion_bucket_id", "fps", "augmentation_level")
        values = {f"{name}.{key}": np.array(float(keys[key])) for key in micro}
        return values | {f"{name}.embeds": embeds.numpy(), f"{name}.image": keys["concat_latent_image"].numpy()}
    if hasattr(value, "image_embeds"):
        return {f"{name}.{key}": value[key].numpy() for key in ("image_embeds", "penultimate_hidden_states")}
    return {name: value.numpy()}


def main(folder: Path) -> None:
    import comfy.sd
    import torch
    from core_compat import core_nodes  # pyright: ignore[reportMissingImports]

    classes, _ = core_nodes()
    questions = json.loads((folder / "questions.json").read_text())
    loaded = comfy.sd.load_checkpoint_guess_config(questions["checkpoint"], output_clip=False, output_clipvision=True)
    pair = torch.from_numpy(np.load(folder / "pair.npy"))
    answers = {}
    with torch.inference_mode():
        known = {"pair": (pair,), "image": (pair[:1],), "load": (loaded[0], loaded[3], loaded[2])}
        for name in questions["answers"]:
            answers |= arrays(name, tuple(evaluate(classes, questions["graph"], known, name)))
    np.savez(folder / "answers.npz", **answers)


if __name__ == "__main__":
    folder, *flags = sys.argv[1:]
    sys.argv[1:] = flags
    import comfy.options

    comfy.options.enable_args_parsing()
    main(Path(folder))
