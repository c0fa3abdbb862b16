"""Running a validated graph without ComfyUI, to ComfyUI's rules.

What runs: the wanted nodes and what they need. Lazy inputs are needed when the node asks for them; a node may put nodes
into the graph (expansion), give a blocker instead of a value, or be a coroutine, while which others run. Order: sources
first, and of the nodes that are ready the one that stands first in the file. Of nodes that would give the same only the
first runs. The first failure stops everything. Nothing here recurses: a graph may be a chain of thousands of nodes.
"""

from __future__ import annotations

import asyncio
import traceback
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from ...svd_core.errors import GraphError, Interrupted, NodeError, SVDStagesError
from .async_utils import run_sync, settled
from .cache_keys import Keys
from .call import Calls, Outcome, Part, call_mapped, call_node, input_lists, merge_results
from .dynamic import DynamicPrompt
from .node_schema import Declarations, is_output
from .output_cache import Entry, Key, Store
from .prompt import Prompt, looks_like_link, name_node, one_line, run_order, sources_of, with_ancestors
from .ready_queue import Waiting
from .v3 import asked, function_of

OnEvent = Callable[[str, dict[str, Any]], None]
"""Called with ComfyUI's event names and data. What it raises stops the run."""
Watch = Callable[[str, Mapping[str, Any], Mapping[str, list[Any]]], AbstractContextManager[Any]]
"""Called with a node's id, the node, and the lists that its links bring, by input."""
Slot = tuple[Key, int]


@dataclass(frozen=True, eq=False)
class RunResult:
    """What a run gave: `ui` by node id, and for the ids in `keep` a list of values per output slot."""

    ui: dict[str, dict[str, list[Any]]]
    values: dict[str, list[list[Any]]]


class Engine:
    """Runs graphs of the classes in `nodes`, one after the other.

    cache  what is kept between them, see `Store`; with "once" nothing, the nodes' objects neither, and a value is let
           go as soon as no node that is still to run reads its slot
    """

    def __init__(self, nodes: Mapping[str, type], cache: str | int = "once"):
        self._nodes = nodes
        self._store = Store(cache)
        self._known: dict[Hashable, Key] = {}
        self._instances: dict[tuple[str, str], tuple[Any, str]] = {}

    def run(
        self,
        prompt: Prompt,
        outputs: Collection[str],
        *,
        extra_data: Mapping[str, Any] | None = None,
        on_event: OnEvent | None = None,
        given: Mapping[str, Sequence[list[Any]]] | None = None,
        keep: Collection[str] = (),
        node_context: Callable[[], AbstractContextManager[Any]] = nullcontext,
        prompt_id: str = "",
        watch: Watch | None = None,
    ) -> RunResult:
        """Run the nodes that `outputs` and `keep` need, and return what they show and hold.

        prompt        from `Validation.prompt`: constants converted, defaults filled in. It is not changed
        extra_data    `extra_pnginfo` in it is what the hidden input EXTRA_PNGINFO gets
        emit          told ComfyUI's events, with `prompt_id` in each
        given         outputs of nodes that do not run: for each slot the list of its values, as `RunResult.values` has
                      them; they need be neither nodes nor known classes
        node_context  makes a context manager around each call of a node, such as torch.inference_mode
        watch         makes another one inside it, which is told what the node is given

        Raises NodeError from what a node raised; KeyboardInterrupt and Interrupted as they are; GraphError for an id
        that is not in the graph, or a cycle.
        """
        if self._store.cache == "once":
            self._known.clear()
            self._instances.clear()
        self._known = {kind: key for kind, key in self._known.items() if key in self._store}
        self._instances = {key: each for key, each in self._instances.items() if each[1] in prompt}
        run = _Run(
            graph=DynamicPrompt(prompt),
            declarations=Declarations(self._nodes),
            store=self._store,
            known=self._known,
            instances=self._instances,
            given=given or {},
            extra_data=extra_data or {},
            observer=on_event,
            prompt_id=prompt_id,
            node_context=node_context,
            watch=watch,
        )
        try:
            return run_sync(run.run(outputs, keep))
        finally:
            self._store.end()


@dataclass(eq=False)
class _Unfinished:
    """A node that was called and has no outcome yet: calls that still run, or nodes that it put into the graph."""

    calls: Calls | None = None
    parts: list[Part] | None = None
    ui: dict[str, list[Any]] = field(default_factory=dict)


@dataclass(eq=False)
class _Run:
    """The state of one run."""

    graph: DynamicPrompt
    declarations: Declarations
    store: Store
    known: dict[Hashable, Key]
    instances: dict[tuple[str, str], tuple[Any, str]]
    given: Mapping[str, Sequence[list[Any]]]
    extra_data: Mapping[str, Any]
    observer: OnEvent | None
    prompt_id: str
    node_context: Callable[[], AbstractContextManager[Any]]
    watch: Watch | None = None
    waiting: Waiting = field(default_factory=Waiting)
    unfinished: dict[str, _Unfinished] = field(default_factory=dict)
    executed: list[str] = field(default_factory=list)
    ui: dict[str, dict[str, list[Any]]] = field(default_factory=dict)
    registered: set[str] = field(default_factory=set)
    readers: Counter[str] = field(default_factory=Counter)
    observers_error: BaseException | None = None

    def tell(self, event: str, **about: Any) -> None:
        """Tell who watches. What that raises is no node's fault."""
        if self.observer is None:
            return
        try:
            self.observer(event, {**about, "prompt_id": self.prompt_id})
        except BaseException as error:
            self.observers_error = error
            raise

    async def run(self, outputs: Collection[str], keep: Collection[str]) -> RunResult:
        prompt, wanted = self.graph.original_prompt, [*outputs, *keep]
        self.keys = Keys(self.declarations, self.known)
        self.woken = asyncio.Event()
        await self.number(wanted)
        looks_around = any(self.looks_around(node_id) for node_id in prompt if node_id in self.keys)
        self.store.begin(self.keys.values(), prompt, drops=not looks_around)
        for node_id in keep:
            self.store.want(self.keys[node_id])
        for node_id, row in self.given.items():
            self.store.want(self.keys[node_id])
            self.store.put(self.keys[node_id], [list(values) for values in row], {})
        needed = [node_id for node_id in prompt if node_id in self.keys and node_id not in self.given]
        self.tell("execution_start")
        cached = [node_id for node_id in needed if self.store.get(self.keys[node_id]) is not None]
        self.tell("execution_cached", nodes=cached)
        for node_id in needed:
            self.waiting.place(node_id)
            self.register(node_id)
        for node_id in wanted:
            if node_id not in self.given:
                self.need(node_id)
        while len(self.waiting):
            node_id = self.waiting.take()
            if node_id is None:
                if not self.waiting.waits_elsewhere:
                    raise self.cycle()
                await self.wake()
                continue
            await self.run_guarded(node_id)
            await asyncio.sleep(0)  # let coroutines go on
        self.tell("execution_success")
        return RunResult(self.ui, {node_id: self.kept(node_id) for node_id in keep})

    def looks_around(self, node_id: str) -> bool:
        """Whether a node is shown the whole graph, of which it may then read anything."""
        class_type = self.graph.get_node(node_id).get("class_type")
        known = node_id not in self.given and class_type in self.declarations.nodes
        return known and "DYNPROMPT" in self.declarations[str(class_type)].hidden.values()

    def register(self, node_id: str) -> None:
        """Count what a node that is to run will read."""
        if node_id not in self.registered:
            self.registered.add(node_id)
            self.store.reads(self.slots_read(node_id))
            self.readers.update(sources_of(self.graph.get_node(node_id)))

    def release(self, node_id: str) -> None:
        """A node reads nothing more; nor do those that only it might still have asked for."""
        released = [node_id]
        while released:
            node_id = released.pop()
            if node_id in self.registered:
                self.registered.discard(node_id)
                self.store.has_read(self.slots_read(node_id))
                sources = sources_of(self.graph.get_node(node_id))
                self.readers.subtract(sources)
                released += [each for each in sources if not self.readers[each] and each not in self.waiting]

    async def wake(self) -> None:
        """Wait for a coroutine to end."""
        try:
            await self.woken.wait()
        except BaseException:
            self.tell("execution_interrupted", **self.where(next(iter(self.unfinished))))
            raise
        self.woken.clear()

    async def number(self, wanted: Sequence[str]) -> None:
        """Give keys to the nodes of the file that are needed, and refuse what cannot run.

        Raises GraphError for an id that is nowhere, a cycle, a slot that `given` lacks, or an unsupported feature.
        """
        prompt = self.graph.original_prompt
        sources = {
            node_id: [] if node_id in self.given else [source for source, _ in links_of(node)]
            for node_id, node in prompt.items()
        }
        needed = with_ancestors(wanted, sources)
        lost = sorted(node_id for node_id in needed if node_id not in prompt and node_id not in self.given)
        if lost:
            raise GraphError(f'node "{lost[0]}" is needed, but it is not in the graph.', code="graph.missing_node")
        order, cycles = run_order([each for each in prompt if each in needed and each not in self.given], sources)
        if cycles:
            raise _cycle_error(cycles[0])
        for node_id in self.given:
            self.keys.give(node_id)
        for node_id in order:
            self.refuse_unknown(node_id)
            for source, slot in links_of(prompt[node_id]):
                if source in self.given and slot >= len(self.given[source]):
                    raise GraphError(
                        f'node "{source}" is given with {len(self.given[source])} outputs, but slot {slot} of it is '
                        "read; give one value for each slot.",
                        code="graph.bad_slot",
                    )
        await self.keys.add(order, prompt)

    def refuse_unknown(self, node_id: str) -> None:
        node = self.graph.get_node(node_id)
        class_type, name = node["class_type"], name_node({node_id: node}, node_id)
        if class_type not in self.declarations.nodes:
            raise GraphError(
                f"{name} is of a type that is not known here; validate the graph first.",
                code="graph.missing_node_type",
            )

    def need(self, node_id: str) -> None:
        """Have a node run, and what it needs from the start, and what that needs."""
        if self.waiting.add(node_id):
            self.register(node_id)
            self.follow([node_id])

    def follow(self, new: list[str]) -> None:
        """Have what these nodes need run before them, unless they have run."""
        while new:
            dependent = new.pop()
            if self.store.is_whole(self.keys[dependent]):
                continue
            for source, slot in self.links_needed(dependent):
                new += self.need_link(source, slot, dependent)

    def need_link(self, source: str, slot: int, dependent: str) -> list[str]:
        """Have `dependent` wait for a value, unless it is there; the node that is to run for it, if it is new."""
        key = self.keys[source]
        if source not in self.waiting:
            if self.store.has(key, slot):
                return []
            self.check_slots(source, slot + 1)
        new = [source] if self.waiting.add(source) else []
        if new:
            self.register(source)
        self.waiting.link(source, dependent)
        return new

    def links_needed(self, node_id: str) -> Iterable[tuple[str, int]]:
        """The links whose values are needed before anything is known: those that are not lazy."""
        node = self.graph.get_node(node_id)
        declared = self.declarations[node["class_type"]].inputs
        for name, value in node["inputs"].items():
            lazy = name in declared and declared[name].options.get("lazy")
            if looks_like_link(value) and not lazy:
                yield value[0], int(value[1])

    def slots_read(self, node_id: str) -> set[Slot]:
        """All that a node may read."""
        return {(self.keys[source], slot) for source, slot in links_of(self.graph.get_node(node_id))}

    async def run_guarded(self, node_id: str) -> None:
        """Run one node, and tell how it ended when it fails or is stopped."""
        try:
            await self.run_one(node_id)
        except (KeyboardInterrupt, Interrupted, asyncio.CancelledError):
            self.tell("execution_interrupted", **self.where(node_id))
            raise
        except SVDStagesError as error:
            self.tell("execution_error", **self.where(node_id), **_about_error(error.__cause__ or error))
            raise

    def where(self, node_id: str) -> dict[str, Any]:
        """Where the run is, as ComfyUI's events say it: on a node of the file."""
        real = self.graph.get_real_node_id(node_id)
        class_type = self.graph.get_node(node_id)["class_type"]
        return {"node_id": real, "node_type": class_type, "executed": list(self.executed)}

    async def run_one(self, node_id: str) -> None:
        """Bring one node as far as it goes."""
        entry = self.store.get(self.keys[node_id])
        if entry is not None and node_id not in self.unfinished and self.store.is_whole(self.keys[node_id]):
            self.check_slots(node_id, self.store.slots_needed(self.keys[node_id]))
            return self.finish(node_id, entry)
        outcome = await self.outcome_of(node_id)
        if outcome is None:
            return None
        real = self.graph.get_real_node_id(node_id)
        self.store.put(self.keys[node_id], outcome.slots, outcome.ui, None if real == node_id else real)
        self.check_slots(node_id, self.store.slots_needed(self.keys[node_id]))
        entry = self.store.get(self.keys[node_id])
        assert entry is not None
        return self.finish(node_id, entry)

    def finish(self, node_id: str, entry: Entry) -> None:
        """A node has its outputs: show what it shows, and let those who wait for it go on."""
        if entry.ui and node_id not in self.ui:
            self.ui[node_id] = entry.ui
            self.tell("executed", node=node_id, display_node=self.graph.get_display_node_id(node_id), output=entry.ui)
        self.executed.append(node_id)
        self.unfinished.pop(node_id, None)
        self.waiting.done(node_id)
        self.release(node_id)

    async def outcome_of(self, node_id: str) -> Outcome | None:
        """What a node gives; None when it has to wait once more. Raises NodeError from whatever it raises."""
        node = self.graph.get_node(node_id)
        node_class: Any = self.declarations[node["class_type"]].node_class
        left = self.unfinished.get(node_id)
        try:
            if left is not None and left.parts is not None:
                return self.joined(left, node_class, node_id)
            if left is not None and left.calls is not None:
                calls = left.calls
            else:
                calls = await self.begin(node_id, node, node_class)
                if calls is None:
                    return None
            if not calls.ready:
                self.unfinished[node_id] = _Unfinished(calls=calls)
                self.wait_for(node_id, calls)
                return None
            return await self.merged(node_id, calls.results(), node_class)
        except Interrupted:
            raise
        except Exception as error:
            if error is self.observers_error or isinstance(error, NodeError):
                raise
            raise self.failed(node_id, error) from error

    async def begin(self, node_id: str, node: Mapping[str, Any], node_class: Any) -> Calls | None:
        """Call the node; None when it first wants lazy inputs."""
        declaration = self.declarations[node["class_type"]]
        hidden = {**self.hidden(), "UNIQUE_ID": node_id}
        lists = input_lists(node, declaration, hidden, self.linked)
        whole_lists = getattr(node_class, "INPUT_IS_LIST", False)
        instance = self.instance_of(node_id, node["class_type"], node_class)
        missing = [name for name, values in lists.items() if values is None]
        told = {name: [None] if values is None else values for name, values in lists.items()}
        check = asked(node_class, "check_lazy_status", "check_lazy_status") if missing else None
        if check is not None:
            check = function_of(instance, hidden, "check_lazy_status")
            names = await self.lazy_wanted(check, told, whole_lists)
            links = [self.lazy_link(node, name) for name in names if name in missing or name not in lists]
            for source, slot in links:
                self.follow(self.need_link(source, slot, node_id))
            if links:  # each is now to run, or need_link has said that there is none such
                self.waiting.again(node_id)
                return None
        self.tell("executing", node=node_id, display_node=self.graph.get_display_node_id(node_id))
        function = function_of(instance, hidden)
        context = self.context_of(node_id, node, told)
        return call_node(function, told, whole_lists, context, lambda each: self.blocked(node_id, each))

    def context_of(
        self, node_id: str, node: Mapping[str, Any], told: Mapping[str, list[Any]]
    ) -> Callable[[], AbstractContextManager[Any]]:
        """What makes the context of a node's calls."""
        watch = self.watch
        if watch is None:
            return self.node_context
        brought = {name: told[name] for name, value in node["inputs"].items() if looks_like_link(value)}

        @contextmanager
        def chain_callbacks() -> Iterator[None]:
            with self.node_context(), watch(node_id, node, brought):
                yield

        return chain_callbacks

    async def lazy_wanted(
        self, check: Callable[..., Any], told: Mapping[str, list[Any]], whole_lists: bool
    ) -> list[str]:
        """The names that check_lazy_status asks for, over all its calls; what is not known yet is None to it."""
        answers = call_mapped(check, told, whole_lists)
        names = [await settled(answer) for answer in answers]
        wanted = [name for each in names if isinstance(each, (list, tuple)) for name in each]
        return list(dict.fromkeys(name for name in wanted if isinstance(name, str)))

    def lazy_link(self, node: Mapping[str, Any], name: str) -> tuple[str, int]:
        value = node["inputs"].get(name)
        if not looks_like_link(value):
            raise SVDStagesError(f'check_lazy_status asks for "{name}", which is no linked input of the node')
        return value[0], int(value[1])

    def hidden(self) -> dict[str, Any]:
        """Hidden inputs by their kind; UNIQUE_ID is added for each node."""
        return {
            "PROMPT": self.graph.original_prompt,
            "DYNPROMPT": self.graph,
            "EXTRA_PNGINFO": self.extra_data.get("extra_pnginfo"),
            "AUTH_TOKEN_COMFY_ORG": self.extra_data.get("auth_token_comfy_org"),
            "API_KEY_COMFY_ORG": self.extra_data.get("api_key_comfy_org"),
        }

    def instance_of(self, node_id: str, class_type: str, node_class: Any) -> Any:
        """The object of a node, the same as long as the node is in the graphs."""
        key = (node_id, class_type)
        if key not in self.instances:
            self.instances[key] = (node_class(), self.graph.get_real_node_id(node_id))
        return self.instances[key][0]

    def linked(self, source: str, slot: int) -> list[Any] | None:
        """The values that a link brings; None when they are not there."""
        entry = self.store.get(self.keys[source])
        return None if entry is None else entry.slots.get(slot)

    def wait_for(self, node_id: str, calls: Calls) -> None:
        """Have a node taken again when its coroutines are done."""
        self.waiting.hold(node_id)

        def wake(_: Any) -> None:
            self.waiting.let_go(node_id)
            self.woken.set()

        asyncio.gather(*calls.tasks, return_exceptions=True).add_done_callback(wake)

    def blocked(self, node_id: str, blocker: Any) -> Any:
        """What a node gives in place of a call that would have got a blocker. Its message is told once."""
        message = getattr(blocker, "message", None)
        if message is None:
            return blocker
        self.tell(
            "execution_error",
            **self.where(node_id),
            exception_message=f"Execution Blocked: {message}",
            exception_type="ExecutionBlocked",
            traceback=[],
            current_inputs={},
            current_outputs=[],
        )
        return type(blocker)(None)

    async def merged(self, node_id: str, results: list[Any], node_class: Any) -> Outcome | None:
        """The outcome of a node's calls; None when some of them put nodes into the graph, which run first."""
        outcome = merge_results(results, node_class)
        if outcome.parts is None:
            return outcome
        self.unfinished[node_id] = _Unfinished(parts=outcome.parts, ui=outcome.ui)
        await self.expand(node_id, outcome.parts)
        self.release(node_id)  # only what it brought reads its inputs now
        self.waiting.again(node_id)
        return None

    async def expand(self, node_id: str, parts: list[Part]) -> None:
        """Put the nodes of an expansion into the graph, and have `node_id` wait for those that it gives on."""
        links: list[tuple[str, int]] = []
        new: Prompt = {}
        for graph, result in parts:
            if graph is None:
                continue
            for new_id, node in graph.items():
                if self.graph.has_node(new_id):
                    raise SVDStagesError(
                        f'the node puts a node "{new_id}" into the graph, and there is one; ids must be new '
                        "(GraphBuilder makes such)",
                        code="graph.duplicate_node",
                    )
                new[new_id] = node
                self.graph.add_ephemeral_node(new_id, node, node_id, node.get("override_display_id", node_id))
            links += [(value[0], int(value[1])) for value in result if looks_like_link(value)]
        await self.number_new(new, node_id)
        for new_id in new:
            self.waiting.place(new_id)
            self.register(new_id)
        self.store.reads({(self.keys[source], slot) for source, slot in links})
        for new_id, node in new.items():
            if is_output(self.declarations.nodes[node["class_type"]]):
                self.need(new_id)
        for source, slot in links:
            self.follow(self.need_link(source, slot, node_id))

    async def number_new(self, new: Prompt, parent: str) -> None:
        """Give keys to the nodes of an expansion, and to those of the file that they are the first to read.

        New ones in a cycle get keys of their own: it is found when they are to run.
        """
        sources = {new_id: [source for source, _ in links_of(node)] for new_id, node in new.items()}
        for new_id in new:
            self.refuse_unknown(new_id)
            for source in sources[new_id]:
                self.graph.get_node(source)  # raises for one that is nowhere
        file = self.graph.original_prompt
        of_file = {
            node_id: [source for source, _ in links_of(node)]
            for node_id, node in file.items()
            if node_id not in self.keys
        }
        met = with_ancestors(new, {**of_file, **sources})
        order, cycles = run_order([node_id for node_id in of_file if node_id in met], of_file)
        if cycles:
            raise _cycle_error(cycles[0])
        for node_id in order:
            self.refuse_unknown(node_id)
        await self.keys.add(order, file)
        order, _ = run_order(list(new), sources)
        await self.keys.add(order, new, parent)
        for new_id in new.keys() - set(order):
            self.keys.give(new_id)

    def joined(self, left: _Unfinished, node_class: Any, node_id: str) -> Outcome:
        """The outcome of a node whose nodes have run: its links are what they gave."""
        results, read = [], set()
        for graph, result in left.parts or ():
            if graph is None:
                results.append(result)
                continue
            values: list[Any] = []
            for each in result:
                if not looks_like_link(each):
                    values.append(each)
                    continue
                found = self.linked(each[0], int(each[1]))
                assert found is not None, each  # need_link has seen to it
                values += found
                read.add((self.keys[each[0]], int(each[1])))
            results.append(tuple(values))
        self.store.has_read(read)
        return Outcome(merge_results(results, node_class).slots, left.ui)

    def check_slots(self, node_id: str, needed: int) -> None:
        """A node that gave fewer outputs than are read from it is at fault itself, not its readers."""
        entry = self.store.get(self.keys[node_id])
        if entry is not None and entry.count < needed:
            raise self.failed(
                node_id,
                SVDStagesError(
                    f"the node's function gave {entry.count} values, but slot {needed - 1} is read from it; "
                    "it must return a value for each of its RETURN_TYPES.",
                    code="node.result",
                ),
            )

    def kept(self, node_id: str) -> list[list[Any]]:
        """What a node in `keep` gave, by slot."""
        entry = self.store.get(self.keys[node_id])
        assert entry is not None
        return [entry.slots[slot] for slot in range(entry.count)]

    def cycle(self) -> SVDStagesError:
        """The error for nodes that wait for each other, which only expansion can bring about."""
        sources = self.waiting.sources()
        _, cycles = run_order(list(sources), sources)
        error = _cycle_error(cycles[0])
        node_id = self.graph.get_real_node_id(cycles[0][0])
        self.tell("execution_error", **self.where(node_id), **_about_error(error))
        return error

    def failed(self, node_id: str, cause: Exception) -> NodeError:
        """The error for a node that raised, by the node of the file."""
        text = one_line(str(cause))
        if not isinstance(cause, SVDStagesError):
            text = f"{type(cause).__name__}: {text}" if text else type(cause).__name__
        real = self.graph.get_real_node_id(node_id)
        inner = "" if real == node_id else f', in "{self.graph.get_node(node_id)["class_type"]}" which it made,'
        return NodeError(
            f"{name_node(self.graph.original_prompt, real)}{inner} failed: {text}",
            node_id=real,
            class_type=self.graph.get_node(node_id)["class_type"],
            cause=cause,
        )


def links_of(node: Mapping[str, Any]) -> list[tuple[str, int]]:
    """All links of a node, as source and slot."""
    return [(value[0], int(value[1])) for value in node["inputs"].values() if looks_like_link(value)]


def _cycle_error(cycle: list[str]) -> GraphError:
    return GraphError(
        f"the links go round in a circle, each node needs the next: {' -> '.join(cycle)}; cut one of them.",
        code="graph.dependency_cycle",
    )


def _about_error(cause: BaseException) -> dict[str, Any]:
    """ComfyUI's account of an exception. Inputs are left out: they can hold keys and whole images."""
    kind = type(cause)
    module = "" if kind.__module__ == "builtins" else kind.__module__ + "."
    return {
        "exception_message": str(cause),
        "exception_type": module + kind.__qualname__,
        "traceback": traceback.format_tb(cause.__traceback__),
        "current_inputs": {},
        "current_outputs": [],
    }
