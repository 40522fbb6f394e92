# SPDX-License-Identifier: Apache-2.0
"""A policy in any Python program: what it may be given, what it remembers, and that it does what `ros-vdd evaluate` does."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import ros_vdd
from ros_vdd import backends
from ros_vdd.errors import ConfigError, EngineError, PolicyError
from ros_vdd.offline import evaluate
from ros_vdd.runtime.inference import PolicyRunner

pytest.importorskip("onnx", reason="the tiny policy is made with onnx")

from tiny_policy import EXPERTS, HEIGHT, HORIZON, N_ACTION_STEPS, SHIFTS, TASKS, WIDTH, actions, write_policy  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
PICTURE = np.zeros((HEIGHT, WIDTH, 3), np.uint8)


class Env:
    """Moves to where it is told and keeps what that was; the same seed starts at the same place."""

    modes = None

    def reset(self, seed):
        self._state = np.random.default_rng(seed).uniform(-0.5, 0.5, 2)
        self.actions, self.done, self.score, self.success = [], False, 0.0, False
        return self._observe()

    def step(self, action):
        self.actions.append(action.tolist())
        self._state, self.done = 0.9 * np.asarray(action, float), len(self.actions) == 18
        return self._observe()

    def _observe(self):
        return {"images.top": PICTURE, "state": self._state.astype(np.float32)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_policy(tmp_path_factory.mktemp("policies") / "tiny")


@pytest.fixture
def seen(monkeypatch):
    """Every state history that reaches the engine."""
    kept, real = [], backends.load

    def load(bundle, *options):
        engine = real(bundle, *options)
        run = engine.run
        engine.run = lambda inputs: kept.append(inputs["state"][0].tolist()) or run(inputs)
        return engine

    monkeypatch.setattr(backends, "load", load)
    return kept


@pytest.fixture
def policy(folder, seen):
    return ros_vdd.load(folder.path)


def tick(x, y=0.0):
    return {"images.top": PICTURE, "state": np.float32([x, y])}


def test_importing_the_package_imports_neither_numpy_nor_torch():
    code = "import sys, ros_vdd; print(*(m in sys.modules for m in ('numpy', 'torch', 'yaml', 'ros_vdd.api')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.split() == ["False"] * 4, done.stderr


def test_loading_a_policy_imports_no_torch():
    code = "import sys, ros_vdd; ros_vdd.load('pusht_vdd'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "False", done.stderr


def test_a_name_that_isnt_there_is_told():
    with pytest.raises(AttributeError, match="module 'ros_vdd' has no attribute 'lode'"):
        ros_vdd.lode  # noqa: B018


def test_a_tick_gives_the_chunk_of_the_likeliest_expert(policy):
    chunk = policy.act(tick(0.25, -0.125))
    assert chunk.shape == (HORIZON, 2) and chunk.dtype == np.float32
    np.testing.assert_allclose(chunk, actions([0.25, -0.125]), atol=1e-6)
    assert policy.prediction.expert == 1 and policy.prediction.means.shape == (EXPERTS, HORIZON, 2)
    assert (policy.horizon, policy.n_action_steps, policy.n_obs_steps) == (HORIZON, N_ACTION_STEPS, 2)


def test_the_history_is_kept_and_begins_with_the_first_tick_repeated(policy, seen):
    for x in (1, 2, 3):
        policy.act(tick(x))
    assert [[int(x) for x, _ in history] for history in seen] == [[1, 1], [1, 2], [2, 3]]


def test_what_is_observed_between_two_chunks_is_seen(policy, seen):
    policy.act(tick(1))
    for x in (2, 3, 4):
        policy.observe(tick(x))
    policy.act()
    assert [int(x) for x, _ in seen[-1]] == [3, 4]


def test_the_policy_is_told_how_many_ticks_have_passed_since_its_chunk_before(policy, monkeypatch):
    told, act = [], policy._runner.act
    monkeypatch.setattr(policy._runner, "act", lambda arrays, elapsed: told.append(elapsed) or act(arrays, elapsed))
    policy.act(tick(1))
    policy.observe(tick(2))
    policy.observe(tick(3))
    policy.act()
    policy.act({"images.top": np.stack([PICTURE] * 2), "state": np.array([[1, 0], [2, 0]])})
    assert told == [1, 2, None]


def test_a_whole_history_replaces_what_was_kept(policy, seen):
    policy.act(tick(9))
    policy.act({"images.top": np.stack([PICTURE] * 2), "state": np.array([[1, 0], [2, 0]])})
    policy.act(tick(3))
    assert [[int(x) for x, _ in history] for history in seen] == [[9, 9], [1, 2], [2, 3]]


def test_a_reset_forgets_the_episode(policy, seen):
    policy.select_action(tick(1))
    policy.reset(0)
    assert policy.prediction is None
    policy.select_action(tick(5))
    assert [int(x) for x, _ in seen[-1]] == [5, 5] and len(seen) == 2


def test_a_simulator_may_write_its_next_frame_into_the_same_memory(policy, seen):
    state = np.zeros(2, np.float32)
    policy.observe({"images.top": PICTURE, "state": state})
    state += 7
    policy.act({"images.top": PICTURE, "state": state})
    assert seen == [[[0, 0], [7, 7]]]


def test_lists_and_other_numbers_are_taken_and_other_names_ignored(policy):
    chunk = policy.act({"images.top": PICTURE, "state": [0, 1], "reward": None})
    np.testing.assert_allclose(chunk, actions([0, 1]), atol=1e-6)


def test_one_action_a_tick_is_the_chunks_in_turn(policy, seen):
    taken = [policy.select_action(tick(x)) for x in range(6)]
    expected = [*actions([0, 0])[:N_ACTION_STEPS], *actions([4, 0])[:2]]
    np.testing.assert_allclose(taken, expected, atol=1e-6)
    assert len(seen) == 2


def test_a_chunk_asked_for_ends_the_one_that_was_being_executed(policy):
    policy.select_action(tick(0))
    policy.act(tick(1))
    np.testing.assert_allclose(policy.select_action(tick(2)), actions([2, 0])[0], atol=1e-6)


@pytest.mark.parametrize("choice", ["argmax", "sample", "sticky", "gumbel"])
def test_a_loop_of_ones_own_plays_the_episodes_of_evaluate(choice, folder):
    runner, policy = PolicyRunner(folder, backends.load(folder), choice), ros_vdd.load(folder.path, choice=choice)
    for seed in range(5):
        env = Env()
        evaluate.episode(env, runner, seed, N_ACTION_STEPS)
        expected, observation = env.actions, env.reset(seed)
        policy.reset(seed)
        while not env.done:
            observation = env.step(policy.select_action(observation))
        assert env.actions == expected


def test_settings_reach_the_rule(folder):
    certain = ros_vdd.load(folder.path, choice="sample", temperature=1e-3)
    even = ros_vdd.load(folder.path, choice="sample", temperature=1e3, seed=1)
    experts = [[p.act(tick(0)) is not None and p.prediction.expert for _ in range(40)] for p in (certain, even)]
    assert set(experts[0]) == {1} and 10 < sum(experts[1]) < 30


def test_ticks_still_count_when_a_chunk_failed(policy, monkeypatch):
    told, act = [], policy._runner.act

    def once_broken(arrays, elapsed):
        told.append(elapsed)
        if len(told) == 2:
            raise EngineError("the engine failed")
        return act(arrays, elapsed)

    monkeypatch.setattr(policy._runner, "act", once_broken)
    policy.act(tick(1))
    with pytest.raises(EngineError, match="the engine failed"):
        policy.act(tick(2))
    policy.act(tick(3))
    policy.act(tick(4))
    assert told == [1, 1, 2, 1]


@pytest.fixture(scope="module")
def told_folder(tmp_path_factory):
    return write_policy(tmp_path_factory.mktemp("policies") / "told", goal=TASKS)


@pytest.mark.parametrize("goal", ["lift", 2, [0, 0, 1], np.eye(3)[2]], ids=str)
def test_a_goal_is_a_name_a_number_or_a_vector(goal, told_folder):
    chunk = ros_vdd.load(told_folder.path).act({**tick(0), "goal": goal})
    np.testing.assert_allclose(chunk, actions([0, 0]) + SHIFTS[2], atol=1e-6)


def test_a_goal_stays_until_the_next(told_folder):
    policy = ros_vdd.load(told_folder.path)
    firsts = [policy.act({**tick(0), "goal": "pull"})[0, 0], policy.act(tick(0))[0, 0]]
    policy.reset(0)
    firsts.append(policy.act(tick(0))[0, 0])
    firsts.append(policy.act({**tick(0), "goal": "push"})[0, 0])
    np.testing.assert_allclose(firsts, [0.1, 0.1, 0.1, 0.0], atol=1e-6)
    whole = {"images.top": np.stack([PICTURE] * 2), "state": HISTORY, "goal": "lift"}
    np.testing.assert_allclose(policy.act(whole)[0, 0], 0.2, atol=1e-6)


def test_without_a_goal_the_policy_says_what_there_is(told_folder):
    policy = ros_vdd.load(told_folder.path)
    with pytest.raises(EngineError, match="lacks 'goal': this policy must be told what to do, one of push, pull, lift"):
        policy.act(tick(0))


def test_a_refused_goal_changes_nothing(told_folder):
    policy = ros_vdd.load(told_folder.path)
    policy.act({**tick(0), "goal": "pull"})
    with pytest.raises(EngineError, match="observation 'goal': no task 'pul'; .*did you mean 'pull'"):
        policy.act({**tick(0.5), "goal": "pul"})
    np.testing.assert_allclose(policy.act()[0, 0], 0.1, atol=1e-6)


@pytest.mark.parametrize("seed", [-1, 1.5, None, "0", True])
def test_a_seed_without_meaning_is_told(seed, folder, policy):
    for begin in (lambda: ros_vdd.load(folder.path, seed=seed), lambda: policy.reset(seed)):
        with pytest.raises(ConfigError, match=f"'seed' is {seed!r}; expected a whole number, at least 0"):
            begin()


HISTORY = np.zeros((2, 2), np.float32)


@pytest.mark.parametrize(
    "change, told",
    [
        ({"state": None}, "lacks 'state'; it holds images.top"),
        ({"state": [0, 0, 0]}, r"'state' has shape \(3,\); expected \(2,\) for one tick, or \(2, 2\) for the newest 2"),
        ({"state": np.zeros((3, 2))}, r"'state' has shape \(3, 2\)"),
        ({"state": HISTORY}, r"mixes one tick \(images.top\) with histories"),
        ({"state": ["a", "b"]}, "'state' is <U1; expected numbers"),
        ({"state": [np.nan, 0]}, "'state' holds NaN"),
        ({"images.top": PICTURE / 255}, "'images.top' is float64; expected uint8"),
        ({"images.top": PICTURE.transpose(2, 0, 1)}, r"'images.top' has shape \(3, 3, 4\); expected \(3, 4, 3\)"),
    ],
)
def test_an_observation_that_doesnt_fit_is_told(change, told, policy, seen):
    given = {k: v for k, v in {**tick(0), **change}.items() if v is not None}
    with pytest.raises(EngineError, match=told):
        policy.act(given)
    assert not seen


def test_a_chunk_before_any_observation_is_refused(policy):
    with pytest.raises(EngineError, match="nothing was observed in this episode yet"):
        policy.act()


@pytest.mark.parametrize(
    "given, kind, told",
    [
        ({"folder": "pusht_vd"}, ConfigError, "did you mean 'pusht_vdd'"),
        ({"folder": ROOT / "docs"}, PolicyError, "isn't a policy folder"),
        ({"backend": "onnx"}, EngineError, "no engine 'onnx'"),
        ({"choice": "best"}, ConfigError, "'choice' is 'best'"),
        ({"temperature": 0}, ConfigError, "'temperature' is 0"),
    ],
)
def test_mistakes_in_loading_are_told(given, kind, told, folder):
    with pytest.raises(kind, match=told):
        ros_vdd.load(**{"folder": folder.path, **given})


def test_the_loop_in_the_documents_runs(monkeypatch, capsys):
    pytest.importorskip("gym_pusht", reason="needs the simulator")
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    example = re.search(r"```python\n(.*?)```", page, re.S).group(1)
    assert example.count("max_episode_steps=300") == 1
    exec(compile(example.replace("max_episode_steps=300", "max_episode_steps=9"), "docs/python.md", "exec"), {})
    assert re.fullmatch(r"coverage 0\.\d\d, expert [0-3]\n", capsys.readouterr().out)


def test_the_threads_reach_the_engine_and_the_likelihood(monkeypatch):
    given = []
    for name in ("load", "load_likelihood"):
        real = getattr(backends, name)
        monkeypatch.setattr(backends, name, lambda bundle, engine, threads, real=real: given.append(threads) or real(bundle, engine, threads))
    ros_vdd.load("avoiding_vdd", choice="committed", threads=2)
    assert given == [2, 2]


def test_no_threads_are_refused(folder):
    with pytest.raises(EngineError, match="'threads' is 0"):
        ros_vdd.load(folder.path, threads=0)
