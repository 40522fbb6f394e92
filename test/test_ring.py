# SPDX-License-Identifier: Apache-2.0
"""The benchmark's toys, their exact teacher, what is measured on them, and the comparison of the distillation methods."""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the benchmarks train")

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import distillation  # noqa: E402
import ring  # noqa: E402
from comparison import Run  # noqa: E402
from toy_metrics import auc, histogram_distance, sliced_wasserstein  # noqa: E402
from toys import TOYS, ExactTeacher, Points  # noqa: E402

from ros_vdd.diffusion.draws import Draws  # noqa: E402

BRIEF = {"steps": 2, "batch_size": 8}


@pytest.fixture
def few(monkeypatch):
    """Measure with few points: that it runs, not what it says."""
    monkeypatch.setattr(ring, "COUNT", 50)
    monkeypatch.setattr(ring, "latency", lambda policy: 0.0)


def observed(toy, count, seed=0):
    rng = np.random.default_rng(seed)
    observation = toy.observations(count, rng)
    return observation, toy.sample(observation, rng)


@pytest.mark.parametrize("count, floor", [(5_000, 0.073), (10_000, 0.047)])
def test_the_floor_of_the_sliced_wasserstein_distance_is_the_published_one(count, floor, monkeypatch):
    monkeypatch.setattr(sliced_wasserstein, "__defaults__", (100,))
    mean, _ = ring.floor(TOYS["ring"], count, repeats=6)
    assert mean == pytest.approx(floor, abs=0.015)


@pytest.mark.parametrize("size", [2, 16])
def test_the_distance_of_shifted_points_is_the_length_of_the_shift_over_the_root_of_the_dimensions(size):
    """Every projection shifts by c.u, and E[(c.u)^2] = |c|^2 / D."""
    rng = np.random.default_rng(0)
    points, shift = rng.standard_normal((100, size)), rng.standard_normal(size)
    found = sliced_wasserstein(points, points + shift, rng, directions=20_000)
    assert found == pytest.approx(np.linalg.norm(shift) / math.sqrt(size), rel=0.02)
    with pytest.raises(ValueError, match="as many points"):
        sliced_wasserstein(points, points[1:], rng)


def test_the_order_of_points_is_nothing_to_the_distance():
    points = np.random.default_rng(0).standard_normal((50, 2))
    assert sliced_wasserstein(points, points[::-1], np.random.default_rng(1)) == 0


@pytest.mark.parametrize("name", TOYS)
def test_the_exact_teacher_has_the_gradient_of_the_log_density_as_score(name):
    toy = TOYS[name]
    teacher, (observation, points), unit = ExactTeacher(toy), observed(toy, 64), Draws(0).normal((64, toy.means.shape[1]))
    for sigma in (0.02, 0.3, 5.0):
        a = (points / toy.scale + sigma * unit).double().requires_grad_()
        levels = torch.full((64,), sigma)
        density = toy.log_prob(toy.scale * a, toy.scale * levels.double(), observation.double()).sum()
        (expected,) = torch.autograd.grad(density, a)
        found = teacher.score(a.detach().float(), levels, teacher.context({"state": observation[:, None]}))
        torch.testing.assert_close(found.double(), expected, rtol=2e-3, atol=2e-3 / sigma)


@pytest.mark.parametrize("name", ["ring", "ring_turned"])
def test_the_log_density_is_that_of_an_independent_mixture(name):
    toy = TOYS[name]
    observation, points = observed(toy, 32)
    ends = toy.place(torch.from_numpy(toy.means).repeat(32, 1), observation.double().repeat_interleave(8, dim=0), 1.0)
    covariance = 0.5**2 / 1.414**2 * torch.eye(2, dtype=torch.double)
    normal = torch.distributions.MultivariateNormal(ends.unflatten(0, (32, 8)), covariance)
    expected = normal.log_prob(points.double()[:, None]).logsumexp(dim=1) - math.log(8)
    torch.testing.assert_close(toy.log_prob(points.double(), torch.zeros(32).double(), observation.double()), expected)


@pytest.mark.parametrize("name", TOYS)
def test_withdrawing_undoes_placing_and_neither_changes_a_distance(name):
    toy = TOYS[name]
    observation, points = observed(toy, 16)
    moved = toy.place(points, observation, 1.0)
    torch.testing.assert_close(toy.withdraw(moved, observation), points)
    one = observation[:1].expand(16, 1)
    torch.testing.assert_close(torch.pdist(toy.place(points, one, 1.0)), torch.pdist(points))


@pytest.mark.parametrize("name", TOYS)
def test_of_the_data_989_in_1000_are_inside_a_mode_and_no_mode_is_preferred(name):
    toy = TOYS[name]
    observation, points = observed(toy, 20_000)
    modes, inside = toy.modes(points, observation)
    assert inside == pytest.approx(0.989, abs=0.003)
    assert histogram_distance(modes, len(toy.means)) < 0.02
    assert ((points / toy.scale).abs() <= 1).double().mean() > 0.999  # the box of normalised actions


def test_points_on_one_mode_are_inside_and_points_between_modes_are_not():
    toy = TOYS["ring"]
    nowhere = torch.zeros(10, 1)
    modes, inside = toy.modes(torch.from_numpy(toy.means[[3] * 10]), nowhere)
    assert inside == 1 and histogram_distance(modes, 8) == 7 / 8
    assert toy.modes(torch.zeros(10, 2), nowhere)[1] == 0


def test_whoever_ignores_the_observation_is_told_apart():
    toy = TOYS["ring_turned"]
    observation, _ = observed(toy, 5_000)
    straight = toy.sample(torch.zeros_like(observation), np.random.default_rng(1))
    assert toy.modes(straight, observation)[1] < 0.93


def test_the_true_density_has_the_published_auc():
    toy = TOYS["ring"]
    found = ring.energy_auc(lambda x, o: -toy.log_prob(toy.scale * x, torch.zeros(len(x)), o), toy)
    assert found == pytest.approx(0.901, abs=0.006)


def test_the_auc_counts_pairs_and_half_of_ties():
    rng = np.random.default_rng(0)
    high, low = rng.integers(0, 5, 40), rng.integers(0, 4, 30)
    pairs = (high[:, None] > low) + 0.5 * (high[:, None] == low)
    assert auc(high, low) == pytest.approx(pairs.mean())


def test_the_exact_teacher_by_many_steps_is_at_the_floor(monkeypatch):
    monkeypatch.setattr(ring, "COUNT", 2_000)
    monkeypatch.setattr(sliced_wasserstein, "__defaults__", (100,))
    found = ring.measure(ExactTeacher(TOYS["ring_turned"], 40, "heun"), TOYS["ring_turned"])
    assert found["sw"] < 0.16 and found["in_support"] > 0.98 and found["modes"] == 8 and found["end_point"] < 0.02


def test_the_same_seed_gives_the_same_points_and_batches_have_the_packages_shapes():
    one, other = (Points(TOYS["obstacle"], 3, 16) for _ in range(2))
    assert torch.equal(one.actions, other.actions)
    batch = one.batch(np.arange(4))
    assert {k: tuple(v.shape) for k, v in batch.items()} == {"state": (4, 1, 1), "actions": (4, 8, 2), "mask": (4, 8)}


@pytest.mark.parametrize("name, steps, counts", [("em", (), [1]), ("vdd", (), [1]), ("progressive", (2, 1), [2, 1])])
def test_a_training_gives_its_figures_for_each_number_of_evaluations(name, steps, counts, few):
    found = ring.train(name, toy="obstacle", steps=steps, loop=BRIEF)
    assert [row["nfe"] for row in found["rows"]] == counts
    for row in found["rows"]:
        assert row["sw"] > 0 and 0 <= row["tv"] <= 1 and 0 <= row["in_support"] <= 1
        assert ("end_point" in row) == (name == "progressive")
    json.dumps(found)


def test_the_students_of_a_chain_ask_their_teachers_only_where_those_were_trained(monkeypatch):
    world = TOYS["ring"]
    setting = ring.changed(ring.SETTINGS["progressive"], None, {"grid": 8}, {"steps": 1, "batch_size": 4})
    first = ring.student(setting, 0, world, ExactTeacher(world), 4).policy
    from ros_vdd.methods import progressive

    second = ring.student(setting, 0, world, first, 2).policy
    method, asked = progressive.Method(progressive.Options(), second, first), set()
    real = first.clean
    monkeypatch.setattr(first, "clean", lambda a, sigma, context: asked.update(sigma.tolist()) or real(a, sigma, context))
    method.loss(Points(world, 0, 64).batch(np.arange(64)), Draws(0))
    known = torch.tensor([first.grid[i] for i in first.stops]).tolist()
    assert asked == set(known)


def asked(**changes) -> argparse.Namespace:
    return argparse.Namespace(**{"task": "ring", "first": 0, "seeds": 2, "only": None, "set": [], "data": None, "teacher": None, **changes})


def test_what_is_finished_is_not_done_again(tmp_path, capsys):
    done = []
    jobs = {"a": lambda seed: done.append(seed) or {"rows": [], "seed": seed}, "b": lambda seed: done.append("b") or {}}
    args = asked(only=["a"])
    for _ in range(2):
        found = distillation.finished(jobs, tmp_path, args)
    assert done == [0, 1] and [one["seed"] for one in found["a"]] == [0, 1] and "b" not in found


def test_a_toys_comparison_writes_table_figures_and_picture(tmp_path, few, monkeypatch):
    monkeypatch.setattr(ring, "floor", lambda toy: (0.047, 0.01))
    text = distillation.toy("ring")(tmp_path, asked(only=["teacher_1", "teacher_4"]))
    assert "| teacher_4 | 4 |" in text and "data against data 0.047" in text
    rows = json.loads((tmp_path / "results.json").read_text())
    assert [row["seeds"] for row in rows] == [2, 2] and (tmp_path / "results.png").stat().st_size > 1000


def test_a_ddil_table_pairs_trainings_of_one_seed(tmp_path, few, monkeypatch):
    real = distillation.pair
    monkeypatch.setattr(distillation, "pair", lambda name, share, seed: real(name, share, seed, **BRIEF))
    text = distillation.ddil(tmp_path, asked(only=["K4_0", "K4_1"]))
    assert "| K4 | 2 |" in text and "K8" not in text


def test_a_ddil_table_pairs_by_the_seed_and_not_by_the_place(tmp_path):
    figures = {"sw": 0.5, "end_point": 0.5, "in_support": 0.5, "tv": 0.5}
    for seed, share, sw in [(0, 0, 0.9), (1, 0, 0.5), (1, 1, 0.4)]:  # the second of seed 0 isn't there yet
        (tmp_path / f"K8_{share}_{seed}.json").write_text(json.dumps({"rows": [{**figures, "sw": sw}]}))
    text = distillation.ddil(tmp_path, asked(only=["K8_0"]))
    assert "| K8 | 1 | 0.500 | -0.100 " in text


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"only": ["consitency"]}, "--only 'consitency': there is no such run; .*did you mean 'consistency'"),
        ({"set": ["loop.steps=5"]}, "--set has no meaning on a toy; try a change by python benchmarks/ring.py"),
        ({"teacher": "models/x"}, "--teacher has no meaning on a toy"),
    ],
)
def test_what_a_toys_comparison_would_not_read_is_refused(tmp_path, changes, told):
    with pytest.raises(SystemExit, match=told):
        distillation.toy("ring")(tmp_path, asked(**changes))
    assert not list(tmp_path.iterdir())


class Enough(Exception):
    """Ends a training before it begins."""


def test_a_toy_of_chunks_has_options_of_its_own(monkeypatch):
    asked = []

    def student(setting, *rest):
        asked.append(setting.options["tau_entropy"])
        raise Enough

    monkeypatch.setattr(ring, "student", student)
    monkeypatch.setattr(ring, "learned_teacher", lambda toy, seed: None)
    for toy, options in (("ring", {}), ("obstacle", {}), ("obstacle", {"tau_entropy": 0.5})):
        with pytest.raises(Enough):
            ring.train("dxmi", toy=toy, options=options)
    assert asked == [0.2, 0.01, 0.5]


def test_every_stage_of_a_chain_is_taught_by_the_one_before_on_one_grid():
    runs = {run.name: run for run in distillation.TASKS["avoiding"].runs}
    stages = [runs[f"progressive_{n}"] for n in (8, 4, 2, 1)]
    assert [run.teacher for run in stages] == ["teacher", "progressive_8", "progressive_4", "progressive_2"]
    assert all("policy.grid=32" in run.set and isinstance(run, Run) for run in stages)


@pytest.mark.parametrize("name", distillation.TASKS)
def test_the_configuration_of_every_run_can_be_built(name):
    from ros_vdd import methods, policies
    from ros_vdd.config import build
    from ros_vdd.offline.training_run import read_config

    for run in distillation.TASKS[name].runs:
        if run.config:
            config = read_config(run.config, run.set)
            module = methods.find(config.method)
            build(module.Options, config.options)
            build(policies.KINDS[module.KIND][1], config.policy)


@pytest.mark.parametrize("name", ring.SETTINGS)
def test_every_setting_can_be_trained(name):
    from ros_vdd import methods

    setting = ring.SETTINGS[name]
    if setting.method not in methods.names():
        pytest.skip(f"there is no method '{setting.method}'")
    stage = {"grid": 4, "sampler": {}} if setting.chained else {}
    world = TOYS["ring_turned"]
    trained = ring.student(ring.changed(setting, None, stage, BRIEF), 0, world, ExactTeacher(world), 2)
    assert trained.policy.kind == methods.find(setting.method).KIND
