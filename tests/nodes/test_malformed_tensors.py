"""Malformed and unusual tensors as node inputs: a typed error, or the result of the plain tensor."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from chain import call
from error_checks import raises
from svd_stages.headless import NODES
from svd_stages.svd_core.errors import ImageError, NonFiniteError, SettingError, SVDStagesError
from svd_stages.svd_core.runtime.runtime import LocalRuntime, use_runtime
from svd_stages.svd_core.utils.tensor_checks import check_images

SEED = torch.Generator("cpu").manual_seed(3)
IMAGE = torch.rand(1, 64, 64, 3, generator=SEED)
LATENT = torch.randn(2, 4, 8, 8, generator=SEED)
SIGMAS = torch.tensor([700.0, 10.0, 0.0])
EMBEDS = torch.randn(1, 32, generator=SEED)


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


SIZE = {"width": 64, "height": 64}
CORE = {"video_frames": 2, "motion_bucket_id": 127, "fps": 6, "augmentation_level": 0.0}
ANIMATING_NODES = {
    "SVDResizeImage": ("image", {"fit": "crop", **SIZE}),
    "SVDCLIPVisionEncode": ("image", {"preprocess": "reference"}),
    "SVDNoiseAugmentation": ("image", {"noise_aug_strength": 0.1, "seed": 1}),
    "SVDVAEEncode": ("image", {}),
    "CLIPVisionEncode": ("image", {"crop": "center"}),
    "VAEEncode": ("pixels", {}),
    "SVD_img2vid_Conditioning": ("init_image", {**SIZE, **CORE}),
}
"""Nodes that take an IMAGE to animate it: the name of that input, and the others except parts of a checkpoint."""
WEBP = {"fps": 6, "lossless": True, "quality": 80, "method": "default"}
PASSING_NODES = {
    "ImageScale": ("image", {"upscale_method": "bilinear", "width": 32, "height": 32, "crop": "center"}),
    "ImageScaleBy": ("image", {"upscale_method": "area", "scale_by": 0.5}),
    "ImageFromBatch": ("image", {"batch_index": 0, "length": 1}),
    "SaveImage": ("images", {}),
    "SaveAnimatedWEBP": ("images", {"filename_prefix": "a", **WEBP}),
    "SaveVideo": ("video", {"filename_prefix": "a", "format": "auto", "codec": "auto"}),
}
"""The other nodes that take an IMAGE."""
SAMPLING = {"seed": 0, "steps": 1, "min_guidance": 1.0, "max_guidance": 3.0, "noise": "comfyui"}


def conditioning_pair() -> dict[str, Any]:
    """Return positive and negative conditioning of one video."""
    embeds = EMBEDS[:, None]
    entry = [embeds, {"concat_latent_image": LATENT[:1], "fps": 7}]
    return {"positive": [entry], "negative": [[embeds * 0, dict(entry[1])]]}


def embedding(embeds: Any = EMBEDS) -> SimpleNamespace:
    """Return a CLIP_VISION_OUTPUT."""
    return SimpleNamespace(image_embeds=embeds)


LATENT_NODES = {
    "SVDTemporalVAEDecode": ("latent", {"mode": "exact", "chunk_size": 8, "context": 2}),
    "VAEDecode": ("samples", {}),
    "SVDImageConditioning": ("image_latent", {"clip_vision_output": embedding(), "video_frames": 2}),
    "SVDEulerSampler": ("latent", {**conditioning_pair(), **SAMPLING}),
    "LatentUpscaleBy": ("samples", {"upscale_method": "bilinear", "scale_by": 2.0}),
}
"""Nodes that take a LATENT."""
INPUTS: dict[str, tuple[str, dict[str, Any]]] = {**ANIMATING_NODES, **PASSING_NODES, **LATENT_NODES}


def run(tiny, node: str, value: Any, **changes: Any) -> tuple:
    """Return the outputs of a node for a value of its main input."""
    name, others = INPUTS[node]
    if name == "video":
        (value,) = call("CreateVideo", images=value, fps=7.0)
    parts = {"model": tiny.model, "clip_vision": tiny.clip_vision, "vae": tiny.vae}
    needed = {part: parts[part] for part in NODES[node].INPUT_TYPES()["required"] if part in parts}
    return call(node, **{name: value, **needed, **others, **changes})


def sample(tiny, samples: torch.Tensor = LATENT, **changes: Any) -> tuple:
    """Return the output of SVDEulerSampler."""
    return run(tiny, "SVDEulerSampler", {"samples": samples}, **changes)


def join(output: Any) -> tuple:
    """Return the outputs of SVDImageConditioning for a CLIP_VISION_OUTPUT."""
    latent = {"samples": LATENT[:1]}
    return call("SVDImageConditioning", clip_vision_output=output, image_latent=latent, video_frames=2)


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
        run(tiny, node, MALFORMED[malformed](IMAGE))
    assert len(str(caught.value)) > 20
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("node", PASSING_NODES)
@pytest.mark.parametrize("malformed", [each for each in MALFORMED if each not in NOT_FINITE])
def test_malformed_images_are_refused_by_other_nodes(tiny, tmp_path, node, malformed):
    with pytest.raises(SVDStagesError):
        run(tiny, node, MALFORMED[malformed](IMAGE))
    assert not list(tmp_path.rglob("*.*"))


@pytest.mark.parametrize("node", ANIMATING_NODES)
@pytest.mark.parametrize("form", PLAIN)
def test_every_form_of_an_image_gives_equal_results(tiny, node, form):
    image = PLAIN[form](IMAGE)
    before = image.detach().clone()
    result = run(tiny, node, image)
    assert same(result, run(tiny, node, IMAGE))
    assert torch.equal(image.detach(), before)
    assert not any(tensor.requires_grad for tensor in tensors_in(result))


@pytest.mark.parametrize("node", ANIMATING_NODES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_are_taken_as_the_numbers_they_are(tiny, node, dtype):
    half = IMAGE.to(dtype)
    assert same(run(tiny, node, half), run(tiny, node, half.float()))


@pytest.mark.parametrize("node", ANIMATING_NODES)
def test_grey_is_taken_as_colour_and_alpha_is_left_out(tiny, node):
    grey = IMAGE[..., :1]
    assert same(run(tiny, node, torch.cat([IMAGE, grey], -1)), run(tiny, node, IMAGE))
    if node == "SVD_img2vid_Conditioning":
        return  # core's resize comes first, and takes colour only
    assert same(run(tiny, node, grey), run(tiny, node, grey.expand(-1, -1, -1, 3)))


@pytest.mark.parametrize(
    "node", [each for each in ANIMATING_NODES if each not in ("SVD_img2vid_Conditioning", "SVDNoiseAugmentation")]
)
def test_a_batch_is_each_of_its_images(tiny, node):
    images = torch.cat([IMAGE, 1 - IMAGE])
    results = (tensors_in(run(tiny, node, each)) for each in (images, images[:1], images[1:]))
    for batch, first, second in zip(*results, strict=True):
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
    noisy = call("SVDNoiseAugmentation", image=images, noise_aug_strength=strength, seed=3)[0]
    assert torch.equal(check_images(noisy), noisy)
    as_core = images + strength * torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    assert torch.equal(check_images(as_core), as_core)


# LATENT


@pytest.mark.parametrize("node", LATENT_NODES)
@pytest.mark.parametrize("malformed", MALFORMED)
def test_malformed_latents_are_refused_by_every_node(tiny, node, malformed):
    samples = MALFORMED[malformed](LATENT)
    with raises(*expected_error(malformed, "latent")):
        run(tiny, node, {"samples": samples})
    for latent in ({}, samples, None):
        with raises(SettingError, "setting", "samples", type(latent).__name__):
            run(tiny, node, latent)


@pytest.mark.parametrize("malformed", ["nothing", "a text", "integers", "another device", "a single number", "sparse"])
def test_malformed_latents_are_not_cut(malformed):
    with pytest.raises(SettingError):
        call("LatentFromBatch", samples={"samples": MALFORMED[malformed](LATENT)}, batch_index=0, length=1)


def test_an_image_on_a_latents_wire_is_refused(tiny):
    with raises(SettingError, "setting", "samples", "Tensor"):
        run(tiny, "VAEDecode", IMAGE)
    with raises(SettingError, "setting", "height/8", 64):
        run(tiny, "VAEDecode", {"samples": IMAGE})


@pytest.mark.parametrize("form", PLAIN)
def test_every_form_of_a_latent_gives_equal_results_and_is_not_changed(tiny, form):
    samples = PLAIN[form](LATENT)
    before = samples.detach().clone()
    assert same(sample(tiny, samples), sample(tiny))
    assert torch.equal(samples.detach(), before)


def test_a_latent_full_of_noise_is_taken(tiny):
    assert sample(tiny, LATENT * 2000)


# CLIP_VISION_OUTPUT


@pytest.mark.parametrize("malformed", [each for each in MALFORMED if each not in ("one axis less", "one axis more")])
def test_malformed_embeddings_are_refused(malformed):
    embeds = MALFORMED[malformed](torch.randn(1, 32, generator=SEED))
    refusal, code = expected_error(malformed, "embedding")
    if malformed in ("empty", "empty inside", "a single number"):
        code = "embedding"  # the code of a wrong shape
    for output, refused in (
        (embedding(embeds), (refusal, code, "CLIP")),
        (embeds, (SettingError, "setting", "SVDCLIPVisionEncode", type(embeds).__name__)),
    ):
        with raises(*refused):
            join(output)


def test_an_embedding_of_other_axes_is_refused_with_its_shape():
    for embeds in (torch.zeros(32), torch.zeros(1, 1, 32)):
        with raises(SettingError, "embedding", 32):
            join(embedding(embeds))


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
        sample(tiny, **sides)


@pytest.mark.parametrize("conditioning", [None, "text", 5, [5], [[]], [[torch.zeros(1)]], [[torch.zeros(1), None]], {}],
                         ids=repr)  # fmt: skip
def test_malformed_conditioning_is_refused_by_sampler_and_micro_conditioning(tiny, conditioning):
    sides = {**conditioning_pair(), "positive": conditioning}
    with raises(SettingError, "setting", "positive", "CONDITIONING"):
        sample(tiny, **sides)
    if conditioning != {}:
        with raises(SettingError, "setting", "CONDITIONING", type(conditioning).__name__):
            call("SVDMicroConditioning", **sides, fps=7, motion_bucket_id=127, noise_aug_strength=0.02)


def test_sampling_leaves_conditioning_and_latent_alone(tiny):
    sides, latent = conditioning_pair(), {"samples": LATENT.clone(), "svd": {"frames": 2}}
    before = copy.deepcopy((sides, latent))
    run(tiny, "SVDEulerSampler", latent, **sides)
    assert same(before, (sides, latent))


# SIGMAS


@pytest.mark.parametrize("malformed", [each for each in MALFORMED if each not in ("one axis less", "empty inside")])
def test_malformed_sigmas_are_refused(tiny, malformed):
    row = MALFORMED[malformed](SIGMAS)
    if row is None:
        return  # an optional input that is not connected
    with raises(SettingError, "setting", "sigmas"):
        sample(tiny, sigmas=row)


@pytest.mark.parametrize("malformed", ["nothing", "a text", "a list", "integers", "sparse", "another device"])
@pytest.mark.parametrize("node", ["SplitSigmas", "SplitSigmasDenoise", "FlipSigmas"])
def test_malformed_sigmas_are_not_cut_or_flipped(node, malformed):
    more = {"SplitSigmas": {"step": 1}, "SplitSigmasDenoise": {"denoise": 0.5}, "FlipSigmas": {}}[node]
    with raises(SettingError, "setting", "sigmas"):
        call(node, sigmas=MALFORMED[malformed](SIGMAS), **more)


@pytest.mark.parametrize("form", PLAIN)
def test_every_form_of_sigmas_gives_equal_results(tiny, form):
    row = PLAIN[form](SIGMAS)
    assert same(sample(tiny, sigmas=row), sample(tiny, sigmas=SIGMAS))
    assert torch.equal(row.detach().float(), SIGMAS)
