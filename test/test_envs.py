# SPDX-License-Identifier: Apache-2.0
"""Simulators: found by name, seeded to the last pixel, with the observations that their robot file promises."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from ros_vdd import envs
from ros_vdd.errors import EnvError
from ros_vdd.streams.spec import load_robot

SHARES = np.array([[0.4, 0.6], [0.5, 0.5], [0.6, 0.4], [0.2, 0.8]])  # of the way from lower to upper limit


def available(name):
    try:
        envs.make(name)
    except EnvError as error:
        return pytest.param(name, marks=pytest.mark.skip(reason=str(error)))
    return name


NAMES = [available(name) for name in envs.names()]


@pytest.fixture(scope="module")
def made():
    """One environment a name; every test resets it first."""
    return {name: envs.make(name) for name in envs.names() if isinstance(available(name), str)}


def actions(env):
    limits = load_robot(env.robot).action
    shares = np.resize(SHARES.T, (len(limits.joints), len(SHARES))).T
    return np.array(limits.lower) + shares * np.subtract(limits.upper, limits.lower)


def play(env, seed):
    return [env.reset(seed), *(env.step(action) for action in actions(env))]


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_frames(name, made):
    first, again = play(made[name], 7), play(made[name], 7)
    for one, other in zip(first, again):
        assert one.keys() == other.keys()
        for key in one:
            np.testing.assert_array_equal(one[key], other[key])
    fresh = play(envs.make(name), 7)
    for key in first[-1]:
        np.testing.assert_array_equal(first[-1][key], fresh[-1][key])


@pytest.mark.parametrize("name", NAMES)
def test_another_seed_gives_another_start_unless_ways_are_counted_from_one(name, made):
    same = np.array_equal(made[name].reset(7)["state"], made[name].reset(8)["state"])
    assert same == (made[name].modes is not None)


@pytest.mark.parametrize("name", NAMES)
def test_the_way_of_an_episode_that_has_just_begun_is_unknown(name, made):
    made[name].reset(0)
    assert made[name].modes is None or made[name].mode is None


@pytest.mark.parametrize("name", NAMES)
def test_observations_are_those_of_the_robot_file(name, made):
    robot = load_robot(made[name].robot)
    shapes = robot.observation_shapes() | ({"goal": (robot.goal_size,)} if robot.goal else {})
    for observation in play(made[name], 3):
        assert {k: v.shape for k, v in observation.items()} == shapes
        for key, value in observation.items():
            assert value.dtype == (np.uint8 if key.startswith("images.") else np.float32)
    assert all(np.ptp(observation[key]) > 50 for key in shapes if key.startswith("images.")), "something is to be seen"


@pytest.mark.parametrize("name", NAMES)
def test_an_observation_isnt_changed_by_the_next_step(name, made):
    first = made[name].reset(3)
    kept = {k: v.copy() for k, v in first.items()}
    made[name].step(actions(made[name])[0])
    for key in kept:
        np.testing.assert_array_equal(first[key], kept[key])


@pytest.mark.parametrize("name", NAMES)
def test_an_episode_ends_with_its_last_step_and_begins_anew(name, made):
    env = made[name]
    env.reset(0)
    told, steps = actions(env), 0
    while not env.done:
        env.step(told[steps % 4])
        steps += 1
    assert steps == env.max_steps or env.success or env.failed
    assert 0 <= env.score <= 1
    env.reset(0)
    assert not env.done and env.score == 0


@pytest.mark.parametrize("name", NAMES)
def test_pictures_for_people_have_the_size_that_was_asked_for(name, made):
    made[name].reset(0)
    try:
        picture = made[name].render(200)
    except EnvError as error:
        pytest.skip(str(error))
    assert picture.shape == (200, 200, 3) and picture.dtype == np.uint8 and np.ptp(picture) > 50


@pytest.fixture
def pusht(made):
    if "pusht" not in made:
        pytest.skip("gym_pusht isn't installed")
    return made["pusht"]


def test_pusht_moves_the_agent_to_where_it_is_told(pusht):
    pusht.reset(1)
    for _ in range(20):
        observation = pusht.step(np.array([400.0, 60.0]))
    np.testing.assert_allclose(observation["state"], [400, 60], atol=5)


def test_pusht_scores_the_block_on_its_goal_as_success(pusht):
    pusht.reset(1)
    goal = np.array([60.0, 60.0, 256.0, 256.0, np.pi / 4])  # gym_pusht: goal_pose
    pusht._place(goal)
    pusht.step(goal[:2])
    assert pusht.success and pusht.done and pusht.score == 1.0


def test_pusht_scores_are_shares_of_the_coverage_that_counts_as_success(pusht):
    pusht.reset(1)
    pusht._place(np.array([60.0, 60.0, 276.0, 256.0, np.pi / 4]))
    pusht.step(np.array([60.0, 60.0]))
    assert not pusht.success and 0.3 < pusht.score < 0.95
    best = pusht.score
    pusht._place(np.array([60.0, 60.0, 100.0, 400.0, 0.0]))
    pusht.step(np.array([60.0, 60.0]))
    assert pusht.score == best, "the episode's best counts"


def test_pusht_draws_labelled_pictures_of_the_state_it_tells(pusht):
    rng = np.random.default_rng(0)
    states = np.array([[100.0, 100.0, 256.0, 256.0, 0.5]])
    drawn = [pusht.render_labelled(rng, states, spread=20.0) for _ in range(6)]
    for one in drawn:
        assert one["images.top"].shape == (96, 96, 3) and one["extra.state"].shape == (5,)
        pusht._place(one["extra.state"].astype(float))
        difference = np.abs(pusht._gym._render().astype(int) - one["images.top"]).mean()
        assert difference < 0.5  # labels are float32: an edge pixel may flip
    assert len({one["images.top"].tobytes() for one in drawn}) == 6
    same = pusht.render_labelled(np.random.default_rng(0), states, spread=20.0)
    np.testing.assert_array_equal(same["extra.state"], drawn[0]["extra.state"])


def test_pusht_tells_the_true_state(pusht):
    observation = pusht.reset(5)
    np.testing.assert_allclose(pusht.full_state[:2], observation["state"], atol=1e-4)


def test_a_wrong_name_is_told_with_the_nearest():
    with pytest.raises(EnvError, match="no environment 'pushtt'.*did you mean 'pusht'"):
        envs.make("pushtt")


def test_a_missing_simulator_is_told_with_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gym_pusht", None)
    monkeypatch.delitem(sys.modules, "ros_vdd.envs.pusht", raising=False)
    with pytest.raises(EnvError, match=r"needs the module 'gym_pusht'.*pip install --no-deps gym-pusht"):
        envs.make("pusht")


def test_an_environment_of_another_package_is_found_by_its_dots(tmp_path, monkeypatch):
    (tmp_path / "my_lab_env").mkdir()
    (tmp_path / "my_lab_env" / "stacking.py").write_text("class Env:\n    max_steps = 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert envs.make("my_lab_env.stacking").max_steps == 3
