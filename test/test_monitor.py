# SPDX-License-Identifier: Apache-2.0
"""What was left of the plan before tells an anomaly: its figures, the bound that demonstrations give, when it is warned of."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from ros_vdd.errors import ConfigError, DataError, EngineError, PolicyError
from ros_vdd.runtime.chunking import ActionChunk
from ros_vdd.runtime.energy import Energy
from ros_vdd.runtime.inference import Prediction
from ros_vdd.runtime.monitor import JUDGEMENT, PATIENCE, Calibration, CriticMonitor, MixtureMonitor, remaining

HORIZON = 4
DT, T0 = 100_000_000, 5_000_000_000
STDS = np.broadcast_to(np.float32([0.1, 0.3])[:, None, None], (2, HORIZON, 2))


class Mixture:
    """Stands for a LikelihoodRunner: keeps what it was asked, and says what it is told to."""

    def __init__(self, *log_probs):
        self.asked, self.log_probs = [], list(log_probs)

    def evaluate(self, observation, chunk):
        self.asked.append(chunk)
        log_prob = self.log_probs.pop(0) if self.log_probs else -3.0
        return SimpleNamespace(log_prob=log_prob, gate_entropy=0.5, stds=STDS)


class Critic:
    """Stands for an EnergyRunner: of its own chunks the median is 10 and a robust standard deviation 1.4826."""

    def __init__(self, *energies):
        self.asked, self.energies = [], list(energies)

    def evaluate(self, observation, chunk):
        self.asked.append(chunk)
        return Energy(self.energies.pop(0), np.float32([8, 9, 10, 11, 12]))


def plan(tick):
    actions = 10 * tick + np.arange(2 * HORIZON, dtype=np.float32).reshape(HORIZON, 2)
    return ActionChunk(T0 + round(tick * DT), DT, ("a", "b"), actions)


def look(monitor, tick, expert=1):
    return monitor.look({}, plan(tick), Prediction(plan(tick).actions, expert, np.zeros(2), 0))


def calibration(figure, bound=0.0, **changes):
    fields = {"median": 0.0, "quantile": 0.99, "actions": 1, "windows": 9, "episodes": 1, "data_sha256": ""}
    return Calibration(figure, bound, **{**fields, **changes})


@pytest.mark.parametrize(
    "ticks, left", [(1, 3), (3, 1), (2.1, 2), (1.9, 2), (0, None), (0.4, None), (4, None), (50, None), (-1, None)]
)
def test_what_is_left_of_a_plan_begins_at_the_nearest_tick(ticks, left):
    rest = remaining(plan(0), T0 + round(ticks * DT))
    assert rest is None if left is None else rest.tolist() == plan(0).actions[-left:].tolist()


def test_a_mixture_is_asked_about_the_plan_before():
    monitor = MixtureMonitor(Mixture())
    assert look(monitor, 0) == {"gate_entropy": 0.5, "expert_spread": pytest.approx(0.3), "plan_log_prob": None, JUDGEMENT: None}
    other = {"expert_spread": pytest.approx(0.1), "plan_log_prob": -3.0}
    assert look(monitor, 2, expert=0) == {"gate_entropy": 0.5, **other, JUDGEMENT: None}
    np.testing.assert_array_equal(monitor._runner.asked[1], plan(0).actions[2:])


def test_a_critic_is_asked_about_the_plan_before_alone():
    """The newest plan is one of its own chunks: its rank is that of a fair draw, whatever is observed."""
    monitor = CriticMonitor(Critic(11.0, 100.0))
    assert look(monitor, 0) == {"plan_energy_rank": None, "plan_energy_score": None, JUDGEMENT: None}
    assert look(monitor, 2) == {"plan_energy_rank": 0.7, "plan_energy_score": pytest.approx(1 / 1.4826), JUDGEMENT: None}
    assert look(monitor, 3) == {"plan_energy_rank": 1.0, "plan_energy_score": pytest.approx(90 / 1.4826), JUDGEMENT: None}
    assert [len(asked) for asked in monitor._runner.asked] == [2, 3]
    np.testing.assert_array_equal(monitor._runner.asked[0], plan(0).actions[2:])


def test_after_a_gap_or_a_reset_there_is_no_plan_before():
    monitor = MixtureMonitor(Mixture())
    look(monitor, 0)
    assert look(monitor, HORIZON)["plan_log_prob"] is None
    monitor.reset()
    assert look(monitor, HORIZON + 1)["plan_log_prob"] is None


@pytest.mark.parametrize(
    "monitor, good, bad",
    [
        (MixtureMonitor(None, calibration("plan_log_prob", -5.0)), -5.0, -5.1),
        (CriticMonitor(None, calibration("plan_energy_score", 4.0)), 4.0, 4.1),
    ],
    ids=["mixture", "critic"],
)
def test_only_so_many_plans_in_a_row_beyond_the_bound_are_an_anomaly(monitor, good, bad):
    told = [monitor._judge(score) for score in (bad, bad, good, bad, bad, bad, None, bad, good, bad)]
    assert PATIENCE == 3
    assert told == [False, False, False, False, False, True, True, True, False, False]
    monitor.reset()
    assert not monitor._judge(bad)


def test_a_calibrated_monitor_counts_as_many_actions_as_the_calibration_did():
    """So the bound means the same whenever the next plan comes; too few are not judged."""
    monitor = CriticMonitor(Critic(*[100.0] * 3), calibration("plan_energy_score", 4.0, actions=2))
    told = [look(monitor, tick) for tick in (0, 1, 3, 6)]
    assert [len(asked) for asked in monitor._runner.asked] == [2, 2]
    assert [t["plan_energy_rank"] for t in told] == [None, 1.0, 1.0, None]
    np.testing.assert_array_equal(monitor._runner.asked[0], plan(0).actions[1:3])


def test_a_calibration_of_another_kind_or_without_meaning_is_refused():
    with pytest.raises(ConfigError, match="'plan_log_prob'; this policy's is 'plan_energy_score'; run ros-vdd calibrate again"):
        CriticMonitor(None, calibration("plan_log_prob"))
    with pytest.raises(ConfigError, match="run ros-vdd calibrate again"):
        calibration("plan_log_prob", np.nan)


torch = pytest.importorskip("torch", reason="calibrating needs torch")

import toy  # noqa: E402
from ros_vdd import cli  # noqa: E402
from ros_vdd.bundle import Bundle, amend  # noqa: E402
from ros_vdd.offline import calibrate as calibrating  # noqa: E402
from ros_vdd.offline.calibrate import calibrate  # noqa: E402
from ros_vdd.runtime.monitor import open_monitor  # noqa: E402


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return toy.store(tmp_path_factory.mktemp("data") / "store")


@pytest.fixture
def mixture(tmp_path):
    return toy.policy(tmp_path / "mixture", "mixture")


def trained_on(bundle, store, fraction=0.5):
    training = {"data": str(store.root), "validation_fraction": fraction, "seed": 1}
    return amend(bundle, training=training, provenance={"data_sha256": store.fingerprint()})


def test_the_bound_is_the_quantile_of_the_demonstrations_that_were_held_out(mixture, store):
    """Against a loop by hand over the episodes."""
    bundle = trained_on(mixture, store)
    made = calibrate(bundle, quantile=0.9, backend="eager")
    held = sorted(np.random.default_rng(1).permutation(4)[:2])
    monitor, scores = open_monitor(bundle, "eager"), []
    for episode in (store[int(i)] for i in held):
        state, action = np.asarray(episode["state"]), np.asarray(episode["action"])
        for t in range(len(state)):
            scores.append(monitor.score({"state": state[[max(t - 1, 0), t]]}, action[t : t + 1]))
    assert made.bound == pytest.approx(np.quantile(scores, 0.1), rel=1e-4)
    assert made.median == pytest.approx(np.median(scores), rel=1e-4)
    assert (made.figure, made.actions, made.windows, made.episodes) == ("plan_log_prob", 1, len(scores), 2)
    assert made.data_sha256 == store.fingerprint()


def test_a_tenth_of_the_demonstrations_lie_beyond_a_students_bound(tmp_path, store):
    bundle = toy.policy(tmp_path / "student", "few_step", **toy.FEW_STEPS["dxmi"])
    made = calibrate(bundle, str(store.root), actions=2, quantile=0.9, backend="eager")
    assert (made.figure, made.episodes, made.windows) == ("plan_energy_score", 4, 9 + 12 + 7 + 10 - 4)
    monitor = open_monitor(bundle, "eager")
    seen = calibrating._demonstrated(bundle, store, range(4), 2, 999)
    assert np.mean([monitor.score(*window) > made.bound for window in seen]) == pytest.approx(0.1, abs=0.03)


def test_the_verb_writes_what_the_node_will_read(mixture, store, capsys):
    trained_on(mixture, store)
    assert cli.main(["calibrate", str(mixture.path), "--backend", "eager", "--windows", "5"]) == 0
    said = capsys.readouterr().out
    assert "plan_log_prob of the next 1 actions, over 5 observations of 2 episodes" in said
    assert "an anomaly below" in said
    monitor = open_monitor(Bundle.open(mixture.path), "eager")
    assert monitor.calibration.windows == 5 and monitor.calibration.quantile == 0.99


def test_what_cannot_be_calibrated_is_told(mixture, store, tmp_path):
    with pytest.raises(DataError, match="give --data STORE"):
        calibrate(mixture, backend="eager")
    with pytest.raises(DataError, match="trained on every episode.*give --data with others"):
        calibrate(trained_on(mixture, store, fraction=0.0), backend="eager")
    with pytest.raises(ConfigError, match="expected 1 to 2"):
        calibrate(mixture, str(store.root), actions=3, backend="eager")
    with pytest.raises(PolicyError, match="another robot file"):
        calibrate(mixture, str(toy.store(tmp_path / "seeing", toy.SEEING, (5,)).root), backend="eager")
    with pytest.raises(PolicyError, match="executes all 4 actions"):
        calibrate(replace(mixture, manifest=replace(mixture.manifest, n_action_steps=4)), backend="eager")


def test_a_policy_that_cannot_tell_says_so(tmp_path):
    with pytest.raises(EngineError, match="diffusion policy without a critic; only a mixture, or a student"):
        open_monitor(toy.policy(tmp_path / "policy", "diffusion"))
