# SPDX-License-Identifier: Apache-2.0
"""One plan at a time: the gate given what is certain is Bayes' rule, chunks begin with it, and plans aren't changed for a trifle."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from ros_vdd.errors import ConfigError, EngineError
from ros_vdd.runtime import commitment
from ros_vdd.runtime.choice import ChoiceConfig
from ros_vdd.runtime.commitment import Commitment, fit

K, H, A = 3, 6, 2
rng = np.random.default_rng(0)


class Mixture:
    """A diagonal mixture, its likelihood written out in float64."""

    name = "closed form"

    def __init__(self, means, stds, gate):
        self.means, self.stds, self.log_gate = np.asarray(means, float), np.asarray(stds, float), np.log(gate)
        self.asked = []

    def run(self, inputs):
        chunk, mask = inputs["chunk"][0].astype(float), inputs["mask"][0].astype(float)
        self.asked.append((chunk, mask))
        terms = -0.5 * np.square((chunk - self.means) / self.stds) - np.log(self.stds)
        joint = self.log_gate + (terms * mask[:, None]).sum(axis=(1, 2))
        joint = joint - np.logaddexp.reduce(joint)
        continued = np.where(mask[:, None] > 0, chunk, self.means)
        answer = {"log_responsibilities": joint, "means": self.means, "stds": self.stds, "continued": continued}
        return {name: value[None].astype(np.float32) for name, value in answer.items()}


def commit(engine, monkeypatch, **config):
    shapes = {"chunk": ((1, H, A), np.float32), "mask": ((1, H), np.float32)}
    monkeypatch.setattr(commitment, "likelihood_shapes", lambda bundle: shapes)
    return Commitment(SimpleNamespace(), engine, ChoiceConfig("committed", **config), seed=0)


def straight(offsets, slope=0.1):
    """K plans that run side by side."""
    return np.array([[[o + slope * k, o] for k in range(H)] for o in offsets])


def test_the_first_choice_of_many_episodes_follows_the_tempered_gate(monkeypatch):
    gate = np.array([0.2, 0.5, 0.3])
    made = commit(Mixture(straight([0, 5, 9]), np.ones((K, H, A)), gate), monkeypatch, temperature=0.5)
    chosen = []
    for seed in range(3000):
        made.reset(seed)
        chosen.append(made.next({}, 3).expert)
    np.testing.assert_allclose(np.bincount(chosen, minlength=K) / 3000, gate**2 / (gate**2).sum(), atol=0.03)


def test_the_gate_given_what_is_certain_is_bayes_rule(monkeypatch):
    engine = Mixture(rng.normal(size=(K, H, A)), rng.uniform(0.5, 1, (K, H, A)), [0.2, 0.5, 0.3])
    made = commit(engine, monkeypatch, commit_steps=2)
    plan = made.next({}, 3).actions
    said = made.next({}, 2)
    chunk, mask = engine.asked[-1]
    np.testing.assert_allclose(chunk[:2], plan[2:4], atol=1e-6)
    np.testing.assert_array_equal(mask, [1, 1, 0, 0, 0, 0])
    density = np.exp(-0.5 * np.square((plan[2:4] - engine.means[:, :2]) / engine.stds[:, :2])) / engine.stds[:, :2]
    weights = np.array([0.2, 0.5, 0.3]) * density.prod(axis=(1, 2))
    np.testing.assert_allclose(np.exp(said.log_gate), weights / weights.sum(), rtol=1e-4)
    np.testing.assert_allclose(said.actions[:2], plan[2:4], atol=1e-6)


def test_a_plan_that_was_begun_goes_on_though_the_gate_turns(monkeypatch):
    engine = Mixture(straight([0, 5, 9], slope=0.0), np.full((K, H, A), 0.3), [0.98, 0.01, 0.01])
    made = commit(engine, monkeypatch, commit_steps=1)
    assert made.next({}, 3).expert == 0
    engine.log_gate = np.log([0.02, 0.97, 0.01])  # 3.9 nats against some 280 of one action and 140 a rest
    assert [made.next({}, 2).expert for _ in range(5)] == [0] * 5


def test_without_certain_actions_only_a_clear_lead_changes_the_plan(monkeypatch):
    engine = Mixture(straight([0, 5, 9], slope=0.0), np.full((K, H, A), 0.3), [0.98, 0.01, 0.01])
    made = commit(engine, monkeypatch, commit_steps=0, sticky_margin=1.0)
    assert made.next({}, 3).expert == 0
    engine.log_gate = np.log([0.3, 0.6, 0.1])  # 0.69 nats
    assert made.next({}, 2).expert == 0
    engine.log_gate = np.log([0.1, 0.8, 0.1])  # 2.08 nats
    assert made.next({}, 2).expert == 1


def test_an_expert_is_known_by_its_plan_not_by_its_number(monkeypatch):
    engine = Mixture(straight([0, 5, 9], slope=0.0), np.full((K, H, A), 0.3), [0.98, 0.01, 0.01])
    made = commit(engine, monkeypatch)
    made.next({}, 3)
    engine.means = straight([9, 0, 5], slope=0.0)
    assert made.next({}, 2).expert == 1


@pytest.mark.parametrize("elapsed", [0, H, H + 3])
def test_where_nothing_of_the_plan_before_is_left_the_choice_is_a_first_one(elapsed, monkeypatch):
    engine = Mixture(straight([0, 5, 9]), np.ones((K, H, A)), [0.2, 0.5, 0.3])
    made = commit(engine, monkeypatch)
    made.next({}, 3)
    made.next({}, elapsed)
    assert not engine.asked[-1][1].any()


def test_the_fit_is_the_gaussians_mean_log_density_but_for_a_constant():
    means, stds, rest = rng.normal(size=(K, H, A)), rng.uniform(0.5, 2, (K, H, A)), rng.normal(size=(4, A))
    from scipy.stats import norm

    exact = norm.logpdf(rest, means[:, :4], stds[:, :4]).sum(axis=2).mean(axis=1)
    found = fit(rest, means, stds)
    np.testing.assert_allclose(found - found[0], exact - exact[0], atol=1e-10)


def test_a_graph_of_an_older_export_is_refused_with_the_remedy(monkeypatch):
    class Old(Mixture):
        def run(self, inputs):
            answer = super().run(inputs)
            return {name: value for name, value in answer.items() if name != "continued"}

    with pytest.raises(EngineError, match="ros-vdd export"):
        commit(Old(straight([0, 5, 9]), np.ones((K, H, A)), [0.2, 0.5, 0.3]), monkeypatch).next({}, 3)


def test_an_answer_that_is_not_finite_is_refused(monkeypatch):
    means = straight([0, 5, 9])
    means[1, 2, 0] = np.nan
    with pytest.raises(EngineError, match="NaN"):
        commit(Mixture(means, np.ones((K, H, A)), [0.2, 0.5, 0.3]), monkeypatch).next({}, 3)


def test_fewer_than_no_certain_actions_are_refused():
    with pytest.raises(ConfigError, match="commit_steps"):
        ChoiceConfig("committed", commit_steps=-1)


def test_a_plan_that_is_not_executed_binds_nothing(monkeypatch):
    engine = Mixture(straight([0, 5, 9]), np.ones((K, H, A)), np.ones(K) / K)
    made = commit(engine, monkeypatch, commit_steps=2)
    made.next({}, 3)
    made.disown()
    made.next({}, 1)
    assert not engine.asked[-1][1].any()
    made.next({}, 1)
    assert engine.asked[-1][1].sum() == 2
