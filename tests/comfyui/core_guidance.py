"""Sample with refined guidance on core's MODEL, and print differences, equalities and network calls as JSON.

`python core_guidance.py PACKAGE BASE [flags]` runs in ComfyUI's Python with its checkout on PYTHONPATH. The MODEL is
core's SVD class with 64 channels and random weights. A difference is the largest absolute difference, in units of the
standard deviation of core's result.
"""

from __future__ import annotations

import json
import sys
from importlib import import_module
from typing import Any

FRAMES, SEED, STEPS = 3, 7, 4
WIDTH = 64
DEFAULTS = {"sigma_low": 0.0, "sigma_high": 10000.0, "rescale": 0.0, "eta": 1.0, "norm_threshold": 0.0, "momentum": 0.0}


def difference(ours, core) -> float:
    """Return the largest absolute difference over core's standard deviation. The shapes must be equal."""
    assert ours.shape == core.shape, (tuple(ours.shape), tuple(core.shape))
    return float((ours - core).abs().max() / core.std())


def small_model():
    """Return core's MODEL of a small SVD with random weights."""
    import comfy.model_base
    import comfy.model_patcher
    import comfy.supported_models
    import torch

    config = {
        "image_size": 32, "in_channels": 8, "out_channels": 4, "model_channels": WIDTH, "num_res_blocks": [1, 1],
        "channel_mult": (1, 2), "transformer_depth": [1, 1], "transformer_depth_output": [1, 1, 1, 1],
        "transformer_depth_middle": 1, "context_dim": 32, "num_classes": "sequential", "adm_in_channels": 768,
        "use_spatial_transformer": True, "use_linear_in_transformer": True, "use_temporal_attention": True,
        "use_temporal_resblock": True, "video_kernel_size": [3, 1, 1], "use_spatial_context": True,
        "extra_ff_mix_layer": True, "merge_strategy": "learned_with_images", "merge_factor": 0.0, "legacy": False,
        "dtype": torch.float32,
    }  # fmt: skip
    cpu = torch.device("cpu")
    model = comfy.model_base.SVD_img2vid(comfy.supported_models.SVD_img2vid(config), device=cpu)
    generator = torch.Generator("cpu").manual_seed(0)
    for parameter in model.diffusion_model.parameters():
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 4
        parameter.data = torch.randn(parameter.shape, generator=generator) / fan_in**0.5
    model.eval()
    return comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)


class Guided:
    """Core's MODEL, conditioning for it, and the nodes of both sides."""

    def __init__(self, package: str):
        import torch
        from comfy_extras import nodes_apg, nodes_custom_sampler, nodes_model_advanced

        self.core, self.custom = import_module("nodes"), nodes_custom_sampler
        self.apg, self.advanced = nodes_apg, nodes_model_advanced
        self.ours: dict[str, Any] = sys.modules[f"{package}.nodes"].NODE_CLASS_MAPPINGS
        generator = torch.Generator("cpu").manual_seed(1)
        embeds, image = (torch.randn(shape, generator=generator) for shape in ((1, 1, 32), (1, 4, 8, 8)))
        keys = {"fps": 6, "motion_bucket_id": 127, "augmentation_level": 0.0}
        self.positive = [[embeds, {**keys, "concat_latent_image": image}]]
        self.negative = [[torch.zeros_like(embeds), {**keys, "concat_latent_image": torch.zeros_like(image)}]]
        self.latent = {"samples": torch.zeros(FRAMES, 4, 8, 8)}
        self.sides = sides = []
        self.model = small_model()

        def count(apply, options):  # a function, because core copies the attributes of other options
            sides.extend(options["cond_or_uncond"])
            return apply(options["input"], options["timestep"], **options["c"])

        self.model.set_model_unet_function_wrapper(count)

    def node(self, name: str, *values, **named):
        """Call a node of ours."""
        return getattr(self.ours[name](), self.ours[name].FUNCTION)(*values, **named)

    def curve(self, low: float, high: float, shape: str = "linear", **settings):
        """Return an SVD_GUIDANCE, refined if there are settings."""
        (curve,) = self.node("SVDGuidance", shape, low, high)
        return self.node("SVDGuidanceRefine", guidance=curve, **{**DEFAULTS, **settings})[0] if settings else curve

    def patched(self, curve):
        """Return the MODEL with SVDFrameGuidance."""
        return self.node("SVDFrameGuidance", self.model, 1.0, 1.0, curve)[0]

    def ksampler(self, model, cfg: float = 1.0, sampler: str = "euler"):
        """Sample with core's KSampler."""
        (answer,) = self.core.KSampler().sample(
            model, SEED, STEPS, cfg, sampler, "karras", self.positive, self.negative, self.latent, 1.0
        )
        return answer["samples"]

    def guider(self, curve, model=None):
        """Return the function that samples with core's SamplerCustomAdvanced and SVDFrameGuider."""
        (guider,) = self.node("SVDFrameGuider", model or self.model, self.positive, self.negative, 1.0, 1.0, curve)
        sampler = self.custom.KSamplerSelect().get_sampler("euler")
        (sampler,) = sampler.args if hasattr(sampler, "args") else sampler
        noise, sigmas = self.custom.Noise_RandomNoise(SEED), self.sigmas()
        kind = self.custom.SamplerCustomAdvanced
        sample = kind.execute if hasattr(kind, "execute") else kind().sample

        def run():
            answer = sample(noise, guider, sampler, sigmas, self.latent)
            output, _ = answer.args if hasattr(answer, "args") else answer
            return output["samples"]

        return run

    def own(self, curve):
        """Sample with SVDEulerSampler."""
        (answer,) = self.node(
            "SVDEulerSampler", self.model, self.positive, self.negative, self.latent, SEED, STEPS, 1.0, 1.0, "comfyui",
            sigmas=self.sigmas(), guidance=curve,
        )  # fmt: skip
        return answer["samples"]

    def sigmas(self, sampler: str = "euler"):
        """Return the noise levels of core's KSampler for a sampler."""
        import comfy.samplers

        return comfy.samplers.KSampler(self.model, STEPS, "cpu", sampler, "karras").sigmas


def core_patch(kind: Any, model: Any, *values: Any) -> Any:
    """Call a core node that patches a MODEL, of either API."""
    if hasattr(kind, "execute"):
        return kind.execute(model, *values).args[0]
    return kind().patch(model, *values)[0]


def formulas(guided: Guided) -> dict[str, float]:
    """Compare rescale with core's RescaleCFG, and projection with core's APG, which adds its difference to weight 1."""
    constant = {"shape": "constant", "low": 1.0, "high": 3.0}
    rescaled = guided.ksampler(core_patch(guided.advanced.RescaleCFG, guided.model, 0.7), 3.0)
    projected = guided.ksampler(core_patch(guided.apg.APG, guided.model, 0.3, 4.0, -0.5), 2.0)
    plain = guided.ksampler(guided.model, 3.0)
    projection = {"eta": 0.3, "norm_threshold": 4.0, "momentum": -0.5}
    return {
        "RescaleCFG": difference(guided.ksampler(guided.patched(guided.curve(**constant, rescale=0.7))), rescaled),
        "APG": difference(guided.ksampler(guided.patched(guided.curve(**constant, **projection))), projected),
        "effect of RescaleCFG": difference(plain, rescaled),
        "effect of APG": difference(plain, projected),
    }


def consumers(guided: Guided) -> dict[str, Any]:
    """Sample with one refined curve in three ways, and each of them twice."""
    import torch

    curve = guided.curve(1.0, 3.0, sigma_high=60.0, rescale=0.4, eta=0.2, norm_threshold=5.0, momentum=-0.7)
    patched = guided.patched(curve)
    advanced = guided.guider(curve)
    runs = {
        "SVDFrameGuidance": lambda: guided.ksampler(patched),
        "SVDFrameGuider": advanced,
        "SVDEulerSampler": lambda: guided.own(curve),
        "SVDFrameGuider replaces SVDFrameGuidance": guided.guider(curve, guided.patched(guided.curve(1.0, 9.0))),
    }
    twice = {name: (run(), run()) for name, run in runs.items()}
    wanted = twice["SVDFrameGuidance"][0]
    return {
        "differences": {name: difference(first, wanted) for name, (first, _) in twice.items()},
        "repeatable": all(torch.equal(*pair) for pair in twice.values()),
        "effect": difference(guided.ksampler(guided.patched(guided.curve(1.0, 3.0))), wanted),
    }


def neutral(guided: Guided) -> dict[str, bool]:
    """Compare the bits of guidance with default refinements and without."""
    import torch

    plain, refined = guided.curve(1.5, 3.0), guided.curve(1.5, 3.0, **DEFAULTS)
    return {
        "SVDFrameGuidance": torch.equal(
            guided.ksampler(guided.patched(plain)), guided.ksampler(guided.patched(refined))
        ),
        "SVDFrameGuider": torch.equal(guided.guider(plain)(), guided.guider(refined)()),
        "SVDEulerSampler": torch.equal(guided.own(plain), guided.own(refined)),
    }


def interval(guided: Guided) -> dict[str, Any]:
    """Count the sides that the network computes in each step. Guidance acts at the second and third noise level."""
    levels = guided.sigmas().tolist()
    curve = guided.curve(1.0, 3.0, sigma_low=levels[3], sigma_high=levels[1])
    runs = {
        "SVDFrameGuidance": lambda: guided.ksampler(guided.patched(curve)),
        "SVDFrameGuider": guided.guider(curve),
        "SVDEulerSampler": lambda: guided.own(curve),
    }
    sides = {}
    for name, run in runs.items():
        guided.sides.clear()
        run()
        sides[name] = len(guided.sides)
    nowhere = guided.patched(guided.curve(1.0, 3.0, sigma_low=9999.0))
    return {
        "sides": sides,
        "cfg_pp without guidance": difference(
            guided.ksampler(nowhere, sampler="euler_cfg_pp"), guided.ksampler(guided.model, 1.0)
        ),
    }


def main() -> None:
    package, base, *flags = sys.argv[1:]
    sys.argv[1:] = ["--base-directory", base, *flags]
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.model_management  # its presence tells the package where it is
    import torch
    from core_runtime import import_folder

    import_folder(package)
    with torch.inference_mode():
        guided = Guided(package)
        results = {part.__name__: part(guided) for part in (formulas, consumers, neutral, interval)}
    sys.stdout.write("\n" + json.dumps(results))


if __name__ == "__main__":
    main()
