"""Interval, projection and rescale of guidance: against the papers' formulas in float64, and in the denoiser."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from chain import Settings, call, sampled
from error_checks import raises
from svd_stages.svd_core.diffusion.conditioning import Conditioning, MicroConditioning
from svd_stages.svd_core.diffusion.denoiser import make_denoiser
from svd_stages.svd_core.diffusion.guidance import GuidanceCurve, GuidanceRefinement, RefinedGuidance
from svd_stages.svd_core.errors import SettingError
from svd_stages.svd_core.utils.cpu_threads import run_in_order
from tiny import randn

CPU = torch.device("cpu")
FRAMES = 3
WEIGHTS = torch.tensor([1.0, 2.0, 4.0])
SIGMAS = (20.0, 3.0, 0.4)
DEFAULTS = {"sigma_low": 0.0, "sigma_high": 10000.0, "rescale": 0.0, "eta": 1.0, "norm_threshold": 0.0, "momentum": 0.0}
"""The defaults of SVDGuidanceRefine."""

REFINEMENTS = {
    "rescale": {"rescale": 0.7},
    "eta": {"eta": 0.3},
    "norm_threshold": {"norm_threshold": 5.0},
    "momentum": {"momentum": -0.5},
    "all": {"rescale": 0.4, "eta": 0.2, "norm_threshold": 9.0, "momentum": -0.7},
}
EACH = pytest.mark.parametrize("settings", REFINEMENTS.values(), ids=REFINEMENTS)


def guided_frames(calls: list, rescale=0.0, eta=1.0, norm_threshold=0.0, momentum=0.0) -> list[torch.Tensor]:
    """Return the guided frames of each call (x, sigma, positive, negative), frame by frame in float64.

    Sadat et al. 2024, algorithm 1, for the denoised latents; Lin et al. 2023, section 3.4, for v.
    """
    average = [torch.zeros(()).double()] * FRAMES
    results = []
    for x, sigma, positive, negative in calls:
        frames = []
        for index, weight in enumerate(WEIGHTS.tolist()):
            noisy, p, n = (each[0, index].double().flatten() for each in (x, positive, negative))
            difference = average[index] = (p - n) + momentum * average[index]
            if norm_threshold > 0:
                difference = difference * min(1.0, norm_threshold / math.sqrt(float(difference @ difference)))
            parallel = (difference @ p) / (p @ p) * p
            guided = p + (weight - 1) * (difference - parallel + eta * parallel)
            skip, out = noisy / (sigma**2 + 1), sigma / math.sqrt(sigma**2 + 1)
            v_positive, v = (skip - p) / out, (skip - guided) / out
            v = rescale * v * v_positive.std() / v.std() + (1 - rescale) * v
            frames.append((skip - out * v).view_as(x[0, index]))
        results.append(torch.stack(frames)[None])
    return results


def network_answers() -> list:
    """Return (x, sigma, positive, negative) of three falling noise levels: (1, F, 4, h, w) each."""
    return [
        (
            randn(1, FRAMES, 4, 6, 5, seed=10 * step) * (1 + sigma),
            sigma,
            randn(1, FRAMES, 4, 6, 5, seed=10 * step + 1),
            randn(1, FRAMES, 4, 6, 5, seed=10 * step + 2),
        )
        for step, sigma in enumerate(SIGMAS)
    ]


@EACH
def test_refined_guidance_is_the_formula_of_its_paper_on_every_frame(settings):
    refined, calls = RefinedGuidance(GuidanceRefinement(**settings)), network_answers()
    weights = WEIGHTS.view(-1, 1, 1, 1)
    for (x, sigma, positive, negative), wanted in zip(calls, guided_frames(calls, **settings), strict=True):
        guided = refined(x, torch.tensor(sigma), positive, negative, weights)
        assert (guided - wanted).abs().max() <= 1e-5 * wanted.abs().max()
        assert (guided[:, :1] - positive[:, :1]).abs().max() <= 1e-5  # weight 1
        frames = RefinedGuidance(GuidanceRefinement(**{**settings, "momentum": 0.0}))
        assert frames(x[0], torch.tensor(sigma), positive[0], negative[0], weights).shape == x[0].shape  # as core's


def test_guidance_that_is_nowhere_different_stays_finite():
    same = randn(1, FRAMES, 4, 6, 5)
    refined = RefinedGuidance(GuidanceRefinement(rescale=0.5, eta=0.0, norm_threshold=1.0, momentum=0.5))
    for positive in (same, torch.zeros_like(same)):
        guided = refined(same, torch.tensor(1.0), positive, positive, WEIGHTS.view(-1, 1, 1, 1))
        assert (guided - positive).abs().max() <= 1e-6


@pytest.mark.parametrize(
    "bad",
    [
        {"sigma_low": 2.0, "sigma_high": 2.0},
        {"sigma_low": -1.0},
        {"sigma_high": float("nan")},
        {"rescale": 1.1},
        {"eta": -0.1},
        {"norm_threshold": -1.0},
        {"norm_threshold": math.inf},
        {"momentum": 1.5},
        {"momentum": float("nan")},
    ],
)
def test_a_refinement_outside_of_its_range_is_refused(bad):
    with raises(SettingError, "setting", *bad):
        GuidanceRefinement(**bad)


# In the denoiser


def sides() -> tuple[Conditioning, Conditioning]:
    positive = Conditioning(randn(1, 1, 32), randn(1, 4, 8, 8, seed=1), MicroConditioning())
    negative = replace(positive, embeds=torch.zeros(1, 1, 32), image_latent=torch.zeros(1, 4, 8, 8))
    return positive, negative


def denoiser(tiny, refinement: GuidanceRefinement, weights: torch.Tensor = WEIGHTS, counts: list[int] | None = None):
    """Return a denoiser that appends the number of network calls at each noise level to `counts`."""

    def run_all(functions):
        if counts is not None:
            counts.append(len(functions))
        return run_in_order(functions)

    return make_denoiser(tiny.model.unet, *sides(), weights, CPU, run_all=run_all, refinement=refinement)


def test_outside_of_its_interval_guidance_is_off_and_the_negative_side_is_not_computed(tiny):
    counts: list[int] = []
    narrow = denoiser(tiny, GuidanceRefinement(0.28, 5.42), counts=counts)
    full, off = denoiser(tiny, GuidanceRefinement()), denoiser(tiny, GuidanceRefinement(), torch.ones(FRAMES))
    levels = {700.0: 1, 5.43: 1, 5.42: 2, 1.0: 2, 0.29: 2, 0.28: 1, 0.002: 1}
    for sigma, calls in levels.items():
        x = randn(1, FRAMES, 4, 8, 8) * (1 + sigma)
        wanted = (full if calls == 2 else off)(x, torch.tensor(sigma))
        assert torch.equal(narrow(x, torch.tensor(sigma)), wanted), sigma
    assert counts == list(levels.values())


@EACH
def test_the_denoiser_gives_the_formula_of_both_sides(tiny, settings):
    positive, negative = sides()
    alone = [make_denoiser(tiny.model.unet, side, side, torch.ones(FRAMES), CPU) for side in (positive, negative)]
    calls = []
    for step, sigma in enumerate(SIGMAS):
        x = randn(1, FRAMES, 4, 8, 8, seed=step) * (1 + sigma)
        calls.append((x, sigma, *(denoise(x, torch.tensor(sigma)) for denoise in alone)))
    denoise = denoiser(tiny, GuidanceRefinement(**settings))
    for (x, sigma, *_), wanted in zip(calls, guided_frames(calls, **settings), strict=True):
        assert (denoise(x, torch.tensor(sigma)) - wanted).abs().max() <= 1e-5 * wanted.abs().max()


# Through the nodes


def refine(**settings):
    (curve,) = call("SVDGuidance", shape="linear", min_guidance=1.0, max_guidance=3.0)
    return call("SVDGuidanceRefine", guidance=curve, **{**DEFAULTS, **settings})[0]


def test_the_nodes_defaults_change_no_bit(tiny, images):
    settings = Settings(frames=2, steps=2)
    plain = sampled(tiny, images, settings)["samples"]
    assert torch.equal(sampled(tiny, images, settings, guidance=refine())["samples"], plain)


def test_refining_again_replaces_the_refinement_and_keeps_the_curve():
    curve = replace(GuidanceCurve("triangle", 1.5, 2.0), refinement=GuidanceRefinement(eta=0.5))
    (again,) = call("SVDGuidanceRefine", guidance=curve, **{**DEFAULTS, "rescale": 0.7})
    assert again == GuidanceCurve("triangle", 1.5, 2.0, GuidanceRefinement(sigma_high=10000.0, rescale=0.7))


def test_momentum_starts_anew_for_every_video(tiny, images):
    pair = torch.cat([images, images.flip(2)])
    curve = refine(momentum=-0.7, eta=0.5)
    together = sampled(tiny, pair, Settings(frames=2, seed=5), guidance=curve)["samples"]
    for index in range(2):
        single = Settings(frames=2, seed=5 + index)
        alone = sampled(tiny, pair[index : index + 1], single, guidance=curve)["samples"]
        assert torch.equal(together[2 * index : 2 * index + 2], alone)
    without = sampled(tiny, pair[:1], Settings(frames=2, seed=5), guidance=refine(eta=0.5))["samples"]
    assert not torch.equal(together[:2], without)
