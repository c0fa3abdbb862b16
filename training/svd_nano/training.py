"""What training any part needs: a time to spend, averaged weights, a state on disk to go on from, a log of losses."""

# The model classes declare their parts as bare modules and their outputs as unions: a type checker cannot follow.
# pyright: reportAttributeAccessIssue=false, reportIndexIssue=false, reportOptionalSubscript=false
# pyright: reportOptionalMemberAccess=false, reportArgumentType=false

from __future__ import annotations

import contextlib
import csv
import functools
import json
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ...svd_core.errors import SettingError
from .curve import draw_curve
from .muon import Muon

logger = logging.getLogger(__name__)

SAVE_EVERY = 120.0  # seconds
LOG_EVERY = 25  # steps
WARM_UP = 100  # steps
STATE_KEY = "svd_nano_training"
MOMENTS = ("momentum", "first", "second", "count")
"""What the optimizer keeps of a parameter, as it is called in a state file."""

Loss = Callable[[float, torch.Generator], torch.Tensor]
"""(how much of the time is spent, 0 to 1; the step's generator) -> the loss of one step."""


@dataclass(frozen=True)
class Plan:
    """How one part is trained.

    minutes   time to spend, all runs that went on from each other together
    rate      the largest learning rate; it rises over WARM_UP steps and falls to nothing along a cosine
    seed      of the training; step i draws from seed + i
    average   the averaged weights keep this share of themselves in a step
    """

    name: str
    minutes: float
    rate: float
    seed: int
    average: float = 0.999

    def rate_at(self, step: int, spent: float) -> float:
        """The learning rate at `step`, when the share `spent` of the time has passed."""
        return self.rate * min(1.0, (step + 1) / WARM_UP) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * spent)))


@dataclass(eq=False)
class State:
    """Where training is; changed in place by `train`."""

    module: torch.nn.Module
    optimizer: Muon
    averaged: dict[str, torch.Tensor]
    step: int = 0
    seconds: float = 0.0
    losses: list[tuple[int, float, float]] = field(default_factory=list)


def train(module: torch.nn.Module, plan: Plan, loss_of: Loss, out: Path) -> None:
    """Train `module` for the plan's time, going on from what `out` holds; it comes out with its averaged weights.

    Leaves out/NAME.safetensors, from which a later run goes on, out/NAME.csv with step, seconds and loss, and
    out/NAME.png, their curve.
    Raises SettingError when the loss is not a number, or the state in `out` is another model's.
    """
    module.train().requires_grad_(True)
    state = _begin(module, plan, out)
    saved = time.monotonic()
    with float32_over_time(module):
        while state.seconds < plan.minutes * 60:
            began = time.monotonic()
            _step(state, plan, loss_of)
            state.seconds += time.monotonic() - began
            if time.monotonic() - saved > SAVE_EVERY:
                _save(state, plan, out)
                saved = time.monotonic()
    _save(state, plan, out)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(state.averaged[name])
    module.eval().requires_grad_(False)


@contextlib.contextmanager
def float32_over_time(module: torch.nn.Module) -> Iterator[None]:
    """Convolve over time in float32 whatever autocast says, on a CPU.

    torch 2.13 on CPUs with bfloat16 now and then gives gradients of small Conv3d weights that were never written.
    """
    convolutions = [
        each for each in module.modules() if isinstance(each, torch.nn.Conv3d) and each.weight.device.type == "cpu"
    ]
    for each in convolutions:
        each._conv_forward = functools.partial(_convolve_in_float32, each)
    try:
        yield
    finally:
        for each in convolutions:
            del each._conv_forward


def _convolve_in_float32(
    convolution: torch.nn.Conv3d, given: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    with torch.autocast(given.device.type, enabled=False):
        return torch.nn.Conv3d._conv_forward(convolution, given.float(), weight, bias)


def average_loss(state: State) -> float:
    """The mean of the latest losses."""
    latest = [loss for *_, loss in state.losses[-LOG_EVERY:]]
    return sum(latest) / len(latest)


def _step(state: State, plan: Plan, loss_of: Loss) -> None:
    spent = min(1.0, state.seconds / (plan.minutes * 60))
    for group in state.optimizer.param_groups:
        group["lr"] = plan.rate_at(state.step, spent)
    generator = torch.Generator("cpu").manual_seed(plan.seed + state.step)
    state.optimizer.zero_grad(set_to_none=True)
    loss = loss_of(spent, generator)
    value = loss.item()
    if not math.isfinite(value):
        raise SettingError(
            f"training {plan.name} went astray at step {state.step}: the loss is {value}. Go on from the state that "
            f"is saved with a smaller learning rate than {plan.rate:g}."
        )
    loss.backward()
    torch.nn.utils.clip_grad_norm_(state.module.parameters(), 1.0)
    state.optimizer.step()
    _average(state, plan)
    state.losses.append((state.step, round(state.seconds, 2), value))
    state.step += 1
    if state.step % LOG_EVERY == 0:
        logger.info("%s: step %d, %.0f s, loss %.4f", plan.name, state.step, state.seconds, average_loss(state))


@torch.no_grad()
def _average(state: State, plan: Plan) -> None:
    """Exponential moving average; short at first, so that the first weights are soon forgotten."""
    keep = min(plan.average, (1 + state.step) / (10 + state.step))
    names, parameters = zip(*state.module.named_parameters(), strict=True)
    torch._foreach_lerp_([state.averaged[name] for name in names], [each.detach() for each in parameters], 1 - keep)


def _begin(module: torch.nn.Module, plan: Plan, out: Path) -> State:
    out.mkdir(parents=True, exist_ok=True)
    optimizer = Muon(module.named_parameters(), plan.rate)
    averaged = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    state = State(module, optimizer, averaged)
    path = out / f"{plan.name}.safetensors"
    if path.is_file():
        _restore(state, path)
        logger.info("%s: going on from step %d, %.0f s", plan.name, state.step, state.seconds)
    return state


def _save(state: State, plan: Plan, out: Path) -> None:
    """Weights, averaged weights and the optimizer's moments, in one file that replaces the one before."""
    from safetensors.torch import save_file

    tensors = {f"average.{name}": tensor for name, tensor in state.averaged.items()}
    for name, parameter in state.module.named_parameters():
        tensors[f"weight.{name}"] = parameter.detach()
        moments = state.optimizer.state.get(parameter, {})
        tensors |= {f"{kind}.{name}": moment for kind, moment in moments.items()}
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    told = json.dumps({"step": state.step, "seconds": state.seconds, "losses": state.losses})
    path = out / f"{plan.name}.safetensors"
    save_file(tensors, path.with_suffix(".part"), metadata={STATE_KEY: told})
    path.with_suffix(".part").replace(path)
    with (out / f"{plan.name}.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("step", "seconds", "loss"), *state.losses])
    if state.losses:
        draw_curve(state.losses, plan.name, out / f"{plan.name}.png")


def steps_done(name: str, out: Path) -> int:
    """How many steps the part called `name` has been trained for in `out`; 0 when it has not begun."""
    from safetensors import safe_open

    path = out / f"{name}.safetensors"
    if not path.is_file():
        return 0
    with safe_open(path, "pt") as saved:
        return json.loads(saved.metadata()[STATE_KEY])["step"]


def _check_state(state: State, path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """Raise SettingError unless the file holds this module's weights, and moments of this optimizer."""
    wanted = {name: tuple(parameter.shape) for name, parameter in state.module.named_parameters()}
    kinds = {name.split(".", 1)[0] for name in shapes}
    weights = {name.split(".", 1)[1]: shape for name, shape in shapes.items() if name.startswith("weight.")}
    if weights != wanted or not kinds <= {"weight", "average", *MOMENTS}:
        raise SettingError(f"{path} was written by another version of this training; begin again in another folder.")


def _restore(state: State, path: Path) -> None:
    from safetensors import safe_open

    with safe_open(path, "pt") as saved, torch.no_grad():
        told = json.loads(saved.metadata()[STATE_KEY])
        names = set(saved.keys())
        _check_state(state, path, {name: tuple(saved.get_slice(name).get_shape()) for name in names})
        for name, parameter in state.module.named_parameters():
            parameter.copy_(saved.get_tensor(f"weight.{name}"))
            state.averaged[name].copy_(saved.get_tensor(f"average.{name}"))
            for kind in MOMENTS:
                if f"{kind}.{name}" in names:
                    device = "cpu" if kind == "count" else parameter.device
                    state.optimizer.state[parameter][kind] = saved.get_tensor(f"{kind}.{name}").to(device)
    state.step, state.seconds = told["step"], told["seconds"]
    state.losses = [(step, seconds, loss) for step, seconds, loss in told["losses"]]
