# SPDX-License-Identifier: Apache-2.0
"""Noise levels: the Karras grid is the published formula, the training levels have the published distributions."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the training stack needs torch")

from ros_vdd.diffusion.draws import Draws  # noqa: E402
from ros_vdd.diffusion.schedule import karras_sigmas, log_normal_sigmas, log_uniform_sigmas  # noqa: E402


@pytest.mark.parametrize("steps", [2, 3, 10, 80])
@pytest.mark.parametrize("rho", [1.0, 7.0])
def test_grid_is_the_formula_in_float64(steps, rho):
    low, high = 0.01, 20.0
    i = np.arange(steps, dtype=np.float64)
    expected = (high ** (1 / rho) + i / (steps - 1) * (low ** (1 / rho) - high ** (1 / rho))) ** rho
    np.testing.assert_allclose(karras_sigmas(steps, low, high, rho)[:-1], expected, rtol=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 10])
def test_grid_starts_at_the_highest_level_falls_and_ends_at_exactly_zero(steps):
    sigmas = karras_sigmas(steps, 0.01, 20.0)
    assert len(sigmas) == steps + 1
    assert sigmas[0] == 20.0 and sigmas[-1] == 0.0
    assert (np.diff(sigmas) < 0).all()


@pytest.mark.parametrize("steps, low, high", [(0, 0.1, 1.0), (3, 0.0, 1.0), (3, 1.0, 0.1)])
def test_grid_refuses_what_has_no_meaning(steps, low, high):
    with pytest.raises(ValueError, match="need steps"):
        karras_sigmas(steps, low, high)


def test_training_levels_are_log_normal_inside_the_samplers_range():
    drawn = log_normal_sigmas(40_000, -1.2, 1.2, 0.01, 20.0, Draws(0)).log()
    assert abs(drawn.mean() + 1.2) < 4 * 1.2 / math.sqrt(40_000)
    assert abs(drawn.std() - 1.2) < 0.03  # clipping takes about 0.01 off
    assert math.log(0.01) - 1e-6 <= drawn.min() and drawn.max() <= math.log(20.0) + 1e-6


def test_distillation_levels_are_uniform_in_the_logarithm():
    drawn = log_uniform_sigmas((40_000,), 0.1, 0.5, Draws(0)).log()
    share = (drawn - math.log(0.1)) / math.log(5.0)
    counts = torch.histc(share, bins=10, min=0.0, max=1.0)
    assert counts.sum() == 40_000
    assert (counts - 4_000).abs().max() < 5 * math.sqrt(40_000 * 0.1 * 0.9)
