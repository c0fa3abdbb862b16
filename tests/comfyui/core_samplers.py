"""Compare this package's samplers with core's on one analytic model: `python core_samplers.py PACKAGE FILE [flags]`.

Runs in ComfyUI's Python with its checkout on PYTHONPATH. Writes FILE, an npz with the results "WHO NAME":

- core: core's sampler on core's kind of model. exact: the same in float64, with the same noise.
- wrapped: this package's SAMPLER on it, with core's noise.
- of a model: this package's solver alone, as without ComfyUI. It adds 1 to the seed of independent noise, as core does
  since 0.28; before that it gets a seed that is one less.
- on ours: core's SAMPLER on a denoiser of this package.

"refused NAME" holds the error of a sampler that an SVD_MODEL cannot take.
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Any

import numpy as np

SEED = 3
OTHERS = ("dpmpp_3m_sde", "res_multistep", "ipndm", "dpm_fast", "lms", "euler_cfg_pp", "dpmpp_2m_cfg_pp")
"""Samplers that only core has."""


def core_noise(function: Any, x: Any, sigmas: Any) -> dict[str, Any]:
    """Return core's float32 noise of the seed as an argument of its sampler, if it takes one."""
    import comfy.k_diffusion.sampling as k_diffusion

    if "noise_sampler" not in inspect.signature(function).parameters:
        return {}
    if "_sde" in function.__name__:
        low, high = sigmas[sigmas > 0].min(), sigmas.max()
        noise = k_diffusion.BrownianTreeNoiseSampler(x, low, high, seed=SEED, cpu=True)
    else:
        noise = k_diffusion.default_noise_sampler(x, seed=SEED)
    return {"noise_sampler": lambda sigma, sigma_next: noise(sigma.float(), sigma_next.float()).double()}


def main(package_folder: str, file: Path) -> None:
    import comfy.k_diffusion.sampling as k_diffusion
    import comfy.samplers
    import torch
    from core_runtime import import_folder  # pyright: ignore[reportMissingImports]

    package = import_folder(package_folder).__name__
    sampling = sys.modules.get(f"{package}.nodes.comfy.sampling") or __import__(
        f"{package}.nodes.comfy.sampling", fromlist=["sampling"]
    )
    solvers, ignore = sampling.SOLVERS, lambda step: None
    torch.manual_seed(0)
    mix = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64)).Q
    x = torch.randn(3, 4, 8, 8) * 700
    sigmas = sampling.make_sigmas("align_your_steps", 6)

    def denoise(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        scaled = x / (sigma**2 + 1) ** 0.5
        turn = mix.to(scaled)
        v = torch.tanh((1.5 + 0.25 * sigma.log()) * scaled @ turn) - 0.3 * scaled @ turn.T
        return x / (sigma**2 + 1) - sigma / (sigma**2 + 1) ** 0.5 * v

    core_model = sampling._CoreDenoiser(lambda x, sigma: denoise(x, sigma.view(-1, *[1] * (x.ndim - 1))))
    drawn = k_diffusion.default_noise_sampler(x, seed=SEED)(sigmas[0], sigmas[1])
    moved = torch.equal(drawn, torch.randn(x.shape, generator=torch.Generator().manual_seed(SEED + 1)))
    results = {}
    for name in (*solvers, *OTHERS):
        if name != "ddim":
            chosen = comfy.samplers.sampler_object(name)
            options = {"seed": SEED, "model_options": {}, "denoise_mask": None}
            if not name.endswith("cfg_pp"):
                results[f"core {name}"] = chosen.sampler_function(
                    core_model, x.clone(), sigmas.clone(), extra_args=dict(options), callback=None, disable=True
                ).numpy()
            if name in solvers and name != "ddim":
                noise = core_noise(chosen.sampler_function, x, sigmas)
                torch.set_default_dtype(torch.float64)  # that of uni_pc's coefficients
                results[f"exact {name}"] = chosen.sampler_function(
                    core_model, x.double(), sigmas.double(), dict(options), callback=None, disable=True, **noise
                ).numpy()
                torch.set_default_dtype(torch.float32)
            try:
                ours = sampling.read_sampler(chosen)(denoise, x[None], sigmas, ignore, SEED)
                results[f"on ours {name}"] = ours[0].numpy()
            except Exception as error:
                results[f"refused {name}"] = np.array(f"{type(error).__name__}: {error}")
        if name in solvers:
            options = {"seed": SEED}
            wrapped = sampling.make_sampler(name).sampler_function
            results[f"wrapped {name}"] = wrapped(core_model, x.clone(), sigmas, extra_args=options).numpy()
            independent = solvers[name].make_noise is sampling.independent_noise
            seed = SEED - 1 if independent and not moved else SEED
            results[f"of a model {name}"] = solvers[name](denoise, x[None], sigmas, ignore, seed)[0].numpy()
    np.savez(file, **results)


if __name__ == "__main__":
    package, file, *flags = sys.argv[1:]
    sys.argv[1:] = flags
    import comfy.options

    comfy.options.enable_args_parsing()
    main(package, Path(file))
