"""Open damaged graph files: each ends in a valid graph or in one of our errors.

SVD_STAGES_MUTANTS sets the number of files and the first seed ("10000" or "10000:7").
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ui_cases
from svd_stages import headless
from svd_stages.headless.graph import NodeTable
from svd_stages.svd_core.errors import CheckpointError, GraphError, ImageError, SettingError

from .cases import VALID
from .mutations import damage_bytes, damage_tree, mutant
from .toys import TOYS

COUNT, _, FIRST = os.environ.get("SVD_STAGES_MUTANTS", "300").partition(":")
TEMPLATES = headless.PACKAGE / "example_workflows"
NODES = {**headless.NODES, **TOYS}
TABLE = NodeTable(NODES, headless.DISPLAY_NAMES)
OURS = (GraphError, SettingError, ImageError, CheckpointError)


def saved() -> list[dict[str, Any]]:
    """Return graphs of all formats: UI format of both schemas, with and without subgraphs, and API format."""
    pages = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(TEMPLATES.glob("*.json"))]
    pages = [*pages, *(ui_cases.GRAPHS[name] for name in sorted(ui_cases.GRAPHS))]
    nano = ["SVDCheckpointLoader.checkpoint=svd-nano"]
    prompts = [headless.open_graph(TEMPLATES / f"{name}.json", nano).prompt for name in ("one_node", "more_motion")]
    wrapped = [{"prompt": prompts[0], "extra_data": {"extra_pnginfo": {"workflow": pages[0]}}}, {"output": prompts[1]}]
    return [*pages, *prompts, *wrapped]


def generated(count: int, first: int) -> Iterator[bytes]:
    """Yield damaged files, a third of each kind of damage."""
    graphs = saved()
    files = [json.dumps(graph).encode() for graph in graphs]
    toys = [case.prompt for case in VALID if not case.differs and case.targets is None]
    for seed in range(first, first + count):
        if seed % 3 == 0:
            yield damage_bytes(seed, files)
        elif seed % 3 == 1:
            yield json.dumps(damage_tree(seed, graphs)).encode()
        else:
            yield json.dumps(mutant(seed, toys, NODES)).encode()


def code_of(path: Path, run_config: headless.RunConfig) -> str:
    """Do what `svd-stages validate` does with a file. Return "valid" or the error code."""
    engine = headless.EmbeddedEngine(run_config)
    try:
        source = headless.read_source(path)
        headless.find_missing(source, engine, run_config, table=TABLE)
        headless.check_described(headless.open_graph(source, table=TABLE).prompt, TABLE, "here")
        engine.check(headless.open_graph(source))
        engine.check(headless.open_graph(source, ["a.value=1"]))
    except OURS as error:
        assert str(error).isprintable() and len(str(error)) < 20_000 and error.exit_status in (2, 3), error
        json.dumps(error.node_errors if isinstance(error, GraphError) else None, default=str)
        return error.code
    return "valid"


def test_a_damaged_file_is_a_valid_graph_or_one_of_our_errors(tmp_path, run_config, calls):
    ends: Counter[str] = Counter()
    path, slowest = tmp_path / "graph.json", 0.0
    for content in generated(int(COUNT), int(FIRST or 0)):
        path.write_bytes(content)
        began = time.process_time()
        ends[code_of(path, run_config)] += 1
        slowest = max(slowest, time.process_time() - began)
    assert calls == [] and slowest < 1
    assert "graph" not in ends and len(ends) > 8 and sum(ends.values()) == int(COUNT)
    assert ends["graph.json"] > 10 and ends["graph.shape"] > 3  # cut files, and JSON that is not a graph
