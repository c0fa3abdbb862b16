"""Files and names from strangers at every door, under an audit hook: nothing of theirs runs or is opened elsewhere.

The hook (payload_runner.py) sees code, processes, connections, unpickling, and files outside of the folders at hand.
tests/svd_core/checkpoints/test_hostile_models.py has the models.
"""

from __future__ import annotations

import base64
import json
import os
import pickle
import pickletools
import shutil
import sqlite3
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest
from svd_stages import headless
from svd_stages.headless.batch.tasks import Task
from svd_stages.headless.graph.read import MAX_BYTES

RUNNER = Path(__file__).with_name("payload_runner.py")
TEMPLATES = headless.PACKAGE / "example_workflows"
EVIL = "import os; os.system('touch executed')"
NAMES = [
    *json.loads(Path(__file__).with_name("data").joinpath("names_outside.json").read_text()),
    "../" * 3400 + "secret",
]
"""Names that try to lead out of a folder to a file called secret. {root} is a folder above."""


class Runs:
    """Pickled, it runs `EVIL` when it is unpickled."""

    def __reduce__(self):
        return exec, (EVIL,)


class Builder:
    """Writes payloads into a folder, and lists them."""

    def __init__(self, work: Path):
        self.work = work
        self.attempts: list[tuple[str, str, Any]] = []
        for name in ("input", "models", "out", "run"):
            (work / name).mkdir(parents=True)
        shutil.copy(TEMPLATES / "rocket.png", work / "input")
        (work / "warm.csv").write_text("image\ninput/rocket.png\n")
        (work / "evil_payload.py").write_text(EVIL + "\nclass Renderer: pass\n")
        settings = headless.VideoSettings(width=64, height=64, num_frames=2, steps=1)
        self.prompt = headless.image_to_video_graph(settings, headless.RunConfig().runtime(), "rocket.png").prompt
        (work / "warm.json").write_text(json.dumps(self.prompt))
        self.id = {node["class_type"]: node_id for node_id, node in self.prompt.items()}

    def add(self, name: str, door: str, path: str, content: bytes | str | None = None) -> Path:
        """One attempt; with content the file is written, too."""
        file = self.work / path
        file.parent.mkdir(parents=True, exist_ok=True)
        if content is not None:
            file.write_bytes(content if isinstance(content, bytes) else content.encode())
        self.attempts.append((name, door, path))
        return file

    def graph(self, name: str, node: str, given: dict[str, Any], **keys: Any) -> None:
        """A graph with inputs of one node changed."""
        prompt = json.loads(json.dumps(self.prompt))
        prompt[self.id[node]]["inputs"] |= given
        prompt[self.id[node]] |= keys
        self.add(name, "graph", f"graphs/{len(self.attempts)}.json", json.dumps(prompt))

    def node(self, class_type: str, key: str, value: str, **others: Any) -> None:
        """A call of a node with this value, as it comes over a link."""
        call = {"class_type": class_type, "value": {key: value}, "others": others}
        self.attempts.append((f"{class_type} {value}", "node", call))

    def run(self, name: str, settings: Any = None, plan: list[Any] | None = None, **more: Any) -> Path:
        """A run folder as a stranger may have made it."""
        folder = f"run/{len(self.attempts)}"
        good = {
            "format": 1, "asked": "", "plan": "p", "run_id": "0" * 16, "graph": self.prompt, "seeds": [],
            "image": [self.id["LoadImage"], "image"], "images": str(self.work / "input"), "models": ["svd-nano"],
            "shared": {}, "precision": "auto", "runner": "evil_payload:Renderer",
        }  # fmt: skip
        file = self.add(name, "batch", folder) / "run.json"
        file.parent.mkdir(parents=True)
        told = settings if isinstance(settings, (bytes, str)) else json.dumps({**good, **(settings or {}), **more})
        file.write_bytes(told if isinstance(told, bytes) else told.encode())
        lines = [{"plan": "p"}, *(plan or [])]
        (file.parent / "plan.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return file.parent


def add_pickles(to: Builder) -> None:
    for protocol in (0, 2, 4, 5):
        content = pickle.dumps(Runs(), protocol)
        to.add(f"pickle {protocol} as a picture", "picture", f"input/{protocol}.png", content)
        to.add(f"pickle {protocol} as a graph", "graph", f"graphs/pickle{protocol}.json", content)
    content = pickletools.optimize(pickle.dumps(Runs(), 4))
    for ending in ("csv", "jsonl", "parquet"):
        to.add(f"a pickle as a manifest.{ending}", "manifest", f"manifests/pickle.{ending}", content)
    to.add("a pickle as an mp4", "metadata", "media/a.mp4", b"\0\0\0\x20ftypisom" + content)


def add_graphs(to: Builder) -> None:
    code = "__import__('os').system('touch executed')"
    for name in ("evil_payload", "evil_payload:Renderer", "evil_payload.Renderer", "os.system", "builtins.exec"):
        to.graph(f"a class called {name}", "SaveVideo", {}, class_type=name)
    to.graph("code for a number", "SVDEulerSampler", {"steps": code})
    to.graph("code for a choice", "SVDEulerSampler", {"noise": code})
    to.graph("code for a checkpoint", "SVDCheckpointLoader", {"checkpoint": f"{{{code}}}"})
    to.graph("a format string", "SVDCheckpointLoader", {"checkpoint": "{0.__class__.__mro__[1].__subclasses__}"})
    for prefix in ("../../evil", "%date:%/../../../evil"):
        to.graph(f"a prefix {prefix!r}", "SaveVideo", {"filename_prefix": prefix})
    for name in ("../../../etc/passwd", "evil_payload.py", "link.png", "http://127.0.0.1:9/a.png"):
        to.graph(f"a picture called {name}", "LoadImage", {"image": name})
    (to.work / "input" / "link.png").symlink_to("/etc/passwd")
    shutil.copy(to.work / "evil_payload.py", to.work / "input")
    evaluates = {"id": 1, "type": "PythonEval", "widgets_values": [code], "properties": {"cnr_id": "evil_payload"}}
    page = {"nodes": [evaluates], "links": [], "extra": {"ue_links": [code]}}
    to.add("a page with a node that evaluates", "graph", "graphs/page.json", json.dumps(page))
    prefix = {"id": 2, "type": "SaveImage", "widgets_values": [f"%{code}.x% %date:{code}% %SaveImage.__class__%"]}
    to.add("code in a date of a page", "graph", "graphs/date.json", json.dumps({"nodes": [prefix], "links": []}))
    to.graph("a whole run", "LoadImage", {})
    spec = {"input": {"required": {"x": [{"__import__": "evil_payload"}]}}, "python_module": "evil_payload"}
    to.add("a description of nodes", "object_info", "graphs/info.json", json.dumps({"evil_payload.Renderer": spec}))


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(*chunks: bytes) -> bytes:
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0))
    return start + b"".join(chunks) + chunk(b"IDAT", zlib.compress(b"\0\0")) + chunk(b"IEND", b"")


def webp(exif: bytes) -> bytes:
    body = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(10) + b"EXIF" + struct.pack("<I", len(exif)) + exif
    return b"RIFF" + struct.pack("<I", len(body)) + body


def add_media(to: Builder) -> None:
    bomb, code = zlib.compress(b"[" * 300_000_000, 9), json.dumps({"1": {"class_type": "evil_payload", "inputs": {}}})
    to.add("a bomb in zTXt", "metadata", "media/z.png", png(chunk(b"zTXt", b"prompt\0\0" + bomb)))
    to.add("a bomb in iTXt", "metadata", "media/i.png", png(chunk(b"iTXt", b"prompt\0\1\0\0\0" + bomb)))
    deep = b"prompt\0" + b"[" * 100_000
    to.add("nested text in tEXt", "metadata", "media/t.png", png(chunk(b"tEXt", deep)))
    to.add("a pickle in tEXt", "metadata", "media/p.png", png(chunk(b"tEXt", b"prompt\0" + pickle.dumps(Runs(), 0))))
    to.add("code in tEXt", "graph", "media/c.png", png(chunk(b"tEXt", b"prompt\0" + code.encode())))
    large = to.add("a chunk of 3 GB", "metadata", "media/l.png", png(struct.pack(">I", 3 * 2**30) + b"tEXtprompt\0"))
    os.truncate(large, 3 * 2**30)
    comf = to.add("a comf chunk of 3 GB", "metadata", "media/comf.png", png(struct.pack(">I", 3 * 2**30) + b"comfx\0"))
    os.truncate(comf, 3 * 2**30)
    endless = b"II*\0\x08\0\0\0\x01\0\x10\x01\x02\0\xff\xff\xff\x7f\x08\0\0\0" + b"\x08\0\0\0"
    to.add("EXIF that goes round", "graph", "media/e.webp", webp(b"Exif\0\0" + endless))
    text = b"prompt:" + b"[" * 100_000 + b"\0"
    exif = b"II*\0\x08\0\0\0\x01\0\x10\x01\x02\0" + struct.pack("<II", len(text), 26) + bytes(4) + text
    to.add("nested text in EXIF", "metadata", "media/n.webp", webp(exif))
    huge = to.add("an EXIF chunk of 3 GB", "metadata", "media/h.webp", webp(b"")[:-4] + struct.pack("<I", 3 * 2**30))
    os.truncate(huge, 3 * 2**30)
    add_videos(to, code)


def add_videos(to: Builder, code: str) -> None:
    import av

    texts = {"deep": "[" * 100_000, "nan": '{"1": NaN}', "long": " " * (MAX_BYTES + 1), "code": code}
    for kind in ("mp4", "webm"):
        for name, text in texts.items():
            path = to.add(f"{name} in {kind}", "graph", f"media/{name}.{kind}")
            options = {"movflags": "use_metadata_tags"} if kind == "mp4" else {}
            with av.open(str(path), "w", format=kind, options=options) as container:
                container.metadata["prompt"] = text
                stream = container.add_stream("libx264" if kind == "mp4" else "libvpx-vp9", rate=7)
                stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
                container.mux(stream.encode(av.VideoFrame(64, 64, "yuv420p")))
                container.mux(stream.encode())


def add_manifests(to: Builder) -> None:
    paths = (
        "../../../etc/passwd",
        "/etc/passwd",
        "file:///etc/passwd",
        "http://127.0.0.1:9/a.png",
        "../input/link.png",
    )
    for number, path in enumerate(paths):
        to.add(f"a row that names {path}", "manifest", f"manifests/{number}.csv", f"image\n{path}\n")
        to.add(f"the same in JSON Lines, {path}", "manifest", f"manifests/{number}.jsonl", json.dumps({"image": path}))
    line = to.add("a line of a gigabyte", "manifest", "manifests/line.csv", b"image\n")
    os.truncate(line, 2**30)
    quoted = b'image,"' + b"a\n" * 2_000_000
    to.add("a row of two million lines", "manifest", "manifests/quoted.csv", quoted)
    fields = b"image\n" + b'"a\n",' * 1_000_000
    to.add("a row of a million fields", "manifest", "manifests/fields.csv", fields)
    to.add("a quarter of a million columns", "manifest", "manifests/columns.csv", "image," + "a.b," * 250_000 + "\n")
    to.add("a deep line", "manifest", "manifests/deep.jsonl", '{"image": ' + "[" * 100_000)
    to.add("a key twice", "manifest", "manifests/twice.jsonl", '{"image": "a", "image": "b"}')
    pickled = base64.b64encode(pickle.dumps(Runs())).decode()
    to.add("a pickle in a cell", "manifest", "manifests/cell.csv", f"image,seed\na.png,{pickled}\n")


def add_parquet(to: Builder) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    def write(name: str, table: Any, **options: Any) -> None:
        parquet.write_table(table, to.add(name, "manifest", f"manifests/{len(to.attempts)}.parquet"), **options)

    parquet.write_table(pyarrow.table({"image": ["input/rocket.png"]}), to.work / "warm.parquet")
    bomb = pyarrow.table({"image": ["x" * 1_000_000] * 400})
    write("a bomb in Parquet", bomb, use_dictionary=False, compression="zstd")
    write("long texts in a dictionary", pyarrow.table({"image": ["x" * 2_000_000] * 100_0}), compression="zstd")
    write("a row of bytes", pyarrow.table({"image": [b"../../../etc/passwd"]}))
    write("a path that leaves, in Parquet", pyarrow.table({"image": ["../../../etc/passwd"]}))
    nested: Any = "x"
    for _ in range(50):
        nested = [nested]
    write("nested lists", pyarrow.table({"image": ["input/rocket.png"], "a.b": [nested]}))


def add_runs(to: Builder) -> None:
    row = {"row": 1, "name": "a", "task": Task("a" * 64, "rocket.png", "b" * 64, {}, None).as_dict()}
    to.run("run.json is a pickle", pickle.dumps(Runs()))
    to.run("run.json is deep", "[" * 100_000)
    to.run("run.json is a list", "[]")
    to.run("run.json says nothing", "{}")
    to.run("a run id that names a folder elsewhere", run_id="../../../../etc")
    to.run("a run id that is a path", run_id=str(to.work / "models"))
    foreign = {"1": {"class_type": "evil_payload:Renderer", "inputs": {}}}
    to.run("a graph of foreign nodes", graph=foreign, image=["1", "x"], plan=[row])
    to.run("a graph that is none", graph=5)
    to.run("no node takes the image", image=["99", "image"])
    for number, task_id in enumerate(("../../../../evil", "/etc/passwd", "x", "A" * 64, "a" * 63 + "\n", 5)):
        bad = {**row, "task": {**row["task"], "id": task_id}}
        to.run(f"a task's id that is no id, {number}", plan=[bad])
    to.run("a task with more in it", plan=[{**row, "task": {**row["task"], "__class__": "evil_payload.Renderer"}}])
    to.run("a plan that is deep", plan=[row]).joinpath("plan.jsonl").write_text('{"plan": "p"}\n' + "[" * 100_000)
    to.run("a plan of zeros", plan=[row]).joinpath("plan.jsonl").write_bytes(bytes(20_000_000))
    folder = to.run("a ledger that is a pickle", plan=[row])
    (folder / "ledger.sqlite").write_bytes(pickle.dumps(Runs()) * 100)
    folder = to.run("a ledger with a trigger", plan=[row])
    with sqlite3.connect(folder / "ledger.sqlite") as ledger:
        ledger.executescript(
            f"PRAGMA application_id = {0x53564442}; PRAGMA user_version = 1; CREATE TABLE tasks (id TEXT PRIMARY KEY, "
            "place INTEGER, state TEXT DEFAULT 'todo', attempts INTEGER DEFAULT 0, code TEXT, task TEXT); CREATE "
            "TRIGGER evil AFTER INSERT ON tasks BEGIN UPDATE tasks SET task = '{}'; END;"
        )
    ledger.close()


def add_names(to: Builder) -> None:
    """Each name as a model's, a picture's and a result's, beside secrets in every form and links that lead to them."""
    root = to.work.parent
    for folder in (root, root / "inside_twin", root / "outside"):
        folder.mkdir(exist_ok=True)
        for end in ("", ".safetensors", ".png"):
            shutil.copy(TEMPLATES / "rocket.png", folder / f"secret{end}")
    for folder in (to.work / "input", to.work / "out"):
        (folder / "link").symlink_to(root / "outside")
        (folder / "chain").symlink_to("link")
        (folder / "secret_link.png").symlink_to(root / "secret.png")
    for name in (each.replace("{root}", str(root)) for each in NAMES):
        model, picture = (name + end if name.strip("./") else name for end in (".safetensors", ".png"))
        to.node("SVDCheckpointLoader", "checkpoint", model, precision="auto")
        to.node("ImageOnlyCheckpointLoader", "ckpt_name", model)
        for annotation in ("", " [output]", "[temp]", " [input]"):
            to.node("LoadImage", "image", picture + annotation)
        to.node("SaveImage", "filename_prefix", name, images=None)
        to.node("SaveAnimatedPNG", "filename_prefix", name, images=None, fps=6.0, compress_level=4)
        webp = {"fps": 6.0, "lossless": True, "quality": 80, "method": "fastest"}
        to.node("SaveAnimatedWEBP", "filename_prefix", name, images=None, **webp)


def add_controls(to: Builder) -> None:
    content = pickle.dumps(Runs())
    for kind in ("pickle", "process", "network", "read", "write", "code", "import"):
        to.add(f"control: {kind}", "control", f"controls/a.{kind}", content)


@pytest.fixture(scope="module")
def answers(tmp_path_factory) -> dict[str, dict[str, Any]]:
    """The outcome of each payload. Nothing was changed beside the folder at hand, and only the control was executed."""
    root = tmp_path_factory.mktemp("payloads").resolve()
    work = root / "inside"
    builder = Builder(work)
    for add in (add_pickles, add_graphs, add_media, add_manifests, add_parquet, add_runs, add_names, add_controls):
        add(builder)
    (work / "attempts.json").write_text(json.dumps(builder.attempts))
    paths = os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), str(work)])
    environment = {**os.environ, "PYTHONPATH": paths, "TMPDIR": str(work / "run")}
    before = outside(work)
    ran = subprocess.run(
        [sys.executable, RUNNER, work], cwd=work, env=environment, capture_output=True, text=True, timeout=300
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    found = {each["name"]: each for each in json.loads(ran.stdout.splitlines()[-1])}
    assert len(found) == len(builder.attempts) > 450
    assert (work / "executed").exists() and outside(work) == before
    return found


def outside(work: Path) -> dict[Path, bytes]:
    """Return the files and folders beside a folder, with what is in them."""
    paths = [path for path in work.parent.rglob("*") if not path.is_relative_to(work)]
    return {path: b"" if path.is_dir() else path.read_bytes() for path in paths}


def of_strangers(answers: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    return [each for name, each in answers.items() if not name.startswith("control")]


def test_nothing_of_theirs_runs_and_nothing_is_opened_elsewhere(answers):
    assert {each["name"]: each["seen"] for each in of_strangers(answers) if each["seen"]} == {}


def test_the_hook_sees_what_must_not_be(answers):
    controls = {name: each for name, each in answers.items() if name.startswith("control")}
    assert len(controls) == 7 and all(each["seen"] for each in controls.values())


def test_each_is_refused_with_an_error_of_ours_that_has_a_code_but_those_that_do_no_harm(answers):
    harmless = {"nested lists", "a description of nodes", "a whole run"}
    refused = [each for each in of_strangers(answers) if each["name"] not in harmless]
    refused = [each for each in refused if each["error"] or not each["name"].startswith("Save")]
    assert [each for each in refused if not each["ours"] or "." not in each["code"]] == []
    assert [each for each in refused if each["length"] >= 2500] == []
    assert answers["a whole run"]["error"] is None


@pytest.mark.parametrize("saver", ["SaveImage", "SaveAnimatedPNG", "SaveAnimatedWEBP"])
def test_prefixes_that_stay_inside_are_saved(answers, saver):
    saved = {name for name in NAMES if (each := answers.get(f"{saver} {name}")) and each["error"] is None}
    assert {"con", "C:secret", "~/secret", "..%2fsecret"} <= saved
    assert saved.isdisjoint({"../secret", "link/secret", "chain/secret", "/etc/passwd", "\0", "\ud800"})


def test_each_takes_ten_seconds_and_two_hundred_megabytes_at_most(answers):
    assert [each for each in of_strangers(answers) if each["seconds"] > 10 or each["grown"] > 200] == []
