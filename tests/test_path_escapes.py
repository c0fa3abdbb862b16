"""Forty names that try to lead out of the folders, each as a model's, a picture's and a result's name.

A process of its own runs them under an audit hook that keeps what is opened, made, moved, linked or removed: none of it
may lie outside the folders that the user gave.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SECRET = "secret"
NAMES = [
    "../secret",
    "../../secret",
    "../../../../../../../../etc/passwd",
    "/etc/passwd",
    "//etc/passwd",
    "{root}/secret",
    "{root}/inside/../secret",
    "file://{root}/secret",
    "~/secret",
    "$HOME/secret",
    "a/../../secret",
    "a/b/../../../secret",
    "./../secret",
    "././/..//secret",
    "..",
    ".",
    "",
    "../",
    "..\\secret",
    "..\\..\\secret",
    "C:\\secret",
    "C:secret",
    "\\\\server\\share\\secret",
    "\\\\?\\C:\\secret",
    "con",
    "nul.safetensors",
    "../secret.",
    "../secret ",
    " ../secret",
    "..%2fsecret",
    "%2e%2e/secret",
    "\uff0e\uff0e/secret",
    "..\u2215secret",
    "../secret\0.png",
    "\0",
    "../secret\n",
    "\u202e../secret",
    "../" * 3400 + "secret",
    "\udce9/../../secret",
    "\ud800",
    "link/secret",
    "LINK/SECRET",
    "link/../secret",
    "chain/secret",
    "secret_link",
    "../inside_twin/secret",
]
ENDS = {"model": ".safetensors", "picture": ".png", "result": ""}
RUN = """
import json, os, sys
from pathlib import Path
import torch
from svd_stages.headless.engines.graphs import NODES
from svd_stages.svd_core.runtime.runtime import LocalRuntime, use_runtime
from svd_stages.svd_core.checkpoints.library import ModelLibrary
from svd_stages.svd_core.errors import SVDStagesError

names, root = json.loads(sys.argv[1]), sys.argv[2]
inside = os.path.join(root, "inside")
folders = {each: Path(inside, each) for each in ("models", "input", "output", "temp")}
here = LocalRuntime(
    library=ModelLibrary.from_roots([folders["models"]]), device_name="cpu", input_folder=folders["input"],
    output_folder=folders["output"], temp_folder=folders["temp"],
)
watched, touched = False, []
EVENTS = {"open": 1, "os.mkdir": 1, "os.rename": 2, "os.link": 2, "os.symlink": 2, "os.remove": 1, "os.rmdir": 1}

def hook(event, arguments):
    if watched and event in EVENTS:
        touched.extend(os.fsdecode(each) for each in arguments[: EVENTS[event]] if isinstance(each, (str, bytes)))

sys.addaudithook(hook)
images = torch.rand(1, 16, 16, 3)

def load_model(name):
    for node, key in ((NODES["SVDCheckpointLoader"], "checkpoint"),
                      (NODES["ImageOnlyCheckpointLoader"], "ckpt_name")):
        node.VALIDATE_INPUTS(**{key: name})
        try:
            node().run(name, "auto") if key == "checkpoint" else node().run(name)
            return "loaded"
        except SVDStagesError as error:
            said = error
    raise said

def load_picture(name):
    load = NODES["LoadImage"]
    said = None
    for each in (name, name + " [output]", name + "[temp]", name + " [input]"):
        load.VALIDATE_INPUTS(each)
        for step in (load.IS_CHANGED, load().run):
            try:
                step(each)
            except SVDStagesError as error:
                said = said or error
    if said is not None:
        raise said
    return "loaded"

def save_result(name):
    said = []
    savers = [lambda: NODES["SaveImage"]().run(images, name),
              lambda: NODES["SaveAnimatedPNG"]().run(images, 6.0, 4, name),
              lambda: NODES["SaveAnimatedWEBP"]().run(images, 6.0, name, True, 80, "fastest")]
    for save in savers:
        try:
            save()
        except SVDStagesError as error:
            said.append(error)
    if said:
        assert len({error.code for error in said}) == 1 and len(said) == len(savers), said
        raise said[0]
    return "saved"

doors = {"model": load_model, "picture": load_picture, "result": save_result}
answers = []
with use_runtime(here):
    for door in doors.values():  # what is imported lazily is imported now
        try:
            door("ordinary")
        except SVDStagesError:
            pass
    for kind, name in names:
        touched.clear()
        watched = True
        try:
            said = doors[kind](name)
        except SVDStagesError as error:
            said = [error.code, str(error)]
        except Exception as error:
            said = repr(error)[:300]
        watched = False
        answers.append({"said": said, "touched": list(touched)})
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Folders of a user, a secret beside them in every form, and links that lead to it."""
    root = tmp_path_factory.mktemp("escapes")
    for folder in ("models/checkpoints", "input", "output", "temp"):
        (root / "inside" / folder).mkdir(parents=True)
    (root / "inside_twin").mkdir()
    for place in (root, root / "inside_twin", root / "outside"):
        place.mkdir(exist_ok=True)
        (place / SECRET).write_text("secret")
        (place / f"{SECRET}.safetensors").write_text("secret")
        Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(place / f"{SECRET}.png")
    for folder in ("input", "output", "temp"):
        (root / "inside" / folder / "link").symlink_to(root / "outside")
        (root / "inside" / folder / "chain").symlink_to("link")
        (root / "inside" / folder / "secret_link.png").symlink_to(root / "secret.png")
    return root


def tried() -> list[tuple[str, str]]:
    return [(kind, name + end if name.strip("./") else name) for kind, end in ENDS.items() for name in NAMES]


@pytest.fixture(scope="module")
def answers(root) -> dict[tuple[str, str], dict]:
    given = [(kind, name.replace("{root}", str(root))) for kind, name in tried()]
    command = [sys.executable, "-c", RUN, json.dumps(given), str(root)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(zip(tried(), json.loads(done.stdout.splitlines()[-1]), strict=True))


def test_there_are_a_hundred_and_twenty():
    assert len(set(tried())) >= 120


@pytest.mark.parametrize(("kind", "name"), tried(), ids=lambda value: ascii(value)[1:-1][:40])
def test_no_name_leads_out(kind, name, answers, root):
    answer = answers[kind, name]
    allowed = [
        os.path.realpath(root / "inside"),
        *map(os.path.realpath, (sys.prefix, sys.base_prefix, "/dev", "/proc")),
    ]
    outside = [
        each
        for each in answer["touched"]
        if not any(os.path.realpath(each).startswith(place + os.sep) for place in allowed)
    ]
    assert not outside
    if answer["said"] == "saved":
        assert kind == "result"
    else:
        code, said = answer["said"]
        assert code.split(".")[0] in ("checkpoint", "image", "output")
        assert len(said) < 2500


def test_nothing_was_made_beside_the_folders(answers, root):
    made = {str(each.relative_to(root)) for each in root.rglob("*") if not each.is_relative_to(root / "inside")}
    places = ["", "inside_twin/", "outside/"]
    secrets = {f"{place}{SECRET}{end}" for place in places for end in ("", ".safetensors", ".png")}
    assert made == {"inside_twin", "outside", *secrets}
    assert all((root / place / SECRET).read_text() == "secret" for place in places)


def test_prefixes_that_stay_inside_are_saved(answers):
    saved = {name for (kind, name), answer in answers.items() if answer["said"] == "saved"}
    assert {"con", "C:secret", "~/secret", "..%2fsecret"} <= saved
    assert saved.isdisjoint({"../secret", "link/secret", "chain/secret", "/etc/passwd", "\0", "\ud800"})
