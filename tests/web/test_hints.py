"""The page's hint for multistep samplers, web/hints.js run by Node.js on a graph of plain objects."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

WEB = Path(__file__).parents[2] / "web"
NODE = shutil.which("node")

pytestmark = pytest.mark.skipif(NODE is None, reason="needs Node.js to run the page's modules")

APP = "export const app = { registerExtension: (extension) => (globalThis.extension = extension) };"
PROGRAM = """
const element = () => ({ style: {}, children: [], replaceChildren(...all) { this.children = all; } });
globalThis.document = { createElement: element };
await import("./extensions/svd/hints.js");
const graph = { nodes: [], links: {}, getNodeById: (id) => graph.nodes[id], setDirtyCanvas() {} };
const make = (comfyClass, widgets, inputs = []) => {
  const node = {
    id: graph.nodes.length, comfyClass, graph, size: [200, 100], computeSize: () => [200, 100], setSize() {},
    widgets: Object.entries(widgets).map(([name, value]) => ({ name, value })),
    inputs: inputs.map((name) => ({ name, link: null })), outputs: [{ links: [] }],
    addDOMWidget(name, type, element) { this.element = element; return {}; },
  };
  graph.nodes.push(node);
  globalThis.extension.nodeCreated(node);
  return node;
};
const link = (from, to, name) => {
  const id = Object.keys(graph.links).length + 1;
  graph.links[id] = { origin_id: from.id, target_id: to.id };
  from.outputs[0].links.push(id);
  to.inputs.find((input) => input.name === name).link = id;
};
const set = (node, name, value) => {
  const widget = node.widgets.find((each) => each.name === name);
  widget.value = value;
  widget.callback?.(value);
};
const sampler = make("SVDEulerSampler", { steps: 25, max_guidance: 3 }, ["sampler", "sigmas", "steps"]);
const choice = make("SVDSamplerSelect", { sampler_name: "euler" });
const sigmas = make("SVDSigmas", { steps: 25, schedule: "karras", sigma_max: 700 }, ["steps"]);
const hints = [];
const note = () => hints.push(sampler.element.children.length);
note();
link(choice, sampler, "sampler");
set(sampler, "steps", 14); note();
set(choice, "sampler_name", "dpmpp_2m"); note();
set(sampler, "steps", 15); note();
set(sampler, "steps", 10); note();
link(sigmas, sampler, "sigmas");
set(sigmas, "steps", 20); note();
set(sigmas, "steps", 10); note();
set(sigmas, "schedule", "align_your_steps"); note();
set(sigmas, "schedule", "karras"); note();
set(choice, "sampler_name", "heun"); note();
console.log(JSON.stringify(hints));
"""


def test_the_hint_follows_sampler_schedule_and_steps(tmp_path):
    shutil.copytree(WEB, tmp_path / "extensions" / "svd", ignore=shutil.ignore_patterns("docs"))
    for name, text in {"package.json": '{"type": "module"}', "scripts/app.js": APP, "program.js": PROGRAM}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    command = [str(NODE), "program.js"]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert process.returncode == 0, process.stderr
    assert json.loads(process.stdout) == [0, 0, 1, 0, 1, 0, 1, 0, 1, 0]
