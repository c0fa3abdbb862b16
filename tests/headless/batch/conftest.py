"""Workers are processes of their own: they, too, find the stand-in renderer."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from batches import TESTS


@pytest.fixture(autouse=True, scope="session")
def workers_find_the_stand_in() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]))
        yield
