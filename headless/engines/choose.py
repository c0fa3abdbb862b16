"""The choice of an engine (embedded, a ComfyUI in this process, a server), and the Python call `run_graph`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...svd_core.errors import SettingError
from ...svd_core.media.alpha_compositing import KEEP, read_background
from ...svd_core.runtime.runtime import OnOom, Reporter, ignore_progress
from .embedded.engine import EmbeddedEngine
from .events import EventListener, EventTranslator
from .graph_loading import Source, check_allowed_nodes, read_source
from .graphs import GraphEngine, Report, open_graph
from .run_config import RunConfig, as_list


def choose_engine(
    run_config: RunConfig,
    comfyui: str | os.PathLike | None = None,
    custom_nodes: Sequence[str] = (),
    server: str | None = None,
) -> GraphEngine:
    """The engine that is asked for; with neither a ComfyUI nor a server, the embedded one.

    comfyui       a ComfyUI checkout, whose Python this must be
    custom_nodes  names in its custom_nodes folder; no others are loaded
    server        the address of a running ComfyUI, as http://localhost:8188

    Raises SettingError when they do not go together.
    """
    if run_config.background not in (None, KEEP) and (comfyui is not None or server is not None):
        raise SettingError(
            "a background is for pictures that SVD Stages loads, and a ComfyUI loads its own; leave it out, or put the "
            "picture on its colour in the graph (ImageCompositeMasked)",
            code="setting.background",
        )
    if comfyui is not None and server is not None:
        raise SettingError("a graph runs on a ComfyUI in this process or on a server; give one of the two")
    if custom_nodes and comfyui is None:
        raise SettingError("custom nodes are ComfyUI's: name it, too (--comfyui PATH)")
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
    vram: int | None = None,
    on_oom: OnOom = "strict",
    on_progress: Reporter = ignore_progress,
    comfyui: str | os.PathLike | None = None,
    custom_nodes: Sequence[str] = (),
    server: str | None = None,
    allowed: Sequence[str] = (),
    background: str | float | Sequence[float] | None = None,
) -> Report:
    """Run a saved graph (a file or a dict, API or UI format); what `svd-stages run` does.

    graph         a JSON file, a dict, or an mp4, PNG or WebP with its graph inside
    settings      "NODE.INPUT=VALUE" each
    vram          bytes of the device's memory to get by with; None: all that is free
    on_oom        strict: memory that runs out is an error; adapt: windows that are decoded get smaller, which are other
                  pixels and a note of the report
    on_progress   called with (stage, done, total, unit)
    comfyui       a ComfyUI checkout: the graph runs on its executor and its core nodes in this process, which must be
                  its Python. No server, no open port; a process has one ComfyUI, with the settings of the first call
    custom_nodes  names in that ComfyUI's custom_nodes folder, to be loaded; our own nodes always are
    server        the address of a running ComfyUI, http://[USER:PASSWORD@]HOST[:PORT]: input files are uploaded,
                  results are fetched into output_dir. Models, device, precision and memory are the server's own
    allowed       class types or patterns (SVD*, Save*): a graph with others is refused before anything is imported.
                  Empty: every class that the engine knows
    background    what LoadImage puts transparent parts on, as in `animate`. "keep" and None: nothing, as in ComfyUI;
                  None with a note

    With neither, no ComfyUI is needed. Results never take a name that is taken.

    Raises svd_core.errors: GraphError, CheckpointError, ImageError, NodeError, SettingError, ServerError, Interrupted
    and their kin.
    """
    source = read_source(graph)
    if allowed:
        check_allowed_nodes(source, as_list(allowed))
    chosen = None if background is None else read_background(background)
    run_config = RunConfig(
        models, device, precision, input_dir, output_dir, on_progress, vram, background=chosen, on_oom=on_oom
    )
    engine = choose_engine(run_config, comfyui, custom_nodes, server)
    opened = open_graph(source, settings, engine.table)
    if allowed:
        check_allowed_nodes(opened.prompt, as_list(allowed))
    if isinstance(engine, EmbeddedEngine):  # which reports by itself
        return engine.run(opened)
    return engine.run(opened, EventTranslator(opened.prompt, engine.table, _Progress(on_progress)))


class _Progress(EventListener):
    """Tells a reporter of progress, and nobody of the rest."""

    def __init__(self, reporter: Reporter):
        self._reporter = reporter

    def event(self, name: str, /, **values: Any) -> None:
        """Not asked for."""

    def report(self, stage: str, done: int, total: int, unit: str, node: str | None = None) -> None:
        """Hand it on."""
        self._reporter(stage, done, total, unit)
