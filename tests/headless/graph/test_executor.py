"""Run graphs with lazy inputs, expansions, blockers, coroutines, and caches between runs."""

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

from .cases import A, B, C
from .running import Events, order_of, run, run_ids
from .toys import TOYS, giving, graph, node, shown, toy

# Lazy inputs


@toy({"pick": ("BOOLEAN", {}), "yes": ("INT", {"lazy": True}), "no": ("INT", {"lazy": True})}, gives=("INT",))
class Switch:
    def check_lazy_status(self, pick, yes=None, no=None):
        return ["yes"] if pick else ["no"]

    def run(self, pick, yes=None, no=None):
        return (yes if pick else no,)


LAZY = {**TOYS, "Switch": Switch}


def switched(pick: bool) -> dict[str, Any]:
    return shown(C, a=node("Number", value=1), b=node("Number", value=2), c=node("Switch", pick=pick, yes=A, no=B))


@pytest.mark.parametrize(("pick", "computed", "value"), [(True, "a", "1"), (False, "b", "2")])
def test_only_the_requested_lazy_input_is_computed(pick, computed, value):
    assert run_ids(switched(pick), LAZY) == ([computed, "c", "show"], [], {"show": {"value": [value]}})


def test_the_sources_of_a_lazy_input_are_computed_before_it():
    prompt = switched(True) | {"a": node("Add", a=["n", 0], b=["n", 0]), "n": node("Number", value=4)}
    assert order_of(prompt, LAZY) == ["n", "a", "c", "show"]


def test_requesting_an_input_that_is_not_linked_is_an_error_of_the_node():
    @toy({"value": ("INT", {"lazy": True})}, gives=("INT",))
    class Wrong:
        def check_lazy_status(self, value=None):
            return ["other"]

        def run(self, value=None):
            return (value,)

    with raises(NodeError, "error", "b", "check_lazy_status", "other"):
        run(shown(B, a=node("Number", value=1), b=node("Wrong", value=A)), {**TOYS, "Wrong": Wrong})


# Expansion


@toy({"times": ("INT", {}), "value": ("INT", {})}, gives=("INT",), hidden={"me": "UNIQUE_ID"})
class AddOften:
    """Adds 1 `times` times, by as many nodes."""

    def run(self, times, value, me):
        ids = [f"{me}.{index}" for index in range(times)]
        nodes, link = {}, value
        for each in ids:
            nodes[each] = node("Add", a=link, b=1)
            link = [each, 0]
        return {"result": (link,), "expand": nodes}


EXPANDING = {**TOYS, "AddOften": AddOften}


def test_added_nodes_run_and_compute_the_value():
    prompt = shown(A, a=node("AddOften", times=3, value=10))
    assert run_ids(prompt, EXPANDING) == (["a", "a.0", "a.1", "a.2", "show"], [], {"show": {"value": ["13"]}})


def test_an_expansion_of_thousands_runs_without_recursion():
    prompt = shown(A, a=node("AddOften", times=3000, value=0))
    assert run(prompt, EXPANDING).ui["show"] == {"value": ["3000"]}


def adding(nodes: dict[str, Any], result: Any = ()) -> dict[str, type]:
    @toy({}, gives=("INT",), OUTPUT_NODE=True)
    class Adds:
        def run(self):
            return {"result": result, "expand": nodes}

    return {**TOYS, "Adds": Adds}


def test_an_output_among_added_nodes_runs():
    assert run(graph(a=node("Adds")), adding({"new": node("Show", value=7)})).ui["new"] == {"value": ["7"]}


def test_a_cycle_of_added_nodes_is_reported_at_the_node_that_added_them():
    cycle = {"one": node("Add", a=["two", 0], b=1), "two": node("Add", a=["one", 0], b=1)}
    events: Events = []
    with raises(GraphError, "graph.dependency_cycle", "->"):
        run(graph(a=node("Adds")), adding(cycle, (["one", 0],)), on_event=lambda *event: events.append(event))
    assert [data["node_id"] for event, data in events if event == "execution_error"] == ["a"]


@pytest.mark.parametrize(
    ("nodes", "code", "fact"),
    [
        ({"a": node("Number", value=1)}, "graph.duplicate_node", "Adds"),
        ({"new": node("Nowhere")}, "graph.missing_node_type", "Nowhere"),
        ({"new": node("Show", value=["gone", 0])}, "graph.missing_node", "gone"),
    ],
)
def test_nodes_that_cannot_be_added_are_an_error_of_the_node(nodes, code, fact):
    with raises(NodeError, code, fact):
        run(graph(a=node("Adds")), adding(nodes))


def test_an_error_in_an_added_node_names_the_node_of_the_file():
    with raises(NodeError, "node", "Adds", "Fails") as caught:
        run(graph(a=node("Adds")), adding({"new": node("Fails", value=1)}, (["new", 0],)))
    assert caught.value.node_id == "a"


# Released values must not change results


def run_in_all_modes(prompt: dict[str, Any], nodes: dict[str, type]) -> dict[str, Any]:
    """Return the ui, which must not depend on how long values are kept."""
    uis = [run(prompt, nodes, Engine(nodes, mode)).ui for mode in ("once", "classic")]
    assert uis[0] == uis[1]
    return uis[0]


def adding_later(inputs: dict[str, Any]) -> dict[str, type]:
    """Return the toys and a class that takes one number and adds the node "new", an Add of these inputs."""

    @toy({"after": ("INT", {})}, gives=("INT",), hidden={"me": "UNIQUE_ID"})
    class Later:
        def run(self, after, me):
            return {"result": [["new", 0]], "expand": {"new": node("Add", **inputs)}}

    return {**TOYS, "Later": Later}


def test_a_node_whose_values_were_released_runs_again_when_an_added_node_reads_it():
    prompt = shown(
        ["e", 0],
        n=node("Number", value=5),
        a=node("Add", a=["n", 0], b=1),
        b=node("Add", a=A, b=1),
        e=node("Later", after=B),
    )
    assert run_in_all_modes(prompt, adding_later({"a": ["a", 0], "b": 10}))["show"] == {"value": ["16"]}


def test_a_node_of_the_file_that_only_an_added_node_reads_keeps_its_sources():
    prompt = shown(
        ["z", 0],
        n=node("Number", value=7),
        f=node("Add", a=["n", 0], b=100),
        e=node("Later", after=["n", 0]),
        z=node("Add", a=["n", 0], b=["e", 0]),
    )
    assert run_in_all_modes(prompt, adding_later({"a": ["f", 0], "b": 0}))["show"] == {"value": ["114"]}


def test_an_added_node_can_read_precomputed_values():
    prompt = shown(["e", 0], e=node("Later", after=1), load=node("Number", value=1))
    nodes = adding_later({"a": ["load", 0], "b": 0})
    assert run(prompt, nodes, precomputed={"load": [[42]]}).ui["show"] == {"value": ["42"]}


def test_equal_values_of_a_mapped_expansion_are_all_returned():
    @toy({"value": ("INT", {})}, gives=("INT",), hidden={"me": "UNIQUE_ID"})
    class Twice:
        count = 0

        def run(self, value, me):
            Twice.count += 1
            new_id = f"{me}.{Twice.count}"
            return {"result": ([new_id, 0],), "expand": {new_id: node("Add", a=value, b=value)}}

    @toy({}, gives=("INT",), OUTPUT_IS_LIST=(True,))
    class Equal:
        def run(self):
            return ([2, 2, 3],)

    prompt = shown(B, a=node("Equal"), b=node("Twice", value=A))
    assert run_in_all_modes(prompt, {**TOYS, "Twice": Twice, "Equal": Equal})["show"] == {"value": ["4", "4", "6"]}


@toy({"times": ("INT", {})}, gives=("INT",), hidden={"graph": "DYNPROMPT", "me": "UNIQUE_ID"})
class Loop:
    """Reads the graph and clones itself and the body until it has run `times` times, as loop nodes of packs do."""

    def run(self, times, graph, me):
        if times == 0:
            return (0,)
        body = {**graph.get_node("body")["inputs"], "a": [f"{me}.l", 0]}
        nodes = {f"{me}.l": node("Loop", times=times - 1), f"{me}.b": node("Add", **body)}
        return {"result": ([f"{me}.b", 0],), "expand": nodes}


def test_a_loop_that_clones_its_body_loads_once():
    loads = []

    @toy({}, gives=("INT",), NOT_IDEMPOTENT=True)
    class Load:
        def run(self):
            loads.append(1)
            return (3,)

    prompt = shown(
        ["loop", 0],
        load=node("Load"),
        body=node("Add", a=0, b=["load", 0]),
        loop=node("Loop", times=4),
        other=node("Show", value=["body", 0]),
    )
    assert run_in_all_modes(prompt, {**TOYS, "Loop": Loop, "Load": Load})["show"] == {"value": ["12"]}
    assert len(loads) == 2  # once in each of the two engines


def test_outputs_of_added_nodes_are_kept_with_their_parent_and_not_shared():
    computed = []

    @toy({"value": ("INT", {})}, gives=("INT",))
    class Heavy:
        def run(self, value):
            computed.append(value)
            return (value,)

    @toy({"value": ("INT", {}), "other": ("INT", {})}, gives=("INT",), hidden={"me": "UNIQUE_ID"})
    class Wraps:
        def run(self, value, other, me):
            return {"result": ([f"{me}.h", 0],), "expand": {f"{me}.h": node("Heavy", value=value)}}

    nodes = {**TOYS, "Heavy": Heavy, "Wraps": Wraps}
    engine = Engine(nodes, "classic")
    for other in (1, 2):
        wraps = node("Wraps", value=5, other=other)
        run(shown(C, a=wraps, b=wraps, c=node("Add", a=A, b=B)), nodes, engine)
    assert computed == [5, 5]  # once for each parent, and not again in the second run


def random_graph(rng: random.Random) -> dict[str, Any]:
    """Create a graph of numbers, sums, switches and expanding nodes. Each reads any of the nodes before it."""
    prompt = {"0": node("Number", value=rng.randrange(5))}
    for index in range(1, 25):
        first, second = ([str(rng.randrange(index)), 0] for _ in range(2))
        prompt[str(index)] = rng.choice(
            [
                node("Number", value=rng.randrange(5)),
                node("Add", a=first, b=second),
                node("Switch", pick=rng.random() < 0.5, yes=first, no=second),
                node("Passes", times=rng.randrange(3), value=first, lazily=second),
            ]
        )
    return prompt | {f"show{index}": node("Show", value=[str(rng.randrange(20, 25)), 0]) for index in range(2)}


@toy(
    {"times": ("INT", {}), "value": ("INT", {"rawLink": True}), "lazily": ("INT", {"lazy": True})},
    gives=("INT",),
    hidden={"me": "UNIQUE_ID"},
)
class Passes:
    """Adds nodes that read its raw link. With `times` 2 it requests its lazy input too."""

    def check_lazy_status(self, times, value, lazily=None, me=None):
        return ["lazily"] if times == 2 else []

    def run(self, times, value, me, lazily=None):
        nodes, link = {}, lazily or 0
        for index in range(times):
            nodes[f"{me}.{index}"] = node("Add", a=value, b=link)
            link = [f"{me}.{index}", 0]
        return {"result": (link,), "expand": nodes}


@pytest.mark.parametrize("seed", range(20))
def test_releasing_values_changes_no_result_and_runs_nothing_twice(seed):
    nodes = {**LAZY, "Passes": Passes}
    prompt = random_graph(random.Random(seed))
    run_in_all_modes(prompt, nodes)
    order, cached, _ = run_ids(prompt, nodes)
    assert Counter(order) == Counter(run_ids(prompt, nodes, Engine(nodes, "classic"))[0]) and cached == []


# Blockers


@pytest.mark.parametrize("value", [(ExecutionBlocker(None), 5), {"result": (ExecutionBlocker(None), 5)}])
def test_nodes_that_receive_a_blocker_do_not_run_and_others_do(value):
    prompt = graph(a=node("Gives"), b=node("Add", a=A, b=1), x=node("Show", value=B), show=node("Show", value=["a", 1]))
    assert run(prompt, giving(value, ("INT", "INT"))).ui == {"show": {"value": ["5"]}}


def test_a_blocker_instead_of_a_result_blocks_all_outputs_and_its_message_is_reported_once():
    events: Events = []
    prompt = shown(B, a=node("Gives"), b=node("Add", a=A, b=1))
    result = run(prompt, giving(ExecutionBlocker("faceless")), on_event=lambda *event: events.append(event))
    assert result.ui == {}
    (error,) = [data for event, data in events if event == "execution_error"]
    assert error["node_id"] == "b" and "faceless" in error["exception_message"]
    assert events[-1][0] == "execution_success"


def test_check_lazy_status_is_not_called_with_a_blocker():
    prompt = shown(C, g=node("Gives"), c=node("Switch", pick=["g", 0], yes=["g", 1], no=1))
    nodes = {**LAZY, **giving((ExecutionBlocker(None), 5), ("BOOLEAN", "INT"))}
    assert run(prompt, nodes).ui == {}


# Coroutines


@toy({"value": ("INT", {})}, gives=("INT",))
class Sleeps:
    running = peak = 0

    async def run(self, value):
        Sleeps.running += 1
        Sleeps.peak = max(Sleeps.peak, Sleeps.running)
        await asyncio.sleep(0.1)
        Sleeps.running -= 1
        return (value,)


ASYNC = {**TOYS, "Sleeps": Sleeps}


@pytest.mark.parametrize(
    ("prompt", "values", "peak"),
    [
        (shown(C, a=node("Sleeps", value=1), b=node("Sleeps", value=2), c=node("Add", a=A, b=B)), ["3"], 2),
        (shown(B, a=node("CountTo", count=4), b=node("Sleeps", value=A)), ["0", "1", "2", "3"], 4),
    ],
)
def test_coroutines_of_nodes_and_of_mapped_calls_run_concurrently(prompt, values, peak):
    Sleeps.running = Sleeps.peak = 0
    assert run(prompt, ASYNC).ui["show"] == {"value": values}
    assert Sleeps.peak == peak


def test_an_error_in_a_coroutine_is_an_error_of_its_node_and_cancels_the_others():
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

    prompt = shown(C, a=node("Long"), b=node("Breaks"), c=node("Add", a=A, b=B))
    with raises(NodeError, "node", "b", "Breaks", "ValueError", "broke"):
        run(prompt, {**TOYS, "Breaks": Breaks, "Long": Long})
    assert ended == [True]


def test_a_graph_runs_inside_a_running_event_loop():
    async def notebook():
        return run(shown(A, a=node("Sleeps", value=1)), ASYNC)

    assert asyncio.run(notebook()).ui["show"] == {"value": ["1"]}


def test_checks_can_be_coroutines():
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
    assert not validate(shown(A, a=node("Checked", value=9)), nodes).ok
    assert run(shown(A, a=node("Checked", value=3)), nodes).ui["show"] == {"value": ["3"]}


def test_a_coroutine_that_cancels_itself_is_an_error_of_the_node():
    @toy({}, gives=("INT",))
    class GivesUp:
        async def run(self):
            await asyncio.sleep(0)
            raise asyncio.CancelledError

    with raises(NodeError, "node.cancelled", "GivesUp"):
        run(shown(A, a=node("GivesUp")), {**TOYS, "GivesUp": GivesUp})


def test_an_interrupt_while_coroutines_run_is_reported(monkeypatch):
    events: Events = []

    async def stopped(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(asyncio.Event, "wait", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(shown(A, a=node("Sleeps", value=1)), ASYNC, on_event=lambda *event: events.append(event))
    assert events[-1][0] == "execution_interrupted" and events[-1][1]["node_id"] == "a"


@pytest.fixture
def _default_sigint():
    """Let Python raise KeyboardInterrupt. A test process started in the background ignores the signal."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_default_sigint")
def test_ctrl_c_in_a_notebook_reaches_the_node():
    finished = []

    @toy({}, gives=("INT",))
    class Computes:
        def run(self):
            end = time.monotonic() + 20
            while time.monotonic() < end:
                pass
            finished.append(True)
            return (1,)

    async def notebook():
        threading.Timer(0.5, lambda: signal.raise_signal(signal.SIGINT)).start()
        run(shown(A, a=node("Computes")), {**TOYS, "Computes": Computes})

    loop = asyncio.new_event_loop()
    with pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(notebook())
    loop.close()
    assert not finished  # the run waited for the node, which stopped early


def test_an_exception_of_on_event_is_not_blamed_on_a_node():
    def on_event(event: str, data: dict[str, Any]) -> None:
        if event == "executing":
            raise BrokenPipeError("nobody reads")

    with pytest.raises(BrokenPipeError):
        run(shown(1), on_event=on_event)


def test_an_interrupt_in_is_changed_ends_the_run():
    @toy({}, gives=("INT",))
    class Stops:
        @classmethod
        def IS_CHANGED(cls):
            raise Interrupted("enough")

        def run(self):
            return (1,)

    with pytest.raises(Interrupted):
        run(shown(A, a=node("Stops")), {**TOYS, "Stops": Stops})


# Between runs


def added(first: int, second: int) -> dict[str, Any]:
    return shown(C, a=node("Number", value=first), b=node("Number", value=second), c=node("Add", a=A, b=B))


def test_a_second_run_computes_changed_nodes_and_their_dependents():
    engine = Engine(TOYS, "classic")
    assert run_ids(added(1, 2), TOYS, engine) == (["a", "b", "c", "show"], [], {"show": {"value": ["3"]}})
    assert run_ids(added(1, 2), TOYS, engine) == ([], ["a", "b", "c", "show"], {"show": {"value": ["3"]}})
    assert run_ids(added(1, 5), TOYS, engine) == (["b", "c", "show"], ["a"], {"show": {"value": ["6"]}})


def test_outputs_that_the_next_graph_lacks_are_dropped():
    engine = Engine(TOYS, "classic")
    for second in (2, 5):
        run(added(1, second), TOYS, engine)
    assert run_ids(added(1, 2), TOYS, engine)[0] == ["b", "c", "show"]


def test_an_instance_lives_as_long_as_its_node():
    @toy({}, {"step": ("INT", {})}, gives=("INT",))
    class Counts:
        def __init__(self):
            self.count = 0

        def run(self, step=0):
            self.count += 1
            return (self.count,)

    nodes = {**TOYS, "Counts": Counts}
    engine = Engine(nodes, "classic")

    def count(step: int) -> list[str]:
        return run(shown(A, a=node("Counts", step=step)), nodes, engine).ui["show"]["value"]

    assert [count(step) for step in (1, 2, 3)] == [["1"], ["2"], ["3"]]
    run(added(1, 2), nodes, engine)
    run(shown(["z", 0], z=node("Number", value=1)), nodes, engine)
    assert count(4) == ["1"]


def test_too_few_values_are_an_error_of_their_node_in_a_second_run_too():
    engine = Engine(TOYS, "classic")
    prompt = shown(A, a=node("GivesTooLittle"))
    run(prompt, TOYS, engine)
    with raises(NodeError, "node.result", "GivesTooLittle", 1):
        run(prompt | {"x": node("Show", value=["a", 1])}, TOYS, engine)


def test_an_engine_does_not_grow_with_its_runs():
    engine = Engine(TOYS, "classic")
    sizes = []
    for value in range(40):
        run(shown(A, a=node("AlwaysChanged", value=value)), TOYS, engine)
        sizes.append((len(engine._numbers), len(engine._cache), len(engine._instances)))
    assert sizes[-1] == sizes[10]


def test_the_executor_takes_little_time_for_a_node():
    @toy({}, {"value": ("INT", {})}, gives=("INT",), NOT_IDEMPOTENT=True)
    class Nothing:
        def run(self, value=0):
            return (0,)

    nodes, count = {**TOYS, "Nothing": Nothing}, 1000
    prompt = {str(index): node("Nothing", value=[str(index - 1), 0] if index else 0) for index in range(count)}
    prompt["show"] = node("Show", value=[str(count - 1), 0])
    times = []
    for _ in range(3):
        began = time.process_time()
        Engine(nodes).run(prompt, ["show"])
        times.append(time.process_time() - began)
    assert min(times) / count < 0.001
