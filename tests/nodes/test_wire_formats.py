"""Reading and writing of LATENT, CONDITIONING, CLIP_VISION_OUTPUT and SVD_* values."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from error_checks import raises
from svd_stages.nodes import NODE_CLASS_MAPPINGS, samplers, wire_formats
from svd_stages.svd_core.diffusion.conditioning import MicroConditioning
from svd_stages.svd_core.diffusion.guidance import GuidanceCurve
from svd_stages.svd_core.errors import SettingError

MICRO = MicroConditioning(fps=12, motion_bucket_id=180, noise_aug_strength=0.1)


def numbered(*shape: int) -> torch.Tensor:
    """Return a tensor whose elements all differ."""
    return torch.arange(torch.Size(shape).numel(), dtype=torch.float32).reshape(shape)


def latent_of(samples: torch.Tensor, **keys) -> dict:
    return {"samples": samples, **keys}


def conditioning_of(embeddings: int = 1, image_latents: int = 1, **keys) -> list:
    images = numbered(image_latents, 4, 8, 8)
    return [[numbered(embeddings, 1, 32), {"concat_latent_image": images, **keys}]]


def same(left, right) -> bool:
    """Compare values that contain tensors."""
    if isinstance(left, torch.Tensor):
        return isinstance(right, torch.Tensor) and torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(same(*pair) for pair in zip(left, right, strict=True))
    return left == right


# LATENT


def test_a_batch_without_our_key_is_one_clip():
    samples = numbered(6, 4, 8, 8)
    clips = wire_formats.read_latent(latent_of(samples)).clips
    assert torch.equal(clips, samples[None])


def test_our_key_cuts_the_batch_into_videos_in_order():
    samples = numbered(6, 4, 8, 8)
    clips = wire_formats.read_latent(latent_of(samples, svd={"frames": 3})).clips
    assert clips.shape == (2, 3, 4, 8, 8)
    assert torch.equal(clips[0], samples[:3])
    assert torch.equal(clips[1], samples[3:])


@pytest.mark.parametrize(
    "key", [{"frames": 4}, {"frames": 0}, {"frames": -2}, {"frames": 12}, {"frames": "3"}, {}, None]
)
def test_our_key_is_used_only_if_it_divides_the_batch(key):
    clips = wire_formats.read_latent(latent_of(numbered(6, 4, 8, 8), svd=key)).clips
    assert clips.shape[:2] == (1, 6)


def test_our_key_is_ignored_after_core_cut_the_batch():
    written = wire_formats.write_latent(numbered(2, 3, 4, 8, 8))
    cut = {**written, "samples": written["samples"][:4]}
    assert wire_formats.read_latent(cut).clips.shape[:2] == (1, 4)


@pytest.mark.parametrize("shape", [(1, 4, 14, 8, 8), (14, 16, 8, 8), (4, 8, 8), (1, 1, 4, 8, 8)])
def test_latents_of_other_models_are_refused_with_their_shape(shape):
    with raises(SettingError, "setting", "height/8") as caught:
        wire_formats.read_latent(latent_of(torch.zeros(shape)))
    assert str(shape) in str(caught.value)


def test_nested_latents_are_refused():
    nested = SimpleNamespace(is_nested=True, shape=(2, 4, 8, 8), ndim=4)
    with raises(SettingError, "setting", "SimpleNamespace"):
        wire_formats.read_latent({"samples": nested})


def test_latents_are_read_as_float32_on_the_cpu():
    clips = wire_formats.read_latent(latent_of(numbered(2, 4, 8, 8).half())).clips
    assert clips.dtype == torch.float32
    assert clips.device.type == "cpu"


def test_batch_index_comes_with_the_clip():
    assert wire_formats.read_latent(latent_of(torch.zeros(3, 4, 8, 8), batch_index=[4, 5, 6])).batch_index == [4, 5, 6]
    assert wire_formats.read_latent(latent_of(torch.zeros(3, 4, 8, 8))).batch_index is None


def test_a_written_latent_is_read_back():
    clips = numbered(3, 5, 4, 8, 8)
    written = wire_formats.write_latent(clips)
    assert written["samples"].shape == (15, 4, 8, 8)
    assert torch.equal(wire_formats.read_latent(written).clips, clips)


def test_a_written_latent_is_float32_whatever_was_computed():
    assert wire_formats.write_latent(numbered(1, 2, 4, 8, 8).double())["samples"].dtype == torch.float32


def test_keys_of_others_are_taken_over_and_the_samples_are_not():
    before = latent_of(torch.ones(2, 4, 8, 8), batch_index=[0, 1], of_others="kept", svd={"frames": 1})
    kept = copy.deepcopy(before)
    after = wire_formats.write_latent(torch.zeros(1, 2, 4, 8, 8), like=before)
    assert (after["of_others"], after["batch_index"]) == ("kept", [0, 1])
    assert after["svd"] == {"frames": 2}
    assert not after["samples"].any()
    assert same(before, kept)


def test_a_noise_mask_is_refused_by_name_when_sampling_and_only_then(tiny):
    masked = latent_of(torch.zeros(2, 4, 8, 8), noise_mask=torch.ones(1, 64, 64))
    request = samplers.Request("comfyui", 0, 1, GuidanceCurve())
    with raises(SettingError, "setting", "noise_mask", "ImageOnlyCheckpointLoader"):
        samplers.get_sampler(tiny.model)([], [], masked, request)
    assert wire_formats.read_latent(masked).clips.shape == (1, 2, 4, 8, 8)


# CONDITIONING


def test_written_conditioning_has_cores_keys_and_the_users_fps():
    embeds, images = numbered(2, 1, 32), numbered(2, 4, 8, 8)
    ((written, keys),) = wire_formats.write_conditioning(embeds, images, MICRO)
    assert torch.equal(written, embeds)
    assert torch.equal(keys.pop("concat_latent_image"), images)
    assert keys == {"fps": 12, "motion_bucket_id": 180, "augmentation_level": 0.1}


def test_conditioning_is_read_back_video_by_video():
    embeds, images = numbered(3, 1, 32), numbered(3, 4, 8, 8)
    videos = wire_formats.read_conditioning(wire_formats.write_conditioning(embeds, images, MICRO), 3, "positive")
    assert len(videos) == 3
    for index, video in enumerate(videos):
        assert torch.equal(video.embeds, embeds[index : index + 1])
        assert torch.equal(video.image_latent, images[index : index + 1])
        assert video.micro == MICRO


def test_missing_keys_are_read_with_cores_defaults():
    (video,) = wire_formats.read_conditioning(conditioning_of(), 1, "positive")
    assert video.micro == MicroConditioning(fps=6, motion_bucket_id=127, noise_aug_strength=0.0)


def test_unknown_keys_are_ignored():
    conditioning = conditioning_of(fps=9, pooled_output=None, svd={"of": "tomorrow"}, start_percent=0.0)
    (video,) = wire_formats.read_conditioning(conditioning, 1, "positive")
    assert video.micro.fps == 9


def test_one_video_may_have_an_image_latent_for_each_frame():
    (video,) = wire_formats.read_conditioning(conditioning_of(image_latents=5), 1, "positive")
    assert video.image_latent.shape == (5, 4, 8, 8)


def test_one_video_may_have_the_tokens_of_several_images_as_core_makes_them():
    tokens = [[numbered(1, 3, 32), {"concat_latent_image": numbered(1, 4, 8, 8)}]]
    (video,) = wire_formats.read_conditioning(tokens, 1, "positive")
    assert video.embeds.shape == (1, 3, 32)


def test_conditioning_is_read_as_float32():
    halves = [[torch.ones(1, 1, 32).half(), {"concat_latent_image": torch.ones(1, 4, 8, 8).half()}]]
    (video,) = wire_formats.read_conditioning(halves, 1, "positive")
    assert (video.embeds.dtype, video.image_latent.dtype) == (torch.float32, torch.float32)


@pytest.mark.parametrize(
    ("embeddings", "image_latents", "videos"), [(1, 1, 2), (2, 2, 1), (2, 1, 2), (1, 2, 2), (3, 3, 2), (2, 3, 2)]
)
def test_counts_that_do_not_fit_are_refused_with_the_three_numbers(embeddings, image_latents, videos):
    with raises(SettingError, "setting", "negative", embeddings, image_latents, videos):
        wire_formats.read_conditioning(conditioning_of(embeddings, image_latents), videos, "negative")


@pytest.mark.parametrize("entries", [0, 2])
def test_one_entry_and_no_other_number_of_them_is_taken(entries):
    with raises(SettingError, "setting", "positive", entries, "ImageOnlyCheckpointLoader"):
        wire_formats.read_conditioning(conditioning_of() * entries, 1, "positive")


@pytest.mark.parametrize(
    "conditioning",
    [[[None, {"concat_latent_image": torch.zeros(1, 4, 8, 8)}]], [[torch.zeros(1, 1, 32), {}]]],
    ids=["no embedding", "no image latent"],
)
def test_conditioning_without_an_image_is_refused_with_the_nodes_that_make_it(conditioning):
    with raises(SettingError, "setting", "negative", "SVDImageConditioning", "SVD_img2vid_Conditioning"):
        wire_formats.read_conditioning(conditioning, 1, "negative")


def test_other_micro_conditioning_does_not_change_its_input():
    before = conditioning_of(fps=7, motion_bucket_id=127, augmentation_level=0.02, of_others=[1])
    kept = copy.deepcopy(before)
    after = wire_formats.with_micro(before, MICRO)
    assert same(before, kept)
    assert after[0] is not before[0]
    assert after[0][1] is not before[0][1]
    assert after[0][0] is before[0][0]
    assert after[0][1]["of_others"] == [1]
    assert (after[0][1]["fps"], after[0][1]["motion_bucket_id"], after[0][1]["augmentation_level"]) == (12, 180, 0.1)


def test_micro_conditioning_reaches_every_entry():
    after = wire_formats.with_micro(conditioning_of() + conditioning_of(), MICRO)
    assert [keys["fps"] for _, keys in after] == [12, 12]


# CLIP_VISION_OUTPUT and the parts


def test_clip_vision_output_can_be_read_by_attribute_and_by_item():
    embedding = SimpleNamespace(
        image_embeds=numbered(2, 32),
        last_hidden_state=numbered(2, 50, 8),
        penultimate_hidden_states=numbered(2, 50, 8) + 1,
    )
    output = wire_formats.ClipVisionOutput(embedding, 224)
    for name in ("image_embeds", "last_hidden_state", "penultimate_hidden_states"):
        assert getattr(output, name) is getattr(embedding, name)
        assert output[name] is getattr(embedding, name)
    assert output.image_sizes == output["image_sizes"] == [(3, 224, 224)] * 2
    assert output.mm_projected is None


def test_a_component_on_the_wrong_socket_is_refused_with_its_type(tiny):
    assert wire_formats.vae(tiny.vae) is tiny.vae
    assert wire_formats.clip_vision(tiny.clip_vision) is tiny.clip_vision
    with raises(SettingError, "setting", "vae", "SVDCheckpointLoader", "SVDModel"):
        wire_formats.vae(tiny.model)
    with raises(SettingError, "setting", "clip_vision", "SVDVae"):
        wire_formats.clip_vision(tiny.vae)
    with raises(SettingError, "setting", "model", "SVDVae"):
        samplers.get_sampler(tiny.vae)
    with raises(SettingError, "setting", "clip_vision", "SVDModel"):
        wire_formats.checkpoint(tiny.model, tiny.model, tiny.vae)


@pytest.mark.parametrize("class_type", ["SVDFrameGuider", "SVDFrameGuidance"])
def test_guidance_of_a_model_refuses_an_svd_model(tiny, class_type):
    node = NODE_CLASS_MAPPINGS[class_type]()
    conditioning = {"positive": [], "negative": []} if class_type == "SVDFrameGuider" else {}
    with raises(SettingError, "setting", "model", "ImageOnlyCheckpointLoader", "SVDModel"):
        node.run(model=tiny.model, min_guidance=1.0, max_guidance=3.0, **conditioning)


# CONDITIONING of many videos


def test_conditioning_of_one_video_is_returned_unchanged():
    conditioning = conditioning_of() + conditioning_of(strength=0.5)
    assert wire_formats.split_conditioning(conditioning, 1, "positive") == [conditioning]


def test_conditioning_of_many_videos_is_cut_into_theirs():
    conditioning = conditioning_of(2, 2, of_others="kept")
    kept = copy.deepcopy(conditioning)
    first, second = wire_formats.split_conditioning(conditioning, 2, "positive")
    assert torch.equal(first[0][0], conditioning[0][0][:1]) and torch.equal(second[0][0], conditioning[0][0][1:])
    assert torch.equal(second[0][1]["concat_latent_image"], conditioning[0][1]["concat_latent_image"][1:])
    assert second[0][1]["of_others"] == "kept"
    assert same(conditioning, kept)


def test_several_entries_are_refused_for_many_videos():
    with raises(SettingError, "setting", 2, "positive", "SVDImageConditioning"):
        wire_formats.split_conditioning(conditioning_of(2, 2) * 2, 2, "positive")
