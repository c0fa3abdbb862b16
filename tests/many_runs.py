"""The command line for tests that need many runs of it: a fork server loads the heavy libraries once."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from pathlib import Path

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        "diffusers.models.autoencoders.autoencoder_kl_temporal_decoder",
        "diffusers.models.unets.unet_spatio_temporal_condition",
        "transformers.models.clip.modeling_clip",
        "svd_stages.headless.cli.main",
        "pytest",
    ]
)


def start(*arguments: str, log: Path) -> BaseProcess:
    """Start `svd-stages` with these arguments in a fork, and wait until it runs. What it prints goes to `log`."""
    begun = FORKS.Event()
    process = FORKS.Process(target=_run, args=(arguments, log, begun), daemon=True)
    process.start()
    assert begun.wait(300)  # a signal before that would stop multiprocessing, not the program
    return process


def _run(arguments: tuple[str, ...], log: Path, begun: Event) -> None:
    import torch
    from svd_stages.headless.cli.main import main

    signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background ignores it
    torch.set_num_threads(1)
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    begun.set()
    sys.exit(main(list(arguments)))
