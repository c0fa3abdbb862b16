"""Test ComfyUI's page with our extension in Chromium: drawings, hints, presets, the animated preview, templates.

Needs, besides COMFYUI_PATH and COMFYUI_PYTHON, CHROMIUM (the browser's path) and the package playwright.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from comfyui.test_inside_comfyui import make_base
from svd_stages.nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

pytestmark = [pytest.mark.comfyui, pytest.mark.slow]

FOLDER = "ComfyUI-SVD-Stages"
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
SETTINGS = {
    "Comfy.TutorialCompleted": True,
    "Comfy.Minimap.Visible": False,
    "Comfy.VueNodes.Enabled": bool(os.environ.get("COMFYUI_NODES_2")),
}
WORKFLOWS = Path(__file__).parents[2] / "example_workflows"
TEMPLATES = sorted(file.stem for file in WORKFLOWS.glob("*.json"))
FOR_PUBLISHED = [name for name in TEMPLATES if '["svd_xt.safetensors"' in (WORKFLOWS / f"{name}.json").read_text()]
TIMEOUT = 120_000  # milliseconds
RUN_TIMEOUT = 300_000

READY = "Boolean(window.app?.graph && window.LiteGraph?.registered_node_types?.SVDGuidance)"
HELPERS = """
window.svd = {
  make(type) {
    const node = LiteGraph.createNode(type);
    app.graph.add(node);
    return node;
  },
  one: (type) => app.graph.nodes.find((node) => node.comfyClass === type),
  set(node, name, value) {
    const widget = node.widgets.find((each) => each.name === name);
    widget.value = value;
    widget.callback?.(value);
  },
  get: (node, name) => node.widgets.find((each) => each.name === name)?.value,
  element: (node, name) => node.widgets.find((each) => each.name === name)?.element,
  settled: () => new Promise((done) => setTimeout(done, 100)),
};
"""


@pytest.fixture(scope="module")
def base(comfyui, tmp_path_factory) -> Path:
    """Return a base directory with the pack and settings that suppress the welcome dialog."""
    if not os.environ.get("CHROMIUM") or importlib.util.find_spec("playwright") is None:
        pytest.skip("needs CHROMIUM, the path of a Chromium, and the package playwright to drive it")
    base = make_base(tmp_path_factory.mktemp("page_base"), FOLDER)
    (base / "user" / "default").mkdir(parents=True)
    (base / "user" / "default" / "comfy.settings.json").write_text(json.dumps(SETTINGS))
    return base


@pytest.fixture(scope="module")
def server(comfyui, base):
    """Yield a ComfyUI server with the pack."""
    with comfyui.serve(base) as server:
        yield server


@pytest.fixture(scope="module")
def opened(server) -> Iterator[Any]:
    """Yield the page, opened once for all tests, and its console errors."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=os.environ["CHROMIUM"], args=list(FLAGS))
        page = browser.new_page(viewport={"width": 1700, "height": 950})
        errors: list[str] = []

        def on_console(message: Any) -> None:
            if message.type == "error":
                errors.append(f"{message.text} {message.location}")

        page.on("console", on_console)
        page.on("pageerror", lambda error: errors.append(f"{error}\n{error.stack}"))
        page.goto(server.url)
        wait_until_ready(page)
        yield page, errors
        browser.close()


def wait_until_ready(page) -> None:
    page.wait_for_function(READY, timeout=TIMEOUT)
    page.wait_for_timeout(1500)
    page.keyboard.press("Escape")
    page.evaluate(HELPERS)


@pytest.fixture
def page(opened) -> Iterator[Any]:
    """Yield the page with an empty graph. Console errors about our files fail the test."""
    page, errors = opened
    page.evaluate("app.graph.clear()")
    yield page
    ours = [error for error in errors if FOLDER in error or "svd_stages" in error]
    errors.clear()
    assert ours == []


def dots(page, node: str, name: str) -> int:
    return page.evaluate(f"svd.element(svd.one('{node}'), '{name}').querySelectorAll('circle').length")


def points(page, node: str, name: str) -> str:
    return page.evaluate(f"svd.element(svd.one('{node}'), '{name}').querySelector('polyline').getAttribute('points')")


def test_the_guidance_curve_is_drawn_and_follows_its_widgets(page):
    page.evaluate("void svd.make('SVDGuidance')")
    assert dots(page, "SVDGuidance", "guidance_curve") == 25
    before = points(page, "SVDGuidance", "guidance_curve")
    page.evaluate("svd.set(svd.one('SVDGuidance'), 'shape', 'triangle')")
    assert points(page, "SVDGuidance", "guidance_curve") != before


def test_the_schedule_has_a_dot_for_each_step(page):
    page.evaluate("void svd.make('SVDSigmas')")
    page.evaluate("svd.set(svd.one('SVDSigmas'), 'steps', 7)")
    assert dots(page, "SVDSigmas", "sigma_schedule") == 7


def test_a_wired_value_is_not_guessed(page):
    page.evaluate(
        """async () => {
            const [steps, sigmas] = [svd.make("PrimitiveInt"), svd.make("SVDSigmas")];
            steps.connect(0, sigmas, sigmas.inputs.findIndex((input) => input.name === "steps"));
            await svd.settled();
        }"""
    )
    assert page.evaluate("svd.element(svd.one('SVDSigmas'), 'sigma_schedule').textContent") == "linked values are used"


def test_drawings_and_hints_are_not_saved(page):
    saved = page.evaluate("['SVDGuidance', 'SVDSigmas', 'SVDResizeImage'].map((type) => svd.make(type).serialize())")
    values = [each["widgets_values"] for each in saved]
    assert values == [["linear", 1, 3], [25, "karras", 0.002, 700, 7], [1024, 576, "stretch"]]


def test_a_hint_comes_and_goes_with_the_value(page):
    page.evaluate("void svd.make('SVDMicroConditioning')")
    hint = "svd.element(svd.one('SVDMicroConditioning'), 'hints').textContent"
    assert page.evaluate(hint) == ""
    page.evaluate("svd.set(svd.one('SVDMicroConditioning'), 'fps', 60)")
    assert "5 to 30" in page.evaluate(hint)
    page.evaluate("svd.set(svd.one('SVDMicroConditioning'), 'fps', 7)")
    assert page.evaluate(hint) == ""


def load_template(page, name: str) -> None:
    page.evaluate(
        """async ([folder, name]) => {
            await app.loadGraphData(await (await fetch(`/api/workflow_templates/${folder}/${name}.json`)).json());
            await svd.settled();
        }""",
        [FOLDER, name],
    )


def press_run(page) -> None:
    """Close dialogs that the page opened by itself, and press Run."""
    for _ in range(10):
        if not page.locator(".p-dialog-mask").count():
            break
        page.keyboard.press("Escape")
        page.wait_for_timeout(500)
    page.get_by_role("button", name="Run", exact=True).click()


def test_the_built_in_model_is_not_measured_by_the_published_ones(page):
    load_template(page, "quickstart_nano")
    assert page.evaluate("svd.element(svd.one('SVDResizeImage'), 'hints').textContent") == ""
    page.evaluate("svd.set(svd.one('SVDCheckpointLoader'), 'checkpoint', 'svd_xt.safetensors')")
    assert "1024x576" in page.evaluate("svd.element(svd.one('SVDResizeImage'), 'hints').textContent")


def test_presets_set_every_node_that_is_wired_to_the_loader(page):
    load_template(page, "image_to_video")
    page.evaluate(
        """() => {
            const options = [];
            svd.one("SVDCheckpointLoader").getExtraMenuOptions(app.canvas, options);
            const presets = options.find((each) => each?.content === "SVD presets").submenu.options;
            const preset = (word) => presets.find((each) => each?.content.startsWith(word));
            for (const word of ["SVD: 14", "512 x 320"]) preset(word).callback();
        }"""
    )
    values = {
        ("SVDImageConditioning", "video_frames"): 14,
        ("SVDEulerSampler", "min_guidance"): 1.0,
        ("SVDEulerSampler", "max_guidance"): 2.5,
        ("SVDResizeImage", "width"): 512,
        ("SVDResizeImage", "height"): 320,
    }
    settings = {key: page.evaluate("([type, name]) => svd.get(svd.one(type), name)", list(key)) for key in values}
    assert settings == values


def test_the_quickstart_runs_with_a_moving_preview_and_shows_its_video(page):
    load_template(page, "quickstart_nano")
    page.evaluate("svd.set(svd.one('SVDEulerSampler'), 'steps', 3)")
    before = page.evaluate("[...svd.one('SVDEulerSampler').size]")
    page.evaluate(
        """() => {
            [window.pictures, window.saved] = [new Set(), new Set()];
            window.looking = setInterval(() => {
                const canvas = svd.element(svd.one("SVDEulerSampler"), "svd_stages_preview");
                if (canvas) window.pictures.add(canvas.toDataURL());
                window.saved.add(svd.one("SVDEulerSampler").serialize().size.join());
            }, 50);
        }"""
    )
    press_run(page)
    page.wait_for_function("window.pictures.size > 6", timeout=RUN_TIMEOUT)
    page.wait_for_function("document.querySelector('video')?.readyState > 1", timeout=RUN_TIMEOUT)
    assert page.evaluate("svd.element(svd.one('SVDEulerSampler'), 'svd_stages_preview')") is None
    assert page.evaluate("[...svd.one('SVDEulerSampler').size]") == before
    assert page.evaluate("[...window.saved]") == [",".join(f"{side:g}" for side in before)]
    page.evaluate("clearInterval(window.looking)")
    width, height = page.evaluate(
        "(({videoWidth, videoHeight}) => [videoWidth, videoHeight])(document.querySelector('video'))"
    )
    assert (width, height) == (128, 128)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_opens_with_all_its_nodes_and_links(page, name):
    load_template(page, name)
    missing = page.evaluate("app.graph.nodes.filter((node) => !LiteGraph.registered_node_types[node.type]).length")
    assert missing == 0
    loose = page.evaluate(
        """app.graph.nodes.filter((node) => NODES.includes(node.comfyClass)).flatMap((node) => node.inputs)
            .filter((input) => !input.widget && input.link == null).map((input) => input.name)""".replace(
            "NODES", json.dumps(list(NODE_CLASS_MAPPINGS))
        )
    )
    assert set(loose) <= {"sigmas", "guidance"}


def test_reordered_stages_runs_and_shows_two_videos(page):
    load_template(page, "reordered_stages")
    page.evaluate(
        """app.graph.nodes.forEach((node) => {
            if (node.comfyClass === "SVDEulerSampler") svd.set(node, "steps", 2);
            if (node.comfyClass === "SVDImageConditioning") svd.set(node, "video_frames", 4);
        })"""
    )
    page.evaluate("app.canvas.ds.scale = 0.4")  # a node out of sight shows nothing
    press_run(page)
    page.wait_for_function(
        "[...document.querySelectorAll('video')].filter((each) => each.readyState > 1).length === 2",
        timeout=RUN_TIMEOUT,
    )
    widths = page.evaluate("[...document.querySelectorAll('video')].map((each) => each.videoWidth)")
    assert sorted(widths) == [128, 192]


@pytest.mark.parametrize("name", FOR_PUBLISHED)
def test_a_template_for_a_published_model_runs_and_shows_its_video(page, base, random_checkpoints, name):
    model = base / "models" / "checkpoints" / "svd_xt.safetensors"
    model.parent.mkdir(parents=True, exist_ok=True)
    if not model.exists():
        model.symlink_to(random_checkpoints / "without.safetensors")
    load_template(page, name)
    page.evaluate(
        """() => {
            const small = {width: 128, height: 64, steps: 2, video_frames: 3};
            for (const node of app.graph.nodes)
                for (const widget of node.widgets ?? [])
                    if (widget.name in small) svd.set(node, widget.name, small[widget.name]);
            app.canvas.ds.scale = 0.4;  // a node out of sight shows nothing
        }"""
    )
    press_run(page)
    page.wait_for_function("document.querySelector('video')?.readyState > 1", timeout=RUN_TIMEOUT)
    video = page.evaluate("(({videoWidth, videoHeight}) => [videoWidth, videoHeight])(document.querySelector('video'))")
    assert video == [128, 64]


def test_the_nodes_speak_chinese(page, server):
    server.post("/settings/Comfy.Locale", "zh")
    try:
        page.reload()
        wait_until_ready(page)
        titles = page.evaluate(
            f"{json.dumps(list(NODE_CLASS_MAPPINGS))}.map((type) => LiteGraph.createNode(type).title)"
        )
    finally:
        server.post("/settings/Comfy.Locale", "en")
    translated = json.loads((Path(__file__).parents[2] / "locales" / "zh" / "nodeDefs.json").read_text("utf-8"))
    assert titles == [translated[name]["display_name"] for name in NODE_CLASS_MAPPINGS]
    assert not set(titles) & set(NODE_DISPLAY_NAME_MAPPINGS.values())
