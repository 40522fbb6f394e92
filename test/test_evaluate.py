# SPDX-License-Identifier: Apache-2.0
"""Closed-loop evaluation against a stand-in simulator and engine: who sees what, what is executed, what is reported."""

from __future__ import annotations

import argparse
import json

import numpy as np
import pytest

import toy
from ros_vdd import backends, bundle, cli, envs
from ros_vdd.config import dump_yaml, to_plain
from ros_vdd.errors import ConfigError, EngineError, PolicyError
from ros_vdd.offline import evaluate
from ros_vdd.runtime.choice import ChoiceConfig
from ros_vdd.runtime.inference import PolicyRunner
from ros_vdd.streams.spec import robot_from_mapping

STEPS, HORIZON, EXECUTED = 7, 4, 3
CONTINUITY = ("delay_steps", "ensemble", "seam_jump", "switches_per_episode")
SETTINGS = ("temperature", "sticky_margin", "sticky_steps", "tolerance", "commit_steps", "draws")


class Env:
    """Shows its seed and step number as the state, and keeps what it is told to do."""

    max_steps, modes = STEPS, None

    def __init__(self, robot):
        self.robot, self.actions, self.seeds = robot, [], []

    def reset(self, seed):
        self.seeds.append(seed)
        self._step = 0
        return self._observe()

    def step(self, action):
        self.actions.append(action.tolist())
        self._step += 1
        return self._observe()

    def _observe(self):
        return {"state": np.float32([self.seeds[-1] % 1000, self._step])}

    @property
    def score(self):
        return (self.seeds[-1] % 10) / 10 if self._step else 0.0

    @property
    def success(self):
        return self.score > 0.15 and self.done

    @property
    def done(self):
        return self._step >= STEPS


class Engine:
    """Answers with its own call number and the action's place in the chunk, and keeps what it saw."""

    name = "stand-in"

    def __init__(self):
        self.states = []

    def run(self, inputs):
        self.states.append(inputs["state"][0].tolist())
        chunk = np.stack([np.full(HORIZON, len(self.states)), np.arange(HORIZON)], axis=1).astype(np.float32)
        return {"means": np.stack([chunk, chunk + 50])[None], "log_gate": np.log(np.float32([[0.75, 0.25]]))}


@pytest.fixture
def robot(tmp_path):
    (tmp_path / "toy.yaml").write_text(dump_yaml(toy.BLIND), encoding="utf-8")
    return str(tmp_path / "toy.yaml")


def policy(tmp_path, robot=toy.BLIND, **fields):
    values = dict(name="p", kind="mixture", robot=to_plain(robot), network={}, n_obs_steps=3, horizon=HORIZON)
    return bundle.write(
        tmp_path / "policy", bundle.Manifest(**{**values, "n_action_steps": EXECUTED, "experts": 2, **fields}), {}
    )


@pytest.fixture
def parts(tmp_path, robot):
    engine = Engine()
    return Env(robot), PolicyRunner(policy(tmp_path), engine), engine


def test_n_action_steps_are_executed_then_inference_runs_again(parts):
    env, runner, _ = parts
    result = evaluate.episode(env, runner, seed=5, replan_steps=runner.bundle.n_action_steps)
    assert env.actions == [[1, 0], [1, 1], [1, 2], [2, 0], [2, 1], [2, 2], [3, 0]], (
        "the last chunk ends with the episode"
    )
    assert (result.steps, len(result.latencies_ns)) == (STEPS, 3)


def test_the_history_starts_with_the_first_frame_repeated(parts):
    env, runner, engine = parts
    evaluate.episode(env, runner, seed=5, replan_steps=runner.bundle.n_action_steps)
    steps = [[int(step) for _, step in state] for state in engine.states]
    assert steps == [[0, 0, 0], [1, 2, 3], [4, 5, 6]]


def test_no_frame_of_one_episode_is_seen_in_the_next(parts):
    env, runner, engine = parts
    for seed in (5, 6):
        evaluate.episode(env, runner, seed, runner.bundle.n_action_steps)
    assert [{int(s) for s, _ in state} for state in engine.states] == [{5}] * 3 + [{6}] * 3


def test_each_episode_has_randomness_of_its_own_seed(parts):
    env, runner = parts[0], PolicyRunner(parts[1].bundle, Engine(), "sample")
    chosen = []
    for seed in (11, 12, 11):
        env.actions.clear()
        evaluate.episode(env, runner, seed, runner.bundle.n_action_steps)
        chosen.append([action[0] > 25 for action in env.actions])
    assert chosen[0] == chosen[2]


@pytest.fixture
def verb(monkeypatch, robot, tmp_path):
    """Return a function that runs the verb on stand-ins and gives its JSON."""
    env = Env(robot)
    monkeypatch.setattr(envs, "make", lambda name: env)
    monkeypatch.setattr(backends, "load", lambda bundle, *options: Engine())
    folder = policy(tmp_path).path

    def run(*more):
        file = tmp_path / "result.json"
        assert cli.run(["evaluate", str(folder), "--env", "stand-in", "--no-progress", "--json", str(file), *more]) == 0
        return json.loads(file.read_text())

    return run


def test_the_json_has_the_keys_that_are_promised(verb):
    summary = verb("--episodes", "3")
    promised = "env episodes seed backend success_rate score_mean score_std mode_entropy nfe latency_ms".split()
    assert [k for k in summary if k in promised] == promised
    assert set(summary) - set(promised) == {"choice", *SETTINGS, *CONTINUITY, "replan_steps", "modes_found", "modes", "tasks", "per_episode"}
    assert list(summary["latency_ms"]) == ["p50", "p99", "mean"]
    assert summary["mode_entropy"] is None and summary["nfe"] == 1


def test_the_figures_are_those_of_the_episodes(verb):
    summary = verb("--episodes", "4", "--seed", "100000", "--backend", "onnxruntime")
    assert [e["seed"] for e in summary["per_episode"]] == [100000, 100001, 100002, 100003]
    assert [e["score"] for e in summary["per_episode"]] == [0.0, 0.1, 0.2, 0.3]
    assert (summary["score_mean"], summary["success_rate"]) == (0.15, 0.5)
    assert summary["score_std"] == pytest.approx(np.std([0.0, 0.1, 0.2, 0.3]), abs=1e-4)
    assert (summary["env"], summary["episodes"], summary["seed"], summary["backend"]) == (
        "stand-in",
        4,
        100000,
        "onnxruntime",
    )


def test_each_task_has_its_own_success_rate(verb, monkeypatch, capsys):
    assert verb("--episodes", "3")["tasks"] is None
    monkeypatch.setattr(Env, "task", property(lambda env: ("reach", "push")[env.seeds[-1] % 2]), raising=False)
    summary = verb("--episodes", "5", "--seed", "100000")  # success from the third on
    assert list(summary["tasks"].items()) == [("reach", 0.6667), ("push", 0.5)]
    assert [e["task"] for e in summary["per_episode"]] == ["reach", "push"] * 2 + ["reach"]
    assert "  reach  success 0.67\n  push   success 0.50\n" in capsys.readouterr().out


def test_scores_can_be_recorded_in_the_policy(verb, tmp_path):
    verb("--episodes", "2", "--record-scores", "first")
    verb("--episodes", "2", "--record-scores", "second")
    scores = bundle.Bundle.open(tmp_path / "policy").manifest.scores
    assert set(scores) == {"first", "second"} and scores["first"]["episodes"] == 2
    assert "per_episode" not in scores["first"]


@pytest.mark.parametrize(
    "arguments, told",
    [
        (["--episodes", "0"], "'episodes' is 0"),
        (["--seed", "-1"], "'seed' -1"),
        (["--temperature", "0"], "'temperature' is 0.0"),
        (["--json", "nowhere/result.json"], "no folder 'nowhere'"),
        (["--json", "/"], "'/' is a folder; give the name of a file"),
        (["--video", "nowhere/result.gif"], "no folder 'nowhere'"),
        (["--video", "episode.mp4"], "'episode.mp4': videos are written as .gif"),
    ],
)
def test_mistakes_are_told_before_anything_runs(arguments, told, verb):
    with pytest.raises(ConfigError, match=told):
        verb(*arguments)


def test_a_policy_of_another_robot_is_refused(tmp_path, robot):
    other = robot_from_mapping({**to_plain(toy.BLIND), "rate_hz": 20.0})
    with pytest.raises(PolicyError, match="doesn't fit robot.*rate_hz: 20.0 here, 10.0 there"):
        evaluate.make_runner(policy(tmp_path, other), robot, "onnxruntime", "argmax", 0)


def test_an_answer_that_isnt_finite_ends_the_episode_with_the_reason(parts):
    env, runner, engine = parts
    engine.run = lambda inputs: {"means": np.full((1, 2, HORIZON, 2), np.nan), "log_gate": np.zeros((1, 2))}
    with pytest.raises(EngineError, match="NaN"):
        evaluate.episode(env, runner, 0, runner.bundle.n_action_steps)
    assert env.actions == []


@pytest.mark.parametrize(
    "rule, given, told",
    [
        ("argmax", [], {}),
        ("sample", ["--temperature", "0.5"], {"temperature": 0.5}),
        ("gumbel", [], {"temperature": 1.0}),
        ("sticky", ["--sticky-margin", "0.7", "--sticky-steps", "3"], {"sticky_margin": 0.7, "sticky_steps": 3}),
    ],
)
def test_the_rule_is_recorded_with_the_settings_it_reads(rule, given, told, verb):
    summary = verb("--episodes", "1", "--choice", rule, *given)
    assert {k: summary[k] for k in ("choice", *SETTINGS)} == {"choice": rule, **dict.fromkeys(SETTINGS), **told}


def test_a_choice_is_reported_where_it_changes_something(tmp_path):
    chosen = {name: getattr(ChoiceConfig(), name) for name in SETTINGS}
    args = argparse.Namespace(env="e", seed=0, backend="b", replan_steps=0, choice="argmax", delay_steps=0, ensemble=None, **chosen)
    results = [evaluate.EpisodeResult(0, 0.5, False, 3, (1_000_000,))]
    diffusion = policy(tmp_path, kind="diffusion", nfe=19, experts=None)
    summary = evaluate.summarise(results, Env("robot"), diffusion, args)
    assert summary["choice"] is None and summary["nfe"] == 19
    args.choice = "coherent"
    summary = evaluate.summarise(results, Env("robot"), diffusion, args)
    assert summary["choice"] == "coherent" and summary["draws"] == 8, "it draws chunks, and chooses among them"
    assert summary["latency_ms"] == {"p50": 1.0, "p99": 1.0, "mean": 1.0}
    assert "19 network evaluation(s)" in evaluate.report(summary)


def test_the_goal_is_that_of_the_newest_frame(tmp_path):
    """Every other input is a history; a goal that changes counts from the next chunk on."""

    class Told(Env):
        def _observe(self):
            return {**super()._observe(), "goal": np.eye(3, dtype=np.float32)[self._step % 3]}

    class Listener(Engine):
        goals = []

        def run(self, inputs):
            self.goals.append((inputs["state"].shape, inputs["goal"].tolist()))
            return super().run(inputs)

    engine = Listener()
    evaluate.episode(Told("told"), PolicyRunner(policy(tmp_path, toy.TOLD), engine), 5, 4)
    assert engine.goals == [((1, 3, 2), [[1, 0, 0]]), ((1, 3, 2), [[0, 1, 0]])]


def test_an_environment_need_not_say_how_many_ways_there_are(parts):
    env, runner, _ = parts

    class Plain:
        """Has all of another environment but `modes`."""

        def __getattr__(self, name):
            if name in ("modes", "mode"):
                raise AttributeError(name)
            return getattr(env, name)

    result = evaluate.episode(Plain(), runner, 5, EXECUTED)
    assert result.mode is None
    assert evaluate._spread([result], evaluate.modes_of(Plain())) == {"mode_entropy": None, "modes_found": None, "modes": None}
