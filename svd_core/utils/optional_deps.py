"""Optional packages: a missing one is an error that names the extra that brings it."""

from __future__ import annotations

import importlib.util

from ..errors import MissingExtraError


def require_extra(package: str, extra: str) -> None:
    """Raise MissingExtraError when a package is not installed. It is not imported."""
    if not has_extra(package):
        raise MissingExtraError(
            f'this needs the package {package}, which is not installed. Run pip install "svd-stages[{extra}]".'
        )


def has_extra(package: str) -> bool:
    """Whether a package is installed. It is not imported."""
    return importlib.util.find_spec(package) is not None
