"""Compare our conversion of UI-format graphs with the export of ComfyUI's page (app.graphToPrompt in Chromium).

The graphs: our templates, all templates that ComfyUI ships, and `ui_cases.GRAPHS`. Node descriptions come from the same
server. Titles are left out: the page translates its nodes' names.
"""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from comfyui.test_page import WORKFLOWS, base, opened, server  # noqa: F401
from svd_stages.headless.graph import NodeTable, described_nodes, to_api
from svd_stages.svd_core.errors import GraphError
from ui_cases import GRAPHS

pytestmark = [pytest.mark.comfyui, pytest.mark.slow]

EXPORT = """async (workflow) => {
  await app.loadGraphData(workflow);
  await new Promise((done) => setTimeout(done, 200));
  return (await app.graphToPrompt()).output;
}"""
RULES_OF = (1, 58)
"""The version of the page whose rules our conversion follows."""
SVD_TEMPLATES = {"image_to_video", "txt_to_image_to_video"}


@pytest.fixture(scope="module")
def table(server) -> NodeTable:  # noqa: F811
    """Return the server's nodes from their descriptions."""
    return described_nodes(server.get("/object_info"))


def comfyuis_templates(python: str) -> dict[str, Path]:
    """Return ComfyUI's templates by name, from the package that holds them."""
    code = "import comfyui_workflow_templates as templates; print(templates.__path__[0])"
    folder = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    return {file.stem: file for file in sorted(Path(folder).rglob("*.json")) if "index" not in file.name}


def difference(workflow: dict[str, Any], opened, table: NodeTable) -> list[str]:  # noqa: F811
    """List the differences between the page's export and ours, except inputs that no class declares: page widgets."""
    page, errors = opened
    exported = page.evaluate(EXPORT, workflow)
    page.keyboard.press("Escape")
    errors.clear()
    ours = to_api(workflow, table.classes, table.display_names)
    differences = [f"node {node_id} is on one side only" for node_id in sorted(set(exported) ^ set(ours))]
    for node_id in set(exported) & set(ours):
        theirs, mine = exported[node_id], ours[node_id]
        declared = table.classes[mine["class_type"]].INPUT_TYPES()  # pyright: ignore
        known = {name for group in declared.values() for name in group} | set(mine["inputs"])
        inputs = {name: value for name, value in theirs["inputs"].items() if name in known}
        if (theirs["class_type"], inputs) != (mine["class_type"], mine["inputs"]):
            differences.append(f"node {node_id} ({theirs['class_type']}): {inputs} and {mine['inputs']}")
    return differences


@pytest.fixture(scope="module")
def current(opened) -> None:  # noqa: F811
    """Skip for earlier pages, which lose values of nested promoted widgets and run nodes in a muted subgraph."""
    version = opened[0].evaluate("async () => (await app.graphToPrompt()).workflow.extra.frontendVersion")
    if tuple(map(int, version.split(".")[:2])) < RULES_OF:
        pytest.skip(f"the page is {version}; COMFYUI_FLAGS='--front-end-root FOLDER' serves one from 1.58 on")


@pytest.mark.parametrize("name", GRAPHS)
def test_subgraphs_reroutes_primitives_bypass_and_mute_are_exported_as_the_page_does(
    name,
    opened,  # noqa: F811
    table,
    current,
):
    assert difference(GRAPHS[name], opened, table) == []


@pytest.mark.parametrize("name", sorted(file.stem for file in WORKFLOWS.glob("*.json")))
def test_our_templates_are_exported_as_the_page_does(name, opened, table):  # noqa: F811
    assert difference(json.loads((WORKFLOWS / f"{name}.json").read_text("utf-8")), opened, table) == []


def test_comfyuis_templates_are_exported_as_the_page_does(opened, table, server):  # noqa: F811
    """Except templates with nodes that this ComfyUI lacks, and one with duplicate ids, which the page renumbers."""
    outcomes: Counter[str] = Counter()
    different = {}
    templates = comfyuis_templates(server.python)
    assert set(templates) >= SVD_TEMPLATES
    for name, file in templates.items():
        workflow = json.loads(file.read_text("utf-8"))
        try:
            differences = difference(workflow, opened, table)
        except GraphError as error:
            assert error.code == "graph.missing_node_type" and name not in SVD_TEMPLATES, (name, str(error))
            outcomes["refused"] += 1
            continue
        if differences and _has_ids_twice(workflow):
            outcomes["renumbered"] += 1
            continue
        outcomes["same"] += not differences
        different |= {name: differences} if differences else {}
    print(dict(outcomes))
    assert different == {} and outcomes["same"] > 150 and outcomes["renumbered"] <= 1


def _has_ids_twice(workflow: dict[str, Any]) -> bool:
    graphs = [workflow, *workflow.get("definitions", {}).get("subgraphs", [])]
    ids = [node["id"] for graph in graphs for node in graph["nodes"]]
    return len(set(ids)) < len(ids)
