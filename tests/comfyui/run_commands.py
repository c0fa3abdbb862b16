"""Run commands of svd-stages in one process: `run_commands.py COMMANDS.json`, in any Python.

Print one JSON line for each: exit status, stdout (parsed JSON lines), stderr, and the number of listening ports.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from pathlib import Path

import psutil
from svd_stages.headless.cli.main import main


def outcome(command: list[str]) -> dict:
    """Run one command."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main(command)
        except SystemExit as stop:
            status = stop.code
    listening = [each for each in psutil.Process().net_connections() if each.status == psutil.CONN_LISTEN]
    lines = [json.loads(line) for line in out.getvalue().splitlines() if "--json" in command]
    return {"status": status, "lines": lines, "err": err.getvalue(), "ports": len(listening)}


if __name__ == "__main__":
    for each in json.loads(Path(sys.argv[1]).read_text("utf-8")):
        sys.stdout.write(json.dumps(outcome(each)) + "\n")
        sys.stdout.flush()
