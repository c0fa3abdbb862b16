"""A process of this package: how its threads wait, and its exit."""

import gc
import os

import pytest
from svd_stages.headless.process import own_process


@pytest.fixture(autouse=True)
def no_policy(monkeypatch):
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    yield
    gc.unfreeze()


def test_waiting_threads_spin_for_a_short_time():
    with own_process():
        assert 0 < int(os.environ["GOMP_SPINCOUNT"]) < 10_000


@pytest.mark.parametrize(("name", "value"), [("GOMP_SPINCOUNT", "7"), ("OMP_WAIT_POLICY", "active")])
def test_the_users_policy_stays(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with own_process():
        assert os.environ.get("GOMP_SPINCOUNT") in ("7", None)
        assert os.environ[name] == value


def test_the_exit_does_not_collect_the_objects_of_libraries():
    with pytest.raises(SystemExit), own_process():
        raise SystemExit
    assert gc.get_freeze_count() > 0
