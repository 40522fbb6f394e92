# SPDX-License-Identifier: Apache-2.0
"""Samplers follow the exact probability-flow solution of Gaussian data at their order, and stay inside their bound."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch", reason="the training stack needs torch")

from ros_vdd.diffusion.sampling import SOLVERS, euler, evaluations, heun  # noqa: E402
from ros_vdd.diffusion.schedule import karras_sigmas  # noqa: E402

MEAN, STD, LOW, HIGH = 0.3, 0.4, 0.02, 10.0


def gaussian(x, sigma):
    """The exact denoiser of data N(MEAN, STD^2)."""
    s = sigma[:, None]
    return (STD**2 * x + s**2 * MEAN) / (STD**2 + s**2)


def exact(noise, sigma):
    """Where the probability flow from HIGH stands at sigma: x - mean scales with the marginal standard deviation."""
    scale = math.sqrt((STD**2 + sigma**2) / (STD**2 + HIGH**2))
    return MEAN + (noise * HIGH - MEAN) * scale


def error(solver, steps):
    """Largest error on the way from HIGH to LOW; the step to zero is left out, whose error LOW decides."""
    noise = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    sigmas = karras_sigmas(steps + 1, LOW, HIGH)[:-1]
    return (solver(gaussian, noise, sigmas) - exact(noise, sigmas[-1])).abs().max().item()


@pytest.mark.parametrize("solver, order", [(euler, 1), (heun, 2)])
def test_error_falls_with_the_solvers_order(solver, order):
    halved = [error(solver, n) / error(solver, 2 * n) for n in (64, 128)]
    assert halved == pytest.approx([2**order] * 2, rel=0.1)


@pytest.mark.parametrize("name", SOLVERS)
def test_samples_of_a_gaussian_have_its_mean_and_spread(name):
    noise = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    sampled = SOLVERS[name](gaussian, noise, karras_sigmas(400, 0.002, HIGH))
    torch.testing.assert_close(sampled, exact(noise, 0.0), rtol=0, atol=0.01)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_evaluations_are_what_a_counting_denoiser_counts(name, steps):
    seen = []

    def counting(x, sigma):
        seen.append(float(sigma[0]))
        return gaussian(x, sigma)

    SOLVERS[name](counting, torch.ones(1, 2), karras_sigmas(steps, LOW, HIGH))
    assert len(seen) == evaluations(name, steps)
    assert min(seen) > 0, "a level of zero has no logarithm"


@pytest.mark.parametrize("name", SOLVERS)
def test_the_bound_is_never_left(name):
    noise = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    sampled = SOLVERS[name](lambda x, s: 100 * torch.sin(37 * x), noise, karras_sigmas(5, LOW, HIGH), bound=1.0)
    assert sampled.abs().max() <= 1 + 1e-5  # x + (0 - s) (x - D) / s is D up to float32 rounding of x


@pytest.mark.parametrize("name", SOLVERS)
def test_a_bound_that_isnt_reached_changes_nothing(name):
    noise, sigmas = torch.linspace(-1, 1, 5)[:, None], karras_sigmas(5, LOW, HIGH)
    free, bounded = (SOLVERS[name](gaussian, noise, sigmas, bound) for bound in (None, 1e6))
    assert torch.equal(free, bounded)


@pytest.mark.parametrize("name", SOLVERS)
def test_same_noise_gives_the_same_chunk(name):
    noise, sigmas = torch.randn(4, 3), karras_sigmas(5, LOW, HIGH)
    torch.manual_seed(1)
    first = SOLVERS[name](gaussian, noise, sigmas)
    torch.manual_seed(2)
    assert torch.equal(first, SOLVERS[name](gaussian, noise, sigmas))


def test_euler_is_ddim():
    """x' = D + (s'/s) (x - D): the noise keeps its direction (DDIM equation 13, variance exploding)."""
    x, sigmas = torch.linspace(-3, 3, 7, dtype=torch.float64)[:, None], karras_sigmas(6, LOW, HIGH)
    expected = x * sigmas[0]
    for now, then in zip(sigmas[:-1], sigmas[1:]):
        clean = gaussian(expected, torch.full((7,), now, dtype=x.dtype))
        expected = clean + then / now * (expected - clean)
    torch.testing.assert_close(euler(gaussian, x, sigmas), expected, rtol=1e-12, atol=1e-12)
