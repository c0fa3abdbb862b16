"""Compute reference values with ComfyUI's core: `python core_answers.py CHECKPOINT INPUTS ANSWERS [flags]`.

Runs in ComfyUI's Python with its checkout on PYTHONPATH, without the package. INPUTS is an .npz file, ANSWERS the .npz
file to write. Flags are ComfyUI's own. Everything is on the CPU in float32.
"""

from __future__ import annotations

import logging
import sys

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
