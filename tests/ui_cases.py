"""UI-format graphs with features of the page alone: subgraphs, reroutes, primitives, bypassed and muted nodes.

tests/comfyui/test_page_export.py compares the conversion of `GRAPHS` with the export of ComfyUI's page.
"""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Source = tuple[int, int]
"""(node id, output slot). Node -10 stands for a subgraph's inputs."""

INPUTS, OUTPUTS = -10, -20
MUTED, BYPASSED = 2, 4


class Sheet:
    """Builds the main graph or a subgraph.

    Args:
        name: Name of a subgraph. Node ids depend on it, because the page renumbers nodes with equal ids.
    """

    def __init__(self, name: str = ""):
        self.name = name
        self.id = str(uuid.uuid5(uuid.NAMESPACE_OID, name))
        self.nodes: list[dict[str, Any]] = []
        self.links: list[dict[str, Any]] = []
        self.ports: dict[str, list[dict[str, Any]]] = {"inputs": [], "outputs": []}
        self.subgraphs: dict[str, Sheet] = {}
        self._ids = itertools.count(100 * (1 + sum(map(ord, name)) % 89) + 1 if name else 1)

    def add(
        self,
        kind: str,
        values: Any = None,
        inputs: Mapping[str, tuple] | None = None,
        outputs: Sequence[str] = ("IMAGE",),
        **more: Any,
    ) -> int:
        """Add a node, return its id. `inputs` is name -> (type, source or None), and True for a widget's socket."""
        number = next(self._ids)
        slots = []
        for place, (name, (type_name, source, *widget)) in enumerate((inputs or {}).items()):
            link = None if source is None else self.link(source, (number, place), type_name)
            slot = {"name": name, "type": type_name, "link": link}
            slots.append({**slot, "widget": {"name": name}} if widget else slot)
        box = {"id": number, "type": kind, "pos": [220 * number, 100], "size": [200, 100], "flags": {}}
        box |= {"order": number - 1, "mode": 0, "inputs": slots, "properties": {}}
        box["outputs"] = [{"name": each, "type": each, "links": []} for each in outputs]
        if values is not None:
            box["widgets_values"] = values
        self.nodes.append(box | more)
        return number

    def link(self, source: Source, target: tuple[int, int], type_name: str) -> int:
        """Link two slots. Return the id of the link."""
        number = len(self.links) + 1
        names = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
        self.links.append(dict(zip(names, (number, *source, *target, type_name), strict=True)))
        for side, (node, place), end in (("inputs", source, INPUTS), ("outputs", target, OUTPUTS)):
            if node == end:
                self.ports[side][place]["linkIds"].append(number)
        for node in self.nodes:
            if node["id"] == source[0]:
                node["outputs"][source[1]]["links"].append(number)
        return number

    def input(self, name: str, type_name: str) -> Source:
        """Add an input to this subgraph."""
        return (INPUTS, self._port("inputs", name, type_name))

    def output(self, name: str, type_name: str, source: Source) -> None:
        """Add an output to this subgraph."""
        place = self._port("outputs", name, type_name)
        self.link(source, (OUTPUTS, place), type_name)

    def _port(self, side: str, name: str, type_name: str) -> int:
        port_id = str(uuid.uuid5(uuid.NAMESPACE_OID, f"{self.name}{side}{name}"))
        self.ports[side].append({"id": port_id, "name": name, "type": type_name, "linkIds": [], "pos": [0, 0]})
        return len(self.ports[side]) - 1

    def definition(self) -> dict[str, Any]:
        """Return the subgraph as files have it."""
        state = {"lastGroupId": 0, "lastNodeId": 9999, "lastLinkId": 50, "lastRerouteId": 0}
        ends = {"inputNode": {"id": INPUTS, "bounding": [0, 0, 100, 100]}}
        ends["outputNode"] = {"id": OUTPUTS, "bounding": [900, 0, 100, 100]}
        return {
            "id": self.id, "version": 1, "state": state, "revision": 0, "config": {}, "name": self.name, **ends,
            **self.ports, "widgets": [], "nodes": self.nodes, "groups": [], "links": self.links, "extra": {},
        }  # fmt: skip

    def workflow(self, as_objects: bool = False) -> dict[str, Any]:
        """Return the file."""
        links: list[Any] = self.links if as_objects else [list(link.values()) for link in self.links]
        fields: dict[str, Any] = {"last_node_id": 9999, "last_link_id": 50, "nodes": self.nodes, "links": links}
        if as_objects:
            fields = {"state": {"lastGroupId": 0, "lastNodeId": 9999, "lastLinkId": 50, "lastRerouteId": 0}, **fields}
            del fields["last_node_id"], fields["last_link_id"]
        subgraphs = [each.definition() for each in self.subgraphs.values()]
        definitions = {"definitions": {"subgraphs": subgraphs}} if subgraphs else {}
        return {**fields, "groups": [], "config": {}, "extra": {}, "version": 1 if as_objects else 0.4, **definitions}


def load(sheet: Sheet, **more: Any) -> Source:
    return (sheet.add("LoadImage", ["rocket.png", "image"], outputs=("IMAGE", "MASK"), **more), 0)


def scale(sheet: Sheet, image: Source | None, width: Any = 128, sockets: Mapping[str, Source] | None = None, **more):
    """Add an ImageScale. `sockets` links some of its widgets."""
    slots: dict[str, tuple] = {"image": ("IMAGE", image)}
    slots |= {name: ("INT", source, True) for name, source in (sockets or {}).items()}
    return (sheet.add("ImageScale", ["lanczos", width, 96, "disabled"], slots, **more), 0)


def save(sheet: Sheet, images: Source | None, prefix: str = "made", **more: Any) -> int:
    return sheet.add("SaveImage", [prefix], {"images": ("IMAGE", images)}, outputs=(), **more)


def instance(sheet: Sheet, inside: Sheet, values: Any, sources: Sequence[Source | None], **more: Any) -> int:
    """Add an instance of a subgraph, with its inputs linked in order."""
    sheet.subgraphs |= inside.subgraphs | {inside.id: inside}
    slots = {
        port["name"]: (port["type"], source, *((True,) if port["type"] == "INT" else ()))
        for port, source in zip(inside.ports["inputs"], sources, strict=True)
    }
    outputs = [port["type"] for port in inside.ports["outputs"]]
    return sheet.add(inside.id, values, slots, outputs, **more)


def shrink(name: str = "Shrink", width: int = 128, promote: bool = True) -> Sheet:
    """Create a subgraph that resizes an image. The width is a promoted widget."""
    inside = Sheet(name)
    image = inside.input("picture", "IMAGE")
    sockets = {"width": inside.input("wide", "INT")} if promote else {}
    inside.output("small", "IMAGE", scale(inside, image, width, sockets))
    return inside


GRAPHS: dict[str, dict[str, Any]] = {}


def graph(as_objects: bool = False) -> Callable:
    """Create a decorator for a function that fills a sheet."""

    def register(build: Callable[[Sheet], None]) -> None:
        sheet = Sheet()
        build(sheet)
        GRAPHS[build.__name__] = sheet.workflow(as_objects)

    return register


@graph(as_objects=True)
def a_chain_with_object_links(sheet):
    save(sheet, scale(sheet, load(sheet)), title="Keep it")


@graph()
def two_reroutes_in_a_row(sheet):
    one = sheet.add("Reroute", None, {"": ("*", load(sheet))})
    two = sheet.add("Reroute", None, {"": ("*", (one, 0))})
    save(sheet, scale(sheet, (two, 0)))


@graph()
def a_primitive_into_a_widget(sheet):
    number = sheet.add("PrimitiveNode", [320, "fixed"], outputs=("INT",))
    save(sheet, scale(sheet, load(sheet), 128, {"width": (number, 0)}))


@graph()
def a_primitive_into_two_widgets(sheet):
    number = sheet.add("PrimitiveNode", [320, "randomize"], outputs=("INT",), title="Side")
    save(sheet, scale(sheet, load(sheet), 128, {"width": (number, 0), "height": (number, 0)}))


@graph()
def a_primitive_behind_a_reroute(sheet):
    number = sheet.add("PrimitiveNode", [320, "fixed"], outputs=("INT",))
    reroute = sheet.add("Reroute", None, {"": ("*", (number, 0))}, outputs=("INT",))
    save(sheet, scale(sheet, load(sheet), 128, {"width": (reroute, 0)}))


@graph()
def a_muted_and_a_bypassed_primitive(sheet):
    muted = sheet.add("PrimitiveNode", [320, "fixed"], outputs=("INT",), mode=MUTED)
    bypassed = sheet.add("PrimitiveNode", [64, "fixed"], outputs=("INT",), mode=BYPASSED)
    save(sheet, scale(sheet, load(sheet), 128, {"width": (muted, 0), "height": (bypassed, 0)}))


@graph()
def a_primitive_that_leaves_its_subgraph(sheet):
    inside = Sheet("Gives a number")
    number = inside.add("PrimitiveNode", [320, "fixed"], outputs=("INT",))
    inside.output("side", "INT", (number, 0))
    inner_id = instance(sheet, inside, None, [])
    save(sheet, scale(sheet, load(sheet), 128, {"width": (inner_id, 0)}))


@graph()
def escapes_and_comments_in_a_prompt(sheet):
    text = "a \\{red\\} ball // not this\n/* nor this */ on \\{sand\\|stone\\}"
    slots = {"clip": ("CLIP", None)}
    sheet.add("CLIPTextEncode", [text], slots, ("CONDITIONING",))


@graph()
def a_bypassed_box_passes_its_image_on(sheet):
    save(sheet, scale(sheet, load(sheet), mode=BYPASSED))


@graph()
def a_bypassed_loader_has_nothing_to_pass_on(sheet):
    save(sheet, scale(sheet, load(sheet, mode=BYPASSED)))


@graph()
def bypassed_boxes_between_reroutes(sheet):
    reroute = sheet.add("Reroute", None, {"": ("*", scale(sheet, load(sheet), mode=BYPASSED))})
    save(sheet, scale(sheet, (reroute, 0), mode=BYPASSED))


@graph()
def a_bypassed_box_with_two_inputs_of_the_type(sheet):
    first, second = load(sheet), load(sheet)
    batch = sheet.add("ImageBatch", [], {"image1": ("IMAGE", first), "image2": ("IMAGE", second)}, mode=BYPASSED)
    save(sheet, (batch, 0))


@graph()
def a_bypassed_box_that_changes_the_type(sheet):
    parts = sheet.add("SVDCheckpointLoader", ["svd-nano", "auto"], outputs=("SVD_MODEL", "SVD_CLIP_VISION", "SVD_VAE"))
    slots = {"vae": ("SVD_VAE,VAE", (parts, 2)), "image": ("IMAGE", load(sheet))}
    latent = sheet.add("SVDVAEEncode", [], slots, outputs=("LATENT",), mode=BYPASSED)
    slots = {"vae": ("SVD_VAE,VAE", (parts, 2)), "latent": ("LATENT", (latent, 0))}
    frames = sheet.add("SVDTemporalVAEDecode", ["exact", 8, 2], slots)
    save(sheet, (frames, 0))


@graph()
def a_muted_source_and_a_muted_output(sheet):
    image = load(sheet)
    save(sheet, scale(sheet, image, mode=MUTED))
    save(sheet, image, "other", mode=MUTED)


@graph()
def what_a_seed_does_after_a_run(sheet):
    slots = {name: (name.upper(), None) for name in ("model", "positive", "negative", "latent")}
    sheet.add("SVDEulerSampler", [7, "randomize", 25, 1.0, 3.0, "comfyui"], slots, outputs=("LATENT",))
    slots = {"image": ("IMAGE", load(sheet))}
    sheet.add("SVDNoiseAugmentation", [0.5, 11, "increment"], slots, outputs=("IMAGE", "FLOAT", "INT"))


@graph()
def notes_and_a_prefix_with_values_of_other_nodes(sheet):
    sheet.add("Note", ["not a node"], outputs=())
    sheet.add("MarkdownNote", ["# neither"], outputs=())
    image = scale(sheet, load(sheet), title="Small", properties={"Node name for S&R": "ImageScale"})
    save(sheet, image, "%ImageScale.width%x%Small.height%_%ImageScale.upscale_method%_%Gone.width%_%width%")


@graph()
def a_subgraph_with_a_promoted_width(sheet):
    inside = shrink()
    small = instance(sheet, inside, [192], [load(sheet), None])
    save(sheet, (small, 0))


@graph(as_objects=True)
def two_instances_with_values_of_their_own(sheet):
    inside = shrink()
    image = load(sheet)
    for width in (64, 256):
        save(sheet, (instance(sheet, inside, [width], [image, None]), 0), f"w{width}")


@graph()
def an_instance_without_values_of_its_own(sheet):
    inside = shrink(width=160)
    save(sheet, (instance(sheet, inside, None, [load(sheet), None]), 0))


@graph()
def a_promoted_width_that_is_linked(sheet):
    inside = shrink()
    size = sheet.add(
        "SVDResizeImage", [320, 192, "stretch"], {"image": ("IMAGE", load(sheet))}, ("IMAGE", "INT", "INT")
    )
    save(sheet, (instance(sheet, inside, [192], [(size, 0), (size, 1)]), 0))


@graph()
def a_primitive_into_a_promoted_width(sheet):
    inside = shrink()
    number = sheet.add("PrimitiveNode", [320, "fixed"], outputs=("INT",))
    save(sheet, (instance(sheet, inside, [192], [load(sheet), (number, 0)]), 0))


@graph()
def a_port_that_leads_to_two_widgets(sheet):
    inside = Sheet("Square")
    image, side = inside.input("picture", "IMAGE"), inside.input("side", "INT")
    inside.output("small", "IMAGE", scale(inside, image, 100, {"width": side, "height": side}))
    save(sheet, (instance(sheet, inside, [224], [load(sheet), None]), 0))


@graph()
def a_subgraph_in_a_subgraph(sheet):
    inner, middle = shrink("Inner"), Sheet("Middle")
    image, wide = middle.input("picture", "IMAGE"), middle.input("how_wide", "INT")
    first = instance(middle, inner, [64], [image, wide])
    second = instance(middle, inner, [96], [(first, 0), None])
    middle.output("smaller", "IMAGE", (second, 0))
    save(sheet, (instance(sheet, middle, [288], [load(sheet), None]), 0))


@graph()
def a_bypassed_instance(sheet):
    inside = shrink()
    save(sheet, (instance(sheet, inside, [192], [load(sheet), None], mode=BYPASSED), 0))


@graph()
def a_muted_instance(sheet):
    inside = shrink()
    image = load(sheet)
    save(sheet, (instance(sheet, inside, [192], [image, None], mode=MUTED), 0))
    save(sheet, image, "kept")


@graph()
def bypass_mute_and_reroute_inside(sheet):
    inside = Sheet("Busy")
    image = inside.input("picture", "IMAGE")
    reroute = inside.add("Reroute", None, {"": ("*", image)})
    inside.output("same", "IMAGE", scale(inside, (reroute, 0), mode=BYPASSED))
    inside.output("nothing", "IMAGE", scale(inside, (reroute, 0), mode=MUTED))
    inner_id = instance(sheet, inside, None, [load(sheet)])
    for slot in range(2):
        save(sheet, (inner_id, slot), f"slot{slot}")


@graph()
def an_output_node_inside(sheet):
    inside = Sheet("Keeps")
    save(inside, scale(inside, inside.input("picture", "IMAGE")), "inside")
    instance(sheet, inside, None, [load(sheet)])


@graph()
def a_width_shown_by_proxy(sheet):
    inside = shrink(promote=False)
    box = str(inside.nodes[0]["id"])
    proxies = {"proxyWidgets": [[box, "width"], [box, "crop"]]}
    save(sheet, (instance(sheet, inside, [352, "center"], [load(sheet)], properties=proxies), 0))


@graph()
def widgets_shown_by_proxy_with_prefixes_and_previews(sheet):
    inside = shrink("Prefixed", promote=False)
    box = str(inside.nodes[0]["id"])
    shown = [[box, f"{box}: width"], [box, "$$canvas-image-preview"], [box, "no_such_widget"], [box, "height"]]
    values = [352, "preview", 5, 80]
    save(sheet, (instance(sheet, inside, values, [load(sheet)], properties={"proxyWidgets": shown}), 0))


@graph()
def a_linked_width_shown_by_proxy(sheet):
    inside = shrink()
    proxies = {"proxyWidgets": [[str(inside.nodes[0]["id"]), "height"], ["-1", "wide"]]}
    save(sheet, (instance(sheet, inside, [72, 416], [load(sheet), None], properties=proxies), 0))


@graph()
def a_primitive_inside_shown_by_proxy(sheet):
    inside = Sheet("Primitive inside")
    number = inside.add("PrimitiveNode", [320, "fixed"], outputs=("INT",))
    inside.output("small", "IMAGE", scale(inside, inside.input("picture", "IMAGE"), 64, {"width": (number, 0)}))
    proxies = {"proxyWidgets": [[str(number), "value"]]}
    save(sheet, (instance(sheet, inside, [480], [load(sheet)], properties=proxies), 0))


@graph()
def a_nested_width_shown_by_proxy(sheet):
    inner, middle = shrink("Inner too"), Sheet("Middle too")
    inner_id = instance(middle, inner, [64], [middle.input("picture", "IMAGE"), None])
    middle.output("small", "IMAGE", (inner_id, 0))
    proxies = {"proxyWidgets": [[str(inner_id), "wide"]]}
    save(sheet, (instance(sheet, middle, [544], [load(sheet)], properties=proxies), 0))


def a_muted_instance_inside():
    """Return a graph that is not in `GRAPHS`, because the page unfolds a muted instance inside a subgraph."""
    sheet, inner, middle = Sheet(), Sheet("Quiet"), Sheet("Around the quiet")
    save(inner, scale(inner, inner.input("picture", "IMAGE")), "quiet")
    image = middle.input("picture", "IMAGE")
    instance(middle, inner, None, [image], mode=MUTED)
    middle.output("same", "IMAGE", scale(middle, image))
    save(sheet, (instance(sheet, middle, None, [load(sheet)]), 0))
    return sheet.workflow()
