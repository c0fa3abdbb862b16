"""Strange tensors at the doors of nodes: a typed error that says what was given, or the answer of the plain one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from error_checks import raises
from svd_stages.nodes import NODE_CLASS_MAPPINGS
from svd_stages.nodes.compat import COMPAT_CLASS_MAPPINGS
from svd_stages.svd_core.errors import ImageError, NonFiniteError, SettingError, SVDStagesError
from svd_stages.svd_core.runtime.runtime import LocalRuntime, use_runtime
from svd_stages.svd_core.utils.tensor_checks import check_images

SEED = torch.Generator("cpu").manual_seed(3)
IMAGE = torch.rand(1, 64, 64, 3, generator=SEED)
LATENT = torch.randn(2, 4, 8, 8, generator=SEED)
SIGMAS = torch.tensor([700.0, 10.0, 0.0])


EMBEDS = torch.randn(1, 32, generator=SEED)


def run(node: str, **inputs: Any) -> tuple:
    """The outputs of a node of ours or a stand-in."""
    kind = {**COMPAT_CLASS_MAPPINGS, **NODE_CLASS_MAPPINGS}[node]
    return getattr(kind(), kind.FUNCTION)(**inputs)


STRANGE: dict[str, Callable[[torch.Tensor], Any]] = {
    "nothing": lambda plain: None,
    "a text": lambda plain: "an image",
    "a list": lambda plain: plain.tolist(),
    "an array": lambda plain: plain.numpy(),
    "a dict": lambda plain: {"x": plain},
    "integers": lambda plain: (plain * 255).to(torch.int64),
    "bytes": lambda plain: (plain * 255).to(torch.uint8),
    "truths": lambda plain: plain > 0.5,
    "complex": lambda plain: plain.to(torch.complex64),
    "sparse": lambda plain: plain.to_sparse(),
    "another device": lambda plain: plain.to("meta"),
    "NaN": lambda plain: with_one(plain, float("nan")),
    "infinity": lambda plain: with_one(plain, float("inf")),
    "too large for float32": lambda plain: with_one(plain.double(), 1e300),
    "one axis less": lambda plain: plain[0],
    "one axis more": lambda plain: plain[None],
    "empty": lambda plain: plain[:0],
    "empty inside": lambda plain: plain[..., :0],
    "a single number": lambda plain: torch.tensor(1.0),
}
NOT_FINITE = ("NaN", "infinity", "too large for float32")


def refusal_of(strange: str, what: str) -> tuple[type[SVDStagesError], str]:
    """Give the type and the code of the error: `numbers.<what>` for NaN and Inf, else `setting`."""
    return (NonFiniteError, f"numbers.{what}") if strange in NOT_FINITE else (SettingError, "setting")


PLAIN: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "double": torch.Tensor.double,
    "not contiguous": lambda plain: plain.transpose(0, -1).contiguous().transpose(0, -1),
    "expanded": lambda plain: plain.expand(plain.shape),
    "with gradients": lambda plain: plain.clone().requires_grad_(),
    "of a graph": lambda plain: plain.clone().requires_grad_() * 1,
    "a parameter": lambda plain: torch.nn.Parameter(plain.clone()),
}


def with_one(plain: torch.Tensor, value: float) -> torch.Tensor:
    """With one element replaced."""
    changed = plain.clone()
    changed.view(-1)[7 % changed.numel()] = value
    return changed


def image_doors(tiny) -> dict[str, Callable[[Any], tuple]]:
    """What takes an IMAGE to animate it."""
    size = {"width": 64, "height": 64}
    core = {"video_frames": 2, "motion_bucket_id": 127, "fps": 6, "augmentation_level": 0.0}
    clip, vae = {"clip_vision": tiny.clip_vision}, {"vae": tiny.vae}
    return {
        "SVDResizeImage": lambda it: run("SVDResizeImage", image=it, fit="crop", **size),
        "SVDCLIPVisionEncode": lambda it: run("SVDCLIPVisionEncode", image=it, preprocess="reference", **clip),
        "SVDNoiseAugmentation": lambda it: run("SVDNoiseAugmentation", image=it, noise_aug_strength=0.1, seed=1),
        "SVDVAEEncode": lambda it: run("SVDVAEEncode", image=it, **vae),
        "CLIPVisionEncode": lambda it: run("CLIPVisionEncode", image=it, crop="center", **clip),
        "VAEEncode": lambda it: run("VAEEncode", pixels=it, **vae),
        "SVD_img2vid_Conditioning": lambda it: run(
            "SVD_img2vid_Conditioning", init_image=it, **clip, **vae, **size, **core
        ),
    }  # fmt: skip


def passing_doors(folder) -> dict[str, Callable[[Any], tuple]]:
    """What takes an IMAGE for other reasons."""
    return {
        "ImageScale": lambda it: run(
            "ImageScale", image=it, upscale_method="bilinear", width=32, height=32, crop="center"
        ),
        "ImageScaleBy": lambda it: run("ImageScaleBy", image=it, upscale_method="area", scale_by=0.5),
        "ImageFromBatch": lambda it: run("ImageFromBatch", image=it, batch_index=0, length=1),
        "SaveImage": lambda it: run("SaveImage", images=it),
        "SaveAnimatedWEBP": lambda it: run(
            "SaveAnimatedWEBP", images=it, fps=6, filename_prefix="a", lossless=True, quality=80, method="default"
        ),
        "SaveVideo": lambda it: run(
            "SaveVideo",
            video=run("CreateVideo", images=it, fps=7.0)[0],
            filename_prefix="a",
            format="auto",
            codec="auto",
        ),
    }


IMAGE_DOORS = ["SVDResizeImage", "SVDCLIPVisionEncode", "SVDNoiseAugmentation", "SVDVAEEncode", "CLIPVisionEncode",
               "VAEEncode", "SVD_img2vid_Conditioning"]  # fmt: skip
PASSING_DOORS = ["ImageScale", "ImageScaleBy", "ImageFromBatch", "SaveImage", "SaveAnimatedWEBP", "SaveVideo"]


def tensors_in(value: Any) -> list[torch.Tensor]:
    """All tensors in a node's outputs, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        return [tensor for key in sorted(value) for tensor in tensors_in(value[key])]
    if isinstance(value, (list, tuple)):
        return [tensor for each in value for tensor in tensors_in(each)]
    return tensors_in(vars(value)) if hasattr(value, "image_embeds") else []


def same(left: Any, right: Any) -> bool:
    pairs = list(zip(tensors_in(left), tensors_in(right), strict=True))
    return bool(pairs) and all(torch.equal(*pair) for pair in pairs)


@pytest.fixture(autouse=True)
def with_gradients(tmp_path):
    """As in a script: a wire's tensors may ask for gradients."""
    with torch.inference_mode(False), use_runtime(LocalRuntime(output_folder=tmp_path)):
        yield


# IMAGE


@pytest.mark.parametrize("door", IMAGE_DOORS)
@pytest.mark.parametrize("strange", STRANGE)
def test_what_is_no_image_is_refused_at_every_door(tiny, door, strange):
    with pytest.raises(ImageError) as caught:
        image_doors(tiny)[door](STRANGE[strange](IMAGE))
    assert len(str(caught.value)) > 20
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("door", PASSING_DOORS)
@pytest.mark.parametrize("strange", [each for each in STRANGE if each not in NOT_FINITE])
def test_what_is_no_image_passes_no_other_door_either(tmp_path, door, strange):
    with pytest.raises(SVDStagesError):
        passing_doors(tmp_path)[door](STRANGE[strange](IMAGE))
    assert not list(tmp_path.rglob("*.*"))


@pytest.mark.parametrize("door", IMAGE_DOORS)
@pytest.mark.parametrize("form", PLAIN)
def test_every_form_of_an_image_gives_the_same_at_every_door(tiny, door, form):
    image = PLAIN[form](IMAGE)
    before = image.detach().clone()
    found = image_doors(tiny)[door](image)
    assert same(found, image_doors(tiny)[door](IMAGE))
    assert torch.equal(image.detach(), before)
    assert not any(tensor.requires_grad for tensor in tensors_in(found))


@pytest.mark.parametrize("door", IMAGE_DOORS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_are_taken_as_the_numbers_they_are(tiny, door, dtype):
    half = IMAGE.to(dtype)
    assert same(image_doors(tiny)[door](half), image_doors(tiny)[door](half.float()))


@pytest.mark.parametrize("door", IMAGE_DOORS)
def test_grey_is_taken_as_colour_and_alpha_is_left_out(tiny, door):
    grey = IMAGE[..., :1]
    open_door = image_doors(tiny)[door]
    assert same(open_door(torch.cat([IMAGE, IMAGE[..., :1]], -1)), open_door(IMAGE))
    if door == "SVD_img2vid_Conditioning":
        return  # core's resize comes first, and takes colour only
    assert same(open_door(grey), open_door(grey.expand(-1, -1, -1, 3)))


@pytest.mark.parametrize("door", [each for each in IMAGE_DOORS if each != "SVD_img2vid_Conditioning"])
def test_a_batch_is_each_of_its_images(tiny, door):
    open_door = image_doors(tiny)[door]
    if door == "SVDNoiseAugmentation":
        return  # image i has the seed of its own: tests/svd_core/diffusion/test_noise_augmentation.py
    images = torch.cat([IMAGE, 1 - IMAGE])
    for chain_callbacks, first, second in zip(
        *map(tensors_in, map(open_door, (images, images[:1], images[1:]))), strict=True
    ):
        assert torch.equal(chain_callbacks, torch.cat([first, second]))


@pytest.mark.parametrize("scale", [255.0, 100.0, 1e6, -1e6])
def test_images_of_another_scale_are_refused_with_their_range(scale):
    images = IMAGE * scale
    with raises(ImageError, "image.range", f"{images.min():g}", f"{images.max():g}"):
        check_images(images)


@pytest.mark.parametrize("strength", [0.02, 1.0, 10.0])
@pytest.mark.parametrize("side", [16, 128])
def test_noise_of_every_strength_that_a_node_takes_passes(strength, side):
    images = torch.rand(4, side, side, 3, generator=torch.Generator().manual_seed(0))
    noisy = run("SVDNoiseAugmentation", image=images, noise_aug_strength=strength, seed=3)[0]
    assert torch.equal(check_images(noisy), noisy)
    as_core = images + strength * torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    assert torch.equal(check_images(as_core), as_core)


# LATENT


def latent_doors(tiny) -> dict[str, Callable[[Any], tuple]]:
    embeds, sides = SimpleNamespace(image_embeds=EMBEDS), sides_of()
    return {
        "SVDTemporalVAEDecode": lambda it: run(
            "SVDTemporalVAEDecode", vae=tiny.vae, latent=it, mode="exact", chunk_size=8, context=2
        ),
        "VAEDecode": lambda it: run("VAEDecode", vae=tiny.vae, samples=it),
        "SVDImageConditioning": lambda it: run(
            "SVDImageConditioning", clip_vision_output=embeds, image_latent=it, video_frames=2
        ),
        "SVDEulerSampler": lambda it: run("SVDEulerSampler", model=tiny.model, latent=it, **sides, **SAMPLING),
        "LatentFromBatch": lambda it: run("LatentFromBatch", samples=it, batch_index=0, length=1),
        "LatentUpscaleBy": lambda it: run("LatentUpscaleBy", samples=it, upscale_method="bilinear", scale_by=2.0),
    }


SAMPLING = {"seed": 0, "steps": 1, "min_guidance": 1.0, "max_guidance": 3.0, "noise": "comfyui"}
LATENT_DOORS = ["SVDTemporalVAEDecode", "VAEDecode", "SVDImageConditioning", "SVDEulerSampler", "LatentUpscaleBy"]


def sides_of() -> dict[str, Any]:
    """Positive and negative conditioning of one video."""
    embeds = EMBEDS[:, None]
    entry = [embeds, {"concat_latent_image": LATENT[:1], "fps": 7}]
    return {"positive": [entry], "negative": [[embeds * 0, dict(entry[1])]]}


@pytest.mark.parametrize("door", LATENT_DOORS)
@pytest.mark.parametrize("strange", STRANGE)
def test_what_is_no_latent_is_refused_at_every_door(tiny, door, strange):
    samples = STRANGE[strange](LATENT)
    with raises(*refusal_of(strange, "latent")):
        latent_doors(tiny)[door]({"samples": samples})
    for latent in ({}, samples, None):
        with raises(SettingError, "setting", "samples", type(latent).__name__):
            latent_doors(tiny)[door](latent)


@pytest.mark.parametrize("strange", ["nothing", "a text", "integers", "another device", "a single number", "sparse"])
def test_what_is_no_latent_is_not_cut_either(tiny, strange):
    with pytest.raises(SettingError):
        latent_doors(tiny)["LatentFromBatch"]({"samples": STRANGE[strange](LATENT)})


def test_an_image_on_a_latents_wire_is_refused(tiny):
    with raises(SettingError, "setting", "samples", "Tensor"):
        latent_doors(tiny)["VAEDecode"](IMAGE)
    with raises(SettingError, "setting", "height/8", 64):
        latent_doors(tiny)["VAEDecode"]({"samples": IMAGE})


@pytest.mark.parametrize("form", PLAIN)
def test_every_form_of_a_latent_gives_the_same_and_is_left_alone(tiny, form):
    samples = PLAIN[form](LATENT)
    before = samples.detach().clone()
    door = latent_doors(tiny)["SVDEulerSampler"]
    assert same(door({"samples": samples}), door({"samples": LATENT}))
    assert torch.equal(samples.detach(), before)


def test_a_latent_full_of_noise_is_taken(tiny):
    assert run("SVDEulerSampler", model=tiny.model, latent={"samples": LATENT * 2000}, **sides_of(), **SAMPLING)


# CLIP_VISION_OUTPUT


@pytest.mark.parametrize("strange", [each for each in STRANGE if each not in ("one axis less", "one axis more")])
def test_what_is_no_embedding_is_refused(tiny, strange):
    embeds = STRANGE[strange](torch.randn(1, 32, generator=SEED))
    refusal, code = refusal_of(strange, "embedding")
    if strange in ("empty", "empty inside", "a single number"):
        code = "embedding"  # the code of a wrong shape
    for output, refused in (
        (SimpleNamespace(image_embeds=embeds), (refusal, code, "CLIP")),
        (embeds, (SettingError, "setting", "SVDCLIPVisionEncode", type(embeds).__name__)),
    ):
        with raises(*refused):
            run("SVDImageConditioning", clip_vision_output=output, image_latent={"samples": LATENT[:1]}, video_frames=2)


def test_an_embedding_of_other_axes_is_refused_with_its_shape():
    for embeds in (torch.zeros(32), torch.zeros(1, 1, 32)):
        with raises(SettingError, "embedding", 32):
            run(
                "SVDImageConditioning",
                clip_vision_output=SimpleNamespace(image_embeds=embeds),
                image_latent={"samples": LATENT[:1]},
                video_frames=2,
            )


# CONDITIONING


@pytest.mark.parametrize("strange", STRANGE)
@pytest.mark.parametrize("place", ["embedding", "image latent"])
def test_strange_numbers_in_a_conditioning_are_refused(tiny, strange, place):
    sides = sides_of()
    embeds, keys = sides["positive"][0]
    if place == "embedding":
        sides["positive"] = [[STRANGE[strange](embeds), keys]]
    else:
        sides["positive"] = [[embeds, {**keys, "concat_latent_image": STRANGE[strange](LATENT[:1])}]]
    with raises(*refusal_of(strange, "conditioning"), "positive"):
        run("SVDEulerSampler", model=tiny.model, latent={"samples": LATENT}, **sides, **SAMPLING)


@pytest.mark.parametrize("conditioning", [None, "text", 5, [5], [[]], [[torch.zeros(1)]], [[torch.zeros(1), None]], {}],
                         ids=repr)  # fmt: skip
def test_what_is_no_conditioning_is_refused_by_sampler_and_micro_conditioning(tiny, conditioning):
    sides = {**sides_of(), "positive": conditioning}
    with raises(SettingError, "setting", "positive", "CONDITIONING"):
        run("SVDEulerSampler", model=tiny.model, latent={"samples": LATENT}, **sides, **SAMPLING)
    if conditioning != {}:
        with raises(SettingError, "setting", "CONDITIONING", type(conditioning).__name__):
            run("SVDMicroConditioning", **sides, fps=7, motion_bucket_id=127, noise_aug_strength=0.02)


def test_sampling_leaves_conditioning_and_latent_alone(tiny):
    sides, latent = sides_of(), {"samples": LATENT.clone(), "svd": {"frames": 2}}
    before = copy.deepcopy((sides, latent))
    run("SVDEulerSampler", model=tiny.model, latent=latent, **sides, **SAMPLING)
    assert same(before, (sides, latent))


# SIGMAS


@pytest.mark.parametrize("strange", [each for each in STRANGE if each not in ("one axis less", "empty inside")])
def test_what_is_no_row_of_sigmas_is_refused(tiny, strange):
    row = STRANGE[strange](SIGMAS)
    if row is None:
        return  # an optional input that is not connected
    with raises(SettingError, "setting", "sigmas"):
        run("SVDEulerSampler", model=tiny.model, latent={"samples": LATENT}, sigmas=row, **sides_of(), **SAMPLING)


@pytest.mark.parametrize("strange", ["nothing", "a text", "a list", "integers", "sparse", "another device"])
@pytest.mark.parametrize("node", ["SplitSigmas", "SplitSigmasDenoise", "FlipSigmas"])
def test_what_is_no_row_of_sigmas_is_not_cut_or_turned_either(node, strange):
    more = {"SplitSigmas": {"step": 1}, "SplitSigmasDenoise": {"denoise": 0.5}, "FlipSigmas": {}}[node]
    with raises(SettingError, "setting", "sigmas"):
        run(node, sigmas=STRANGE[strange](SIGMAS), **more)


@pytest.mark.parametrize("form", PLAIN)
def test_every_form_of_a_row_of_sigmas_gives_the_same(tiny, form):
    row = PLAIN[form](SIGMAS)
    inputs = {"model": tiny.model, "latent": {"samples": LATENT}, **sides_of(), **SAMPLING}
    assert same(run("SVDEulerSampler", sigmas=row, **inputs), run("SVDEulerSampler", sigmas=SIGMAS, **inputs))
    assert torch.equal(row.detach().float(), SIGMAS)
