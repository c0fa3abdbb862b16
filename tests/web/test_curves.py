"""The page's curves, web/lib/curves.js run by Node.js, equal those of svd_core."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from svd_stages.svd_core.diffusion.guidance import SHAPES, GuidanceCurve
from svd_stages.svd_core.diffusion.schedules import SCHEDULES, make_sigmas

WEB = Path(__file__).parents[2] / "web"
NODE = shutil.which("node")

pytestmark = pytest.mark.skipif(NODE is None, reason="needs Node.js to run the page's modules")


def evaluate(expression: str) -> list[float]:
    """Evaluate an expression of the module `curves`."""
    module = (WEB / "lib" / "curves.js").as_uri()
    # imported as a data URL: without a package.json Node.js does not treat a .js file as an ES module
    program = f"""
        const text = require("fs").readFileSync(new URL({json.dumps(module)}), "utf8");
        import("data:text/javascript," + encodeURIComponent(text)).then(
            (curves) => console.log(JSON.stringify({expression})));
    """
    process = subprocess.run([str(NODE), "-e", program], capture_output=True, text=True, timeout=60, check=False)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


@pytest.mark.parametrize("frames", [1, 2, 14, 25])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_drawn_guidance_is_the_computed_one(shape, frames):
    drawn = evaluate(f"curves.guidanceWeights({json.dumps(shape)}, 1.5, 3, {frames})")
    assert torch.allclose(
        torch.tensor(drawn, dtype=torch.float32), GuidanceCurve(shape, 1.5, 3.0).weights(frames), rtol=1e-6
    )


@pytest.mark.parametrize("steps", [1, 2, 7, 25])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_drawn_schedule_is_the_computed_one(schedule, steps):
    drawn = evaluate(f"curves.noiseLevels({json.dumps(schedule)}, {steps}, 0.01, 500, 5)")
    assert torch.allclose(
        torch.tensor(drawn, dtype=torch.float32), make_sigmas(schedule, steps, 0.01, 500.0, 5.0)[:-1], rtol=1e-6
    )
