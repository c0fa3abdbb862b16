"""Choose an engine (embedded, ComfyUI in this process, a server), and run a graph from Python."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ...svd_core.errors import SettingError
from ...svd_core.media.alpha_compositing import KEEP, read_background
from ...svd_core.runtime.runtime import OnOom, Reporter, ignore_progress
from .embedded.engine import EmbeddedEngine
from .events import EventListener, EventTranslator
from .graph_loading import Source, find_input_folder, read_source
from .graphs import GraphEngine, Report, open_graph
from .run_config import RunConfig, as_list


def choose_engine(
    run_config: RunConfig,
    comfyui: str | os.PathLike | None = None,
    custom_nodes: Sequence[str] = (),
    server: str | None = None,
) -> GraphEngine:
    """Return the requested engine. Without a ComfyUI and a server, this is the embedded engine.

    Args:
        comfyui: A ComfyUI checkout. Its Python must run this process.
        custom_nodes: Names in its custom_nodes folder. No others are loaded.
        server: The address of a running ComfyUI, such as http://localhost:8188.

    Raises:
        SettingError: The settings exclude each other.
    """
    if run_config.background not in (None, KEEP) and (comfyui is not None or server is not None):
        raise SettingError(
            "`background` works only without `comfyui` and `server`, because a ComfyUI loads images itself. "
            "Leave it out, or put the image on its color in the graph (ImageCompositeMasked).",
            code="setting.background",
        )
    if comfyui is not None and server is not None:
        raise SettingError(
            "`comfyui` and `server` exclude each other: a graph runs on one ComfyUI. Give one of the two."
        )
    if custom_nodes and comfyui is None:
        raise SettingError("`custom_nodes` needs a ComfyUI in this process. Give its folder too, as `comfyui`.")
    if comfyui is not None:
        from .comfyui.engine import ComfyUIEngine

        return ComfyUIEngine(run_config, Path(comfyui), as_list(custom_nodes))
    if server is not None:
        from .remote.engine import RemoteEngine

        return RemoteEngine(run_config, server)
    return EmbeddedEngine(run_config)


def run_graph(
    graph: Source,
    settings: Sequence[str] = (),
    *,
    input_dir: str | os.PathLike = "input",
    output_dir: str | os.PathLike = "output",
    models: Sequence[str | os.PathLike] = (),
    device: str = "auto",
    precision: str = "auto",
    vram: int | str | None = None,
    on_oom: OnOom = "strict",
    on_progress: Reporter = ignore_progress,
    comfyui: str | os.PathLike | None = None,
    custom_nodes: Sequence[str] = (),
    server: str | None = None,
    allowed: Sequence[str] = (),
    background: str | float | Sequence[float] | None = None,
) -> Report:
    """Run a saved graph, as `svd-stages run` does. Existing files are never overwritten.

    Args:
        graph: A JSON file or a dict in API or UI format, or an mp4, PNG or WebP with its graph inside. Images that such
            a file needs are also found beside it.
        settings: "NODE.INPUT=VALUE" each.
        vram: Limit of device memory, in bytes or as 6G. None: all free memory.
        on_oom: strict: running out of memory is an error. adapt: decoding is retried with smaller windows, which
            gives other pixels and a note in the report.
        on_progress: Called with (stage, done, total, unit).
        comfyui: A ComfyUI checkout. The graph runs on its executor and its core nodes in this process, which its
            Python must run. No server is started and no port is opened. A process can start one ComfyUI, with the
            settings of the first call.
        custom_nodes: Names in that ComfyUI's custom_nodes folder to load. This package's nodes are always loaded.
        server: The address of a running ComfyUI, http://[USER:PASSWORD@]HOST[:PORT]. Input files are uploaded and
            results are downloaded into output_dir. Models, device, precision and memory are the server's own.
        allowed: Class types or patterns (SVD*, Save*). A graph with other classes is refused before anything is
            imported. Empty: all classes that the engine knows.
        background: The color behind transparent parts of images that LoadImage reads, as in `animate`. "keep" and
            None keep the hidden colors, as in ComfyUI. None adds a note.

    Raises:
        SVDStagesError: One of its subclasses: GraphError, CheckpointError, ImageError, NodeError, SettingError,
            ServerError, Interrupted and others in svd_core.errors.
    """
    allowed = as_list(allowed)
    source = read_source(graph, allowed)
    color = None if background is None else read_background(background)
    input_folder = find_input_folder(graph, source, Path(input_dir))
    run_config = RunConfig(
        models, device, precision, input_folder, output_dir, on_progress, vram, background=color, on_oom=on_oom
    )
    engine = choose_engine(run_config, comfyui, custom_nodes, server)
    opened = open_graph(source, settings, engine.table, allowed)
    return engine.run(opened, EventTranslator(opened.prompt, engine.table, _ProgressListener(on_progress)))


class _ProgressListener(EventListener):
    """Forwards progress to a reporter and ignores the other events."""

    def __init__(self, reporter: Reporter):
        self._reporter = reporter

    def report(self, stage: str, done: int, total: int, unit: str, node: str | None = None) -> None:
        """Forward the progress."""
        self._reporter(stage, done, total, unit)
