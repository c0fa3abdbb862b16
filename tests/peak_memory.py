"""The most memory that a process had, for tests. `ru_maxrss` will not do: a child begins with its parent's."""

from __future__ import annotations

import resource
from pathlib import Path


def peak_mb() -> float:
    """The most MB that this process has held since its program began."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) / 1024
