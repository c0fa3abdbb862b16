"""An exception at any boundary of any stage leaves nothing behind: the next run in the process is an undisturbed one.

SVD_STAGES_BOUNDARIES=all breaks a run at each of them, and has a whole run follow each; without it, at the first of
each kind, with a whole run after every few.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import replace
from itertools import cycle

import pytest
import torch
from chain import Settings, decoded, sampled
from faults import CALLS, change, wrap
from svd_stages.svd_core import execution
from svd_stages.svd_core.errors import Interrupted, MemoryBudgetError
from svd_stages.svd_core.models.components import Checkpoint
from svd_stages.svd_core.runtime.memory import Placement
from svd_stages.svd_core.runtime.runtime import LocalRuntime, get_runtime, use_runtime
from tiny import mini_checkpoint

ALL = os.environ.get("SVD_STAGES_BOUNDARIES") == "all"
SETTINGS = Settings(frames=2, steps=2)
ERRORS = (RuntimeError, KeyboardInterrupt, SystemExit, Interrupted, MemoryError, ValueError)


class Boundaries:
    """Counts the boundaries that a run crosses, and raises at one of them."""

    def __init__(self, at: int = -1, error: type[BaseException] = RuntimeError) -> None:
        self.crossed: list[str] = []
        self._at, self._error = at, error

    def cross(self, name: str) -> None:
        self.crossed.append(name)
        if len(self.crossed) - 1 == self._at:
            raise self._error(f"injected at {name}")


class WatchedRuntime(LocalRuntime):
    """All that a stage asks of its host is a boundary."""

    def __init__(self, boundaries: Boundaries) -> None:
        super().__init__(device_name="cpu")
        object.__setattr__(self, "boundaries", boundaries)

    def device(self):
        self.boundaries.cross("device")
        return super().device()

    @contextlib.contextmanager
    def on_device(self, part, need=0, after="default"):
        name = type(part).__name__
        self.boundaries.cross(f"{name} comes")
        with super().on_device(part, need, after) as device:
            self.boundaries.cross(f"{name} is there")
            yield device
            self.boundaries.cross(f"{name} leaves")
        self.boundaries.cross(f"{name} has left")

    @contextlib.contextmanager
    def reserve_memory(self, part, need):
        self.boundaries.cross("beside")
        with super().reserve_memory(part, need) as device:
            yield device

    def free_memory(self, device) -> int:
        self.boundaries.cross("free memory")
        return 2**40

    def capacity(self, part) -> int:
        self.boundaries.cross("capacity")
        return 2**40

    @contextlib.contextmanager
    def progress(self, stage, total, unit):
        self.boundaries.cross(f"{stage} begins")

        def advance(done: int) -> None:
            self.boundaries.cross(f"{stage} goes on")

        yield advance
        self.boundaries.cross(f"{stage} ends")

    def show(self, denoised) -> None:
        self.boundaries.cross("preview")

    def note(self, note) -> None:
        self.boundaries.cross("note")


@contextlib.contextmanager
def watched(boundaries: Boundaries) -> Iterator[None]:
    """Make computations boundaries too, before and after. Frames decoded in 16 bits is NaN, and so decoded again."""

    def crossing(name: str):
        def wrapper(call):
            def called(*arguments, **options):
                boundaries.cross(f"before {name}")
                result = call(*arguments, **options)
                boundaries.cross(f"after {name}")
                return result

            return called

        return wrapper

    with pytest.MonkeyPatch.context() as patch:
        change(patch, "decoder", lambda pixels: pixels if pixels.dtype == torch.float32 else pixels * float("nan"))
        for stage in CALLS:
            wrap(patch, stage, crossing(stage))
        yield


def run(checkpoint: Checkpoint, image: torch.Tensor, boundaries: Boundaries) -> torch.Tensor:
    """A picture to frames, through the nodes."""
    with watched(boundaries), use_runtime(WatchedRuntime(boundaries)):
        return decoded(checkpoint, sampled(checkpoint, image, SETTINGS), "windowed", 1, 1)[0]


def state_of(checkpoint: Checkpoint) -> dict:
    """All of the modules that a run could leave changed, and of the process."""
    state = {
        "host": get_runtime(),
        "inference": torch.is_inference_mode_enabled(),
        "gradients": torch.is_grad_enabled(),
        "random": torch.get_rng_state().tolist(),
        "default dtype": torch.get_default_dtype(),
    }
    for part in (checkpoint.model, checkpoint.clip_vision, checkpoint.vae):
        for name, module in part.module.named_modules():
            weights = {**module._parameters, **module._buffers}
            state[type(part).__name__, name] = (
                module.training,
                len(module._forward_hooks) + len(module._forward_pre_hooks),
                "forward" in vars(module),
                id(getattr(module, "processor", None)),
                [
                    (key, id(each), each.dtype, each.device, each.stride(), each.data_ptr(), each.requires_grad)
                    for key, each in weights.items()
                    if each is not None
                ],
            )
    return state


def chosen(crossed: list[str], only: str) -> list[int]:
    """All boundaries, or the first of each kind whose name has `only` in it."""
    first = {name: index for index, name in reversed(list(enumerate(crossed))) if only in name}
    return list(range(len(crossed))) if ALL else sorted(first.values())


@pytest.mark.parametrize("stream", [False, True], ids=["weights there", "weights block by block"])
def test_a_run_that_breaks_anywhere_leaves_nothing_behind(stream, monkeypatch):
    checkpoint = replace(mini_checkpoint(torch.float16), model=mini_checkpoint().model)
    image = torch.rand((1, 64, 64, 3), generator=torch.Generator().manual_seed(2))
    if stream:
        monkeypatch.setattr(execution, "place_weights", lambda *_: Placement(stream=True, activation_bytes=0))
    whole = Boundaries()
    wanted = run(checkpoint, image, whole)
    before = state_of(checkpoint)
    errors = cycle(ERRORS)
    places = chosen(whole.crossed, "block" if stream else "")
    for number, place in enumerate(places):
        error = next(errors)
        with pytest.raises((error, MemoryBudgetError)):
            run(checkpoint, image, Boundaries(place, error))
        where = (error, whole.crossed[place])
        now = state_of(checkpoint)
        assert [key for key, value in before.items() if now[key] != value] == [], where
        if ALL or number % 10 == 9 or place == places[-1]:
            assert torch.equal(run(checkpoint, image, Boundaries()), wanted), where
    assert torch.isfinite(wanted).all() and len(set(whole.crossed)) > 30


@pytest.mark.parametrize("error", ERRORS if ALL else ERRORS[1:2])
def test_a_checkpoint_whose_loading_broke_loads_again(error):
    wanted = execution.load(LocalRuntime(device_name="cpu"), "svd-nano", "fp32")
    whole = Boundaries()
    execution.load(WatchedRuntime(whole), "svd-nano", "fp32")
    for place in range(len(whole.crossed)):
        with pytest.raises((error, MemoryBudgetError)):
            execution.load(WatchedRuntime(Boundaries(place, error)), "svd-nano", "fp32")
    again = execution.load(LocalRuntime(device_name="cpu"), "svd-nano", "fp32")
    for one, other in ((wanted.model, again.model), (wanted.vae, again.vae), (wanted.clip_vision, again.clip_vision)):
        states = zip(one.module.state_dict().items(), other.module.state_dict().items(), strict=True)
        assert all(a == b and torch.equal(x, y) for (a, x), (b, y) in states)
