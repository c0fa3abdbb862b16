"""Toy node classes in ComfyUI's V1 form, and short ways to write graphs of them. No package is needed to import it.

The same classes run in our executor and, by comfy_peer.py, in ComfyUI's.
"""

from __future__ import annotations

import math


class AnyType(str):
    """The trick that node packs use for "takes anything": never unequal to another type."""

    def __ne__(self, other: object) -> bool:
        return False

    __hash__ = str.__hash__


ANY = AnyType("*")


def toy(inputs=None, optional=None, hidden=None, gives=(), **attributes):
    """A decorator that makes a class with one method `run` into a node."""

    def dress(cls):
        groups = {"required": inputs or {}, "optional": optional or {}, "hidden": hidden or {}}
        cls.INPUT_TYPES = classmethod(lambda _: {group: dict(each) for group, each in groups.items() if each})
        cls.RETURN_TYPES, cls.FUNCTION, cls.CATEGORY = gives, "run", "toys"
        for name, value in attributes.items():
            setattr(cls, name, value)
        return cls

    return dress


@toy({"value": ("INT", {"min": 0, "max": 100})}, gives=("INT",))
class Number:
    def run(self, value):
        return (value,)


@toy({"seed": ("INT", {"default": 0, "min": 0, "max": 2**64 - 1, "control_after_generate": True})}, gives=("INT",))
class Seed:
    def run(self, seed):
        return (seed,)


@toy({"value": ("FLOAT", {"min": 0.0, "max": 2.0})}, gives=("FLOAT",))
class Decimal:
    def run(self, value):
        return (value,)


@toy({"text": ("STRING", {"default": ""})}, gives=("STRING",))
class Text:
    def run(self, text):
        return (text,)


@toy({"flag": ("BOOLEAN", {})}, gives=("BOOLEAN",))
class Flag:
    def run(self, flag):
        return (flag,)


@toy({"choice": (["p", "q"],)}, gives=(["p", "q"],))
class Choice:
    def run(self, choice):
        return (choice,)


@toy({"choice": ("COMBO", {"options": ["p", "q"]})}, gives=("STRING",))
class NewChoice:
    def run(self, choice):
        return (choice,)


@toy({"choice": ([f"option {number}" for number in range(37)],)}, gives=("STRING",))
class ManyChoices:
    def run(self, choice):
        return (choice,)


@toy({"a": ("INT", {}), "b": ("INT", {})}, gives=("INT",))
class Add:
    def run(self, a, b):
        return (a + b,)


@toy({"a": ("INT", {})}, {"b": ("INT", {"default": 5})}, gives=("INT",))
class AddMaybe:
    def run(self, a, b=7):
        return (a + b,)


@toy({"a": ("INT", {}), "b": ("INT", {"default": 3, "min": 0})}, gives=("INT",))
class AddDefault:
    def run(self, a, b):
        return (a + b,)


@toy({"a": ("INT", {"forceInput": True, "default": 1})}, gives=("INT",))
class Socket:
    def run(self, a):
        return (a,)


@toy({"value": ("INT,FLOAT", {"min": 1})}, gives=("INT,FLOAT",))
class Union:
    def run(self, value):
        return (value,)


@toy({"value": (ANY, {})}, gives=(ANY,))
class PassAnything:
    def run(self, value):
        return (value,)


@toy({"count": ("INT", {})}, gives=("INT",), OUTPUT_IS_LIST=(True,))
class CountTo:
    def run(self, count):
        return (list(range(count)),)


@toy({"count": ("INT", {})}, gives=("INT", "INT"), OUTPUT_IS_LIST=(True, False))
class CountAndLast:
    def run(self, count):
        return (list(range(count)), count)


@toy({"count": ("INT", {})}, gives=("INT", "INT"), OUTPUT_IS_LIST=(True,))
class ShortOutputIsList:
    def run(self, count):
        return (list(range(count)), count)


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


@toy({"value": (ANY, {})}, OUTPUT_NODE=True, INPUT_IS_LIST=True)
class ShowList:
    def run(self, value):
        return {"ui": {"value": [repr(value)]}}


@toy({"value": (ANY, {})}, OUTPUT_NODE=True)
class Silent:
    def run(self, value):
        return ()


HIDDEN = {"prompt": "PROMPT", "info": "EXTRA_PNGINFO", "me": "UNIQUE_ID", "dynamic": "DYNPROMPT"}


@toy({"value": ("INT", {})}, hidden=HIDDEN, OUTPUT_NODE=True)
class ShowHidden:
    def run(self, value, prompt, info, me, dynamic):
        whole = dynamic.get_original_prompt() == prompt and dynamic.has_node(me) and dynamic.get_node(me) == prompt[me]
        return {"ui": {"me": [me], "ids": [sorted(prompt)], "info": [info], "whole": [whole]}}


@toy({"value": ("INT", {})}, gives=("INT",), NOT_IDEMPOTENT=True)
class NotIdempotent:
    def run(self, value):
        return (value,)


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
    asked: list = []

    def run(self, value, other):
        return (value + other,)

    @classmethod
    def IS_CHANGED(cls, value, other):
        cls.asked.append((value, other))
        return "same"


@toy({"value": ("INT", {"min": 0}), "other": ("INT", {"min": 0})}, gives=("INT",))
class ValidatesValue:
    def run(self, value, other):
        return (value + other,)

    @classmethod
    def VALIDATE_INPUTS(cls, value):
        return True if value is None or value < 5 else f"{value} is five or more"


@toy({"value": ("INT", {"min": 0}), "other": ("INT", {"min": 0})}, gives=("INT",))
class ValidatesAll:
    def run(self, value, other):
        return (value + other,)

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
    """Made once per node id: counts its own calls."""

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
    """One node; a link is written ["id", slot]."""
    made = {"class_type": class_type, "inputs": inputs}
    return {**made, "_meta": {"title": title}} if title else made


def graph(**nodes):
    """A graph with ids n1, n2, ... as the keywords say."""
    return nodes
