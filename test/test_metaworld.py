# SPDX-License-Identifier: Apache-2.0
"""Meta-World MT10: what a policy sees is what the simulator is in, seeds say everything, experts succeed on that alone."""

from __future__ import annotations

import itertools
import sys

import numpy as np
import pytest

from ros_vdd import cli, envs
from ros_vdd.data.episodes import EpisodeStore
from ros_vdd.errors import EnvError
from ros_vdd.streams.spec import load_robot

pytest.importorskip("metaworld", reason="needs pip install 'ros_vdd[metaworld]'")
from ros_vdd.envs import _metaworld_experts as experts  # noqa: E402
from ros_vdd.envs import metaworld  # noqa: E402

TASKS = metaworld.TASKS
ROBOT = load_robot("metaworld")
NAMES = [joint for state in ROBOT.states.values() for joint in state.joints]
STILL = np.zeros(4)


def part(observation, prefix):
    return np.array([value for name, value in zip(NAMES, observation["state"]) if name.startswith(prefix)])


@pytest.fixture(scope="module")
def env():
    return metaworld.Env()


@pytest.fixture(scope="module")
def demonstrated():
    """One demonstration of each of the first five tasks."""
    return list(itertools.islice(metaworld.demonstrations(seed=0, per_task=1), 5))


def test_the_robot_file_names_the_ten_tasks_of_mt10():
    import metaworld as package

    assert ROBOT.goal.tasks == TASKS == tuple(package.env_dict.MT10_V3) and len(TASKS) == 10


def test_the_robot_file_has_the_rate_and_limits_of_the_simulator(env):
    env.reset(0)
    assert ROBOT.rate_hz == pytest.approx(1 / env._sim.dt) and env.max_steps == env._sim.max_path_length
    assert ROBOT.action.lower == tuple(env._sim.action_space.low) and ROBOT.action.upper == tuple(env._sim.action_space.high)


@pytest.mark.parametrize("index", range(10))
def test_seeds_take_the_tasks_in_turn_and_the_goal_says_which(env, index):
    goal = env.reset(40 + index)["goal"]
    assert env.task == TASKS[index]
    np.testing.assert_array_equal(goal, ROBOT.goal.encode(TASKS[index]))
    np.testing.assert_array_equal(env.step(STILL)["goal"], goal)


@pytest.mark.parametrize("index", range(10))
def test_the_same_seed_gives_the_same_start_and_target_whatever_was_before(env, index):
    first = env.reset(20 + index)["state"]
    other = env.reset(30 + index)["state"]
    env.step(np.ones(4))
    np.testing.assert_array_equal(env.reset(20 + index)["state"], first)
    assert not np.array_equal(first[-3:], other[-3:]), "another seed has its target elsewhere"


def test_the_global_random_state_has_no_say(env):
    np.random.seed(1)
    first = env.reset(2)["state"]
    state = np.random.get_state()[1].copy()
    np.random.seed(2)
    np.testing.assert_array_equal(env.reset(2)["state"], first)
    np.random.seed(1)
    env.reset(2)
    np.testing.assert_array_equal(np.random.get_state()[1], state)


@pytest.mark.parametrize("index", range(10))
def test_the_first_observation_shows_objects_where_they_are(env, index):
    """Meta-World's own shows drawers and windows where they were before the draw."""
    first, second = env.reset(50 + index), env.step(STILL)
    np.testing.assert_allclose(part(first, "object_"), part(second, "object_"), atol=2e-3)
    np.testing.assert_array_equal(part(first, "target_"), part(second, "target_"))


@pytest.mark.parametrize("index", range(10))
def test_what_is_left_out_of_the_simulators_own_observation_is_zero_or_the_frame_before(env, index):
    before = env.reset(60 + index)["state"]
    own = env._sim.step(np.zeros(4, np.float32))[0]
    state = env._observe()["state"]
    np.testing.assert_allclose(own[:11], state[:11], atol=1e-6)
    np.testing.assert_allclose(own[36:], state[11:], atol=1e-6)
    np.testing.assert_array_equal(own[11:18], 0)
    np.testing.assert_array_equal(own[29:36], 0)
    np.testing.assert_allclose(own[18:22], before[:4], atol=1e-3)


def test_an_action_moves_the_hand_its_way_and_closes_the_fingers(env):
    for axis in range(3):
        start = part(env.reset(0), "hand_")
        for _ in range(10):
            observation = env.step(np.eye(4)[axis] * (-1 if axis == 2 else 1))
        moved = part(observation, "hand_") - start
        assert np.abs(moved).argmax() == axis and np.sign(moved[axis]) == (-1 if axis == 2 else 1)
    env.reset(0)
    for _ in range(20):
        observation = env.step([0, 0, 0, 1])
    assert part(observation, "gripper")[0] < 0.8


def test_actions_are_cut_at_the_limits(env):
    env.reset(0)
    cut = env.step(np.array([1.0, -1.0, 1.0, -1.0]))["state"]
    env.reset(0)
    np.testing.assert_array_equal(env.step(np.array([5.0, -7.0, 1.5, -9.0]))["state"], cut)


def test_success_is_the_simulators_own_flag_ends_the_episode_and_stays():
    env = metaworld.Env("reach-v3")
    observation = env.reset(0)
    while not env.done:
        assert np.linalg.norm(part(observation, "hand_") - part(observation, "target_")) > 0.03 and env.score == 0
        observation = env.step(np.append(10 * (part(observation, "target_") - part(observation, "hand_")), 0))
    assert env.success and env.score == 1 and env._steps < 100
    for _ in range(30):
        observation = env.step([0, -1, 0, 0])
    assert np.linalg.norm(part(observation, "hand_") - part(observation, "target_")) > 0.06
    assert env.success and env.done, "what was reached counts, also when it is left again"


def test_an_unknown_task_is_told_with_the_nearest():
    with pytest.raises(EnvError, match="no task 'reach-v2' in MT10.*did you mean 'reach-v3'"):
        metaworld.Env("reach-v2")


def test_every_task_is_demonstrated_under_its_goal(demonstrated):
    assert [meta["task"] for _, meta in demonstrated] == list(TASKS[:5])
    for arrays, meta in demonstrated:
        assert len(arrays["action"]) <= metaworld.Env.max_steps
        np.testing.assert_array_equal(arrays["goal"], np.tile(ROBOT.goal.encode(meta["task"]), (len(arrays["action"]), 1)))
        assert np.abs(arrays["action"]).max() <= 1


def test_recorded_is_what_the_expert_answers_to_the_recorded_state_not_what_was_executed(demonstrated):
    from metaworld.policies import ENV_POLICY_MAP

    for arrays, meta in demonstrated:
        expert = ENV_POLICY_MAP[meta["task"]]()
        answers = [experts.expert_action(expert, state) for state in arrays["state"]]
        np.testing.assert_array_equal(arrays["action"], answers)


@pytest.mark.parametrize("task", ["reach-v3", "window-open-v3"])
def test_the_experts_succeed_without_noise_on_the_policys_state(task):
    env = metaworld.Env(task)
    arrays = experts.drive(env, 0, np.random.default_rng(0), noise_std=0.0)
    assert env.success
    again = metaworld.Env(task)
    again.reset(0)
    for action in arrays["action"]:
        again.step(action)
    assert again.success, "without noise the recorded actions are those executed"


def test_the_same_seed_gives_the_same_bytes(demonstrated):
    def data(episodes):
        return [(meta, *(arrays[name].tobytes() for name in sorted(arrays))) for arrays, meta in episodes]

    again, other = metaworld.demonstrations(0), metaworld.demonstrations(1)
    assert data([next(again), next(again)]) == data(demonstrated[:2])
    assert data([next(other)])[0][1:] != data(demonstrated[:1])[0][1:]


def test_demonstrations_can_be_converted_with_their_goals(tmp_path, monkeypatch, demonstrated):
    monkeypatch.setattr(envs, "demonstrations", lambda name, seed: iter(demonstrated[:2]))
    assert cli.run(["convert", "env:metaworld", "--out", str(tmp_path / "data"), "--no-progress"]) == 0
    store = EpisodeStore(tmp_path / "data")
    assert store.robot.fingerprint() == ROBOT.fingerprint()
    episode = store[1]
    assert episode.meta["task"] == TASKS[1]
    np.testing.assert_array_equal(episode["goal"], demonstrated[1][0]["goal"])


def test_the_plan_begins_at_the_hand_and_leads_where_it_goes(env):
    env.reset(0)
    try:
        picture = env.render(200)
    except EnvError as error:
        pytest.skip(str(error))
    right, down = np.rint(env._cam.shares(env._sim, env._sim._target_pos) * 200).astype(int)
    assert picture.shape == (200, 200, 3)
    red, green, blue = picture[down - 1 : down + 2, right - 1 : right + 2].reshape(-1, 3).mean(axis=0)
    assert red > 2 * max(green, blue), "the target of reaching is a red ball"
    still, up = env.project(np.zeros((1, 1, 4))), env.project(np.tile([0.0, 0.0, 1.0, 0.0], (1, 10, 1)))
    assert still.shape == (1, 1, 2) and up.shape == (1, 10, 2)
    assert up[0, -1, 1] < still[0, 0, 1] - 0.05 and abs(up[0, -1, 0] - still[0, 0, 0]) < 0.02


def test_a_machine_that_cannot_draw_is_told_what_to_install(monkeypatch):
    from ros_vdd.envs import _metaworld_camera

    monkeypatch.setitem(sys.modules, "mujoco.egl", None)
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(_metaworld_camera, "_drawer", _metaworld_camera._drawer.__wrapped__)
    with pytest.raises(EnvError, match="apt install libegl1"):
        metaworld.Env("reach-v3").render(100)


def test_a_missing_simulator_is_told_with_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "metaworld", None)
    monkeypatch.delitem(sys.modules, "ros_vdd.envs.metaworld")
    with pytest.raises(EnvError, match=r"needs the module 'metaworld'.*pip install 'ros_vdd\[metaworld\]'"):
        envs.make("metaworld")
