"""Malformed and unusual tensors as node inputs: a typed error, or the result of the plain tensor."""

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
    """Return the outputs of a node."""
    kind = {**COMPAT_CLASS_MAPPINGS, **NODE_CLASS_MAPPINGS}[node]
    return getattr(kind(), kind.FUNCTION)(**inputs)


MALFORMED: dict[str, Callable[[torch.Tensor], Any]] = {
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


def expected_error(malformed: str, what: str) -> tuple[type[SVDStagesError], str]:
    """Return the type and the code of the error: `numbers.<what>` for NaN and Inf, else `setting`."""
    return (NonFiniteError, f"numbers.{what}") if malformed in NOT_FINITE else (SettingError, "setting")


PLAIN: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "double": torch.Tensor.double,
    "not contiguous": lambda plain: plain.transpose(0, -1).contiguous().transpose(0, -1),
    "expanded": lambda plain: plain.expand(plain.shape),
    "with gradients": lambda plain: plain.clone().requires_grad_(),
    "of a graph": lambda plain: plain.clone().requires_grad_() * 1,
    "a parameter": lambda plain: torch.nn.Parameter(plain.clone()),
}


def with_one(plain: torch.Tensor, value: float) -> torch.Tensor:
    """Replace one element."""
    changed = plain.clone()
    changed.view(-1)[7 % changed.numel()] = value
    return changed


def animating_nodes(tiny) -> dict[str, Callable[[Any], tuple]]:
    """Return calls of the nodes that take an IMAGE to animate it."""
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


def passing_nodes() -> dict[str, Callable[[Any], tuple]]:
    """Return calls of the other nodes that take an IMAGE."""
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


ANIMATING_NODES = ["SVDResizeImage", "SVDCLIPVisionEncode", "SVDNoiseAugmentation", "SVDVAEEncode", "CLIPVisionEncode",
               "VAEEncode", "SVD_img2vid_Conditioning"]  # fmt: skip
PASSING_NODES = ["ImageScale", "ImageScaleBy", "ImageFromBatch", "SaveImage", "SaveAnimatedWEBP", "SaveVideo"]


def tensors_in(value: Any) -> list[torch.Tensor]:
    """Return all tensors in a node's outputs, in order."""
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
    """Allow gradients, as in a script."""
    with torch.inference_mode(False), use_runtime(LocalRuntime(output_folder=tmp_path)):
        yield


# IMAGE


@pytest.mark.parametrize("node", ANIMATING_NODES)
@pytest.mark.parametrize("malformed", MALFORMED)
def test_malformed_images_are_refused_by_every_animating_node(tiny, node, malformed):
    with pytest.raises(ImageError) as caught:
        animating_nodes(tiny)[node](MALFORMED[malformed](IMAGE))
    assert len(str(caught.value)) > 20
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("node", PASSING_NODES)
@pytest.mark.parametrize("malformed", [each for each in MALFORMED if each not in NOT_FINITE])
def test_malformed_images_are_refused_by_other_nodes(tmp_path, node, malformed):
    with pytest.raises(SVDStagesError):
        passing_nodes()[node](MALFORMED[malformed](IMAGE))
    assert not list(tmp_path.rglob("*.*"))


@pytest.mark.parametrize("node", ANIMATING_NODES)
@pytest.mark.parametrize("form", PLAIN)
def test_every_form_of_an_image_gives_equal_results(tiny, node, form):
    image = PLAIN[form](IMAGE)
    before = image.detach().clone()
    result = animating_nodes(tiny)[node](image)
    assert same(result, animating_nodes(tiny)[node](IMAGE))
    assert torch.equal(image.detach(), before)
    assert not any(tensor.requires_grad for tensor in tensors_in(result))


@pytest.mark.parametrize("node", ANIMATING_NODES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_are_taken_as_the_numbers_they_are(tiny, node, dtype):
    half = IMAGE.to(dtype)
    assert same(animating_nodes(tiny)[node](half), animating_nodes(tiny)[node](half.float()))


@pytest.mark.parametrize("node", ANIMATING_NODES)
def test_grey_is_taken_as_colour_and_alpha_is_left_out(tiny, node):
    grey = IMAGE[..., :1]
    call = animating_nodes(tiny)[node]
    assert same(call(torch.cat([IMAGE, IMAGE[..., :1]], -1)), call(IMAGE))
    if node == "SVD_img2vid_Conditioning":
        return  # core's resize comes first, and takes colour only
    assert same(call(grey), call(grey.expand(-1, -1, -1, 3)))


@pytest.mark.parametrize(
    "node", [each for each in ANIMATING_NODES if each not in ("SVD_img2vid_Conditioning", "SVDNoiseAugmentation")]
)
def test_a_batch_is_each_of_its_images(tiny, node):
    call = animating_nodes(tiny)[node]
    images = torch.cat([IMAGE, 1 - IMAGE])
    for batch, first, second in zip(*map(tensors_in, map(call, (images, images[:1], images[1:]))), strict=True):
        assert torch.equal(batch, torch.cat([first, second]))


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


def latent_nodes(tiny) -> dict[str, Callable[[Any], tuple]]:
    embeds, conditioning = SimpleNamespace(image_embeds=EMBEDS), conditioning_pair()
    return {
        "SVDTemporalVAEDecode": lambda it: run(
            "SVDTemporalVAEDecode", vae=tiny.vae, latent=it, mode="exact", chunk_size=8, context=2
        ),
        "VAEDecode": lambda it: run("VAEDecode", vae=tiny.vae, samples=it),
        "SVDImageConditioning": lambda it: run(
            "SVDImageConditioning", clip_vision_output=embeds, image_latent=it, video_frames=2
        ),
        "SVDEulerSampler": lambda it: run("SVDEulerSampler", model=tiny.model, latent=it, **conditioning, **SAMPLING),
        "LatentFromBatch": lambda it: run("LatentFromBatch", samples=it, batch_index=0, length=1),
        "LatentUpscaleBy": lambda it: run("LatentUpscaleBy", samples=it, upscale_method="bilinear", scale_by=2.0),
    }


SAMPLING = {"seed": 0, "steps": 1, "min_guidance": 1.0, "max_guidance": 3.0, "noise": "comfyui"}
LATENT_NODES = ["SVDTemporalVAEDecode", "VAEDecode", "SVDImageConditioning", "SVDEulerSampler", "LatentUpscaleBy"]


def conditioning_pair() -> dict[str, Any]:
    """Return positive and negative conditioning of one video."""
    embeds = EMBEDS[:, None]
    entry = [embeds, {"concat_latent_image": LATENT[:1], "fps": 7}]
    return {"positive": [entry], "negative": [[embeds * 0, dict(entry[1])]]}


@pytest.mark.parametrize("node", LATENT_NODES)
@pytest.mark.parametrize("malformed", MALFORMED)
def test_malformed_latents_are_refused_by_every_node(tiny, node, malformed):
    samples = MALFORMED[malformed](LATENT)
    with raises(*expected_error(malformed, "latent")):
        latent_nodes(tiny)[node]({"samples": samples})
    for latent in ({}, samples, None):
        with raises(SettingError, "setting", "samples", type(latent).__name__):
            latent_nodes(tiny)[node](latent)


@pytest.mark.parametrize("malformed", ["nothing", "a text", "integers", "another device", "a single number", "sparse"])
def test_malformed_latents_are_not_cut(tiny, malformed):
    with pytest.raises(SettingError):
        latent_nodes(tiny)["LatentFromBatch"]({"samples": MALFORMED[malformed](LATENT)})


def test_an_image_on_a_latents_wire_is_refused(tiny):
    with raises(SettingError, "setting", "samples", "Tensor"):
        latent_nodes(tiny)["VAEDecode"](IMAGE)
    with raises(SettingError, "setting", "height/8", 64):
        latent_nodes(tiny)["VAEDecode"]({"samples": IMAGE})


@pytest.mark.parametrize("form", PLAIN)
def test_every_form_of_a_latent_gives_equal_results_and_is_not_changed(tiny, form):
    samples = PLAIN[form](LATENT)
    before = samples.detach().clone()
    call = latent_nodes(tiny)["SVDEulerSampler"]
    assert same(call({"samples": samples}), call({"samples": LATENT}))
    assert torch.equal(samples.detach(), before)


def test_a_latent_full_of_noise_is_taken(tiny):
    assert run(
        "SVDEulerSampler", model=tiny.model, latent={"samples": LATENT * 2000}, **conditioning_pair(), **SAMPLING
    )


# CLIP_VISION_OUTPUT


@pytest.mark.parametrize("malformed", [each for each in MALFORMED if each not in ("one axis less", "one axis more")])
def test_malformed_embeddings_are_refused(tiny, malformed):
    embeds = MALFORMED[malformed](torch.randn(1, 32, generator=SEED))
    refusal, code = expected_error(malformed, "embedding")
    if malformed in ("empty", "empty inside", "a single number"):
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


@pytest.mark.parametrize("malformed", MALFORMED)
@pytest.mark.parametrize("place", ["embedding", "image latent"])
def test_malformed_numbers_in_a_conditioning_are_refused(tiny, malformed, place):
    sides = conditioning_pair()
    embeds, keys = sides["positive"][0]
    if place == "embedding":
        sides["positive"] = [[MALFORMED[malformed](embeds), keys]]
    else:
        sides["positive"] = [[embeds, {**keys, "concat_latent_image": MALFORMED[malformed](LATENT[:1])}]]
    with raises(*expected_error(malformed, "conditioning"), "positive"):
        run("SVDEulerSampler", model=tiny.model, latent={"samples": LATENT}, **sides, **SAMPLING)


@pytest.mark.parametrize("conditioning", [None, "text", 5, [5], [[]], [[torch.zeros(1)]], [[torch.zeros(1), None]], {}],
                         ids=repr)  # fmt: skip
def test_malformed_conditioning_is_refused_by_sampler_and_micro_conditioning(tiny, conditioning):
    sides = {**conditioning_pair(), "positive": conditioning}
    with raises(SettingError, "setting", "positive", "CONDITIONING"):
        run("SVDEulerSampler", model=tiny.model, latent={"samples": LATENT}, **sides, **SAMPLING)
    if conditioning != {}:
        with raises(SettingError, "setting", "CONDITIONING", type(conditioning).__name__):
            run("SVDMicroConditioning", **sides, fps=7, motion_bucket_id=127, noise_aug_strength=0.02)


def test_sampling_leaves_conditioning_and_latent_alone(tiny):
    sides, latent = conditioning_pair(), {"samples": LATENT.clone(), "svd": {"frames": 2}}
    before = copy.deepcopy((sides, latent))
    run("SVDEulerSampler", model=tiny.model, latent=latent, **sides, **SAMPLING)
    assert same(before, (sides, latent))


# SIGMAS


@pytest.mark.parametrize("malformed", [each for each in MALFORMED if each not in ("one axis less", "empty inside")])
def test_malformed_sigmas_are_refused(tiny, malformed):
    row = MALFORMED[malformed](SIGMAS)
    if row is None:
        return  # an optional input that is not connected
    with raises(SettingError, "setting", "sigmas"):
        run(
            "SVDEulerSampler",
            model=tiny.model,
            latent={"samples": LATENT},
            sigmas=row,
            **conditioning_pair(),
            **SAMPLING,
        )


@pytest.mark.parametrize("malformed", ["nothing", "a text", "a list", "integers", "sparse", "another device"])
@pytest.mark.parametrize("node", ["SplitSigmas", "SplitSigmasDenoise", "FlipSigmas"])
def test_malformed_sigmas_are_not_cut_or_flipped(node, malformed):
    more = {"SplitSigmas": {"step": 1}, "SplitSigmasDenoise": {"denoise": 0.5}, "FlipSigmas": {}}[node]
    with raises(SettingError, "setting", "sigmas"):
        run(node, sigmas=MALFORMED[malformed](SIGMAS), **more)


@pytest.mark.parametrize("form", PLAIN)
def test_every_form_of_sigmas_gives_equal_results(tiny, form):
    row = PLAIN[form](SIGMAS)
    inputs = {"model": tiny.model, "latent": {"samples": LATENT}, **conditioning_pair(), **SAMPLING}
    assert same(run("SVDEulerSampler", sigmas=row, **inputs), run("SVDEulerSampler", sigmas=SIGMAS, **inputs))
    assert torch.equal(row.detach().float(), SIGMAS)
