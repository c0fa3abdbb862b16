"""What a graph does while it runs: lazy inputs, nodes that bring nodes, blockers, coroutines, caches between runs."""

from __future__ import annotations

import asyncio
import random
import signal
import threading
import time
from collections import Counter
from typing import Any

import pytest
from error_checks import raises
from svd_stages.headless.graph import Engine, validate
from svd_stages.headless.graph.call import ExecutionBlocker
from svd_stages.svd_core.errors import GraphError, Interrupted, NodeError

from .toys import TOYS, graph, node, toy

A, B, C = ["a", 0], ["b", 0], ["c", 0]


def run(prompt: dict[str, Any], nodes: dict[str, type], outputs: tuple[str, ...] = ("show",), **more: Any):
    checked = validate(prompt, nodes)
    assert checked.ok, checked.node_errors
    return Engine(nodes).run(checked.prompt, outputs, **more)


def ran(prompt: dict[str, Any], nodes: dict[str, type], **more: Any) -> list[str]:
    """The nodes that ran, in order."""
    told: list[str] = []

    def on_event(event: str, data: dict[str, Any]) -> None:
        if event == "executing":
            told.append(data["node"])

    run(prompt, nodes, on_event=on_event, **more)
    return told


# Lazy inputs


@toy({"pick": ("BOOLEAN", {}), "yes": ("INT", {"lazy": True}), "no": ("INT", {"lazy": True})}, gives=("INT",))
class Switch:
    def check_lazy_status(self, pick, yes=None, no=None):
        return ["yes"] if pick else ["no"]

    def run(self, pick, yes=None, no=None):
        return (yes if pick else no,)


LAZY = {**TOYS, "Switch": Switch}


def switched(pick: bool) -> dict[str, Any]:
    return graph(
        a=node("Number", value=1),
        b=node("Number", value=2),
        c=node("Switch", pick=pick, yes=A, no=B),
        show=node("Show", value=C),
    )


@pytest.mark.parametrize(("pick", "asked", "value"), [(True, "a", "1"), (False, "b", "2")])
def test_only_the_lazy_input_that_is_asked_for_is_computed(pick, asked, value):
    assert ran(switched(pick), LAZY) == [asked, "c", "show"]
    assert run(switched(pick), LAZY).ui["show"] == {"value": [value]}


def test_what_a_lazy_input_needs_is_computed_before_it():
    prompt = switched(True) | {"a": node("Add", a=["n", 0], b=["n", 0]), "n": node("Number", value=4)}
    assert ran(prompt, LAZY) == ["n", "a", "c", "show"]


def test_asking_for_what_is_no_link_is_an_error_of_the_node():
    @toy({"value": ("INT", {"lazy": True})}, gives=("INT",))
    class Wrong:
        def check_lazy_status(self, value=None):
            return ["other"]

        def run(self, value=None):
            return (value,)

    with raises(NodeError, "error", "b", "check_lazy_status", "other"):
        run(
            graph(a=node("Number", value=1), b=node("Wrong", value=A), show=node("Show", value=B)),
            {**TOYS, "Wrong": Wrong},
        )


# Nodes that bring nodes


@toy({"times": ("INT", {}), "value": ("INT", {})}, gives=("INT",), hidden={"me": "UNIQUE_ID"})
class AddOften:
    """Adds 1 `times` times, by as many nodes."""

    def run(self, times, value, me):
        ids = [f"{me}.{place}" for place in range(times)]
        nodes, link = {}, value
        for each in ids:
            nodes[each] = {"class_type": "Add", "inputs": {"a": link, "b": 1}}
            link = [each, 0]
        return {"result": (link,), "expand": nodes}


EXPANDING = {**TOYS, "AddOften": AddOften}


def test_nodes_that_a_node_brings_run_and_give_its_value():
    prompt = graph(a=node("AddOften", times=3, value=10), show=node("Show", value=A))
    assert ran(prompt, EXPANDING) == ["a", "a.0", "a.1", "a.2", "show"]
    assert run(prompt, EXPANDING).ui["show"] == {"value": ["13"]}


def test_an_expansion_of_thousands_runs_without_recursion():
    prompt = graph(a=node("AddOften", times=3000, value=0), show=node("Show", value=A))
    assert run(prompt, EXPANDING).ui["show"] == {"value": ["3000"]}


def test_a_mapped_node_expands_for_each_value():
    @toy({"value": ("INT", {})}, gives=("INT",), hidden={"me": "UNIQUE_ID"})
    class Doubled:
        def run(self, value, me):
            return {
                "result": ([f"{me}.{value}", 0],),
                "expand": {f"{me}.{value}": {"class_type": "Add", "inputs": {"a": value, "b": value}}},
            }

    prompt = graph(a=node("CountTo", count=3), b=node("Doubled", value=A), show=node("Show", value=B))
    shown = run(prompt, {**TOYS, "Doubled": Doubled}).ui["show"]["value"]
    assert shown == [str(2 * value) for value in run(prompt, {**TOYS, "Doubled": Doubled}, keep=["a"]).values["a"][0]]


def bringing(nodes: dict[str, Any], result: Any = ()) -> dict[str, type]:
    @toy({}, gives=("INT",), OUTPUT_NODE=True)
    class Brings:
        def run(self):
            return {"result": result, "expand": nodes}

    return {**TOYS, "Brings": Brings}


def test_an_output_among_the_nodes_that_come_runs_too():
    nodes = bringing({"new": {"class_type": "Show", "inputs": {"value": 7}}})
    assert run(graph(a=node("Brings")), nodes, ("a",)).ui["new"] == {"value": ["7"]}


def test_a_cycle_among_the_nodes_that_come_is_blamed_on_the_node_that_brought_it():
    looped = {
        "one": {"class_type": "Add", "inputs": {"a": ["two", 0], "b": 1}},
        "two": {"class_type": "Add", "inputs": {"a": ["one", 0], "b": 1}},
    }
    told = []
    with raises(GraphError, "graph.dependency_cycle", "->"):
        run(graph(a=node("Brings")), bringing(looped, (["one", 0],)), ("a",), on_event=lambda *each: told.append(each))
    assert [data["node_id"] for event, data in told if event == "execution_error"] == ["a"]


@pytest.mark.parametrize(
    ("nodes", "code", "fact"),
    [
        ({"a": {"class_type": "Number", "inputs": {"value": 1}}}, "graph.duplicate_node", "Brings"),
        ({"new": {"class_type": "Nowhere", "inputs": {}}}, "graph.missing_node_type", "Nowhere"),
        ({"new": {"class_type": "Show", "inputs": {"value": ["gone", 0]}}}, "graph.missing_node", "gone"),
    ],
)
def test_nodes_that_cannot_come_are_an_error_of_the_node(nodes, code, fact):
    with raises(NodeError, code, fact):
        run(graph(a=node("Brings")), bringing(nodes), ("a",))


def test_an_error_in_a_node_that_came_names_the_node_of_the_file():
    nodes = bringing({"new": {"class_type": "Fails", "inputs": {"value": 1}}}, (["new", 0],))
    with raises(NodeError, "node", "Brings", "Fails") as caught:
        run(graph(a=node("Brings")), nodes, ("a",))
    assert caught.value.node_id == "a"


# Values that are let go, and graphs that grow: the same as where nothing is let go


def both_ways(prompt: dict[str, Any], nodes: dict[str, type]) -> dict[str, Any]:
    """What is shown, which must not depend on how long values are kept."""
    checked = validate(prompt, nodes)
    assert checked.ok, checked.node_errors
    shown = [Engine(nodes, keep).run(checked.prompt, checked.outputs).ui for keep in ("once", "classic", 0)]
    assert shown[0] == shown[1] == shown[2]
    return shown[0]


def brings_for(inputs: dict[str, Any], result: list[Any]) -> type:
    """A class that takes one number and brings the node "new", an Add of these inputs."""

    @toy({"after": ("INT", {})}, gives=("INT",), hidden={"me": "UNIQUE_ID"})
    class BringsLater:
        def run(self, after, me):
            return {"result": result, "expand": {"new": {"class_type": "Add", "inputs": inputs}}}

    return BringsLater


def test_a_node_whose_values_were_let_go_runs_again_when_one_that_comes_reads_it():
    nodes = {**TOYS, "Later": brings_for({"a": ["a", 0], "b": 10}, [["new", 0]])}
    prompt = graph(
        n=node("Number", value=5),
        a=node("Add", a=["n", 0], b=1),
        b=node("Add", a=A, b=1),
        e=node("Later", after=B),
        show=node("Show", value=["e", 0]),
    )
    assert both_ways(prompt, nodes)["show"] == {"value": ["16"]}


def test_a_node_of_the_file_that_only_a_new_one_reads_keeps_what_it_needs():
    nodes = {**TOYS, "Later": brings_for({"a": ["f", 0], "b": 0}, [["new", 0]])}
    prompt = graph(
        n=node("Number", value=7),
        f=node("Add", a=["n", 0], b=100),
        e=node("Later", after=["n", 0]),
        z=node("Add", a=["n", 0], b=["e", 0]),
        show=node("Show", value=["z", 0]),
    )
    assert both_ways(prompt, nodes)["show"] == {"value": ["114"]}


def test_a_new_node_may_read_what_is_given():
    nodes = {**TOYS, "Later": brings_for({"a": ["load", 0], "b": 0}, [["new", 0]])}
    prompt = graph(e=node("Later", after=1), show=node("Show", value=["e", 0]), load=node("Number", value=1))
    assert run(prompt, nodes, precomputed={"load": [[42]]}).ui["show"] == {"value": ["42"]}


def test_equal_values_of_a_mapped_expansion_are_each_given():
    @toy({"value": ("INT", {})}, gives=("INT",), hidden={"me": "UNIQUE_ID"})
    class Twice:
        count = 0

        def run(self, value, me):
            Twice.count += 1
            new = f"{me}.{Twice.count}"
            return {"result": ([new, 0],), "expand": {new: {"class_type": "Add", "inputs": {"a": value, "b": value}}}}

    @toy({}, gives=("INT",), OUTPUT_IS_LIST=(True,))
    class Equal:
        def run(self):
            return ([2, 2, 3],)

    nodes = {**TOYS, "Twice": Twice, "Equal": Equal}
    prompt = graph(a=node("Equal"), b=node("Twice", value=A), show=node("Show", value=B))
    assert both_ways(prompt, nodes)["show"] == {"value": ["4", "4", "6"]}


@toy({"times": ("INT", {})}, gives=("INT",), hidden={"graph": "DYNPROMPT", "me": "UNIQUE_ID"})
class Loop:
    """As loop nodes of packs: looks at the graph, and clones itself and the body until it has run `times` times."""

    def run(self, times, graph, me):
        if times == 0:
            return (0,)
        body = graph.get_node("body")["inputs"]
        nodes = {
            f"{me}.l": {"class_type": "Loop", "inputs": {"times": times - 1}},
            f"{me}.b": {"class_type": "Add", "inputs": {**body, "a": [f"{me}.l", 0]}},
        }
        return {"result": ([f"{me}.b", 0],), "expand": nodes}


def test_a_loop_that_clones_its_body_gives_the_same_and_loads_once():
    loads = []

    @toy({}, gives=("INT",), NOT_IDEMPOTENT=True)
    class Load:
        def run(self):
            loads.append(1)
            return (3,)

    nodes = {**TOYS, "Loop": Loop, "Load": Load}
    prompt = graph(
        load=node("Load"),
        body=node("Add", a=0, b=["load", 0]),
        loop=node("Loop", times=4),
        show=node("Show", value=["loop", 0]),
        other=node("Show", value=["body", 0]),
    )
    assert both_ways(prompt, nodes)["show"] == {"value": ["12"]}
    assert len(loads) == 3  # once in each of the three engines


def test_what_a_node_brought_stays_while_the_node_does_and_is_its_own():
    heavy = []

    @toy({"value": ("INT", {})}, gives=("INT",))
    class Heavy:
        def run(self, value):
            heavy.append(value)
            return (value,)

    @toy({"value": ("INT", {}), "other": ("INT", {})}, gives=("INT",), hidden={"me": "UNIQUE_ID"})
    class Wraps:
        def run(self, value, other, me):
            return {
                "result": ([f"{me}.h", 0],),
                "expand": {f"{me}.h": {"class_type": "Heavy", "inputs": {"value": value}}},
            }

    nodes = {**TOYS, "Heavy": Heavy, "Wraps": Wraps}

    def wrapped(other: int) -> dict[str, Any]:
        return graph(
            a=node("Wraps", value=5, other=other),
            b=node("Wraps", value=5, other=other),
            c=node("Add", a=A, b=B),
            show=node("Show", value=C),
        )

    engine = Engine(nodes, "classic")
    for other in (1, 2):
        ran_by(engine, wrapped(other), nodes)
    assert heavy == [5, 5]  # one for each that brought it, and none for the second run


def random_graph(rng: random.Random) -> dict[str, Any]:
    """Numbers, sums, switches and nodes that bring nodes, each reading any that came before it."""
    prompt = {"0": node("Number", value=rng.randrange(5))}
    for place in range(1, 25):
        first, second = ([str(rng.randrange(place)), 0] for _ in range(2))
        prompt[str(place)] = rng.choice(
            [
                node("Number", value=rng.randrange(5)),
                node("Add", a=first, b=second),
                node("Switch", pick=rng.random() < 0.5, yes=first, no=second),
                node("Passes", times=rng.randrange(3), value=first, lazily=second),
            ]
        )
    shows = {f"show{place}": node("Show", value=[str(rng.randrange(20, 25)), 0]) for place in range(2)}
    return {**prompt, **shows}


@toy(
    {"times": ("INT", {}), "value": ("INT", {"rawLink": True}), "lazily": ("INT", {"lazy": True})},
    gives=("INT",),
    hidden={"me": "UNIQUE_ID"},
)
class Passes:
    """Brings nodes that add what it was only linked to; at times asks for its lazy input too."""

    def check_lazy_status(self, times, value, lazily=None, me=None):
        return ["lazily"] if times == 2 else []

    def run(self, times, value, me, lazily=None):
        nodes, link = {}, lazily or 0
        for place in range(times):
            nodes[f"{me}.{place}"] = {"class_type": "Add", "inputs": {"a": value, "b": link}}
            link = [f"{me}.{place}", 0]
        return {"result": (link,), "expand": nodes}


@pytest.mark.parametrize("seed", range(20))
def test_letting_go_changes_no_value_and_has_nothing_run_twice(seed):
    nodes = {**LAZY, "Passes": Passes}
    prompt = random_graph(random.Random(seed))
    assert validate(prompt, nodes).ok
    both_ways(prompt, nodes)
    ran_once, cached, _ = ran_by(Engine(nodes), prompt, nodes)
    assert Counter(ran_once) == Counter(ran_by(Engine(nodes, "classic"), prompt, nodes)[0]) and cached == []


# Blockers


def giving(value: Any) -> dict[str, type]:
    @toy({}, gives=("INT", "INT"))
    class Gives:
        def run(self):
            return value

    return {**TOYS, "Gives": Gives}


@pytest.mark.parametrize("value", [(ExecutionBlocker(None), 5), {"result": (ExecutionBlocker(None), 5)}])
def test_what_gets_a_blocker_does_not_run_and_the_rest_does(value):
    prompt = graph(a=node("Gives"), b=node("Add", a=A, b=1), x=node("Show", value=B), show=node("Show", value=["a", 1]))
    result = run(prompt, giving(value), ("x", "show"))
    assert result.ui == {"show": {"value": ["5"]}}


def test_a_blocker_in_place_of_all_values_blocks_all_of_them_and_its_words_are_told_once():
    prompt = graph(a=node("Gives"), b=node("Add", a=A, b=1), show=node("Show", value=B))
    told = []
    result = run(prompt, giving(ExecutionBlocker("faceless")), on_event=lambda *each: told.append(each))
    assert result.ui == {}
    (error,) = [data for event, data in told if event == "execution_error"]
    assert error["node_id"] == "b" and "faceless" in error["exception_message"]
    assert told[-1][0] == "execution_success"


def test_a_lazy_node_is_not_asked_about_a_call_that_a_blocker_reaches():
    prompt = graph(g=node("Gives"), c=node("Switch", pick=["g", 0], yes=["g", 1], no=1), show=node("Show", value=C))
    nodes = {**LAZY, **giving((ExecutionBlocker(None), 5))}
    nodes["Gives"].RETURN_TYPES = ("BOOLEAN", "INT")
    assert run(prompt, nodes).ui == {}


# Coroutines


@toy({"value": ("INT", {})}, gives=("INT",))
class Sleeps:
    async def run(self, value):
        await asyncio.sleep(0.2)
        return (value,)


ASYNC = {**TOYS, "Sleeps": Sleeps}


def test_coroutines_run_beside_each_other():
    prompt = graph(
        a=node("Sleeps", value=1), b=node("Sleeps", value=2), c=node("Add", a=A, b=B), show=node("Show", value=C)
    )
    began = time.monotonic()
    assert run(prompt, ASYNC).ui["show"] == {"value": ["3"]}
    assert time.monotonic() - began < 0.38


def test_a_mapped_coroutine_runs_for_all_values_at_once():
    prompt = graph(a=node("CountTo", count=4), b=node("Sleeps", value=A), show=node("Show", value=B))
    began = time.monotonic()
    assert len(run(prompt, ASYNC).ui["show"]["value"]) == 4
    assert time.monotonic() - began < 0.38


def test_an_error_in_a_coroutine_is_the_nodes_and_stops_the_others():
    ended = []

    @toy({}, gives=("INT",))
    class Breaks:
        async def run(self):
            await asyncio.sleep(0.01)
            raise ValueError("it broke")

    @toy({}, gives=("INT",), NOT_IDEMPOTENT=True)
    class Long:
        async def run(self):
            try:
                await asyncio.sleep(60)
            finally:
                ended.append(True)

    prompt = graph(a=node("Long"), b=node("Breaks"), c=node("Add", a=A, b=B), show=node("Show", value=C))
    with raises(NodeError, "node", "b", "Breaks", "ValueError", "broke"):
        run(prompt, {**TOYS, "Breaks": Breaks, "Long": Long})
    assert ended == [True]


def test_a_graph_runs_where_a_loop_runs_already():
    async def notebook():
        return run(graph(a=node("Sleeps", value=1), show=node("Show", value=A)), ASYNC)

    assert asyncio.run(notebook()).ui["show"] == {"value": ["1"]}


def test_checks_may_be_coroutines():
    @toy({"value": ("INT", {})}, gives=("INT",))
    class Checked:
        @classmethod
        async def VALIDATE_INPUTS(cls, value):
            await asyncio.sleep(0)
            return "too large" if value > 5 else True

        @classmethod
        async def IS_CHANGED(cls, value):
            return 1

        def run(self, value):
            return (value,)

    nodes = {**TOYS, "Checked": Checked}
    assert not validate(graph(a=node("Checked", value=9), show=node("Show", value=A)), nodes).ok
    assert run(graph(a=node("Checked", value=3), show=node("Show", value=A)), nodes).ui["show"] == {"value": ["3"]}


def test_a_coroutine_that_gives_itself_up_is_an_error_of_the_node():
    @toy({}, gives=("INT",))
    class GivesUp:
        async def run(self):
            await asyncio.sleep(0)
            raise asyncio.CancelledError

    with raises(NodeError, "node.cancelled", "GivesUp"):
        run(graph(a=node("GivesUp"), show=node("Show", value=A)), {**TOYS, "GivesUp": GivesUp})


def test_being_stopped_while_coroutines_run_is_told(monkeypatch):
    told = []

    async def stopped(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(asyncio.Event, "wait", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(
            graph(a=node("Sleeps", value=1), show=node("Show", value=A)),
            ASYNC,
            on_event=lambda *each: told.append(each),
        )
    assert told[-1][0] == "execution_interrupted" and told[-1][1]["node_id"] == "a"


@pytest.fixture
def _ctrl_c_is_python_s():
    """Also where these tests were started in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_ctrl_c_is_python_s")
def test_a_stop_in_a_notebook_reaches_the_node():
    ended = []

    @toy({}, gives=("INT",))
    class Computes:
        def run(self):
            try:
                end = time.monotonic() + 20
                while time.monotonic() < end:
                    pass
            finally:
                ended.append(time.monotonic())
            return (1,)

    async def notebook():
        threading.Timer(0.5, lambda: signal.raise_signal(signal.SIGINT)).start()
        run(graph(a=node("Computes"), show=node("Show", value=A)), {**TOYS, "Computes": Computes})

    began = time.monotonic()
    loop = asyncio.new_event_loop()
    with pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(notebook())
    loop.close()
    assert ended and ended[0] - began < 10


def test_what_an_observer_raises_is_no_nodes_fault():
    def on_event(event: str, data: dict[str, Any]) -> None:
        if event == "executing":
            raise BrokenPipeError("nobody reads")

    with pytest.raises(BrokenPipeError):
        run(graph(show=node("Show", value=1)), TOYS, on_event=on_event)


def test_being_stopped_in_is_changed_stops():
    @toy({}, gives=("INT",))
    class Stops:
        @classmethod
        def IS_CHANGED(cls):
            raise Interrupted("enough")

        def run(self):
            return (1,)

    with pytest.raises(Interrupted):
        run(graph(a=node("Stops"), show=node("Show", value=A)), {**TOYS, "Stops": Stops})


# Between runs


def ran_by(engine: Engine, prompt: dict[str, Any], nodes: dict[str, type]) -> tuple[list[str], list[str], dict]:
    """The nodes that ran, those that were cached, what is shown."""
    told: list[tuple[str, dict[str, Any]]] = []
    checked = validate(prompt, nodes)
    result = engine.run(checked.prompt, checked.outputs, on_event=lambda *each: told.append(each))
    running = [data["node"] for event, data in told if event == "executing"]
    (cached,) = [data["nodes"] for event, data in told if event == "execution_cached"]
    return running, cached, result.ui


def added(first: int, second: int) -> dict[str, Any]:
    return graph(
        a=node("Number", value=first),
        b=node("Number", value=second),
        c=node("Add", a=A, b=B),
        show=node("Show", value=C),
    )


@pytest.mark.parametrize("keep", ["classic", 50])
def test_a_second_run_computes_what_changed_and_what_needs_it(keep):
    engine = Engine(TOYS, keep)
    assert ran_by(engine, added(1, 2), TOYS) == (["a", "b", "c", "show"], [], {"show": {"value": ["3"]}})
    assert ran_by(engine, added(1, 2), TOYS) == ([], ["a", "b", "c", "show"], {"show": {"value": ["3"]}})
    assert ran_by(engine, added(1, 5), TOYS) == (["b", "c", "show"], ["a"], {"show": {"value": ["6"]}})


def test_classic_forgets_what_the_next_graph_does_not_have_and_a_number_does_not():
    for keep, again in (("classic", ["b", "c", "show"]), (50, [])):
        engine = Engine(TOYS, keep)
        for second in (2, 5):
            ran_by(engine, added(1, second), TOYS)
        assert ran_by(engine, added(1, 2), TOYS)[0] == again


def test_an_instance_lives_as_long_as_its_node():
    @toy({}, {"step": ("INT", {})}, gives=("INT",))
    class Counts:
        def __init__(self):
            self.count = 0

        def run(self, step=0):
            self.count += 1
            return (self.count,)

    nodes = {**TOYS, "Counts": Counts}

    def shown(step: int) -> dict[str, Any]:
        return graph(a=node("Counts", step=step), show=node("Show", value=A))

    engine = Engine(nodes, "classic")
    assert [ran_by(engine, shown(step), nodes)[2]["show"]["value"] for step in (1, 2, 3)] == [["1"], ["2"], ["3"]]
    ran_by(engine, added(1, 2), nodes)
    ran_by(engine, graph(z=node("Number", value=1), show=node("Show", value=["z", 0])), nodes)
    assert ran_by(engine, shown(4), nodes)[2]["show"]["value"] == ["1"]


def test_too_few_values_are_the_fault_of_their_node_in_a_second_run_too():
    engine = Engine(TOYS, "classic")
    prompt = graph(a=node("GivesTooLittle"), show=node("Show", value=A))
    ran_by(engine, prompt, TOYS)
    with raises(NodeError, "node.result", "GivesTooLittle", 1):
        ran_by(engine, prompt | {"x": node("Show", value=["a", 1])}, TOYS)


@pytest.mark.parametrize("keep", ["classic", 3])
def test_an_engine_does_not_grow_with_its_runs(keep):
    engine = Engine(TOYS, keep)
    sizes = []
    for value in range(40):
        ran_by(engine, graph(a=node("AlwaysChanged", value=value), show=node("Show", value=A)), TOYS)
        sizes.append((len(engine._numbers), len(engine._cache._entries), len(engine._instances)))
    assert sizes[-1] == sizes[10]


# Speed


def test_a_chain_of_thousands_is_validated_and_run_in_two_seconds():
    prompt = graph(a=node("Number", value=0))
    last = "a"
    for place in range(3000):
        prompt[str(place)] = node("Add", a=[last, 0], b=1)
        last = str(place)
    prompt["show"] = node("Show", value=[last, 0])
    began = time.perf_counter()
    assert run(prompt, TOYS).ui["show"] == {"value": ["3000"]}
    assert time.perf_counter() - began < 2.0


def test_the_executor_takes_little_time_for_a_node():
    @toy({}, {"value": ("INT", {})}, gives=("INT",), NOT_IDEMPOTENT=True)
    class Nothing:
        def run(self, value=0):
            return (0,)

    nodes, count = {**TOYS, "Nothing": Nothing}, 1000
    prompt = {str(place): node("Nothing", value=[str(place - 1), 0] if place else 0) for place in range(count)}
    prompt["show"] = node("Show", value=[str(count - 1), 0])
    times = []
    for _ in range(3):
        began = time.perf_counter()
        Engine(nodes).run(prompt, ["show"])
        times.append(time.perf_counter() - began)
    assert min(times) / count < 0.0002
