"""What a node class declares, read in one place: inputs in declared order, hidden inputs, options of a combo, outputs.

Node classes have ComfyUI's V1 form (INPUT_TYPES, RETURN_TYPES, FUNCTION, ...) and come in as an argument everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

CONVERTED = {"INT": int, "FLOAT": float, "STRING": str, "BOOLEAN": bool}
"""The types whose constants ComfyUI converts, and by what."""


PAGE_WIDGETS = {
    "AUDIO_RECORD", "BOUNDING_BOX", "BOUNDING_BOXES", "CHART", "COLOR", "COLORS", "CURVE", "GALLERIA", "IMAGECOMPARE",
    "MARKDOWN", "PAINTER", "RANGE", "TEXTAREA",
}  # fmt: skip
"""Types in capitals that the page makes widgets of, beside the converted ones and combos."""


@dataclass(frozen=True)
class DeclaredInput:
    """One input of a class: `kind` is a type name, a union "A,B", or the list of a combo's options."""

    name: str
    required: bool
    kind: Any
    options: Mapping[str, Any]

    @property
    def config(self) -> tuple[Any, Mapping[str, Any]]:
        """What ComfyUI's errors carry as `input_config`."""
        return (self.kind, self.options)

    @property
    def is_seed(self) -> bool:
        """Whether it takes a seed: a whole number by that name, which the page may change after a run."""
        return self.kind == "INT" and "seed" in self.name

    @property
    def choices(self) -> list[Any] | None:
        """The values that a combo offers; None when this is no combo, or its list is made elsewhere."""
        if isinstance(self.kind, (list, tuple)):
            return list(self.kind)
        offered = self.options.get("options") if self.kind == "COMBO" else None
        return list(offered) if isinstance(offered, (list, tuple)) else None

    @property
    def is_widget(self) -> bool:
        """Whether ComfyUI's page shows a widget for it, and saves its value by position."""
        if self.options.get("forceInput") or self.options.get("defaultInput"):
            return False
        if isinstance(self.kind, (list, tuple)) or self.kind in {"COMBO", *CONVERTED, *PAGE_WIDGETS}:
            return True
        return isinstance(self.kind, str) and self.kind not in ("", "*") and self.kind != self.kind.upper()


@dataclass(frozen=True)
class Declaration:
    """What one class declares. `inputs` holds the required ones first, each group in declared order."""

    class_type: str
    node_class: type
    inputs: Mapping[str, DeclaredInput]
    hidden: Mapping[str, Any]


class Declarations(dict[str, Declaration]):
    """Declarations by class type, each read at first use: INPUT_TYPES may list folders, so it is asked once a run."""

    def __init__(self, nodes: Mapping[str, type]):
        super().__init__()
        self.nodes = nodes

    def __missing__(self, class_type: str) -> Declaration:
        self[class_type] = read_declaration(class_type, self.nodes[class_type])
        return self[class_type]


def read_declaration(class_type: str, node_class: Any) -> Declaration:
    """Ask `node_class` what it declares. Raises whatever INPUT_TYPES raises."""
    declared = node_class.INPUT_TYPES()
    inputs = {}
    for group in ("required", "optional"):
        for name, spec in declared.get(group, {}).items():
            if name not in inputs:
                options = spec[1] if len(spec) > 1 and isinstance(spec[1], Mapping) else {}
                inputs[name] = DeclaredInput(name, group == "required", spec[0], options)
    return Declaration(class_type, node_class, inputs, dict(declared.get("hidden", {})))


def return_types(node_class: Any) -> list[Any]:
    """The types of the outputs, by slot."""
    return list(getattr(node_class, "RETURN_TYPES", ()))


def is_output(node_class: Any) -> bool:
    """Whether a graph runs for this node's sake."""
    return getattr(node_class, "OUTPUT_NODE", False) is True


def types_match(received: Any, wanted: Any) -> bool:
    """Whether an output of type `received` may go into an input of type `wanted`, by the rule of ComfyUI 0.10.

    Equal types match, asked through `!=` because node packs override it; so do unions ("A,B") that share a member,
    "*" on either side, and the list of a combo into "COMBO".
    """
    if not received != wanted:  # noqa: SIM202
        return True
    if isinstance(received, (list, tuple)) and wanted == "COMBO":
        return True
    if not isinstance(received, str) or not isinstance(wanted, str):
        return False
    given = {part.strip() for part in received.split(",")}
    taken = {part.strip() for part in wanted.split(",")}
    return "*" in given or "*" in taken or bool(given & taken)
