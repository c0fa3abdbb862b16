"""Call functions of tensors eagerly or compiled by torch.compile.

Regional compilation compiles functions inside the repeated blocks, not the blocks. The functions take only tensors, so
all blocks of one width share a compiled function, whatever their weights, the image size or the number of frames.
torch caches compiled code on disk (TORCHINDUCTOR_CACHE_DIR): only the first process compiles.
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
"""Calls its first argument, a TensorFunction, with the other arguments."""


def run_eager(function: TensorFunction, *arguments: Any) -> torch.Tensor:
    """Call `function` without compilation."""
    return function(*arguments)


class _CompileCache:
    """Compiled functions by key. If torch.compile fails, functions run eagerly from then on.

    Each key has a copy of the function with its own code object: torch counts and limits compilations per code object.

    Attributes:
        broken: True after torch.compile failed.
    """

    def __init__(self, message: str, mode: str | None = None) -> None:
        self._message, self._mode = message, mode
        self._compiled: dict[Hashable, TensorFunction] = {}
        self.broken = False

    def _run(
        self, key: Hashable, function: TensorFunction, arguments: tuple[Any, ...], dynamic: bool | None
    ) -> torch.Tensor:
        if self.broken:
            return function(*arguments)
        try:
            return self._compile(key, function, dynamic)(*arguments)
        except Exception as error:
            if not _is_compile_error(error):
                raise
            result = function(*arguments)  # an error of the function itself is raised here
            self._fall_back(key, error, function)
            return result

    def _compile(self, key: Hashable, function: TensorFunction, dynamic: bool | None) -> TensorFunction:
        if key not in self._compiled:
            if not self._compiled:
                logger.info("%s", self._message)
            name = f"{getattr(function, '__name__', 'function')}_{len(self._compiled)}"
            try:
                copied = _copy(function, name)
                self._compiled[key] = torch.compile(copied, fullgraph=True, dynamic=dynamic, mode=self._mode)
            except RuntimeError as error:  # torch.compile does not support this Python version or system
                raise _CompileUnavailable(str(error)) from error
        return self._compiled[key]

    def _fall_back(self, key: Hashable, error: Exception, function: TensorFunction) -> None:
        if _is_recompile_limit(error):
            self._compiled[key] = function
            return
        self.broken = True
        cause = getattr(error, "inner_exception", error)
        reason = next((line.strip() for line in str(cause).splitlines() if line.strip()), "no reason given")
        logger.warning(
            "torch.compile failed, the network runs eagerly with the same result (%s: %s). torch.compile needs a C++ "
            "compiler for the CPU and Triton for a GPU. Set compile = off to avoid this warning.",
            type(cause).__name__,
            reason[:160],
        )


class RegionalCompiler(_CompileCache):
    """Calls functions compiled, once per number of channels. The other dimensions are dynamic, unless `mode` is set.

    Args:
        channel_dims: The functions that may be compiled, each with the channel dimension of its first argument.
        mode: torch.compile's mode, such as max-autotune-no-cudagraphs: once per shape. None: torch's default.
    """

    def __init__(self, channel_dims: dict[TensorFunction, int], mode: str | None = None) -> None:
        super().__init__("compiling the repeated blocks: the first step takes longer", mode)
        self._channel_dims = channel_dims

    def __call__(self, function: TensorFunction, *arguments: Any) -> torch.Tensor:
        """Run `function` compiled, or eagerly if it may not be compiled or the compiler failed."""
        if function not in self._channel_dims or self.broken:
            return function(*arguments)
        x, *rest = arguments
        if self._mode is not None:
            key = (function, x.shape, x.stride(), x.dtype, x.device, *map(_cache_key, rest))
            return self._run(key, function, arguments, dynamic=False)
        channel_dim = self._channel_dims[function] % x.ndim
        for dim, size in enumerate(x.shape):
            if dim != channel_dim and size > 1:
                torch._dynamo.maybe_mark_dynamic(x, dim)
        ones = tuple(size == 1 for size in x.shape)
        key = (function, x.shape[channel_dim], ones, x.dtype, x.device, *map(_cache_key, rest))
        return self._run(key, function, arguments, dynamic=None)


class CompiledStep(_CompileCache):
    """Calls a method compiled as one graph, once per shape of its first tensor."""

    def __init__(self, method: TensorFunction) -> None:
        super().__init__("compiling the whole step: the first step of a model and a size takes minutes")
        self._method = method

    def __call__(self, instance: Any, x: torch.Tensor, *rest: Any) -> torch.Tensor:
        """Run the method of `instance`, compiled if possible."""
        return self._run((x.shape, x.dtype, x.device), self._method, (instance, x, *rest), dynamic=False)


class _CompileUnavailable(RuntimeError):
    """torch.compile refused before compiling anything."""


def _cache_key(argument: Any) -> Hashable:
    """Return the properties of an argument that a compiled function depends on."""
    if isinstance(argument, torch.Tensor):
        return argument.shape, argument.dtype
    return tuple(map(_cache_key, argument)) if isinstance(argument, tuple) else argument


def _copy(function: Any, name: str) -> TensorFunction:
    code = function.__code__.replace(co_name=name)
    return types.FunctionType(code, function.__globals__, name, function.__defaults__, function.__closure__)


def _is_compile_error(error: Exception) -> bool:
    """Return True if compilation failed, or its result cannot be launched. The inputs are then unchanged."""
    from torch._dynamo import exc

    if isinstance(error, (exc.TorchDynamoException, _CompileUnavailable)) or _is_recompile_limit(error):
        return True
    text = str(error)
    if isinstance(error, AssertionError):
        return text.startswith("expected size") and "stride" in text  # Inductor's check of its inputs
    is_from_triton = type(error).__module__.partition(".")[0] == "triton" or text.startswith("Triton Error")
    return is_from_triton and "out of memory" not in text


def _is_recompile_limit(error: Exception) -> bool:
    """Return True if torch refused to compile a code object once more. The class has several names, by version."""
    return type(error).__name__ in ("FailOnRecompileLimitHit", "FailOnCacheLimitHit", "RecompileLimitExceeded")
