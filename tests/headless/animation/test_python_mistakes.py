"""Mistakes in Python: `animate` answers with a short sentence that names the argument, its value and the fix."""

from __future__ import annotations

import numpy as np
import pytest
import svd_stages
from error_checks import check_facts
from svd_stages.headless.engines.setting_checks import check_settings
from svd_stages.svd_core.errors import CheckpointError, ImageError, SettingError
from svd_stages.svd_core.pipeline import VideoSettings

ARRAY = np.zeros((64, 64, 3), np.float32)
LONGEST = 200

MISTAKES = [
    ({"frames": 14}, TypeError, "'frames'", "'num_frames'"),
    ({"num_inference_steps": 3}, TypeError, "'num_inference_steps'", "'steps'"),
    ({"widht": 64}, TypeError, "'widht'", "'width'"),
    ({"generator": 1}, TypeError, "'generator'", "help(svd_stages.animate)"),
    ({"seed": [1, 2]}, TypeError, "`seed`", "[1, 2]", "one integer"),
    ({"fps": None}, TypeError, "`fps`", "one integer"),
    ({"model": None}, TypeError, "`model`", "one name"),
    ({"steps": "x"}, SettingError, "`steps`", "x", "integer"),
    ({"steps": 0}, SettingError, "`steps`", 0, "1 to 10000"),
    ({"steps": 2.5}, SettingError, "`steps`", 2.5, "integer"),
    ({"seed": -1}, SettingError, "`seed`", -1, "0 to"),
    ({"max_guidance": "high"}, SettingError, "`max_guidance`", "high", "number"),
    ({"fit": "foo"}, SettingError, "`fit`", "foo", "crop"),
    ({"decode_mode": "windowd"}, SettingError, "`decode_mode`", "windowd", '"windowed"'),
    ({"width": 100}, SettingError, "`width`", 100, 64),
    ({"vram": "4X"}, SettingError, "`vram`", "4X", "6G"),
    ({"vram": 6}, SettingError, "`vram`", '"6"', "6G"),
    ({"vram": "100K"}, SettingError, "`vram`", "100K", "100G"),
    ({"device": "gpu"}, SettingError, '"gpu"', "cuda"),
    ({"output_type": "jpg"}, SettingError, "`output_type`", "jpg", "pil"),
    ({"model": "svd-xt"}, CheckpointError, '"svd-xt"', "svd-stages download svd-xt"),
    ({"model": "svd-nana"}, CheckpointError, '"svd-nana"', '"svd-nano"', "`models`"),
    ({"image": "nowhere.png"}, ImageError, '"nowhere.png"', "path"),
    ({"image": None}, ImageError, "NoneType", "file"),
    ({"image": ARRAY.astype(np.uint16)}, ImageError, "uint16", "uint8"),
    ({"image": ARRAY[..., 0]}, ImageError, "(64, 64)", "(batch, height, width, 3)"),
    ({"image": ARRAY + 200}, ImageError, 200, "[0, 1]"),
]


@pytest.mark.parametrize(("arguments", "kind", "facts"), [(each[0], each[1], each[2:]) for each in MISTAKES], ids=str)
def test_a_mistake_gets_one_short_sentence_with_the_argument_and_the_fix(arguments, kind, facts):
    with pytest.raises(kind) as caught:
        svd_stages.animate(**{"image": ARRAY, **arguments})
    check_facts(str(caught.value), *facts)
    assert len(str(caught.value)) <= LONGEST
    assert " --" not in str(caught.value) and "node" not in str(caught.value)


def test_a_size_of_memory_may_be_text():
    frames = svd_stages.animate(ARRAY, vram="4G", steps=1, width=64, height=64, num_frames=1)
    assert frames.shape == (1, 1, 64, 64, 3)


def test_text_that_is_a_number_becomes_one():
    settings = check_settings(VideoSettings(steps="4", width="128"))  # type: ignore[arg-type]
    assert (settings.steps, settings.width, settings.num_frames) == (4, 128, None)
