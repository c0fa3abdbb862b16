"""Rules of all node declarations and help pages.

tests/data/nodes.json records ids, inputs, outputs, types, defaults and texts. Saved graphs hold widget values by
position and links by slot: a new widget may only be added at the end of the optional inputs.
"""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest
from svd_stages.headless.graph import object_info
from svd_stages.nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
from svd_stages.nodes.compat import COMPAT_CLASS_MAPPINGS, COMPAT_DISPLAY_NAME_MAPPINGS
from svd_stages.svd_core.checkpoints.library import ModelLibrary
from svd_stages.svd_core.runtime.runtime import LocalRuntime, use_runtime

ROOT = Path(__file__).parents[2]
SNAPSHOT = ROOT / "tests" / "data" / "nodes.json"
NODES: dict[str, Any] = {**NODE_CLASS_MAPPINGS, **COMPAT_CLASS_MAPPINGS}
DISPLAY_NAMES = {**NODE_DISPLAY_NAME_MAPPINGS, **COMPAT_DISPLAY_NAME_MAPPINGS}

OURS = pytest.mark.parametrize("class_type", list(NODE_CLASS_MAPPINGS))
ALL = pytest.mark.parametrize("class_type", list(NODES))

SEED = 2**64 - 1


@pytest.fixture(autouse=True)
def _no_models_and_no_images(tmp_path: Path):
    """Make combos equal on every machine."""
    with use_runtime(LocalRuntime(library=ModelLibrary(), input_folder=tmp_path)):
        yield


def declared(class_type: str, *groups: str) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Return name -> (type, options) of the inputs of these groups, by default required and optional, in order."""
    groups_of_class = NODES[class_type].INPUT_TYPES()
    return {
        name: (spec[0], spec[1] if len(spec) > 1 else {})
        for group in groups or ("required", "optional")
        for name, spec in groups_of_class.get(group, {}).items()
    }


def parameters(class_type: str) -> dict[str, inspect.Parameter]:
    """Return the parameters of the node's function without self."""
    signature = inspect.signature(getattr(NODES[class_type], NODES[class_type].FUNCTION))
    return {name: parameter for name, parameter in signature.parameters.items() if name != "self"}


@OURS
def test_inputs_are_the_functions_arguments_in_the_same_order(class_type):
    inputs = declared(class_type, "required", "optional")
    hidden = NODES[class_type].INPUT_TYPES().get("hidden", {})
    assert [*inputs, *hidden] == list(parameters(class_type))


@ALL
def test_the_function_takes_exactly_the_declared_inputs(class_type):
    hidden = NODES[class_type].INPUT_TYPES().get("hidden", {})
    assert sorted([*declared(class_type), *hidden]) == sorted(parameters(class_type))


@ALL
def test_optional_inputs_have_a_default_in_the_function(class_type):
    may_be_missing = [*declared(class_type, "optional"), *NODES[class_type].INPUT_TYPES().get("hidden", {})]
    arguments = parameters(class_type)
    assert [name for name in may_be_missing if arguments[name].default is inspect.Parameter.empty] == []


@ALL
def test_every_input_has_a_tooltip(class_type):
    tooltips = {name: options.get("tooltip", "") for name, (_, options) in declared(class_type).items()}
    assert [name for name, tooltip in tooltips.items() if len(tooltip.strip()) < 5] == []


@ALL
def test_every_number_has_a_default_inside_its_range(class_type):
    for name, (kind, options) in declared(class_type).items():
        if kind in ("INT", "FLOAT"):
            assert options["min"] <= options.get("default", 0) <= options["max"], name
            assert "default" in options or class_type.startswith("Primitive"), name
            assert all(type(options[key]) in ((int,) if kind == "INT" else (int, float)) for key in ("min", "max")), (
                name
            )


@OURS
def test_every_number_has_a_step_that_reaches_its_default(class_type):
    for name, (kind, options) in declared(class_type).items():
        if kind == "INT" and name != "seed":
            assert (options["default"] - options["min"]) % options["step"] == 0, name
        if kind == "FLOAT":
            assert 0 < options["step"] < options["max"] - options["min"], name


@OURS
def test_no_float_is_rounded_by_the_page(class_type):
    rounding = {name: options.get("round") for name, (kind, options) in declared(class_type).items() if kind == "FLOAT"}
    assert all(value is False for value in rounding.values()), rounding


@ALL
def test_a_combo_offers_its_default(class_type):
    for name, (kind, options) in declared(class_type).items():
        if isinstance(kind, list) and "default" in options:
            assert options["default"] in kind, name


@OURS
def test_seeds_have_the_pages_control_and_all_of_64_bits(class_type):
    for name, (kind, options) in declared(class_type).items():
        assert ("seed" in name) == bool(options.get("control_after_generate")), name
        if "seed" in name:
            assert (kind, options["min"], options["max"]) == ("INT", 0, SEED)


@ALL
def test_every_node_has_a_description_a_category_and_a_function(class_type):
    node = NODES[class_type]
    assert len(node.DESCRIPTION.strip()) > 15
    assert node.CATEGORY
    assert callable(getattr(node, node.FUNCTION))


@OURS
def test_our_nodes_share_a_menu(class_type):
    assert NODES[class_type].CATEGORY.split("/")[0] == "SVD Stages"


@ALL
def test_every_output_has_a_name_and_a_tooltip(class_type):
    node = NODES[class_type]
    count = len(node.RETURN_TYPES)
    assert len(getattr(node, "RETURN_NAMES", node.RETURN_TYPES)) == count
    assert len(getattr(node, "OUTPUT_IS_LIST", [False] * count)) == count
    tooltips = getattr(node, "OUTPUT_TOOLTIPS", ())
    assert len(tooltips) == count
    assert all(len(tooltip.strip()) > 4 for tooltip in tooltips)


def test_only_decoding_nodes_output_lists():
    lists = {class_type: getattr(node, "OUTPUT_IS_LIST", ()) for class_type, node in NODES.items()}
    assert {key: value for key, value in lists.items() if any(value)} == {
        "SVDTemporalVAEDecode": (True,),
        "SVDImageToVideo": (True,),
    }


@ALL
def test_validation_names_only_inputs_of_the_node(class_type):
    check = getattr(NODES[class_type], "VALIDATE_INPUTS", None)
    names = list(inspect.signature(check).parameters) if check else []
    assert set(names) <= set(declared(class_type))


@ALL
def test_a_node_has_no_state(class_type):
    assert vars(NODES[class_type]()) == {}


def test_every_node_has_a_display_name_of_its_own():
    assert list(NODE_DISPLAY_NAME_MAPPINGS) == list(NODE_CLASS_MAPPINGS)
    assert list(COMPAT_DISPLAY_NAME_MAPPINGS) == list(COMPAT_CLASS_MAPPINGS)
    assert len(set(DISPLAY_NAMES.values())) == len(NODES)


def test_compat_nodes_are_not_registered_in_comfyui():
    assert set(NODE_CLASS_MAPPINGS).isdisjoint(COMPAT_CLASS_MAPPINGS)


def test_our_ids_begin_with_svd():
    assert all(class_type.startswith("SVD") for class_type in NODE_CLASS_MAPPINGS)


def test_declarations_equal_the_recorded_ones():
    info = object_info(NODES, DISPLAY_NAMES)
    now = json.dumps(info, indent=1, ensure_ascii=False) + "\n"
    if not SNAPSHOT.exists():
        SNAPSHOT.write_text(now, encoding="utf-8")
        pytest.fail(f"{SNAPSHOT.name} did not exist and was written. Review its diff, commit it, run again.")
    recorded = json.loads(SNAPSHOT.read_text(encoding="utf-8"))
    changed = [key for key in {**recorded, **info} if recorded.get(key) != info.get(key)]
    assert changed == [], (
        f"the declarations of {', '.join(changed)} differ from tests/data/nodes.json, and saved graphs depend on them. "
        f"If that is intended (a new node, a tooltip, a widget at the end of optional), delete the file and run this "
        f"test twice: the first run writes it."
    )
    assert list(recorded) == list(info)


ENTRY = re.compile(r"- \*\*`(?P<name>\w+)`\*\* \((?P<facts>[^)]*)\): (?P<meaning>.+)")
"""A line of a help page's lists: name, facts in parentheses ("type; default; range"), meaning."""
LANGUAGES = {"en": ("default ", " to "), "zh": ("默认 ", " 到 ")}
"""Words of a page before a default and between the ends of a range."""
PAGES = [(class_type, language) for class_type in NODE_CLASS_MAPPINGS for language in LANGUAGES]
EVERY_PAGE = pytest.mark.parametrize(("class_type", "language"), PAGES)


def page_entries(class_type: str, language: str = "en") -> dict[str, tuple[list[str], str]]:
    """Return the lists of the node's page, inputs and outputs: name -> facts, meaning."""
    matches = ENTRY.finditer(help_page(class_type, language).read_text(encoding="utf-8"))
    entries = [(match["name"], (match["facts"].split("; "), match["meaning"])) for match in matches]
    inputs = len(declared(class_type))
    return {f"in {name}": entry for name, entry in entries[:inputs]} | {
        f"out {name}": entry for name, entry in entries[inputs:]
    }


def help_page(class_type: str, language: str = "en") -> Path:
    docs = ROOT / "web" / "docs"
    return docs / f"{class_type}.md" if language == "en" else docs / class_type / f"{language}.md"


def test_help_pages_are_those_of_our_nodes():
    docs = ROOT / "web" / "docs"
    pages = {page.relative_to(docs) for page in docs.rglob("*.md")}
    assert pages == {help_page(*page).relative_to(docs) for page in PAGES}


@EVERY_PAGE
def test_the_images_of_a_help_page_exist(class_type, language):
    images, english = (
        re.findall(r"!\[[^]]+\]\(([^)]+)\)", help_page(class_type, each).read_text(encoding="utf-8"))
        for each in (language, "en")
    )
    assert images == english
    assert [name for name in images if not (ROOT / "web" / "docs" / name).is_file()] == []


@OURS
def test_a_help_page_is_headed_by_the_display_name(class_type):
    assert help_page(class_type).read_text(encoding="utf-8").startswith(f"# {DISPLAY_NAMES[class_type]}\n")


@EVERY_PAGE
def test_a_help_page_lists_the_inputs_with_their_types_defaults_and_ranges(class_type, language):
    default_is, to = LANGUAGES[language]
    entries = page_entries(class_type, language)
    assert [name for name in entries if name.startswith("in ")] == [f"in {name}" for name in declared(class_type)]
    for name, (kind, options) in declared(class_type).items():
        facts, meaning = entries[f"in {name}"]
        assert len(meaning) > 3, name
        if not isinstance(kind, list):
            assert facts[0] == f"`{kind}`", name
        if kind in ("INT", "FLOAT"):
            assert facts[1] == f"{default_is}{options['default']}", name
            assert facts[2].split(",")[0] == f"{options['min']}{to}{options['max']}", name
        if isinstance(kind, list) and name != "checkpoint":
            assert facts[1] == f"{default_is}`{options['default']}`", name
            assert facts[2] == ", ".join(f"`{choice}`" for choice in kind), name


@EVERY_PAGE
def test_a_help_page_lists_the_outputs_with_their_types(class_type, language):
    node = NODES[class_type]
    entries = page_entries(class_type, language)
    outputs = [(name[4:], facts[0].strip("`")) for name, (facts, _) in entries.items() if name.startswith("out ")]
    assert outputs == list(zip(node.RETURN_NAMES, node.RETURN_TYPES, strict=True))


@OURS
def test_a_help_page_has_a_tip_and_names_what_the_node_equals(class_type):
    text = help_page(class_type).read_text(encoding="utf-8")
    assert text.count("\n**Tip.** ") == 1
    assert text.count("\n**Equals** ") == 1
