"""Secrets and absolute paths do not leave with a result, and the graph in it still runs."""

from __future__ import annotations

import json
import shutil
import time

import pytest
from svd_stages import headless
from svd_stages.headless.batch.folder import RunFolder
from svd_stages.headless.cli.main import main
from svd_stages.headless.engines.graph_loading import read_embedded_graphs
from svd_stages.svd_core.utils.redaction import is_secret_name, redacted, redacted_text
from ui_cases import Sheet

KEY, TOKEN, WORD = "Zq7-fake-key-93x", "hf_" + "aB3" * 8, "hunter2"
PATHS = (
    "/home/someone/models/a.safetensors",
    "C:\\Users\\someone\\b.png",
    "\\\\server\\someone\\c.png",
    "~/someone/d.png",
)
HIDDEN = (KEY, TOKEN, WORD, "someone")


SECRET_NAMES = """api_key apikey API-KEY apiKey hf_token HF_TOKEN token auth_token_comfy_org password db_passwd
    client_secret credentials Authorization access_key 5.api_key"""
OTHER_NAMES = """tokenizer max_tokens token_normalization stop_token eos_token seed key keyframe monkey secretary
    clip_name filename_prefix token_count compass authority"""


def test_secrets_are_recognized_by_the_words_of_their_names():
    assert [name for name in SECRET_NAMES.split() if not is_secret_name(name)] == []
    assert [name for name in OTHER_NAMES.split() if is_secret_name(name)] == []


@pytest.mark.parametrize(
    ("text", "value", "prose"),
    [
        ("/home/someone/x.png", "x.png", "x.png"),
        ("~/x.png", "x.png", "x.png"),
        ("~someone/x.png", "x.png", "x.png"),
        ("C:\\someone\\x.png", "x.png", "x.png"),
        ("c:/someone/x.png", "x.png", "x.png"),
        ("\\\\server\\share\\x.png", "x.png", "x.png"),
        ("//server/share/x.png", "x.png", "x.png"),
        ("file:///home/someone/x.png", "x.png", "x.png"),
        ("/home/someone/", "someone", "someone"),
        ("a\n/home/x/y.png\nb", "a\ny.png\nb", "a\ny.png\nb"),
        ("video/ComfyUI", "video/ComfyUI", "video/ComfyUI"),
        ("/imagine a cat and/or a dog", "/imagine a cat and/or a dog", "/imagine a cat and/or a dog"),
        ("a secret: a garden", "a secret: a garden", "a secret:  garden"),
        ("https://example.org/a/b.png", "https://example.org/a/b.png", "https://example.org/a/b.png"),
        ("https://me:pw@example.org/x?token=abc", "https://example.org/x?token=", "https://example.org/x?token="),
        ("1/2 of 3:4, 5 < 6 / 7", "1/2 of 3:4, 5 < 6 / 7", "1/2 of 3:4, 5 < 6 / 7"),
        (f"use {TOKEN} here", "use  here", "use  here"),
    ],
)
def test_values_lose_full_line_paths_and_prose_loses_all_paths_and_keys(text, value, prose):
    assert redacted({"1": {"class_type": "A", "inputs": {"text": text}}})["1"]["inputs"]["text"] == value
    assert redacted_text(text) == prose


def test_numbers_links_and_choices_are_kept_and_the_input_is_not_modified():
    graph = {
        "1": {"class_type": "A", "inputs": {"token": "auto", "mode": "auto", "api_key": ["2", 0], "max_tokens": 7}}
    }
    graph["2"] = {"class_type": "PrimitiveString", "inputs": {"value": WORD, "n": 3}}
    before = json.dumps(graph)
    copy = redacted(graph)
    assert json.dumps(graph) == before
    assert copy["1"]["inputs"] == {"token": "", "mode": "auto", "api_key": ["2", 0], "max_tokens": 7}
    assert copy["2"]["inputs"] == {"value": "", "n": 3}


def test_hostile_texts_are_redacted_in_linear_time():
    for text in ("a_" * 500_000, "-eyJabcdefghijk" * 60_000, "~a!" * 300_000, "://a" * 250_000, "token: " * 140_000):
        began = time.process_time()
        redacted_text(text)
        redacted(text)
        assert time.process_time() - began < 3


def graph_with_secrets() -> dict:
    """Return a small graph in UI format that runs, with secrets and paths in all usual places."""
    sheet = Sheet()
    widgets = {"image": ("COMBO", None, True), "password": ("STRING", None, True)}
    load = sheet.add("LoadImage", ["rocket.png", WORD], widgets, title=f"from {PATHS[0]}")
    savers = {
        "SaveImage": ["a"], "SaveAnimatedWEBP": ["b", 6, True, 80, "fastest"], "SaveAnimatedPNG": ["c", 6, 4],
        "SaveWEBM": ["d", "vp9", 24, 32], "CreateVideo": [7],
    }  # fmt: skip
    for kind, values in savers.items():
        outputs = ("VIDEO",) if kind == "CreateVideo" else ()
        properties = {"source": PATHS[1], "hf_token": TOKEN}
        last = sheet.add(kind, values, {"images": ("IMAGE", (load, 0))}, outputs, properties=properties)
    sheet.add("SaveVideo", ["e", "auto", "auto"], {"video": ("VIDEO", (last, 0))}, ())
    note = f"my api key: {KEY}, see {PATHS[2]} and {PATHS[3]}\nAuthorization: Bearer {TOKEN}"
    sheet.add("MarkdownNote", [note], outputs=())
    extra = {"api_key": KEY, "seen": list(PATHS), "login": {"credentials": {"user": KEY}}, PATHS[0]: 1}
    return {**sheet.workflow(), "extra": extra}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "input").mkdir()
    shutil.copy(headless.PACKAGE / "example_workflows" / "rocket.png", tmp_path / "input")
    return tmp_path


def test_no_saved_file_manifest_or_failure_record_contains_secrets(folder):
    graph = headless.open_graph(graph_with_secrets())
    prompt = {**graph.prompt, "1": {**graph.prompt["1"], "_meta": {"title": f"password: {WORD}"}}}
    prompt["1"]["inputs"] |= {"api_key": KEY, "where": PATHS[0], "password": WORD}
    source = {"prompt": prompt, "workflow": graph.workflow}
    run_config = headless.RunConfig(input_folder=folder / "input", output_folder=folder / "out")
    engine, opened = headless.EmbeddedEngine(run_config), headless.open_graph(source)
    assert opened.workflow is not None
    report = engine.run(opened)
    assert {path.suffix for path in report.files} == {".png", ".webp", ".webm", ".mp4"} and len(report.files) == 5
    manifest = json.dumps(headless.make_manifest(opened, report, run_config, engine, 1.0))
    run = RunFolder(folder / "run")
    run.write_failure("a" * 64, {"code": "x", "message": f"no {PATHS[0]}; password: {WORD}", "api_key": KEY})
    texts = [manifest.encode(), run.failure_file("a" * 64).read_bytes(), *(path.read_bytes() for path in report.files)]
    texts += [json.dumps(read_embedded_graphs(path)).encode() for path in report.files]
    assert [index for index, text in enumerate(texts[-5:]) if b"LoadImage" not in text] == []  # the graphs are embedded
    assert [(index, word) for index, text in enumerate(texts) for word in HIDDEN if word.encode() in text] == []
    for path in report.files:
        again = engine.run(headless.open_graph(path))
        assert headless_frames(again) == headless_frames(report)


def headless_frames(report: headless.Report) -> list[str | None]:
    from svd_stages.svd_core.media.hashing import frames_sha256

    return sorted(str(frames_sha256(path)) for path in report.files if path.suffix != ".png")


def test_the_error_event_contains_no_secrets(folder, capsys):
    graph = headless.open_graph(graph_with_secrets()).prompt
    graph["1"]["inputs"]["image"] = "gone.png"
    graph["2"]["inputs"] |= {"images": ["99", 0], "api_key": {"__value__": float("1e400")}, "hf_token": TOKEN}
    graph["3"]["inputs"]["method"] = PATHS[0]
    path = folder / "graph.json"
    path.write_text(json.dumps(graph).replace("Infinity", '"x"'))
    assert main(["run", str(path), "--json", "--input-dir", str(folder / "input")]) in (2, 3)
    out = capsys.readouterr().out
    assert '"event": "error"' in out and [word for word in (*HIDDEN, str(folder)) if word in out] == []


@pytest.mark.parametrize(
    "text", ["/imagine/ a castle, by night/day", "1girl\n/s/ style, cat/dog", "a photo of <cat-toy> in the sun"]
)
def test_prompts_are_kept(text):
    graph = {"1": {"class_type": "Learned", "inputs": {"placeholder_token": "<cat-toy>", "text": text}}}
    assert redacted(graph) == graph


def test_nodes_of_a_group_node_are_not_prose():
    inner = {"type": "Text", "widgets_values": ["a game token: gold, see /a/b now"]}
    workflow = {"nodes": [], "extra": {"groupNodes": {"G": {"nodes": [inner]}}}}
    assert redacted(workflow) == workflow


def test_a_list_of_a_path_and_a_number_is_not_a_link():
    assert redacted({"v": ["/home/me/place", 1], "link": ["12:3", 0]}) == {"v": ["place", 1], "link": ["12:3", 0]}
