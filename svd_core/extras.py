"""Optional packages: imported where they are used; a missing one is an error that names the extra that brings it."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from .errors import MissingExtraError


def import_extra(module: str, extra: str) -> Any:
    """The module. Raises MissingExtraError when its package is not installed; what it raises itself goes through."""
    package = module.partition(".")[0]
    if not has_extra(package):
        raise MissingExtraError(
            f'this needs the package {package}, which is not installed. Run pip install "svd-stages[{extra}]".'
        )
    return importlib.import_module(module)


def has_extra(package: str) -> bool:
    """Whether a package is installed. It is not imported."""
    return importlib.util.find_spec(package) is not None
