"""The training loop of all parts: a time budget, averaged weights, a state file to resume from, a log of losses."""

# The model classes declare their submodules as plain modules and their outputs as unions: a type checker cannot follow.
# pyright: reportAttributeAccessIssue=false, reportIndexIssue=false, reportOptionalSubscript=false
# pyright: reportOptionalMemberAccess=false, reportArgumentType=false

from __future__ import annotations

import csv
import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ...svd_core.errors import SettingError
from .curve import draw_curve
from .layers import layers_for_cpu
from .muon import Muon, is_hidden

logger = logging.getLogger(__name__)

SAVE_EVERY = 120.0  # seconds
LOG_EVERY = 25  # steps
WARM_UP = 100  # steps
STATE_KEY = "svd_nano_training"
BETAS = (0.9, 0.99)
MOMENTS = ("momentum", "exp_avg", "exp_avg_sq", "step")
"""Names of the optimizers' values of a parameter in a state file."""

Loss = Callable[[float, torch.Generator], torch.Tensor]
"""(fraction of the time that has passed, 0 to 1; the step's generator) -> the loss of one step."""


@dataclass(frozen=True)
class Plan:
    """The training settings of one part.

    Attributes:
        name: Name of the part and of its files.
        minutes: Time of all runs that resume from each other.
        rate: Peak learning rate. It rises over WARM_UP steps, then falls along a cosine.
        seed: Step i draws from seed + i.
        average: Decay of the exponential moving average of the weights, per step.
    """

    name: str
    minutes: float
    rate: float
    seed: int
    average: float = 0.999

    def rate_at(self, step: int, progress: float) -> float:
        """Return the learning rate at `step`, after the fraction `progress` of the time."""
        return self.rate * min(1.0, (step + 1) / WARM_UP) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))


@dataclass(eq=False)
class State:
    """The state of a training, changed in place."""

    module: torch.nn.Module
    muon: Muon
    adam: torch.optim.Adam
    averaged: dict[str, torch.Tensor]
    step: int = 0
    seconds: float = 0.0
    losses: list[tuple[int, float, float]] = field(default_factory=list)

    def moments(self, name: str, parameter: torch.nn.Parameter) -> dict[str, torch.Tensor]:
        """Return the optimizer's values of a parameter."""
        return (self.muon if is_hidden(name, parameter) else self.adam).state[parameter]


def mixed_precision(device: torch.device) -> torch.autocast:
    """Return autocast to bfloat16, switched off on CPUs that compute bfloat16 in software, many times slower."""
    is_fast = device.type != "cpu" or torch.backends.cpu.get_cpu_capability() in ("AVX512", "AMX")
    return torch.autocast(device.type, torch.bfloat16, enabled=is_fast)


def train(module: torch.nn.Module, plan: Plan, loss_of: Loss, out: Path) -> None:
    """Train `module` in place and leave it with its averaged weights.

    Writes out/NAME.safetensors, from which the next run resumes, out/NAME.csv with step, seconds and loss, and
    out/NAME.png, their curve.

    Raises:
        SettingError: The loss is not finite, or the state in `out` is of another model.
    """
    module.train().requires_grad_(True)
    state = _begin(module, plan, out)
    saved = time.monotonic()
    with layers_for_cpu(module):
        while state.seconds < plan.minutes * 60:
            start = time.monotonic()
            _step(state, plan, loss_of)
            state.seconds += time.monotonic() - start
            if time.monotonic() - saved > SAVE_EVERY:
                _save(state, plan, out)
                saved = time.monotonic()
    _save(state, plan, out)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(state.averaged[name])
    module.eval().requires_grad_(False)


def _step(state: State, plan: Plan, loss_of: Loss) -> None:
    progress = min(1.0, state.seconds / (plan.minutes * 60))
    for optimizer in (state.muon, state.adam):
        optimizer.param_groups[0]["lr"] = plan.rate_at(state.step, progress)
    generator = torch.Generator("cpu").manual_seed(plan.seed + state.step)
    state.module.zero_grad()
    loss = loss_of(progress, generator)
    value = loss.item()
    if not math.isfinite(value):
        raise SettingError(
            f"the loss of {plan.name} must be finite, got {value} at step {state.step}. Resume from the saved state "
            f"with a learning rate below {plan.rate:g}."
        )
    loss.backward()
    torch.nn.utils.clip_grad_norm_(state.module.parameters(), 1.0)
    state.muon.step()
    state.adam.step()
    _update_average(state, plan)
    state.losses.append((state.step, round(state.seconds, 2), value))
    state.step += 1
    if state.step % LOG_EVERY == 0:
        mean = sum(loss for *_, loss in state.losses[-LOG_EVERY:]) / LOG_EVERY
        logger.info("%s: step %d, %.0f s, loss %.4f", plan.name, state.step, state.seconds, mean)


@torch.no_grad()
def _update_average(state: State, plan: Plan) -> None:
    """Update the exponential moving average. Its decay starts small, so that the initial weights fade soon."""
    decay = min(plan.average, (1 + state.step) / (10 + state.step))
    names, parameters = zip(*state.module.named_parameters(), strict=True)
    torch._foreach_lerp_([state.averaged[name] for name in names], [each.detach() for each in parameters], 1 - decay)


def _begin(module: torch.nn.Module, plan: Plan, out: Path) -> State:
    out.mkdir(parents=True, exist_ok=True)
    averaged = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    hidden = [each for name, each in module.named_parameters() if is_hidden(name, each)]
    others = [each for name, each in module.named_parameters() if not is_hidden(name, each)]
    state = State(module, Muon(hidden, plan.rate), torch.optim.Adam(others, plan.rate, BETAS), averaged)
    path = out / f"{plan.name}.safetensors"
    if path.is_file():
        _restore(state, path)
        logger.info("%s: resuming from step %d, %.0f s", plan.name, state.step, state.seconds)
    return state


def _save(state: State, plan: Plan, out: Path) -> None:
    """Write the weights, averaged weights and moments to one file, then the log and the curve."""
    tensors = {f"average.{name}": tensor for name, tensor in state.averaged.items()}
    for name, parameter in state.module.named_parameters():
        tensors[f"weight.{name}"] = parameter.detach()
        tensors |= {f"{kind}.{name}": moment for kind, moment in state.moments(name, parameter).items()}
    values = {"step": state.step, "seconds": state.seconds, "losses": state.losses}
    save_tensors(tensors, out / f"{plan.name}.safetensors", {STATE_KEY: json.dumps(values)})
    with (out / f"{plan.name}.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("step", "seconds", "loss"), *state.losses])
    if state.losses:
        draw_curve(state.losses, plan.name, out / f"{plan.name}.png")


def save_tensors(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write a safetensors file that replaces an existing one only when it is complete."""
    from safetensors.torch import save_file

    part = path.with_suffix(".part")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, part, metadata=metadata)
    part.replace(path)


def read_metadata(path: Path) -> dict[str, str]:
    """Read the metadata of a safetensors file. Empty if the file does not exist."""
    from safetensors import safe_open

    if not path.is_file():
        return {}
    with safe_open(path, "pt") as file:
        return file.metadata()


def steps_done(name: str, out: Path) -> int:
    """Return the number of steps that the part `name` has been trained for in `out`, 0 if it has not begun."""
    metadata = read_metadata(out / f"{name}.safetensors")
    return json.loads(metadata[STATE_KEY])["step"] if metadata else 0


def _restore(state: State, path: Path) -> None:
    from safetensors import safe_open

    parameters = dict(state.module.named_parameters())
    with safe_open(path, "pt") as file, torch.no_grad():
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        weights = {name: shape for name, shape in shapes.items() if name.startswith("weight.")}
        unknown = {name.split(".", 1)[0] for name in shapes} - {"weight", "average", *MOMENTS}
        if unknown or weights != {f"weight.{name}": tuple(each.shape) for name, each in parameters.items()}:
            raise SettingError(f"{path} is the state of another version of this training. Use another folder.")
        for name, parameter in parameters.items():
            parameter.copy_(file.get_tensor(f"weight.{name}"))
            state.averaged[name].copy_(file.get_tensor(f"average.{name}"))
            for kind in MOMENTS:
                if f"{kind}.{name}" in shapes:
                    device = "cpu" if kind == "step" else parameter.device
                    state.moments(name, parameter)[kind] = file.get_tensor(f"{kind}.{name}").to(device)
    values = json.loads(read_metadata(path)[STATE_KEY])
    state.step, state.seconds = values["step"], values["seconds"]
    state.losses = [tuple(row) for row in values["losses"]]
