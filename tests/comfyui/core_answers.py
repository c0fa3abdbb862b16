"""Compute reference values with ComfyUI's core: `python core_answers.py CHECKPOINT INPUTS ANSWERS [flags]`.

Runs in ComfyUI's Python with its checkout on PYTHONPATH, without the package. INPUTS is an .npz file, ANSWERS the .npz
file to write. Flags are ComfyUI's own. Everything is on the CPU in float32.
"""

from __future__ import annotations

import logging
import sys
from importlib import import_module

import numpy as np

CONDITIONING_ENCODER = "conditioner.embedders.3.encoder."
UNREAD = ("missing", "unexpected", "leftover", "left over")


class Complaints(logging.Handler):
    """Collects core's log lines about missing and unused tensors."""

    def __init__(self):
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        line = record.getMessage()
        if any(word in line.lower() for word in UNREAD):
            self.lines.append(line)


def load(path: str):
    """Return (MODEL, CLIP_VISION, VAE, a VAE of the file's conditioning encoder), and the log lines."""
    import comfy.sd
    import comfy.utils

    complaints = Complaints()
    logging.getLogger().addHandler(complaints)
    logging.getLogger().setLevel(logging.DEBUG)
    model, _, vae, clip_vision = comfy.sd.load_checkpoint_guess_config(path, output_clip=False, output_clipvision=True)
    tensors = comfy.utils.load_torch_file(path)
    second = comfy.utils.state_dict_prefix_replace(tensors, {CONDITIONING_ENCODER: ""}, filter_keys=True)
    return (model, clip_vision, vae, comfy.sd.VAE(sd=second)), complaints.lines


def unet_step(model, inputs) -> np.ndarray:
    """Return the network's v prediction, (F, 4, h, w)."""
    import torch

    network = model.model.diffusion_model
    x = torch.from_numpy(inputs["unet_x"])
    frames = x.shape[0]
    fps, motion_bucket_id, augmentation = inputs["micro"].tolist()
    y = model.model.encode_adm(
        device="cpu", fps=fps, motion_bucket_id=motion_bucket_id, augmentation_level=augmentation
    )
    answer = network(
        x,
        torch.full((frames,), float(inputs["c_noise"])),
        context=torch.from_numpy(inputs["tokens"]).expand(frames, -1, -1),
        y=y.expand(frames, -1),
        num_video_frames=frames,
    )
    return answer.numpy()


def sampled(model, positive, negative, latent, settings) -> np.ndarray:
    """Return the latent of core's KSampler(euler, karras) with VideoLinearCFGGuidance, (F, 4, h, w) unscaled."""
    from comfy_extras.nodes_video_model import VideoLinearCFGGuidance

    core_nodes = import_module("nodes")  # ComfyUI's nodes.py; an import statement would read as our folder
    seed, steps, low, high = settings.tolist()
    (guided,) = VideoLinearCFGGuidance().patch(model, low)
    (answer,) = core_nodes.KSampler().sample(
        guided, int(seed), int(steps), high, "euler", "karras", positive, negative, latent, 1.0
    )
    return answer["samples"].numpy()


def conditioning_arrays(conditioning, name: str) -> dict[str, np.ndarray]:
    """Convert a CONDITIONING of one entry to arrays, to exchange it between programs."""
    [[embeds, keys]] = conditioning
    micro = [keys["fps"], keys["motion_bucket_id"], keys["augmentation_level"]]
    image_latent = keys["concat_latent_image"]
    return {f"{name}_embeds": embeds.numpy(), f"{name}_image": image_latent.numpy(), f"{name}_micro": np.array(micro)}


def conditioning_from(arrays, name: str) -> list:
    """Rebuild the CONDITIONING from the arrays of `conditioning_arrays`."""
    import torch

    fps, bucket, strength = arrays[f"{name}_micro"].tolist()
    keys = {"fps": fps, "motion_bucket_id": bucket, "augmentation_level": strength}
    keys["concat_latent_image"] = torch.from_numpy(arrays[f"{name}_image"])
    return [[torch.from_numpy(arrays[f"{name}_embeds"]), keys]]


def borders(model, clip_vision, vae, inputs) -> dict[str, np.ndarray]:
    """Return core's samples with our conditioning, core's conditioning, and core's samples with that."""
    import torch
    from comfy_extras.nodes_video_model import SVD_img2vid_Conditioning

    ours = conditioning_from(inputs, "ours_positive"), conditioning_from(inputs, "ours_negative")
    _, height, width, _ = inputs["image"].shape
    frames, fps, bucket, strength = inputs["core_settings"].tolist()
    positive, negative, latent = SVD_img2vid_Conditioning().encode(
        clip_vision, torch.from_numpy(inputs["image"]), vae, width, height, int(frames), int(bucket), int(fps), strength
    )
    empty = {"samples": torch.from_numpy(inputs["ours_latent"])}
    return {
        **conditioning_arrays(positive, "core_positive"),
        **conditioning_arrays(negative, "core_negative"),
        "core_latent": latent["samples"].numpy(),
        "sampled_ours": sampled(model, *ours, empty, inputs["ours_sampling"]),
        "sampled_core": sampled(model, positive, negative, latent, inputs["core_sampling"]),
    }


def answer(model, clip_vision, vae, conditioning_vae, inputs) -> dict[str, np.ndarray]:
    """Return core's results by name."""
    import torch

    image = torch.from_numpy(inputs["image"])
    latents = torch.from_numpy(inputs["latents"])
    clip_pixels = torch.from_numpy(inputs["clip_pixels"])
    return {
        "unet": unet_step(model, inputs),
        "encoded": vae.encode(image).numpy(),
        "conditioning_encoded": conditioning_vae.encode(image).numpy(),
        "decoded": vae.first_stage_model.decode(latents).numpy(),
        "images": vae.decode(latents).numpy(),
        "embedding": clip_vision.model(pixel_values=clip_pixels, intermediate_output=-2)[2].numpy(),
        "center_crop_embedding": clip_vision.encode_image(image, crop=True).image_embeds.numpy(),
        **borders(model, clip_vision, vae, inputs),
    }


def main() -> None:
    checkpoint, inputs_file, answers, *flags = sys.argv[1:]
    sys.argv[1:] = flags
    import comfy.options

    comfy.options.enable_args_parsing()
    import torch

    with torch.inference_mode():
        parts, complaints = load(checkpoint)
        results = answer(*parts, inputs=np.load(inputs_file))
    results["complaints"] = np.array(complaints)
    np.savez(answers, **results)  # pyright: ignore[reportArgumentType]


if __name__ == "__main__":
    main()
