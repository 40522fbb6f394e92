# SPDX-License-Identifier: Apache-2.0
"""There and back: played over ROS, recorded, converted, replayed, trained on, exported, replayed and run."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2")
pytest.importorskip("gym_pusht", reason="needs the simulator")
pytest.importorskip("torch", reason="training needs torch")
pytest.importorskip("onnxscript", reason="export needs onnxscript")

import toy  # noqa: E402
from test_demo import N_ACTION_STEPS, STEPS, short_env, write_policy  # noqa: E402, F401

from ros_vdd import cli  # noqa: E402
from ros_vdd.config import dump_yaml  # noqa: E402
from ros_vdd.data.bag import Bag  # noqa: E402
from ros_vdd.data.episodes import EpisodeStore  # noqa: E402

FILE = Path(__file__).resolve().parents[1] / "benchmarks" / "round_trip.py"
SEED, EPISODES = 100_000, 2
LEARNER = {
    "kind": "diffusion",
    "n_obs_steps": 2,
    "horizon": 16,
    "n_action_steps": N_ACTION_STEPS,
    "vision": {"features": 2, "channels": [4, 8], "hidden": 8},
    "width": 16,
    "depth": 1,
    "sampler": {"steps": 2, "solver": "euler"},
}


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("benchmarks_round_trip", FILE)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # a dataclass looks its module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def run(*words):
    """Run a verb; return its exit status."""
    return cli.run([str(word) for word in words])


def test_what_was_recorded_over_ros_comes_back_and_can_be_learned_from(script, short_env, tmp_path, capsys):  # noqa: F811
    played = write_policy(tmp_path / "walk")
    sent = script.record(tmp_path, played, short_env, EPISODES, SEED - 1, int(os.environ["ROS_DOMAIN_ID"]))
    bags = sorted((tmp_path / "bags" / script.TASK).glob("episode_*"))
    assert [episode.result["seed"] for episode in sent] == [SEED, SEED + 1] and len(bags) == EPISODES
    assert {bag.name: sorted(info.count for info in Bag.open(bag).topics.values()) for bag in bags} == {
        bag.name: [STEPS] * 3 for bag in bags
    }

    store = tmp_path / "store"
    assert run("convert", *bags, "--robot", "pusht", "--out", store, "--no-progress") == 0
    rows = [script.compare(bag, EpisodeStore(store), episode) for bag, episode in zip(bags, sent)]
    for row in rows:
        assert (row.frames, row.images, row.stamp_s) == (STEPS, 0, 0.0) and row.action <= 1e-6

    own = tmp_path / "own.json"
    replay = ("--lock-step", "--no-progress", "--json")
    assert run("replay", *bags, "--policy", played.path, *replay, own, "--max-error", "1e9", "--max-dropped", "0") == 0
    errors = json.loads(own.read_text())
    assert errors["frames"] == EPISODES * STEPS // N_ACTION_STEPS and errors["dropped"] == 0
    assert errors["execution"]["commands"] == EPISODES * STEPS and errors["execution"]["interventions"] == {}
    np.testing.assert_array_equal(errors["action_error"]["by_horizon"][:N_ACTION_STEPS], 0.0)
    assert errors["action_error"]["by_horizon"][-1] > 0

    training = toy.config("score_matching", "diffusion", store, {"steps": 8}, policy=LEARNER, validation_fraction=0.5)
    (tmp_path / "train.yaml").write_text(dump_yaml(training))
    learned = tmp_path / "learned"
    assert run("train", tmp_path / "train.yaml", "--out", learned, "--no-progress") == 0
    assert run("export", learned, "--draws", 2) == 0

    its = tmp_path / "its.json"
    assert run("replay", bags[0], "--policy", learned, *replay, its, "--plot", tmp_path / "its.png") == 0
    errors = json.loads(its.read_text())
    assert errors["frames"] == STEPS // N_ACTION_STEPS and errors["action_error"]["executed"] > 1
    assert run("replay", bags[0], "--policy", learned, *replay, its, "--max-error", "0.5") == 1  # it has learned next to nothing
    assert "the mean action error is" in capsys.readouterr().err

    score = tmp_path / "score.json"
    assert run("evaluate", learned, "--env", short_env, "--episodes", 1, "--no-progress", "--json", score) == 0
    assert json.loads(score.read_text())["per_episode"][0]["steps"] == STEPS
