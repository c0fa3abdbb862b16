"""Whatever is done to a graph or its file, the door ends in a graph that may run, or in an error of ours.

How many are tried, and from which seed, is said by SVD_STAGES_MUTANTS ("10000" or "10000:7").
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ui_cases
from svd_stages import headless
from svd_stages.headless.graph import NodeTable
from svd_stages.svd_core.errors import CheckpointError, GraphError, ImageError, SettingError

from .cases import VALID
from .mutations import bent, mutant, torn
from .toys import TOYS

COUNT, _, FIRST = os.environ.get("SVD_STAGES_MUTANTS", "300").partition(":")
TEMPLATES = headless.PACKAGE / "example_workflows"
NODES = {**headless.NODES, **TOYS}
TABLE = NodeTable(NODES, headless.DISPLAY_NAMES)
OURS = (GraphError, SettingError, ImageError, CheckpointError)


@pytest.fixture
def around(tmp_path) -> headless.RunConfig:
    (tmp_path / "input").mkdir()
    shutil.copy(TEMPLATES / "rocket.png", tmp_path / "input")
    return headless.RunConfig(models=[tmp_path], input_folder=tmp_path / "input", output_folder=tmp_path / "output")


@pytest.fixture
def calls(monkeypatch) -> list[str]:
    """What ran: every node's function is replaced by one that notes its name."""
    ran: list[str] = []
    for name, node_class in NODES.items():
        monkeypatch.setattr(node_class, node_class.FUNCTION, lambda *_, name=name, **__: ran.append(name))
    return ran


def saved() -> list[dict[str, Any]]:
    """Graphs as people have them on their disks: UI format of both schemas, with and without subgraphs; API format."""
    pages = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(TEMPLATES.glob("*.json"))]
    pages = [*pages, *(ui_cases.GRAPHS[name] for name in sorted(ui_cases.GRAPHS))]
    nano = ["SVDCheckpointLoader.checkpoint=svd-nano"]
    prompts = [headless.open_graph(TEMPLATES / f"{name}.json", nano).prompt for name in ("one_node", "more_motion")]
    wrapped = [{"prompt": prompts[0], "extra_data": {"extra_pnginfo": {"workflow": pages[0]}}}, {"output": prompts[1]}]
    return [*pages, *prompts, *wrapped]


def generated(count: int, first: int) -> Iterator[bytes]:
    """Files: of each kind of mutant a third."""
    graphs = saved()
    files = [json.dumps(graph).encode() for graph in graphs]
    toys = [case.prompt for case in VALID if not case.differs and case.targets is None]
    for seed in range(first, first + count):
        if seed % 3 == 0:
            yield torn(seed, files)
        elif seed % 3 == 1:
            yield json.dumps(bent(seed, graphs)).encode()
        else:
            yield json.dumps(mutant(seed, toys, NODES)).encode()


def through_the_door(path: Path, around: headless.RunConfig) -> str:
    """What `svd-stages validate` does with a file; "valid", or the code of what is wrong."""
    engine = headless.EmbeddedEngine(around)
    try:
        source = headless.read_source(path)
        headless.find_missing(source, engine, around, table=TABLE)
        headless.check_described(headless.open_graph(source, table=TABLE).prompt, TABLE, "here")
        engine.check(headless.open_graph(source))
    except OURS as error:
        assert str(error).isprintable() and len(str(error)) < 20_000, error
        json.dumps(error.node_errors if isinstance(error, GraphError) else None, default=str)
        return error.code
    return "valid"


def test_no_mutant_of_a_file_brings_out_anything_but_a_graph_or_an_error_of_ours(tmp_path, around, calls):
    ends: Counter[str] = Counter()
    path, slowest = tmp_path / "graph.json", 0.0
    for content in generated(int(COUNT), int(FIRST or 0)):
        path.write_bytes(content)
        began = time.process_time()
        ends[through_the_door(path, around)] += 1
        slowest = max(slowest, time.process_time() - began)
    assert calls == [] and slowest < 1
    assert "graph" not in ends and len(ends) > 8 and sum(ends.values()) == int(COUNT)
    assert ends["graph.json"] > 10 and ends["graph.shape"] > 3  # torn files, and trees that are no graphs
