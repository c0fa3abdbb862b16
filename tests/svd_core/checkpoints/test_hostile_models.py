"""Hostile and broken model files: a typed error at once, for little memory, and nothing of them is run.

One process of its own looks at all of them, by every door: what it says of each is what is tested. Memory is the most
that was resident (VmHWM, which Linux lets a process set back) over what was before; time is the
processor's, which a busy machine changes least, without the collector's walks through all of the libraries' objects.
What waits without end ends the test.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import hostile_models as hostile
import pytest
from svd_stages.svd_core.checkpoints.library import ModelLibrary

pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs /proc to measure memory")

SECONDS = 0.2
MEGABYTES = 50
JUDGE = """
import gc, json, sys, time
from pathlib import Path
from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
from transformers import CLIPVisionModelWithProjection
from svd_stages.svd_core.checkpoints.convert import convert_checkpoint
from svd_stages.svd_core.checkpoints.inspect import inspect, read_defaults
from svd_stages.svd_core.checkpoints.load import load_checkpoint
from svd_stages.svd_core.checkpoints.verify import verify
from svd_stages.svd_core.errors import SVDStagesError

RUN = ("exec", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.connect")
ran = []
def hook(event, arguments):
    if event in RUN or event == "pickle.find_class":
        ran.append(event)

def memory(name):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(name)) / 1000

def asked(door, path):
    Path("/proc/self/clear_refs").write_text("5")
    before, began = memory("VmRSS"), time.process_time()
    try:
        answer = door(path)
        code, said = "", json.dumps(answer.as_dict()) if door is inspect else repr(answer)[:200]
    except SVDStagesError as error:
        code, said = error.code, str(error)
    except Exception as error:
        code, said = None, repr(error)[:500]
    return {"code": code, "said": said, "seconds": time.process_time() - began, "memory": memory("VmHWM") - before}

def convert(path):
    convert_checkpoint(path, path.with_name("converted" if not path.is_dir() else "converted.safetensors"))

good, *paths = map(Path, sys.argv[1:])
DOORS = {"inspect": inspect, "defaults": read_defaults, "load": load_checkpoint, "convert": convert, "verify": verify}
for door in DOORS.values():
    asked(door, good)
gc.freeze()
sys.addaudithook(hook)
for path in paths:
    answers = {}
    for name, door in DOORS.items():
        tries = [asked(door, path)]
        while (tries[-1]["seconds"] > 0.1 or tries[-1]["memory"] > 25) and len(tries) < 3:  # a busy machine
            tries.append(asked(door, path))
        best = min(tries, key=lambda each: each["seconds"])
        answers[name] = {**best, "memory": min(each["memory"] for each in tries)}
    print(json.dumps({"answers": answers, "ran": ran}), flush=True)
"""
DOORS = ("inspect", "defaults", "load", "convert", "verify")


@pytest.fixture(scope="module")
def judged(folder, one_file, tmp_path_factory) -> dict[str, dict]:
    """What each door says of each file and folder: name -> {"answers": {door: ...}, "ran": [...], "place": ...}."""
    root = tmp_path_factory.mktemp("hostile")
    places: dict[str, Path] = {}
    for number, (name, make) in enumerate(hostile.FILES.items()):
        places[name] = root / f"file{number}" / "model.safetensors"
        places[name].parent.mkdir()
        make(places[name])
    for number, (name, change) in enumerate(hostile.FOLDERS.items()):
        places[name] = root / f"folder{number}" / "model"
        shutil.copytree(folder, places[name], copy_function=os.link)
        change(places[name])
    good = shutil.copy(one_file, root / "good.safetensors")
    command = [sys.executable, "-c", JUDGE, str(good), *map(str, places.values())]
    given_back = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}  # at once, so that it is seen
    environment = {**os.environ, **given_back, "OMP_NUM_THREADS": "1"}  # threads that wait count as time, too
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    answers = map(json.loads, done.stdout.splitlines())
    return {name: {**next(answers), "place": places[name]} for name in places}


def test_there_are_many():
    assert len(hostile.FILES) + len(hostile.FOLDERS) >= 80


@pytest.mark.parametrize("name", [*hostile.FILES, *hostile.FOLDERS])
def test_a_hostile_model_is_a_typed_error_at_once_and_for_little_memory(name, judged):
    answers = judged[name]["answers"]
    for door in ("load", "convert", "verify"):
        if door == "verify" and answers[door]["code"] == "":  # verify answers for numbers alone
            continue
        assert answers[door]["code"], (door, answers[door])
    for door, answer in answers.items():
        assert answer["code"] is not None, (door, answer)
        assert re.fullmatch(r"(checkpoint\.\w+|setting)?", answer["code"]), (door, answer)
        assert answer["code"] == "" or "\n" not in answer["said"], (door, answer)
        assert len(answer["said"]) < 2000, (door, answer)
        # verify reads the numbers of the sound parts first, up to 85 million bytes
        assert answer["seconds"] <= (25 * SECONDS if door == "verify" else SECONDS), (door, answer)
        assert answer["memory"] <= MEGABYTES, (door, answer)


@pytest.mark.parametrize("name", [*hostile.FILES, *hostile.FOLDERS])
def test_nothing_of_a_hostile_model_is_run_and_nothing_is_written_for_it(name, judged):
    assert judged[name]["ran"] == []
    place: Path = judged[name]["place"]
    assert {each.name for each in place.parent.iterdir()} <= {place.name, "outside.safetensors"}


@pytest.mark.parametrize("name", [*hostile.FILES, *hostile.FOLDERS])
def test_inspecting_says_that_it_is_not_usable(name, judged):
    answer = judged[name]["answers"]["inspect"]
    assert answer["code"] or name in ONLY_LOADING_TELLS or json.loads(answer["said"])["usable"] is False


ONLY_LOADING_TELLS = {  # what the settings mean is asked when modules are built
    *(name for name in hostile.FOLDERS if name.startswith(("a config of", "a tower", "a VAE"))),
    *(name for name in hostile.FILES if name.startswith("an SVD")),
    "10,000 tensors of nothing",
}


def test_a_models_folder_full_of_them_is_listed_at_once(judged):
    root = judged["a pipe"]["place"].parents[1]
    names = ModelLibrary(checkpoint_folders=(root,), diffusers_folders=(root,)).names()
    assert f"{judged['empty']['place'].parent.name}/model.safetensors" in names
    for absent in ("a pipe", "a socket", "a folder", "a link to a device without end", "a link to nowhere"):
        assert f"{judged[absent]['place'].parent.name}/model.safetensors" not in names
