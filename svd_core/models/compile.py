"""Functions of tensors, called as they are or compiled by torch.compile.

Compiled are the pieces of the repeated blocks, not the blocks: a piece takes tensors alone, so every block of one width
runs the same program, whatever its weights, the size of the video or the number of frames. torch keeps the programs on
the disk (TORCHINDUCTOR_CACHE_DIR), so only the first process waits for the compiler.
"""

from __future__ import annotations

import logging
import types
from collections.abc import Callable, Hashable
from typing import Any

import torch

logger = logging.getLogger(__name__)

TensorFunction = Callable[..., torch.Tensor]
Run = Callable[..., torch.Tensor]
"""Called with a piece and its arguments, of which the first is the tensor that it is about."""


def run_eager(piece: TensorFunction, *arguments: Any) -> torch.Tensor:
    """Call it as it is."""
    return piece(*arguments)


class _Programs:
    """Compiled functions by key, each a copy with a code of its own: torch counts the programs of a code, and limits
    them. Where the compiler fails, the function is called as it is, and nothing is compiled any more."""

    def __init__(self, greeting: str) -> None:
        self._greeting = greeting
        self._programs: dict[Hashable, TensorFunction] = {}
        self.broken = False

    def run(
        self, key: Hashable, function: TensorFunction, arguments: tuple[Any, ...], dynamic: bool | None
    ) -> torch.Tensor:
        if self.broken:
            return function(*arguments)
        try:
            return self._program(key, function, dynamic)(*arguments)
        except Exception as error:
            if not _is_the_compilers(error):
                raise
            answer = function(*arguments)  # when this fails too, it was not the compiler
            self._give_up(key, error, function)
            return answer

    def _program(self, key: Hashable, function: TensorFunction, dynamic: bool | None) -> TensorFunction:
        if key not in self._programs:
            if not self._programs:
                logger.info("%s", self._greeting)
            name = f"{getattr(function, '__name__', 'function')}_{len(self._programs)}"
            try:
                self._programs[key] = torch.compile(_copy(function, name), fullgraph=True, dynamic=dynamic)
            except RuntimeError as error:  # this Python or this system has no compiler at all
                raise _NoCompiler(str(error)) from error
        return self._programs[key]

    def _give_up(self, key: Hashable, error: Exception, function: TensorFunction) -> None:
        if _is_the_limit(error):  # this one has met more kinds of tensors than torch compiles for
            self._programs[key] = function
            return
        self.broken = True
        cause = getattr(error, "inner_exception", error)
        reason = next((line.strip() for line in str(cause).splitlines() if line.strip()), "no reason given")
        logger.warning(
            "torch.compile does not work here, the network runs as it is (%s: %s). It needs a C++ compiler for the CPU "
            "and Triton for a graphics card; compile = off is the same video without this warning.",
            type(cause).__name__,
            reason[:160],
        )


class RegionalCompiler:
    """Calls pieces compiled, with one program for each width; the other dimensions may differ from call to call.

    wide  for each piece that may be compiled the dimension that is the block's width
    """

    def __init__(self, wide: dict[TensorFunction, int]) -> None:
        self._wide = wide
        self._programs = _Programs("compiling the network's repeated pieces: the first step takes longer")

    @property
    def broken(self) -> bool:
        """Whether the compiler has failed."""
        return self._programs.broken

    def __call__(self, piece: TensorFunction, *arguments: Any) -> torch.Tensor:
        """Run `piece` compiled, or eagerly if it is not compiled or the compiler failed."""
        if piece not in self._wide or self.broken:
            return piece(*arguments)
        about, *others = arguments
        width = self._wide[piece] % about.ndim
        for dimension, size in enumerate(about.shape):
            if dimension != width and size > 1:
                torch._dynamo.maybe_mark_dynamic(about, dimension)
        ones = tuple(size == 1 for size in about.shape)
        key = (piece, about.shape[width], ones, about.dtype, about.device, *map(_facts, others))
        return self._programs.run(key, piece, arguments, dynamic=None)


class CompiledStep:
    """Calls a function compiled as one program for each size of its first tensor."""

    def __init__(self, function: TensorFunction) -> None:
        self._function = function
        self._programs = _Programs("compiling a whole step: the first one of a model and a size takes minutes")

    @property
    def broken(self) -> bool:
        """Whether the compiler has failed."""
        return self._programs.broken

    def __call__(self, owner: Any, about: torch.Tensor, *others: Any) -> torch.Tensor:
        """owner: whose method the function is."""
        key = (about.shape, about.dtype, about.device)
        return self._programs.run(key, self._function, (owner, about, *others), dynamic=False)


class _NoCompiler(RuntimeError):
    """torch.compile itself refused."""


def _facts(argument: Any) -> Hashable:
    """What a program is made for: shapes and types of the weights, and the values that are no tensors."""
    if isinstance(argument, torch.Tensor):
        return argument.shape, argument.dtype
    return tuple(map(_facts, argument)) if isinstance(argument, tuple) else argument


def _copy(function: Any, name: str) -> TensorFunction:
    code = function.__code__.replace(co_name=name)
    return types.FunctionType(code, function.__globals__, name, function.__defaults__, function.__closure__)


def _is_the_compilers(error: Exception) -> bool:
    """Whether compiling failed, and not the computation: that has then not begun."""
    from torch._dynamo import exc

    return isinstance(error, (exc.TorchDynamoException, _NoCompiler)) or _is_the_limit(error)


def _is_the_limit(error: Exception) -> bool:
    """Whether torch has compiled one code as often as it will."""
    return type(error).__name__ in ("FailOnRecompileLimitHit", "FailOnCacheLimitHit", "RecompileLimitExceeded")
