"""Every border between ComfyUI's core nodes and ours, crossed both ways inside ComfyUI: prints JSON of differences.

`python core_borders.py PACKAGE CHECKPOINT BASE [flags]` runs in ComfyUI's Python with its checkout on PYTHONPATH.
PACKAGE is the folder, imported as ComfyUI imports it; CHECKPOINT a one-file checkpoint. A difference is the largest
one, in units of the standard deviation of core's answer.
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
    """Largest difference over core's deviation; shapes must agree."""
    assert ours.shape == core.shape, (tuple(ours.shape), tuple(core.shape))
    return float((ours.float() - core.float()).abs().max() / core.float().std())


class Borders:
    """Core's three parts and ours, of one file, and the nodes of both."""

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
        host = self.module("svd_core.runtime.runtime").current()
        opened = self.module("svd_core.checkpoints.load").load_checkpoint(checkpoint, "fp32", host.device())
        self.own = SimpleNamespace(model=opened.model, vae=opened.vae, clip=opened.clip_vision)
        generator = torch.Generator("cpu").manual_seed(0)
        self.image = torch.rand((1, HEIGHT, WIDTH, 3), generator=generator)
        self.latents = {"samples": torch.randn((FRAMES, 4, HEIGHT // 8, WIDTH // 8), generator=generator)}

    def module(self, name: str):
        """A module of the package."""
        return import_module(f"{self.package}.{name}")

    def node(self, name: str, *values, **named):
        """Call a node of ours."""
        return getattr(self.ours[name](), self.ours[name].FUNCTION)(*values, **named)

    def core_conditioning(self):
        """(positive, negative, LATENT) of core's node."""
        return self.video.SVD_img2vid_Conditioning().encode(
            self.clip, self.image, self.vae, WIDTH, HEIGHT, FRAMES, 180, 12, 0.0
        )

    def our_conditioning(self, clip, vae):
        """(positive, negative, LATENT) of our chain of nodes."""
        (seen,) = self.node("SVDCLIPVisionEncode", clip, self.image, "reference")
        noisy, *_ = self.node("SVDNoiseAugmentation", self.image, 0.02, 3)
        (encoded,) = self.node("SVDVAEEncode", vae, noisy)
        positive, negative, empty = self.node("SVDImageConditioning", seen, encoded, FRAMES)
        positive, negative, _ = self.node("SVDMicroConditioning", positive, negative, 7, 127, 0.02)
        return positive, negative, empty

    def ksampler(self, conditioning, model=None, low=LOW, high=HIGH):
        """Core's KSampler behind core's guidance over the frames."""
        positive, negative, latent = conditioning
        (guided,) = self.video.VideoLinearCFGGuidance().patch(model or self.model, low)
        (answer,) = self.core.KSampler().sample(
            guided, SEED, STEPS, high, "euler", "karras", positive, negative, latent, 1.0
        )
        return answer["samples"]

    def sampler(self, model, conditioning, low=LOW, high=HIGH, noise="comfyui", **named):
        """Our sampler."""
        positive, negative, latent = conditioning
        (answer,) = self.node(
            "SVDEulerSampler", model, positive, negative, latent, SEED, STEPS, low, high, noise, **named
        )
        return answer["samples"]

    def sigmas(self):
        """Our schedule."""
        return self.node("SVDSigmas", STEPS, "karras", 0.002, 700.0, 7.0)[0]


def sampling(borders: Borders) -> dict[str, float]:
    """Conditioning and models, mixed."""
    core, ours = borders.core_conditioning(), borders.our_conditioning(borders.own.clip, borders.own.vae)
    found = {}
    for name, conditioning in (("core", core), ("our", ours)):
        expected = borders.ksampler(conditioning)
        found[f"{name} conditioning, SVD_MODEL"] = difference(
            borders.sampler(borders.own.model, conditioning), expected
        )
        found[f"{name} conditioning, MODEL"] = difference(borders.sampler(borders.model, conditioning), expected)
    mixed = borders.our_conditioning(borders.clip, borders.vae)
    expected = borders.ksampler(ours)
    found["our conditioning from core's CLIP_VISION and VAE"] = difference(borders.ksampler(mixed), expected)
    (guided,) = borders.node("SVDFrameGuidance", borders.model, LOW, HIGH)
    (answer,) = borders.core.KSampler().sample(guided, SEED, STEPS, 8.0, "euler", "karras", *ours, 1.0)
    found["SVDFrameGuidance under KSampler"] = difference(answer["samples"], expected)
    found["SVDFrameGuider and SVDEulerSamplerSelect under SamplerCustomAdvanced"] = difference(
        advanced(borders, ours), expected
    )
    return found


def advanced(borders: Borders, conditioning, low=LOW, high=HIGH):
    """Core's SamplerCustomAdvanced with our guider, our sampler and our sigmas."""
    positive, negative, latent = conditioning
    (guider,) = borders.node("SVDFrameGuider", borders.model, positive, negative, low, high)
    (sampler,) = borders.node("SVDEulerSamplerSelect")
    noise = borders.custom.Noise_RandomNoise(SEED)
    output, _ = borders.custom.SamplerCustomAdvanced().sample(noise, guider, sampler, borders.sigmas(), latent)
    return output["samples"]


def guidance_at_one(borders: Borders) -> dict[str, float]:
    """Largest weight exactly 1: the same as just beside it."""
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
    """Core's SplitSigmas: the first half, then the second on what it left."""
    positive, negative, empty = borders.our_conditioning(borders.own.clip, borders.own.vae)
    high, low = borders.custom.SplitSigmas().get_sigmas(borders.sigmas(), 2)
    found = {}
    for name, model in (("SVD_MODEL", borders.own.model), ("MODEL", borders.model)):
        whole = borders.sampler(model, (positive, negative, empty))
        first = borders.sampler(model, (positive, negative, empty), sigmas=high)
        second = borders.sampler(model, (positive, negative, {"samples": first}), noise="none", sigmas=low)
        found[name] = difference(second, whole)
    return found


def pictures(borders: Borders) -> dict[str, float]:
    """VAE and CLIP, each with our part and with core's, against core's own nodes."""
    latents = borders.latents
    (expected,) = borders.core.VAEDecode().decode(borders.vae, latents)
    (encoded,) = borders.core.VAEEncode().encode(borders.vae, borders.image)
    (seen,) = borders.core.CLIPVisionEncode().encode(borders.clip, borders.image, "center")
    found = {}
    for name, vae, clip in (("ours", borders.own.vae, borders.own.clip), ("core's", borders.vae, borders.clip)):
        ((frames,),) = borders.node("SVDTemporalVAEDecode", vae, latents, "exact", 8, 2)
        found[f"decode, {name}"] = difference(frames, expected)
        found[f"encode, {name}"] = difference(
            borders.node("SVDVAEEncode", vae, borders.image)[0]["samples"], encoded["samples"]
        )
        (embedding,) = borders.node("SVDCLIPVisionEncode", clip, borders.image, "center_crop")
        for field in ("image_embeds", "penultimate_hidden_states"):
            found[f"CLIP {field}, {name}"] = difference(getattr(embedding, field), getattr(seen, field))
    ours, cores = (
        borders.node("SVDTemporalVAEDecode", vae, latents, "windowed", 2, 1)[0][0]
        for vae in (borders.own.vae, borders.vae)
    )
    found["windowed decode, core's against ours"] = difference(cores, ours)
    return found


def latents_in_between(borders: Borders, folder: str) -> dict[str, float]:
    """Core's nodes on our LATENT: what they give equals what they give on the same samples of core's own."""
    ours, plain = {**borders.latents, "svd": {"frames": FRAMES}}, borders.latents
    found = {}
    for name, change in (
        (
            "LatentUpscale",
            lambda latent: borders.core.LatentUpscale().upscale(latent, "bilinear", 192, 128, "disabled"),
        ),
        ("LatentFromBatch", lambda latent: borders.core.LatentFromBatch().frombatch(latent, 1, 2)),
    ):
        (changed,), (expected,) = change(ours), change(plain)
        found[name] = difference(changed["samples"], expected["samples"])
        ((frames,),) = borders.node("SVDTemporalVAEDecode", borders.own.vae, changed, "exact", 8, 2)
        found[f"{name}, decoded"] = difference(frames, borders.core.VAEDecode().decode(borders.vae, expected)[0])
    os.makedirs(os.path.join(folder, "output"), exist_ok=True)
    os.makedirs(os.path.join(folder, "input"), exist_ok=True)
    saved = borders.core.SaveLatent().save(ours, "border")["ui"]["latents"][0]["filename"]
    os.replace(os.path.join(folder, "output", saved), os.path.join(folder, "input", saved))
    (loaded,) = borders.core.LoadLatent().load(saved)
    found["SaveLatent and LoadLatent"] = difference(loaded["samples"], plain["samples"])
    clips = borders.module("nodes.wire_formats").read_latent(loaded).clips
    found["read again"] = difference(clips[0], plain["samples"])
    return found


def cut_frames(borders: Borders) -> dict[str, float]:
    """A latent cut by LatentFromBatch carries frame numbers: the noise is drawn frame by frame, as core draws it."""
    positive, negative, empty = borders.our_conditioning(borders.own.clip, borders.own.vae)
    (cut,) = borders.core.LatentFromBatch().frombatch(empty, 1, 2)
    expected = borders.ksampler((positive, negative, cut))
    return {
        name: difference(borders.sampler(model, (positive, negative, cut)), expected)
        for name, model in (("SVD_MODEL", borders.own.model), ("MODEL", borders.model))
    }


def lora_of(borders: Borders) -> dict:
    """Random low-rank changes of the image and the temporal attentions, by core's names."""
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
    """A LoRA on core's MODEL changes our sampler as it changes KSampler."""
    import comfy.lora

    weights = lora_of(borders)
    keys = {name.rsplit(".lora_", 1)[0]: f"{name.rsplit('.lora_', 1)[0]}.weight" for name in weights}
    patched = borders.model.clone()
    taken = patched.add_patches(comfy.lora.load_lora(weights, keys), LORA_STRENGTH)
    assert len(taken) == len(keys), (len(taken), len(keys))
    ours = borders.our_conditioning(borders.own.clip, borders.own.vae)
    expected, plain = borders.ksampler(ours, patched), borders.ksampler(ours)
    again = borders.sampler(borders.model, ours)
    return {
        "with it": difference(borders.sampler(patched, ours), expected),
        "without it again": difference(again, plain),
        "what it changes": difference(expected, plain),
    }


def converted(borders: Borders) -> dict[str, float]:
    """Our checkpoint as core's parts, against core's own loading of the file."""
    model, clip, vae = borders.node("SVDToComfyModel", borders.own.model, borders.own.clip, borders.own.vae)
    ours = borders.our_conditioning(borders.own.clip, borders.own.vae)
    (seen,), (expected,) = (
        borders.core.CLIPVisionEncode().encode(each, borders.image, "center") for each in (clip, borders.clip)
    )
    own, cores = (borders.core.VAEDecode().decode(each, borders.latents)[0] for each in (vae, borders.vae))
    encoded = borders.core.VAEEncode().encode(vae, borders.image)[0]["samples"]
    (through_ours,) = borders.node("SVDVAEEncode", borders.own.vae, borders.image)
    return {
        "KSampler": difference(borders.ksampler(ours, model), borders.ksampler(ours)),
        "VAEDecode": difference(own, cores),
        "VAEEncode, against the conditioning encoder": difference(encoded, through_ours["samples"]),
        "CLIPVisionEncode": difference(seen.image_embeds, expected.image_embeds),
    }


def videos(borders: Borders) -> dict[str, float]:
    """Two videos on one LATENT through core's MODEL: each as through ours."""
    torch = borders.torch
    borders.image, kept = torch.cat([borders.image, borders.image.flip(2)]), borders.image
    chain_callbacks = borders.our_conditioning(borders.own.clip, borders.own.vae)
    borders.image = kept
    return {
        "MODEL against SVD_MODEL": difference(
            borders.sampler(borders.model, chain_callbacks), borders.sampler(borders.own.model, chain_callbacks)
        )
    }


def masked(borders: Borders) -> dict[str, float]:
    """A LATENT with a noise mask, and one frame's image latent for each frame, through core's MODEL."""
    torch = borders.torch
    positive, negative, _ = borders.our_conditioning(borders.own.clip, borders.own.vae)
    mask = torch.zeros((1, HEIGHT, WIDTH))
    mask[:, :, WIDTH // 2 :] = 1
    latent = {**borders.latents, "noise_mask": mask}
    expected = borders.ksampler((positive, negative, latent))
    found = difference(borders.sampler(borders.model, (positive, negative, latent)), expected)
    kept = difference(expected[..., : WIDTH // 32], latent["samples"][..., : WIDTH // 32])
    return {"MODEL": found, "what the mask keeps": kept}


def hooked(borders: Borders) -> dict[str, float]:
    """A LoRA that hangs on the conditioning, as core's hook nodes put it there."""
    import comfy.hooks

    hooks = comfy.hooks.create_hook_lora(lora=lora_of(borders), strength_model=LORA_STRENGTH, strength_clip=0.0)
    plain = borders.our_conditioning(borders.own.clip, borders.own.vae)
    positive, negative = (comfy.hooks.set_hooks_for_conditioning(side, hooks) for side in plain[:2])
    model = borders.model.clone()
    expected = borders.ksampler((positive, negative, plain[2]), model)
    return {
        "MODEL": difference(borders.sampler(model, (positive, negative, plain[2])), expected),
        "what it changes": difference(expected, borders.ksampler(plain)),
    }


def memory(borders: Borders) -> dict[str, Any]:
    """Who manages our modules after they ran, and what is left when core is told to let go."""
    import comfy.model_management as management

    borders.node("SVDVAEEncode", borders.own.vae, borders.image)
    borders.node("SVDVAEEncode", borders.own.vae, borders.image)
    held = [loaded.model.model for loaded in management.current_loaded_models]
    ours = [each for each in held if getattr(each, "module", None) is borders.own.vae.vae]
    management.unload_all_models()
    left = [loaded for loaded in management.current_loaded_models if getattr(loaded.model.model, "module", None)]
    return {"times ours is listed": len(ours), "left after unloading": len(left)}


def cost(borders: Borders) -> dict[str, float]:
    """Seconds and peak memory of our sampler through core's MODEL over KSampler's: medians of interleaved runs."""
    conditioning = borders.our_conditioning(borders.own.clip, borders.own.vae)
    ways = {
        "ours": lambda: borders.sampler(borders.model, conditioning),
        "core's": lambda: borders.ksampler(conditioning),
    }
    found: dict[str, list[tuple[float, int]]] = {name: [] for name in ways}
    for turn in range(1 + RUNS):
        for name, run in ways.items():
            Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
            began = time.perf_counter()
            run()
            if turn:  # the first run of each warms up
                found[name].append((time.perf_counter() - began, _peak_bytes()))
    seconds, peaks = ({name: statistics.median(column(rows)) for name, rows in found.items()} for column in COLUMNS)
    return {"seconds": seconds["ours"] / seconds["core's"], "memory": peaks["ours"] / peaks["core's"]}


def _peak_bytes() -> int:
    (line,) = [each for each in Path("/proc/self/status").read_text().splitlines() if each.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


def refusals(borders: Borders) -> dict[str, str]:
    """The code and text of the error for core's parts of other families, and of ours that core cannot build."""
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
        "wrong wire": lambda: borders.node("SVDTemporalVAEDecode", borders.clip, borders.latents, "exact", 8, 2),
        "nano": lambda: borders.node("SVDToComfyModel", nano.model, nano.clip_vision, nano.vae),
    }
    return {name: _said(attempt) for name, attempt in attempts.items()}


def in_trouble(borders: Borders) -> dict[str, Any]:
    """What comes of core's VAE in bfloat16 when it overflows or memory runs out, and of a MODEL that gives NaN."""
    import comfy.model_management as management

    torch, vae, first = borders.torch, borders.vae, borders.vae.first_stage_model
    host, errors = borders.module("svd_core.runtime.runtime"), borders.module("svd_core.errors")
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
    with host.using(type(host.current())(on_note=notes.append)):
        again = frames()
    kept = own == [(name, id(weight), weight.dtype) for name, weight in first.named_parameters()]
    first.decode = too_large
    short = _code(frames, errors.MemoryBudgetError)
    loaded = len(management.current_loaded_models)
    first.decode = decode
    after = frames()
    nothing = borders.model.clone()
    nothing.set_model_unet_function_wrapper(lambda apply, told: apply(told["input"], told["timestep"], **told["c"]) / 0)
    ours = borders.our_conditioning(borders.own.clip, borders.own.vae)
    return {
        "notes": [note.code for note in notes],
        "in float32 again": difference(again, wanted),
        "its own weights are back": kept,
        "memory": [short, loaded],
        "in bfloat16 afterwards": difference(after, wanted),
        "nan": _code(lambda: borders.sampler(nothing, ours), errors.NonFiniteError),
    }


def _code(attempt, kind) -> str:
    try:
        attempt()
    except kind as error:
        return error.code
    return "nothing"


def _said(attempt) -> str:
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
        told = {
            "sampling": sampling(borders),
            "guidance_at_one": guidance_at_one(borders),
            "halves": halves(borders),
            "pictures": pictures(borders),
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
            "in_trouble": in_trouble(borders),
        }
    sys.stdout.write("\n" + json.dumps(told))


if __name__ == "__main__":
    main()
