"""Functions of tensors, called as they are or compiled by torch.compile.

Compiled are the pieces of the repeated blocks, not the blocks: a piece takes tensors alone, so every block of one width
runs the same program, whatever its weights, the size of the video or the number of frames. torch keeps the programs on
the disk (TORCHINDUCTOR_CACHE_DIR), so only the first process waits for the compiler.
"""

from __future__ import annotations

import logging
import types
from collections.abc import Callable
from typing import Any

import torch

logger = logging.getLogger(__name__)

Piece = Callable[..., torch.Tensor]
Run = Callable[..., torch.Tensor]
"""Called with a piece and its arguments, of which the first is the tensor that it is about."""


def plainly(piece: Piece, *arguments: Any) -> torch.Tensor:
    """Call it as it is."""
    return piece(*arguments)


class Compiler:
    """Calls pieces compiled; as they are once the compiler has failed, which is said.

    wide  for each piece that may be compiled the dimension that is the block's width: each width has its own program,
          the other dimensions may differ from call to call
    """

    def __init__(self, wide: dict[Piece, int]) -> None:
        self._wide = wide
        self._programs: dict[Any, Piece] = {}
        self._broken = False

    def __call__(self, piece: Piece, *arguments: Any) -> torch.Tensor:
        if self._broken or piece not in self._wide:
            return piece(*arguments)
        try:
            return self._program(piece, arguments[0])(*arguments)
        except Exception as error:
            if not _is_the_compilers(error):
                raise
            self._broken = True
            tell_broken(error)
            return piece(*arguments)

    def _program(self, piece: Piece, about: torch.Tensor) -> Piece:
        width = self._wide[piece] % about.ndim
        for dimension, size in enumerate(about.shape):
            if dimension != width and size > 1:
                torch._dynamo.maybe_mark_dynamic(about, dimension)
        key = (piece, about.shape[width], about.dtype, about.device.type)
        if not self._programs:
            logger.info("compiling the network's repeated pieces: the first step takes longer, seconds to minutes")
        if key not in self._programs:
            self._programs[key] = torch.compile(_copy(piece, about.shape[width]), fullgraph=True)
        return self._programs[key]


class Whole:
    """Calls a function compiled as one program for each size of its arguments; as it is once the compiler has failed.

    mode  of torch.compile; "reduce-overhead" replays a recorded run on a CUDA device, whose result is copied
    """

    def __init__(self, function: Callable[..., torch.Tensor], mode: str | None = None) -> None:
        self._function, self._mode = function, mode
        self._program: Callable[..., torch.Tensor] | None = torch.compile(function, fullgraph=True, mode=mode)
        self._said = False

    def __call__(self, *arguments: Any) -> torch.Tensor:
        if self._program is not None:
            if not self._said:
                logger.info("compiling a whole step: the first one of each size takes minutes")
                self._said = True
            try:
                answer = self._program(*arguments)
                return answer.clone() if self._mode == "reduce-overhead" else answer
            except Exception as error:
                if not _is_the_compilers(error):
                    raise
                self._program = None
                tell_broken(error)
        return self._function(*arguments)


def tell_broken(error: Exception) -> None:
    """Say that nothing is compiled from now on, and what would help."""
    cause = getattr(error, "inner_exception", error)
    reason = next((line.strip() for line in str(cause).splitlines() if line.strip()), "no reason given")
    logger.warning(
        "torch.compile does not work here, the network runs as it is (%s: %s). It needs a C++ compiler for the CPU and "
        "Triton for a graphics card; compile = off is the same video without this warning.",
        type(cause).__name__,
        reason[:160],
    )


def _copy(piece: Any, width: int) -> Piece:
    """A function of its own with the same code: torch counts the programs of each function, and limits them."""
    code = piece.__code__.replace(co_name=f"{piece.__name__}_{width}")
    return types.FunctionType(code, piece.__globals__, code.co_name, piece.__defaults__, piece.__closure__)


def _is_the_compilers(error: Exception) -> bool:
    """Whether compiling failed, and not the computation: that has then not begun."""
    from torch._dynamo import exc

    return isinstance(error, exc.TorchDynamoException | exc.FailOnRecompileLimitHit)
