"""Sample with each sampler through the nodes inside ComfyUI, and print differences as JSON.

`python core_model_samplers.py PACKAGE BASE [flags]` runs in ComfyUI's Python with its checkout on PYTHONPATH. "MODEL"
is core's small random SVD of core_guidance.py against core's KSampler; "SVD_MODEL" is svd-nano, whose samplers of both
kinds are compared. A difference is the largest absolute difference, in units of the standard deviation of core's
result.
"""

from __future__ import annotations

import json
import sys
from importlib import import_module
from typing import Any

from core_guidance import Guided, difference  # pyright: ignore[reportMissingImports]

WEIGHT = 3.0


class Sampled:
    """SVDEulerSampler with a SAMPLER, on core's MODEL."""

    def __init__(self, guided: Guided) -> None:
        self.guided = guided

    def core_sampler(self, name: str) -> Any:
        """Return core's SAMPLER of this name."""
        sampler = self.guided.custom.KSamplerSelect().get_sampler(name)
        return (sampler.args if hasattr(sampler, "args") else sampler)[0]

    def sample(self, sampler: Any, sigmas: Any, latent: Any = None, noise: str = "comfyui", model: Any = None) -> Any:
        """Sample a LATENT over noise levels with SVDEulerSampler and a constant guidance weight."""
        guided = self.guided
        (answer,) = guided.node(
            "SVDEulerSampler", model or guided.model, guided.positive, guided.negative, latent or guided.latent,
            7, 1, 1.0, 1.0, noise, sigmas=sigmas, guidance=guided.curve(WEIGHT, WEIGHT, "constant"), sampler=sampler,
        )  # fmt: skip
        return answer

    def on_model(self, names: list[str]) -> dict[str, float]:
        """Compare both kinds of SAMPLER with core's KSampler of that name."""
        guided, results = self.guided, {}
        for name in names:
            wanted = guided.ksampler(guided.model, WEIGHT, name)
            (ours,) = guided.node("SVDSamplerSelect", name)
            sigmas = guided.sigmas(name)
            results[name] = difference(self.sample(ours, sigmas)["samples"], wanted)
            theirs = self.sample(self.core_sampler(name), sigmas.clone())["samples"]
            results[f"{name} of KSamplerSelect"] = difference(theirs, wanted)
        return results

    def in_parts(self) -> dict[str, float]:
        """Compare a schedule in two halves, and a part of one on a latent, with core's KSamplerAdvanced."""
        guided = self.guided
        (ours,) = guided.node("SVDSamplerSelect", "heun")
        sigmas = guided.sigmas()
        first = self.sample(ours, sigmas[:3])
        halves = self.sample(ours, sigmas[2:], first, "none")["samples"]
        video = {"samples": guided.latent["samples"] + 0.1}
        (wanted,) = guided.core.KSamplerAdvanced().sample(
            guided.model,
            "enable",
            7,
            4,
            WEIGHT,
            "heun",
            "karras",
            guided.positive,
            guided.negative,
            video,
            2,
            4,
            "disable",
        )
        part = self.sample(ours, sigmas[2:], video)["samples"]
        return {
            "halves": difference(halves, guided.ksampler(guided.model, WEIGHT, "heun")),
            "on a latent": difference(part, wanted["samples"]),
        }

    def with_cache(self) -> str:
        """Return how SVDToComfyModel refuses a model that reuses features."""
        node = self.guided.node
        model, clip_vision, vae = node("SVDCheckpointLoader", "svd-nano", "fp32")
        (cached,) = node("SVDStepCache", model, "deepcache", 2, 10000.0, 0.0)
        try:
            node("SVDToComfyModel", cached, clip_vision, vae)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return ""

    def on_svd_model(self, names: list[str]) -> dict[str, float]:
        """Compare core's SAMPLER with ours on svd-nano: two videos, which have the noise of their own seeds.

        Not with 3 steps: from sigma 15 to 0.002 core's float32 rounds the ancestral level to 0, and adds no noise. Not
        uni_pc: there core computes sigma as sqrt(1 - alpha^2) in float32, which is 3 % off at 0.001.
        """
        import torch

        _guided, node, results = self.guided, self.guided.node, {}
        model, clip_vision, vae = node("SVDCheckpointLoader", "svd-nano", "fp32")
        pictures = torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(2))
        (embedded,) = node("SVDCLIPVisionEncode", clip_vision, pictures, "reference")
        (encoded,) = node("SVDVAEEncode", vae, pictures)
        positive, negative, latent = node("SVDImageConditioning", embedded, encoded, 2)
        for name in names:
            (ours,) = node("SVDSamplerSelect", name)
            wanted, sampled = (
                node("SVDEulerSampler", model, positive, negative, latent, 7, 8, 1.0, 2.5, "comfyui", sampler=sampler)
                for sampler in (ours, self.core_sampler(name))
            )
            results[name] = difference(sampled[0]["samples"], wanted[0]["samples"])
        return results


def main() -> None:
    package, base, *flags = sys.argv[1:]
    sys.argv[1:] = ["--base-directory", base, *flags]
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.model_management  # its presence tells the package where it is
    import torch
    from core_runtime import import_folder

    import_folder(package)
    names = list(import_module(f"{package}.svd_core.pipeline").SAMPLERS)
    with torch.inference_mode():
        sampled = Sampled(Guided(package))
        results = {
            "MODEL": sampled.on_model(names),
            "parts": sampled.in_parts(),
            "SVD_MODEL": sampled.on_svd_model([name for name in names if name not in ("ddim", "uni_pc", "uni_pc_bh2")]),
            "cache": sampled.with_cache(),
        }
    sys.stdout.write("\n" + json.dumps(results))


if __name__ == "__main__":
    main()
