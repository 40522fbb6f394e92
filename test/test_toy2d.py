# SPDX-License-Identifier: Apache-2.0
"""Toy2d: a density that integrates to one, its exact gradient, and draws that follow it."""

from __future__ import annotations

import numpy as np
import pytest

from ros_vdd import cli, envs
from ros_vdd.data.episodes import EpisodeStore
from ros_vdd.envs import toy2d
from ros_vdd.streams.spec import load_robot

SIGMAS = [0.0, 0.3, 2.0]
POINTS = np.random.default_rng(0).normal(size=(50, 2)) * 3


@pytest.mark.parametrize("sigma", SIGMAS)
def test_the_density_integrates_to_one(sigma):
    side = np.arange(-18, 18, 0.06)  # the trapezoidal rule of a smooth, decaying function converges exponentially
    grid = np.stack(np.meshgrid(side, side), axis=-1)
    assert np.exp(toy2d.log_prob(grid, sigma)).sum() * 0.06**2 == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_log_prob_is_that_of_torchs_mixture(sigma):
    torch = pytest.importorskip("torch")
    law, width = torch.distributions, float(np.hypot(toy2d.STD, sigma))
    centres = torch.from_numpy(np.array(toy2d.means))
    parts = law.Independent(law.Normal(centres, torch.tensor(width, dtype=torch.float64)), 1)
    mixture = law.MixtureSameFamily(law.Categorical(torch.ones(8, dtype=torch.float64)), parts)
    np.testing.assert_allclose(toy2d.log_prob(POINTS, sigma), mixture.log_prob(torch.from_numpy(POINTS)).numpy(), rtol=1e-12)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_the_score_is_the_finite_difference_of_log_prob(sigma):
    h = 1e-5
    for axis in range(2):
        step = np.eye(2)[axis] * h
        difference = (toy2d.log_prob(POINTS + step, sigma) - toy2d.log_prob(POINTS - step, sigma)) / (2 * h)
        np.testing.assert_allclose(toy2d.score(POINTS, sigma)[:, axis], difference, rtol=1e-7, atol=1e-7)


def test_each_point_may_have_its_own_sigma():
    sigmas = np.linspace(0, 3, len(POINTS))
    for function in (toy2d.log_prob, toy2d.score):
        expected = [function(point, sigma) for point, sigma in zip(POINTS, sigmas)]
        np.testing.assert_allclose(function(POINTS, sigmas), expected, rtol=1e-14)


def test_far_away_nothing_overflows():
    far = np.array([1e4, -3e4])
    assert np.isfinite(toy2d.log_prob(far)) and np.isfinite(toy2d.score(far)).all()


def test_a_turn_by_one_centre_changes_nothing():
    c, s = np.cos(np.pi / 4), np.sin(np.pi / 4)
    turn = np.array([[c, -s], [s, c]])
    np.testing.assert_allclose(toy2d.log_prob(POINTS @ turn.T), toy2d.log_prob(POINTS), rtol=1e-10)
    np.testing.assert_allclose(toy2d.score(POINTS @ turn.T), toy2d.score(POINTS) @ turn.T, atol=1e-10)


def test_samples_have_the_moments_of_the_mixture():
    points = toy2d.sample(200_000, np.random.default_rng(0))
    variance = toy2d.RADIUS**2 / 2 + toy2d.STD**2  # of each axis
    np.testing.assert_allclose(points.mean(axis=0), 0, atol=5 * np.sqrt(variance / len(points)))
    np.testing.assert_allclose(np.cov(points.T), np.eye(2) * variance, atol=0.02)
    np.testing.assert_allclose(np.bincount(toy2d.nearest(points)) / len(points), 1 / 8, atol=0.005)


def test_the_samples_mean_score_vanishes():
    points = toy2d.sample(100_000, np.random.default_rng(1))  # E grad ln p = 0 under p
    np.testing.assert_allclose(toy2d.score(points).mean(axis=0), 0, atol=0.03)


@pytest.mark.parametrize("index", range(8))
def test_a_centre_is_success_with_full_score_and_its_own_mode(index):
    env = toy2d.Env()
    env.reset(0)
    assert not env.done and env.score == 0 and not env.success and env.mode is None
    env.step(toy2d.means[index])
    assert env.done and env.success and env.score == 1.0 and env.mode == index


@pytest.mark.parametrize("distance, success", [(2.99, True), (3.01, False)])
def test_success_ends_three_standard_deviations_from_the_nearest_centre(distance, success):
    env = toy2d.Env()
    env.reset(0)
    env.step(np.array([toy2d.RADIUS + distance * toy2d.STD, 0.0]))
    assert env.success is success and env.failed is not success
    assert env.score == pytest.approx(np.exp(-(distance**2) / 2)) and env.mode == (0 if success else None)


def test_only_the_first_point_counts():
    env = toy2d.Env()
    env.reset(0)
    env.step(toy2d.means[3])
    env.step(np.array([100.0, 100.0]))
    assert env.mode == 3


def test_the_picture_is_darkest_at_the_centres_and_y_points_up():
    env = toy2d.Env()
    env.reset(0)
    picture = env.render(200).astype(int).sum(axis=2)
    for mean in toy2d.means:
        x, y = (env.project(mean) * 200).astype(int)
        assert picture[y, x] < picture[0, 0] - 150
    assert env.project(np.array([0.0, 4.5])).tolist() == [0.5, 0.0]
    limits = load_robot("toy2d").action
    assert limits.upper == (toy2d.LIMIT,) * 2 and limits.lower == (-toy2d.LIMIT,) * 2


def test_demonstrations_are_seeded_draws_inside_the_limits(tmp_path):
    assert cli.run(["convert", "env:toy2d", "--seed", "3", "--out", str(tmp_path / "store"), "--no-progress"]) == 0
    store = EpisodeStore(tmp_path / "store")
    actions = np.concatenate([episode["action"] for episode in store])
    again = np.concatenate([arrays["action"] for arrays, _ in envs.demonstrations("toy2d", 3)])
    assert len(store) == 64 and actions.shape == (4096, 2)
    np.testing.assert_array_equal(actions, again)
    assert np.abs(actions).max() < toy2d.LIMIT and set(toy2d.nearest(actions).tolist()) == set(range(8))
    assert not np.array_equal(actions[:64], actions[64:128])
