"""Runs toy graphs through ComfyUI's own validate_prompt and PromptExecutor, and writes down what came of each.

    cd <ComfyUI>; <its Python> comfy_peer.py toys.py cases.json answers.json

cases.json: a list of {"prompt", "targets"}. answers.json: for each {"ok", "error", "outputs", "node_errors"}, and when
ok also {"ui", "events"}, or {"raised"} when the executor itself broke.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace


def start_comfyui():
    """Its modules, on the CPU, with no custom nodes and no server."""
    sys.argv = ["main.py", "--cpu", "--disable-all-custom-nodes"]
    sys.path.insert(0, str(Path.cwd()))
    import comfy.options

    comfy.options.enable_args_parsing()
    import execution

    import nodes

    return execution, nodes


def load_toys(path: str) -> dict:
    """The toy classes, from their file."""
    spec = importlib.util.spec_from_file_location("toys", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["toys"] = module
    spec.loader.exec_module(module)
    return module.TOYS


def answer(execution, case: dict) -> dict:
    """What ComfyUI makes of one case."""
    prompt = case["prompt"]
    ok, error, outputs, node_errors = asyncio.run(execution.validate_prompt("1", prompt, case["targets"]))
    found = {"ok": ok, "error": error, "outputs": outputs, "node_errors": node_errors}
    if not ok:
        return found
    events = []
    server = SimpleNamespace(client_id=None, last_node_id=None, last_prompt_id=None, sockets_metadata={})
    server.send_sync = lambda event, data, client=None: events.append((event, data))
    executor = execution.PromptExecutor(server, cache_type=execution.CacheType.CLASSIC)
    try:
        executor.execute(prompt, "1", {"client_id": "peer", "extra_pnginfo": {"workflow": {"id": 7}}}, outputs)
    except Exception as error:
        return {**found, "raised": repr(error)}
    return {**found, "ui": executor.history_result["outputs"], "events": events}


def main() -> None:
    """Answer all cases."""
    toys, cases, answers = sys.argv[1:]
    execution, nodes = start_comfyui()
    nodes.NODE_CLASS_MAPPINGS.update(load_toys(toys))
    found = [answer(execution, case) for case in json.loads(Path(cases).read_text("utf-8"))]
    Path(answers).write_text(json.dumps(found, default=str), "utf-8")


if __name__ == "__main__":
    main()
