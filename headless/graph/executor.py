"""Execute a validated graph without ComfyUI, by ComfyUI's rules.

The wanted nodes run, and the nodes that they need. A lazy input is needed when its node asks for it. A node may add
nodes to the graph (expansion), return a blocker instead of a value, or be a coroutine, during which others run. Sources
run first. Of the ready nodes, the first one in the file runs next. Of equal nodes (see cache_keys) only the first runs.
The first failure ends the run. No function is recursive, because a graph may be a chain of thousands of nodes.
"""

from __future__ import annotations

import asyncio
import inspect
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from ...svd_core.errors import GraphError, Interrupted, NodeError, SVDStagesError
from .async_utils import resolve, run_in_contexts, run_sync
from .cache_keys import CacheKeys
from .call import Outcome, Part, call_mapped, hidden_values, input_lists, merge_results
from .check_node import exception_info
from .dynamic import DynamicPrompt
from .explain import node_error
from .node_schema import Declarations, is_output
from .output_cache import Key, OutputCache
from .prompt import Prompt, find_cycles, links_of, looks_like_link, name_node, run_order, sources_of, with_ancestors
from .ready_queue import ReadyQueue
from .v3 import bound_function, class_function

OnEvent = Callable[[str, dict[str, Any]], None]
"""Called with ComfyUI's event names and data. An exception that it raises ends the run."""
Watch = Callable[[str, Mapping[str, Any], Mapping[str, list[Any]]], AbstractContextManager[Any]]
"""Called with a node's id, the node, and the lists that its links bring, by input."""


@dataclass(frozen=True, eq=False)
class RunResult:
    """The result of a run: `ui` by node id, and for the ids in `keep` a list of values per output slot."""

    ui: dict[str, dict[str, list[Any]]]
    values: dict[str, list[list[Any]]]


class Engine:
    """Runs graphs, one after the other.

    Args:
        nodes: Node classes by class type.
        cache: What is kept between runs, see `OutputCache`. With "once" the instances of nodes are not kept either.
    """

    def __init__(self, nodes: Mapping[str, type], cache: str = "once"):
        self._nodes = nodes
        self._cache = OutputCache(cache)
        self._numbers: dict[Hashable, Key] = {}
        self._instances: dict[tuple[str, str], tuple[Any, str]] = {}

    def run(
        self,
        prompt: Prompt,
        outputs: Collection[str],
        *,
        extra_data: Mapping[str, Any] | None = None,
        on_event: OnEvent | None = None,
        precomputed: Mapping[str, Sequence[list[Any]]] | None = None,
        keep: Collection[str] = (),
        node_context: Callable[[], AbstractContextManager[Any]] = nullcontext,
        prompt_id: str = "",
        watch: Watch | None = None,
    ) -> RunResult:
        """Run the nodes that `outputs` and `keep` need.

        Args:
            prompt: `Validation.prompt`: constants are converted and defaults filled in. It is not changed.
            outputs: Ids of output nodes.
            extra_data: `extra_pnginfo` in it is the value of the hidden input EXTRA_PNGINFO.
            on_event: Called with ComfyUI's events. Their data contains `prompt_id`.
            precomputed: Outputs of nodes that do not run, a list of values per slot. Their ids need not be nodes, and
                their classes need not be known.
            keep: Ids of nodes whose values are returned.
            node_context: Creates a context manager around each call of a node, such as torch.inference_mode.
            prompt_id: Id of the run in events.
            watch: Creates another context manager inside that one. It gets the inputs of the node.

        Raises:
            NodeError: A node raised. KeyboardInterrupt and Interrupted are raised unchanged.
            GraphError: An id is not in the graph, or the graph has a cycle.
        """
        if self._cache.mode == "once":
            self._numbers.clear()
            self._instances.clear()
        self._numbers = {description: key for description, key in self._numbers.items() if key in self._cache}
        self._instances = {key: instance for key, instance in self._instances.items() if instance[1] in prompt}
        declarations = Declarations(self._nodes)
        run = _Run(
            graph=DynamicPrompt(prompt),
            declarations=declarations,
            cache=self._cache,
            keys=CacheKeys(declarations, self._numbers),
            instances=self._instances,
            precomputed=precomputed or {},
            extra_data=extra_data or {},
            on_event=on_event,
            prompt_id=prompt_id,
            node_context=node_context,
            watch=watch or (lambda node_id, node, linked: nullcontext()),
        )
        return run_sync(run.run(outputs, keep))


@dataclass(eq=False)
class _Run:
    """The state of one run. `started` has what is left to do of the nodes that are not done."""

    graph: DynamicPrompt
    declarations: Declarations
    cache: OutputCache
    keys: CacheKeys
    instances: dict[tuple[str, str], tuple[Any, str]]
    precomputed: Mapping[str, Sequence[list[Any]]]
    extra_data: Mapping[str, Any]
    on_event: OnEvent | None
    prompt_id: str
    node_context: Callable[[], AbstractContextManager[Any]]
    watch: Watch
    queue: ReadyQueue = field(default_factory=ReadyQueue)
    started: dict[str, AsyncIterator[None]] = field(default_factory=dict)
    executed: list[str] = field(default_factory=list)
    ui: dict[str, dict[str, list[Any]]] = field(default_factory=dict)
    registered: set[str] = field(default_factory=set)
    readers: Counter[str] = field(default_factory=Counter)
    coroutine_done: asyncio.Event = field(default_factory=asyncio.Event)
    callback_error: BaseException | None = None

    def send_event(self, event: str, **data: Any) -> None:
        """Call `on_event`. An exception that it raises is not blamed on a node."""
        if self.on_event is None:
            return
        try:
            self.on_event(event, {**data, "prompt_id": self.prompt_id})
        except BaseException as error:
            self.callback_error = error
            raise

    async def run(self, outputs: Collection[str], keep: Collection[str]) -> RunResult:
        prompt, wanted = self.graph.original_prompt, [*outputs, *keep]
        await self.assign_keys(wanted)
        needed = [node_id for node_id in prompt if node_id in self.keys and node_id not in self.precomputed]
        reads_graph = any(map(self.reads_graph, needed))
        self.cache.begin(set(self.keys.values()), prompt, releases=not reads_graph)
        for node_id in keep:
            self.cache.pin(self.keys[node_id])
        for node_id, slots in self.precomputed.items():
            self.cache.pin(self.keys[node_id])
            self.cache.put(self.keys[node_id], [list(values) for values in slots], {})
        self.send_event("execution_start")
        cached = [node_id for node_id in needed if self.keys[node_id] in self.cache]
        self.send_event("execution_cached", nodes=cached)
        for node_id in needed:
            self.queue.set_position(node_id)
            self.add_reader(node_id)
        for node_id in wanted:
            if node_id not in self.precomputed:
                self.schedule(node_id)
        while len(self.queue):
            node_id = self.queue.take()
            if node_id is not None:
                await self.advance(node_id)
                await asyncio.sleep(0)  # let coroutines continue
            elif self.queue.suspended:
                await self.wait_for_coroutine()
            else:
                raise self.cycle()
        self.send_event("execution_success")
        return RunResult(self.ui, {node_id: list(self.cache[self.keys[node_id]].slots.values()) for node_id in keep})

    def reads_graph(self, node_id: str) -> bool:
        """Return True for a node with the hidden input DYNPROMPT. It may read any node of the graph."""
        class_type = self.graph.get_node(node_id)["class_type"]
        return "DYNPROMPT" in self.declarations[class_type].hidden.values()

    def add_reader(self, node_id: str) -> None:
        """Count what a scheduled node will read."""
        if node_id not in self.registered:
            self.registered.add(node_id)
            self.cache.add_reader(self.slots_read(node_id))
            self.readers.update(sources_of(self.graph.get_node(node_id)))

    def remove_reader(self, node_id: str) -> None:
        """Release what a node read, and what its sources would read that nothing else needs now."""
        finished = [node_id]
        while finished:
            node_id = finished.pop()
            if node_id in self.registered:
                self.registered.discard(node_id)
                self.cache.remove_reader(self.slots_read(node_id))
                sources = sources_of(self.graph.get_node(node_id))
                self.readers.subtract(sources)
                finished += [source for source in sources if not self.readers[source] and source not in self.queue]

    async def wait_for_coroutine(self) -> None:
        try:
            await self.coroutine_done.wait()
        except BaseException:
            self.send_event("execution_interrupted", **self.location(min(self.queue.suspended)))
            raise
        self.coroutine_done.clear()

    async def assign_keys(self, wanted: Sequence[str]) -> None:
        """Assign cache keys to the needed nodes of the original graph.

        Raises:
            GraphError: An id is not in the graph (`graph.missing_node`) or has an unknown class. The graph has a cycle.
                `precomputed` lacks a slot that is read (`graph.bad_slot`).
        """
        prompt = self.graph.original_prompt
        sources = {node_id: [] if node_id in self.precomputed else sources_of(node) for node_id, node in prompt.items()}
        needed = with_ancestors(wanted, sources) - set(self.precomputed)
        missing = sorted(needed - set(prompt))
        if missing:
            raise GraphError(f'node "{missing[0]}" is needed, but it is not in the graph.', code="graph.missing_node")
        for node_id in self.precomputed:
            self.keys.assign_unique(node_id)
        order = self.checked_order(needed, sources)
        for source, slot in (link for node_id in order for link in links_of(prompt[node_id])):
            if source in self.precomputed and slot >= len(self.precomputed[source]):
                raise GraphError(
                    f'precomputed node "{source}" has {len(self.precomputed[source])} outputs, slot {slot} is read. '
                    "Give one list of values per slot.",
                    code="graph.bad_slot",
                )
        await self.keys.add(order, prompt)

    def checked_order(self, needed: Collection[str], sources: Mapping[str, Sequence[str]]) -> list[str]:
        """Return the run order of nodes of the original graph. Raises GraphError for a cycle or an unknown class."""
        order, cycles = run_order([node_id for node_id in self.graph.original_prompt if node_id in needed], sources)
        if cycles:
            raise _cycle_error(cycles[0])
        for node_id in order:
            self.check_class(node_id)
        return order

    def check_class(self, node_id: str) -> None:
        node = self.graph.get_node(node_id)
        if node["class_type"] not in self.declarations.nodes:
            name = name_node({node_id: node}, node_id)
            raise GraphError(f"{name} has an unknown type. Validate the graph first.", code="graph.missing_node_type")

    def schedule(self, node_id: str) -> None:
        """Schedule a node and everything that it needs."""
        if node_id not in self.queue:
            self.queue.add(node_id)
            self.add_reader(node_id)
            self.require(node_id, self.links_needed(node_id))

    def require(self, node_id: str, links: Iterable[tuple[str, int]]) -> None:
        """Let a node wait for the values of links, unless they are available. Schedule everything that they need."""
        waiting = [(node_id, links)]
        while waiting:
            dependent, links = waiting.pop()
            for source, slot in links:
                if source not in self.queue:
                    if self.cache.has(self.keys[source], slot):
                        continue
                    self.check_slots(source, slot + 1)
                    self.queue.add(source)
                    self.add_reader(source)
                    waiting.append((source, self.links_needed(source)))
                self.queue.link(source, dependent)

    def links_needed(self, node_id: str) -> list[tuple[str, int]]:
        """Return the links that are not lazy. None, if the node has run."""
        if self.cache.is_complete(self.keys[node_id]):
            return []
        node = self.graph.get_node(node_id)
        declared = self.declarations[node["class_type"]].inputs
        lazy = {name for name, declared_input in declared.items() if declared_input.options.get("lazy")}
        return links_of({"inputs": {name: value for name, value in node["inputs"].items() if name not in lazy}})

    def slots_read(self, node_id: str) -> set[tuple[Key, int]]:
        """Return everything that a node may read."""
        return {(self.keys[source], slot) for source, slot in links_of(self.graph.get_node(node_id))}

    async def advance(self, node_id: str) -> None:
        """Run one node until it is done or must wait. Send an event if it fails or is interrupted.

        Raises:
            NodeError: From whatever the node raised, except an interrupt.
        """
        if node_id not in self.started:
            self.started[node_id] = self.run_node(node_id)
        try:
            await anext(self.started[node_id], None)
        except (KeyboardInterrupt, Interrupted, asyncio.CancelledError):
            self.send_event("execution_interrupted", **self.location(node_id))
            raise
        except Exception as error:
            if error is self.callback_error:
                raise
            is_node_error = isinstance(error, NodeError)
            self.send_error(node_id, exception_info(error.__cause__ if is_node_error and error.__cause__ else error))
            if is_node_error:
                raise
            raise self.node_error(node_id, error) from error

    def location(self, node_id: str) -> dict[str, Any]:
        """Return the position of the run as ComfyUI's events state it: a node of the original graph."""
        real = self.graph.get_real_node_id(node_id)
        class_type = self.graph.get_node(node_id)["class_type"]
        return {"node_id": real, "node_type": class_type, "executed": list(self.executed)}

    def send_error(self, node_id: str, info: Mapping[str, Any]) -> None:
        """Send ComfyUI's event, without the node's inputs, which may hold secrets and large images."""
        self.send_event("execution_error", **self.location(node_id), **info, current_inputs={}, current_outputs=[])

    async def run_node(self, node_id: str) -> AsyncIterator[None]:
        """Run one node. Yields where it must wait for other nodes or for its coroutines."""
        key = self.keys[node_id]
        node = self.graph.get_node(node_id)
        node_class: Any = self.declarations[node["class_type"]].node_class
        while not self.cache.is_complete(key):
            calls = await self.begin(node_id, node, node_class)
            if calls is None:
                yield
                continue
            if self.suspend(node_id, calls):
                yield
            outcome = merge_results(_results_of(calls), node_class)
            if outcome.parts is not None:
                await self.expand(node_id, outcome.parts)
                yield
                outcome = self.join_expansion(outcome, node_class)
            real = self.graph.get_real_node_id(node_id)
            self.cache.put(key, outcome.slots, outcome.ui, None if real == node_id else real)
        self.check_slots(node_id, self.cache.slots_needed(key))
        self.finish(node_id, self.cache[key].ui)

    def finish(self, node_id: str, ui: dict[str, list[Any]]) -> None:
        """Report the outputs of a node, and release the nodes that wait for it."""
        if ui and node_id not in self.ui:
            self.ui[node_id] = ui
            display_node = self.graph.get_display_node_id(node_id)
            self.send_event("executed", node=node_id, display_node=display_node, output=ui)
        self.executed.append(node_id)
        del self.started[node_id]
        self.queue.done(node_id)
        self.remove_reader(node_id)

    async def begin(self, node_id: str, node: Mapping[str, Any], node_class: Any) -> list[Any] | None:
        """Call a node. Return the results, or tasks that compute them. Return None if it first needs lazy inputs."""
        hidden = hidden_values(node_id, self.graph.original_prompt, self.graph, self.extra_data)
        lists = input_lists(node, self.declarations[node["class_type"]], hidden, self.linked_values)
        whole_lists = getattr(node_class, "INPUT_IS_LIST", False)
        instance = self.instance_of(node_id, node["class_type"], node_class)
        missing = [name for name, values in lists.items() if values is None]
        arguments = {name: [None] if values is None else values for name, values in lists.items()}
        if missing and class_function(node_class, "check_lazy_status", "check_lazy_status") is not None:
            check = bound_function(instance, hidden, "check_lazy_status")
            results = [await resolve(result) for result in call_mapped(check, arguments, whole_lists)]
            answers = [name for result in results if isinstance(result, (list, tuple)) for name in result]
            names = dict.fromkeys(name for name in answers if isinstance(name, str))
            requested = [name for name in names if name in missing or name not in lists]
            if requested:
                self.require(node_id, [_lazy_link(node, name) for name in requested])
                self.queue.offer(node_id)
                return None
        self.send_event("executing", node=node_id, display_node=self.graph.get_display_node_id(node_id))
        function = bound_function(instance, hidden)
        linked = {name: arguments[name] for name, value in node["inputs"].items() if looks_like_link(value)}

        call = self.in_contexts(function, node_id, node, linked)
        return call_mapped(call, arguments, whole_lists, lambda blocker: self.blocked(node_id, blocker))

    def in_contexts(
        self, function: Callable[..., Any], node_id: str, node: Mapping[str, Any], linked: Mapping[str, list[Any]]
    ) -> Callable[..., Any]:
        """Return a function that makes a call in contexts of its own. A coroutine becomes a task, step by step so."""

        @contextmanager
        def context() -> Iterator[None]:
            with self.node_context(), self.watch(node_id, node, linked):
                yield

        def call(**inputs: Any) -> Any:
            with context():
                result = function(**inputs)
            is_coroutine = inspect.iscoroutine(result)
            return asyncio.ensure_future(resolve(run_in_contexts(result, context))) if is_coroutine else result

        return call

    def instance_of(self, node_id: str, class_type: str, node_class: Any) -> Any:
        """Return the instance of a node. It stays the same as long as the node is in the graphs."""
        key = (node_id, class_type)
        if key not in self.instances:
            self.instances[key] = (node_class(), self.graph.get_real_node_id(node_id))
        return self.instances[key][0]

    def linked_values(self, source: str, slot: int) -> list[Any] | None:
        """Return the values that a link brings. None if they are not available."""
        entry = self.cache.get(self.keys[source])
        return None if entry is None else entry.slots.get(slot)

    def suspend(self, node_id: str, calls: list[Any]) -> bool:
        """Let a node wait until all its coroutines are done. Return False if it has none."""
        tasks = [call for call in calls if isinstance(call, asyncio.Task)]

        def resume(_: Any) -> None:
            self.queue.suspended.discard(node_id)
            self.queue.offer(node_id)
            self.coroutine_done.set()

        if tasks:
            self.queue.suspended.add(node_id)
            asyncio.gather(*tasks, return_exceptions=True).add_done_callback(resume)
        return bool(tasks)

    def blocked(self, node_id: str, blocker: Any) -> Any:
        """Return the result of a call that would receive a blocker. The blocker's message is reported once."""
        message = getattr(blocker, "message", None)
        if message is None:
            return blocker
        info = {"exception_type": "ExecutionBlocked", "traceback": []}
        self.send_error(node_id, {"exception_message": f"Execution Blocked: {message}", **info})
        return type(blocker)(None)

    async def expand(self, node_id: str, parts: list[Part]) -> None:
        """Add the nodes of an expansion to the graph, and let `node_id` wait for those whose values it returns."""
        links: list[tuple[str, int]] = []
        new: Prompt = {}
        for graph, result in parts:
            if graph is None:
                continue
            for new_id, node in graph.items():
                if self.graph.has_node(new_id):
                    raise SVDStagesError(
                        f'ids of added nodes must be new, got "{new_id}", which the graph has. GraphBuilder creates '
                        "new ids.",
                        code="graph.duplicate_node",
                    )
                new[new_id] = node
                self.graph.add_ephemeral_node(new_id, node, node_id, node.get("override_display_id", node_id))
            links += [(value[0], int(value[1])) for value in result if looks_like_link(value)]
        await self.assign_new_keys(new, node_id)
        for new_id in new:
            self.queue.set_position(new_id)
            self.add_reader(new_id)
        self.cache.add_reader({(self.keys[source], slot) for source, slot in links})
        for new_id, node in new.items():
            if is_output(self.declarations.nodes[node["class_type"]]):
                self.schedule(new_id)
        self.require(node_id, links)
        self.remove_reader(node_id)  # only the added nodes read its inputs now
        self.queue.offer(node_id)

    async def assign_new_keys(self, new: Prompt, parent: str) -> None:
        """Assign cache keys to the nodes of an expansion, and to original nodes that only they read.

        A new node in a cycle gets a key that equals no other. The cycle is found when the node should run.
        """
        for new_id, node in new.items():
            self.check_class(new_id)
            for source in sources_of(node):
                self.graph.get_node(source)  # raises SVDStagesError if it does not exist
        original = self.graph.original_prompt
        sources = {node_id: sources_of(node) for node_id, node in original.items() if node_id not in self.keys}
        new_sources = {new_id: sources_of(node) for new_id, node in new.items()}
        needed = with_ancestors(new, {**sources, **new_sources}) & sources.keys()
        await self.keys.add(self.checked_order(needed, sources), original)
        order, _ = run_order(list(new), new_sources)
        await self.keys.add(order, new, parent)
        for new_id in new.keys() - set(order):
            self.keys.assign_unique(new_id)

    def join_expansion(self, expansion: Outcome, node_class: Any) -> Outcome:
        """Return the outcome of a node whose added nodes have run. Its links become their values."""
        results, read = [], set()
        for graph, result in expansion.parts or ():
            if graph is None:
                results.append(result)
                continue
            values: list[Any] = []
            for value in result:
                if not looks_like_link(value):
                    values.append(value)
                    continue
                source, slot = value[0], int(value[1])
                linked = self.linked_values(source, slot)
                assert linked is not None, value  # schedule_link has ensured it
                values += linked
                read.add((self.keys[source], slot))
            results.append(tuple(values))
        self.cache.remove_reader(read)
        return Outcome(merge_results(results, node_class).slots, expansion.ui)

    def check_slots(self, node_id: str, needed: int) -> None:
        """Raise NodeError for a node that returned fewer outputs than are read. Its readers are not to blame."""
        entry = self.cache.get(self.keys[node_id])
        if entry is not None and entry.count < needed:
            cause = SVDStagesError(
                "a node's function must return a value for each of its RETURN_TYPES, got "
                f"{entry.count} values, but slot {needed - 1} is read.",
                code="node.result",
            )
            raise self.node_error(node_id, cause)

    def cycle(self) -> SVDStagesError:
        """Return the error for nodes that wait for each other. Only an expansion can cause it."""
        sources = self.queue.sources()
        cycle = find_cycles(sources, sources)[0]
        error = _cycle_error(cycle)
        self.send_error(self.graph.get_real_node_id(cycle[0]), exception_info(error))
        return error

    def node_error(self, node_id: str, cause: Exception) -> NodeError:
        """Return the error for a node that raised. It names the node of the original graph."""
        real = self.graph.get_real_node_id(node_id)
        class_type = None if real == node_id else self.graph.get_node(node_id)["class_type"]
        return node_error(self.graph.original_prompt, real, cause, class_type)


def _results_of(calls: list[Any]) -> list[Any]:
    """Return the results of a node's calls that are done. Raises whatever a coroutine raised."""
    try:
        return [call.result() if isinstance(call, asyncio.Task) else call for call in calls]
    except asyncio.CancelledError as error:
        message = "the node's coroutine was cancelled, and not by the run"
        raise SVDStagesError(message, code="node.cancelled") from error


def _lazy_link(node: Mapping[str, Any], name: str) -> tuple[str, int]:
    value = node["inputs"].get(name)
    if not looks_like_link(value):
        raise SVDStagesError(f'check_lazy_status must return names of linked inputs, got "{name}"')
    return value[0], int(value[1])


def _cycle_error(cycle: list[str]) -> GraphError:
    path = " -> ".join(cycle)
    return GraphError(f"the links form a cycle: {path}. Remove one of them.", code="graph.dependency_cycle")
