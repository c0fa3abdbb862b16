"""Lets worker processes import the fake renderer."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from batches import TESTS


@pytest.fixture(autouse=True, scope="session")
def workers_find_the_fake_renderer() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]))
        yield
