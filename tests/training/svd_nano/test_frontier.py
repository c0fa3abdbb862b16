"""The plot of samplers: the committed one is that of the page's table, and rows of the evaluation are read as well."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from error_checks import raises
from svd_stages.svd_core.errors import SettingError
from svd_stages.svd_core.sampler_comparison import Candidate
from svd_stages.training.svd_nano.frontier import TITLE, Point, draw_frontier, main, read_points

DOCS = Path(__file__).parents[3] / "docs"
POINTS = [
    Point(Candidate("euler", "karras", 25), 50, 0.01),
    Point(Candidate("euler", "karras", 12), 24, 0.1),
    Point(Candidate("heun", "karras", 13), 50, 1.0),
]


def test_the_plot_of_the_documentation_is_that_of_its_table(tmp_path):
    assert main([str(DOCS / "development" / "svd-nano.md"), str(tmp_path / "plot.svg")]) == 0
    assert (tmp_path / "plot.svg").read_text() == (DOCS / "images" / "samplers.svg").read_text()


def test_rows_of_the_page_and_of_the_evaluation_are_read():
    page = "| euler, karras, 25 (`--preset reference`) | 50 | 0.0100 | 45.8 dB |\n| euler, karras, 12 | 24 | 0.1 | x |"
    evaluation = (
        "| euler, karras, 25 | compare | 50; 11.06 s; 0.0100, 46.7 dB; 24 dB |\n"
        "| euler, karras, 12 | compare | 24; 5.00 s; 0.1000, 46.7 dB; 24 dB |\n"
        "| euler, karras, 25, step cache 3 | compare | 50 (32); 6.36 s; 0.0210, 47.2 dB |\n"
        "| euler, karras, 9, guidance in (0.28, 5.42] | compare | 14; 2.99 s; 0.0483, 40.9 dB |\n"
    )
    assert read_points(page) == read_points(evaluation) == POINTS[:2]
    with raises(SettingError, "setting", "euler"):
        read_points("no table")


def test_errors_are_drawn_on_a_logarithmic_axis_and_presets_have_a_ring():
    root = ElementTree.fromstring(draw_frontier(POINTS, TITLE))
    circles = [each for each in root.iter() if each.tag.endswith("circle")]
    drawn = [(float(each.get("cx")), float(each.get("cy"))) for each in circles if each.get("r") == "4"]
    few, many, other = drawn[0], drawn[1], drawn[3]  # drawn[2]: the legend's
    assert many[1] - few[1] == pytest.approx(few[1] - other[1], abs=0.2)  # 0.01, 0.1 and 1
    assert few[0] < many[0] == other[0]
    assert [float(each.get("cx")) for each in circles if each.get("r") == "8"] == [many[0]]
    assert re.findall(r">(\d+)</text>", draw_frontier(POINTS[:1], TITLE)).count("25") == 1
