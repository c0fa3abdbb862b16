"""Training svd-nano, at the smallest size: it learns, goes on where it was, and leaves a file that loads."""

from __future__ import annotations

import pytest
import torch
from error_checks import raises
from svd_stages.svd_core.checkpoints.load import load_checkpoint
from svd_stages.svd_core.diffusion.denoiser import denoised_from_v
from svd_stages.svd_core.errors import SettingError
from svd_stages.training.svd_nano import train as whole_training
from svd_stages.training.svd_nano import train_vae, training
from svd_stages.training.svd_nano.architecture import FACTS, new_modules
from svd_stages.training.svd_nano.clips import REACH, frame_distance
from svd_stages.training.svd_nano.evaluate import Settings, generate, psnr, reconstruct
from svd_stages.training.svd_nano.train import Minutes, as_checkpoint, latents_of, modules_of, train_nano, write_nano
from svd_stages.training.svd_nano.train_clip import TOLD, draw_labelled, embed
from svd_stages.training.svd_nano.train_unet import (
    ClipSize,
    choose_motion,
    encode_clips,
    moving_weight,
    time_ids,
    unet_loss,
    v_target,
)
from svd_stages.training.svd_nano.train_vae import draw_crop, draw_pool, only_space, scale_latents, vae_loss
from svd_stages.training.svd_nano.training import Plan, train

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _gradients(_no_gradients):
    with torch.inference_mode(False), torch.enable_grad():
        yield


@pytest.fixture(scope="module")
def pool():
    with torch.inference_mode(False):
        return draw_pool(range(4), CPU)


@pytest.fixture(scope="module")
def modules():
    """Untrained modules; nothing may change them."""
    with torch.inference_mode(False):
        made = new_modules(1)
        for module in (made.vae, made.clip, made.unet):
            module.eval().requires_grad_(False)
        return made


def line(seed: int = 0) -> torch.nn.Linear:
    made = torch.nn.Linear(3, 1)
    generator = torch.Generator().manual_seed(seed)
    made.weight.data.copy_(torch.randn(1, 3, generator=generator))
    made.bias.data.zero_()
    return made


def loss_of(module):
    def loss(_spent, generator):
        x = torch.randn(16, 3, generator=generator)
        return (module(x) - x.sum(dim=1, keepdim=True)).square().mean()

    return loss


def steps(monkeypatch, count: int) -> float:
    """Make each step take a second; the minutes of `count` steps."""
    clock = iter(range(10**6))
    monkeypatch.setattr(training.time, "monotonic", lambda: next(clock))
    return count / 60


def test_training_lowers_the_loss_and_writes_its_log(monkeypatch, tmp_path):
    module = line()
    train(module, Plan("line", steps(monkeypatch, 300), rate=0.05, seed=1, average=0.9), loss_of(module), tmp_path)
    rows = (tmp_path / "line.csv").read_text().splitlines()
    assert rows[0] == "step,seconds,loss"
    assert float(rows[-1].split(",")[2]) < 0.05 * float(rows[1].split(",")[2])
    assert not module.weight.requires_grad


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(monkeypatch, tmp_path):
    whole, halves = line(), line()
    plan = Plan("line", 1.0, rate=0.05, seed=1)
    monkeypatch.setattr(Plan, "rate_at", lambda self, step, spent: 0.01)
    steps(monkeypatch, 1)
    train(whole, plan, loss_of(whole), tmp_path / "whole")
    train(halves, Plan("line", 0.5, 0.05, 1), loss_of(halves), tmp_path / "halves")
    fresh = line(5)
    train(fresh, plan, loss_of(fresh), tmp_path / "halves")
    assert torch.equal(fresh.weight, whole.weight)


def test_a_loss_that_is_no_number_stops_the_training(tmp_path):
    module = line()
    with raises(SettingError, "setting", "line", "nan", 0.1):
        train(module, Plan("line", 1.0, 0.1, 1), lambda *_: module.weight.sum() * torch.nan, tmp_path)


def test_the_vae_begins_as_colours_and_has_gradients_everywhere(modules, pool):
    vae = new_modules(1).vae
    generator = torch.Generator().manual_seed(0)
    vae_loss(vae, torch.cat([draw_crop(pool, 2, False, generator)]), 2, generator).backward()
    without = [name for name, each in vae.named_parameters() if each.grad is None]
    assert without == []
    pixels = draw_crop(pool, 1, True, generator)
    image = (pixels.movedim(1, -1) + 1) / 2
    assert psnr(reconstruct(as_checkpoint(modules), image), image) > 13


def test_leaving_time_out_changes_nothing_before_time_was_learned(modules, pool):
    latents = torch.randn((2, 4, 4, 4), generator=torch.Generator().manual_seed(0))
    with only_space(modules.vae):
        without = modules.vae.decode(latents, num_frames=2).sample
    assert torch.allclose(modules.vae.decode(latents, num_frames=2).sample, without, atol=1e-5)


def test_scaling_gives_latents_unit_variance_and_decodes_the_same(pool):
    vae = new_modules(2).vae.eval().requires_grad_(False)
    pixels = torch.cat([draw_crop(pool, 1, True, torch.Generator().manual_seed(seed)) for seed in range(8)])

    def through() -> tuple[torch.Tensor, torch.Tensor]:
        latents = vae.encode(pixels).latent_dist.mean
        return latents, vae.decode(latents, num_frames=1).sample

    _, before = through()
    scale_latents(vae, pool)
    latents, after = through()
    assert torch.allclose(before, after, atol=1e-4)
    assert (latents * FACTS.scaling_factor).std(dim=(0, 2, 3)) == pytest.approx(torch.ones(4), rel=0.4)


def test_the_clip_tower_sees_pictures_with_their_ways(modules, pool):
    images, told, kinds = draw_labelled(pool, 8, torch.Generator().manual_seed(0))
    assert images.shape == (8, 128, 128, 3)
    assert told.shape == (8, TOLD)
    assert told[:, :2].norm(dim=1) == pytest.approx(torch.ones(8), rel=1e-5)
    assert kinds.max() < 3
    assert embed(modules.clip, images).shape == (8, 128)


def test_a_state_of_another_module_is_refused_by_its_file(monkeypatch, tmp_path):
    module = line()
    train(module, Plan("line", steps(monkeypatch, 2), 0.01, 1), loss_of(module), tmp_path)
    other = torch.nn.Linear(3, 2)
    with raises(SettingError, "setting", tmp_path / "line.safetensors"):
        train(other, Plan("line", 1.0, 0.01, 1), loss_of(other), tmp_path)


def test_clips_are_encoded_again_when_the_vae_has_learned_more(modules, monkeypatch, tmp_path):
    size = [ClipSize(64, 64, count=1, batch=1)]
    (first,) = latents_of(modules, tmp_path, CPU, size)
    changed = new_modules(2)
    for module in (changed.vae, changed.clip):
        module.eval().requires_grad_(False)
    (kept,) = latents_of(changed, tmp_path, CPU, size)
    assert torch.equal(kept.denoised, first.denoised)
    learner = line()
    train(learner, Plan("vae", steps(monkeypatch, 2), 0.01, 1), loss_of(learner), tmp_path)
    (fresh,) = latents_of(changed, tmp_path, CPU, size)
    assert not torch.allclose(fresh.denoised, first.denoised, atol=0.1)


def test_places_that_move_count_more_only_as_far_as_asked():
    denoised = torch.zeros(1, 2, 4, 2, 2)
    denoised[0, 1, :, 0, 0] = 5.0
    assert torch.equal(moving_weight(denoised, 0.0), torch.ones(1, 2, 1, 2, 2))
    weight = moving_weight(denoised, 4.0)
    assert weight[0, 1, 0].tolist() == [[5.0, 1.0], [1.0, 1.0]]
    assert (weight[0, 0] == 1).all()


@pytest.mark.parametrize("sigma", [0.01, 1.0, 300.0])
def test_v_is_what_the_denoiser_turns_into_the_clean_latents(sigma):
    generator = torch.Generator().manual_seed(0)
    denoised, noise = (torch.randn((2, 3, 4, 4, 4), generator=generator) for _ in range(2))
    level = torch.tensor(sigma)
    noisy = denoised + level * noise
    assert torch.allclose(denoised_from_v(noisy, v_target(denoised, noisy, level), level), denoised, atol=2e-3)


def test_the_unet_learns_from_encoded_clips_and_is_told_fps_less_one(modules):
    latents = encode_clips(modules, ClipSize(64, 64, count=2, batch=2), first_seed=50, frames=3, device=CPU)
    assert latents.denoised.shape == (2, 3, 4, 8, 8)
    assert latents.images.shape == (2, 3, 4, 8, 8)
    assert (latents.strengths[:, 0] == 0).all()
    assert time_ids(latents.motion, latents.strengths[:, 0])[:, 0] == pytest.approx(latents.motion[:, 0] - 1)
    unet = new_modules(1).unet
    losses = []
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-3)
    for _ in range(3):
        loss = unet_loss(unet, latents, torch.Generator().manual_seed(3), CPU)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_motion_at_random_stays_within_reach():
    generator = torch.Generator().manual_seed(0)
    drawn = [choose_motion(generator, 14) for _ in range(200)]
    assert max(13 * frame_distance(bucket, fps) for fps, bucket in drawn) <= 1.06 * REACH
    assert min(bucket for _, bucket in drawn) < 40
    assert max(bucket for _, bucket in drawn) > 220
    assert all(4 <= fps <= 30 for fps, _ in drawn)


def test_all_parts_are_trained_in_turn_and_a_second_run_has_nothing_left_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(whole_training, "POOL", range(1000, 1004))
    monkeypatch.setattr(train_vae, "MEASURED", 2)
    a_step = Minutes(vae=1e-5, clip=1e-5, unet=1e-5, decoder=1e-5)
    sizes = (ClipSize(64, 64, count=2, batch=1), ClipSize(128, 64, count=1, batch=1))
    first = train_nano(tmp_path, a_step, CPU, sizes=sizes)
    names = {"latents-64x64.safetensors", "latents-128x64.safetensors"}
    for part in ("vae", "clip", "unet", "decoder"):
        names |= {f"{part}.safetensors", f"{part}.csv", f"{part}.png"}
        assert len((tmp_path / f"{part}.csv").read_text().splitlines()) == 2, part
    assert {each.name for each in tmp_path.iterdir()} == names
    for minutes in (a_step, Minutes(vae=0, clip=0, unet=0, decoder=0)):
        again = train_nano(tmp_path, minutes, CPU, sizes=sizes)
        for part in ("vae", "clip", "unet"):
            then, now = (getattr(each, part).state_dict() for each in (first, again))
            assert [name for name, tensor in now.items() if not torch.equal(tensor, then[name])] == [], part


def test_a_model_is_trained_further_in_the_parts_that_are_given_time(monkeypatch, tmp_path):
    monkeypatch.setattr(whole_training, "POOL", range(1000, 1002))
    monkeypatch.setattr(whole_training, "SIZES", (ClipSize(64, 64, count=1, batch=1),))
    begun = write_nano(new_modules(2), tmp_path / "begun.safetensors")
    out = tmp_path / "out"
    command = ["--out", str(out), "--begin-with", str(begun), "--split", "0", "0", "1e-5", "0"]
    assert whole_training.main(command) == 0
    before, after = (modules_of(path) for path in (begun, out / whole_training.NAME))
    for part in ("vae", "clip"):
        then, now = (getattr(each, part).state_dict() for each in (before, after))
        assert all(torch.equal(then[name], tensor) for name, tensor in now.items()), part
    then, now = before.unet.state_dict(), after.unet.state_dict()
    assert any(not torch.equal(then[name], tensor) for name, tensor in now.items())
    assert (out / "train.log").is_file()


def test_the_command_line_overwrites_no_training_unasked(tmp_path):
    (tmp_path / "vae.safetensors").touch()
    with raises(SettingError, "setting", tmp_path, "--resume"):
        whole_training.main(["--out", str(tmp_path)])


def test_what_is_written_loads_with_its_facts_and_begins_with_the_image(pool, tmp_path):
    path = write_nano(new_modules(1), tmp_path / "nano.safetensors")
    assert path.stat().st_size < 32_000_000
    loaded = load_checkpoint(path, "fp32", CPU)
    assert loaded.model.defaults == FACTS.defaults()
    assert loaded.model.scaling_factor == FACTS.scaling_factor
    image = torch.rand((64, 64, 3), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert generate(loaded, image, Settings(frames=2, steps=2), seed=0).shape == (2, 64, 64, 3)
