"""Describe and run ComfyUI's own nodes: `python core_compat.py FOLDER` with FOLDER/input and FOLDER/questions.json.

Runs in ComfyUI's Python with its checkout on PYTHONPATH, without the package. Writes FOLDER/answers.json,
FOLDER/answers.npz and, by the saving nodes, FOLDER/output.
"""

from __future__ import annotations

import asyncio
import json
import sys
from importlib import import_module
from pathlib import Path

import numpy as np

EXTRAS = ("align_your_steps", "custom_sampler", "images", "primitive", "video", "video_model")
"""The modules of comfy_extras that hold nodes with a compat node."""


def core_nodes() -> tuple[dict, dict]:
    """Return node id -> class, and node id -> display name, without starting a server."""
    import utils.extra_config  # noqa: F401  as main.py does: `import nodes` puts a module in this package's way
    import nodes  # isort: skip

    classes, names = dict(nodes.NODE_CLASS_MAPPINGS), dict(nodes.NODE_DISPLAY_NAME_MAPPINGS)
    for extra in EXTRAS:
        module = import_module(f"comfy_extras.nodes_{extra}")
        classes |= getattr(module, "NODE_CLASS_MAPPINGS", {})
        names |= getattr(module, "NODE_DISPLAY_NAME_MAPPINGS", {})
        if hasattr(module, "comfy_entrypoint"):
            for node in asyncio.run(asyncio.run(module.comfy_entrypoint()).get_node_list()):
                schema = node.GET_SCHEMA()
                classes[schema.node_id] = node
                names[schema.node_id] = schema.display_name
    return classes, names


def definition(node: type, display_name: str | None) -> dict:
    """Return the parts of a node's /object_info that must be equal."""
    return {
        "inputs": node.INPUT_TYPES(),
        "outputs": list(node.RETURN_TYPES),
        "output_names": list(getattr(node, "RETURN_NAMES", None) or node.RETURN_TYPES),
        "output_node": bool(getattr(node, "OUTPUT_NODE", False)),
        "category": node.CATEGORY,
        "display_name": display_name,
    }


def run(node: type, inputs: dict):
    """Run a node of the V1 API."""
    return getattr(node(), node.FUNCTION)(**inputs)


def save(classes: dict, node_id: str, inputs: dict, graphs: dict) -> dict:
    """Run a saving node with its hidden inputs. A V3 node finds them on a clone of its class."""
    if node_id == "SaveVideo":
        inputs["video"] = classes["CreateVideo"].execute(images=inputs.pop("images"), fps=7.0).args[0]
    if not hasattr(classes[node_id], "GET_SCHEMA"):
        return run(classes[node_id], {**inputs, **graphs})
    hidden = {name.upper(): graph for name, graph in graphs.items()}
    return {"ui": classes[node_id].PREPARE_CLASS_CLONE(hidden).execute(**inputs).ui.as_dict()}


def main(folder: Path) -> None:
    import folder_paths
    import torch

    folder_paths.set_input_directory(str(folder / "input"))
    folder_paths.set_output_directory(str(folder / "output"))
    folder_paths.set_temp_directory(str(folder / "temp"))
    classes, names = core_nodes()
    questions = json.loads((folder / "questions.json").read_text())
    frames = torch.from_numpy(np.load(folder / "questions.npz")["frames"])
    arrays = {}
    for name in questions["pictures"]:
        images, mask = classes["LoadImage"]().load_image(name)
        arrays[f"image {name}"], arrays[f"mask {name}"] = images.numpy(), mask.numpy()
    for index, inputs in enumerate(questions["scalings"]):
        arrays[f"scaled {index}"] = run(classes["ImageScale"], {"image": frames, **inputs})[0].numpy()
    for index, inputs in enumerate(questions["factors"]):
        arrays[f"scaled by {index}"] = run(classes["ImageScaleBy"], {"image": frames, **inputs})[0].numpy()
    graph = {"prompt": questions["prompt"], "extra_pnginfo": questions["extra_pnginfo"]}
    common = {"images": frames, "filename_prefix": questions["prefix"]}
    results = {
        node_id: save(classes, node_id, {**common, **settings}, graph)
        for node_id, settings in questions["savers"].items()
    }
    known = [node_id for node_id in questions["nodes"] if node_id in classes]
    definitions = {node_id: definition(classes[node_id], names.get(node_id)) for node_id in known}
    changed = {name: classes["LoadImage"].IS_CHANGED(name) for name in questions["pictures"]}
    answers = {"definitions": definitions, "results": results, "changed": changed}
    (folder / "answers.json").write_text(json.dumps(answers))
    np.savez(folder / "answers.npz", **arrays)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    sys.argv = [sys.argv[0], "--cpu"]
    import comfy.options

    comfy.options.enable_args_parsing()
    main(folder)
