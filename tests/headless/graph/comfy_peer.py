"""Run toy graphs in ComfyUI's own validate_prompt and PromptExecutor, and write the results to a file.

    cd <ComfyUI>; <its Python> comfy_peer.py toys.py cases.json answers.json [PACKAGE INPUT]

cases.json: a list of {"prompt", "targets"}. answers.json: for each {"ok", "error", "outputs", "node_errors"}, and when
ok also {"ui", "events"} (of two kinds); {"raised"} if ComfyUI itself raised. A case with "only_validate" is not run.
PACKAGE is the folder of this package: its nodes are loaded, and core's nodes for images and videos, which read INPUT.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace


def start_comfyui():
    """Import ComfyUI on the CPU, without custom nodes and server. Return its modules execution and nodes."""
    sys.argv = ["main.py", "--cpu", "--disable-all-custom-nodes"]
    sys.path.insert(0, str(Path.cwd()))
    import comfy.options

    comfy.options.enable_args_parsing()
    import utils.extra_config  # noqa: F401  as main.py does: `import nodes` puts a module in this package's way
    import execution  # isort: skip
    import nodes

    execution.traceback.format_tb = lambda _: []  # it would hold paths of this machine
    return execution, nodes


def load_toys(path: str) -> dict:
    """Load the toy classes from their file."""
    spec = importlib.util.spec_from_file_location("toys", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["toys"] = module
    spec.loader.exec_module(module)
    return module.TOYS


def load_nodes(nodes, package: str, input_folder: str) -> None:
    """Load core's other nodes and the package's, as a server does."""
    import folder_paths

    folder_paths.set_input_directory(input_folder)
    extras = Path.cwd() / "comfy_extras"
    names = ("align_your_steps", "custom_sampler", "images", "latent", "primitive", "video", "video_model")
    paths = [(extras / f"nodes_{name}.py", "comfy_extras") for name in names]
    for path, parent in (*paths, (Path(package), "custom_nodes")):
        assert asyncio.run(nodes.load_custom_node(str(path), module_parent=parent)), path


def answer(execution, case: dict) -> dict:
    """Validate and run one case in ComfyUI."""
    prompt = case["prompt"]
    try:
        ok, error, outputs, node_errors = asyncio.run(execution.validate_prompt("1", prompt, case["targets"]))
    except Exception as error:
        return {"ok": False, "error": None, "outputs": [], "node_errors": {}, "raised": repr(error)}
    result = {"ok": ok, "error": error, "outputs": outputs, "node_errors": node_errors}
    if not ok or case.get("only_validate"):
        return result
    events = []
    server = SimpleNamespace(client_id=None, last_node_id=None, last_prompt_id=None, sockets_metadata={})
    server.send_sync = lambda event, data, client=None: events.append((event, data))
    executor = execution.PromptExecutor(server, cache_type=execution.CacheType.CLASSIC)
    try:
        executor.execute(prompt, "1", {"client_id": "peer", "extra_pnginfo": {"workflow": {"id": 7}}}, outputs)
    except Exception as error:
        return {**result, "raised": repr(error)}
    compared = [(event, data) for event, data in events if event in ("executing", "execution_error")]
    return {**result, "ui": executor.history_result["outputs"], "events": compared}


def main() -> None:
    """Answer all cases."""
    toys, cases, answers, *package_and_input = sys.argv[1:]
    execution, nodes = start_comfyui()
    if package_and_input:
        load_nodes(nodes, *package_and_input)
    nodes.NODE_CLASS_MAPPINGS.update(load_toys(toys))
    results = [answer(execution, case) for case in json.loads(Path(cases).read_text("utf-8"))]
    Path(answers).write_text(json.dumps(results, default=str), "utf-8")


if __name__ == "__main__":
    main()
