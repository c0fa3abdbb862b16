"""What the whole room promises."""

from __future__ import annotations

import subprocess
import sys


def test_graphs_are_read_checked_and_converted_without_torch():
    heavy = "{'torch', 'diffusers', 'transformers', 'PIL', 'av', 'numpy'}"
    code = f"import sys, svd_stages.headless.graph; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
