"""Gives files from strangers to the package's doors while an audit hook watches; see test_payloads.py.

    python payload_runner.py WORK, with WORK/attempts.json: a list of [name, door, path], or [name, "node", call]

Prints a JSON list: for each attempt its name, the class and code of the error (or null), the seconds, how far the
process grew in MB, and what the hook saw that must not be.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from peak_memory import peak_mb

WORK = Path(sys.argv[1]).resolve()
FORBIDDEN = {
    "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "socket.connect",
    "socket.bind", "socket.getaddrinfo", "socket.sendto", "pickle.find_class", "urllib.Request",
    "sqlite3.enable_load_extension", "sqlite3.load_extension", "webbrowser.open", "ftplib.connect", "smtplib.connect",
}  # fmt: skip
CHANGING = {"os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "shutil.rmtree", "os.chmod"}


class Watch:
    """The events that the audit hook recorded."""

    def __init__(self) -> None:
        import svd_stages
        from svd_stages.svd_core.utils.user_tempdir import temp_folder

        package = Path(svd_stages.__file__).resolve().parent
        libraries = [Path(each).resolve() for each in {sys.prefix, sys.base_prefix, *sys.path} if each]
        libraries = [each for each in libraries if not each.is_relative_to(WORK)]
        self.may_write = [str(WORK / "run"), str(WORK / "out"), str(temp_folder())]
        system = ["/proc", "/sys", "/dev/null", "/dev/urandom", "/etc/localtime", "/usr/share/zoneinfo"]
        self.may_read = [str(WORK), str(package), *map(str, libraries), *system, *self.may_write]
        self.seen: list[str] | None = None

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        """The hook."""
        seen = self.seen
        if seen is None:
            return
        self.seen = None  # what the hook does is nobody's doing
        try:
            if self.is_wrong(event, arguments):
                seen.append(f"{event} {str(arguments)[:200]}")
        finally:
            self.seen = seen

    def is_wrong(self, event: str, arguments: tuple[Any, ...]) -> bool:
        """Return True for a forbidden event."""
        if event in FORBIDDEN:
            return True
        if event == "import":
            return "evil" in str(arguments[0])
        if event in ("exec", "compile"):
            code = arguments[0] if event == "exec" else None
            name = str(getattr(code, "co_filename", None) if event == "exec" else arguments[1])
            if name.startswith("<"):
                return not name.startswith("<frozen") and not self.is_made_by_a_library()
            return not self.is_below(name, self.may_read)
        if event == "open":
            path, mode, flags = arguments
            writes = bool((flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)) and str(path) != "/dev/null"
            writes = writes or any(letter in str(mode or "") for letter in "wax+")
            return not isinstance(path, int) and not self.is_below(path, self.may_write if writes else self.may_read)
        if event in CHANGING:
            places = [each for each in arguments[:2] if isinstance(each, (str, bytes, os.PathLike))]
            return not all(self.is_below(each, self.may_write) for each in places)
        return (
            event == "sqlite3.connect"
            and arguments[0] != ":memory:"
            and not self.is_below(arguments[0], self.may_write)
        )

    def is_below(self, path: Any, roots: list[str]) -> bool:
        """Return True if a path, with links resolved, lies in one of the roots."""
        real = os.path.realpath(os.fsdecode(path))
        return any(real == root or real.startswith(root.rstrip("/") + "/") for root in roots)

    def is_made_by_a_library(self) -> bool:
        """Return True if code without a file comes from Python or a library, such as dataclasses and named tuples."""
        frame = sys._getframe(3)
        while frame is not None and frame.f_code.co_filename == __file__:
            frame = frame.f_back
        caller = frame.f_code.co_filename if frame is not None else ""
        return caller.endswith(("dataclasses.py", "collections/__init__.py", "typing.py", "/ast.py"))


def run_config() -> Any:
    """Return the settings of every run: folders in WORK."""
    from svd_stages import headless

    return headless.RunConfig([WORK / "models"], "cpu", input_folder=WORK / "input", output_folder=WORK / "out")


def graph(path: Path) -> None:
    """Read, look for what is missing, check, and run if nothing is wrong."""
    from svd_stages import headless

    engine = headless.EmbeddedEngine(run_config())
    source = headless.read_source(path)
    headless.find_missing(source, engine, run_config())
    opened = headless.open_graph(source)
    engine.check(opened)
    engine.run(opened)


def node(call: dict[str, Any]) -> None:
    """Call a node's checks and its function with a value, as if it was linked; `images` is a picture."""
    import torch
    from svd_stages.headless import NODES
    from svd_stages.svd_core.errors import SVDStagesError
    from svd_stages.svd_core.runtime.runtime import use_runtime

    node_class, value, others = NODES[call["class_type"]], call["value"], call["others"]
    if "images" in others:
        others["images"] = torch.rand(1, 16, 16, 3)
    with use_runtime(run_config().runtime()):
        for check in {"VALIDATE_INPUTS", "IS_CHANGED"} & set(dir(node_class)):
            with contextlib.suppress(SVDStagesError):
                getattr(node_class, check)(**value)
        getattr(node_class(), node_class.FUNCTION)(**value, **others)


def object_info(path: Path) -> None:
    """The node descriptions of a server."""
    from svd_stages.headless.graph import described_nodes, object_info, read_graph

    table = described_nodes(read_graph(path, finite=False))
    object_info(table.classes, table.display_names)


def metadata(path: Path) -> None:
    """The graph in a picture or video."""
    from svd_stages.headless.engines.graph_loading import read_embedded_graphs

    read_embedded_graphs(path)


def picture(path: Path) -> None:
    """A picture."""
    from svd_stages.svd_core.media.image_io import load_image

    load_image(path)


def manifest(path: Path) -> None:
    """A list of pictures: the first fault of a row is raised as the batch tells it."""
    from svd_stages.headless.batch.images import ImageFolder
    from svd_stages.headless.batch.ledger import Ledger
    from svd_stages.headless.batch.manifest import read_rows
    from svd_stages.headless.batch.plan import Binding, plan_rows
    from svd_stages.svd_core.errors import BatchError

    binding = Binding(lambda values: dict(values), (), {})
    for row in plan_rows(read_rows(path), ImageFolder(path.parent, path.parent, Ledger(None)), binding):
        if row.task is None:
            raise BatchError(row.message, code=row.code)


def batch(path: Path) -> None:
    """A run folder: look, then go on with it."""
    from svd_stages.headless.batch.graph_batching import BatchRequest, batch_status, run_batch
    from svd_stages.svd_core.errors import BatchError

    with contextlib.suppress(BatchError):
        batch_status(path)
    run_batch(BatchRequest(path), run_config())


def control(path: Path) -> None:
    """The events that the hook must record; a hook that misses them proves nothing."""
    {
        "pickle": lambda: pickle.loads(path.read_bytes()),
        "process": lambda: subprocess.run(["true"], check=True),
        "network": lambda: socket.socket().connect_ex(("127.0.0.1", 9)),
        "read": lambda: Path("/etc/hostname").exists() and open("/etc/passwd").close(),
        "write": lambda: (WORK / "elsewhere").write_text("x"),
        "code": lambda: exec(path.read_bytes()[:0].decode() or "pass"),
        "import": lambda: __import__("evil_payload"),
    }[path.suffix[1:] or "pickle"]()


DOORS: dict[str, Callable[[Any], None]] = {
    door.__name__: door for door in (graph, node, object_info, metadata, picture, manifest, batch, control)
}


def warm_up() -> None:
    """Load what is loaded lazily, so that the watch sees what files do and not what libraries do."""
    import mimetypes

    import filelock  # noqa: F401
    import PIL.Image
    import torch
    from svd_stages.headless.batch import graph_batching  # noqa: F401

    torch.set_num_threads(1)
    mimetypes.init()
    PIL.Image.init()
    graph(WORK / "warm.json")
    for door, name in ((picture, "input/rocket.png"), (metadata, "input/rocket.png"), (manifest, "warm.csv")):
        door(WORK / name)
    manifest(WORK / "warm.parquet")


def main() -> None:
    """Try all."""
    from svd_stages.svd_core.errors import SVDStagesError

    warm_up()
    watch = Watch()
    sys.addaudithook(watch)
    answers = []
    for name, door, path in json.loads((WORK / "attempts.json").read_text()):
        before, began = peak_mb(), time.process_time()
        watch.seen, error = [], None
        try:
            DOORS[door](WORK / path if isinstance(path, str) else path)
        except BaseException as raised:
            error = raised
        finally:
            seen, watch.seen = watch.seen, None
        grown = peak_mb() - before
        ours = isinstance(error, SVDStagesError)
        code = getattr(error, "code", None) if ours else None
        kind = None if error is None else type(error).__name__
        told = {
            "name": name,
            "error": kind,
            "ours": ours,
            "code": code,
            "says": str(error)[:300],
            "length": len(str(error)),
        }
        answers.append({**told, "seconds": time.process_time() - began, "grown": grown, "seen": seen})
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
