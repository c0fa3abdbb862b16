"""Translations are complete: every name and tooltip has one, and none is superfluous."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from svd_stages.nodes import NODE_CLASS_MAPPINGS

LOCALES = Path(__file__).parents[2] / "locales"
LANGUAGES = sorted(folder.name for folder in LOCALES.iterdir())
"""Languages besides English, which is in the nodes."""


def translations(language: str) -> dict:
    return json.loads((LOCALES / language / "nodeDefs.json").read_text(encoding="utf-8"))


def test_there_is_chinese():
    assert "zh" in LANGUAGES


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_translated_nodes_are_our_nodes_in_their_order(language):
    assert list(translations(language)) == list(NODE_CLASS_MAPPINGS)


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("class_type", list(NODE_CLASS_MAPPINGS))
def test_every_input_and_output_of_a_node_is_translated(language, class_type):
    translated, node = translations(language)[class_type], NODE_CLASS_MAPPINGS[class_type]
    groups = node.INPUT_TYPES()
    names = [name for group in ("required", "optional") for name in groups.get(group, {})]
    assert list(translated.get("inputs", {})) == names
    assert list(translated["outputs"]) == [str(slot) for slot in range(len(node.RETURN_TYPES))]
    entries = [*translated.get("inputs", {}).values(), *translated["outputs"].values()]
    assert all(entry["name"].strip() and entry["tooltip"].strip() for entry in entries)
    assert translated["display_name"].strip() and translated["description"].strip()


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_translation_keeps_the_values_of_a_combo(language):
    for class_type, node in NODE_CLASS_MAPPINGS.items():
        for name, (kind, options) in node.INPUT_TYPES()["required"].items():
            if isinstance(kind, list) and name not in ("checkpoint", "preprocess"):
                translated = translations(language)[class_type]["inputs"][name]["tooltip"]
                choices = [choice for choice in kind if choice in options["tooltip"]]
                assert [choice for choice in choices if choice not in translated] == [], (class_type, name)


def test_texts_of_the_scripts_are_translated():
    web = LOCALES.parent / "web"
    scripts = "".join(script.read_text(encoding="utf-8") for script in web.rglob("*.js"))
    texts = set(re.findall(r'translate\("([^"]+)"\)', scripts))
    presets = re.findall(r'^  "([^"]+)": [\[{]', (web / "presets.js").read_text(encoding="utf-8"), re.MULTILINE)
    table = (web / "lib" / "translations.js").read_text(encoding="utf-8").split("const CHINESE = {")[1].split("};")[0]
    translated = re.findall(r'^  "?([^":]+(?:: [^":]+)?)"?: "[^"]*[\u4e00-\u9fff]', table, re.MULTILINE)
    assert len(texts) > 10 and len(presets) > 5
    assert sorted(translated) == sorted({*texts, *presets})
