"""Read what a node class declares: inputs, hidden inputs, options of combos, outputs.

Node classes have ComfyUI's V1 form (INPUT_TYPES, RETURN_TYPES, FUNCTION, ...). Callers pass them as arguments.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

CONVERTED = {"INT": int, "FLOAT": float, "STRING": str, "BOOLEAN": bool}
"""The types whose constants ComfyUI converts, with the conversion."""

PAGE_WIDGETS = {
    "AUDIO_RECORD", "BOUNDING_BOX", "BOUNDING_BOXES", "CHART", "COLOR", "COLORS", "CURVE", "GALLERIA", "IMAGECOMPARE",
    "MARKDOWN", "PAINTER", "RANGE", "TEXTAREA",
}  # fmt: skip
"""Types in capitals that the page shows as widgets, besides the converted types and combos."""


@dataclass(frozen=True)
class DeclaredInput:
    """One input of a class. `kind` is a type name, a union "A,B", or the list of a combo's options."""

    name: str
    required: bool
    kind: Any
    options: Mapping[str, Any]

    @property
    def config(self) -> tuple[Any, Mapping[str, Any]]:
        """The `input_config` of ComfyUI's error objects."""
        return (self.kind, self.options)

    @property
    def is_seed(self) -> bool:
        """True if the input is a seed: an integer with "seed" in its name. The page may change it after a run."""
        return self.kind == "INT" and "seed" in self.name

    @property
    def choices(self) -> list[Any] | None:
        """The options of a combo. None for other inputs, and for a combo whose options are not declared."""
        if isinstance(self.kind, (list, tuple)):
            return list(self.kind)
        options = self.options.get("options") if self.kind == "COMBO" else None
        return list(options) if isinstance(options, (list, tuple)) else None

    @property
    def is_widget(self) -> bool:
        """True if ComfyUI's page shows a widget for the input and saves its value by position."""
        if self.options.get("forceInput") or self.options.get("defaultInput"):
            return False
        if isinstance(self.kind, (list, tuple)) or self.kind in {"COMBO", *CONVERTED, *PAGE_WIDGETS}:
            return True
        return isinstance(self.kind, str) and self.kind not in ("", "*") and self.kind != self.kind.upper()


@dataclass(frozen=True)
class Declaration:
    """The declaration of one class. `inputs` has required inputs first, each group in declared order."""

    class_type: str
    node_class: type
    inputs: Mapping[str, DeclaredInput]
    hidden: Mapping[str, Any]


class Declarations(dict[str, Declaration]):
    """Declarations by class type, read at first use. INPUT_TYPES may list folders, so it is called once per run."""

    def __init__(self, nodes: Mapping[str, type]):
        super().__init__()
        self.nodes = nodes

    def __missing__(self, class_type: str) -> Declaration:
        self[class_type] = read_declaration(class_type, self.nodes[class_type])
        return self[class_type]


def read_declaration(class_type: str, node_class: Any) -> Declaration:
    """Read the declaration of a class. Raises whatever INPUT_TYPES raises."""
    declared = node_class.INPUT_TYPES()
    inputs = {}
    for group in ("required", "optional"):
        for name, spec in declared.get(group, {}).items():
            if name not in inputs:
                options = spec[1] if len(spec) > 1 and isinstance(spec[1], Mapping) else {}
                inputs[name] = DeclaredInput(name, group == "required", spec[0], options)
    return Declaration(class_type, node_class, inputs, dict(declared.get("hidden", {})))


def return_types(node_class: Any) -> list[Any]:
    """Return the types of the outputs, by slot."""
    return list(getattr(node_class, "RETURN_TYPES", ()))


def is_output(node_class: Any) -> bool:
    """Return True for an output node. A graph runs the nodes that its output nodes need."""
    return getattr(node_class, "OUTPUT_NODE", False) is True


def types_match(received: Any, wanted: Any) -> bool:
    """Return True if an output of type `received` fits an input of type `wanted`, by the rule of ComfyUI 0.10.

    Equal types match. They are compared with `!=`, because node packs override it. Unions ("A,B") match if they share a
    member. "*" matches everything, and the list of a combo matches "COMBO".
    """
    if not received != wanted:  # noqa: SIM202
        return True
    if isinstance(received, (list, tuple)) and wanted == "COMBO":
        return True
    if not isinstance(received, str) or not isinstance(wanted, str):
        return False
    received_types, wanted_types = ({part.strip() for part in union.split(",")} for union in (received, wanted))
    return "*" in received_types | wanted_types or bool(received_types & wanted_types)
