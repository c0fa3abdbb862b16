"""Optional packages: a missing one raises an error that names the extra to install."""

from __future__ import annotations

import importlib.util

from ..errors import MissingExtraError


def require_extra(package: str, extra: str) -> None:
    """Raise MissingExtraError if a package is not installed. It is not imported."""
    if not has_extra(package):
        raise MissingExtraError(
            f'the package {package} is required, but is not installed. Run pip install "svd-stages[{extra}]".'
        )


def has_extra(package: str) -> bool:
    """Return True if a package is installed. It is not imported."""
    return importlib.util.find_spec(package) is not None
