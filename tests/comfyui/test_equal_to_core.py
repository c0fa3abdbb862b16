"""Compare the checkpoint reader with ComfyUI's core on one random file that neither of them wrote.

A key table that swaps two tensors of equal shape passes every round trip of its own. Core has its own key table and its
own modules. Differences are in units of the standard deviation of core's result.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from comfyui.core_answers import CONDITIONING_ENCODER
from svd_stages.svd_core.autoencoder.decode import decode_windows, plan_windows
from svd_stages.svd_core.autoencoder.encode import embed_images, encode_images
from svd_stages.svd_core.checkpoints.load import load_checkpoint
from svd_stages.svd_core.diffusion.conditioning import MicroConditioning
from svd_stages.svd_core.models.components import Checkpoint

pytestmark = [pytest.mark.comfyui, pytest.mark.slow]

HERE = Path(__file__).parent
CPU = torch.device("cpu")
FLOAT32 = ("--cpu", "--force-fp32", "--fp32-unet", "--fp32-vae", "--fp32-text-enc", "--use-pytorch-cross-attention")
TOLERANCE = 1e-4
"""About a third comes from diffusers' group norms: 1e-6 in ResNets where Stability and core have 1e-5 (measured:
3e-5 with, 1e-5 without, on the UNet)."""
FRAMES = 4
MICRO = MicroConditioning(fps=7, motion_bucket_id=127, noise_aug_strength=0.02)

KEY_BIASES = ("to_k.bias", "k_proj.bias")
"""Attention does not depend on these: they add one number to all scores of a query."""


@pytest.fixture(scope="module")
def inputs() -> dict[str, Any]:
    """Return the inputs. With one image token instead of three, two tensors of cross-attention would have no effect."""
    source = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return source.standard_normal(shape).astype(np.float32)

    return {
        "unet_x": normal(FRAMES, 8, 16, 16),
        "c_noise": np.float32(0.7),
        "tokens": normal(1, 3, 1024),
        "micro": MICRO.time_ids().numpy()[0] + np.array([1, 0, 0]),
        "image": source.random((1, 64, 128, 3)).astype(np.float32),
        "latents": normal(FRAMES, 4, 8, 8),
        "clip_pixels": normal(1, 3, 224, 224),
    }


@pytest.fixture(scope="module")
def core(comfyui, random_checkpoints, inputs) -> dict[str, np.ndarray]:
    """Return core's results by name."""
    np.savez(random_checkpoints / "inputs.npz", **inputs)
    answers = random_checkpoints / "answers.npz"
    checkpoint = random_checkpoints / "with_conditioning_encoder.safetensors"
    comfyui.run(HERE / "core_answers.py", checkpoint, random_checkpoints / "inputs.npz", answers, *FLOAT32)
    return dict(np.load(answers))


@pytest.fixture(scope="module")
def ours(core, random_checkpoints) -> Checkpoint:
    """Load the file with our reader. After core, which needs the memory."""
    return load_checkpoint(random_checkpoints / "with_conditioning_encoder.safetensors", "fp32", CPU)


def difference(ours: torch.Tensor, core: np.ndarray) -> float:
    """Return the largest difference, in units of core's standard deviation."""
    assert tuple(ours.shape) == core.shape
    return float(np.abs(ours.detach().numpy() - core).max() / core.std())


def unet_v(checkpoint: Checkpoint, inputs: dict[str, Any]) -> torch.Tensor:
    """Return our UNet's v prediction, (F, 4, h, w)."""
    return checkpoint.model.unet(
        torch.from_numpy(inputs["unet_x"])[None],
        torch.tensor(inputs["c_noise"]),
        encoder_hidden_states=torch.from_numpy(inputs["tokens"]),
        added_time_ids=MICRO.time_ids(),
        return_dict=False,
    )[0][0]


def decoded(checkpoint: Checkpoint, inputs: dict[str, Any]) -> torch.Tensor:
    """Return our decoder's pixels, (F, 3, H, W), not clamped."""
    vae = checkpoint.vae.vae
    image_only = torch.zeros(1, FRAMES)
    return vae.decoder(torch.from_numpy(inputs["latents"]), num_frames=FRAMES, image_only_indicator=image_only)


def test_core_uses_all_tensors_of_the_random_file(core):
    lines = core["complaints"].tolist()
    assert all(line.startswith("left over keys") for line in lines), lines
    left_over = [name for line in lines for name in line.split("'")[1::2]]
    assert all(name.startswith(CONDITIONING_ENCODER) for name in left_over)


def test_unet_step_equals_core(ours, core, inputs):
    assert difference(unet_v(ours, inputs), core["unet"]) < TOLERANCE


def test_image_latent_equals_core_over_the_conditioning_encoder(ours, core, inputs):
    latents = encode_images(ours.vae, torch.from_numpy(inputs["image"]), CPU)
    assert difference(latents, core["conditioning_encoded"]) < TOLERANCE


def test_image_latent_equals_core_in_a_file_without_the_conditioning_encoder(core, inputs, random_checkpoints):
    vae = load_checkpoint(random_checkpoints / "without.safetensors", "fp32", CPU).vae
    latents = encode_images(vae, torch.from_numpy(inputs["image"]), CPU)
    assert difference(latents, core["encoded"]) < TOLERANCE


def test_decoder_equals_core(ours, core, inputs):
    assert difference(decoded(ours, inputs), core["decoded"]) < TOLERANCE


def test_frames_equal_core(ours, core, inputs):
    frames = decode_windows(ours.vae, torch.from_numpy(inputs["latents"]), plan_windows(FRAMES, FRAMES, 0), CPU)
    assert difference(frames, core["images"]) < TOLERANCE


def test_clip_embedding_equals_core(ours, core, inputs):
    embeds = ours.clip_vision.encoder(torch.from_numpy(inputs["clip_pixels"])).image_embeds
    assert difference(embeds, core["embedding"]) < TOLERANCE


def test_center_crop_embedding_equals_core(ours, core, inputs):
    embedding = embed_images(ours.clip_vision, [torch.from_numpy(inputs["image"])], "center_crop", CPU)
    assert difference(embedding.image_embeds, core["center_crop_embedding"]) < TOLERANCE


@torch.inference_mode(False)
def test_every_tensor_affects_a_result(ours, inputs):
    """Otherwise the comparisons could not detect a misplaced tensor. Effects are root mean squares."""
    image, pixels = torch.from_numpy(inputs["image"]), torch.from_numpy(inputs["clip_pixels"])
    encoder, quant = ours.vae.vae.encoder, ours.vae.vae.quant_conv
    effects = {
        **effects_of(ours.model.unet, lambda: unet_v(ours, inputs)),
        **effects_of(ours.vae.vae.decoder, lambda: decoded(ours, inputs)),
        **effects_of(torch.nn.ModuleList([encoder, quant]), lambda: quant(encoder(image.movedim(-1, 1)))[:, :4]),
        **effects_of(ours.clip_vision.encoder, lambda: ours.clip_vision.encoder(pixels).image_embeds),
    }
    too_small = {name for name, effect in effects.items() if effect < TOLERANCE and not name.endswith(KEY_BIASES)}
    assert too_small == set()


def effects_of(module: torch.nn.Module, answer: Callable[[], torch.Tensor]) -> dict[str, float]:
    """Return the effect of another draw of each parameter: root mean square, to first order, in standard deviations.

    The larger of two random directions, because one parameter may be orthogonal to a direction.
    """
    lengths: dict[str, float] = {}
    handles = [
        parameter.requires_grad_(True).register_post_accumulate_grad_hook(partial(_note_gradient, lengths, name))
        for name, parameter in module.named_parameters()
    ]
    result = answer()
    directions = torch.randn((2, *result.shape), generator=torch.Generator("cpu").manual_seed(0)) / math.sqrt(
        result.numel()
    )
    for direction in directions:
        (result * direction).sum().backward(retain_graph=True)
    for handle in handles:
        handle.remove()
    module.requires_grad_(False)
    spreads = {name: each.std().item() if each.numel() > 1 else 1.0 for name, each in module.named_parameters()}
    return {name: lengths[name] * spread / result.std().item() for name, spread in spreads.items()}


def _note_gradient(lengths: dict[str, float], name: str, parameter: torch.Tensor) -> None:
    """Keep only the gradient's norm: the gradients of all models together are as large as the weights."""
    assert parameter.grad is not None
    lengths[name] = max(lengths.get(name, 0.0), parameter.grad.norm().item())
    parameter.grad = None
