"""Toy node classes in ComfyUI's V1 form, and helpers to write graphs of them. Imports no package.

Both executors run these classes: ours, and ComfyUI's in comfy_peer.py.
"""

from __future__ import annotations

import math


class AnyType(str):
    """A type that is never unequal to another one. Node packs use it for inputs that accept anything."""

    def __ne__(self, other: object) -> bool:
        return False

    __hash__ = str.__hash__


ANY = AnyType("*")


def toy(inputs=None, optional=None, hidden=None, gives=(), **attributes):
    """Create a decorator that makes a node of a class with a method `run`."""

    def decorate(cls):
        groups = {"required": inputs or {}, "optional": optional or {}, "hidden": hidden or {}}
        cls.INPUT_TYPES = classmethod(lambda _: {group: dict(specs) for group, specs in groups.items() if specs})
        cls.RETURN_TYPES, cls.FUNCTION, cls.CATEGORY = gives, "run", "toys"
        for name, value in attributes.items():
            setattr(cls, name, value)
        return cls

    return decorate


def variant(base, *groups, **attributes):
    """Create a node class that runs as `base` and has another declaration. Arguments are those of `toy`."""
    return toy(*groups, **attributes)(type("Variant", (base,), {}))


def declared(*groups, **attributes):
    """Create a node class that has a declaration but cannot run. Arguments are those of `toy`."""
    return variant(object, *groups, **attributes)


def identity(name, kind, options=None, **attributes):
    """Create a node class that returns its only input."""
    spec = (kind,) if options is None else (kind, options)
    methods = {"run": lambda self, **inputs: (inputs[name],)}
    return toy({name: spec}, **{"gives": (kind,), **attributes})(type("Identity", (), methods))


SEED = {"default": 0, "min": 0, "max": 2**64 - 1, "control_after_generate": True}
Number = identity("value", "INT", {"min": 0, "max": 100})
Seed = identity("seed", "INT", SEED)
Decimal = identity("value", "FLOAT", {"min": 0.0, "max": 2.0})
Text = identity("text", "STRING", {"default": ""})
Flag = identity("flag", "BOOLEAN", {})
Choice = identity("choice", ["p", "q"])
NewChoice = identity("choice", "COMBO", {"options": ["p", "q"]}, gives=("STRING",))
ManyChoices = identity("choice", [f"option {number}" for number in range(37)], gives=("STRING",))
Socket = identity("a", "INT", {"forceInput": True, "default": 1})
Union = identity("value", "INT,FLOAT", {"min": 1})
PassAnything = identity("value", ANY, {})
NotIdempotent = identity("value", "INT", {}, NOT_IDEMPOTENT=True)


@toy({"a": ("INT", {}), "b": ("INT", {})}, gives=("INT",))
class Add:
    def run(self, a, b):
        return (a + b,)


@toy({"a": ("INT", {})}, {"b": ("INT", {"default": 5})}, gives=("INT",))
class AddMaybe:
    def run(self, a, b=7):
        return (a + b,)


AddDefault = variant(Add, {"a": ("INT", {}), "b": ("INT", {"default": 3, "min": 0})}, gives=("INT",))


@toy({"count": ("INT", {})}, gives=("INT",), OUTPUT_IS_LIST=(True,))
class CountTo:
    def run(self, count):
        return (list(range(count)),)


@toy({"count": ("INT", {})}, gives=("INT", "INT"), OUTPUT_IS_LIST=(True, False))
class CountAndLast:
    def run(self, count):
        return (list(range(count)), count)


ShortOutputIsList = variant(CountAndLast, {"count": ("INT", {})}, gives=("INT", "INT"), OUTPUT_IS_LIST=(True,))


@toy({"values": ("INT", {}), "offset": ("INT", {})}, gives=("INT", "INT"), INPUT_IS_LIST=True)
class SumList:
    def run(self, values, offset):
        return (sum(values) + offset[0], len(values))


@toy({}, gives=("INT",))
class NoInputs:
    def run(self):
        return (42,)


@toy({}, gives=("INT",))
class Kwargs:
    def run(self, **inputs):
        return (sum(inputs.values()),)


@toy({"value": (ANY, {})}, OUTPUT_NODE=True)
class Show:
    def run(self, value):
        return {"ui": {"value": [repr(value)]}}


@toy({"value": ("INT", {})}, gives=("INT",), OUTPUT_NODE=True)
class ShowAndPass:
    def run(self, value):
        return {"ui": {"value": [value], "twice": [value, value]}, "result": (value + 1,)}


ShowList = variant(Show, {"value": (ANY, {})}, OUTPUT_NODE=True, INPUT_IS_LIST=True)


@toy({"value": (ANY, {})}, OUTPUT_NODE=True)
class Silent:
    def run(self, value):
        return ()


HIDDEN = {"prompt": "PROMPT", "info": "EXTRA_PNGINFO", "me": "UNIQUE_ID", "dynamic": "DYNPROMPT"}


@toy({"value": ("INT", {})}, hidden=HIDDEN, OUTPUT_NODE=True)
class ShowHidden:
    def run(self, value, prompt, info, me, dynamic):
        same = dynamic.get_original_prompt() == prompt and dynamic.has_node(me) and dynamic.get_node(me) == prompt[me]
        return {"ui": {"me": [me], "ids": [sorted(prompt)], "info": [info], "same": [same]}}


@toy({"value": ("INT", {})}, hidden={"me": "UNIQUE_ID"}, gives=("STRING",))
class OwnId:
    def run(self, value, me):
        return (f"{value} in {me}",)


@toy({"value": ("INT", {})}, gives=("INT",))
class AlwaysChanged:
    def run(self, value):
        return (value,)

    @classmethod
    def IS_CHANGED(cls, value):
        return float("nan")


@toy({"value": ("INT", {}), "other": ("INT", {})}, gives=("INT",))
class ChangedByValue:
    calls: list = []

    def run(self, value, other):
        return (value + other,)

    @classmethod
    def IS_CHANGED(cls, value, other):
        cls.calls.append((value, other))
        return "same"


@toy({"value": ("INT", {"min": 0}), "other": ("INT", {"min": 0})}, gives=("INT",))
class ValidatesValue:
    def run(self, value, other):
        return (value + other,)

    @classmethod
    def VALIDATE_INPUTS(cls, value):
        return True if value is None or value < 5 else f"{value} is five or more"


@toy({"value": ("INT", {"min": 0}), "other": ("INT", {"min": 0})}, gives=("INT",))
class ValidatesAll(ValidatesValue):
    @classmethod
    def VALIDATE_INPUTS(cls, **inputs):
        return sum(value or 0 for value in inputs.values()) < 5


@toy({"value": ("INT", {}), "other": ("INT", {})}, gives=("INT",))
class ValidatesTypes:
    def run(self, value, other):
        return (int(value) + other,)

    @classmethod
    def VALIDATE_INPUTS(cls, input_types):
        return True if input_types.get("value", "FLOAT") == "FLOAT" else f"types {input_types}"


@toy({"value": ("INT", {})}, gives=("INT",))
class ValidationRaises:
    def run(self, value):
        return (value,)

    @classmethod
    def VALIDATE_INPUTS(cls, value):
        raise RuntimeError("no idea")


@toy({"value": (ANY, {})}, gives=("INT",))
class Fails:
    def run(self, value):
        raise ValueError("it broke\nbadly")


@toy({}, gives=("INT",))
class GivesNone:
    def run(self):
        return None


@toy({}, gives=("INT", "INT"))
class GivesTooLittle:
    def run(self):
        return (1,)


@toy({"a": ("INT", {"lazy": True}), "b": ("INT", {"lazy": True})}, gives=("INT",))
class Lazy:
    def run(self, a, b):
        return (a if a is not None else b,)

    def check_lazy_status(self, a, b):
        return ["a"]


@toy({"value": ("INT", {})}, gives=("INT",))
class Mutable:
    """Counts the calls of its instance."""

    def __init__(self):
        self.calls = 0

    def run(self, value):
        self.calls += 1
        return (self.calls,)


@toy({"x": ("FLOAT", {"default": math.pi})}, gives=("FLOAT",), DEPRECATED=True, EXPERIMENTAL=True)
class Described:
    DESCRIPTION = "What it is for."
    RETURN_NAMES = ("pi",)
    OUTPUT_TOOLTIPS = ("The number.",)
    SEARCH_ALIASES = ["circle"]

    def run(self, x):
        return (x,)


TOYS = {name: cls for name, cls in list(globals().items()) if isinstance(cls, type) and hasattr(cls, "FUNCTION")}


def node(class_type: str, title: str | None = None, /, **inputs):
    """Create a node. A link is written ["id", slot]."""
    fields = {"class_type": class_type, "inputs": inputs}
    return {**fields, "_meta": {"title": title}} if title else fields


def giving(value, gives=("INT",)):
    """Return the toys and an output node "Gives" whose function returns `value`."""
    return {**TOYS, "Gives": toy({}, gives=gives, OUTPUT_NODE=True)(type("Gives", (), {"run": lambda self: value}))}


def graph(**nodes):
    """Create a graph. The keywords are the node ids."""
    return nodes


def shown(value, **nodes):
    """Create a graph whose only output, "show", shows `value`."""
    return graph(**nodes, show=node("Show", value=value))


def twins(class_type: str, second: str | None = None, /, **inputs):
    """Create a graph in which "c" adds two nodes with equal inputs and different titles."""
    first, other = node(class_type, "one", **inputs), node(second or class_type, "two", **inputs)
    return graph(a=first, b=other, c=node("Add", a=["a", 0], b=["b", 0]), x=node("Show", value=["c", 0]))
