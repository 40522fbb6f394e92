# SPDX-License-Identifier: Apache-2.0
"""Consistency distillation: the label and its order, the average, what gradients and dropout reach; the distances."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the training stack needs torch")

import toy  # noqa: E402
from ros_vdd.config import build  # noqa: E402
from ros_vdd.data.dataset import Windows  # noqa: E402
from ros_vdd.diffusion.draws import Draws  # noqa: E402
from ros_vdd.errors import ConfigError  # noqa: E402
from ros_vdd.methods import consistency, lcm  # noqa: E402
from ros_vdd.methods._target import measured  # noqa: E402

MEAN, VARIANCE = 0.3, 0.04


class Exact(torch.nn.Module):
    """Where the probability flow of N(mean, v I) carries a state: mean + sqrt((v + stop^2) / (v + sigma^2)) (x - mean)."""

    def __init__(self, sigma_min):
        super().__init__()
        self.mean, self.sigma_min = torch.nn.Parameter(torch.tensor(MEAN)), sigma_min

    def forward(self, x, sigma, condition):
        return self.jump(x, sigma, torch.full_like(sigma, self.sigma_min), condition)

    def jump(self, x, sigma, stop, condition):
        return self.mean + ((VARIANCE + stop**2) / (VARIANCE + sigma**2)).sqrt()[:, None] * (x - self.mean)


@pytest.fixture(scope="module")
def batch(tmp_path_factory):
    store = toy.store(tmp_path_factory.mktemp("consistency") / "store")
    windows = Windows(store, range(len(store)), 2, 4)
    return windows.batch(np.arange(len(windows) - 16, len(windows)))  # the last ones are padded


def made(module=consistency, options=(), clip=True, **policy):
    """Return a method of a random student and a random teacher."""
    teacher = toy.network("diffusion").requires_grad_(False)
    teacher.config = replace(teacher.config, sampler=replace(teacher.config.sampler, clip=clip))
    return module.Method(build(module.Options, dict(options)), toy.network("few_step", seed=1, **policy), teacher)


def exact(module=consistency, options=(), **policy):
    """Return a method whose teacher knows a Gaussian exactly, and whose student and target are its trajectories."""
    method = made(module, options, clip=False, **policy)
    method.teacher.clean = lambda x, s, context: MEAN + VARIANCE / (VARIANCE + s[:, None] ** 2) * (x - MEAN)
    method.policy.denoiser = Exact(method.policy.config.sampler.sigma_min)
    method.target = deepcopy(method.policy.denoiser).requires_grad_(False)
    return method


def label_error(module, grid, place, **options):
    """Return how far the label of states at a place of the grid, 0 to 1, is from where they end."""
    method = exact(module, options, grid=grid)
    x, index = torch.linspace(-3, 3, 16)[:, None].expand(16, 8), torch.full((16,), round(place * (grid - 1)))
    sigma, label = method.label(x, index, None, None)
    return (label - method.policy.denoiser(x, sigma, None)).abs().max().item()


def test_at_the_trajectories_of_a_gaussian_the_loss_and_its_gradient_vanish(batch):
    method = exact(grid=300)

    def loss_and_gradient():
        loss, _ = method.loss(batch, Draws(0))
        return loss.item(), torch.autograd.grad(loss, method.policy.denoiser.mean)[0].abs().item()

    loss, gradient = loss_and_gradient()
    method.policy.denoiser.mean.data += 0.1
    off, slope = loss_and_gradient()
    assert loss < 1e-4 * off and gradient < 1e-3 * slope


def test_the_label_errs_by_the_third_power_of_the_step():
    """Heun's rule in one step; four times less for Euler's."""
    assert label_error(consistency, 41, 0.5) / label_error(consistency, 81, 0.5) == pytest.approx(8, rel=0.3)


def test_weighted_levels_count_as_in_the_teachers_training(batch):
    """On average over the grid by 1, by 1/s^2 + 1/sd^2 among each other; the figures of the sources stay plain."""
    plain, weighted = (made(options={"weighting": name}, grid=8) for name in ("uniform", "edm"))
    grid = torch.tensor(weighted.policy.grid[:-2])
    weight = weighted.weight(grid)
    assert plain.weight(grid) is None and weight.mean().item() == pytest.approx(1)
    torch.testing.assert_close(weight / weight[0], (grid**-2 + 4) / (grid[0] ** -2 + 4))
    (loss, one), (other, two) = (method.loss(batch, Draws(0)) for method in (plain, weighted))
    assert one["error_forward"] == two["error_forward"] and loss.item() != pytest.approx(other.item(), rel=1e-3)


@pytest.mark.parametrize("distance", ["l2", "pseudo_huber"])
def test_a_weight_of_1_changes_nothing(distance):
    error, mask = Draws(0).normal((5, 4)), torch.ones(5, 4)
    plain, weighted = (measured(distance, error, mask, Draws(0), weight) for weight in (None, torch.ones(5)))
    assert torch.equal(plain[0], weighted[0]) and torch.equal(plain[1], weighted[1])
    doubled, rows = measured(distance, error, mask, Draws(0), torch.full((5,), 2.0))
    torch.testing.assert_close(doubled, 2 * plain[0])
    assert torch.equal(rows, plain[1])


def test_compared_levels_come_half_as_near_in_equal_spans():
    method = made(options={"doublings": 2}, grid=8)
    assert [method.stride(p) for p in (0.0, 0.33, 0.34, 0.66, 0.67, 0.99, 1.0)] == [4, 4, 2, 2, 1, 1, 1]
    assert {made(grid=8).stride(p) for p in (0.0, 0.5, 1.0)} == {1}
    lcm_method = made(lcm, {"doublings": 1, "skip": 2}, grid=8)
    assert [lcm_method.stride(p) for p in (0.0, 0.49, 0.5, 1.0)] == [4, 4, 2, 2]


def test_levels_twice_as_far_apart_err_as_a_grid_of_half_as_many():
    """A grid of 21 levels is every other one of 41; doubled at the start, single at the end."""
    method, x = exact(options={"doublings": 1}, grid=41), torch.linspace(-3, 3, 16)[:, None].expand(16, 8)
    coarse, index = exact(grid=21), torch.full((16,), 10)
    _, first = method.label(x, 2 * index, None, None, 0.0)
    torch.testing.assert_close(first, coarse.label(x, index, None, None)[1])
    _, last = method.label(x, 2 * index, None, None, 1.0)
    torch.testing.assert_close(last, exact(grid=41).label(x, 2 * index, None, None)[1])


@pytest.mark.parametrize("module, options", [(consistency, {"doublings": 2}), (lcm, {"doublings": 1, "skip": 2})])
def test_doublings_that_lead_past_the_grid_are_refused(module, options):
    with pytest.raises(ConfigError, match="levels 4 apart.*expected fewer doublings"):
        made(module, options, grid=4)


def test_a_teacher_that_always_says_the_same_has_straight_trajectories(batch):
    """Heun's step is exact there, and f(x) = c + (s_min / s) (x - c)."""
    method, said = made(clip=False), torch.full((16, 8), 0.3)
    low = method.policy.config.sampler.sigma_min
    method.teacher.clean = lambda x, s, context: said
    method.target.forward = lambda x, s, context: said + (low / s)[:, None] * (x - said)
    x = 3 * torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
    sigma, label = method.label(x, torch.arange(16) % 4, method.policy.context(batch), None)
    torch.testing.assert_close(label, said + (low / sigma)[:, None] * (x - said))


@pytest.mark.parametrize("clip", [True, False])
def test_at_the_lowest_level_a_state_is_its_own_label_cut_as_the_teacher_says(clip, batch):
    method = made(clip=clip)
    x, contexts = torch.linspace(-2, 2, 16)[:, None].expand(16, 8), (method.policy.context(batch), method.teacher.context(batch))
    sigma, label = method.label(x, torch.full((16,), 3), *contexts)
    assert (sigma == method.policy.config.sampler.sigma_min).all()
    torch.testing.assert_close(label, x.clamp(-1, 1) if clip else x)


def test_gradients_reach_the_student_alone(batch):
    method = made()
    method.loss(batch, Draws(0))[0].backward()
    assert all(p.grad is not None for p in method.policy.denoiser.parameters())
    assert all(p.grad is None for module in (method.target, method.teacher) for p in module.parameters())


def test_the_target_is_the_average_of_the_steps_of_the_student():
    method = made(options={"target_decay": 0.9})
    method.prepare(None, Draws(0))
    student, target = ([*m.parameters()] for m in (method.policy.denoiser, method.target))
    assert all(torch.equal(a, b) for a, b in zip(student, target, strict=True))
    expected = [p.detach().double().numpy().copy() for p in target]
    for step in range(3):
        with torch.no_grad():
            for parameter in student:
                parameter += 0.01 * (step + 1)
        method.after()
        expected = [0.9 * e + 0.1 * p.detach().double().numpy() for e, p in zip(expected, student)]
    for got, want in zip(target, expected):
        np.testing.assert_allclose(got.numpy(), want, rtol=1e-5, atol=1e-6)


def test_a_warm_start_is_the_teachers_network_for_student_and_target():
    method = made()
    method.prepare(None, Draws(0))
    theirs = method.teacher.denoiser.network.state_dict()
    for mine in (method.policy.denoiser.network.state_dict(), method.target.network.state_dict()):
        assert all(torch.equal(mine[name], value) for name, value in theirs.items())


def dropped(method, batch, calls):
    """Return which units each of the networks' calls dropped in a loss; `calls` names the modules to look into."""
    seen = [[] for _ in calls]
    for places, module in zip(seen, calls):
        for layer in module.modules():
            if isinstance(layer, torch.nn.Dropout):
                layer.register_forward_hook(lambda _, given, out, places=places: places.append(out == 0))
    method.policy.train()
    torch.manual_seed(0)
    method.loss(batch, Draws(0))
    return seen


def test_student_and_target_drop_the_same_units(batch):
    method = made(dropout=0.5)
    (student,), (target,) = dropped(method, batch, (method.policy, method.target))
    assert torch.equal(student, target) and 0.3 < student.float().mean() < 0.7


def test_other_shares_of_0_change_nothing(batch):
    losses = [made(options={"states": shares}).loss(batch, Draws(2), 1.0)[0] for shares in ({}, {"forward": 1.0, "student": 0.0})]
    assert torch.equal(*losses)


@pytest.mark.parametrize("distance", ["l2", "pseudo_huber"])
def test_distances_are_those_of_numpy_and_pass_over_padded_steps(distance):
    rng = np.random.default_rng(0)
    error, mask = rng.normal(size=(5, 8)), np.ones((5, 8))
    mask[3, 4:] = 0
    error[3, 4:] = 1e6
    squares = [e[m == 1] ** 2 for e, m in zip(error, mask)]
    huber = [np.sqrt(s.sum() + (0.00054 * np.sqrt(len(s))) ** 2) / np.sqrt(len(s)) - 0.00054 for s in squares]
    expected = np.concatenate(squares).mean() if distance == "l2" else np.mean(huber)
    loss, rows = measured(distance, torch.from_numpy(error), torch.from_numpy(mask), Draws(0))
    np.testing.assert_allclose(loss, expected)
    np.testing.assert_allclose(rows, [s.mean() for s in squares] if distance == "l2" else huber)


@pytest.mark.parametrize("wrong", [{"walk": "euler"}, {"walk": "jump"}, {"boundary": False}])
def test_a_student_that_is_no_consistency_function_is_refused(wrong):
    with pytest.raises(ConfigError, match="expected 'renoise' and true"):
        made(**wrong)


def test_settings_without_meaning_are_refused():
    with pytest.raises(ConfigError, match="'policy.grid' is 1; expected at least 2"):
        made(grid=1, sampler={"steps": 1})
    with pytest.raises(ConfigError, match="'target_decay' is 1.0"):
        consistency.Options(target_decay=1.0)
