"""Set up a process of this package: the command line's, or a worker's. Programs that import it are left as they are."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import sys
from collections.abc import Iterator

SPIN_COUNT = "1000"
"""Turns for which a waiting OpenMP thread of libgomp keeps its CPU before it sleeps: microseconds. By default it takes
milliseconds, and beside another busy process each of the thousands of short waits of a small model can take as long."""
GC_THRESHOLD = 50_000
"""New objects until a garbage collection. With Python's 700, collections take a fifth of the time of imports."""
MALLOPT = {-1: 2**29, -3: 2**26}
"""glibc's M_TRIM_THRESHOLD and M_MMAP_THRESHOLD in bytes: freed memory is kept and used again. By default the memory of
each large tensor is returned to the system, and the next one gets empty pages, which takes a third of the decoding."""


@contextlib.contextmanager
def own_process() -> Iterator[None]:
    """Run a program of this package inside the `with`. To be entered before torch is imported."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        for parameter, value in MALLOPT.items():
            mallopt(parameter, value)
    gc.set_threshold(GC_THRESHOLD)
    try:
        yield
    finally:
        gc.freeze()  # the interpreter's last collections would take a second for the libraries' objects
