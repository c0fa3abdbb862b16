"""Running graphs of toy nodes."""

from __future__ import annotations

import contextlib
import gc
import weakref
from typing import Any

import pytest
from error_checks import raises
from svd_stages.headless.graph import Engine, validate
from svd_stages.headless.graph.cache_keys import freeze
from svd_stages.svd_core.errors import CheckpointError, GraphError, Interrupted, NodeError, SettingError

from .cases import A, B, C, D, shown
from .toys import ANY, TOYS, ChangedByValue, graph, node, toy


def run(prompt, nodes=TOYS, **options) -> Any:
    checked = validate(prompt, nodes, keep=options.get("keep", ()), precomputed=options.get("precomputed"))
    assert checked.ok, checked.node_errors
    return Engine(nodes).run(checked.prompt, checked.outputs, **options)


def order_of(prompt, nodes=TOYS) -> list[str]:
    told = []
    run(prompt, nodes, on_event=lambda event, data: told.append(data["node"]) if event == "executing" else None)
    return told


def values(prompt, node_id, nodes=TOYS) -> list[list[Any]]:
    return run(prompt, nodes, keep=[node_id]).values[node_id]


@pytest.mark.parametrize(
    ("count_a", "count_b", "sums"),
    [(1, 1, [0]), (3, 1, [0, 1, 2]), (1, 3, [0, 1, 2]), (4, 2, [0, 2, 3, 4]), (2, 4, [0, 2, 3, 4]), (3, 3, [0, 2, 4])],
)
def test_a_mapped_node_runs_for_the_longest_list_and_shorter_ones_repeat_their_last(count_a, count_b, sums):
    prompt = graph(a=node("CountTo", count=count_a), b=node("CountTo", count=count_b), c=node("Add", a=A, b=B))
    assert values(prompt, "c") == [sums]


def test_mapping_then_joining_is_joining_then_mapping():
    whole = graph(a=node("CountTo", count=4), b=node("Add", a=A, b=1), c=node("SumList", values=B, offset=0))
    parts = graph(a=node("CountTo", count=4), b=node("SumList", values=A, offset=4))
    assert values(whole, "c") == values(parts, "b") == [[10], [4]]


def test_an_output_without_a_flag_is_not_given_on():
    """ComfyUI merges as many slots as OUTPUT_IS_LIST has."""
    assert values(graph(a=node("ShortOutputIsList", count=2)), "a") == [[0, 1]]
    prompt = graph(a=node("ShortOutputIsList", count=2), b=node("Add", a=["a", 1], b=1), x=node("Show", value=B))
    with raises(NodeError, "node.result", "ShortOutputIsList", 1):
        run(prompt)


def test_an_empty_list_is_an_error_that_names_the_input():
    prompt = shown(B, a=node("CountTo", count=0), b=node("Add", "Plus", a=A, b=1))
    with raises(NodeError, "graph.empty_list", "b", "Add", "Plus", '"a"') as caught:
        run(prompt)
    assert caught.value.exit_status == 4


def test_lists_taken_whole_are_the_nodes_own():
    @toy({"value": (ANY, {})}, gives=("INT",), INPUT_IS_LIST=True, NOT_IDEMPOTENT=True)
    class Spoils:
        def run(self, value):
            value.append(99)
            return (len(value),)

    prompt = graph(a=node("CountTo", count=2), b=node("Spoils", value=A), c=node("Spoils", value=A))
    result = run(prompt, {**TOYS, "Spoils": Spoils}, keep=["b", "c"])
    assert result.values == {"b": [[3]], "c": [[3]]}


def test_order_is_that_of_the_file_among_the_ready_ones():
    nodes = {
        "x": node("Show", value=C),
        "c": node("Add", a=A, b=B),
        "d": node("Number", value=4),
        "b": node("Number", value=2),
        "a": node("Number", value=1),
        "y": node("Show", value=D),
    }
    assert order_of(nodes) == ["d", "b", "a", "c", "x", "y"]
    assert order_of(dict(reversed(nodes.items()))) == ["a", "b", "d", "y", "c", "x"]


def test_sources_come_first_whatever_the_file_says():
    nodes = {str(place): node("Add", a=[str(place + 1), 0], b=place) for place in range(20)}
    nodes |= {"20": node("Number", value=0), "show": node("Show", value=["0", 0])}
    assert order_of(nodes) == [*[str(place) for place in range(20, -1, -1)], "show"]


def test_only_what_the_outputs_need_runs():
    prompt = graph(
        a=node("Number", value=1), b=node("Number", value=2), x=node("Show", value=A), y=node("Show", value=B)
    )
    checked = validate(prompt, TOYS, ["y"])
    told = []
    Engine(TOYS).run(
        checked.prompt, checked.outputs, on_event=lambda event, data: told.append((event, data.get("node")))
    )
    assert [ran for event, ran in told if event == "executing"] == ["b", "y"]


def twins(class_type: str, second: str | None = None, /, **inputs) -> dict[str, Any]:
    return graph(
        a=node(class_type, "one", **inputs),
        b=node(second or class_type, "two", **inputs),
        c=node("Add", a=A, b=B),
        x=node("Show", value=C),
    )


@pytest.mark.parametrize(
    ("prompt", "ran"),
    [
        (twins("Number", value=3), ["a", "c", "x"]),
        (twins("NotIdempotent", value=3), ["a", "b", "c", "x"]),
        (twins("AlwaysChanged", value=3), ["a", "b", "c", "x"]),
        (twins("ChangedByValue", value=3, other=1), ["a", "c", "x"]),
        (twins("NotIdempotent", "AlwaysChanged", value=3), ["a", "b", "c", "x"]),
    ],
)
def test_equal_nodes_run_once_unless_their_class_objects(prompt, ran):
    assert order_of(prompt) == ran


def test_a_node_that_knows_its_id_runs_for_each():
    prompt = graph(a=node("OwnId", value=3), b=node("OwnId", value=3), x=node("Show", value=A), y=node("Show", value=B))
    assert run(prompt).ui == {"x": {"value": ["'3 in a'"]}, "y": {"value": ["'3 in b'"]}}


def test_a_wrapped_list_reaches_the_node_as_one_value():
    assert run(shown({"__value__": [1, 2]})).ui["show"] == {"value": ["[1, 2]"]}


def test_equal_nodes_are_equal_by_what_they_read_however_deep():
    prompt = graph(a=node("Number", value=3), b=node("Number", value=3))
    for level in range(5):
        before = (f"a{level - 1}", f"b{level - 1}") if level else ("a", "b")
        prompt |= {
            f"{side}{level}": node("Add", a=[source, 0], b=level) for side, source in zip("ab", before, strict=True)
        }
    prompt |= {"x": node("Show", value=["a4", 0]), "y": node("Show", value=["b4", 0])}
    result = run(prompt)
    assert len(order_of(prompt)) == 7
    assert result.ui == {"x": {"value": ["13"]}, "y": {"value": ["13"]}}


def test_what_follows_a_node_that_always_changes_is_not_equal():
    prompt = graph(
        a=node("AlwaysChanged", value=3),
        b=node("AlwaysChanged", value=3),
        c=node("Add", a=A, b=1),
        d=node("Add", a=B, b=1),
        x=node("Show", value=C),
        y=node("Show", value=D),
    )
    assert len(order_of(prompt)) == 6


def test_is_changed_is_asked_with_constants_and_none_for_links():
    ChangedByValue.asked.clear()
    run(shown(B, a=node("Number", value=3), b=node("ChangedByValue", value=A, other=5)))
    assert ChangedByValue.asked == [(None, 5)]


def test_is_changed_that_raises_means_always_changed(caplog):
    @toy({}, gives=("INT",))
    class Raises:
        def run(self):
            return (1,)

        @classmethod
        def IS_CHANGED(cls):
            raise OSError("gone")

    prompt = graph(a=node("R"), b=node("R"), c=node("Add", a=A, b=B), x=node("Show", value=C))
    assert order_of(prompt, {**TOYS, "R": Raises}) == ["a", "b", "c", "x"]
    assert "gone" in caplog.text


@pytest.mark.parametrize("value", [1, 1.0, True, "1", None, [1], (2,), {"a": 1}, {"a": [1, {"b": 2.5}]}, b"x"])
def test_constants_are_equal_by_value_and_type(value):
    others = [1, 1.0, True, "1", None, [1], (2,), {"a": 1}, {"a": [1, {"b": 2.5}]}, b"x"]
    assert [freeze(value) == freeze(other) for other in others].count(True) == 1
    assert hash(freeze(value)) == hash(freeze(value))


def test_nan_and_objects_equal_nothing_not_even_themselves():
    thing = object()
    for value in (float("nan"), thing, [thing], {"a": float("nan")}):
        assert freeze(value) != freeze(value)


class Thing:
    """Something heavy."""


def tracked() -> tuple[dict[str, type], list[weakref.ref], list[list[bool]]]:
    """Classes that make, read and count things; `alive` is what is alive as each reader runs."""
    made: list[weakref.ref] = []
    alive: list[list[bool]] = []

    @toy({}, gives=("THING", "THING"), NOT_IDEMPOTENT=True)
    class Make:
        def run(self):
            things = Thing(), Thing()
            made.extend(map(weakref.ref, things))
            return things

    @toy({}, {"thing": ("THING", {}), "after": ("INT", {})}, gives=("INT",), NOT_IDEMPOTENT=True)
    class Read:
        def run(self, thing=None, after=0):
            gc.collect()
            alive.append([ref() is not None for ref in made])
            return (1,)

    return {**TOYS, "Make": Make, "Read": Read}, made, alive


def test_a_value_is_let_go_once_nothing_that_is_left_reads_its_slot():
    nodes, made, alive = tracked()
    prompt = graph(
        a=node("Make"),
        b=node("Read", thing=["a", 0]),
        c=node("Read", thing=["a", 1], after=B),
        d=node("Read", after=C),
        x=node("Show", value=D),
    )
    run(prompt, nodes)
    assert alive == [[True, True], [False, True], [False, False]]
    assert [ref() for ref in made] == [None, None]


def test_a_value_that_nothing_reads_is_not_held_and_a_kept_one_is():
    nodes, _, alive = tracked()
    prompt = graph(a=node("Make"), b=node("Read", thing=["a", 0]), x=node("Show", value=B))
    run(prompt, nodes)
    assert alive == [[True, False]]
    result = run(prompt, nodes, keep=["a"])
    assert [type(slot[0]) for slot in result.values["a"]] == [Thing, Thing]
    assert alive[1][2:] == [True, True]


def test_what_a_lazy_branch_that_is_not_taken_would_read_is_let_go_when_that_is_known():
    nodes, _, alive = tracked()

    @toy({}, {"yes": ("INT", {"lazy": True}), "no": ("INT", {"lazy": True})}, gives=("INT",))
    class Choose:
        def check_lazy_status(self, yes=None, no=None):
            return ["yes"]

        def run(self, yes=None, no=None):
            return (yes,)

    prompt = graph(
        a=node("Make"),
        b=node("Read", thing=["a", 0]),
        deep=node("Read", thing=["a", 1]),
        no=node("Read", after=["deep", 0]),
        c=node("Choose", yes=B, no=["no", 0]),
        d=node("Read", after=C),
        x=node("Show", value=D),
    )
    run(prompt, {**nodes, "Choose": Choose})
    assert alive == [[True, True], [False, False]]


@pytest.mark.parametrize("raw", [False, True])
def test_a_node_that_brings_nodes_has_what_only_it_read_let_go_before_they_run(raw):
    nodes, _, alive = tracked()

    @toy({"thing": ("THING", {"rawLink": raw})}, gives=("INT",))
    class Brings:
        def run(self, thing):
            first = {"class_type": "Read", "inputs": {"thing": thing} if raw else {}}
            last = {"class_type": "Read", "inputs": {"after": ["first", 0]}}
            return {"result": (["last", 0],), "expand": {"first": first, "last": last}}

    prompt = graph(a=node("Make"), b=node("Brings", thing=["a", 0]), x=node("Show", value=B))
    run(prompt, {**nodes, "Brings": Brings})
    assert alive == [[raw, False], [False, False]]


def test_given_values_stand_for_nodes_that_do_not_run():
    prompt = graph(
        load=node("NotInstalled", file="x"), b=node("Add", a=["load", 0], b=["nowhere", 1]), x=node("Show", value=B)
    )
    result = run(prompt, precomputed={"load": [[20]], "nowhere": [[None], [3]]}, keep=["b"])
    assert result.values == {"b": [[23]]} and result.ui["x"] == {"value": ["23"]}


def test_ancestors_of_a_given_node_do_not_run():
    prompt = shown(B, a=node("Fails", value=1), b=node("Add", a=A, b=1))
    assert run(prompt, precomputed={"b": [[5]]}).ui["show"] == {"value": ["5"]}


def test_a_given_node_with_too_few_values_is_refused():
    with raises(GraphError, "graph.bad_slot", '"a"', 1):
        Engine(TOYS).run(shown(["a", 1]), ["show"], precomputed={"a": [[1]]})


@pytest.mark.parametrize(
    ("prompt", "outputs", "code"),
    [
        (shown(["gone", 0]), ["show"], "graph.missing_node"),
        (shown(1), ["gone"], "graph.missing_node"),
        (shown(A, a=node("Add", a=A, b=1)), ["show"], "graph.dependency_cycle"),
        (shown(A, a=node("Unknown")), ["show"], "graph.missing_node_type"),
    ],
)
def test_a_graph_that_was_not_validated_is_still_refused_in_words(prompt, outputs, code):
    with raises(GraphError, code):
        Engine(TOYS).run(prompt, outputs)


def test_the_first_failure_stops_everything_and_names_its_node():
    prompt = graph(
        a=node("Fails", "Mine", value=1), x=node("Show", value=A), b=node("Number", value=1), y=node("Show", value=B)
    )
    told = []
    with raises(NodeError, "node", "a", "Fails", "Mine", "ValueError", "badly") as caught:
        run(prompt, on_event=lambda event, data: told.append((event, data)), prompt_id="p")
    error = caught.value
    assert (error.node_id, error.class_type, error.exit_status) == ("a", "Fails", 4)
    assert isinstance(error.__cause__, ValueError)
    assert [event for event, _ in told] == ["execution_start", "execution_cached", "executing", "execution_error"]
    failure = told[-1][1]
    assert failure["prompt_id"] == "p" and failure["node_type"] == "Fails" and failure["executed"] == []
    assert failure["exception_type"] == "ValueError" and failure["current_inputs"] == {}


@pytest.mark.parametrize(("cause", "status"), [(CheckpointError("no file"), 3), (SettingError("too much"), 2)])
def test_our_own_errors_keep_their_words_and_exit_status(cause, status):
    @toy({}, OUTPUT_NODE=True)
    class Raises:
        def run(self):
            raise cause

    with raises(NodeError, cause.code, "a", "R") as caught:
        run(graph(a=node("R")), {"R": Raises})
    assert caught.value.exit_status == status and str(cause) in str(caught.value)


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), Interrupted("stopped")])
def test_stopping_passes_through_and_is_told(stop):
    @toy({}, OUTPUT_NODE=True)
    class Stops:
        def run(self):
            raise stop

    told = []
    with pytest.raises(type(stop)):
        run(graph(a=node("S")), {"S": Stops}, on_event=lambda event, data: told.append((event, data)))
    event, data = told[-1]
    assert event == "execution_interrupted" and data["node_id"] == "a" and data["executed"] == []


def test_the_observer_can_stop_the_run():
    def on_event(event, data):
        if data.get("node") == "b":
            raise Interrupted("enough")

    with pytest.raises(Interrupted):
        run(shown(B, a=node("Number", value=1), b=node("Fails", value=A)), on_event=on_event)


def test_events_are_comfyuis_in_their_order():
    told = []
    prompt = graph(
        a=node("Number", value=1), b=node("Number", value=1), c=node("Add", a=A, b=B), x=node("ShowAndPass", value=C)
    )
    run(prompt, on_event=lambda event, data: told.append((event, data)), prompt_id="7")
    assert told == [
        ("execution_start", {"prompt_id": "7"}),
        ("execution_cached", {"nodes": [], "prompt_id": "7"}),
        ("executing", {"node": "a", "display_node": "a", "prompt_id": "7"}),
        ("executing", {"node": "c", "display_node": "c", "prompt_id": "7"}),
        ("executing", {"node": "x", "display_node": "x", "prompt_id": "7"}),
        ("executed", {"node": "x", "display_node": "x", "output": {"value": [2], "twice": [2, 2]}, "prompt_id": "7"}),
        ("execution_success", {"prompt_id": "7"}),
    ]


def test_each_call_of_a_node_is_inside_the_context_it_is_given():
    inside = []

    @contextlib.contextmanager
    def context():
        inside.append("in")
        yield
        inside.append("out")

    run(shown(A, a=node("CountTo", count=3)), node_context=context)
    assert inside == ["in", "out"] * 4  # CountTo once, Show for each of three


def result_of(value: Any) -> dict[str, type]:
    @toy({}, gives=("INT",), OUTPUT_NODE=True)
    class Gives:
        def run(self):
            return value() if callable(value) else value

    return {"Gives": Gives}


@pytest.mark.parametrize(
    ("value", "kind"),
    [(None, "NoneType"), (5, "int"), ("text", "str"), ({"result": None}, "NoneType"), ({"result": 5}, "int")],
)
def test_a_result_that_is_no_tuple_is_an_error_of_the_node(value, kind):
    with raises(NodeError, "node.result", "Gives", kind):
        run(graph(a=node("Gives")), result_of(value))


@pytest.mark.parametrize(
    ("value", "ui", "slots"),
    [
        ((1,), None, [[1]]),
        ([1], None, [[1]]),
        ({"result": (1,)}, None, [[1]]),
        ({"ui": {"a": [1, 2]}}, {"a": [1, 2]}, []),
        ({"ui": {"a": [1]}, "result": (3,)}, {"a": [1]}, [[3]]),
        ({}, None, []),
        ((), None, []),
    ],
)
def test_return_forms(value, ui, slots):
    result = run(graph(a=node("Gives")), result_of(value), keep=["a"])
    assert result.ui.get("a") == ui and result.values == {"a": slots}


def test_too_few_outputs_are_the_fault_of_the_node_that_gave_them():
    with raises(NodeError, "node.result", "a", "GivesTooLittle", 1):
        run(shown(["a", 1], a=node("GivesTooLittle")))


def test_hidden_inputs_bring_the_graph_the_workflow_and_the_id():
    prompt = shown(A, a=node("Number", value=3), h=node("ShowHidden", value=A))
    shown_by = run(prompt, extra_data={"extra_pnginfo": {"workflow": 1}}).ui["h"]
    assert shown_by == {"me": ["h"], "ids": [["a", "h", "show"]], "info": [{"workflow": 1}], "whole": [True]}
    assert run(prompt).ui["h"]["info"] == [None]


def test_nothing_is_kept_between_runs():
    prompt = shown(A, a=node("Mutable", value=1))
    assert [run(prompt).ui["show"]["value"] for _ in range(2)] == [["1"], ["1"]]


def test_the_graph_is_not_changed():
    checked = validate(shown(A, a=node("ChangedByValue", value=3, other=1)), TOYS)
    before = repr(checked.prompt)
    Engine(TOYS).run(checked.prompt, checked.outputs)
    assert repr(checked.prompt) == before
