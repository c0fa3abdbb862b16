"""Pins the ids and file formats of a run folder: a change here renders every video of every user again."""

from __future__ import annotations

import json
import sqlite3

from svd_stages import headless
from svd_stages.headless.batch import graph_batching, graph_binding, model_hashes
from svd_stages.headless.batch.folder import RunFolder
from svd_stages.headless.batch.lock import Shard

ROWS = [{"image": "a.png", "seed": 7, "SVDMicroConditioning.fps": 12}, {"image": "a.png"}]
SHARED = "8e7b944f4fe1abeacc91897e0fbf5302dd990597cd95f826cdc84f1ffdcfc080"
IMAGE = "eb44ed3ebd05d47d281a8a9e636da2b92ba22a3d1475b0e7cbc646bb942fdd7e"
TASKS = [
    '{"id": "b35123d60d4034fb238eab295dd02f377b9a4d4650d577682da2e29fc3aad84a", "image": "a.png", "image_sha256": '
    f'"{IMAGE}", "values": {{"7.seed": 7, "9.fps": 12}}, "seed": 7}}',
    '{"id": "fb4365fc62738cc037edaaecb828c13d656f8a19350d88756a66e41d564bd995", "image": "a.png", "image_sha256": '
    f'"{IMAGE}", "values": {{"7.seed": 7001435545828649}}, "seed": 7001435545828649}}',
]


def test_plan_and_ledger_of_a_run_of_version_0_1_are_byte_equal(tmp_path, monkeypatch):
    """The run has the default graph of 0.1. Not pinned: the version of the code, and the sha256 of svd-nano."""
    for module in (graph_batching, model_hashes):
        monkeypatch.setattr(module, "code_version", lambda: "0.0")
    monkeypatch.setattr(graph_binding, "model_sha256", lambda path: "0" * 64)
    (tmp_path / "a.png").write_bytes(b"stays as it is")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    folder = RunFolder(tmp_path / "run")
    video = headless.VideoSettings(preset="reference", fit="stretch", width=128, height=128)
    graph = headless.image_to_video_graph(video, headless.RunConfig().runtime(), "image.png").prompt
    folder.path.mkdir()
    folder.write_settings({"graph": graph, "seeds": ["7.seed"]})
    headless.plan_batch(headless.BatchRequest(folder.path, tmp_path / "rows.jsonl"), headless.RunConfig())
    rows = [f'{{"row": {number}, "name": "a", "task": {task}}}\n' for number, task in enumerate(TASKS, 1)]
    assert folder.plan_file.read_text() == f'{{"plan": "{SHARED}"}}\n' + "".join(rows)
    settings = folder.read_settings()
    assert settings is not None and folder.settings_file.read_text() == json.dumps(settings, indent=1) + "\n"
    varying = {name: settings.pop(name) for name in ("asked", "run_id", "graph", "images", "graph_digest")}
    assert json.dumps(settings) == (
        f'{{"format": 1, "plan": "{SHARED}", "image": ["3", "image"], "seeds": ["7.seed"], "sizes": [], '
        f'"of_checkpoint": [], "models": ["svd-nano"], '
        f'"shared": {{"code": "0.0", "model svd-nano": "{"0" * 64}"}}, "precision": "auto", '
        '"background": [0.5, 0.5, 0.5]}'
    )
    assert varying["images"] == str(tmp_path)
    with sqlite3.connect(graph_batching.default_ledger(folder, Shard())) as ledger:
        assert ledger.execute("PRAGMA application_id").fetchone() == (0x53564442,)
        assert ledger.execute("PRAGMA user_version").fetchone() == (1,)
        tasks = ledger.execute("SELECT id, place, state, attempts, code, task FROM tasks ORDER BY place").fetchall()
    assert tasks == [(json.loads(task)["id"], place, "todo", 0, None, task) for place, task in enumerate(TASKS)]


def test_records_and_failures_are_byte_equal(tmp_path):
    folder, task_id = RunFolder(tmp_path), "ab" * 32
    with folder.scratch() as scratch:
        (scratch / "x.MP4").write_bytes(b"video")
        folder.commit(task_id, [(scratch / "x.MP4", {"frames_sha256": "f"})], {"seed": 7})
    sha256 = "0cab1c9617404faf2b24e221e189ca5945813e14d3f766345b09ca13bbe28ffc"
    assert (tmp_path / "out" / "ab" / "ab" / f"{task_id}.json").read_text() == (
        f'{{\n "task": "{task_id}",\n "files": [\n  {{\n   "name": "{task_id}.mp4",\n   "bytes": 5,\n'
        f'   "sha256": "{sha256}",\n   "frames_sha256": "f"\n  }}\n ],\n "seed": 7\n}}'
    )
    folder.write_failure(task_id, {"code": "image.damaged", "message": "no image"})
    assert (tmp_path / "failed" / f"{task_id}.json").read_text() == (
        f'{{\n "task": "{task_id}",\n "code": "image.damaged",\n "message": "no image"\n}}\n'
    )
