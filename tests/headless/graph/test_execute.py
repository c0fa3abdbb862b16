"""Run graphs of toy nodes: mapping, order, equal nodes, released values, events, errors."""

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

from .cases import A, B, C, D, two_outputs
from .running import Events, order_of, run
from .toys import ANY, TOYS, ChangedByValue, giving, graph, node, shown, toy, twins


def values(prompt, node_id, nodes=TOYS) -> list[list[Any]]:
    return run(prompt, nodes, keep=[node_id]).values[node_id]


def test_an_output_without_a_flag_is_dropped():
    """ComfyUI merges as many slots as OUTPUT_IS_LIST has."""
    assert values(graph(a=node("ShortOutputIsList", count=2)), "a") == [[0, 1]]
    with raises(NodeError, "node.result", "ShortOutputIsList", 1):
        run(shown(B, a=node("ShortOutputIsList", count=2), b=node("Add", a=["a", 1], b=1)))


def test_an_empty_list_is_an_error_that_names_the_input():
    with raises(NodeError, "graph.empty_list", "b", "Add", "Plus", '"a"') as caught:
        run(shown(B, a=node("CountTo", count=0), b=node("Add", "Plus", a=A, b=1)))
    assert caught.value.exit_status == 4


def test_lists_taken_whole_are_copies():
    @toy({"value": (ANY, {})}, gives=("INT",), INPUT_IS_LIST=True, NOT_IDEMPOTENT=True)
    class Spoils:
        def run(self, value):
            value.append(99)
            return (len(value),)

    prompt = graph(a=node("CountTo", count=2), b=node("Spoils", value=A), c=node("Spoils", value=A))
    assert run(prompt, {**TOYS, "Spoils": Spoils}, keep=["b", "c"]).values == {"b": [[3]], "c": [[3]]}


def test_ready_nodes_run_in_the_order_of_the_file():
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


def test_sources_run_first_in_any_order_of_the_file():
    nodes = {str(index): node("Add", a=[str(index + 1), 0], b=index) for index in range(20)}
    nodes |= {"20": node("Number", value=0), "show": node("Show", value=["0", 0])}
    assert order_of(nodes) == [*[str(index) for index in range(20, -1, -1)], "show"]


def test_is_changed_is_called_with_constants_and_none_for_links():
    ChangedByValue.calls.clear()
    run(shown(B, a=node("Number", value=3), b=node("ChangedByValue", value=A, other=5)))
    assert ChangedByValue.calls == [(None, 5)]


def test_is_changed_that_raises_means_always_changed(caplog):
    @toy({}, gives=("INT",))
    class Raises:
        def run(self):
            return (1,)

        @classmethod
        def IS_CHANGED(cls):
            raise OSError("gone")

    assert order_of(twins("R"), {**TOYS, "R": Raises}) == ["a", "b", "c", "x"]
    assert "gone" in caplog.text


CONSTANTS = [1, 1.0, True, "1", None, [1], (2,), {"a": 1}, {"a": [1, {"b": 2.5}]}, b"x"]


@pytest.mark.parametrize("value", CONSTANTS)
def test_constants_are_equal_by_value_and_type(value):
    assert [freeze(value) == freeze(other) for other in CONSTANTS].count(True) == 1
    assert hash(freeze(value)) == hash(freeze(value))


def test_nan_and_objects_equal_nothing_not_even_themselves():
    thing = object()
    for value in (float("nan"), thing, [thing], {"a": float("nan")}):
        assert freeze(value) != freeze(value)


class Thing:
    """A large value."""


def tracked() -> tuple[dict[str, type], list[weakref.ref], list[list[bool]]]:
    """Create classes that create and read things. `alive` tells which are in memory while each reader runs."""
    created: list[weakref.ref] = []
    alive: list[list[bool]] = []

    @toy({}, gives=("THING", "THING"), NOT_IDEMPOTENT=True)
    class Make:
        def run(self):
            things = Thing(), Thing()
            created.extend(map(weakref.ref, things))
            return things

    @toy({}, {"thing": ("THING", {}), "after": ("INT", {})}, gives=("INT",), NOT_IDEMPOTENT=True)
    class Read:
        def run(self, thing=None, after=0):
            gc.collect()
            alive.append([ref() is not None for ref in created])
            return (1,)

    return {**TOYS, "Make": Make, "Read": Read}, created, alive


def test_a_value_is_released_after_the_last_reader_of_its_slot():
    nodes, created, alive = tracked()
    prompt = shown(
        D,
        a=node("Make"),
        b=node("Read", thing=["a", 0]),
        c=node("Read", thing=["a", 1], after=B),
        d=node("Read", after=C),
    )
    run(prompt, nodes)
    assert alive == [[True, True], [False, True], [False, False]]
    assert [ref() for ref in created] == [None, None]


def test_a_value_without_a_reader_is_released_and_a_kept_one_is_not():
    nodes, _, alive = tracked()
    prompt = shown(B, a=node("Make"), b=node("Read", thing=["a", 0]))
    run(prompt, nodes)
    assert alive == [[True, False]]
    result = run(prompt, nodes, keep=["a"])
    assert [type(slot[0]) for slot in result.values["a"]] == [Thing, Thing]
    assert alive[1][2:] == [True, True]


def test_values_for_a_lazy_branch_are_released_when_it_is_not_taken():
    nodes, _, alive = tracked()

    @toy({}, {"yes": ("INT", {"lazy": True}), "no": ("INT", {"lazy": True})}, gives=("INT",))
    class Choose:
        def check_lazy_status(self, yes=None, no=None):
            return ["yes"]

        def run(self, yes=None, no=None):
            return (yes,)

    prompt = shown(
        D,
        a=node("Make"),
        b=node("Read", thing=["a", 0]),
        deep=node("Read", thing=["a", 1]),
        no=node("Read", after=["deep", 0]),
        c=node("Choose", yes=B, no=["no", 0]),
        d=node("Read", after=C),
    )
    run(prompt, {**nodes, "Choose": Choose})
    assert alive == [[True, True], [False, False]]


@pytest.mark.parametrize("raw", [False, True])
def test_values_that_only_an_expanding_node_reads_are_released_before_its_added_nodes_run(raw):
    nodes, _, alive = tracked()

    @toy({"thing": ("THING", {"rawLink": raw})}, gives=("INT",))
    class Adds:
        def run(self, thing):
            first = node("Read", thing=thing) if raw else node("Read")
            return {"result": (["last", 0],), "expand": {"first": first, "last": node("Read", after=["first", 0])}}

    run(shown(B, a=node("Make"), b=node("Adds", thing=["a", 0])), {**nodes, "Adds": Adds})
    assert alive == [[raw, False], [False, False]]


def test_precomputed_nodes_do_not_run():
    prompt = shown(B, load=node("NotInstalled", file="x"), b=node("Add", a=["load", 0], b=["nowhere", 1]))
    result = run(prompt, precomputed={"load": [[20]], "nowhere": [[None], [3]]}, keep=["b"])
    assert result.values == {"b": [[23]]} and result.ui["show"] == {"value": ["23"]}


def test_ancestors_of_a_precomputed_node_do_not_run():
    prompt = shown(B, a=node("Fails", value=1), b=node("Add", a=A, b=1))
    assert run(prompt, precomputed={"b": [[5]]}).ui["show"] == {"value": ["5"]}


def test_a_precomputed_node_with_too_few_slots_is_refused():
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
def test_a_graph_that_was_not_validated_is_refused_with_a_code(prompt, outputs, code):
    with raises(GraphError, code):
        Engine(TOYS).run(prompt, outputs)


def test_a_link_with_the_slot_infinity_in_a_node_that_does_not_run_is_ignored():
    prompt = shown(1, a=node("Add", a=["b", float("inf")], b=1))
    assert run(prompt).ui["show"] == {"value": ["1"]}


def test_the_first_failure_ends_the_run_and_names_its_node():
    events: Events = []
    prompt = two_outputs(node("Fails", "Mine", value=1), node("Number", value=1))
    with raises(NodeError, "node", "a", "Fails", "Mine", "ValueError", "badly") as caught:
        run(prompt, on_event=lambda *event: events.append(event), prompt_id="p")
    error = caught.value
    assert (error.node_id, error.class_type, error.exit_status) == ("a", "Fails", 4)
    assert isinstance(error.__cause__, ValueError)
    assert [event for event, _ in events] == ["execution_start", "execution_cached", "executing", "execution_error"]
    failure = events[-1][1]
    assert failure["prompt_id"] == "p" and failure["node_type"] == "Fails" and failure["executed"] == []
    assert failure["exception_type"] == "ValueError" and failure["current_inputs"] == {}


def raising(error: BaseException) -> dict[str, type]:
    @toy({}, OUTPUT_NODE=True)
    class Raises:
        def run(self):
            raise error

    return {"Raises": Raises}


@pytest.mark.parametrize(("cause", "status"), [(CheckpointError("no file"), 3), (SettingError("too much"), 2)])
def test_our_own_errors_keep_their_message_and_exit_status(cause, status):
    with raises(NodeError, cause.code, "a", "Raises") as caught:
        run(graph(a=node("Raises")), raising(cause))
    assert caught.value.exit_status == status and str(cause) in str(caught.value)


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), Interrupted("stopped")])
def test_interrupts_are_raised_unchanged_and_reported(stop):
    events: Events = []
    with pytest.raises(type(stop)):
        run(graph(a=node("Raises")), raising(stop), on_event=lambda *event: events.append(event))
    event, data = events[-1]
    assert event == "execution_interrupted" and data["node_id"] == "a" and data["executed"] == []


def test_on_event_can_end_the_run():
    def on_event(event, data):
        if data.get("node") == "b":
            raise Interrupted("enough")

    with pytest.raises(Interrupted):
        run(shown(B, a=node("Number", value=1), b=node("Fails", value=A)), on_event=on_event)


def test_events_are_comfyuis_in_their_order():
    events: Events = []
    prompt = twins("Number", value=1) | {"x": node("ShowAndPass", value=C)}
    run(prompt, on_event=lambda *event: events.append(event), prompt_id="7")
    output = {"value": [2], "twice": [2, 2]}
    assert events == [
        ("execution_start", {"prompt_id": "7"}),
        ("execution_cached", {"nodes": [], "prompt_id": "7"}),
        *[("executing", {"node": name, "display_node": name, "prompt_id": "7"}) for name in "acx"],
        ("executed", {"node": "x", "display_node": "x", "output": output, "prompt_id": "7"}),
        ("execution_success", {"prompt_id": "7"}),
    ]


def test_each_call_of_a_node_is_inside_the_node_context():
    calls = []

    @contextlib.contextmanager
    def context():
        calls.append("in")
        yield
        calls.append("out")

    run(shown(A, a=node("CountTo", count=3)), node_context=context)
    assert calls == ["in", "out"] * 4  # CountTo once, Show for each of three


@pytest.mark.parametrize(
    ("value", "kind"),
    [(None, "NoneType"), (5, "int"), ("text", "str"), ({"result": None}, "NoneType"), ({"result": 5}, "int")],
)
def test_a_result_that_is_not_a_tuple_is_an_error_of_the_node(value, kind):
    with raises(NodeError, "node.result", "Gives", kind):
        run(graph(a=node("Gives")), giving(value))


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
def test_result_forms(value, ui, slots):
    result = run(graph(a=node("Gives")), giving(value), keep=["a"])
    assert result.ui.get("a") == ui and result.values == {"a": slots}


def test_nothing_is_kept_between_runs():
    engine = Engine(TOYS)
    prompt = shown(A, a=node("Mutable", value=1))
    assert [run(prompt, TOYS, engine).ui["show"]["value"] for _ in range(2)] == [["1"], ["1"]]


def test_the_graph_is_not_changed():
    checked = validate(shown(A, a=node("ChangedByValue", value=3, other=1)), TOYS)
    before = repr(checked.prompt)
    Engine(TOYS).run(checked.prompt, checked.outputs)
    assert repr(checked.prompt) == before
