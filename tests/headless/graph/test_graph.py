"""The graph package imports no heavy library."""

from __future__ import annotations

import subprocess
import sys


def test_importing_the_graph_package_loads_no_heavy_library():
    heavy = "{'torch', 'diffusers', 'transformers', 'PIL', 'av', 'numpy'}"
    code = f"import sys, svd_stages.headless.graph; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
