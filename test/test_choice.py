# SPDX-License-Identifier: Apache-2.0
"""How an expert is chosen: what is drawn follows the gate, what commits stays, and a seed gives the same again.

Chi-square tests have fixed seeds, so they say the same on every machine; they pass above a p-value of 0.001.
"""

from __future__ import annotations

import numpy as np
import pytest

from ros_vdd.errors import ConfigError
from ros_vdd.runtime.choice import MIN_TOLERANCE, RULES, ChoiceConfig, ExpertChoice

GATE = np.array([0.15, 0.5, 0.05, 0.3])
LOG_GATE = np.log(GATE).astype(np.float32)
SEEDS = range(4000)
CRITICAL = {3: 16.266, 9: 27.877}  # 0.999 quantiles of chi-square by degrees of freedom (tables; scipy.stats.chi2.ppf)


def first_choices(seeds=SEEDS, log_gate=LOG_GATE, **config):
    choice = ExpertChoice(ChoiceConfig(**config))
    chosen = []
    for seed in seeds:
        choice.reset(seed)
        chosen.append(choice.choose(log_gate, np.zeros((len(log_gate), 1, 1))))
    return np.array(chosen)


def chi_square(counts, expected):
    return ((counts - expected) ** 2 / expected).sum()


def follows(chosen, probabilities):
    counts = np.bincount(chosen, minlength=len(probabilities))
    return chi_square(counts, len(chosen) * probabilities) < CRITICAL[len(probabilities) - 1]


def independent(table):
    table = np.asarray(table)
    expected = table.sum(axis=1, keepdims=True) * table.sum(axis=0) / table.sum()
    return chi_square(table, expected) < CRITICAL[(table.shape[0] - 1) * (table.shape[1] - 1)]


def steps(log_gates, expert=None, **config):
    """The experts that `sticky` takes for a row of gates, beginning with a given one."""
    choice = ExpertChoice(ChoiceConfig("sticky", **config))
    if expert is not None:
        choice.choose(np.where(np.arange(len(log_gates[0])) == expert, 0.0, -1e6))
    return [choice.choose(np.asarray(gate, float)) for gate in log_gates]


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
@pytest.mark.parametrize("rule", ["sample", "gumbel"])
def test_over_many_episodes_the_tempered_gate_is_met(rule, temperature):
    weights = GATE ** (1 / temperature)
    assert follows(first_choices(rule=rule, temperature=temperature), weights / weights.sum())


def test_the_test_of_the_gate_would_see_another_temperature():
    assert not follows(first_choices(rule="gumbel", temperature=1.2), GATE)


def test_within_an_episode_sample_follows_the_gate():
    choice = ExpertChoice(ChoiceConfig("sample"), seed=3)
    assert follows([choice.choose(LOG_GATE) for _ in SEEDS], GATE)


def test_gumbel_keeps_the_marginal_of_a_later_gate():
    """The noise is frozen, not the expert: when the gate has changed, the experts over all episodes follow the new one."""
    choice, later = ExpertChoice(ChoiceConfig("gumbel")), np.log([0.6, 0.1, 0.2, 0.1])
    chosen = []
    for seed in SEEDS:
        choice.reset(seed)
        choice.choose(LOG_GATE)
        chosen.append(choice.choose(later))
    assert follows(chosen, np.exp(later))


def test_sticky_draws_its_first_expert_from_the_gate():
    assert follows(first_choices(rule="sticky", temperature=9.0), GATE)


@pytest.mark.parametrize("rule", ["sample", "sticky", "gumbel"])
def test_neighbouring_seeds_are_independent(rule):
    chosen = first_choices(rule=rule)
    table = np.zeros((4, 4))
    np.add.at(table, (chosen[:-1], chosen[1:]), 1)
    assert independent(table)


@pytest.mark.parametrize("rule", ["sticky", "gumbel", "coherent"])
def test_what_binds_an_episode_is_independent_of_the_simulators_start(rule):
    """Simulators draw the start from default_rng(seed); a robot that always goes left from the left shows no diversity."""
    left = np.array([np.random.default_rng(seed).random() < 0.5 for seed in SEEDS])
    table = [np.bincount(first_choices(rule=rule)[side], minlength=4) for side in (left, ~left)]
    assert independent(table)


def test_sample_draws_what_it_always_drew():
    """Bit for bit the rule behind the shipped scores: the inverse of the gate's cumulated sum at one uniform number."""
    gates = np.random.default_rng(0).normal(size=(300, 6)).astype(np.float32)
    choice, rng = ExpertChoice(ChoiceConfig("sample"), seed=7), np.random.default_rng(7)
    for log_gate in gates:
        gate = np.exp(log_gate - log_gate.max())
        assert choice.choose(log_gate) == np.searchsorted(np.cumsum(gate) / gate.sum(), rng.random())


def test_argmax_draws_nothing():
    assert set(first_choices(range(20), rule="argmax", temperature=5.0)) == {1}


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule != "committed"])
def test_a_seed_gives_the_same_choices_again(rule):
    rng = np.random.default_rng(1)
    asked = [(rng.normal(size=4), rng.normal(size=(4, 6, 2)), 2) for _ in range(40)]
    choice = ExpertChoice(ChoiceConfig(rule), seed=5)
    first = [choice.choose(*a) for a in asked]
    choice.reset(5)
    assert [choice.choose(*a) for a in asked] == first
    assert [ExpertChoice(ChoiceConfig(rule), seed=5).choose(*asked[0])] == first[:1]


@pytest.mark.parametrize("rule", ["sample", "sticky", "gumbel"])
def test_another_episode_may_take_another_expert(rule):
    assert set(first_choices(range(60), rule=rule)) == {0, 1, 2, 3}


@pytest.mark.parametrize("rule", ["sample", "gumbel"])
@pytest.mark.parametrize("temperature", [1e-3, 1e-46, 5e-324])
@pytest.mark.filterwarnings("error")
def test_without_temperature_the_likeliest_expert_is_taken(rule, temperature):
    assert set(first_choices(range(200), rule=rule, temperature=temperature)) == {1}


def test_a_high_temperature_makes_all_experts_alike():
    assert follows(first_choices(rule="sample", temperature=1e6), np.full(4, 0.25))


def test_gumbel_commits_while_the_gate_stays():
    for seed in range(100):
        choice = ExpertChoice(ChoiceConfig("gumbel"), seed)
        assert len({choice.choose(LOG_GATE) for _ in range(20)}) == 1


def test_gumbel_never_leaves_an_expert_that_gains():
    for seed in range(100):
        choice, gate = ExpertChoice(ChoiceConfig("gumbel"), seed), LOG_GATE.copy()
        expert = choice.choose(gate)
        for _ in range(10):
            gate[expert] += 0.3
            assert choice.choose(gate) == expert


def test_gumbel_gives_way_when_its_expert_dies():
    choice = ExpertChoice(ChoiceConfig("gumbel"), seed=0)
    expert = choice.choose(LOG_GATE)
    gate = LOG_GATE.copy()
    gate[expert] = -50
    assert choice.choose(gate) != expert


LEADS, TIES, TRAILS = [0, 1.5, -9], [0, 1.0, -9], [0, 0.5, -9]  # of expert 1 over 0, margin 1
THIRD = [0, -9, 1.5]


@pytest.mark.parametrize(
    "gates, expected",
    [
        ([LEADS, LEADS, LEADS], [0, 0, 1]),
        ([LEADS, LEADS, TRAILS, LEADS, LEADS, LEADS], [0, 0, 0, 0, 0, 1]),
        ([TIES] * 5, [0] * 5),
        ([LEADS, THIRD] * 3, [0] * 6),
        ([LEADS, LEADS, THIRD, THIRD, THIRD], [0, 0, 0, 0, 2]),
        ([[0, 1.5, 2.0]] * 3, [0, 0, 2]),
        ([[0, 1.5, -9], [0, 1.5, 2.0], [0, 1.5, 2.0]], [0, 0, 1]),
        ([LEADS] * 3 + [[1.5, 0, -9]] * 3, [0, 0, 1, 1, 1, 0]),
    ],
    ids=[
        "after three in a row",
        "an interruption starts the count anew",
        "the margin itself isn't above it",
        "two that take turns never lead",
        "another leader counts for itself",
        "the likeliest of those that led",
        "who hasn't led long enough isn't taken, though likelier",
        "and back by the same rule",
    ],
)
def test_sticky_changes_only_for_a_lasting_lead(gates, expected):
    assert steps(gates, expert=0, sticky_margin=1.0, sticky_steps=3) == expected


def test_without_margin_and_patience_sticky_is_argmax():
    gates = np.random.default_rng(2).normal(size=(50, 5))
    assert steps(gates, expert=0, sticky_margin=0.0, sticky_steps=1) == gates.argmax(axis=1).tolist()


def test_sticky_forgets_its_expert_in_the_next_episode():
    choice = ExpertChoice(ChoiceConfig("sticky", sticky_margin=50.0), seed=0)
    certain = np.where(np.eye(4) > 0, 0.0, -40.0)
    choice.choose(certain[0])
    assert [choice.choose(certain[2]) for _ in range(9)] == [0] * 9
    choice.reset(1)
    assert choice.choose(certain[2]) == 2


@pytest.mark.parametrize(
    "fields, told",
    [
        ({"rule": "gumble"}, "'choice' is 'gumble'; available: argmax, coherent, committed, gumbel, sample, sticky; did you mean 'gumbel'"),
        ({"temperature": 0.0}, "'temperature' is 0.0; expected a number above 0"),
        ({"temperature": -1.0}, "'temperature' is -1.0"),
        ({"temperature": np.nan}, "'temperature' is nan"),
        ({"temperature": np.inf}, "'temperature' is inf"),
        ({"sticky_margin": -0.1}, "'sticky_margin' is -0.1.*0 nats or more"),
        ({"sticky_margin": np.nan}, "'sticky_margin' is nan"),
        ({"tolerance": 0.0}, "'tolerance' is 0.0; expected a share of half the joint range, 1e-06 or more"),
        ({"tolerance": 1e-30}, "'tolerance' is 1e-30"),
        ({"tolerance": np.inf}, "'tolerance' is inf"),
        ({"tolerance": np.nan}, "'tolerance' is nan"),
        ({"sticky_steps": 0}, "'sticky_steps' 0.*at least 1 step"),
    ],
)
def test_settings_without_meaning_are_refused(fields, told):
    with pytest.raises(ConfigError, match=told):
        ChoiceConfig(**fields)


def test_a_rule_tells_the_settings_it_reads():
    assert ChoiceConfig("argmax").settings == {}
    assert ChoiceConfig("gumbel", temperature=0.5).settings == {"temperature": 0.5}
    assert ChoiceConfig("sticky").settings == {"sticky_margin": 1.0, "sticky_steps": 2}


EVEN = np.full(2, np.log(0.5))


def plans(*levels, horizon=6):
    """One plan an expert: all of its actions at one level."""
    return np.array([np.full((horizon, 1), level) for level in levels])


def test_coherent_goes_on_with_the_plan_before_even_under_another_number():
    for seed in range(30):
        choice = ExpertChoice(ChoiceConfig("coherent", tolerance=0.1), seed)
        first = choice.choose(EVEN, plans(-1.0, 1.0), 0)
        assert choice.choose(EVEN, plans(1.0, -1.0), 2) == 1 - first, "the experts have exchanged their plans"


def test_coherent_weighs_the_gate_by_the_likelihood_of_what_is_left():
    """Four of six actions are left, each 0.2 from one plan and 0.6 from the other: odds exp(4 (0.36 - 0.04) / (2 tol^2))."""
    tolerance, count = 1.5, 4000
    odds = np.exp(4 * (0.6**2 - 0.2**2) / (2 * tolerance**2))
    drawn = 0
    for seed in range(count):
        choice = ExpertChoice(ChoiceConfig("coherent", tolerance=tolerance), seed)
        choice.choose(np.array([0.0]), plans(0.0), 0)
        drawn += choice.choose(EVEN, plans(0.2, 0.6), 2) == 0
    expected = odds / (1 + odds)
    assert abs(drawn / count - expected) < 4 * np.sqrt(expected * (1 - expected) / count)


def test_coherent_compares_each_action_with_the_one_planned_for_the_same_time():
    ramp = np.arange(6.0)[:, None]
    choice = ExpertChoice(ChoiceConfig("coherent", tolerance=0.05), seed=0)
    choice.choose(np.array([0.0]), ramp[None], 0)
    late, right = np.vstack([ramp[:4], ramp[-2:]]), np.vstack([ramp[2:], ramp[-2:]])
    assert choice.choose(EVEN, np.array([late, right]), 2) == 1


@pytest.mark.parametrize("elapsed", [0, 6, 100, -3])
def test_coherent_follows_the_gate_where_nothing_of_the_plan_before_is_left(elapsed):
    chosen, levels = [], plans(-1.0, 0.0, 1.0, 2.0)
    for seed in range(2000):
        choice = ExpertChoice(ChoiceConfig("coherent", tolerance=0.01), seed)
        choice.choose(LOG_GATE, levels, 0)
        chosen.append(choice.choose(LOG_GATE, levels[::-1], elapsed))
    assert follows(chosen, GATE)


def test_coherent_forgets_the_plan_with_the_episode():
    choice, fresh = (ExpertChoice(ChoiceConfig("coherent", tolerance=0.01), 3) for _ in range(2))
    choice.choose(EVEN, plans(-1.0, 1.0), 0)
    choice.reset(4)
    fresh.reset(4)
    assert choice.choose(EVEN, plans(-1.0, 1.0), 2) == fresh.choose(EVEN, plans(-1.0, 1.0), 2)


@pytest.mark.parametrize("temperature", [1.0, 1e-300])
def test_coherent_with_the_least_tolerance_still_takes_the_nearest_plan(temperature):
    """Far plans by the thousand numbers, in the engine's own precision: no weight overflows to nothing but minus infinity."""
    near, far = np.full((100, 14), 0.01, np.float32), np.full((100, 14), 8.0, np.float32)
    with np.errstate(all="raise", under="ignore"):
        for seed in range(5):
            choice = ExpertChoice(ChoiceConfig("coherent", temperature=temperature, tolerance=MIN_TOLERANCE), seed)
            choice.choose(np.float32([0.0]), 0 * near[None], 0)
            assert choice.choose(np.zeros(3, np.float32), np.stack([far, near, far - 16]), 1) == 1
