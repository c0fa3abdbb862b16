"""Read graph files: limits before parsing, strict JSON, wrappers."""

from __future__ import annotations

import json

import pytest
from error_checks import raises
from svd_stages.headless.graph import is_ui_format, parse_graph, read_graph, unwrap
from svd_stages.svd_core.errors import GraphError

API = {"1": {"class_type": "Number", "inputs": {"value": 1}}}
PAGE = {"nodes": [], "links": [], "version": 0.4}


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("{", "graph.json"),
        ('{"a": 1,}', "graph.json"),
        ('{"a": ' + "9" * 10_000 + "}", "graph.json"),
        ("[]", "graph.shape"),
        ("null", "graph.shape"),
        ('"text"', "graph.shape"),
        ("5", "graph.shape"),
        ('{"a": NaN}', "graph.non_finite"),
        ('{"a": [-Infinity]}', "graph.non_finite"),
        ('{"a": 1e999}', "graph.non_finite"),
        ('{"a": -1e999}', "graph.non_finite"),
        ('{"a": 1, "b": 2, "a": 3}', "graph.duplicate_key"),
        ('{"x": [{"a": 1, "\\u0061": 2}]}', "graph.duplicate_key"),
        ('{"a": "\\ud800"}', "graph.encoding"),
        ('{"a": [{"\\udfff": 1}]}', "graph.encoding"),
        ('{"a": "\ud800"}', "graph.encoding"),
        ('{"a": "x\\"[[" , "b": ' + "[" * 65 + "]" * 65 + "}", "graph.too_large"),
    ],
)
def test_text_that_is_not_a_graph_is_refused_with_a_code(text, code):
    with pytest.raises(GraphError) as caught:
        parse_graph(text, "mine.json")
    assert caught.value.code == code and caught.value.exit_status == 2
    assert "mine.json" in str(caught.value) and "\n" not in str(caught.value)
    str(caught.value).encode("utf-8")


@pytest.mark.parametrize(
    ("text", "graph"),
    [
        (b"\xef\xbb\xbf{}", {}),
        ("\ufeff{}", {}),
        ('{"a": 1e308}', {"a": 1e308}),
        ('{"a": 18446744073709551615}', {"a": 2**64 - 1}),
        ('{"a": "\\ud83d\\ude00"}', {"a": "😀"}),
        ('{"a": "caf\u00e9 \\\\ud800"}', {"a": "caf\u00e9 \\ud800"}),
        ('{"a": "' + "[" * 1000 + '"}', {"a": "[" * 1000}),
        ('{"a": "\\"' + "{" * 1000 + '"}', {"a": '"' + "{" * 1000}),
    ],
)
def test_strict_json_is_read(text, graph):
    assert parse_graph(text) == graph


def test_nesting_is_read_down_to_the_limit():
    graph = parse_graph('{"a":' * 64 + "1" + "}" * 64)
    for _ in range(64):
        graph = graph["a"]
    assert graph == 1


def test_a_file_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "g.json"
    path.write_text(json.dumps(API), "utf-8")
    assert read_graph(path) == read_graph(str(path)) == API


@pytest.mark.parametrize("name", ["gone.json", ""])
def test_a_missing_file_and_a_folder_are_refused(tmp_path, name):
    with raises(GraphError, "graph.file"):
        read_graph(tmp_path / name)


@pytest.mark.parametrize(
    ("saved", "graph", "workflow"),
    [
        (API, API, None),
        (PAGE, PAGE, PAGE),
        ({"prompt": API, "client_id": "x"}, API, None),
        ({"prompt": API, "extra_data": {"extra_pnginfo": {"workflow": PAGE}}}, API, PAGE),
        ({"prompt": API, "workflow": PAGE}, API, PAGE),
        ({"prompt": API, "extra_data": {"extra_pnginfo": None}}, API, None),
        ({"output": API, "workflow": PAGE}, API, PAGE),
        ({"output": API, "workflow": 5}, API, None),
        ({"workflow": PAGE}, PAGE, PAGE),
        ({"prompt": API["1"]}, {"prompt": API["1"]}, None),
        ({"output": API["1"]}, {"output": API["1"]}, None),
        ({}, {}, None),
    ],
)
def test_wrappers_are_removed(saved, graph, workflow):
    assert unwrap(saved) == (graph, workflow)


def test_ui_format_has_a_list_of_nodes():
    assert is_ui_format(PAGE) and not is_ui_format(API) and not is_ui_format({"nodes": API["1"]})
