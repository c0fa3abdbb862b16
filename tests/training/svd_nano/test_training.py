"""Training svd-nano at the smallest size: it learns, resumes, and writes a file that loads."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from error_checks import raises
from svd_stages.svd_core.checkpoints.load import load_checkpoint
from svd_stages.svd_core.diffusion.denoiser import denoised_from_v
from svd_stages.svd_core.errors import SettingError
from svd_stages.svd_core.media.image_ops import psnr
from svd_stages.training.svd_nano import train as train_program
from svd_stages.training.svd_nano import train_clip, train_unet, train_vae, training
from svd_stages.training.svd_nano.architecture import METADATA, new_modules
from svd_stages.training.svd_nano.clips import REACH, frame_distance
from svd_stages.training.svd_nano.evaluate import SETTINGS, generate, reconstruct
from svd_stages.training.svd_nano.train import Minutes, load_latents, load_modules, train_nano, write_nano
from svd_stages.training.svd_nano.train_unet import ClipSize
from svd_stages.training.svd_nano.train_vae import draw_crop, draw_near_crop, draw_pool
from svd_stages.training.svd_nano.training import Plan, train
from tiny import randn

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("gradients")


@pytest.fixture(scope="module")
def pool():
    with torch.inference_mode(False):
        return draw_pool(range(4), CPU)


@pytest.fixture(scope="module")
def modules():
    """Untrained modules. Tests must not change them."""
    with torch.inference_mode(False):
        return new_modules(1).eval().requires_grad_(False)


def line(seed: int = 0) -> torch.nn.Linear:
    module = torch.nn.Linear(3, 1)
    module.weight.data.copy_(randn(1, 3, seed=seed))
    module.bias.data.zero_()
    return module


def loss_of(module):
    def loss(_progress, generator):
        x = torch.randn(16, 3, generator=generator)
        return (module(x) - x.sum(dim=1, keepdim=True)).square().mean()

    return loss


def steps(monkeypatch, count: int) -> float:
    """Make each step take a second, and return the minutes of `count` steps."""
    clock = iter(range(10**6))
    monkeypatch.setattr(training.time, "monotonic", lambda: next(clock))
    return count / 60


def test_training_lowers_the_loss_and_writes_a_log(monkeypatch, tmp_path):
    module = line()
    train(module, Plan("line", steps(monkeypatch, 300), rate=0.05, seed=1, average=0.9), loss_of(module), tmp_path)
    rows = (tmp_path / "line.csv").read_text().splitlines()
    assert rows[0] == "step,seconds,loss"
    assert float(rows[-1].split(",")[2]) < 0.05 * float(rows[1].split(",")[2])
    assert not module.weight.requires_grad


def test_a_resumed_run_is_equal_to_an_uninterrupted_one(monkeypatch, tmp_path):
    uninterrupted, halves = line(), line()
    plan = Plan("line", 1.0, rate=0.05, seed=1)
    monkeypatch.setattr(Plan, "rate_at", lambda self, step, progress: 0.01)
    steps(monkeypatch, 1)
    train(uninterrupted, plan, loss_of(uninterrupted), tmp_path / "uninterrupted")
    train(halves, Plan("line", 0.5, 0.05, 1), loss_of(halves), tmp_path / "halves")
    fresh = line(5)
    train(fresh, plan, loss_of(fresh), tmp_path / "halves")
    assert torch.equal(fresh.weight, uninterrupted.weight)


def test_a_nan_loss_stops_the_training(tmp_path):
    module = line()
    with raises(SettingError, "setting", "line", "nan", 0.1):
        train(module, Plan("line", 1.0, 0.1, 1), lambda *_: module.weight.sum() * torch.nan, tmp_path)


def test_the_vae_starts_as_downscaling_and_has_gradients_everywhere(modules, pool):
    vae = new_modules(1).vae
    generator = torch.Generator().manual_seed(0)
    train_vae.vae_loss(vae, torch.cat([draw_crop(pool, 2, False, generator)]), 2, generator).backward()
    assert [name for name, each in vae.named_parameters() if each.grad is None] == []
    pixels = draw_crop(pool, 1, True, generator)
    image = (pixels.movedim(1, -1) + 1) / 2
    assert psnr(reconstruct(train_program.as_checkpoint(modules), image), image) > 13


def test_untrained_temporal_blocks_return_their_input(modules, pool):
    latents = randn(2, 4, 4, 4)
    with train_vae.spatial_only(modules.vae):
        without = modules.vae.decode(latents, num_frames=2).sample
    assert torch.allclose(modules.vae.decode(latents, num_frames=2).sample, without, atol=1e-5)


def test_scaled_latents_have_unit_variance_and_decode_to_the_same_images(pool):
    vae = new_modules(2).vae.eval().requires_grad_(False)
    pixels = torch.cat([draw_crop(pool, 1, True, torch.Generator().manual_seed(seed)) for seed in range(8)])

    def through() -> tuple[torch.Tensor, torch.Tensor]:
        latents = vae.encode(pixels).latent_dist.mean
        return latents, vae.decode(latents, num_frames=1).sample

    _, before = through()
    train_vae.scale_latents(vae, pool)
    latents, after = through()
    assert torch.allclose(before, after, atol=1e-4)
    assert (latents * METADATA.scaling_factor).std(dim=(0, 2, 3)) == pytest.approx(torch.ones(4), rel=0.4)


def test_near_crops_show_the_mover(pool):
    black = replace(pool, plates=[replace(each, backdrop=0 * each.backdrop) for each in pool.plates])
    for seed in range(20):
        crop = draw_near_crop(black, 2, torch.Generator().manual_seed(seed))
        assert crop.shape == (2, 3, train_vae.NEAR_CROP, train_vae.NEAR_CROP)
        assert ((crop + 1) / 2 > 0.1).float().mean() > 0.02


def test_the_clip_model_is_trained_on_images_with_targets(modules, pool):
    images, targets, kinds = train_clip.draw_labelled(pool, 8, torch.Generator().manual_seed(0))
    assert images.shape == (8, 128, 128, 3)
    assert targets.shape == (8, train_clip.TARGETS)
    assert targets[:, :2].norm(dim=1) == pytest.approx(torch.ones(8), rel=1e-5)
    assert kinds.min() >= 0 and kinds.max() < len(train_clip.NAMES)
    assert train_clip.embed(modules.clip, images).shape == (8, 128)


def test_the_state_of_another_module_raises_an_error(monkeypatch, tmp_path):
    module = line()
    train(module, Plan("line", steps(monkeypatch, 2), 0.01, 1), loss_of(module), tmp_path)
    other = torch.nn.Linear(3, 2)
    with raises(SettingError, "setting", tmp_path / "line.safetensors"):
        train(other, Plan("line", 1.0, 0.01, 1), loss_of(other), tmp_path)


def test_clips_are_encoded_again_after_more_training_of_the_vae(modules, monkeypatch, tmp_path):
    size = [ClipSize(64, 64, count=1, batch=1)]
    (first,) = load_latents(modules, tmp_path, size)
    changed = new_modules(2).eval().requires_grad_(False)
    (kept,) = load_latents(changed, tmp_path, size)
    assert torch.equal(kept.denoised, first.denoised)
    learner = line()
    train(learner, Plan("vae", steps(monkeypatch, 2), 0.01, 1), loss_of(learner), tmp_path)
    (fresh,) = load_latents(changed, tmp_path, size)
    assert not torch.allclose(fresh.denoised, first.denoised, atol=0.1)


def test_moving_pixels_have_up_to_the_extra_weight():
    denoised = torch.zeros(1, 2, 4, 2, 2)
    denoised[0, 1, :, 0, 0] = 5.0
    assert torch.equal(train_unet.moving_weight(denoised, 0.0), torch.ones(1, 2, 1, 2, 2))
    weight = train_unet.moving_weight(denoised, 4.0)
    assert weight[0, 1, 0].tolist() == [[5.0, 1.0], [1.0, 1.0]]
    assert (weight[0, 0] == 1).all()


@pytest.mark.parametrize("sigma", [0.01, 1.0, 300.0])
def test_the_denoiser_turns_v_target_into_the_denoised_latents(sigma):
    generator = torch.Generator().manual_seed(0)
    denoised, noise = (torch.randn((2, 3, 4, 4, 4), generator=generator) for _ in range(2))
    level = torch.tensor(sigma)
    noisy = denoised + level * noise
    assert torch.allclose(
        denoised_from_v(noisy, train_unet.v_target(denoised, noisy, level), level), denoised, atol=2e-3
    )


def test_the_unet_learns_from_encoded_clips_with_fps_minus_one(modules, monkeypatch):
    monkeypatch.setattr(train_unet, "MIN_CHANGE", 1e-3)
    latents = train_unet.encode_clips(modules, ClipSize(64, 64, count=2, batch=2), first_seed=50, frames=3)
    assert latents.denoised.shape == (2, 3, 4, 8, 8)
    assert latents.images.shape == (2, 3, 4, 8, 8)
    assert (latents.strengths[:, 0] == 0).all()
    assert train_unet.time_ids(latents.motion, latents.strengths[:, 0])[:, 0] == pytest.approx(latents.motion[:, 0] - 1)
    unet = new_modules(1).unet
    assert train_unet.denoising_error(unet, latents, 1e-3) < 1e-3 < train_unet.denoising_error(unet, latents, 10.0)
    losses = []
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-3)
    for _ in range(3):
        loss = train_unet.unet_loss(unet, latents, torch.Generator().manual_seed(3))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_random_motion_stays_within_reach():
    generator = torch.Generator().manual_seed(0)
    drawn = [train_unet.choose_motion(generator, 14) for _ in range(200)]
    assert max(13 * frame_distance(bucket, fps) for fps, bucket in drawn) <= 1.06 * REACH
    assert min(bucket for _, bucket in drawn) < 40
    assert max(bucket for _, bucket in drawn) > 220
    assert all(4 <= fps <= 30 for fps, _ in drawn)


def test_all_parts_are_trained_and_a_second_run_changes_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(train_program, "POOL", range(1000, 1004))
    monkeypatch.setattr(train_vae, "MEASURED", 2)
    one_step = Minutes(vae=1e-5, clip=1e-5, unet=1e-5, decoder=1e-5)
    sizes = (ClipSize(64, 64, count=2, batch=1), ClipSize(128, 64, count=1, batch=1))
    monkeypatch.setattr(train_program, "SIZES", sizes)
    first = train_nano(tmp_path, one_step, CPU)
    names = {"latents-64x64.safetensors", "latents-128x64.safetensors"}
    for part in ("vae", "clip", "unet", "decoder"):
        names |= {f"{part}.safetensors", f"{part}.csv", f"{part}.png"}
        assert len((tmp_path / f"{part}.csv").read_text().splitlines()) == 2, part
    assert {each.name for each in tmp_path.iterdir()} == names
    for minutes in (one_step, Minutes(vae=0, clip=0, unet=0, decoder=0)):
        again = train_nano(tmp_path, minutes, CPU)
        assert all(
            changed_weights(getattr(first, part), getattr(again, part)) == [] for part in ("vae", "clip", "unet")
        )


def changed_weights(before: torch.nn.Module, after: torch.nn.Module) -> list[str]:
    after_state = after.state_dict()
    return [name for name, tensor in before.state_dict().items() if not torch.equal(tensor, after_state[name])]


def test_only_parts_with_time_are_trained_further(monkeypatch, tmp_path):
    monkeypatch.setattr(train_program, "POOL", range(1000, 1002))
    monkeypatch.setattr(train_program, "SIZES", (ClipSize(64, 64, count=1, batch=1),))
    start = write_nano(new_modules(2), tmp_path / "start.safetensors")
    out = tmp_path / "out"
    command = ["--out", str(out), "--begin-with", str(start), "--split", "0", "0", "1e-5", "0"]
    assert train_program.main(command) == 0
    before, after = (load_modules(path) for path in (start, out / train_program.NAME))
    assert changed_weights(before.vae, after.vae) == changed_weights(before.clip, after.clip) == []
    assert changed_weights(before.unet, after.unet)
    assert (out / "train.log").is_file()


def test_the_command_line_does_not_overwrite_a_training(tmp_path):
    (tmp_path / "vae.safetensors").touch()
    with raises(SettingError, "setting", tmp_path, "--resume"):
        train_program.main(["--out", str(tmp_path)])


def test_the_written_file_loads_with_its_metadata_and_generates(tmp_path):
    path = write_nano(new_modules(1), tmp_path / "nano.safetensors")
    assert path.stat().st_size < 32_000_000
    loaded = load_checkpoint(path, "fp32", CPU)
    assert loaded.model.defaults == METADATA.defaults()
    assert loaded.model.scaling_factor == METADATA.scaling_factor
    image = torch.rand((64, 64, 3), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert generate(loaded, image, replace(SETTINGS, num_frames=2, steps=2), seed=0).shape == (2, 64, 64, 3)
