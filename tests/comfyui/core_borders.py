"""Connect ComfyUI's core nodes and this package's nodes in both directions, and print the differences as JSON.

`python core_borders.py PACKAGE CHECKPOINT BASE [flags]` runs in ComfyUI's Python with its checkout on PYTHONPATH.
PACKAGE is the folder, imported as ComfyUI imports it. CHECKPOINT is a one-file checkpoint. A difference is the largest
absolute difference, in units of the standard deviation of core's result.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

FRAMES, WIDTH, HEIGHT, STEPS, SEED = 4, 128, 64, 3, 7
LOW, HIGH = 1.5, 3.0
LORA_RANK, LORA_STRENGTH = 4, 0.8
RUNS = 5
COLUMNS = (lambda rows: [seconds for seconds, _ in rows], lambda rows: [peak for _, peak in rows])


def difference(ours, core) -> float:
    """Return the largest absolute difference over core's standard deviation. The shapes must be equal."""
    assert ours.shape == core.shape, (tuple(ours.shape), tuple(core.shape))
    return float((ours.float() - core.float()).abs().max() / core.float().std())


class Borders:
    """Core's MODEL, VAE and CLIP_VISION and this package's, loaded from one file, and the nodes of both."""

    def __init__(self, package: str, checkpoint: str):
        import torch
        from comfy_extras import nodes_custom_sampler, nodes_latent, nodes_video_model

        self.torch = torch
        self.package = package
        self.core = import_module("nodes")
        self.video, self.custom, self.latent = nodes_video_model, nodes_custom_sampler, nodes_latent
        self.ours: dict[str, Any] = sys.modules[f"{package}.nodes"].NODE_CLASS_MAPPINGS
        import comfy.sd

        loaded = comfy.sd.load_checkpoint_guess_config(checkpoint, output_clip=False, output_clipvision=True)
        self.model, self.vae, self.clip = loaded[0], loaded[2], loaded[3]
        runtime = self.module("svd_core.runtime.runtime").get_runtime()
        opened = self.module("svd_core.checkpoints.load").load_checkpoint(checkpoint, "fp32", runtime.device())
        self.own = SimpleNamespace(model=opened.model, vae=opened.vae, clip=opened.clip_vision)
        generator = torch.Generator("cpu").manual_seed(0)
        self.image = torch.rand((1, HEIGHT, WIDTH, 3), generator=generator)
        self.latents = {"samples": torch.randn((FRAMES, 4, HEIGHT // 8, WIDTH // 8), generator=generator)}

    def module(self, name: str):
        """Import a module of the package."""
        return import_module(f"{self.package}.{name}")

    def node(self, name: str, *values, **named):
        """Call a node of ours."""
        return getattr(self.ours[name](), self.ours[name].FUNCTION)(*values, **named)

    def core_conditioning(self):
        """Return (positive, negative, LATENT) of core's node."""
        return self.video.SVD_img2vid_Conditioning().encode(
            self.clip, self.image, self.vae, WIDTH, HEIGHT, FRAMES, 180, 12, 0.0
        )

    def our_conditioning(self, clip, vae):
        """Return (positive, negative, LATENT) of our nodes."""
        (embedding,) = self.node("SVDCLIPVisionEncode", clip, self.image, "reference")
        noisy, *_ = self.node("SVDNoiseAugmentation", self.image, 0.02, 3)
        (encoded,) = self.node("SVDVAEEncode", vae, noisy)
        positive, negative, empty = self.node("SVDImageConditioning", embedding, encoded, FRAMES)
        positive, negative, _ = self.node("SVDMicroConditioning", positive, negative, 7, 127, 0.02)
        return positive, negative, empty

    def ksampler(self, conditioning, model=None, low=LOW, high=HIGH):
        """Sample with core's KSampler and core's frame guidance."""
        positive, negative, latent = conditioning
        (guided,) = self.video.VideoLinearCFGGuidance().patch(model or self.model, low)
        (answer,) = self.core.KSampler().sample(
            guided, SEED, STEPS, high, "euler", "karras", positive, negative, latent, 1.0
        )
        return answer["samples"]

    def sampler(self, model, conditioning, low=LOW, high=HIGH, noise="comfyui", **named):
        """Sample with SVDEulerSampler."""
        positive, negative, latent = conditioning
        (answer,) = self.node(
            "SVDEulerSampler", model, positive, negative, latent, SEED, STEPS, low, high, noise, **named
        )
        return answer["samples"]

    def sigmas(self):
        """Return the sigmas of SVDSigmas."""
        return self.node("SVDSigmas", STEPS, "karras", 0.002, 700.0, 7.0)[0]


def sampling(borders: Borders) -> dict[str, float]:
    """Compare the samplers with the conditioning and the models of either side."""
    core, ours = borders.core_conditioning(), borders.our_conditioning(borders.own.clip, borders.own.vae)
    differences = {}
    for name, conditioning in (("core", core), ("our", ours)):
        expected = borders.ksampler(conditioning)
        differences[f"{name} conditioning, SVD_MODEL"] = difference(
            borders.sampler(borders.own.model, conditioning), expected
        )
        differences[f"{name} conditioning, MODEL"] = difference(borders.sampler(borders.model, conditioning), expected)
    mixed = borders.our_conditioning(borders.clip, borders.vae)
    expected = borders.ksampler(ours)
    differences["our conditioning from core's CLIP_VISION and VAE"] = difference(borders.ksampler(mixed), expected)
    (guided,) = borders.node("SVDFrameGuidance", borders.model, LOW, HIGH)
    (answer,) = borders.core.KSampler().sample(guided, SEED, STEPS, 8.0, "euler", "karras", *ours, 1.0)
    differences["SVDFrameGuidance under KSampler"] = difference(answer["samples"], expected)
    differences["SVDFrameGuider and SVDEulerSamplerSelect under SamplerCustomAdvanced"] = difference(
        advanced(borders, ours), expected
    )
    return differences


def advanced(borders: Borders, conditioning, low=LOW, high=HIGH):
    """Sample with core's SamplerCustomAdvanced and our guider, sampler and sigmas."""
    positive, negative, latent = conditioning
    (guider,) = borders.node("SVDFrameGuider", borders.model, positive, negative, low, high)
    (sampler,) = borders.node("SVDEulerSamplerSelect")
    noise = borders.custom.Noise_RandomNoise(SEED)
    output, _ = borders.custom.SamplerCustomAdvanced().sample(noise, guider, sampler, borders.sigmas(), latent)
    return output["samples"]


def guidance_at_one(borders: Borders) -> dict[str, float]:
    """Compare a largest guidance weight of 1 with one of 1.0001."""
    ours = borders.our_conditioning(borders.own.clip, borders.own.vae)
    near = borders.ksampler(ours, low=2.5, high=1.0001)
    (guided,) = borders.node("SVDFrameGuidance", borders.model, 2.5, 1.0)
    (answer,) = borders.core.KSampler().sample(guided, SEED, STEPS, 1.0, "euler", "karras", *ours, 1.0)
    return {
        "SVD_MODEL": difference(borders.sampler(borders.own.model, ours, 2.5, 1.0), near),
        "MODEL": difference(borders.sampler(borders.model, ours, 2.5, 1.0), near),
        "SVDFrameGuider": difference(advanced(borders, ours, 2.5, 1.0), near),
        "SVDFrameGuidance": difference(answer["samples"], near),
        "no guidance, a MODEL with core's guidance": difference(
            borders.sampler(borders.video.VideoLinearCFGGuidance().patch(borders.model, 2.5)[0], ours, 1.0, 1.0),
            borders.ksampler(ours, low=1.0, high=1.0),
        ),
        "no guidance, MODEL": difference(
            borders.sampler(borders.model, ours, 1.0, 1.0), borders.ksampler(ours, low=1.0, high=1.0)
        ),
    }


def halves(borders: Borders) -> dict[str, float]:
    """Sample in two halves with core's SplitSigmas, and compare with one run."""
    positive, negative, empty = borders.our_conditioning(borders.own.clip, borders.own.vae)
    high, low = borders.custom.SplitSigmas().get_sigmas(borders.sigmas(), 2)
    differences = {}
    for name, model in (("SVD_MODEL", borders.own.model), ("MODEL", borders.model)):
        expected = borders.sampler(model, (positive, negative, empty))
        first = borders.sampler(model, (positive, negative, empty), sigmas=high)
        second = borders.sampler(model, (positive, negative, {"samples": first}), noise="none", sigmas=low)
        differences[name] = difference(second, expected)
    return differences


def images(borders: Borders) -> dict[str, float]:
    """Compare our VAE and CLIP nodes, with our models and with core's, with core's nodes."""
    latents = borders.latents
    (expected,) = borders.core.VAEDecode().decode(borders.vae, latents)
    (encoded,) = borders.core.VAEEncode().encode(borders.vae, borders.image)
    (expected_embedding,) = borders.core.CLIPVisionEncode().encode(borders.clip, borders.image, "center")
    differences = {}
    for name, vae, clip in (("ours", borders.own.vae, borders.own.clip), ("core's", borders.vae, borders.clip)):
        ((frames,),) = borders.node("SVDTemporalVAEDecode", vae, latents, "exact", 8, 2)
        differences[f"decode, {name}"] = difference(frames, expected)
        differences[f"encode, {name}"] = difference(
            borders.node("SVDVAEEncode", vae, borders.image)[0]["samples"], encoded["samples"]
        )
        (embedding,) = borders.node("SVDCLIPVisionEncode", clip, borders.image, "center_crop")
        for field in ("image_embeds", "penultimate_hidden_states"):
            differences[f"CLIP {field}, {name}"] = difference(
                getattr(embedding, field), getattr(expected_embedding, field)
            )
    ours, cores = (
        borders.node("SVDTemporalVAEDecode", vae, latents, "windowed", 2, 1)[0][0]
        for vae in (borders.own.vae, borders.vae)
    )
    differences["windowed decode, core's against ours"] = difference(cores, ours)
    return differences


def latents_in_between(borders: Borders, folder: str) -> dict[str, float]:
    """Compare core's latent nodes on our LATENT with the same nodes on core's LATENT."""
    ours, plain = {**borders.latents, "svd": {"frames": FRAMES}}, borders.latents
    differences = {}
    for name, change in (
        (
            "LatentUpscale",
            lambda latent: borders.core.LatentUpscale().upscale(latent, "bilinear", 192, 128, "disabled"),
        ),
        ("LatentFromBatch", lambda latent: borders.core.LatentFromBatch().frombatch(latent, 1, 2)),
    ):
        (changed,), (expected,) = change(ours), change(plain)
        differences[name] = difference(changed["samples"], expected["samples"])
        ((frames,),) = borders.node("SVDTemporalVAEDecode", borders.own.vae, changed, "exact", 8, 2)
        differences[f"{name}, decoded"] = difference(frames, borders.core.VAEDecode().decode(borders.vae, expected)[0])
    os.makedirs(os.path.join(folder, "output"), exist_ok=True)
    os.makedirs(os.path.join(folder, "input"), exist_ok=True)
    saved = borders.core.SaveLatent().save(ours, "border")["ui"]["latents"][0]["filename"]
    os.replace(os.path.join(folder, "output", saved), os.path.join(folder, "input", saved))
    (loaded,) = borders.core.LoadLatent().load(saved)
    differences["SaveLatent and LoadLatent"] = difference(loaded["samples"], plain["samples"])
    clips = borders.module("nodes.wire_formats").read_latent(loaded).clips
    differences["read again"] = difference(clips[0], plain["samples"])
    return differences


def cut_frames(borders: Borders) -> dict[str, float]:
    """Compare the samplers on a latent of LatentFromBatch, for which the noise is drawn frame by frame."""
    positive, negative, empty = borders.our_conditioning(borders.own.clip, borders.own.vae)
    (cut,) = borders.core.LatentFromBatch().frombatch(empty, 1, 2)
    expected = borders.ksampler((positive, negative, cut))
    return {
        name: difference(borders.sampler(model, (positive, negative, cut)), expected)
        for name, model in (("SVD_MODEL", borders.own.model), ("MODEL", borders.model))
    }


def lora_of(borders: Borders) -> dict:
    """Return random LoRA weights of the spatial and temporal attentions, with core's names."""
    torch = borders.torch
    generator = torch.Generator("cpu").manual_seed(1)
    weights = {}
    for name, tensor in borders.model.model.state_dict().items():
        if name.endswith(("attn1.to_q.weight", "attn2.to_v.weight")):
            key = name.removesuffix(".weight")
            rows, columns = tensor.shape
            weights[f"{key}.lora_up.weight"] = torch.randn((rows, LORA_RANK), generator=generator) / 8
            weights[f"{key}.lora_down.weight"] = torch.randn((LORA_RANK, columns), generator=generator) / 8
    return weights


def lora(borders: Borders) -> dict[str, float]:
    """Compare the samplers on core's MODEL with a LoRA."""
    import comfy.lora

    weights = lora_of(borders)
    keys = {name.rsplit(".lora_", 1)[0]: f"{name.rsplit('.lora_', 1)[0]}.weight" for name in weights}
    patched = borders.model.clone()
    patched_keys = patched.add_patches(comfy.lora.load_lora(weights, keys), LORA_STRENGTH)
    assert len(patched_keys) == len(keys), (len(patched_keys), len(keys))
    ours = borders.our_conditioning(borders.own.clip, borders.own.vae)
    expected, plain = borders.ksampler(ours, patched), borders.ksampler(ours)
    again = borders.sampler(borders.model, ours)
    return {
        "with it": difference(borders.sampler(patched, ours), expected),
        "without it again": difference(again, plain),
        "effect": difference(expected, plain),
    }


def converted(borders: Borders) -> dict[str, float]:
    """Compare SVDToComfyModel with core's own loading of the file."""
    model, clip, vae = borders.node("SVDToComfyModel", borders.own.model, borders.own.clip, borders.own.vae)
    ours = borders.our_conditioning(borders.own.clip, borders.own.vae)
    (embedding,), (expected,) = (
        borders.core.CLIPVisionEncode().encode(each, borders.image, "center") for each in (clip, borders.clip)
    )
    own, cores = (borders.core.VAEDecode().decode(each, borders.latents)[0] for each in (vae, borders.vae))
    encoded = borders.core.VAEEncode().encode(vae, borders.image)[0]["samples"]
    (through_ours,) = borders.node("SVDVAEEncode", borders.own.vae, borders.image)
    return {
        "KSampler": difference(borders.ksampler(ours, model), borders.ksampler(ours)),
        "VAEDecode": difference(own, cores),
        "VAEEncode, against the conditioning encoder": difference(encoded, through_ours["samples"]),
        "CLIPVisionEncode": difference(embedding.image_embeds, expected.image_embeds),
    }


def videos(borders: Borders) -> dict[str, float]:
    """Sample two videos in one LATENT, with core's MODEL and with ours."""
    torch = borders.torch
    borders.image, image = torch.cat([borders.image, borders.image.flip(2)]), borders.image
    pair = borders.our_conditioning(borders.own.clip, borders.own.vae)
    borders.image = image
    ours, cores = (borders.sampler(model, pair) for model in (borders.own.model, borders.model))
    return {"MODEL against SVD_MODEL": difference(cores, ours)}


def masked(borders: Borders) -> dict[str, float]:
    """Compare the samplers on core's MODEL with a noise mask."""
    torch = borders.torch
    positive, negative, _ = borders.our_conditioning(borders.own.clip, borders.own.vae)
    mask = torch.zeros((1, HEIGHT, WIDTH))
    mask[:, :, WIDTH // 2 :] = 1
    latent = {**borders.latents, "noise_mask": mask}
    expected = borders.ksampler((positive, negative, latent))
    samples = borders.sampler(borders.model, (positive, negative, latent))
    kept = difference(expected[..., : WIDTH // 32], latent["samples"][..., : WIDTH // 32])
    return {"MODEL": difference(samples, expected), "kept by the mask": kept}


def hooked(borders: Borders) -> dict[str, float]:
    """Compare the samplers with a LoRA in the conditioning, as core's hook nodes set it."""
    import comfy.hooks

    hooks = comfy.hooks.create_hook_lora(lora=lora_of(borders), strength_model=LORA_STRENGTH, strength_clip=0.0)
    plain = borders.our_conditioning(borders.own.clip, borders.own.vae)
    positive, negative = (comfy.hooks.set_hooks_for_conditioning(side, hooks) for side in plain[:2])
    model = borders.model.clone()
    expected = borders.ksampler((positive, negative, plain[2]), model)
    return {
        "MODEL": difference(borders.sampler(model, (positive, negative, plain[2])), expected),
        "effect": difference(expected, borders.ksampler(plain)),
    }


def memory(borders: Borders) -> dict[str, Any]:
    """Count our modules among core's loaded models after they ran, and after core unloaded all."""
    import comfy.model_management as management

    borders.node("SVDVAEEncode", borders.own.vae, borders.image)
    borders.node("SVDVAEEncode", borders.own.vae, borders.image)
    modules = [getattr(loaded.model.model, "module", None) for loaded in management.current_loaded_models]
    ours = [module for module in modules if module is borders.own.vae.vae]
    management.unload_all_models()
    after = [loaded for loaded in management.current_loaded_models if getattr(loaded.model.model, "module", None)]
    return {"loaded": len(ours), "after unloading": len(after)}


def cost(borders: Borders) -> dict[str, float]:
    """Return seconds and peak memory of our sampler over KSampler's, on core's MODEL: medians of interleaved runs."""
    conditioning = borders.our_conditioning(borders.own.clip, borders.own.vae)
    samplers = {
        "ours": lambda: borders.sampler(borders.model, conditioning),
        "core's": lambda: borders.ksampler(conditioning),
    }
    runs: dict[str, list[tuple[float, int]]] = {name: [] for name in samplers}
    for turn in range(1 + RUNS):
        for name, run in samplers.items():
            Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
            start = time.perf_counter()
            run()
            if turn:  # the first run of each warms up
                runs[name].append((time.perf_counter() - start, _peak_bytes()))
    seconds, peaks = ({name: statistics.median(column(rows)) for name, rows in runs.items()} for column in COLUMNS)
    return {"seconds": seconds["ours"] / seconds["core's"], "memory": peaks["ours"] / peaks["core's"]}


def _peak_bytes() -> int:
    (line,) = [each for each in Path("/proc/self/status").read_text().splitlines() if each.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


def refusals(borders: Borders) -> dict[str, str]:
    """Return "code: message" of the errors for core's models of other families, and ours that core cannot build."""
    import comfy.sd
    import comfy.taesd.taesd

    ours = borders.our_conditioning(borders.own.clip, borders.own.vae)
    other = SimpleNamespace(get_model_object=None, model=borders.torch.nn.Linear(1, 1))
    nano = borders.module("svd_core.checkpoints.load").load_checkpoint(
        borders.module("svd_core.checkpoints.library").EMBEDDED_FILE, "fp32", borders.torch.device("cpu")
    )
    small_vae = comfy.sd.VAE(sd=comfy.taesd.taesd.TAESD().state_dict())
    attempts = {
        "model": lambda: borders.sampler(other, ours),
        "guider": lambda: borders.node("SVDFrameGuider", other, *ours[:2], 1.0, 3.0),
        "vae": lambda: borders.node("SVDTemporalVAEDecode", small_vae, borders.latents, "exact", 8, 2),
        "wrong socket": lambda: borders.node("SVDTemporalVAEDecode", borders.clip, borders.latents, "exact", 8, 2),
        "nano": lambda: borders.node("SVDToComfyModel", nano.model, nano.clip_vision, nano.vae),
    }
    return {name: _error_text(attempt) for name, attempt in attempts.items()}


def failures(borders: Borders) -> dict[str, Any]:
    """Make core's VAE in bfloat16 overflow and run out of memory, and a MODEL return NaN."""
    import comfy.model_management as management

    torch, vae, first = borders.torch, borders.vae, borders.vae.first_stage_model
    runtime, errors = borders.module("svd_core.runtime.runtime"), borders.module("svd_core.errors")
    decode, notes = first.decode, []

    def frames():
        return borders.node("SVDTemporalVAEDecode", vae, borders.latents, "exact", 8, 2)[0][0]

    def overflowing(latents):
        pixels = decode(latents)
        return pixels if pixels.dtype == torch.float32 else pixels * float("inf")

    def too_large(_latents):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    first.bfloat16().float()
    wanted = frames()
    first.bfloat16()
    vae.vae_dtype = torch.bfloat16
    own = [(name, id(weight), weight.dtype) for name, weight in first.named_parameters()]
    first.decode = overflowing
    with runtime.use_runtime(type(runtime.get_runtime())(on_note=notes.append)):
        again = frames()
    restored = own == [(name, id(weight), weight.dtype) for name, weight in first.named_parameters()]
    first.decode = too_large
    short = _code(frames, errors.MemoryBudgetError)
    loaded = len(management.current_loaded_models)
    first.decode = decode
    after = frames()
    invalid = borders.model.clone()
    invalid.set_model_unet_function_wrapper(
        lambda apply, options: apply(options["input"], options["timestep"], **options["c"]) / 0
    )
    ours = borders.our_conditioning(borders.own.clip, borders.own.vae)
    return {
        "notes": [note.code for note in notes],
        "retried in float32": difference(again, wanted),
        "weights restored": restored,
        "memory": [short, loaded],
        "bfloat16 afterwards": difference(after, wanted),
        "nan": _code(lambda: borders.sampler(invalid, ours), errors.NonFiniteError),
    }


def _code(attempt, kind) -> str:
    try:
        attempt()
    except kind as error:
        return error.code
    return "nothing"


def _error_text(attempt) -> str:
    try:
        attempt()
    except ValueError as error:
        return f"{error.code}: {error}"
    return "nothing"


def main() -> None:
    package, checkpoint, base, *flags = sys.argv[1:]
    sys.argv[1:] = ["--base-directory", base, *flags]
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.model_management  # its presence tells the package where it is
    import torch
    from core_runtime import import_folder

    import_folder(package)
    with torch.inference_mode():
        borders = Borders(package, checkpoint)
        results = {
            "sampling": sampling(borders),
            "guidance_at_one": guidance_at_one(borders),
            "halves": halves(borders),
            "images": images(borders),
            "latents_in_between": latents_in_between(borders, base),
            "cut_frames": cut_frames(borders),
            "lora": lora(borders),
            "converted": converted(borders),
            "videos": videos(borders),
            "masked": masked(borders),
            "hooked": hooked(borders),
            "memory": memory(borders),
            "cost": cost(borders),
            "refusals": refusals(borders),
            "failures": failures(borders),
        }
    sys.stdout.write("\n" + json.dumps(results))


if __name__ == "__main__":
    main()
